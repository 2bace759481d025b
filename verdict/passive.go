package verdict

import (
	"fmt"

	"tcpcoroner/evidence"
)

// This file holds the rules for passive resets: a host's TCP answers a segment
// that no socket takes. The segment that provoked it is the trigger.

// handshakeOverflow: the RST answers the ACK that completes the handshake. With
// net.ipv4.tcp_abort_on_overflow the kernel does that when the accept queue is
// full; without the counters nothing tells it from a filter.
func handshakeOverflow(c *caseFile, s *story) (evidence.Verdict, bool) {
	if !s.passive() || s.sender.last != s.sender.syn || s.sender.syn == nil {
		return evidence.Verdict{}, false
	}
	fact := packetFact(srcPassive, "the RST answers the ACK that completes the handshake; this side sent SYN/ACK only", s.sender.syn, s.trigger, s.rst)
	over, known := c.movedFor(s, "TcpExt.ListenOverflows")
	if !s.local() || !known || over == 0 {
		return evidence.Unknown(fmt.Sprintf("%s reset the connection at the end of the handshake", s.whoKernel()),
			"ListenOverflows and tcp_abort_on_overflow of the host that sent it", s.sawRST(), fact), true
	}
	return must(evidence.Claim{
		Origin: evidence.OriginLocalKernel, Mechanism: evidence.MechanismQueueOverflow, Layer: evidence.LayerTransport,
		Confidence: evidence.Likely, Settle: settleKernel,
		Sentence: fmt.Sprintf("this host's kernel reset a completed handshake: the accept queue of %v was full", s.rst.Src),
	}, s.sawRST(), fact, counterFact(srcOverflow, "ListenOverflows grew by %d", over))
}

// lateData: the sender of the RST had closed with FIN, then data came. The
// decision was the close; the RST only reports it, and the data is lost.
func lateData(c *caseFile, s *story) (evidence.Verdict, bool) {
	fin := s.sender.fin
	if fin == nil || !s.passive() || s.trigger.PayloadBytes == 0 || s.trigger.Time.Before(fin.Time) {
		return evidence.Verdict{}, false
	}
	text := fmt.Sprintf("%v closed with FIN, %v sent %d bytes %s later and got a RST",
		s.sender.addr, s.other.addr, s.trigger.PayloadBytes, seconds(s.trigger.Time.Sub(fin.Time)))
	facts := []evidence.Finding{s.sawRST(), packetFact("RFC 2525 section 2.17; "+srcPassive, text, fin, s.trigger, s.rst)}
	return must(evidence.Claim{
		Origin: s.byKernel(), Mechanism: evidence.MechanismAfterFIN, Layer: evidence.LayerTransport,
		Confidence: c.confidence(s, &facts), Settle: s.settle(),
		Sentence: fmt.Sprintf("%s had closed the connection %s earlier; its kernel answered late data with RST",
			s.who(), seconds(s.rst.Time.Sub(fin.Time))),
	}, facts...)
}

// noSocket: a passive RST in mid-flow without a FIN of its sender: its host had
// no socket for the flow (restart, failover, lost state, silent close).
func noSocket(c *caseFile, s *story) (evidence.Verdict, bool) {
	if !s.passive() || s.sender.fin != nil {
		return evidence.Verdict{}, false
	}
	facts := []evidence.Finding{s.sawRST(), packetFact(srcPassive, fmt.Sprintf(
		"the RST takes its sequence number from the acknowledgment of the segment %s before, and acknowledges nothing: no socket made it",
		seconds(s.rst.Time.Sub(s.trigger.Time))), s.trigger, s.rst)}
	if s.rejectLike() {
		return evidence.Unknown(fmt.Sprintf("%s answered a segment with RST; the header is that of a filter's reject, or of a foreign TCP", s.whoKernel()),
			settleFirewall, append(facts, packetFact("net/ipv6/netfilter/nf_reject_ipv6.c",
				"the RST does not carry the traffic class or flow label that Linux TCP copies", s.trigger, s.rst))...), true
	}
	if open := c.sockets[c.localPair(s)]; s.local() && s.here() && open != nil && open.State == "established" {
		return evidence.Unknown("a passive RST left this host for a flow whose socket is established", settleFirewall,
			append(facts, socketFact("the socket %v is still established at the snapshot", open.Local))...), true
	}
	return must(evidence.Claim{
		Origin: s.byKernel(), Mechanism: evidence.MechanismNoSocket, Layer: evidence.LayerTransport,
		Confidence: c.confidence(s, &facts), Settle: s.settle(),
		Sentence: fmt.Sprintf("%s had no socket for the flow and answered with RST", s.whoKernel()),
	}, facts...)
}

// rejectLike: netfilter's reject sends TOS 0 and flow label 0, Linux TCP copies
// the trigger's (nf_reject_ipv4.c, nf_reject_ipv6.c against tcp_v4_send_reset).
func (s *story) rejectLike() bool {
	const ecn = 3
	if s.rst.TOS == 0 && s.trigger.TOS&^ecn != 0 {
		return true
	}
	return s.rst.Src.Addr().Is6() && s.rst.FlowLabel == 0 && s.sender.last != nil && s.sender.last.FlowLabel != 0
}

// confidence of a passive verdict: a firewall's reject can look the same, so
// headers alone are likely at most, and only where the sender's TTL fits.
func (c *caseFile) confidence(s *story, facts *[]evidence.Finding) evidence.Confidence {
	if s.local() {
		if f, ok := c.counted(s); ok {
			*facts = append(*facts, f)
			return c.capped(evidence.Proven)
		}
		return evidence.Possible
	}
	if c.usual(s)[s.rst.TTL] > 0 {
		return c.capped(evidence.Likely)
	}
	return evidence.Possible
}

// holes are the findings against a verdict that rests on packets which were not
// seen: stretches of the flow's life in which the recorder may have missed some.
func (c *caseFile) holes(s *story) (facts []evidence.Finding) {
	for _, g := range c.window.Gaps {
		if !g.Complete && g.From.Before(s.rst.Time) && g.To.After(s.flow.First) {
			return []evidence.Finding{{Kind: evidence.KindPacket, Against: true, Text: fmt.Sprintf(
				"not all packets of the flow were kept, data may have been outstanding: %s", g.Reason)}}
		}
	}
	return nil
}

// capped lowers proven where the recorder knows that it missed packets, or where
// too many were needed.
func (c *caseFile) capped(v evidence.Confidence) evidence.Confidence {
	if v == evidence.Proven && (c.window.Lost() > 0 || c.window.Cut) {
		return evidence.Likely
	}
	return v
}
