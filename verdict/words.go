package verdict

import (
	"fmt"
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
	settleFirewall = "the firewall ruleset of this host with its counters: is there a reject with tcp reset?"
)

// who names the sender of the RST as far as it is known.
func (s *story) who() string {
	switch {
	case s.local() && s.flow.Owner != nil:
		return fmt.Sprintf("%s[%d] on this host", s.flow.Owner.Comm, s.flow.Owner.PID)
	case s.local():
		return "this host" + s.where
	}
	return fmt.Sprintf("the peer %v", s.rst.Src)
}

// role of the RST's sender in the flow.
func (s *story) role() string {
	if s.rst.Src == s.flow.Server {
		return "server"
	}
	return "client"
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
		if p != nil {
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
