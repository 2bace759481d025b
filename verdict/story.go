package verdict

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"tcpcoroner/evidence"
)

// seen is one segment of a story with all its sightings: a packet that crosses
// several interfaces of a host (veth, bridge, uplink), or is seen in a tunnel and
// outside, is one segment. Its sightings are ordered by time.
type seen struct {
	evidence.Segment
	number int // packet number in the window, from 1
	mac    [6]byte
	// broken tells that the segment came in with a wrong checksum.
	broken    bool
	sightings []sighting
}

type sighting struct {
	direction evidence.Direction
	iface     string
	// deduced tells that the direction is known from this host's addresses only.
	deduced bool
}

// deduced tells that no interface told which way the packet went.
func (s *seen) deduced() bool {
	return !slices.ContainsFunc(s.sightings, func(g sighting) bool { return !g.deduced })
}

// direction is that of the first sighting that has one: a packet of this host
// that comes back in on another device (veth, bridge) is still one it sent.
func (s *seen) direction() evidence.Direction {
	if s.passed() {
		return evidence.Received
	}
	for _, g := range s.sightings {
		if g.direction != evidence.DirectionUnknown && g.direction != evidence.Elsewhere {
			return g.direction
		}
	}
	return s.sightings[0].direction
}

// passed tells whether the packet only passed through: it came in first and went
// out last. One that comes in on a port and then again on its bridge has arrived.
// Frames for another host's link-layer address are bridged.
func (s *seen) passed() bool {
	first, last := s.sightings[0].direction, s.sightings[len(s.sightings)-1].direction
	return last == evidence.Sent && (first == evidence.Received || first == evidence.Elsewhere)
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

// said is the sequence number behind its last data: a FIN takes one, too.
func (e *end) said() uint32 {
	if e.fin != nil && e.next == e.fin.Seq+e.fin.Length() {
		return e.next - 1
	}
	return e.next
}

// story is an implicated flow, told up to its first RST or, without one, to its end.
type story struct {
	excerpt  *evidence.Excerpt
	flow     evidence.Flow
	segments []*seen
	// rst is nil if the flow failed in silence.
	rst *seen
	// sender is the side that the RST claims to come from or, without RST, the side
	// that did not answer; other is the other one.
	sender *end
	other  *end
	// trigger is the segment of the other side that the RST answers, or its last one.
	trigger *seen
	// forwarded tells that the RST came in and left again; as and left are its two
	// forms if it was translated on the way.
	forwarded bool
	as, left  *resetSight
	// where is " (namespace blue)" if the story is not told from the recorder's own.
	where string
	// event is what the kernel says about sending the RST, taken what it says about
	// the arrival of one; nil if it says nothing.
	event, taken *evidence.KernelEvent
	// closing is who ended the connection first.
	closing closing
	// views are the story as each namespace tells it, nil if there is one only.
	views []*story
	// leg is the flow on the other side of a proxy that this one follows from.
	leg *story
	// continues is the story of the same connection under another address, continued
	// tells that there is one which continues this.
	continues *story
	continued bool
	// filtered tells that a packet filter of this host dropped the SYNs, swallowed
	// that this host did, and nothing says why.
	filtered, swallowed bool
	// elsewhere tells that a RST which passed through came from another distance
	// than its sender's segments.
	elsewhere bool
	// repeated is how many flows were ended by the same silence or age, of timer.
	repeated int
	timer    time.Duration
	// logged is the log's word on the cause, acted how the setting behind it did.
	logged  *evidence.LogLine
	acted   string
	opinion opinion
}

// tell returns nil if the excerpt has no segment.
func (c *caseFile) tell(e *evidence.Excerpt) *story {
	s := &story{excerpt: e}
	if e.Namespace != 0 {
		s.where = fmt.Sprintf(" (namespace %s)", c.window.NamespaceLabel(e.Namespace))
	}
	for _, i := range e.Kept {
		c.sight(s, &c.window.Packets[i])
	}
	if len(s.segments) == 0 {
		return nil
	}
	s.rst = s.firstRST()
	if s.rst == nil {
		s.other, s.sender = s.unanswered()
	} else {
		s.sender = s.sideBefore(s.rst.Src)
		s.other = s.sideBefore(s.rst.Dst)
	}
	s.trigger = s.provoker()
	if s.rst != nil {
		s.as, s.left = c.relay(s)
		s.forwarded = s.as != nil || s.rst.passed()
	}
	s.flow = c.describe(s)
	s.closing = s.firstCloser()
	return s
}

// unanswered are the side that spoke last with something to answer, and the one
// that stayed silent.
func (s *story) unanswered() (spoke, silent *end) {
	k := s.excerpt.Key
	last := s.segments[0].Src
	for _, n := range s.segments {
		if n.Length() > 0 {
			last = n.Src
		}
	}
	other := k.A
	if last == k.A {
		other = k.B
	}
	return s.sideBefore(last), s.sideBefore(other)
}

// provoker is the segment of the other side that a RST without socket answers: the
// latest whose acknowledgment is the RST's sequence number; otherwise its last.
func (s *story) provoker() *seen {
	if s.rst == nil || s.rst.Flags.Has(evidence.ACK) {
		return s.other.last
	}
	for i := len(s.segments) - 1; i >= 0; i-- {
		n := s.segments[i]
		if n.Src == s.rst.Dst && !n.Time.After(s.rst.Time) && n.Flags.Has(evidence.ACK) && n.Ack == s.rst.Seq &&
			s.rst.Time.Sub(n.Time) <= provokedWithin {
			return n
		}
	}
	return s.other.last
}

// provokedWithin bounds how long a host takes to answer a segment that no socket
// takes, its way here included.
const provokedWithin = 2 * time.Second

// time is when the flow was reset or, without RST, when it was last heard of.
func (s *story) time() time.Time {
	if s.rst != nil {
		return s.rst.Time
	}
	return s.segments[len(s.segments)-1].Time
}

// here tells whether the story is told from the recorder's own namespace, whose
// sockets and counters are known.
func (s *story) here() bool { return s.excerpt.Namespace == 0 }

// near tells whether r is close enough to the story's RST to be the same.
func (s *story) near(r *resetSight) bool {
	return time.Duration(r.nanos-s.rst.Time.UnixNano()).Abs() <= sameSegmentWithin
}

// sight adds a packet, as a new segment or as a further sighting of one.
func (c *caseFile) sight(s *story, p *evidence.Packet) {
	n := &seen{number: p.Number, mac: p.SrcMAC, broken: p.Checksum == evidence.ChecksumBad && p.Direction == evidence.Received}
	if evidence.ParseSegment(p, &n.Segment) != nil {
		return
	}
	d := c.heading(p, &n.Segment)
	n.sightings = []sighting{{d, c.window.InterfaceOf(p), d != p.Direction}}
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
	// A further sighting whose first one was not kept is nothing new.
	if p.Sighting == 0 || n.Flags.Has(evidence.RST) {
		s.segments = append(s.segments, n)
	}
}

// sameSegment compares what no router changes, on another interface. The TTL is
// left out: forwarding lowers it.
func sameSegment(a, b *seen) bool {
	for _, g := range a.sightings {
		if g == b.sightings[0] {
			return false
		}
	}
	return sameHeader(a, b)
}

func sameHeader(a, b *seen) bool {
	return a.Src == b.Src && a.Dst == b.Dst && a.Seq == b.Seq && a.Ack == b.Ack && a.Flags == b.Flags &&
		a.IPID == b.IPID && a.PayloadBytes == b.PayloadBytes && a.TSVal == b.TSVal
}

func (s *story) firstRST() *seen {
	for _, n := range s.segments {
		if n.Flags.Has(evidence.RST) {
			return n
		}
	}
	return nil
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
	return s.rst != nil && s.trigger != nil && !s.rst.Flags.Has(evidence.ACK) &&
		s.trigger.Flags.Has(evidence.ACK) && s.rst.Seq == s.trigger.Ack
}

// active tells whether the RST has the form of a socket's own:
// <SEQ=SND.NXT><ACK=RCV.NXT><CTL=RST,ACK> (tcp_send_active_reset).
func (s *story) active() bool {
	return s.rst != nil && s.rst.Flags.Has(evidence.ACK) && s.sender.synced && s.rst.Seq == s.sender.next
}

// answersSYN tells whether the RST has the form of an answer to a SYN: sequence
// number 0 (the SYN carried no ACK) and acknowledging just the SYN (RFC 9293
// section 3.10.7.1).
func (s *story) answersSYN() bool {
	syn := s.other.syn
	return s.rst != nil && syn != nil && !syn.Flags.Has(evidence.ACK) && !s.sender.synced &&
		s.rst.Flags.Has(evidence.ACK) && s.rst.Ack == syn.Seq+syn.Length()
}

// direction is the RST's as this host saw it.
func (s *story) direction() evidence.Direction {
	if s.rst == nil {
		return evidence.DirectionUnknown
	}
	return s.rst.direction()
}

// transit tells whether this host is on the way and not an end: some segment of
// the flow came in and left again.
func (s *story) transit() bool {
	for _, n := range s.segments {
		if n.passed() {
			return true
		}
	}
	return false
}

// local tells whether this host sent the RST.
func (s *story) local() bool {
	d := s.direction()
	return !s.forwarded && (d == evidence.Sent || d == evidence.Loopback)
}
