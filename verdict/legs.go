package verdict

import (
	"fmt"
	"net/netip"
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

// findLegs looks, for each flow that a host ended, for one on the other side of the
// same proxy that had just been ended from afar. Both are looked at from the
// proxy's namespace, wherever their stories are told from.
func (c *caseFile) findLegs() {
	var broken, stalled []leg
	c.everyView(func(v, s *story) {
		if _, ok := v.broke(); ok {
			broken = append(broken, leg{v, s})
		}
		if v.stalled() {
			stalled = append(stalled, leg{v, s})
		}
	})
	c.everyView(func(v, s *story) {
		if _, ok := v.gave(); ok && s.leg == nil {
			s.leg = legOf(leg{v, s}, broken)
		}
		if s.leg == nil && v.forsaken() {
			s.leg = stalledLeg(leg{v, s}, stalled)
		}
	})
}

// stalled tells whether this host reset a client that had begun to speak and then
// fell silent, without a word of its own. A proxy that gives up waiting for its
// upstream has an answer for its client: 504 (RFC 9110 section 15.6.5).
func (s *story) stalled() bool {
	d := &s.closing
	return s.rst != nil && d.at == s.rst && d.by.addr == s.flow.Server && s.flow.Local == s.flow.Server &&
		s.flow.ClientBytes > 0 && s.flow.ServerBytes == 0 && d.idle >= leastTimer
}

// stalledLeg finds the stalled flow that this host reset when it gave up what it had
// asked in its name: both had been silent for as long.
func stalledLeg(l leg, stalled []leg) (best *story) {
	s, bestAway := l.view, legWithin
	for _, other := range stalled {
		o := other.view
		away := s.closing.at.Time.Sub(o.closing.at.Time).Abs()
		if other.of == l.of || away > bestAway || !opposite(s, o) || s.closing.by.addr != s.flow.Local ||
			(s.closing.idle-o.closing.idle).Abs() > legWithin {
			continue
		}
		best, bestAway = other.of, away
	}
	return best
}

// leg is a story, and how the namespace of the proxy tells it.
type leg struct{ view, of *story }

// legOf finds the leg whose break is nearest before this host's closing.
func legOf(l leg, broken []leg) *story {
	var best *story
	bestAway := legWithin
	s := l.view
	at := s.closing.at.Time
	for _, other := range broken {
		o := other.view
		t, _ := o.broke()
		away := at.Sub(t)
		if other.of == l.of || away < -legEarly || away > bestAway || !opposite(s, o) || o.flow.First.After(at) || s.flow.First.After(t) {
			continue
		}
		best, bestAway = other.of, away
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
	text, limit := s.consequence()
	o.add(packetFact("", text, s.closing.at))
	o.blame(from.claim.Party, from.claim.PartyConfidence.AtMost(limit), from.claim.Cause, from.claim.CauseConfidence.AtMost(limit), text)
	o.claim.Benign = from.claim.Benign
	s.logged, s.acted = s.leg.logged, s.leg.acted
	if d := from.claim.Decision; d != nil {
		o.claim.Decision = d
	}
}

// consequence says what the end of the other leg has to do with this one's, and how
// sure that can be.
func (s *story) consequence() (string, evidence.Confidence) {
	if s.leg.stalled() {
		s.opinion.claim.Sentence = fmt.Sprintf("%v gave up what it had asked of %v", s.flow.Local, s.flow.Server)
		limit := evidence.Possible // a client may as well wait as stall
		if l := s.leg.logged; l != nil && l.Reason == evidence.ReasonClientTimeout {
			limit = evidence.Likely
		}
		return fmt.Sprintf("a consequence of the other leg %v, whose client had sent nothing for %s when it was reset",
			&s.leg.flow, seconds(s.leg.closing.idle)), limit
	}
	t, _ := s.leg.broke()
	return fmt.Sprintf("a consequence of the other leg %v, which %v had ended %s before", &s.leg.flow, s.leg.far(),
		seconds(max(s.closing.at.Time.Sub(t), 0))), evidence.Likely
}

// far is who ended the flow.
func (s *story) far() string {
	switch {
	case s.opinion.claim.Origin.Middlebox():
		return "a device on the path"
	case s.closing.at != nil:
		return s.closing.by.addr.String()
	}
	return s.sender.addr.String()
}

// findContinuations finds connections whose address translation was lost: the same
// sequence numbers go on under the untranslated address. They are one with the flow
// that was reset, and show why.
func (c *caseFile) findContinuations() {
	type mark struct {
		seq uint32
		far netip.AddrPort // that got the RST, and sends one itself to what goes on
	}
	lost := map[mark]*story{}
	for _, s := range c.stories {
		if s.rst != nil && s.passive() && s.sender.fin == nil && !s.forwarded && s.flow.Local.IsValid() {
			lost[mark{s.rst.Seq, s.rst.Dst}] = s
		}
	}
	for _, s := range c.stories {
		if len(lost) == 0 || s.rst == nil {
			continue
		}
		for _, n := range s.segments {
			was := lost[mark{n.Seq, s.rst.Src}]
			if was != nil && was != s && n.Src == s.rst.Dst && n.Src != was.rst.Src && !n.Time.Before(was.rst.Time) {
				c.continues(s, was, n)
				break
			}
		}
	}
}

// continues notes that s is how a connection went on, with n, whose translation was
// lost. This host may be the translator itself.
func (c *caseFile) continues(s, was *story, n *seen) {
	s.continues, was.continued = was, true
	c.folded++
	o := &was.opinion
	o.add(packetFact("RFC 5382 section 7", fmt.Sprintf("the same connection went on from %v %s later, untranslated: sequence number %d",
		n.Src, seconds(n.Time.Sub(was.rst.Time)), n.Seq), was.rst, n))
	if was.local() {
		return
	}
	o.claim.Origin, o.claim.Mechanism, o.claim.MechanismConfidence = evidence.OriginNAT, evidence.MechanismStateLostNAT, ""
	o.claim.Layer, o.claim.Confidence = evidence.LayerNetwork, evidence.Likely
	o.claim.Sentence = fmt.Sprintf("the translator at %v has lost the connection and answered with RST", was.rst.Src.Addr())
}
