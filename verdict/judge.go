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
	// FlowsTotal counts the window's flows, FlowsImplicated those with a RST; they
	// are lower bounds if the window's FlowsAtLeast is set.
	FlowsTotal      int
	FlowsImplicated int
	Verdict         evidence.Verdict
}

// Judge concludes from inc's window, snapshots, counters and firings. The window
// must have been filled by a Selection. Judge does not change inc, nor keep
// references to its packets.
func Judge(inc *evidence.Incident) Judgement {
	c := newCase(inc)
	j := Judgement{}
	c.eachStory(func(s *story) { j.Flows = append(j.Flows, c.judgeFlow(s)) })
	j.FlowsImplicated = max(inc.Window.ResetFlowCount, len(j.Flows))
	j.FlowsTotal = max(inc.Window.FlowCount, j.FlowsImplicated)
	order(j.Flows)
	j.Verdict = c.judgeIncident(j.Flows)
	j.Flows = j.Flows[:min(len(j.Flows), evidence.MaxFlows)]
	for i := range j.Flows {
		j.Flows[i].ID = fmt.Sprintf("f%d", i+1)
	}
	return j
}

// order puts what hurts first; inside a class, what happened first.
func order(flows []evidence.Flow) {
	slices.SortStableFunc(flows, func(a, b evidence.Flow) int {
		x, y := a.Verdict.Claim().Benign, b.Verdict.Claim().Benign
		if x != y {
			if x {
				return 1
			}
			return -1
		}
		return cmp.Or(a.Reset.Time.Compare(b.Reset.Time), a.Reset.Packet-b.Reset.Packet)
	})
}

// rule is one way to explain a RST. It returns false if it does not apply.
type rule func(*caseFile, *story) (evidence.Verdict, bool)

// rules are tried in order; the first that applies decides. Doubt comes first:
// a forged or unattributable RST must not reach the rules that name a party.
var rules = []rule{
	unknownDirection,
	forwarded,
	inconsistentSender,
	notFromTCP,
	refused,
	handshakeOverflow,
	lateData,
	afterFIN,
	noSocket,
	activeAbort,
}

func (c *caseFile) judgeFlow(s *story) evidence.Flow {
	flow := s.flow
	flow.Verdict = unexplained(c, s)
	for _, r := range rules {
		if v, ok := r(c, s); ok {
			flow.Verdict = v
			break
		}
	}
	flow.Timeline = s.timeline()
	return flow
}
