package main

import (
	"math"
	"os"
	"runtime/debug"

	"tcpcoroner/evidence"
)

const (
	// heap is what the program may take beside the recorder's memory before the
	// collector works harder: the database's tables, an incident that is judged.
	heap = 28 << 20
	// socketHeap is what each socket adds: two looks at it, and their writing down.
	socketHeap = 2 << 10
	// gcPercent lets garbage grow to half of what is in use.
	gcPercent = 50
)

// limitMemory keeps the heap small. The history is outside of it. GOMEMLIMIT and
// GOGC, where set, win (runtime/debug).
func limitMemory(getenv func(string) string) {
	if getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(heap)
	}
	if getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
}

// fitMemory lets the limit follow the number of sockets: where there are many, the
// collector would not stop running while an incident looks at them, and a look would
// take seconds. Setting it stops the program for a moment, so it is set for half as
// many more, and lowered when it is twice too high.
func fitMemory(c *evidence.Counters) {
	limit := debug.SetMemoryLimit(-1) // only reads it
	if limit == math.MaxInt64 || os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	need := heap + int64(socketsIn(c))*socketHeap
	if want := need + (need-heap)/2; need > limit || want <= limit/2 {
		debug.SetMemoryLimit(want)
	}
}

// socketsIn counts those of TCP, wherever they lead.
func socketsIn(c *evidence.Counters) uint64 {
	return c.Values["Sockstat.TCP.inuse"] + c.Values["Sockstat.TCP6.inuse"] + c.Values["Sockstat.TCP.tw"]
}
