package verdict

import (
	"fmt"

	"tcpcoroner/evidence"
)

// This file holds the rules that ask who sent the RST at all.

// unknownDirection: on devices without a link layer the kernel's packet type
// does not tell sent from received.
func unknownDirection(_ *caseFile, s *story) (evidence.Verdict, bool) {
	d := s.direction()
	if d != evidence.DirectionUnknown && d != evidence.Elsewhere {
		return evidence.Verdict{}, false
	}
	why := "its interface does not tell sent from received"
	if d == evidence.Elsewhere {
		why = "it was addressed to another host"
	}
	return evidence.Unknown(fmt.Sprintf("a RST from %v to %v was seen; %s", s.rst.Src, s.rst.Dst, why),
		"a capture on an interface with a link layer, on the host of either end", s.sawRST()), true
}

// forwarded: the same RST came in and left again, perhaps under another address
// (NAT leaves sequence numbers alone).
func forwarded(_ *caseFile, s *story) (evidence.Verdict, bool) {
	if !s.forwarded {
		return passing(s)
	}
	text, origin := fmt.Sprintf("the RST from %v was received and sent on: this host only routed it", s.rst.Src), s.rst.Src
	if s.as != nil {
		text = fmt.Sprintf("the RST %v > %v left as %v > %v: this host translated and routed it",
			s.as.src, s.as.dst, s.left.src, s.left.dst)
		origin = s.as.src
	}
	return must(evidence.Claim{
		Origin: evidence.OriginForwarded, Mechanism: evidence.MechanismUnknown, Layer: evidence.LayerNetwork,
		Confidence: evidence.Likely, Sentence: text,
		Settle: fmt.Sprintf("a recorder on the host of %v", origin),
	}, s.sawRST(), packetFact("net/ipv4/ip_forward.c", text, s.rst))
}

// passing: a RST that came in for a flow which this host routes, and was not seen
// leaving: dropped here, or after the window's end. Its receiver is elsewhere.
func passing(s *story) (evidence.Verdict, bool) {
	if s.direction() != evidence.Received || !s.transit() {
		return evidence.Verdict{}, false
	}
	return must(evidence.Claim{
		Origin: evidence.OriginForwarded, Mechanism: evidence.MechanismUnknown, Layer: evidence.LayerNetwork,
		Confidence: evidence.Possible, Settle: settleFirewall,
		Sentence: fmt.Sprintf("a RST from %v came in for %v, whose flow this host routes; it was not seen leaving", s.rst.Src, s.rst.Dst),
	}, s.sawRST(), packetFact("net/ipv4/ip_forward.c", "other segments of the flow came in and left again", s.rst))
}

// inconsistentSender: a received RST whose TTL no other packet of that address
// had may have been made by a device on the path. A kernel answering without a
// socket uses the default TTL, so this alone accuses nobody.
func inconsistentSender(c *caseFile, s *story) (evidence.Verdict, bool) {
	usual := c.usual(s)
	if s.direction() != evidence.Received || len(usual) == 0 || usual[s.rst.TTL] > 0 {
		return evidence.Verdict{}, false
	}
	// Absence is the argument: it needs all TTLs of the address to be known.
	if len(usual) >= maxTTLs || c.window.Cut {
		return evidence.Verdict{}, false
	}
	ttl, n := commonest(usual)
	text := fmt.Sprintf("TTL %d of the RST never occurs in %s of %v, whose usual TTL is %d",
		s.rst.TTL, plural(n, "other packet"), s.rst.Src.Addr(), ttl)
	return evidence.Unknown(
		fmt.Sprintf("a RST under the name of %v may not come from it: TTL %d, usually %d", s.rst.Src, s.rst.TTL, ttl),
		settlePeer, s.sawRST(), packetFact("RFC 791 section 3.2: time to live", text, s.rst)), true
}

func commonest(ttls map[uint8]int) (ttl uint8, total int) {
	best := 0
	for t, n := range ttls {
		total += n
		if n > best || (n == best && t > ttl) {
			ttl, best = t, n
		}
	}
	return ttl, total
}

// notFromTCP: every RST that the TCP stack sends is counted in OutRsts; a
// firewall's or a raw socket's is not. Where fewer were counted than left, no
// single RST can be laid on the stack.
func notFromTCP(c *caseFile, s *story) (evidence.Verdict, bool) {
	out, known := c.movedFor(s, "Tcp.OutRsts")
	if !s.local() || !known || out >= uint64(c.sent) || c.window.Lost() > 0 {
		return evidence.Verdict{}, false
	}
	f := counterFact(srcOutRsts, "OutRsts grew by %d while %s left this host", out, plural(c.sent, "RST"))
	if out > 0 {
		f.Text += "; which of them TCP sent is undecided"
	}
	return evidence.Unknown(
		fmt.Sprintf("a RST to %v left this host that its TCP stack may not have sent: firewall or raw socket", s.rst.Dst),
		settleFirewall, s.sawRST(), f), true
}

// unexplained is the verdict where no rule fits.
func unexplained(_ *caseFile, s *story) evidence.Verdict {
	settle := settlePeer
	if s.local() {
		settle = settleKernel
	}
	facts := []evidence.Finding{s.sawRST()}
	if s.trigger == nil {
		facts = append(facts, packetFact("", "no earlier packet of the other side is in the window", s.rst))
	}
	return evidence.Unknown(fmt.Sprintf("%s reset the flow; why is not known from the headers", s.who()), settle, facts...)
}

// byKernel is the origin of a RST that a TCP stack made without a process.
func (s *story) byKernel() evidence.Origin {
	if s.local() {
		return evidence.OriginLocalKernel
	}
	return evidence.OriginPeerHost
}

// counted is the finding that this host's stack counted its own RSTs.
func (c *caseFile) counted(s *story) (evidence.Finding, bool) {
	out, known := c.movedFor(s, "Tcp.OutRsts")
	if !known || c.sent == 0 || out < uint64(c.sent) {
		return evidence.Finding{}, false
	}
	return counterFact(srcOutRsts, "OutRsts grew by %d; %s left this host: the TCP stack sent them all",
		out, plural(c.sent, "RST")), true
}

// settle is what would confirm a verdict about the RST's sender.
func (s *story) settle() string {
	if s.local() {
		return settleKernel
	}
	return settlePeer
}
