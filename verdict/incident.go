package verdict

import (
	"fmt"
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
			return c.conntrackVerdict(f)
		}
	}
	if len(flows) == 0 {
		return evidence.Unknown("no reset is in the window", "a longer window, or a recorder nearer to the reset")
	}
	return c.resetsVerdict(flows)
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

func listenerName(l *evidence.Socket) string {
	if l.Owner == nil {
		return fmt.Sprintf("the listener on %v (owner unknown)", l.Local)
	}
	return fmt.Sprintf("%s[%d] on %v", l.Owner.Comm, l.Owner.PID, l.Local)
}

// conntrackVerdict: a full table drops packets of new connections silently; it
// sends no RST itself (nf_conntrack_core.c: init_conntrack).
func (c *caseFile) conntrackVerdict(f evidence.Firing) evidence.Verdict {
	claim := evidence.Claim{
		Origin: evidence.OriginNone, Mechanism: evidence.MechanismConntrackFull, Layer: evidence.LayerNetwork,
		Confidence: evidence.Likely, Sentence: f.Reason,
		Settle: "who opens the connections: the top talkers of the table",
	}
	facts := []evidence.Finding{{Kind: evidence.KindFirewall, Source: "net/netfilter/nf_conntrack_core.c", Text: f.Expression + ": " + f.Reason}}
	if c.inc.At != nil && c.inc.At.Conntrack != nil {
		ct := c.inc.At.Conntrack
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
}

// resetsVerdict names the largest harmful group and tells the others beside it.
func (c *caseFile) resetsVerdict(flows []evidence.Flow) evidence.Verdict {
	groups := grouped(flows)
	first := groups[0]
	claim := first.claim
	claim.Sentence = summary(groups, len(flows)) + c.unjudged(len(flows))
	findings := append([]evidence.Finding{}, first.flows[0].Verdict.Findings()...)
	findings = append(findings, evidence.Finding{Kind: evidence.KindPacket, Packets: exemplars(first),
		Text: fmt.Sprintf("%s of %d with a RST are alike", plural(len(first.flows), "flow"), len(flows))})
	if claim.Confidence == evidence.Uncertain {
		return evidence.Unknown(claim.Sentence, claim.Settle, findings...)
	}
	v, _ := must(claim, findings...)
	return v
}

// unjudged tells that there are more flows with a RST than were looked into.
func (c *caseFile) unjudged(judged int) string {
	w := c.window
	switch {
	case w.ResetFlowCount <= judged:
		return ""
	case w.FlowsAtLeast:
		return fmt.Sprintf("; %d of at least %d flows with a RST were judged", judged, w.ResetFlowCount)
	}
	return fmt.Sprintf("; %d of %d flows with a RST were judged", judged, w.ResetFlowCount)
}

// grouped sorts flows by what their verdicts have in common, harmful first,
// then by number.
func grouped(flows []evidence.Flow) []group {
	type key struct {
		o      evidence.Origin
		m      evidence.Mechanism
		benign bool
	}
	at := map[key]int{}
	var all []group
	for i := range flows {
		c := flows[i].Verdict.Claim()
		k := key{c.Origin, c.Mechanism, c.Benign}
		if _, ok := at[k]; !ok {
			at[k] = len(all)
			all = append(all, group{claim: c})
		}
		g := &all[at[k]]
		g.flows = append(g.flows, &flows[i])
		g.claim.Confidence = weaker(g.claim.Confidence, c.Confidence)
	}
	slices.SortStableFunc(all, func(a, b group) int {
		if a.claim.Benign != b.claim.Benign {
			if a.claim.Benign {
				return 1
			}
			return -1
		}
		return len(b.flows) - len(a.flows)
	})
	return all
}

// weaker: a group is as sure as its least sure flow.
func weaker(a, b evidence.Confidence) evidence.Confidence {
	order := []evidence.Confidence{evidence.Uncertain, evidence.Possible, evidence.Likely, evidence.Proven}
	if slices.Index(order, a) < slices.Index(order, b) {
		return a
	}
	return b
}

func summary(groups []group, total int) string {
	g := groups[0]
	text := g.claim.Sentence
	if len(g.flows) > 1 {
		text = fmt.Sprintf("%d times: %s", len(g.flows), text)
	}
	if len(groups) == 1 {
		return text
	}
	var rest []string
	for _, o := range groups[1:] {
		c := o.claim
		label := fmt.Sprintf("%s/%s", c.Origin, c.Mechanism)
		if c.Benign {
			label = "harmless (" + label + ")"
		}
		rest = append(rest, fmt.Sprintf("%d %s", len(o.flows), label))
	}
	return fmt.Sprintf("%s; mixed: of %d flows with a RST also %s", text, total, strings.Join(rest, ", "))
}

func exemplars(g group) (packets []int) {
	for _, f := range g.flows[:min(5, len(g.flows))] {
		packets = append(packets, f.Reset.Packet)
	}
	return packets
}
