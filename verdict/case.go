package verdict

import (
	"net/netip"
	"slices"
	"time"

	"tcpcoroner/evidence"
)

// caseFile is an incident with the indices that the rules look things up in.
type caseFile struct {
	inc    *evidence.Incident
	window *evidence.Window
	// sockets by local and remote end; listeners by local end.
	sockets   map[[2]netip.AddrPort]*evidence.Socket
	listeners map[netip.AddrPort][]*evidence.Socket
	// own are this host's addresses; empty if they are not known.
	own map[netip.Addr]bool
	// resets by what NAT leaves alone, to find a RST's other side on a router.
	resets map[resetID][]resetSight
	// ttls counts the TTLs of received segments other than RST, by source.
	ttls map[peerID]map[uint8]int
	// came are addresses that packets came in from, as seen first.
	came map[peerID]bool
	// answers are how servers answered SYNs.
	answers map[acceptorID]*evidence.Answer
	// kernel are the kernel's events by what they are found by.
	kernel kernelIndex
	// stories are all flows that are judged, in the order of the excerpts.
	stories []*story
	// scanned counts closed ports by who tried them, checks connections without a
	// word, aborts are those of an acceptor's.
	scanned map[netip.Addr]int
	checks  map[checkKey]int
	aborts  map[netip.AddrPort][]time.Time
	// deaf counts SYNs that an acceptor with a full queue left unanswered.
	deaf map[netip.AddrPort]int
	// folded counts stories that are told with another.
	folded int
	// sent counts RST segments that this host sent and did not forward, unsure those
	// of which nothing tells whether it did.
	sent, unsure int
}

func newCase(inc *evidence.Incident) *caseFile {
	c := &caseFile{
		inc: inc, window: &inc.Window,
		sockets:   map[[2]netip.AddrPort]*evidence.Socket{},
		listeners: map[netip.AddrPort][]*evidence.Socket{},
		resets:    map[resetID][]resetSight{},
		ttls:      map[peerID]map[uint8]int{},
		came:      map[peerID]bool{},
		answers:   map[acceptorID]*evidence.Answer{},
		sent:      inc.Window.SentResets,
	}
	for _, s := range []*evidence.Snapshot{inc.After, inc.At} {
		if s != nil {
			c.indexSockets(s.Sockets)
			c.indexOwn(s)
		}
	}
	c.indexTTLs(c.indexResets())
	for i := range c.window.Answers {
		a := &c.window.Answers[i]
		c.answers[acceptorID{a.From, a.Namespace}] = a
	}
	c.kernel = indexKernel(inc)
	return c
}

// indexOwn notes the addresses of interfaces, and those that sockets have: a
// transparent proxy's are no interface's.
func (c *caseFile) indexOwn(s *evidence.Snapshot) {
	if len(s.Addresses) == 0 {
		return
	}
	if c.own == nil {
		c.own = map[netip.Addr]bool{}
	}
	for _, a := range s.Addresses {
		c.own[a.Unmap()] = true
	}
	for i := range s.Sockets {
		c.own[s.Sockets[i].Local.Addr().Unmap()] = true
	}
}

// acceptorID is a server's end in one namespace.
type acceptorID struct {
	addr      netip.AddrPort
	namespace uint16
}

func (c *caseFile) indexSockets(all []evidence.Socket) {
	for i := range all {
		s := &all[i]
		if s.Listening() {
			c.listeners[s.Local] = append(c.listeners[s.Local], s)
			continue
		}
		c.sockets[[2]netip.AddrPort{s.Local, s.Remote}] = s
	}
}

// indexResets notes every RST and returns the addresses they came from.
func (c *caseFile) indexResets() map[peerID]bool {
	peers := map[peerID]bool{}
	kept, told := 0, true
	var g evidence.Segment
	for i := range c.window.Packets {
		p := &c.window.Packets[i]
		if evidence.ParseSegment(p, &g) != nil || !g.Flags.Has(evidence.RST) {
			continue
		}
		peers[peerID{g.Src.Addr(), p.Namespace}] = true
		r := sightOf(p, &g)
		r.direction = c.heading(p, &g)
		c.resets[r.resetID] = append(c.resets[r.resetID], r)
		if p.Sighting == 0 {
			c.countSent(p, r.direction)
			kept, told = kept+1, told && p.Direction != evidence.DirectionUnknown
		}
	}
	if !told { // of those that were not kept, any may have left as well
		c.unsure += max(c.window.ResetCount-kept, 0)
	}
	return peers
}

// heading is which way a packet went. Devices without a link layer do not tell; there
// this host's addresses do: IPv4 refuses what comes in from one of them
// (net/ipv4/fib_frontend.c, fib_validate_source). IPv6 does not, which is one reason
// for the limit that oriented sets.
func (c *caseFile) heading(p *evidence.Packet, g *evidence.Segment) evidence.Direction {
	if p.Direction != evidence.DirectionUnknown || p.Namespace != 0 {
		return p.Direction
	}
	switch from, to := c.own[g.Src.Addr()], c.own[g.Dst.Addr()]; {
	case from && !to:
		return evidence.Sent
	case to && !from:
		return evidence.Received
	}
	return evidence.DirectionUnknown
}

// countSent counts a RST whose direction its interface did not tell.
func (c *caseFile) countSent(p *evidence.Packet, d evidence.Direction) {
	switch {
	case p.Direction != evidence.DirectionUnknown || p.Namespace != 0:
	case d == evidence.Sent:
		c.sent++
	case d == evidence.DirectionUnknown:
		c.unsure++
	}
}

func (c *caseFile) indexTTLs(peers map[peerID]bool) {
	var g evidence.Segment
	for i := range c.window.Packets {
		p := &c.window.Packets[i]
		if evidence.ParseSegment(p, &g) != nil || c.heading(p, &g) != evidence.Received {
			continue
		}
		if a := (peerID{g.Src.Addr(), p.Namespace}); peers[a] && !g.Flags.Has(evidence.RST) {
			c.came[a] = c.came[a] || p.Sighting == 0
			if c.ttls[a] == nil {
				c.ttls[a] = map[uint8]int{}
			}
			c.ttls[a][g.TTL]++
		}
	}
}

// usual are the TTLs that the RST's sender has in other packets.
func (c *caseFile) usual(s *story) map[uint8]int {
	return c.ttls[peerID{s.rst.Src.Addr(), s.excerpt.Namespace}]
}

// movedFor is moved for a story: the counters are those of the recorder's own
// namespace and tell nothing of another.
func (c *caseFile) movedFor(s *story, name string) (uint64, bool) {
	if !s.here() {
		return 0, false
	}
	return c.moved(name)
}

// moved is the growth of a counter over the window, and whether it is known.
func (c *caseFile) moved(name string) (uint64, bool) {
	_, ok := c.inc.Before.Values[name]
	if !ok || (c.inc.After == nil && c.inc.At == nil) {
		return 0, false
	}
	return c.inc.CounterDelta(name), true
}

// listener finds a listener that would have taken a SYN to addr, and whether
// the sockets could be read at all.
func (c *caseFile) listener(addr netip.AddrPort) (*evidence.Socket, bool) {
	known := c.inc.At != nil && len(c.inc.At.Sockets) > 0
	any4 := netip.AddrPortFrom(netip.IPv4Unspecified(), addr.Port())
	any6 := netip.AddrPortFrom(netip.IPv6Unspecified(), addr.Port())
	for _, a := range []netip.AddrPort{addr, any4, any6} {
		if l := c.listeners[a]; len(l) > 0 && (a != any4 || addr.Addr().Is4()) {
			return l[0], known
		}
	}
	return nil, known
}

// owner names the process at a local end, and says how it is known. A client's
// end is named by its own socket only: another socket to the same server may
// belong to somebody else.
func (c *caseFile) owner(local, remote netip.AddrPort) (*evidence.Owner, string) {
	if s := c.sockets[[2]netip.AddrPort{local, remote}]; s != nil && s.Owner != nil {
		return s.Owner, "the flow's own socket, still open at the snapshot"
	}
	l, _ := c.listener(local)
	if l == nil || l.Owner == nil || !c.soleOwner(l) {
		return nil, ""
	}
	return l.Owner, ownedByListener
}

// ownedByListener is the source of an owner that is only the listener's.
const ownedByListener = "the listener on the flow's local port"

// soleOwner is false where several processes listen on one port (SO_REUSEPORT):
// then the port does not tell which of them had the flow.
func (c *caseFile) soleOwner(l *evidence.Socket) bool {
	for _, o := range c.listeners[l.Local] {
		if o.Owner == nil || o.Owner.PID != l.Owner.PID {
			return false
		}
	}
	return true
}

// describe fills the facts of a flow; the verdict comes later.
func (c *caseFile) describe(s *story) evidence.Flow {
	e := s.excerpt
	f := evidence.Flow{Packets: e.Packets, Resets: e.Resets, Namespace: e.Namespace, First: e.First, Last: e.Last}
	f.Client, f.Server, f.InitiatorSeen = ends(e.Key, e.Client)
	f.ClientBytes, f.ServerBytes = e.Bytes[0], e.Bytes[1]
	if f.Client == e.Key.B {
		f.ClientBytes, f.ServerBytes = f.ServerBytes, f.ClientBytes
	}
	if s.rst != nil {
		f.Reset = &evidence.Reset{
			Time: s.rst.Time, Packet: s.rst.number, From: s.rst.Src, Direction: s.direction(),
			Interface: s.rst.sightings[0].iface, Flags: s.rst.Flags.String(), TTL: s.rst.TTL, Payload: slices.Clone(s.rst.Payload),
		}
	}
	f.Local = c.localEnd(s)
	if f.Local.IsValid() && s.here() {
		remote := f.Client
		if f.Local == f.Client {
			remote = f.Server
		}
		f.Owner, f.OwnerSource = c.owner(f.Local, remote)
	}
	return f
}

// localEnd is the zero value for a forwarded flow or an unknown direction.
func (c *caseFile) localEnd(s *story) netip.AddrPort {
	n := s.rst
	if n == nil {
		n = s.segments[0]
	}
	if s.forwarded || s.transit() && n.direction() == evidence.Received {
		return netip.AddrPort{}
	}
	switch n.direction() {
	case evidence.Sent, evidence.Loopback:
		if !c.foreign(n.Src.Addr(), s.excerpt.Namespace) {
			return n.Src
		}
		if n.direction() == evidence.Loopback { // a filter's answer to what this host was about to send
			return n.Dst
		}
		return netip.AddrPort{}
	case evidence.Received:
		if c.elsewhere(n.Dst.Addr(), s) {
			return netip.AddrPort{}
		}
		return n.Dst
	}
	return netip.AddrPort{}
}

// elsewhere tells that an address is none of this host's: neither an interface nor
// a socket has it. It is false where that is not known.
func (c *caseFile) elsewhere(a netip.Addr, s *story) bool {
	return s.here() && len(c.own) > 0 && !a.IsLoopback() && !c.own[a.Unmap()]
}

// foreign tells whether packets of the address came in from the network: then it
// is not one of this host's.
func (c *caseFile) foreign(a netip.Addr, namespace uint16) bool {
	return c.came[peerID{a, namespace}]
}

// relay tells whether this host only passed the RST on under another address: as
// which RST it came in, and as which it left.
func (c *caseFile) relay(s *story) (from, to *resetSight) {
	own := func(r *resetSight) bool { return r.src == s.rst.Src && r.dst == s.rst.Dst }
	all := c.resets[resetID{s.rst.Seq, s.rst.Ack, s.rst.Flags}]
	for i := range all {
		x := &all[i]
		if !own(x) || x.namespace != s.excerpt.Namespace || !s.near(x) {
			continue
		}
		for k := range all {
			switch y := &all[k]; {
			case own(y):
			case x.relays(y):
				return y, x
			case y.relays(x):
				return x, y
			}
		}
	}
	return nil, nil
}
