package verdict

import (
	"fmt"
	"net/netip"
	"time"

	"tcpcoroner/evidence"
)

// This file looks at what many flows have in common.

// scanPorts is how many closed ports a source tries before it counts as a scanner.
const scanPorts = 10

// checkKey is who checks whom.
type checkKey struct {
	from netip.Addr
	to   netip.AddrPort
}

// findCrowds counts closed ports by source, health checks, and aborts by acceptor.
func (c *caseFile) findCrowds() {
	c.scanned, c.checks = map[netip.Addr]int{}, map[checkKey]int{}
	c.deaf = map[netip.AddrPort]int{}
	c.aborts = map[netip.AddrPort][]time.Time{}
	seen := map[checkKey]bool{}
	for _, s := range c.stories {
		k := checkKey{s.flow.Client.Addr(), s.flow.Server}
		switch {
		case s.answersSYN():
			if !seen[k] {
				seen[k] = true
				c.scanned[k.from]++
			}
		case s.rst == nil && !s.sender.synced && s.opinion.claim.Mechanism == evidence.MechanismQueueOverflow:
			c.deaf[s.flow.Server]++
		case s.speechless():
			c.checks[k]++
		default:
			if t, ok := s.vacated(); ok {
				c.aborts[s.flow.Server] = append(c.aborts[s.flow.Server], t)
			}
		}
	}
}

// vacated is when the server's end was closed, by RST, or by FIN after which the
// client's next data met no socket; ok is false if it was not, or a proxy did that.
func (s *story) vacated() (t time.Time, ok bool) {
	switch d := &s.closing; {
	case s.rst == nil || s.rst.Src != s.flow.Server || s.leg != nil:
	case s.active():
		return s.rst.Time, true
	case s.passive() && d.at != nil && d.by.addr == s.flow.Server:
		return d.at.Time, true
	}
	return t, false
}

// notAccepted: a server that leaves requests without an answer while it leaves other
// SYNs without one does not accept: its kernel does both when the queue is full.
func notAccepted(c *caseFile, s *story) bool {
	if n := c.deaf[s.flow.Server]; n > 0 && s.forsaken() && s.closing.by.addr == s.flow.Client {
		p, pc := c.party(s, s.flow.Server)
		s.opinion.add(packetFact(srcOverflow, fmt.Sprintf("%v left %s of other clients without an answer too", s.flow.Server, plural(n, "SYN")), s.closing.at))
		s.opinion.claim.Mechanism, s.opinion.claim.MechanismConfidence = evidence.MechanismQueueOverflow, evidence.Possible
		s.opinion.blame(p, pc.AtMost(evidence.Likely), evidence.CauseBacklogFull, evidence.Likely, "it waited in the accept queue, which is full")
		return true
	}
	return false
}

// The bounds of a crash: how many connections end at once, and how soon after
// that the port refuses.
const (
	crashFlows  = 3
	crashWithin = 200 * time.Millisecond
)

// crashed: an acceptor's connections ended all at once, and then its port refused.
// The kernel closes what a process leaves behind with FIN, and what it had not read
// with RST (net/ipv4/tcp.c, __tcp_close).
func crashed(c *caseFile, s *story) bool {
	at, ok := s.vacated()
	if !ok {
		return false
	}
	together := 0
	for _, t := range c.aborts[s.rst.Src] {
		if t.Sub(at).Abs() <= crashWithin {
			together++
		}
	}
	a := c.answers[acceptorID{s.rst.Src, s.excerpt.Namespace}]
	if together < crashFlows || a == nil || a.Refused == 0 || a.Alternations >= alternations {
		return false
	}
	o := &s.opinion
	o.add(packetFact("", fmt.Sprintf("%d connections to %v were ended within %s, and it refused %d others in the window",
		together, s.rst.Src, seconds(crashWithin), a.Refused), s.closing.at, s.rst))
	if s.event == nil && s.active() {
		o.claim.Mechanism, o.claim.MechanismConfidence = evidence.MechanismProcessExit, evidence.Likely.AtMost(o.claim.Confidence)
	}
	p, pc := c.party(s, s.rst.Src)
	o.blame(p, pc.AtMost(evidence.Likely), evidence.CauseProcessDown, evidence.Likely, "the process behind the port died or was stopped: all its connections ended at once and then nothing listened")
	return true
}
