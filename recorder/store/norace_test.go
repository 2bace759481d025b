//go:build !race

package store

import "testing"

func skipRace(*testing.T) {}
