package verdict

import (
	"fmt"
	"time"

	"tcpcoroner/evidence"
)

// This file reads from the header how a RST was made (RFC 9293 section 3.5.2).

// making is how a RST was made as its header and the flow before it tell.
type making struct {
	mechanism  evidence.Mechanism
	confidence evidence.Confidence
	// text says it in the words of a kernelReason.
	text    string
	facts   []evidence.Finding
	trigger int
}

func (c *caseFile) making(s *story) making {
	switch {
	case s.answersSYN():
		return c.refusal(s)
	case s.passive():
		return c.stray(s)
	case s.active():
		return c.abort(s)
	}
	m := making{mechanism: evidence.MechanismUnknown, confidence: evidence.Uncertain, text: "reset the flow; why is not known from the headers"}
	if s.trigger == nil {
		m.facts = append(m.facts, packetFact("", "no earlier packet of the other side is in the window", s.rst))
	}
	return m
}

// alternations is how often in a row a port must change between accepting and
// refusing for a limit to be at work: a restart makes it change twice.
const alternations = 4

// refusal: a RST that answers a SYN.
func (c *caseFile) refusal(s *story) making {
	syn := s.other.syn
	m := making{mechanism: evidence.MechanismRefused, confidence: evidence.Likely, trigger: syn.number, text: "RST in answer to SYN",
		facts: []evidence.Finding{packetFact(srcRFCReset, fmt.Sprintf("the RST answers the SYN after %s: acknowledgment is ISN+1, no data was exchanged",
			seconds(s.rst.Time.Sub(syn.Time))), syn, s.rst)}}
	a := c.answers[acceptorID{s.rst.Src, s.excerpt.Namespace}]
	switch {
	case a != nil && a.Alternations >= alternations:
		m.mechanism, m.text = evidence.MechanismRefusedRateLimit, "it refuses some and accepts others: a limit"
		m.facts = append(m.facts, packetFact("", fmt.Sprintf("%v accepted %s and refused %d, in turns", a.From, plural(a.Accepted, "connection"), a.Refused), s.rst))
	case rejectLike(syn, s.rst):
		m.mechanism, m.text = evidence.MechanismRefusedFilter, "with a packet filter's RST"
		m.facts = append(m.facts, rejectFact(syn, s.rst))
	case copied(syn, s.rst):
		m.mechanism, m.text = evidence.MechanismRefusedListener, "nothing listens on the port"
		m.facts = append(m.facts, packetFact(srcPassive, "the RST carries the SYN's traffic class, as TCP's own answers do", syn, s.rst))
	}
	return m
}

// rejectLike: netfilter's reject sends TOS 0 and flow label 0, Linux TCP copies the
// traffic class and makes a label (nf_reject_ipv4.c, nf_reject_ipv6.c against
// tcp_v4_send_reset, tcp_v6_send_response).
func rejectLike(trigger, rst *seen) bool {
	const ecn = 3
	if rst.TOS == 0 && trigger.TOS&^ecn != 0 {
		return true
	}
	return rst.Src.Addr().Is6() && rst.FlowLabel == 0 && trigger.FlowLabel != 0
}

// copied: a traffic class that is not 0 and the trigger's.
func copied(trigger, rst *seen) bool {
	const ecn = 3
	return trigger.TOS&^ecn != 0 && rst.TOS&^ecn == trigger.TOS&^ecn
}

func rejectFact(trigger, rst *seen) evidence.Finding {
	return packetFact("net/ipv6/netfilter/nf_reject_ipv6.c",
		"the RST does not carry the traffic class or flow label that Linux TCP sets: the header is that of a filter's reject, or of a foreign TCP", trigger, rst)
}

// stray: a RST that answers a segment which no socket takes.
func (c *caseFile) stray(s *story) making {
	m := making{mechanism: evidence.MechanismNoSocket, confidence: evidence.Likely, trigger: s.trigger.number,
		text: "had no socket for the flow and answered with RST"}
	fin := s.sender.fin
	switch {
	case rejectLike(s.trigger, s.rst):
		m.mechanism, m.text, m.confidence = evidence.MechanismRefusedFilter, "answered a segment with a packet filter's RST", evidence.Possible
		m.facts = append(m.facts, rejectFact(s.trigger, s.rst))
		return m
	case fin != nil && !s.trigger.Time.Before(fin.Time):
		m.mechanism = evidence.MechanismLateData
		m.text = fmt.Sprintf("had closed the connection %s earlier; its kernel answered late data with RST", seconds(s.rst.Time.Sub(fin.Time)))
		m.facts = append(m.facts, packetFact("RFC 2525 section 2.17; "+srcPassive, fmt.Sprintf("%v closed with FIN, %v sent %d bytes %s later and got a RST",
			s.sender.addr, s.other.addr, s.trigger.PayloadBytes, seconds(s.trigger.Time.Sub(fin.Time))), fin, s.trigger, s.rst))
		return m
	case s.sender.syn != nil && s.sender.last == s.sender.syn && s.sender.syn.Flags.Has(evidence.ACK) && s.completes(s.trigger):
		m.mechanism, m.confidence, m.text = evidence.MechanismQueueOverflow, evidence.Possible, "reset a completed handshake"
		m.facts = append(m.facts, packetFact(srcOverflow, "the RST answers what completes the handshake; this side sent SYN/ACK only", s.sender.syn, s.trigger, s.rst))
		return m
	}
	m.facts = append(m.facts, packetFact(srcPassive, fmt.Sprintf(
		"the RST takes its sequence number from the acknowledgment of the segment %s before, and acknowledges nothing: no socket made it",
		seconds(s.rst.Time.Sub(s.trigger.Time))), s.trigger, s.rst))
	return m
}

// completes tells whether a segment of the initiator can be the one that completes
// the handshake: until that the SYN/ACK is repeated, a second later for the first
// time, then after twice as long (RFC 6298 section 5.5; TCP_DEFER_ACCEPT waits for
// data).
func (s *story) completes(n *seen) bool {
	first := s.sender.syn.Time
	for _, g := range s.segments {
		if g.Src == s.sender.addr {
			first = g.Time
			break
		}
	}
	last := s.sender.syn.Time
	return n.Time.Sub(last) <= synackRepeats+2*last.Sub(first)
}

// synackRepeats is the first timeout of a SYN/ACK, and room for a late timer.
const synackRepeats = 1100 * time.Millisecond

// abort: RFC 9293's ABORT. The RST continues its sender's own sequence and
// acknowledges what it received: a socket that existed made it.
func (c *caseFile) abort(s *story) making {
	m := making{mechanism: evidence.MechanismActiveAbort, confidence: evidence.Likely, text: "aborted the connection"}
	m.facts = append(m.facts, packetFact(srcRFCAbort, fmt.Sprintf(
		"the RST carries its sender's next sequence number and an ACK: an existing socket was aborted (%s)", s.prints()), s.sender.last, s.rst))
	if n := s.unacked(); n > s.other.next-s.other.said() {
		n -= s.other.next - s.other.said()
		m.facts = append(m.facts, packetFact("RFC 2525 section 2.17",
			fmt.Sprintf("%d bytes of %v were not acknowledged before the RST", n, s.other.addr), s.other.data, s.rst))
	}
	fin := s.sender.fin
	switch {
	case s.unread():
		m.mechanism, m.text = evidence.MechanismUnread, "closed the socket with data unread"
		m.facts = append(m.facts, packetFact("RFC 2525 section 2.17",
			fmt.Sprintf("its window had shrunk to %d: its receive buffer was filling up", s.sender.last.Window), s.sender.last))
	case s.probed():
		m.mechanism, m.text = evidence.MechanismKeepalive, "gave up: the other side did not answer its keepalive probes"
	case fin != nil:
		m.facts = append(m.facts, packetFact(srcClose, fmt.Sprintf("it had sent FIN %s before", seconds(s.rst.Time.Sub(fin.Time))), fin, s.rst))
	}
	return m
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

// unansweredProbes is how many keepalive probes in a row tell a timer's work.
const unansweredProbes = 3

// probed tells whether the RST's sender had sent keepalive probes, the byte before
// the next, that nobody answered (tcp_write_wakeup).
func (s *story) probed() bool {
	n := 0
	for _, g := range s.segments {
		switch {
		case g == s.rst:
			return n >= unansweredProbes
		case g.Src != s.sender.addr:
			n = 0
		case g.PayloadBytes <= 1 && g.Flags&(evidence.SYN|evidence.FIN) == 0 && g.Seq+1 == s.sender.next:
			n++
		}
	}
	return false
}

// layerOf says where a mechanism is at home.
func layerOf(m evidence.Mechanism) evidence.Layer {
	switch m {
	case evidence.MechanismMemory, evidence.MechanismKeepalive, evidence.MechanismKilledSocket:
		return evidence.LayerTransport
	case evidence.MechanismRefusedFilter, evidence.MechanismRefusedRateLimit, evidence.MechanismInjected, evidence.MechanismStateLostNAT:
		return evidence.LayerNetwork
	case evidence.MechanismUnknown:
		return evidence.LayerUnknown
	}
	if m.Family() == evidence.MechanismActiveAbort {
		return evidence.LayerApplication
	}
	return evidence.LayerTransport
}
