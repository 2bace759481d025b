package verdict

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"tcpcoroner/evidence"
)

// sources that rules cite.
const (
	srcRFCReset   = "RFC 9293 section 3.5.2"
	srcRFCAbort   = "RFC 9293 section 3.10.5"
	srcActive     = "net/ipv4/tcp_output.c: tcp_send_active_reset"
	srcPassive    = "net/ipv4/tcp_ipv4.c: tcp_v4_send_reset"
	srcClose      = "net/ipv4/tcp.c: __tcp_close"
	srcOverflow   = "net/ipv4/tcp_minisocks.c: tcp_check_req"
	srcOutRsts    = "/proc/net/snmp: Tcp OutRsts (tcp_v4_send_reset, tcp_send_active_reset)"
	srcPacketType = "packet(7): sll_pkttype"
)

// Sentences on what would settle a verdict.
const (
	settlePeer     = "a capture on the peer at the same moment: did the RST leave that host?"
	settleKernel   = "the kernel's reset reason and the owning socket (kernel evidence), or the owner's log"
	settleOwner    = "the owner's log of that moment, and a stack of the process at the close"
	settleFirewall = "the firewall ruleset of this host with its counters: is there a reject with tcp reset?"
)

// who names the sender of the RST as far as it is known.
func (s *story) who() string {
	switch {
	case s.local() && s.flow.Owner != nil && s.flow.OwnerSource == ownedByListener:
		return fmt.Sprintf("this host%s, where %s listens,", s.where, processName(s.flow.Owner))
	case s.local() && s.flow.Owner != nil:
		return fmt.Sprintf("%s[%d] on this host", s.flow.Owner.Comm, s.flow.Owner.PID)
	case s.local():
		return "this host" + s.where
	}
	return fmt.Sprintf("the peer %v", s.rst.Src)
}

// sentenceHere tells of a RST that this host sent.
func (c *caseFile) sentenceHere(s *story, r kernelReason) string {
	o := &s.opinion.claim
	who := s.whoKernel()
	if o.Process != nil && r.origin == evidence.OriginLocalProcess {
		who = processName(o.Process) + " on this host" + s.where
	} else if r.origin == evidence.OriginLocalProcess || r.origin == evidence.OriginLocalHost {
		who = s.who()
	}
	switch {
	case r.mechanism.Family() == evidence.MechanismRefused:
		return fmt.Sprintf("%s refused the connection to %v: %s", who, s.rst.Src, r.text)
	case r.mechanism == evidence.MechanismQueueOverflow:
		return fmt.Sprintf("%s reset a completed handshake with %v: %s", who, s.rst.Src, r.text)
	case r.mechanism == evidence.MechanismLateData && s.event == nil:
		return fmt.Sprintf("%s %s", s.who(), r.text)
	case r.origin == evidence.OriginLocalKernel && s.event != nil:
		return fmt.Sprintf("%s answered with RST: %s", who, r.text)
	}
	return fmt.Sprintf("%s %s (%s side)", who, r.text, s.role())
}

// sentenceThere tells of a RST that came in.
func (c *caseFile) sentenceThere(s *story, m making) string {
	switch o := s.opinion.claim.Origin; {
	case o == evidence.OriginNAT:
		return fmt.Sprintf("the translator at %v has lost the connection and answered with RST", s.rst.Src.Addr())
	case s.answersSYN():
		return fmt.Sprintf("%s refused the connection to %v: %s", s.whoKernel(), s.rst.Src, m.text)
	case m.mechanism.Family() == evidence.MechanismRefused, o == evidence.OriginPeerKernel:
		return fmt.Sprintf("%s %s", s.whoKernel(), m.text)
	}
	return fmt.Sprintf("%s %s (%s side)", s.who(), m.text, s.role())
}

// whoKernel names the sender of a RST that no process asked for.
func (s *story) whoKernel() string {
	if s.local() {
		return "this host's kernel" + s.where
	}
	return fmt.Sprintf("the peer's host %v", s.rst.Src.Addr())
}

// join lists in one sentence.
func join(all []string) string { return strings.Join(all, ", ") }

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

// when is a flow's RST, or its end.
func when(f *evidence.Flow) time.Time {
	if f.Reset != nil {
		return f.Reset.Time
	}
	return f.Last
}

// number is that of a flow's RST in the window, 0 without one.
func number(f *evidence.Flow) int {
	if f.Reset != nil {
		return f.Reset.Packet
	}
	return 0
}

// role of the RST's sender in the flow.
func (s *story) role() string {
	if s.rst.Src == s.flow.Server {
		return "server"
	}
	return "client"
}

// diagnosis reads the payload of a RST that tells its reason.
func (s *story) diagnosis() (evidence.Finding, bool) {
	p := s.rst.Payload
	switch {
	case len(p) >= 4 && p[0] == 0x33 && p[1] == 0xaa:
		return packetFact("draft-ietf-tcpm-rst-diagnostic-payload", fmt.Sprintf("the RST gives a reason: code %d", int(p[2])<<8|int(p[3])), s.rst), true
	case len(p) > 0:
		return packetFact("RFC 9293 section 3.5.3", fmt.Sprintf("the RST carries %s of text", plural(int(s.rst.PayloadBytes), "byte")), s.rst), true
	}
	return evidence.Finding{}, false
}

// sawRST is the finding that every verdict starts with.
func (s *story) sawRST() evidence.Finding {
	text := fmt.Sprintf("RST from %v to %v (%s) was %s on %s", s.rst.Src, s.rst.Dst,
		s.rst.Flags, s.direction(), s.rst.sightings[0].iface)
	for _, g := range s.rst.sightings[1:min(len(s.rst.sightings), 5)] {
		text += fmt.Sprintf(", then %s on %s", g.direction, g.iface)
	}
	return evidence.Finding{Kind: evidence.KindPacket, Source: srcPacketType, Packets: []int{s.rst.number}, Text: text}
}

func packetFact(source, text string, packets ...*seen) evidence.Finding {
	f := evidence.Finding{Kind: evidence.KindPacket, Text: text, Source: source}
	for _, p := range packets {
		if p != nil && !slices.Contains(f.Packets, p.number) {
			f.Packets = append(f.Packets, p.number)
		}
	}
	return f
}

func counterFact(source, format string, args ...any) evidence.Finding {
	return evidence.Finding{Kind: evidence.KindCounter, Text: fmt.Sprintf(format, args...), Source: source}
}

func socketFact(format string, args ...any) evidence.Finding {
	return evidence.Finding{Kind: evidence.KindSocket, Text: fmt.Sprintf(format, args...), Source: "sock_diag(7)"}
}

// must makes a verdict from findings of which one is known to speak for it.
func must(c evidence.Claim, f ...evidence.Finding) (evidence.Verdict, bool) {
	v, err := evidence.NewVerdict(c, f...)
	if err != nil {
		return evidence.Unknown("no evidence was found", settleKernel), true
	}
	return v, true
}

// seconds prints a duration as people read it in a report.
func seconds(d time.Duration) string {
	if d < time.Second {
		return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1e3)
	}
	return fmt.Sprintf("%.2f s", d.Seconds())
}

func plural(n int, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %ss", n, one)
}
