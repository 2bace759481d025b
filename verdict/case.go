package verdict

import (
	"net/netip"
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
	// resets by what NAT leaves alone, to find a RST's other side on a router.
	resets map[resetID][]resetSight
	// ttls counts the TTLs of received segments other than RST, by source.
	ttls map[netip.Addr]map[uint8]int
	// sent counts RST segments that this host sent and did not forward.
	sent int
}

type resetID struct {
	seq, ack uint32
	flags    evidence.Flags
}

type resetSight struct {
	src, dst netip.AddrPort
	at       time.Time
	dir      evidence.Direction
}

func newCase(inc *evidence.Incident, flows []*track) *caseFile {
	c := &caseFile{
		inc: inc, window: &inc.Window,
		sockets:   map[[2]netip.AddrPort]*evidence.Socket{},
		listeners: map[netip.AddrPort][]*evidence.Socket{},
		resets:    map[resetID][]resetSight{},
		ttls:      map[netip.Addr]map[uint8]int{},
	}
	for _, s := range []*evidence.Snapshot{inc.After, inc.At} {
		if s != nil {
			c.indexSockets(s.Sockets)
		}
	}
	peers := c.indexResets(flows)
	c.indexTTLs(peers)
	c.countSent()
	return c
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
func (c *caseFile) indexResets(flows []*track) map[netip.Addr]bool {
	peers := map[netip.Addr]bool{}
	var s evidence.Segment
	for _, t := range flows {
		if t.resets == 0 {
			continue
		}
		for _, i := range t.packets {
			p := &c.window.Packets[i]
			if evidence.ParseSegment(p, &s) != nil || !s.Flags.Has(evidence.RST) {
				continue
			}
			peers[s.Src.Addr()] = true
			id := resetID{s.Seq, s.Ack, s.Flags}
			c.resets[id] = append(c.resets[id], resetSight{s.Src, s.Dst, s.Time, p.Direction})
		}
	}
	return peers
}

func (c *caseFile) indexTTLs(peers map[netip.Addr]bool) {
	if len(peers) == 0 {
		return
	}
	var s evidence.Segment
	for i := range c.window.Packets {
		p := &c.window.Packets[i]
		if p.Direction != evidence.Received || evidence.ParseSegment(p, &s) != nil {
			continue
		}
		if a := s.Src.Addr(); peers[a] && !s.Flags.Has(evidence.RST) {
			if c.ttls[a] == nil {
				c.ttls[a] = map[uint8]int{}
			}
			c.ttls[a][s.TTL]++
		}
	}
}

// countSent counts what TcpOutRsts should have counted too.
func (c *caseFile) countSent() {
	for id, all := range c.resets {
		for _, r := range all {
			own := r.dir == evidence.Sent || r.dir == evidence.Loopback
			if own && c.relayedFrom(id, r) == nil {
				c.sent++
			}
		}
	}
}

// relayedFrom finds the sighting of the same RST that came in shortly before r
// left: same numbers, and at least one address in common, for NAT rewrites one
// end at a time. Equal numbers alone could be chance.
func (c *caseFile) relayedFrom(id resetID, r resetSight) *resetSight {
	for i, o := range c.resets[id] {
		d := r.at.Sub(o.at)
		if o.dir == evidence.Received && d >= -sameSegmentWithin && d <= sameSegmentWithin &&
			(o.src == r.src || o.dst == r.dst || o.src.Addr() == r.src.Addr() || o.dst.Addr() == r.dst.Addr()) {
			return &c.resets[id][i]
		}
	}
	return nil
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
	return l.Owner, "the listener on the flow's local port"
}

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
func (c *caseFile) describe(t *track, s *story) evidence.Flow {
	f := evidence.Flow{Packets: len(t.packets), Resets: t.resets}
	f.Client, f.Server, f.InitiatorSeen = t.ends()
	f.ClientBytes, f.ServerBytes = t.bytes[0], t.bytes[1]
	if f.Client == t.key.B {
		f.ClientBytes, f.ServerBytes = f.ServerBytes, f.ClientBytes
	}
	f.First = c.window.Packets[t.packets[0]].Time()
	f.Last = c.window.Packets[t.packets[len(t.packets)-1]].Time()
	f.Reset = &evidence.Reset{
		Time: s.rst.Time, Packet: s.rst.number, From: s.rst.Src, Direction: s.direction(),
		Interface: s.rst.sightings[0].iface, Flags: s.rst.Flags.String(), TTL: s.rst.TTL, Payload: s.rst.Payload,
	}
	f.Local = c.localEnd(s)
	if f.Local.IsValid() {
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
	if _, relayed := c.relay(s); relayed || s.transit() && s.direction() == evidence.Received {
		return netip.AddrPort{}
	}
	switch s.direction() {
	case evidence.Sent, evidence.Loopback:
		return s.rst.Src
	case evidence.Received:
		return s.rst.Dst
	}
	return netip.AddrPort{}
}

// relay tells whether this host only passed the RST on, and what it was before.
func (c *caseFile) relay(s *story) (*resetSight, bool) {
	id := resetID{s.rst.Seq, s.rst.Ack, s.rst.Flags}
	for _, r := range c.resets[id] {
		if r.dir != evidence.Sent || (r.src != s.rst.Src && r.dst != s.rst.Dst) {
			continue
		}
		if d := r.at.Sub(s.rst.Time); d < -sameSegmentWithin || d > sameSegmentWithin {
			continue
		}
		if from := c.relayedFrom(id, r); from != nil {
			return from, true
		}
	}
	return nil, false
}
