package evidence

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

// LedgerSecond accounts for the RST segments of one second in one network
// namespace: what crossed its interfaces, and what the kernel tells of it. Counts
// are of RST segments.
type LedgerSecond struct {
	// NetNS is the inode number of the namespace, Second when the second began.
	NetNS  uint64    `json:"netns"`
	Second time.Time `json:"second"`

	// WireSent left this namespace or stayed on loopback, WireReceived came for it
	// or stayed on loopback, WireForwarded passed through, and WireUndirected were
	// seen on devices that do not tell the direction.
	WireSent       uint64 `json:"wire_sent,omitempty"`
	WireReceived   uint64 `json:"wire_received,omitempty"`
	WireForwarded  uint64 `json:"wire_forwarded,omitempty"`
	WireUndirected uint64 `json:"wire_undirected,omitempty"`
	// WireRejected are those of WireSent that answer a segment which a firewall rule
	// threw away.
	WireRejected uint64 `json:"wire_rejected,omitempty"`

	// Sent are the kernel's events by reason, "" without one; Rejects its events of
	// netfilter; Suppressed those that were only counted.
	Sent       map[string]uint64 `json:"sent,omitempty"`
	Rejects    uint64            `json:"rejects,omitempty"`
	Suppressed uint64            `json:"suppressed,omitempty"`
	// Filtered were sent by TCP and thrown away before an interface.
	Filtered uint64 `json:"filtered,omitempty"`
	// OutRsts is the growth of Tcp.OutRsts between the samples of which the later is
	// in this second, and Untold how many of these no event tells of. HasOutRsts
	// tells whether there is such a sample.
	OutRsts    uint64 `json:"out_rsts,omitempty"`
	HasOutRsts bool   `json:"has_out_rsts,omitempty"`
	Untold     uint64 `json:"untold,omitempty"`
	// Received ended a connection, Ignored met one that did not believe them, or a
	// firewall; SuppressedReceived were only counted.
	Received           uint64 `json:"received,omitempty"`
	Ignored            uint64 `json:"ignored,omitempty"`
	SuppressedReceived uint64 `json:"suppressed_received,omitempty"`
	// Unclaimed were received and met no connection: it was over, or in its
	// handshake, or in TIME_WAIT.
	Unclaimed uint64 `json:"unclaimed,omitempty"`

	// Residue is WireSent less what the kernel tells that was sent; Parts say what
	// it is made of.
	Residue int64        `json:"residue,omitempty"`
	Parts   []LedgerPart `json:"parts,omitempty"`
}

// LedgerPart is a part of a residue.
type LedgerPart struct {
	Cause string `json:"cause"`
	Count uint64 `json:"count"`
}

// Part is how much of the residue has a cause.
func (s *LedgerSecond) Part(cause string) uint64 {
	for _, p := range s.Parts {
		if p.Cause == cause {
			return p.Count
		}
	}
	return 0
}

// The causes of a residue. The first three add to it: more was on the wire than the
// kernel tells; the others take from it.
const (
	// LedgerFirewall: a firewall rule rejected a segment, and the kernel does not
	// let its function be watched.
	LedgerFirewall = "firewall"
	// LedgerUntold: TCP counted resets that no event tells of.
	LedgerUntold = "untold"
	// LedgerOtherSender: not TCP of this namespace: a raw socket, an XDP program, a
	// stack in user space, or a firewall rule that left no trace.
	LedgerOtherSender = "other_sender"
	// LedgerFiltered: a firewall or a full queue threw away what TCP sent.
	LedgerFiltered = "filtered"
	// LedgerUndirected: seen, on a device that does not tell the direction.
	LedgerUndirected = "undirected"
	// LedgerUnrecorded: TCP sent what no interface showed: the recorder missed it,
	// or it found no route.
	LedgerUnrecorded = "unrecorded"
)

// KernelLedger makes the kernel's side of the ledger, in the order of namespace
// and time. Events must be all of the window. Series, of which one namespace has
// one, may be nil.
func KernelLedger(events []KernelEvent, suppressed []KernelSuppressed, series *Series) []LedgerSecond {
	b := book{}
	for i := range events {
		b.event(&events[i])
	}
	for i := range suppressed {
		s := &suppressed[i]
		switch row := b.row(s.NetNS, s.From); s.Kind {
		case ResetSent, FirewallReject:
			row.Suppressed += s.Count
		case ResetReceived:
			row.SuppressedReceived += s.Count
		}
	}
	if series != nil {
		b.counters(series, events, suppressed)
	}
	return b.rows()
}

// BalanceLedger adds the packets' side to rows and says what the residues are. The
// rows are changed; balancing again with the same packets changes nothing. NetNS
// gives the inode number of a Packet's namespace.
func BalanceLedger(rows []LedgerSecond, wire *WireResets, netns func(uint16) uint64) []LedgerSecond {
	b := book{}
	for i := range rows {
		r := &rows[i]
		r.WireSent, r.WireReceived, r.WireForwarded, r.WireUndirected, r.WireRejected = 0, 0, 0, 0, 0
		*b.row(r.NetNS, r.Second) = *r
	}
	for at, n := range wire.seconds {
		r := b.row(netns(at.namespace), time.Unix(at.second, 0))
		r.WireSent += n.sent
		r.WireReceived += n.received
		r.WireForwarded += n.forwarded
		r.WireUndirected += n.undirected
		r.WireRejected += n.rejected
	}
	rows = b.rows()
	for i := range rows {
		rows[i].settle()
	}
	carry(rows)
	explain(rows)
	return slices.DeleteFunc(rows, func(r LedgerSecond) bool { return r.empty() })
}

// empty seconds are not kept.
func (s *LedgerSecond) empty() bool {
	wire := s.WireSent + s.WireReceived + s.WireForwarded + s.WireUndirected
	return wire+s.told()+s.OutRsts+s.Filtered+s.Received+s.Ignored+s.SuppressedReceived == 0
}

// book holds rows by namespace and second.
type book map[page]*LedgerSecond

type page struct {
	netns  uint64
	second int64
}

func (b book) row(netns uint64, at time.Time) *LedgerSecond {
	p := page{netns, at.Unix()}
	if b[p] == nil {
		b[p] = &LedgerSecond{NetNS: netns, Second: time.Unix(p.second, 0).UTC()}
	}
	return b[p]
}

func (b book) rows() []LedgerSecond {
	list := make([]LedgerSecond, 0, len(b))
	for _, r := range b {
		list = append(list, *r)
	}
	slices.SortFunc(list, func(x, y LedgerSecond) int {
		return cmp.Or(cmp.Compare(x.NetNS, y.NetNS), x.Second.Compare(y.Second))
	})
	return list
}

func (b book) event(e *KernelEvent) {
	reset := e.Trigger != nil && e.Trigger.Flags.Has(RST)
	switch r := (*LedgerSecond)(nil); {
	case e.Kind == ResetSent:
		r = b.row(e.NetNS, e.Time)
		if r.Sent == nil {
			r.Sent = map[string]uint64{}
		}
		r.Sent[e.Reason]++
	case e.Kind == FirewallReject:
		b.row(e.NetNS, e.Time).Rejects++
	case e.Kind == ResetReceived:
		b.row(e.NetNS, e.Time).Received++
	case e.Kind == SegmentDropped && reset && e.Trigger.Outgoing:
		b.row(e.NetNS, e.Time).Filtered++
	case e.Kind == SegmentDropped && reset:
		b.row(e.NetNS, e.Time).Ignored++
	}
}

// counters compares the kernel's own counter with its events, between samples:
// they are taken at any part of a second.
func (b book) counters(s *Series, events []KernelEvent, suppressed []KernelSuppressed) {
	line := s.Line("Tcp.OutRsts")
	if line == nil {
		return
	}
	told := make([]uint64, len(s.Times))
	count := func(at time.Time, n uint64) {
		i, _ := slices.BinarySearchFunc(s.Times, at, time.Time.Compare)
		if i < len(told) {
			told[i] += n
		}
	}
	for i := range events {
		if e := &events[i]; e.Kind == ResetSent && e.NetNS == s.NetNS {
			count(e.Time, 1)
		}
	}
	for i := range suppressed {
		if p := &suppressed[i]; p.Kind == ResetSent && p.NetNS == s.NetNS {
			count(p.From, p.Count)
		}
	}
	short := uint64(0) // events beyond the counter: they belong to a sample nearby
	for i := 1; i < len(s.Times); i++ {
		r := b.row(s.NetNS, s.Times[i])
		grown := line.Values[i] - min(line.Values[i], line.Values[i-1])
		r.OutRsts, r.HasOutRsts = r.OutRsts+grown, true
		untold := grown - min(grown, told[i])
		repaid := min(untold, short)
		r.Untold += untold - repaid
		short += told[i] - min(grown, told[i]) - repaid
	}
}

// told is what the kernel tells that was sent.
func (s *LedgerSecond) told() (n uint64) {
	for _, c := range s.Sent {
		n += c
	}
	return n + s.Suppressed + s.Rejects
}

// settle draws the line under a second. What a firewall did is known one by one;
// Residue is what is left open until explain.
func (s *LedgerSecond) settle() {
	s.Parts = nil
	rejected := s.WireRejected - min(s.WireRejected, s.Rejects)
	s.Residue = int64(s.WireSent+s.Filtered) - int64(s.told()+rejected)
	claimed := s.Received + s.Ignored + s.SuppressedReceived
	s.Unclaimed = s.WireReceived - min(s.WireReceived, claimed)
}

// carry lets neighbours settle what is opposite: a packet and its event may lie on
// either side of a second's end, and events that were only counted are counted
// once a second.
func carry(rows []LedgerSecond) {
	for i := 1; i < len(rows); i++ {
		a, b := &rows[i-1], &rows[i]
		if a.NetNS != b.NetNS || b.Second.Sub(a.Second) != time.Second {
			continue
		}
		if n := min(a.Residue, -b.Residue); n > 0 {
			a.Residue, b.Residue = a.Residue-n, b.Residue+n
		} else if n := min(-a.Residue, b.Residue); n > 0 {
			a.Residue, b.Residue = a.Residue+n, b.Residue-n
		}
		b.Unclaimed -= min(b.Unclaimed, a.surplus())
		a.Unclaimed -= min(a.Unclaimed, b.surplus())
	}
}

// surplus are received resets that the kernel tells of and this second did not show.
func (s *LedgerSecond) surplus() uint64 {
	claimed := s.Received + s.Ignored + s.SuppressedReceived
	return claimed - min(claimed, s.WireReceived)
}

// explain says what each residue is made of, the best proven first. What TCP
// counted and nobody told is shared by the seconds of a namespace.
func explain(rows []LedgerSecond) {
	untold := map[uint64]uint64{}
	for i := range rows {
		untold[rows[i].NetNS] += rows[i].Untold
	}
	for i := range rows {
		s := &rows[i]
		rejected := s.WireRejected - min(s.WireRejected, s.Rejects)
		open := s.Residue
		s.Residue = open + int64(rejected) - int64(s.Filtered)
		s.part(LedgerFirewall, rejected, rejected)
		s.part(LedgerFiltered, s.Filtered, s.Filtered)
		if open > 0 {
			left := s.part(LedgerUntold, uint64(open), untold[s.NetNS])
			untold[s.NetNS] -= uint64(open) - left
			s.part(LedgerOtherSender, left, left)
		} else {
			left := s.part(LedgerUndirected, uint64(-open), s.WireUndirected)
			s.part(LedgerUnrecorded, left, left)
		}
	}
}

// part notes that up to n of what is left have this cause, and returns the rest.
func (s *LedgerSecond) part(cause string, left, n uint64) uint64 {
	if n = min(n, left); n > 0 {
		s.Parts = append(s.Parts, LedgerPart{cause, n})
	}
	return left - n
}

// WireResets counts the RST segments of a recording by namespace and second. It
// takes the packets in the order of time. The zero value is ready.
type WireResets struct {
	seconds map[wireSecond]*wireCount
	rejects map[wireReset]bool
	// arrived are the latest that were received, to know those that leave again,
	// and order when they came, as a ring.
	arrived map[transit]wireSecond
	order   []transit
	next    int
	segment Segment
}

type wireSecond struct {
	namespace uint16
	second    int64
}

type wireCount struct{ sent, received, forwarded, undirected, rejected uint64 }

type wireReset struct {
	from, to netip.AddrPort
	seq      uint32
}

// transit is what a router does not change of a reset, whatever it translates.
type transit struct {
	namespace uint16
	seq, ack  uint32
	flags     Flags
}

// maxTransit bounds the resets that may be on their way through a router at once.
const maxTransit = 4096

// Expect tells which segments a firewall threw away: a RST that answers one of
// them is the firewall's.
func (w *WireResets) Expect(events []KernelEvent) {
	w.rejects = map[wireReset]bool{}
	for i := range events {
		e := &events[i]
		if e.Kind != SegmentDropped || e.Reason != "NETFILTER_DROP" || e.Trigger == nil || e.Trigger.Flags.Has(RST) {
			continue
		}
		from, to := e.Local, e.Remote
		if e.Trigger.Outgoing {
			from, to = to, from
		}
		w.rejects[wireReset{from, to, e.Trigger.answer().Seq}] = true
	}
}

// Count takes the next packet. It is not kept.
func (w *WireResets) Count(p *Packet) {
	if p.Sighting != 0 || !mayBeReset(p.Header) || ParseSegment(p, &w.segment) != nil || !w.segment.Flags.Has(RST) {
		return
	}
	if w.seconds == nil {
		w.seconds, w.arrived = map[wireSecond]*wireCount{}, map[transit]wireSecond{}
	}
	at := wireSecond{p.Namespace, p.Nanos / int64(time.Second)}
	n := w.second(at)
	s := &w.segment
	id := transit{p.Namespace, s.Seq, s.Ack, s.Flags}
	switch p.Direction {
	case Received:
		n.received++
		w.arrive(id, at)
	case Sent:
		if came, ok := w.arrived[id]; ok {
			delete(w.arrived, id)
			w.second(came).received--
			n.forwarded++
			return
		}
		n.sent++
		n.reject(w.rejects[wireReset{s.Src, s.Dst, s.Seq}])
	case Loopback:
		n.sent++
		n.received++
		n.reject(w.rejects[wireReset{s.Src, s.Dst, s.Seq}])
	case Elsewhere:
		n.forwarded++
	default:
		n.undirected++
	}
}

func (n *wireCount) reject(yes bool) {
	if yes {
		n.rejected++
	}
}

func (w *WireResets) second(at wireSecond) *wireCount {
	if w.seconds[at] == nil {
		w.seconds[at] = &wireCount{}
	}
	return w.seconds[at]
}

// arrive remembers a reset that may be passed on, and forgets the oldest.
func (w *WireResets) arrive(id transit, at wireSecond) {
	if len(w.order) < maxTransit {
		w.order = append(w.order, id)
	} else {
		delete(w.arrived, w.order[w.next])
		w.order[w.next] = id
		w.next = (w.next + 1) % maxTransit
	}
	w.arrived[id] = at
}

// mayBeReset rules out, at the cost of some loads, what nearly all packets are:
// TCP in plain IP without the RST bit.
func mayBeReset(b []byte) bool {
	if len(b) < 40 {
		return false
	}
	switch {
	case b[0]>>4 == 4 && b[9] == protoTCP:
		at := int(b[0]&15)*4 + 13
		return at < len(b) && b[at]&byte(RST) != 0
	case b[0]>>4 == 6 && b[6] == protoTCP:
		return len(b) > 53 && b[53]&byte(RST) != 0
	}
	return true
}
