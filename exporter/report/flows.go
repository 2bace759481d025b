package report

import (
	"cmp"
	"fmt"
	"slices"

	"tcpcoroner/evidence"
)

// maxExemplars bounds the flows that a report shows, maxGroups their kinds.
const (
	maxExemplars = 10
	maxGroups    = 10
)

// group is the flows that are judged alike.
type group struct {
	claim evidence.Claim
	flows []*evidence.Flow
}

// kind is what makes two verdicts alike: sentences differ in their numbers.
type kind struct {
	origin     evidence.Origin
	mechanism  evidence.Mechanism
	layer      evidence.Layer
	confidence evidence.Confidence
	benign     bool
}

// grouped puts flows that are judged alike together: what harms before what is
// benign, many before few.
func grouped(flows []evidence.Flow) []*group {
	var all []*group
	by := map[kind]*group{}
	for i := range flows {
		c := flows[i].Verdict.Claim()
		k := kind{c.Origin, c.Mechanism, c.Layer, c.Confidence, c.Benign}
		if by[k] == nil {
			by[k] = &group{claim: c}
			all = append(all, by[k])
		}
		by[k].flows = append(by[k].flows, &flows[i])
	}
	slices.SortStableFunc(all, func(a, b *group) int {
		if a.claim.Benign != b.claim.Benign {
			if b.claim.Benign {
				return -1
			}
			return 1
		}
		return cmp.Compare(len(b.flows), len(a.flows))
	})
	return all
}

func flows(p *page) {
	if len(p.inc.Flows) == 0 {
		return
	}
	least := ""
	if p.inc.Window.FlowsAtLeast {
		least = "at least "
	}
	p.heading("FLOWS %s%s implicated of %s%s in the window", least, count(p.inc.FlowsImplicated), least, count(p.inc.FlowsTotal))
	groups := grouped(p.inc.Flows)
	for _, g := range groups[:min(len(groups), maxGroups)] {
		p.text("  ", "%s: %s %s", plural(len(g.flows), "flow"), g.claim.Sentence, stands(g.claim))
		exemplars(p, g.flows[:min(len(g.flows), max(1, maxExemplars/len(groups)))])
	}
	if more := len(groups) - maxGroups; more > 0 {
		p.text("  ", "and %s more", plural(more, "kind"))
	}
	if more := p.inc.FlowsImplicated - len(p.inc.Flows); more > 0 {
		p.text("  ", "%s%s more are in the capture only", least, count(more))
	}
}

func exemplars(p *page, flows []*evidence.Flow) {
	p.row("  FLOW", "CLIENT > SERVER", "RESET AT", "FROM", "OWNER")
	for _, f := range flows {
		at, from := "-", "no reset"
		if f.Reset != nil {
			at, from = p.clock(f.Reset.Time), sender(f)
		}
		p.row("  "+f.ID, f.String(), at, from, owner(f.Owner)+p.in(f))
	}
	p.flush()
}

// sender says which end's address the RST bears and which way it went.
func sender(f *evidence.Flow) string {
	side := "neither end"
	switch f.Reset.From {
	case f.Client:
		side = "client"
	case f.Server:
		side = "server"
	}
	return fmt.Sprintf("%s, %s", side, f.Reset.Direction)
}

// in says which namespace a flow is told from, if it is not the recorder's own.
func (p *page) in(f *evidence.Flow) string {
	if f.Namespace == 0 {
		return ""
	}
	return " in " + p.inc.Window.NamespaceLabel(f.Namespace)
}

// timeline is the story of the first exemplar of the flows that count most.
func timeline(p *page) {
	groups := grouped(p.inc.Flows)
	if len(groups) == 0 || len(groups[0].flows[0].Timeline) == 0 {
		return
	}
	f := groups[0].flows[0]
	p.heading("TIMELINE of %s, %s%s: client sent %s, server %s; begins at %s",
		f.ID, f, p.in(f), bytesOf(f.ClientBytes), bytesOf(f.ServerBytes), p.clock(f.First))
	if !f.InitiatorSeen {
		p.text("  ", "the handshake is not in the window; the lower port is taken for the server")
	}
	for _, s := range f.Timeline {
		mark := " "
		if f.Reset != nil && s.Packet == f.Reset.Packet {
			mark = "*"
		}
		p.row(fmt.Sprintf("%s %d", mark, s.Packet), s.Line)
	}
	p.flush()
}
