package verdict

import (
	"fmt"
	"time"

	"tcpcoroner/evidence"
)

// This file compares a RST that came in with what its claimed sender sends
// otherwise (RFC 9293 says what a RST must carry; the rest is how stacks differ).

// misfit is how far a RST does not fit its claimed sender.
type misfit struct {
	// score is the weight of all that does not fit; from forgedScore on, the sender
	// is another.
	score int
	// hops is by how much the TTL differs, positive if the RST came from nearer;
	// stack tells that the initial TTL is another one.
	hops  int
	stack bool
	facts []evidence.Finding
	// fits are the marks that agree, in words.
	fits []string
}

// forgedScore is more than any single mark weighs: a route may change, a
// middlebox may strip options.
const forgedScore = 3

// initialTTL is the start value that a TTL was counted down from.
func initialTTL(ttl uint8) int {
	switch {
	case ttl <= 64:
		return 64
	case ttl <= 128:
		return 128
	}
	return 255
}

// misfits compares the story's RST, which came in, with its sender's segments.
func (c *caseFile) misfits(s *story) misfit {
	m := misfit{}
	c.compareTTL(s, &m)
	b := s.sender.last
	if b != nil {
		s.compareLink(b, &m)
		if !s.passive() && !s.answersSYN() {
			s.compareSocket(b, &m)
		}
	}
	s.compareCraft(&m)
	s.compareOthers(&m)
	s.compareLater(&m)
	return m
}

// compareCraft: what no TCP puts on a RST.
func (s *story) compareCraft(m *misfit) {
	r := s.rst
	if odd := r.Flags & (evidence.SYN | evidence.FIN | evidence.URG); odd != 0 {
		m.is(2, "RFC 9293 section 3.5.2", fmt.Sprintf("the RST bears %s too, which no TCP sends", odd), r)
	}
	if r.MSS != 0 {
		m.is(2, "RFC 9293 section 3.2: MSS only on SYN", "the RST bears an MSS option", r)
	}
	if r.broken {
		m.is(2, "RFC 9293 section 3.1: checksum", "the RST came in with a wrong checksum", r)
	}
}

// bothWithin is how close two RSTs are that one device sent to both ends.
const bothWithin = 2 * time.Millisecond

// compareOthers looks at further RSTs: guesses at a sequence number beyond all that
// was sent, and one to each end at once.
func (s *story) compareOthers(m *misfit) {
	for _, n := range s.segments {
		if n == s.rst || !n.Flags.Has(evidence.RST) || n.Time.Before(s.rst.Time) {
			continue
		}
		switch {
		case n.Src == s.rst.Src && s.sender.synced && after(n.Seq, s.sender.next) && !s.passive():
			m.is(2, "NDSS 2009, Detecting Forged TCP Reset Packets", fmt.Sprintf(
				"another RST follows with sequence number %d, beyond all that its sender had sent", n.Seq), s.rst, n)
			return
		case n.Src == s.rst.Dst && n.Time.Sub(s.rst.Time) <= bothWithin && n.direction() == evidence.Received && s.active() && n.Flags.Has(evidence.ACK):
			m.is(2, srcRFCAbort, "both ends seem to have aborted the connection within "+seconds(bothWithin), s.rst, n)
			return
		}
	}
}

func (m *misfit) is(weight int, source, text string, packets ...*seen) {
	m.score += weight
	m.facts = append(m.facts, packetFact(source, text, packets...))
}

// farthest is more routers than there are between two hosts.
const farthest = 32

// compareTTL: TTLs of the flow count, and of the address where the flow has none.
func (c *caseFile) compareTTL(s *story, m *misfit) {
	ttls := map[uint8]int{}
	for _, n := range s.segments {
		if n.Src == s.rst.Src && n != s.rst && !n.Flags.Has(evidence.RST) && n.Time.Before(s.rst.Time) {
			ttls[n.TTL]++
		}
	}
	whose := "of this flow"
	if len(ttls) == 0 {
		ttls, whose = c.usual(s), fmt.Sprintf("of %v", s.rst.Src.Addr())
		if len(ttls) >= maxTTLs || c.window.Cut {
			return // absence is the argument: it needs all TTLs of the address
		}
	}
	if len(ttls) == 0 {
		return
	}
	if ttls[s.rst.TTL] > 0 {
		m.fits = append(m.fits, fmt.Sprintf("TTL %d is that of other packets %s", s.rst.TTL, whose))
		return
	}
	ttl, n := commonest(ttls)
	if far := abs(int(s.rst.TTL) - int(ttl)); far > farthest && initialTTL(s.rst.TTL) == initialTTL(ttl) && (s.passive() || s.answersSYN()) {
		return // the application set the TTL of its socket (IP_TTL, as BGP does); an answer without socket has the default
	}
	m.hops, m.stack = int(s.rst.TTL)-int(ttl), initialTTL(s.rst.TTL) != initialTTL(ttl)
	m.is(2, "RFC 791 section 3.2: time to live", fmt.Sprintf("TTL %d of the RST never occurs in %s %s, whose usual TTL is %d",
		s.rst.TTL, plural(n, "other packet"), whose, ttl), s.rst)
}

// compareLink: who sent the frame, on the same link.
func (s *story) compareLink(b *seen, m *misfit) {
	if b.mac == ([6]byte{}) || s.rst.mac == ([6]byte{}) || b.sightings[0].iface != s.rst.sightings[0].iface {
		return
	}
	if b.mac != s.rst.mac {
		m.is(2, "IEEE 802.3 source address", "the RST came from another link-layer address than the flow's packets", b, s.rst)
	}
}

// compareSocket: a socket's own RST has the options and the next IP ID or the flow
// label of its other segments (tcp_send_active_reset).
func (s *story) compareSocket(b *seen, m *misfit) {
	r := s.rst
	switch {
	case b.HasTimestamps && !r.HasTimestamps:
		m.is(1, srcActive, "the RST has no timestamps, all other segments have", b, r)
	case b.HasTimestamps:
		m.fits = append(m.fits, "the flow's timestamps go on")
	}
	if r.Src.Addr().Is6() {
		s.compareLabel(b, m)
		return
	}
	step := r.IPID - b.IPID
	switch {
	case b.IPID == 0 && b.Flags.Has(evidence.SYN): // a SYN/ACK has none
	case step > 0 && step <= 64:
		m.fits = append(m.fits, "the IP ID goes on")
	case b.IPID != 0 || r.IPID != 0:
		m.is(1, "net/ipv4/ip_output.c: ip_select_ident", fmt.Sprintf("IP ID %d of the RST does not follow %d", r.IPID, b.IPID), b, r)
	}
	if b.DontFragment != r.DontFragment {
		m.is(1, "RFC 791 section 3.1", "the RST's don't-fragment bit is not that of the flow", b, r)
	}
}

func (s *story) compareLabel(b *seen, m *misfit) {
	switch {
	case b.FlowLabel == 0:
	case s.rst.FlowLabel == b.FlowLabel:
		m.fits = append(m.fits, "the flow label is the flow's")
	default:
		m.is(1, "RFC 6437 section 3", fmt.Sprintf("flow label %#x of the RST is not the flow's %#x", s.rst.FlowLabel, b.FlowLabel), b, s.rst)
	}
}

// afterRST is when a segment behind a RST is no longer one that it overtook.
const afterRST = 10 * time.Millisecond

// compareLater: a host that has reset a connection sends nothing more on it
// (Weaver, Sommer, Paxson: Detecting Forged TCP Reset Packets, NDSS 2009).
func (s *story) compareLater(m *misfit) {
	for _, n := range s.segments {
		if n.Src == s.rst.Src && n.Time.Sub(s.rst.Time) > afterRST && !n.Flags.Has(evidence.RST) && !n.Flags.Has(evidence.SYN) &&
			!after(s.rst.Seq, n.Seq+n.Length()) && (n.PayloadBytes > 0 || n.Flags.Has(evidence.FIN)) {
			m.is(2, "NDSS 2009, Detecting Forged TCP Reset Packets", fmt.Sprintf(
				"%v went on with the connection %s after the RST under its name", n.Src, seconds(n.Time.Sub(s.rst.Time))), s.rst, n)
			return
		}
	}
}

// position is the origin of a RST that the peer did not send, by its TTL.
func (m *misfit) position() evidence.Origin {
	switch {
	case m.stack || m.hops == 0:
		return evidence.OriginMiddlebox
	case m.hops > 0:
		return evidence.OriginMiddleboxNear
	}
	return evidence.OriginMiddleboxFar
}
