package verdict

import (
	"fmt"

	"tcpcoroner/evidence"
)

// refused: a RST that answers a SYN: sequence number 0 (the SYN carried no ACK)
// and acknowledging just the SYN (RFC 9293 section 3.10.7.1).
func refused(c *caseFile, s *story) (evidence.Verdict, bool) {
	syn := s.other.syn
	if syn == nil || syn.Flags.Has(evidence.ACK) || s.sender.synced ||
		!s.rst.Flags.Has(evidence.ACK) || s.rst.Ack != syn.Seq+syn.Length() {
		return evidence.Verdict{}, false
	}
	facts := []evidence.Finding{s.sawRST(), packetFact(srcRFCReset,
		fmt.Sprintf("the RST answers the SYN after %s: acknowledgment is ISN+1, no data was exchanged",
			seconds(s.rst.Time.Sub(syn.Time))), syn, s.rst)}
	claim := evidence.Claim{
		Origin: s.byKernel(), Mechanism: evidence.MechanismRefused, Layer: evidence.LayerTransport,
		Confidence: evidence.Possible, Settle: s.settle(),
		Sentence: fmt.Sprintf("%s refused the connection to %v: RST in answer to SYN", s.whoKernel(), s.rst.Src),
	}
	if s.local() {
		facts = c.refusedHere(s, &claim, facts)
	} else if c.usual(s)[s.rst.TTL] > 0 {
		claim.Confidence = evidence.Likely
		facts = append(facts, packetFact("", fmt.Sprintf("TTL %d is that of other packets of %v", s.rst.TTL, s.rst.Src.Addr()), s.rst))
	}
	return must(claim, facts...)
}

// refusedHere adds what this host knows: is there a listener, did TCP count it?
func (c *caseFile) refusedHere(s *story, claim *evidence.Claim, facts []evidence.Finding) []evidence.Finding {
	l, known := c.listener(s.rst.Src)
	switch {
	case !s.here(): // its listeners are not known
	case l != nil:
		f := socketFact("a socket listens on %v at the snapshot: it came later, or a filter refused", l.Local)
		f.Against = true
		claim.Settle = settleFirewall
		return append(facts, f)
	case known:
		claim.Confidence = evidence.Proven
		claim.Sentence = fmt.Sprintf("this host's kernel refused the connection: nothing listens on %v", s.rst.Src)
		facts = append(facts, socketFact("no socket listens on port %d", s.rst.Src.Port()))
	}
	if f, ok := c.counted(s); ok {
		return append(facts, f)
	}
	claim.Confidence = evidence.Possible // a firewall's reject looks the same
	claim.Settle = settleFirewall
	return facts
}

// whoKernel names the sender of a RST that no process asked for.
func (s *story) whoKernel() string {
	if s.local() {
		return "this host's kernel" + s.where
	}
	return fmt.Sprintf("the peer's host %v", s.rst.Src.Addr())
}
