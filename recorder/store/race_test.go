//go:build race

package store

import "testing"

func skipRace(t *testing.T) {
	t.Skip("the race detector's own memory and work would be in the numbers")
}
