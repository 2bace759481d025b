package verdict

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"tcpcoroner/evidence"
)

// This file finds timers: silences before the end, or ages at the end, that repeat.

// timerKey is whose timer it may be: a host's, for a port.
type timerKey struct {
	closer netip.Addr
	port   uint16
}

// The bounds of the search. Below leastTimer a repeated value says more of how fast
// a program is than of a timer.
const (
	leastTimer    = 400 * time.Millisecond
	timerSpread   = 0.02
	timerRepeats  = 3
	timerLateness = 150 * time.Millisecond
)

// findTimers counts for each flow the flows that ended after the same silence, or
// else at the same age.
func (c *caseFile) findTimers() {
	groups := map[timerKey][]*story{}
	for _, s := range c.stories {
		if s.closing.at != nil && s.closing.age >= leastTimer {
			k := timerKey{s.closing.by.addr.Addr(), s.flow.Server.Port()}
			groups[k] = append(groups[k], s)
		}
	}
	for _, g := range groups {
		for _, s := range g {
			s.timer = s.closing.idle
			s.repeated = alike(g, s.timer, func(o *story) time.Duration { return o.closing.idle })
			ages := alike(g, s.closing.age, func(o *story) time.Duration { return o.closing.age })
			if s.repeated < timerRepeats && ages >= timerRepeats {
				s.timer, s.repeated = s.closing.age, ages
			}
		}
	}
}

// alike counts the stories whose value is within the spread of d.
func alike(all []*story, d time.Duration, value func(*story) time.Duration) (n int) {
	if d < leastTimer {
		return 0
	}
	for _, o := range all {
		if (value(o) - d).Abs() <= time.Duration(timerSpread*float64(d)) {
			n++
		}
	}
	return n
}

// knobs name settings that commonly hold a time.
var knobs = map[time.Duration]string{
	5 * time.Second:      "keepAliveTimeout (Node.js), KeepAliveTimeout (Apache httpd)",
	15 * time.Second:     "idle timeout of many HTTP servers",
	30 * time.Second:     "timeout client/server (HAProxy), request timeouts",
	60 * time.Second:     "proxy_read_timeout, client_body_timeout (nginx), idle timeout (AWS ALB)",
	75 * time.Second:     "keepalive_timeout (nginx)",
	240 * time.Second:    "idle timeout (Azure load balancer)",
	350 * time.Second:    "idle timeout (AWS network load balancer, NAT gateway)",
	600 * time.Second:    "backend keepalive (Google Cloud load balancer)",
	900 * time.Second:    "ip_vs timeout",
	3600 * time.Second:   "idle timeout (Envoy)",
	7200 * time.Second:   "net.ipv4.tcp_keepalive_time",
	432000 * time.Second: "net.netfilter.nf_conntrack_tcp_timeout_established",
}

// rounded is the value that a person would have set for a timer that fired after d:
// half seconds up to ten seconds, whole ones above, and what the table holds. 0 if
// there is none; timers fire late, never early.
func rounded(d time.Duration) time.Duration {
	late := min(time.Duration(timerSpread*float64(d)), timerLateness)
	step := 500 * time.Millisecond
	if d > 10*time.Second {
		step = time.Second
	}
	for v := range knobs {
		if d >= v-time.Millisecond && d-v <= late {
			return v
		}
	}
	if v := d.Truncate(step); v > 0 && d-v <= late {
		return v
	}
	if v := d.Round(step); v > 0 && v-d <= time.Millisecond {
		return v
	}
	return 0
}

// byTimer: the end came after a time that somebody configured. Once it may be
// chance; a round value that repeats is none.
func byTimer(c *caseFile, s *story) bool {
	d := &s.closing
	if d.at == nil || s.timer < leastTimer {
		return false
	}
	v := rounded(s.timer)
	confidence := evidence.Possible
	switch {
	case v > 0 && s.repeated >= timerRepeats:
		confidence = evidence.Likely
	case v >= time.Second:
	case s.repeated >= timerRepeats && s.timer >= time.Second:
		v = s.timer
	default:
		return false
	}
	o := &s.opinion
	what := "silence"
	if s.timer != d.idle {
		what = "age"
	}
	o.add(packetFact("", fmt.Sprintf("%v closed after %s of %s; %s ended after the same time within 2 %%",
		d.by.addr, seconds(s.timer), what, plural(s.repeated, "flow")), s.lastData(d.at.Time), d.at))
	text := fmt.Sprintf("after %s of %s: a timer of %s", seconds(s.timer), what, seconds(v))
	if k := knobs[v]; k != "" {
		text += " (such as " + k + ")"
	}
	c.decided(s, text, evidence.CauseTimeout, confidence)
	c.perhapsStopped(s)
	return true
}

// perhapsStopped: a server that gave up on a client in the middle of its words cannot
// see whether the client stopped or its segments did, of which the large ones vanish
// first (RFC 2923 section 2.1).
func (c *caseFile) perhapsStopped(s *story) {
	d := &s.closing
	if d.by.addr != s.flow.Server || d.waiting || s.flow.ClientBytes == 0 || s.flow.ServerBytes > 0 || s.flow.Local != s.flow.Server {
		return
	}
	for _, n := range s.segments {
		if n.Src == s.flow.Client && n.PayloadBytes >= fullSize {
			return
		}
	}
	s.opinion.claim.Settle = fmt.Sprintf("a capture on the host of %v: if it went on sending, its segments were lost on the path (a smaller MTU without ICMP, if only large ones were)", s.flow.Client.Addr())
}

// decided blames the side that closed first, and notes its decision.
func (c *caseFile) decided(s *story, how string, cause evidence.Cause, confidence evidence.Confidence) {
	o, d := &s.opinion, &s.closing
	party, pc := c.party(s, d.by.addr)
	verb := "reset"
	if d.at.Flags.Has(evidence.FIN) && d.at != s.rst {
		verb = "closed with FIN"
	}
	text := strings.TrimSpace(fmt.Sprintf("%s %s %s", c.partyName(s, d.by.addr), verb, how))
	because, aside := text, false
	if d.at != s.rst {
		c.decision(s, party, text)
	} else if o.claim.Origin != evidence.OriginForwarded { // otherwise the sentence is about this host
		because, aside = how, true
	}
	if c.mayBeCarried(s, party, cause) {
		pc = pc.AtMost(evidence.Likely)
	}
	o.blame(party, pc, cause, confidence, because)
	o.aside = aside
}

// mayBeCarried tells whether who closed first may have had a reason that is not
// seen: a proxy may pass on the end of another leg, and who waited in vain may have
// waited for what the path lost.
func (c *caseFile) mayBeCarried(s *story, party evidence.Party, cause evidence.Cause) bool {
	return cause == evidence.CauseTimeout ||
		cause == evidence.CauseAppAbort && (party == evidence.Proxy || s.closing.idle >= leastTimer)
}

// decision notes what came before the RST; a RST that was itself the decision has
// none.
func (c *caseFile) decision(s *story, party evidence.Party, text string) {
	d := &s.closing
	if d.at == nil || d.at == s.rst {
		return
	}
	by := string(party)
	if party == evidence.PartyUnknown {
		by = d.by.addr.String()
	}
	s.opinion.claim.Decision = &evidence.Decision{By: by, Time: d.at.Time, Packet: d.at.number, Text: text}
}
