package verdict

import (
	"fmt"
	"time"

	"tcpcoroner/evidence"
)

// This file knows the resets that do no harm. Each needs that no data is lost.

// harmless tries the patterns in order.
func harmless(c *caseFile, s *story) bool {
	if s.rst == nil || s.opinion.claim.Mechanism == evidence.MechanismKilledSocket {
		return false
	}
	return healthCheck(c, s) || afterFIN(c, s) || answered(c, s)
}

// The bounds of a health check.
const (
	checkWithin  = time.Second
	checkRepeats = 5
)

// healthCheck: a client connects and resets without a word, perhaps instead of the
// handshake's last segment, over and over.
func healthCheck(c *caseFile, s *story) bool {
	if !s.speechless() {
		return false
	}
	o := &s.opinion
	n := c.checks[checkKey{s.flow.Client.Addr(), s.flow.Server}]
	confidence := evidence.Possible
	if n >= checkRepeats {
		confidence = evidence.Likely
	}
	o.claim.Benign = true
	o.add(packetFact("", fmt.Sprintf("%v connected and reset without data, %d times in the window", s.flow.Client.Addr(), n), s.rst))
	c.decided(s, "as soon as it was connected: a health check or probe", evidence.CauseHealthCheck, confidence)
	return true
}

// speechless tells whether the initiator reset the connection right after opening
// it, without data.
func (s *story) speechless() bool {
	d := &s.closing
	return s.rst != nil && d.at == s.rst && s.flow.InitiatorSeen && d.by.addr == s.flow.Client &&
		s.flow.ClientBytes+s.flow.ServerBytes == 0 && d.age <= checkWithin
}

// afterFIN: both sides had nothing more to say: a FIN was seen, no data of either side
// was left unacknowledged, and none seems left unread.
func afterFIN(c *caseFile, s *story) bool {
	fin := s.sender.fin
	if fin == nil {
		fin = s.other.fin
	}
	// The FIN itself takes one sequence number and may be unacknowledged.
	if fin == nil || !s.sender.hasAcked || s.unacked() > 1 || s.unread() || s.closing.at == s.rst ||
		s.event != nil && s.event.Unread > 0 {
		return false
	}
	if s.local() && s.onItsWay() > farewell {
		return false // it threw away what it had said last
	}
	if s.active() && s.sender.fin == nil && s.other.data != nil && s.sender.data == nil {
		return false // it was asked, and aborted its open socket without a word
	}
	o := &s.opinion
	o.add(packetFact(srcRFCReset, fmt.Sprintf("%v sent FIN %s before the RST and no data was outstanding", fin.Src, seconds(s.rst.Time.Sub(fin.Time))), fin, s.rst))
	if _, holed := c.hole(s); holed {
		o.limit(evidence.Possible)
	}
	who := s.who()
	if s.passive() { // no socket, so no process either
		who = s.whoKernel()
	}
	if o.claim.Mechanism.Family() != evidence.MechanismNoSocket || s.event == nil {
		o.claim.Mechanism, o.claim.MechanismConfidence = evidence.MechanismAfterFIN, ""
	}
	o.claim.Benign = true
	o.claim.Confidence = o.claim.Confidence.AtMost(evidence.Likely)
	o.claim.Sentence = fmt.Sprintf("harmless: %s sent RST after the connection was closed with FIN", who)
	c.decided(s, c.stage(s), evidence.CauseNormalClose, evidence.Likely)
	o.because = ""
	return true
}

// farewell is how much may be on its way to the other side without harm: TLS says
// close_notify (RFC 8446 section 6.1), which fits into it.
const farewell = 64

// onItsWay is the payload of the RST's sender that the other side had not
// acknowledged. At the receiver's host it has arrived all the same, before the RST.
func (s *story) onItsWay() uint32 {
	end := s.sender.said()
	if !s.other.hasAcked || !s.sender.synced || !after(end, s.other.acked) {
		return 0
	}
	return end - s.other.acked
}

// answered: the client had its whole answer and did not bother to close with FIN.
func answered(c *caseFile, s *story) bool {
	d := &s.closing
	if d.at != s.rst || d.at == nil || d.by.addr != s.flow.Client || !d.exchanged || d.waiting ||
		s.unacked() > 0 || s.unread() || s.event != nil && s.event.Unread > 0 {
		return false
	}
	last := s.other.data
	if last == nil || !last.Flags.Has(evidence.PSH) {
		return false
	}
	for _, n := range s.segments {
		if n.Src == s.other.addr && n.PayloadBytes > 0 && n.Time.After(s.rst.Time) {
			return false // there was more to come
		}
	}
	o := &s.opinion
	o.claim.Benign = true
	o.add(packetFact(srcRFCReset, "the RST's sender had acknowledged all data of the answer, and had asked nothing since", last, s.rst))
	c.decided(s, "after it had its whole answer", evidence.CauseNormalClose, evidence.Likely)
	o.because, o.aside = "harmless: "+o.because, false
	return true
}
