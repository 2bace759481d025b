package verdict

import (
	"fmt"
	"slices"
	"strings"

	"tcpcoroner/evidence"
)

// timeline picks the steps that tell the flow's story and writes them as lines.
func (s *story) timeline() []evidence.Step {
	keep := s.landmarks()
	var steps []evidence.Step
	for i, n := range s.segments {
		if keep[i] && len(steps) < evidence.MaxSteps {
			steps = append(steps, evidence.Step{Time: n.Time, Packet: n.number, Flags: n.Flags.String(), Line: s.line(n)})
		}
	}
	return steps
}

// landmarks: SYN and SYN/ACK, the first and last data each way, FIN, what
// provoked the RST, the RST, and up to five segments after it.
func (s *story) landmarks() map[int]bool {
	keep, firstData := map[int]bool{}, map[string]bool{}
	at := slices.Index(s.segments, s.rst)
	for i, n := range s.segments {
		switch {
		case n.Flags&(evidence.SYN|evidence.FIN) != 0 && i <= at, n == s.trigger, n == s.sender.data, n == s.other.data:
			keep[i] = true
		case n.PayloadBytes > 0 && !firstData[n.Src.String()]:
			firstData[n.Src.String()] = true
			keep[i] = true
		case at >= 0 && i >= at && i <= at+5, at < 0 && i >= len(s.segments)-5:
			keep[i] = true
		}
	}
	return s.bounded(keep, at)
}

// bounded drops the earliest landmarks between the opening and the RST where
// there are too many (retransmitted SYNs or FINs).
func (s *story) bounded(keep map[int]bool, at int) map[int]bool {
	if at < 0 {
		at = len(s.segments) - 5
	}
	for i := 3; i < at && len(keep) > evidence.MaxSteps; i++ {
		delete(keep, i)
	}
	return keep
}

// line reads like tcpdump's, with the offset from the flow's first segment.
func (s *story) line(n *seen) string {
	arrow := ">" // sent, or client to server where neither end is here
	if s.flow.Local.IsValid() && n.Dst == s.flow.Local || !s.flow.Local.IsValid() && n.Src == s.flow.Server {
		arrow = "<"
	}
	b := &strings.Builder{}
	fmt.Fprintf(b, "%+.3fms %s %s seq=%d ack=%d win=%d len=%d ttl=%d", float64(n.Time.Sub(s.flow.First).Microseconds())/1e3,
		arrow, n.Flags, n.Seq, n.Ack, n.Window, n.PayloadBytes, n.TTL)
	switch {
	case s.closing.at == n && n != s.rst:
		b.WriteString("  # the first to close")
	case n == s.rst && s.forwarded:
		b.WriteString("  # the reset, on its way through this host")
	case n == s.rst:
		fmt.Fprintf(b, "  # reset by %s", s.who())
	case n == s.trigger && s.passive():
		b.WriteString("  # what the reset answers")
	case n == s.trigger && s.rst != nil:
		b.WriteString("  # the last segment of the side that got the RST")
	}
	return b.String()
}
