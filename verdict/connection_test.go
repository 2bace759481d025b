package verdict

import (
	"testing"

	"tcpcoroner/evidence"
)

// Each connection has a slot of its own, however many there are, and beyond the bounds
// the numbers say that they are lower ones.
func TestTallies(t *testing.T) {
	for _, c := range []struct {
		name                       string
		plain, reset               int
		flows, resets              int
		atLeast                    bool
		largestIndex, largestSlots int
	}{
		{"none", 0, 0, 0, 0, false, 0, fewTallySlots},
		{"few", fewTallySlots / 2, 0, fewTallySlots / 2, 0, false, fewTallySlots, fewTallySlots},
		{"the index grows", fewTallySlots/2 + 1, 0, fewTallySlots/2 + 1, 0, false, tallySlots, fewTallySlots},
		{"the slots grow", fewTallySlots, 1, fewTallySlots + 1, 1, false, tallySlots, 2 * fewTallySlots},
		{"as many as are counted", maxCounted, 0, maxCounted, 0, false, tallySlots, 2 * maxCounted},
		{"too many", maxCounted + 9, 0, maxCounted, 0, true, tallySlots, 2 * maxCounted},
		{"a reset finds room", maxCounted + 9, 7, maxCounted + 7, 7, true, tallySlots, 2 * maxCounted},
		{"too many resets", maxCounted, maxCountedReset, maxCountedReset, maxCountedReset - maxCounted, true, tallySlots, 2 * maxCountedReset},
	} {
		tallied := tallies{slots: make([]tallySlot, fewTallySlots)}
		for range 2 { // the second time all are known
			for i := range c.plain + c.reset {
				g := glance{flags: evidence.SYN, id: flowID{aLow: uint64(i) << 7, ports: 443}}
				if i >= c.plain {
					g.flags = evidence.RST
				}
				tallied.count(&g, evidence.Received, int64(i))
			}
		}
		if tallied.flows != c.flows || tallied.resets != c.resets || tallied.atLeast != c.atLeast {
			t.Errorf("%s: %d flows, %d with a RST, at least: %v", c.name, tallied.flows, tallied.resets, tallied.atLeast)
		}
		if n, m := len(tallied.index), len(tallied.slots); n > c.largestIndex || m > c.largestSlots {
			t.Errorf("%s: an index of %d for %d slots", c.name, n, m)
		}
		seen := map[uint64]bool{}
		tallied.each(func(s *tallySlot) bool {
			seen[s.id.aLow] = true
			return true
		})
		if len(seen) != c.flows {
			t.Errorf("%s: %d connections have a slot", c.name, len(seen))
		}
		first := 0
		tallied.each(func(*tallySlot) bool { first++; return first < 5 })
		if first != min(5, c.flows) {
			t.Errorf("%s: %d visits, to stop after five", c.name, first)
		}
	}
}
