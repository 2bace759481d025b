package main

import (
	"math"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"slices"
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
	// gcPercent lets garbage grow to half of what is in use.
	gcPercent = 50
	// heapSeconds is how far back the limit looks, and lastingSeconds how many of them
	// what is in use must have lasted to raise it: for a peak of some seconds, as
	// writing a large incident is, the collector works harder instead. It takes half
	// of the processors then at most (the runtime's mgclimit.go).
	heapSeconds, lastingSeconds = 60, 10
	// The limit is a multiple of heapStep, and falls by fallSteps of them or more: to
	// set it stops the program for a moment.
	heapStep, fallSteps = 1 << 20, 4
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

// heapFit lets the limit follow what is needed: where the kernel's events of the last
// minutes, or an incident that looks at very many sockets, do not leave room below it,
// the collector would not stop running.
type heapFit struct{ needs []int64 }

// fit is called once a second.
func (h *heapFit) fit(c *evidence.Counters) {
	limit := debug.SetMemoryLimit(-1) // only reads it
	if limit == math.MaxInt64 || os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	h.needs = append(h.needs, neededHeap())
	h.needs = h.needs[max(0, len(h.needs)-heapSeconds):]
	if want := limitFor(h.needs, socketsIn(c), limit); want != limit {
		debug.SetMemoryLimit(want)
	}
}

// limitFor is the limit for what was needed in each of the last seconds, and for so
// many sockets, while it is limit; all but sockets in bytes. It falls later than it
// rises, so that it does not go up and down with each incident.
func limitFor(needs []int64, sockets uint64, limit int64) int64 {
	want := heap + int64(sockets)*socketHeap
	if n := len(needs) - lastingSeconds; n >= 0 {
		want = max(want, slices.Sorted(slices.Values(needs))[n])
	}
	want = (want + heapStep - 1) / heapStep * heapStep
	if want > limit || want <= limit-fallSteps*heapStep {
		return want
	}
	return limit
}

// neededHeap is the limit that what the last collection found in use needs, in bytes:
// with that, what the runtime takes for itself, which counts too, and garbage of a
// sixth of what is in use.
func neededHeap() int64 {
	var v [5]int64
	s := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/total:bytes"},
		{Name: "/memory/classes/heap/released:bytes"}, {Name: "/memory/classes/heap/free:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(s)
	for i := range s {
		if s[i].Value.Kind() == metrics.KindUint64 { // a later Go may not have it
			v[i] = int64(s[i].Value.Uint64())
		}
	}
	live, beside := v[0], v[1]-v[2]-v[3]-v[4]
	return max(0, beside) + live + live/6
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
