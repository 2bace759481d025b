package verdict

import (
	"net/netip"
	"time"

	"tcpcoroner/evidence"
)

// seen is one segment of a story with all its sightings: a packet that crosses
// several interfaces of a host (veth, bridge, uplink) is one segment.
type seen struct {
	evidence.Segment
	number    int // packet number in the window, from 1
	sightings []sighting
}

type sighting struct {
	direction evidence.Direction
	iface     string
}

func (s *seen) has(d evidence.Direction) bool {
	for _, g := range s.sightings {
		if g.direction == d {
			return true
		}
	}
	return false
}

// end is what a story knows of one side before the RST.
type end struct {
	addr   netip.AddrPort
	synced bool // a SYN, data or ACK of this side was seen
	syn    *seen
	fin    *seen
	last   *seen // its last segment before the RST
	data   *seen // its last segment with payload before the RST
	// next is SND.NXT as the wire shows it: highest sequence number plus length.
	next uint32
	// acked is the highest acknowledgment that it sent.
	acked    uint32
	hasAcked bool
}

// story is an implicated flow, told up to its first RST.
type story struct {
	flow     evidence.Flow
	segments []*seen
	rst      *seen
	sender   *end // the side the RST claims to come from
	other    *end
	// trigger is the last segment of the other side before the RST.
	trigger *seen
}

// sameSegmentWithin is how long a packet may take through this host, which may
// be busy, to still be one segment. TCP retransmits later (the least RTO of
// Linux is 200 ms) and with another IP ID or time stamp.
const sameSegmentWithin = 50 * time.Millisecond

func (c *caseFile) tell(t *track) *story {
	s := &story{}
	first := c.firstReset(t)
	for _, i := range t.excerpt(first) {
		c.sight(s, i)
	}
	s.rst = s.firstRST()
	s.sender = s.sideBefore(s.rst.Src)
	s.other = s.sideBefore(s.rst.Dst)
	s.trigger = s.other.last
	s.flow = c.describe(t, s)
	return s
}

func (c *caseFile) firstReset(t *track) int32 {
	var seg evidence.Segment
	for _, i := range t.packets {
		if evidence.ParseSegment(&c.window.Packets[i], &seg) == nil && seg.Flags.Has(evidence.RST) {
			return i
		}
	}
	return t.packets[0]
}

// sight adds packet i, as a new segment or as a further sighting of one.
func (c *caseFile) sight(s *story, i int32) {
	p := &c.window.Packets[i]
	n := &seen{number: int(i) + 1}
	if evidence.ParseSegment(p, &n.Segment) != nil {
		return
	}
	n.sightings = []sighting{{p.Direction, c.window.InterfaceName(p.Interface)}}
	for k := len(s.segments) - 1; k >= 0; k-- {
		m := s.segments[k]
		if n.Time.Sub(m.Time) > sameSegmentWithin {
			break
		}
		if sameSegment(m, n) {
			m.sightings = append(m.sightings, n.sightings...)
			return
		}
	}
	s.segments = append(s.segments, n)
}

// sameSegment compares what no router changes, on another interface. The TTL is
// left out: forwarding lowers it.
func sameSegment(a, b *seen) bool {
	for _, g := range a.sightings {
		if g == b.sightings[0] {
			return false
		}
	}
	return a.Src == b.Src && a.Seq == b.Seq && a.Ack == b.Ack && a.Flags == b.Flags &&
		a.IPID == b.IPID && a.PayloadBytes == b.PayloadBytes && a.TSVal == b.TSVal
}

func (s *story) firstRST() *seen {
	for _, n := range s.segments {
		if n.Flags.Has(evidence.RST) {
			return n
		}
	}
	return s.segments[0]
}

// sideBefore gathers what addr did before the RST.
func (s *story) sideBefore(addr netip.AddrPort) *end {
	e := &end{addr: addr}
	for _, n := range s.segments {
		if n == s.rst {
			break
		}
		if n.Src == addr {
			e.observe(n)
		}
	}
	return e
}

func (e *end) observe(n *seen) {
	e.last = n
	if n.Flags.Has(evidence.SYN) {
		e.syn = n
	}
	if n.Flags.Has(evidence.FIN) && e.fin == nil {
		e.fin = n
	}
	if n.PayloadBytes > 0 {
		e.data = n
	}
	if top := n.Seq + n.Length(); !e.synced || after(top, e.next) {
		e.next = top
	}
	if n.Flags.Has(evidence.ACK) && (!e.hasAcked || after(n.Ack, e.acked)) {
		e.acked, e.hasAcked = n.Ack, true
	}
	e.synced = true
}

// after compares sequence numbers modulo 2^32 (RFC 9293 section 3.4).
func after(a, b uint32) bool { return int32(a-b) > 0 }

// unacked is what the RST's receiver had sent and the sender of the RST had not
// acknowledged before it. The acknowledgment in the RST itself does not count:
// a socket closed with unread data acknowledges that data in its RST.
func (s *story) unacked() uint32 {
	if !s.sender.hasAcked || !s.other.synced || !after(s.other.next, s.sender.acked) {
		return 0
	}
	return s.other.next - s.sender.acked
}

// unread tells whether the sender of the RST, which had not closed itself,
// probably left data unread: the window that it offered last is less than
// half of its first, so its receive buffer was filling up (RFC 9293 section
// 3.8.6). False where the SYN, with its window and scale, was not seen.
func (s *story) unread() bool {
	syn, last := s.sender.syn, s.sender.last
	if s.sender.fin != nil || syn == nil || last == syn || s.other.syn == nil {
		return false
	}
	return 2*(int(last.Window)<<syn.WindowScale) < int(syn.Window)
}

// passive tells whether the RST has the form of an answer to the trigger:
// <SEQ=SEG.ACK><CTL=RST> (RFC 9293 section 3.5.2; tcp_v4_send_reset).
func (s *story) passive() bool {
	return s.trigger != nil && !s.rst.Flags.Has(evidence.ACK) &&
		s.trigger.Flags.Has(evidence.ACK) && s.rst.Seq == s.trigger.Ack
}

// direction is the RST's as this host saw it.
func (s *story) direction() evidence.Direction {
	switch {
	case s.rst.has(evidence.Loopback):
		return evidence.Loopback
	case s.rst.has(evidence.Sent):
		return evidence.Sent
	case s.rst.has(evidence.Received):
		return evidence.Received
	}
	return s.rst.sightings[0].direction
}

// transit tells whether this host is on the way and not an end: some segment of
// the flow came in and left again.
func (s *story) transit() bool {
	for _, n := range s.segments {
		if n.has(evidence.Received) && n.has(evidence.Sent) {
			return true
		}
	}
	return false
}

// local tells whether this host sent the RST.
func (s *story) local() bool {
	d := s.direction()
	return d == evidence.Sent || d == evidence.Loopback
}
