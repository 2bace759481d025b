package verdict

import (
	"fmt"
	"time"

	"tcpcoroner/evidence"
)

// This file pairs the legs of a proxy: the flow that it accepted and the one that
// it opened for it. The leg that broke first is the cause of the other's end.

// legWithin is how long a proxy takes to end one leg after the other has broken.
const legWithin = 50 * time.Millisecond

// legEarly allows for the order in which two interfaces are read.
const legEarly = 500 * time.Microsecond

// broke is when the far side, or something in its name, ended the flow; ok is false
// if this host did.
func (s *story) broke() (time.Time, bool) {
	switch d := &s.closing; {
	case !s.flow.Local.IsValid():
		return time.Time{}, false
	case d.at != nil:
		return d.at.Time, d.by.addr != s.flow.Local
	case s.rst != nil && !s.local():
		return s.rst.Time, true
	}
	return time.Time{}, false
}

// gave is when this host ended the flow.
func (s *story) gave() (time.Time, bool) {
	d := &s.closing
	return s.time(), s.flow.Local.IsValid() && d.at != nil && d.by.addr == s.flow.Local
}

// findLegs looks, for each flow that this host ended, for one on the other side of
// the same proxy that had just been ended from afar.
func (c *caseFile) findLegs() {
	var broken []*story
	for _, s := range c.stories {
		if _, ok := s.broke(); ok {
			broken = append(broken, s)
		}
	}
	for _, s := range c.stories {
		if _, ok := s.gave(); ok {
			s.leg = c.legOf(s, broken)
		}
	}
}

// legOf finds the leg whose break is nearest before this host's closing.
func (c *caseFile) legOf(s *story, broken []*story) *story {
	var best *story
	bestAway := legWithin
	at := s.closing.at.Time
	for _, o := range broken {
		t, _ := o.broke()
		away := at.Sub(t)
		if away < -legEarly || away > bestAway || !opposite(s, o) || o.flow.First.After(at) || s.flow.First.After(t) {
			continue
		}
		best, bestAway = o, away
	}
	return best
}

// opposite tells whether this host accepted one of the flows and opened the other,
// with the same process where that is known of both. A listener's owner is not
// known to have accepted the flow: workers share it.
func opposite(a, b *story) bool {
	if a == b || a.excerpt.Namespace != b.excerpt.Namespace ||
		(a.flow.Local == a.flow.Server) == (b.flow.Local == b.flow.Server) {
		return false
	}
	x, y := a.flow.Owner, b.flow.Owner
	return x == nil || y == nil || x.PID == y.PID || a.flow.OwnerSource == ownedByListener || b.flow.OwnerSource == ownedByListener
}

// followLeg lays a flow that ended in consequence of another leg on what ended that.
func (c *caseFile) followLeg(s *story) {
	if s.leg == nil || s.leg.opinion.claim.Cause == "" || s.opinion.claim.Sentence == "" {
		return
	}
	o, from := &s.opinion, &s.leg.opinion
	if from.claim.Benign && o.claim.Benign {
		return
	}
	t, _ := s.leg.broke()
	limit := evidence.Likely
	text := fmt.Sprintf("a consequence of the other leg %v, which %v had ended %s before", &s.leg.flow, s.leg.far(), seconds(max(s.closing.at.Time.Sub(t), 0)))
	o.add(packetFact("", text, s.closing.at))
	o.blame(from.claim.Party, from.claim.PartyConfidence.AtMost(limit), from.claim.Cause, from.claim.CauseConfidence.AtMost(limit), text)
	o.claim.Benign = from.claim.Benign
	if d := from.claim.Decision; d != nil {
		o.claim.Decision = d
	}
}

// far is the end of the flow that is not here.
func (s *story) far() string {
	switch p := s.flow.Peer(); {
	case s.opinion.claim.Origin.Middlebox():
		return "a device on the path"
	case p.IsValid():
		return p.String()
	}
	return s.sender.addr.String()
}

// findContinuations finds connections whose address translation was lost: the same
// sequence numbers go on under the untranslated address. They are one with the flow
// that was reset, and show why.
func (c *caseFile) findContinuations() {
	type mark struct {
		seq uint32
		own string
	}
	lost := map[mark]*story{}
	for _, s := range c.stories {
		if s.rst != nil && !s.local() && s.passive() && s.sender.fin == nil && s.flow.Local.IsValid() {
			lost[mark{s.rst.Seq, s.flow.Local.String()}] = s
		}
	}
	for _, s := range c.stories {
		if len(lost) == 0 || s.rst == nil || s.sender.syn != nil || s.other.syn != nil || !s.flow.Local.IsValid() || s.flow.Local != s.rst.Src {
			continue
		}
		first := s.segments[0]
		was := lost[mark{first.Seq, s.flow.Local.String()}]
		if was == nil || was == s || first.Src == s.flow.Local || first.Time.Before(was.rst.Time) || first.Src == was.rst.Src {
			continue
		}
		s.continues = was
		c.folded++
		o := &was.opinion
		o.claim.Origin, o.claim.Mechanism, o.claim.MechanismConfidence = evidence.OriginNAT, evidence.MechanismStateLostNAT, ""
		o.claim.Layer, o.claim.Confidence = evidence.LayerNetwork, evidence.Likely
		o.claim.Sentence = fmt.Sprintf("the translator at %v has lost the connection and answered with RST", was.rst.Src.Addr())
		o.add(packetFact("RFC 5382 section 7", fmt.Sprintf("the same connection went on from %v %s later, untranslated: sequence number %d",
			first.Src, seconds(first.Time.Sub(was.rst.Time)), first.Seq), was.rst, first))
	}
}
