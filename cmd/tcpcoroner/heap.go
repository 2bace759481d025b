package main

import (
	"math"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

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

// forgetStart takes what only the start needed of the program out of resident memory.
// Initialisers, tables and, where it is relocatable, relocations touch most of it, and
// each fault maps 16 pages (do_fault_around in the kernel's mm/memory.c). The pages stay
// in the page cache: one that is needed again costs a minor fault, never the disk, and
// the kernel may take the others (MADV_DONTNEED in madvise(2)).
//
// What cannot be read costs nothing but memory.
func forgetStart() {
	program, err := os.Executable()
	if err != nil {
		return
	}
	list, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		return
	}
	for _, m := range parseProgram(string(list), program) {
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, m.start, m.end-m.start, unix.MADV_DONTNEED)
	}
}

// mapping is a stretch of this process' address space.
type mapping struct{ start, end uintptr }

// parseProgram lists the mappings of a program that hold nothing but its file, from
// the lines of proc_pid_smaps(5): "start-end perms offset device inode path", and then
// "Name: value" of it. One with anonymous pages was written to, by relocation before it
// became read-only or for a breakpoint (uprobes): these must stay.
func parseProgram(list, program string) (all []mapping) {
	var ours *mapping
	for line := range strings.Lines(list) {
		f := strings.Fields(line)
		switch {
		case len(f) > 4 && strings.Contains(f[0], "-"):
			ours = nil
			if (f[1] == "r--p" || f[1] == "r-xp") && strings.HasSuffix(line, " "+program+"\n") {
				ours = parseRange(f[0])
			}
		case ours != nil && len(f) == 3 && f[0] == "Anonymous:" && f[1] == "0":
			all = append(all, *ours)
		}
	}
	return all
}

// parseRange reads "start-end"; nil is none.
func parseRange(text string) *mapping {
	from, to, _ := strings.Cut(text, "-")
	start, err1 := strconv.ParseUint(from, 16, strconv.IntSize)
	end, err2 := strconv.ParseUint(to, 16, strconv.IntSize)
	if err1 != nil || err2 != nil || start >= end {
		return nil
	}
	return &mapping{uintptr(start), uintptr(end)}
}
