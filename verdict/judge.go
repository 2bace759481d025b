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
	// FlowsTotal counts the window's flows, FlowsImplicated those with a RST.
	FlowsTotal      int
	FlowsImplicated int
	Verdict         evidence.Verdict
}

// Judge concludes from inc's window, snapshots, counters and firings. It does
// not change inc, nor keep references to its packets.
func Judge(inc *evidence.Incident) Judgement {
	flows := collect(&inc.Window)
	c := newCase(inc, flows)
	j := Judgement{FlowsTotal: len(flows)}
	for _, f := range flows {
		if f.resets == 0 {
			continue
		}
		j.FlowsImplicated++
		j.Flows = append(j.Flows, c.judgeFlow(f))
	}
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

func (c *caseFile) judgeFlow(f *track) evidence.Flow {
	s := c.tell(f)
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
