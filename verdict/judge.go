package verdict

import (
	"cmp"
	"fmt"
	"slices"

	"tcpcoroner/evidence"
)

// Judgement is what Judge concludes.
type Judgement struct {
	// Flows are the implicated ones, harmful before benign, then by time.
	Flows []evidence.Flow
	// FlowsTotal counts the window's flows, FlowsImplicated those with a RST or that
	// failed without one; they are lower bounds if the window's FlowsAtLeast is set.
	FlowsTotal      int
	FlowsImplicated int
	Verdict         evidence.Verdict
}

// Judge concludes from inc's window, kernel events, snapshots, counters, logs and
// firings. The window must have been filled by a Selection. Judge does not change
// inc, nor keep references to its packets.
func Judge(inc *evidence.Incident) Judgement {
	c := newCase(inc)
	c.eachStory(func(s *story) { c.stories = append(c.stories, s) })
	c.judgeStories()
	j := Judgement{}
	of := map[*story]int{}
	for _, s := range c.stories {
		if s.continues == nil && s.opinion.claim.Sentence != "" {
			of[s] = len(j.Flows)
			j.Flows = append(j.Flows, c.conclude(s))
		}
	}
	j.FlowsImplicated = max(inc.Window.ResetFlowCount-c.folded, len(j.Flows))
	j.FlowsTotal = max(inc.Window.FlowCount, j.FlowsImplicated)
	ids := order(j.Flows)
	for s, i := range of {
		if k, ok := of[s.leg]; ok {
			j.Flows[ids[i]].Related = fmt.Sprintf("f%d", ids[k]+1)
		}
	}
	j.Verdict = c.judgeIncident(j.Flows)
	j.Flows = j.Flows[:min(len(j.Flows), evidence.MaxFlows)]
	return j
}

// judgeStories goes through the steps of the judgement. Each looks at all stories
// before the next begins, for flows explain each other.
func (c *caseFile) judgeStories() {
	c.joinKernel()
	for _, s := range c.stories {
		s.opinion.cap = evidence.Proven
		c.judgeSender(s)
		c.weighLedger(s)
	}
	c.findContinuations()
	c.findTimers()
	c.findLegs()
	c.findCrowds()
	for _, s := range c.stories {
		c.judgeCause(s)
	}
	for _, s := range c.stories {
		c.followLeg(s)
	}
}

func (c *caseFile) conclude(s *story) evidence.Flow {
	flow := s.flow
	flow.Verdict = c.verdict(s)
	flow.Timeline = s.timeline()
	return flow
}

// order puts what hurts first; inside a class, what happened first. It names the
// flows, and tells for each old index the new one.
func order(flows []evidence.Flow) []int {
	at := make([]int, len(flows))
	for i := range at {
		at[i] = i
	}
	slices.SortStableFunc(at, func(i, k int) int {
		a, b := &flows[i], &flows[k]
		x, y := a.Verdict.Claim().Benign, b.Verdict.Claim().Benign
		if x != y {
			if x {
				return 1
			}
			return -1
		}
		return cmp.Or(when(a).Compare(when(b)), number(a)-number(b))
	})
	sorted, ids := make([]evidence.Flow, len(flows)), make([]int, len(flows))
	for n, i := range at {
		sorted[n], ids[i] = flows[i], n
		sorted[n].ID = fmt.Sprintf("f%d", n+1)
	}
	copy(flows, sorted)
	return ids
}
