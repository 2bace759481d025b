package verdict

import (
	"fmt"
	"net/netip"

	"tcpcoroner/evidence"
)

// afterFIN: benign. Both sides had nothing more to say: a FIN was seen, no data
// of the RST's receiver was left unacknowledged, and none seems left unread.
func afterFIN(c *caseFile, s *story) (evidence.Verdict, bool) {
	fin := s.sender.fin
	if fin == nil {
		fin = s.other.fin
	}
	// The FIN itself takes one sequence number and may be unacknowledged.
	if fin == nil || !s.sender.hasAcked || s.unacked() > 1 || s.unread() {
		return evidence.Verdict{}, false
	}
	origin, who := evidence.OriginPeerHost, s.who()
	switch {
	case s.passive(): // no socket, so no process either
		origin, who = s.byKernel(), s.whoKernel()
	case s.local():
		origin = evidence.OriginLocalHost
	}
	text := fmt.Sprintf("%v sent FIN %s before the RST and no data was outstanding", fin.Src, seconds(s.rst.Time.Sub(fin.Time)))
	facts := []evidence.Finding{s.sawRST(), packetFact(srcRFCReset, text, fin, s.rst)}
	return must(evidence.Claim{
		Origin: origin, Mechanism: evidence.MechanismAfterFIN, Layer: evidence.LayerTransport,
		Confidence: evidence.Likely, Benign: true,
		Sentence: fmt.Sprintf("harmless: %s sent RST after the connection was closed with FIN", who),
	}, append(facts, c.holes(s)...)...)
}

// activeAbort: RFC 9293's ABORT. The RST continues its sender's own sequence
// and acknowledges what it received, with the flow's own options: a socket that
// existed made it.
func activeAbort(c *caseFile, s *story) (evidence.Verdict, bool) {
	if !s.rst.Flags.Has(evidence.ACK) || !s.sender.synced || s.rst.Seq != s.sender.next {
		return evidence.Verdict{}, false
	}
	facts := []evidence.Finding{s.sawRST(), packetFact(srcRFCAbort,
		fmt.Sprintf("the RST carries its sender's next sequence number and an ACK: an existing socket was aborted (%s)", s.prints()),
		s.sender.last, s.rst)}
	if n := s.unacked(); n > 0 {
		facts = append(facts, packetFact("RFC 2525 section 2.17",
			fmt.Sprintf("%d bytes of %v were not acknowledged before the RST", n, s.other.addr), s.other.data, s.rst))
	}
	claim := evidence.Claim{
		Mechanism: evidence.MechanismActiveAbort, Layer: evidence.LayerApplication, Settle: s.settle(),
		Sentence: fmt.Sprintf("%s aborted the connection (%s side): active reset of an open socket", s.who(), s.role()),
	}
	if s.local() {
		facts = c.abortHere(s, &claim, facts)
	} else {
		c.abortThere(s, &claim)
	}
	return must(claim, facts...)
}

// prints tells which fingerprints of a socket's own segment the RST bears.
func (s *story) prints() string {
	text := "no TCP timestamps in the flow"
	if s.sender.last.HasTimestamps {
		text = "timestamps missing"
		if s.rst.HasTimestamps {
			text = "with the flow's timestamps"
		}
	}
	if s.rst.Src.Addr().Is4() && s.rst.IPID == s.sender.last.IPID+1 {
		text += ", next IP ID"
	}
	return text
}

// socketLike: a Linux socket's RST has the flow's timestamps and, over IPv4, the
// socket's next IP ID.
func (s *story) socketLike() bool {
	return s.rst.HasTimestamps == s.sender.last.HasTimestamps && s.rst.TTL == s.sender.last.TTL
}

// abortHere decides between a process that closed and a kernel that gave up, by
// the counters that only one of them moves (FORENSICS: TCPAbortOnClose for
// close with unread data, TCPAbortOnData for SO_LINGER 0).
func (c *caseFile) abortHere(s *story, claim *evidence.Claim, facts []evidence.Finding) []evidence.Finding {
	claim.Origin, claim.Confidence = evidence.OriginLocalHost, evidence.Possible
	if f, ok := c.counted(s); ok {
		claim.Confidence = evidence.Likely
		facts = append(facts, f)
	}
	onClose, _ := c.movedFor(s, "TcpExt.TCPAbortOnClose")
	onData, _ := c.movedFor(s, "TcpExt.TCPAbortOnData")
	byTimer, _ := c.movedFor(s, "TcpExt.TCPAbortOnTimeout")
	if onClose+onData > 0 && byTimer == 0 {
		claim.Origin = evidence.OriginLocalProcess
		facts = append(facts, counterFact(srcClose,
			"TCPAbortOnClose grew by %d, TCPAbortOnData by %d, TCPAbortOnTimeout not: processes closed sockets abortively", onClose, onData))
		// No process closed anything for the self-test's resets.
		if onClose+onData >= uint64(c.sent-c.window.OwnResets) {
			claim.Confidence = c.capped(evidence.Proven)
		}
	}
	if s.flow.Owner != nil {
		facts = append(facts, socketFact("%s[%d] owns %v: %s", s.flow.Owner.Comm, s.flow.Owner.PID, s.flow.Local, s.flow.OwnerSource))
	}
	return facts
}

// abortThere: the peer's process is invisible from here; a matching TTL and
// matching options say that at least its host made the RST.
func (c *caseFile) abortThere(s *story, claim *evidence.Claim) {
	claim.Origin, claim.Confidence = evidence.OriginPeerHost, evidence.Possible
	if s.socketLike() {
		claim.Origin, claim.Confidence = evidence.OriginPeerProcess, evidence.Likely
	}
}

func (c *caseFile) localPair(s *story) [2]netip.AddrPort {
	return [2]netip.AddrPort{s.rst.Src, s.rst.Dst}
}
