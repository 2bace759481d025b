package recorder

import (
	"slices"
	"time"

	"tcpcoroner/evidence"
)

// gaps is a bounded list of gaps, oldest first. When it is full the two oldest
// become one: a gap may grow wider than it was, but none is forgotten.
type gaps []evidence.Gap

const maxGaps = 256

// add tells whether it is a gap of its own, or made the last one wider.
func (g *gaps) add(gap evidence.Gap) bool {
	if n := len(*g); n > 0 {
		if last := &(*g)[n-1]; last.Reason == gap.Reason && !last.To.Before(gap.From) && last.Lost+gap.Lost > 0 {
			last.To, last.Lost = gap.To, last.Lost+gap.Lost
			return false
		}
	}
	if len(*g) == maxGaps {
		(*g)[1].From = (*g)[0].From
		(*g)[1].Lost += (*g)[0].Lost
		*g = slices.Delete(*g, 0, 1)
	}
	*g = append(*g, gap)
	return true
}

// within copies the gaps that touch the stretch of time.
func (g gaps) within(from, to time.Time) (found []evidence.Gap) {
	for _, gap := range g {
		if !gap.To.Before(from) && !gap.From.After(to) {
			found = append(found, gap)
		}
	}
	return found
}
