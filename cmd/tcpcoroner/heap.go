package main

import (
	"math"
	"os"
	"runtime/debug"
	"runtime/metrics"

	"tcpcoroner/evidence"
)

const (
	// heap is what the program may take beside the recorder's memory before the
	// collector works harder: the database's tables, an incident that is judged.
	heap = 28 << 20
	// socketHeap is what each socket adds: two looks at it, and their writing down.
	socketHeap = 2 << 10
	// besideHeap is what the runtime takes for itself at least: stacks, tables.
	besideHeap = 2 << 20
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

// fitMemory lets the limit follow what is needed: where the kernel's events of the last
// minutes, or an incident that looks at very many sockets, do not leave room below it,
// the collector would not stop running. Setting it stops the program for a moment, so
// it is set for half as much more, and lowered when it is twice too high.
func fitMemory(c *evidence.Counters) {
	limit := debug.SetMemoryLimit(-1) // only reads it
	if limit == math.MaxInt64 || os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	need := max(heap+int64(socketsIn(c))*socketHeap, roomFor(liveHeap()))
	if want := need + (need-heap)/2; need > limit || want <= limit/2 {
		debug.SetMemoryLimit(want)
	}
}

// roomFor lets garbage grow to a quarter of what is in use, at least.
func roomFor(live int64) int64 { return besideHeap + live + live/4 }

// liveHeap is what the last collection found in use, in bytes.
func liveHeap() int64 {
	s := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(s)
	if s[0].Value.Kind() != metrics.KindUint64 {
		return 0
	}
	return int64(s[0].Value.Uint64())
}

// socketsIn counts those of TCP, wherever they lead.
func socketsIn(c *evidence.Counters) uint64 {
	return c.Values["Sockstat.TCP.inuse"] + c.Values["Sockstat.TCP6.inuse"] + c.Values["Sockstat.TCP.tw"]
}
