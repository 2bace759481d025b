package verdict

import (
	"time"

	"tcpcoroner/evidence"
)

// This file finds, in the first pass, what fails without a RST, and how servers
// answer SYNs.

// The numbers that make a connection suspect of silence. Fewer are ordinary loss.
const (
	// silentSYNs is a SYN and its first retransmission, a second later
	// (RFC 6298 section 2).
	silentSYNs = 2
	// silentRepeats is how often in a row data came again and was not acknowledged.
	silentRepeats = 3
)

// silence follows whether a connection's segments are answered.
type silence struct {
	namespace uint16
	// syns counts those of the initiator, all of them unanswered.
	syns uint8
	// answered tells that both sides were heard.
	answered bool
	known    [2]bool
	// top is the highest sequence number of each side, repeats the segments in a
	// row that did not reach higher and were not acknowledged.
	top     [2]uint32
	repeats [2]uint8
	// opener is the side of the first segment, plus one.
	opener uint8
	// last is when payload was last seen, and forsaken tells that a side which had
	// asked closed without any answer, long after.
	last     int64
	forsaken bool
}

func (s *silence) observe(g *glance, nanos int64) {
	side := g.side()
	if s.opener == 0 {
		s.opener, s.namespace = uint8(side)+1, g.id.namespace
	}
	s.answered = s.answered || int(s.opener) != side+1
	if g.flags.Has(evidence.ACK) && s.known[1-side] && !after(s.top[1-side], g.ack) {
		s.repeats[1-side] = 0
	}
	if g.flags.Has(evidence.SYN) && !s.answered && s.syns < 255 {
		s.syns++
	}
	if g.flags.Has(evidence.FIN) && g.size == 0 && s.known[side] && !s.known[1-side] && nanos-s.last >= int64(leastTimer) {
		s.forsaken = true
	}
	if g.size == 0 {
		return
	}
	s.last = nanos
	s.forsaken = s.forsaken && !s.known[1-side] && s.known[side]
	if end := g.seq + g.size; !s.known[side] || after(end, s.top[side]) {
		s.top[side], s.known[side] = end, true
		return
	}
	if s.repeats[side] < 255 {
		s.repeats[side]++
	}
}

// side is 0 for a segment of the flow's end A.
func (l *glance) side() int {
	if l.src.high == l.id.aHigh && l.src.low == l.id.aLow && l.src.port == l.id.ports>>16 {
		return 0
	}
	return 1
}

// suspect tells whether the connection seems to have failed silently.
func (s *tallySlot) suspect() bool {
	if s.reset {
		return false
	}
	q := &s.silence
	return q.forsaken || !q.answered && q.syns >= silentSYNs || q.repeats[0] >= silentRepeats || q.repeats[1] >= silentRepeats
}

// maxSilent bounds the silent connections that are judged.
const maxSilent = 256

// silent chooses the connections that seem to have failed without a RST.
func (c *choice) silent(t *tallies) {
	n := 0
	t.each(func(s *tallySlot) bool {
		id := s.id
		id.namespace = s.silence.namespace
		if s.suspect() && c.at[id] == nil {
			n++
			f := &chosen{silent: true}
			c.kept = append(c.kept, f)
			c.show(f, id)
		}
		return n < maxSilent
	})
}

// maxAnswers bounds the servers whose answers to SYNs are counted.
const maxAnswers = 4 << 10

// acceptor is an address and port in one namespace.
type acceptor struct {
	endpoint
	namespace uint16
}

// answers counts what servers say to SYNs.
type answers map[acceptor]*answer

type answer struct {
	accepted, refused, turns int
	lastRefused              bool
	first, last              int64
}

// count takes a segment that answers a SYN, if it is one.
func (a answers) count(g *glance, p *evidence.Packet) {
	accepts := g.flags.Has(evidence.SYN | evidence.ACK)
	if !accepts && !(g.flags.Has(evidence.RST|evidence.ACK) && g.seq == 0) || p.Sighting != 0 {
		return
	}
	key := acceptor{g.src, p.Namespace}
	n := a[key]
	if n == nil {
		if len(a) == maxAnswers {
			return
		}
		n = &answer{}
		a[key] = n
	}
	if accepts == n.lastRefused && n.accepted+n.refused > 0 {
		n.turns++
	}
	if n.lastRefused = !accepts; !accepts {
		n.refused++
		return
	}
	if n.accepted++; n.first == 0 {
		n.first = p.Nanos
	}
	n.last = p.Nanos
}

// list hands the counts over.
func (a answers) list() (all []evidence.Answer) {
	for k, n := range a {
		w := evidence.Answer{From: k.addrPort(), Namespace: k.namespace, Accepted: n.accepted, Refused: n.refused, Alternations: n.turns}
		if n.accepted > 0 {
			w.FirstAccepted, w.LastAccepted = time.Unix(0, n.first), time.Unix(0, n.last)
		}
		all = append(all, w)
	}
	return all
}
