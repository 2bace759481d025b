package verdict

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"tcpcoroner/evidence"
)

// judgeIncident says in one sentence what happened. A trigger that measures a
// cause directly (listen queue, conntrack) speaks first; otherwise the resets do.
func (c *caseFile) judgeIncident(flows []evidence.Flow) evidence.Verdict {
	for _, f := range c.inc.Firings {
		switch f.Trigger {
		case "listen":
			return c.listenVerdict(f)
		case "conntrack":
			return c.conntrackVerdict(c.lastOf(f.Trigger))
		}
	}
	if v, ok := c.portsVerdict(); ok && !harmful(flows) {
		return v
	}
	if len(flows) == 0 {
		return evidence.Unknown("no reset is in the window", "a longer window, or a recorder nearer to the reset")
	}
	return c.resetsVerdict(flows)
}

func harmful(flows []evidence.Flow) bool {
	return slices.ContainsFunc(flows, func(f evidence.Flow) bool { return !f.Verdict.Claim().Benign })
}

// portsUsed is the share of its local ports to one destination from which a source
// counts as out of them.
const portsUsed = 0.95

// portsFull is who had all local ports to one destination in use when the host was
// looked at, and how many there are; nil if nobody had.
func (c *caseFile) portsFull() (*evidence.PortUse, int) {
	for _, snap := range []*evidence.Snapshot{c.inc.At, c.inc.After} {
		if snap == nil || snap.Implicated == nil || snap.Implicated.Ports == nil {
			continue
		}
		p := snap.Implicated.Ports
		for i := range p.Uses {
			if u, n := &p.Uses[i], p.Available(); n > 0 && float64(u.Used) >= portsUsed*float64(n) {
				return u, n
			}
		}
	}
	return nil, 0
}

// opener is whose the address is that opens connections: what its role says, what is
// known of the host, or at least a client's.
func (c *caseFile) opener(a netip.Addr, host evidence.Party, sure evidence.Confidence) (evidence.Party, evidence.Confidence) {
	if p, ok := c.role(a); ok {
		return p, evidence.Proven
	}
	if host == evidence.PartyUnknown {
		return evidence.Client, evidence.Possible
	}
	return host, sure
}

// portsFired is the firing of the trigger that counts them between two looks.
func (c *caseFile) portsFired() *evidence.Firing {
	for i := range c.inc.Firings {
		if f := &c.inc.Firings[i]; f.Trigger == "ports" && f.Value >= portsUsed && f.Reason != "" {
			return f
		}
	}
	return nil
}

// portsVerdict: this host has no local port left for a destination (connect(2):
// EADDRNOTAVAIL). Nothing of that is on the wire.
func (c *caseFile) portsVerdict() (evidence.Verdict, bool) {
	var facts []evidence.Finding
	where := ""
	party, pc := c.hostParty()
	if u, n := c.portsFull(); u != nil {
		party, pc = c.opener(u.Source, party, pc)
		where = fmt.Sprintf(" from %v to %v", u.Source, u.Destination)
		facts = append(facts, socketFact("%d of %d local ports%s are in use, %d of them in TIME_WAIT", u.Used, n, where, u.TimeWait))
	} else if f := c.portsFired(); f != nil {
		facts = append(facts, socketFact("%s", f.Reason))
	}
	lines := 0
	for i := range c.inc.Logs {
		if l := &c.inc.Logs[i]; l.Reason == evidence.ReasonNoLocalPort {
			if lines++; lines == 1 {
				facts = append(facts, logFact(l))
			}
		}
	}
	if len(facts) == 0 {
		return evidence.Verdict{}, false
	}
	return must(evidence.Claim{
		Origin: evidence.OriginNone, Mechanism: evidence.MechanismPortExhaustion, Layer: evidence.LayerTransport,
		Confidence: evidence.Proven, Party: party, PartyConfidence: pc, Cause: evidence.CausePortsExhausted, CauseConfidence: evidence.Proven,
		Sentence: "this host has no local port left" + where + ": new connections fail before a packet is sent",
		Settle:   "net.ipv4.ip_local_port_range and the sockets to the destination (ss -tan)", Advice: c.adviceOn(evidence.CausePortsExhausted),
	}, facts...)
}

// listenVerdict: the kernel counted overflows, and one listener's accept queue
// was at its limit: two kinds of evidence.
func (c *caseFile) listenVerdict(f evidence.Firing) evidence.Verdict {
	over, _ := c.moved("TcpExt.ListenOverflows")
	drops, _ := c.moved("TcpExt.ListenDrops")
	facts := []evidence.Finding{counterFact(srcOverflow, "%s; over the window ListenOverflows grew by %d, ListenDrops by %d",
		f.Expression, over, drops)}
	claim := evidence.Claim{
		Origin: evidence.OriginLocalKernel, Mechanism: evidence.MechanismQueueOverflow, Layer: evidence.LayerTransport,
		Confidence: evidence.Likely, Sentence: "this host's kernel turns connections away: the accept queue of a listener is full",
		Settle: "which listener: its accept queue had drained when it was looked at",
	}
	claim.Party, claim.PartyConfidence = c.listenParty(f)
	claim.Cause, claim.CauseConfidence, claim.Advice = evidence.CauseBacklogFull, evidence.Proven, c.adviceOn(evidence.CauseBacklogFull)
	for _, l := range f.Listeners {
		facts = append(facts, socketFact("%s has %d connections in its accept queue of %d", listenerName(&l), l.RecvQueue, l.SendQueue))
	}
	if len(f.Listeners) > 0 {
		l := &f.Listeners[0]
		claim.Confidence, claim.Settle = evidence.Proven, "the process' own state: why does it not accept?"
		claim.Sentence = fmt.Sprintf("%s does not accept fast enough: its accept queue is full (%d of %d) and this host's kernel turns connections away",
			listenerName(l), l.RecvQueue, l.SendQueue)
	}
	v, _ := must(claim, facts...)
	return v
}

// listenParty is whose the listeners are.
func (c *caseFile) listenParty(f evidence.Firing) (evidence.Party, evidence.Confidence) {
	for _, l := range f.Listeners {
		if p, ok := c.role(l.Local.Addr()); ok {
			return p, evidence.Proven
		}
	}
	return c.hostParty()
}

func listenerName(l *evidence.Socket) string {
	if l.Owner == nil {
		return fmt.Sprintf("the listener on %v (owner unknown)", l.Local)
	}
	return fmt.Sprintf("%s[%d] on %v", l.Owner.Comm, l.Owner.PID, l.Local)
}

// lastOf is the last firing of a trigger, which knows what has become of it.
func (c *caseFile) lastOf(trigger string) (last evidence.Firing) {
	for _, f := range c.inc.Firings {
		if f.Trigger == trigger {
			last = f
		}
	}
	return last
}

// conntrackVerdict: a full table drops packets of new connections silently; it
// sends no RST itself (nf_conntrack_core.c: init_conntrack).
func (c *caseFile) conntrackVerdict(f evidence.Firing) evidence.Verdict {
	claim := evidence.Claim{
		Origin: evidence.OriginNone, Mechanism: evidence.MechanismConntrackFull, Layer: evidence.LayerNetwork,
		Confidence: evidence.Likely, Sentence: f.Reason,
		Settle: "who opens the connections: the top talkers of the table",
	}
	claim.Party, claim.PartyConfidence = c.hostParty()
	claim.Cause, claim.CauseConfidence, claim.Advice = evidence.CauseConntrackFull, evidence.Proven, c.adviceOn(evidence.CauseConntrackFull)
	facts := []evidence.Finding{{Kind: evidence.KindFirewall, Source: "net/netfilter/nf_conntrack_core.c", Text: f.Expression + ": " + f.Reason}}
	if ct := c.fullestTable(); ct != nil {
		facts = append(facts, counterFact("/proc/sys/net/netfilter", "nf_conntrack_count %d of nf_conntrack_max %d (%.0f %%)",
			ct.Count, ct.Max, 100*ct.Usage()))
		if ct.Usage() >= 0.9 {
			claim.Confidence = evidence.Proven
		}
		for _, t := range ct.TopTalkers[:min(3, len(ct.TopTalkers))] {
			facts = append(facts, evidence.Finding{Kind: evidence.KindFirewall, Source: "ctnetlink dump",
				Text: fmt.Sprintf("%v holds %d entries to %v (%s)", t.Source, t.Entries, t.Destination, t.Protocol)})
		}
	}
	v, _ := must(claim, facts...)
	return v
}

// group is flows with one verdict.
type group struct {
	claim evidence.Claim
	flows []*evidence.Flow
	// causes are those flows that are no consequence of another leg.
	causes int
}

// resetsVerdict names the largest harmful group and tells the others beside it. A
// consequence on another leg does not outvote its cause.
func (c *caseFile) resetsVerdict(flows []evidence.Flow) evidence.Verdict {
	groups := grouped(flows)
	first := groups[0]
	claim := first.claim
	claim.Sentence = summary(groups, len(flows)) + c.unjudged(len(flows))
	claim.Process, claim.Decision, claim.Trigger = nil, nil, 0
	if claim.Benign { // what did harm elsewhere may not have passed here
		claim.PartyConfidence, claim.CauseConfidence = claim.PartyConfidence.AtMost(evidence.Likely), claim.CauseConfidence.AtMost(evidence.Likely)
	}
	findings := append([]evidence.Finding{}, first.flows[0].Verdict.Findings()...)
	findings = append(findings, evidence.Finding{Kind: evidence.KindPacket, Packets: exemplars(first),
		Text: fmt.Sprintf("%s of %d are alike", plural(len(first.flows), "flow"), len(flows))})
	findings = append(findings, c.pressure(claim)...)
	if claim.Confidence == evidence.Uncertain {
		return evidence.Unknown(claim.Sentence, claim.Settle, findings...)
	}
	v, _ := must(claim, findings...)
	return v
}

// stalled is the share of time, in percent, from which a stall is worth telling.
const stalled = 20

// pressure tells of stalls on this host while something here was too slow. It is an
// annotation and never a verdict (Documentation/accounting/psi.rst).
func (c *caseFile) pressure(claim evidence.Claim) (facts []evidence.Finding) {
	if claim.Cause != evidence.CauseTimeout && claim.Cause != evidence.CauseBacklogFull || c.inc.At == nil ||
		c.inc.At.Implicated == nil || c.inc.At.Implicated.Load == nil {
		return nil
	}
	for _, name := range []string{"cpu", "io", "memory"} {
		if p := c.inc.At.Implicated.Load.Pressure[name]; p.Some.Avg10 >= stalled {
			facts = append(facts, evidence.Finding{Kind: evidence.KindProcess, Source: "Documentation/accounting/psi.rst",
				Text: fmt.Sprintf("tasks of this host waited for %s during %.0f %% of the last 10 s", name, p.Some.Avg10)})
		}
	}
	return facts
}

// unjudged tells that there are more flows with a RST than were looked into.
func (c *caseFile) unjudged(judged int) string {
	all := c.window.ResetFlowCount - c.folded
	switch {
	case all <= judged:
		return ""
	case c.window.FlowsAtLeast:
		return fmt.Sprintf("; %d of at least %d flows with a RST were judged", judged, all)
	}
	return fmt.Sprintf("; %d of %d flows with a RST were judged", judged, all)
}

// grouped sorts flows by what their verdicts have in common, harmful first,
// then by number.
func grouped(flows []evidence.Flow) []group {
	type key struct {
		o      evidence.Origin
		m      evidence.Mechanism
		party  evidence.Party
		cause  evidence.Cause
		benign bool
	}
	at := map[key]int{}
	var all []group
	for i := range flows {
		c := flows[i].Verdict.Claim()
		k := key{c.Origin, c.Mechanism, c.Party, c.Cause, c.Benign}
		if _, ok := at[k]; !ok {
			at[k] = len(all)
			all = append(all, group{claim: c})
		}
		g := &all[at[k]]
		g.flows = append(g.flows, &flows[i])
		if flows[i].Related == "" {
			g.causes++
		}
		g.claim.Confidence = weaker(g.claim.Confidence, c.Confidence)
		g.claim.PartyConfidence = weaker(g.claim.PartyConfidence, c.PartyConfidence)
		g.claim.CauseConfidence = weaker(g.claim.CauseConfidence, c.CauseConfidence)
	}
	slices.SortStableFunc(all, func(a, b group) int {
		if a.claim.Benign != b.claim.Benign {
			if a.claim.Benign {
				return 1
			}
			return -1
		}
		if known(&a.claim) != known(&b.claim) && min(a.causes, b.causes) > 0 {
			return known(&b.claim) - known(&a.claim)
		}
		return cmp.Or(b.causes-a.causes, len(b.flows)-len(a.flows))
	})
	return all
}

// known is 1 if the claim names somebody.
func known(c *evidence.Claim) int {
	if c.Confidence == evidence.Uncertain {
		return 0
	}
	return 1
}

// weaker: a group is as sure as its least sure flow.
func weaker(a, b evidence.Confidence) evidence.Confidence {
	order := []evidence.Confidence{evidence.Uncertain, evidence.Possible, evidence.Likely, evidence.Proven}
	if slices.Index(order, a) < slices.Index(order, b) {
		return a
	}
	return b
}

// summary tells the first group in its own words, and counts the others. What is
// only a consequence on a proxy's other leg does not make an incident mixed.
func summary(groups []group, total int) string {
	g := groups[0]
	text := g.claim.Sentence
	if len(g.flows) > 1 {
		text = fmt.Sprintf("%d times: %s", len(g.flows), text)
	}
	var rest []string
	following := 0
	for _, o := range groups[1:] {
		if o.causes == 0 {
			following += len(o.flows)
			continue
		}
		c := o.claim
		label := fmt.Sprintf("%s/%s", c.Origin, c.Mechanism)
		if c.Benign {
			label = "harmless (" + label + ")"
		}
		rest = append(rest, fmt.Sprintf("%d %s", len(o.flows), label))
	}
	if following > 0 {
		text += fmt.Sprintf("; %s ended in consequence on the other leg", plural(following, "flow"))
	}
	if len(rest) > 0 {
		text += fmt.Sprintf("; mixed: of %d flows also %s", total, strings.Join(rest, ", "))
	}
	return text
}

func exemplars(g group) (packets []int) {
	for _, f := range g.flows[:min(5, len(g.flows))] {
		if f.Reset != nil {
			packets = append(packets, f.Reset.Packet)
		}
	}
	return packets
}
