package main

import (
	"runtime"
	"runtime/debug"
	"testing"

	"tcpcoroner/evidence"
)

func TestMemoryFollowsSockets(t *testing.T) {
	before := debug.SetMemoryLimit(-1)
	defer debug.SetMemoryLimit(before)
	t.Setenv("GOMEMLIMIT", "")
	many := func(n uint64) *evidence.Counters {
		return &evidence.Counters{Values: map[string]uint64{"Sockstat.TCP.inuse": n - n/2, "Sockstat.TCP.tw": n / 2}}
	}
	debug.SetMemoryLimit(heap)
	for _, step := range []struct {
		name    string
		sockets uint64
		want    int64
	}{
		{"few", 0, heap},
		{"many", 30_000, heap + 45_000*socketHeap},
		{"a little more stays", 31_000, heap + 45_000*socketHeap},
		{"a little less stays", 20_000, heap + 45_000*socketHeap},
		{"far less", 0, heap},
	} {
		fitMemory(many(step.sockets))
		if got := debug.SetMemoryLimit(-1); got != step.want {
			t.Errorf("%s: limit of %d bytes, want %d", step.name, got, step.want)
		}
	}
	t.Setenv("GOMEMLIMIT", "100MiB")
	fitMemory(many(30_000))
	if got := debug.SetMemoryLimit(-1); got != heap {
		t.Errorf("GOMEMLIMIT is not respected: %d bytes", got)
	}
}

// What is in use has room beside it: else the collector would run all the time.
func TestMemoryFollowsLiveHeap(t *testing.T) {
	before := debug.SetMemoryLimit(-1)
	defer debug.SetMemoryLimit(before)
	t.Setenv("GOMEMLIMIT", "")
	held := make([]byte, 64<<20)
	runtime.GC()
	debug.SetMemoryLimit(heap)
	fitMemory(&evidence.Counters{})
	if got := debug.SetMemoryLimit(-1); got < 80<<20 || got > 160<<20 {
		t.Errorf("limit of %d bytes with %d in use", got, len(held))
	}
	runtime.KeepAlive(held)
}
