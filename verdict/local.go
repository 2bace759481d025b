package verdict

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"tcpcoroner/evidence"
)

// This file holds what this host knows of a RST that it sent itself: counters,
// sockets and the packet filter.

// counted is the finding that this host's stack counted its own RSTs.
func (c *caseFile) counted(s *story) (evidence.Finding, bool) {
	out, known := c.movedFor(s, "Tcp.OutRsts")
	if !known || c.sent == 0 || out < uint64(c.sent+c.unsure) {
		return evidence.Finding{}, false
	}
	return counterFact(srcOutRsts, "OutRsts grew by %d; %s left this host: the TCP stack sent them all",
		out, plural(c.sent, "RST")), true
}

// countedHere adds what the counters and listeners say of a RST that the kernel is
// silent about, and proves what they agree on.
func (c *caseFile) countedHere(s *story, m *making) {
	o := &s.opinion
	f, ok := c.counted(s)
	if ok {
		o.add(f)
		o.exclude("a packet filter: TCP counted all resets that left")
	}
	switch m.mechanism.Family() {
	case evidence.MechanismActiveAbort:
		c.abortsCounted(s, m)
	case evidence.MechanismRefused:
		c.listenersKnown(s, ok)
	case evidence.MechanismQueueOverflow:
		c.overflowsCounted(s, m, ok)
	case evidence.MechanismNoSocket:
		if o.claim.Confidence = evidence.Possible; ok {
			o.claim.Confidence = evidence.Proven
		}
	}
}

// abortsCounted tells how sockets were aborted, by the counters that only one way
// moves: TCPAbortOnClose for close with unread data, TCPAbortOnData for SO_LINGER 0,
// TCPAbortOnTimeout for timers, TCPAbortOnMemory for too many orphans and the like
// (net/ipv4/tcp.c, tcp_timer.c).
func (c *caseFile) abortsCounted(s *story, m *making) {
	o := &s.opinion
	onClose, known := c.movedFor(s, "TcpExt.TCPAbortOnClose")
	onData, _ := c.movedFor(s, "TcpExt.TCPAbortOnData")
	byTimer, _ := c.movedFor(s, "TcpExt.TCPAbortOnTimeout")
	onMemory, _ := c.movedFor(s, "TcpExt.TCPAbortOnMemory")
	known = known || onData > 0
	if byTimer > 0 {
		o.claim.Origin = evidence.OriginLocalHost
		o.add(counterFact(srcClose, "TCPAbortOnTimeout grew by %d: timers aborted sockets too", byTimer))
	}
	if onMemory > 0 {
		o.claim.Origin = evidence.OriginLocalHost
		r := reasons["TCP_ABORT_ON_MEMORY"]
		o.add(counterFact(srcClose, "TCPAbortOnMemory grew by %d: %s", onMemory, r.text))
		if onMemory >= uint64(c.sent+c.unsure) {
			o.claim.Origin, o.claim.Mechanism, o.claim.Layer, m.text = r.origin, r.mechanism, layerOf(r.mechanism), "aborted the connection: "+r.text
		}
	}
	if !known || onClose+onData == 0 || byTimer+onMemory > 0 {
		return
	}
	o.add(counterFact(srcClose, "TCPAbortOnClose grew by %d, TCPAbortOnData by %d, TCPAbortOnTimeout not: processes closed sockets abortively", onClose, onData))
	// No process closed anything for the self-test's resets.
	if onClose+onData < uint64(c.sent+c.unsure-c.window.OwnResets) {
		return
	}
	o.claim.Confidence = evidence.Proven
	switch {
	case onData == 0:
		o.claim.Mechanism, m.text = evidence.MechanismUnread, reasons["TCP_ABORT_ON_CLOSE"].text
	case onClose == 0:
		o.claim.Mechanism, m.text = evidence.MechanismLinger, "closed the socket with SO_LINGER 0"
	}
}

// listenersKnown: is there a listener?
func (c *caseFile) listenersKnown(s *story, counted bool) {
	o := &s.opinion
	l, known := c.listener(s.rst.Src)
	if !s.here() {
		known = false // the listeners of another namespace are not known
	}
	switch {
	case known && l != nil && o.claim.Mechanism != evidence.MechanismRefusedRateLimit:
		f := socketFact("a socket listens on %v at the snapshot: it came later, or a filter refused", l.Local)
		f.Against = true
		o.add(f)
		o.claim.Settle = settleFirewall
	case known && l == nil && o.claim.Mechanism != evidence.MechanismRefusedFilter:
		o.claim.Mechanism, o.claim.Confidence = evidence.MechanismRefusedListener, evidence.Proven
		o.add(socketFact("no socket listens on port %d", s.rst.Src.Port()))
	}
	if !counted {
		o.claim.Confidence, o.claim.Settle = evidence.Possible, settleFirewall // a filter's reject looks the same
	}
}

func (c *caseFile) overflowsCounted(s *story, m *making, counted bool) {
	o := &s.opinion
	over, known := c.movedFor(s, "TcpExt.ListenOverflows")
	switch {
	case known && over > 0:
		o.claim.Confidence = evidence.Likely
		o.add(counterFact(srcOverflow, "ListenOverflows grew by %d", over))
	case known:
		o.add(counterFact(srcOverflow, "ListenOverflows did not grow"))
		o.exclude("a full accept queue: ListenOverflows did not grow")
		o.doubted = !counted // a filter does the same
		o.claim.Mechanism, m.text = evidence.MechanismNoSocket, "had no socket for the flow and answered with RST"
		o.claim.Confidence = evidence.Likely
	}
}

// notTCP is what speaks for a RST that left this host and that its TCP did not send.
type notTCP struct {
	facts []evidence.Finding
	// none tells that the kernel described or counted no RST that it could be;
	// limited that the header or the port's other answers are a filter's.
	none, limited bool
}

// notTCP gathers that: every RST that TCP sends is counted in OutRsts and, where the
// kernel tells, described.
func (c *caseFile) notTCP(s *story, m making) notTCP {
	n := notTCP{limited: m.mechanism == evidence.MechanismRefusedRateLimit || m.mechanism == evidence.MechanismRefusedFilter}
	if _, counted := c.counted(s); counted {
		return notTCP{}
	}
	out, known := c.movedFor(s, "Tcp.OutRsts")
	if known && out < uint64(c.sent) && c.window.Lost() == 0 {
		f := counterFact(srcOutRsts, "OutRsts grew by %d while %s left this host", out, plural(c.sent, "RST"))
		if n.none = out == 0; !n.none {
			f.Text += "; which of them TCP sent is undecided"
		}
		n.facts = append(n.facts, f)
	}
	if c.silentAbout(s) {
		n.none = true
		n.facts = append(n.facts, evidence.Finding{Kind: evidence.KindKernel, Source: "tcp:tcp_send_reset",
			Text: "the kernel describes every RST that TCP sends, and did not describe this one"})
	}
	return n
}

// byFilter: this host sent the RST, and its TCP did not.
func byFilter(c *caseFile, s *story) bool {
	if !s.local() {
		return false
	}
	m := c.making(s)
	n := c.notTCP(s, m)
	if len(n.facts) == 0 && !n.limited {
		return false
	}
	confidence := evidence.Possible
	drop := c.dropped(s)
	switch {
	case drop != nil:
		n.facts = append(n.facts, evidence.Finding{Kind: evidence.KindKernel, Source: "net/netfilter/core.c",
			Text: fmt.Sprintf("the packet filter threw the segment away that the RST answers (%s in %s)", drop.Reason, drop.Location)})
		confidence = evidence.Proven
	case !s.filterLike() || s.active():
	case n.none && c.rejectRule(s) != nil:
		confidence = evidence.Proven
	case n.none || n.limited:
		confidence = evidence.Likely
	}
	if confidence == evidence.Possible {
		return c.undecidedHere(s, n.facts)
	}
	s.opinion.add(n.facts...)
	c.filtered(s, m, packetFact("net/ipv4/netfilter/nf_reject_ipv4.c",
		"the header is that of a packet filter's RST: default TTL, no IP ID, window 0, traffic class 0", s.rst), confidence)
	s.opinion.add(m.facts...)
	return true
}

// undecidedHere: fewer RSTs were counted than left, so no single one can be laid on
// the stack.
func (c *caseFile) undecidedHere(s *story, facts []evidence.Finding) bool {
	o := &s.opinion
	o.doubted = true
	o.add(facts...)
	o.claim.Sentence = fmt.Sprintf("a RST to %v left this host that its TCP stack may not have sent: firewall or raw socket", s.rst.Dst)
	o.claim.Settle = settleFirewall
	return true
}

// filtered concludes that this host's packet filter made the RST.
func (c *caseFile) filtered(s *story, m making, f evidence.Finding, confidence evidence.Confidence) {
	o := &s.opinion
	o.add(f)
	o.claim.Origin, o.claim.Layer, o.claim.Confidence = evidence.OriginLocalNetfilter, evidence.LayerNetwork, confidence
	if o.claim.Mechanism = evidence.MechanismRefusedFilter; m.mechanism == evidence.MechanismRefusedRateLimit {
		o.claim.Mechanism = m.mechanism
	}
	o.claim.Trigger, o.claim.Settle = m.trigger, settleFirewall
	o.claim.Sentence = fmt.Sprintf("a packet filter rule of this host%s refused %v with RST", s.where, s.rst.Dst)
	if r := c.rejectRule(s); r != nil {
		o.add(ruleFact(r))
		o.claim.Sentence += fmt.Sprintf(": %s (handle %d)", r.Text, r.Handle)
		if c.hook(r) == "forward" {
			s.flow.Local = netip.AddrPort{} // it refused what this host routes
		}
		if strings.Contains(r.Text, "limit rate") {
			o.claim.Mechanism = evidence.MechanismRefusedRateLimit
		}
	}
}

func ruleFact(r *evidence.Rule) evidence.Finding {
	return evidence.Finding{Kind: evidence.KindRule, Source: "nft(8)",
		Text: fmt.Sprintf("rule handle %d in %s %s %s matches: %s", r.Handle, r.Family, r.Table, r.Chain, r.Text)}
}

// rejectRule finds a rule that answers with RST and may have matched what the RST
// answers.
func (c *caseFile) rejectRule(s *story) *evidence.Rule {
	return c.matching(s, s.rst.Dst, s.rst.Src, (*evidence.Rule).Resets)
}

// matching finds a rule that may have matched a segment: its ports fit and its
// counter, if it has one, grew or is not 0.
func (c *caseFile) matching(s *story, from, to netip.AddrPort, does func(*evidence.Rule) bool) *evidence.Rule {
	if !s.here() {
		return nil
	}
	for _, snap := range []*evidence.Snapshot{c.inc.After, c.inc.At} {
		if snap == nil || snap.Implicated == nil || snap.Implicated.Rules == nil {
			continue
		}
		rules := snap.Implicated.Rules.Rules
		for i := range rules {
			r := &rules[i]
			if does(r) && (!r.Counted || r.Packets > 0) && portFits(r.Text, "dport", to.Port()) && portFits(r.Text, "sport", from.Port()) {
				return r
			}
		}
	}
	return nil
}

// hook is where packets enter the rule's base chain; empty if it is in none.
func (c *caseFile) hook(r *evidence.Rule) string {
	for _, snap := range []*evidence.Snapshot{c.inc.After, c.inc.At} {
		if snap == nil || snap.Implicated == nil || snap.Implicated.Rules == nil {
			continue
		}
		for _, ch := range snap.Implicated.Rules.Chains {
			if ch.Family == r.Family && ch.Table == r.Table && ch.Name == r.Chain {
				return ch.Hook
			}
		}
	}
	return ""
}

// portFits tells whether a rule's text can match a port: it names the port, a range
// or a set with it, or none at all. What cannot be read may match.
func portFits(rule, field string, port uint16) bool {
	_, rest, found := strings.Cut(rule, field+" ")
	if !found {
		return true
	}
	if set, ok := strings.CutPrefix(rest, "{"); ok {
		rest, _, _ = strings.Cut(set, "}")
	} else {
		rest, _, _ = strings.Cut(rest, " ")
	}
	for part := range strings.SplitSeq(rest, ",") {
		low, high, isRange := strings.Cut(strings.TrimSpace(part), "-")
		a, err := strconv.ParseUint(low, 10, 16)
		if err != nil {
			return true // a name, a set by reference, "!=": it may match
		}
		b := a
		if isRange {
			if b, err = strconv.ParseUint(high, 10, 16); err != nil {
				return true
			}
		}
		if uint64(port) >= a && uint64(port) <= b {
			return true
		}
	}
	return false
}
