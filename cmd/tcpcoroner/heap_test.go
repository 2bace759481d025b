package main

import (
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tcpcoroner/evidence"
)

func TestLimitFor(t *testing.T) {
	const mib = 1 << 20
	// seconds in which so many MiB were needed, oldest first
	seconds := func(pairs ...int) (needs []int64) {
		for ; len(pairs) > 0; pairs = pairs[2:] {
			needs = append(needs, slices.Repeat([]int64{int64(pairs[1]) * mib}, pairs[0])...)
		}
		return needs
	}
	for _, c := range []struct {
		name    string
		needs   []int64
		sockets uint64
		limit   int64
		want    int64
	}{
		{"the start", nil, 0, heap, heap},
		{"one second says nothing yet", seconds(1, 90), 0, heap, heap},
		{"little is needed", seconds(60, 10), 0, heap, heap},
		{"a peak of some seconds", seconds(40, 20, 9, 90, 11, 20), 0, heap, heap},
		{"it lasts", seconds(40, 20, 10, 41, 10, 20), 0, heap, 41 * mib},
		{"it lasts, in pieces", seconds(20, 20, 5, 41, 20, 20, 5, 60, 10, 20), 0, heap, 41 * mib},
		{"it lasts from the start", seconds(10, 41), 0, heap, 41 * mib},
		{"a little more", seconds(60, 42), 0, 41 * mib, 42 * mib},
		{"a little less stays", seconds(60, 38), 0, 41 * mib, 41 * mib},
		{"less", seconds(60, 37), 0, 41 * mib, 37 * mib},
		{"some seconds are left of it", seconds(10, 41, 50, 20), 0, 41 * mib, 41 * mib},
		{"it is over", seconds(9, 41, 51, 20), 0, 41 * mib, heap},
		{"a part of a step", []int64{1, 2, 3, 4, 5, 6, 7, 8, 9, heap + 1}, 0, heap, heap},
		{"a part of a step lasts", slices.Repeat([]int64{heap + 1}, 10), 0, heap, heap + mib},
		{"many sockets, at once", nil, 30_000, heap, 87 * mib},
		{"a few less stay", nil, 29_000, 87 * mib, 87 * mib},
		{"far fewer", nil, 1000, 87 * mib, 30 * mib},
		{"both", seconds(60, 100), 30_000, 87 * mib, 100 * mib},
	} {
		if got := limitFor(c.needs, c.sockets, c.limit); got != c.want {
			t.Errorf("%s: limit of %d KiB, want %d", c.name, got>>10, c.want>>10)
		}
	}
}

func TestMemoryFollowsSockets(t *testing.T) {
	before := debug.SetMemoryLimit(-1)
	defer debug.SetMemoryLimit(before)
	t.Setenv("GOMEMLIMIT", "")
	many := func(n uint64) *evidence.Counters {
		return &evidence.Counters{Values: map[string]uint64{"Sockstat.TCP.inuse": n - n/2, "Sockstat.TCP.tw": n / 2}}
	}
	var h heapFit
	debug.SetMemoryLimit(heap)
	for _, step := range []struct {
		sockets uint64
		want    int64
	}{{0, heap}, {30_000, 87 << 20}, {0, heap}} {
		h.fit(many(step.sockets))
		if got := debug.SetMemoryLimit(-1); got != step.want {
			t.Errorf("%d sockets: limit of %d bytes, want %d", step.sockets, got, step.want)
		}
	}
	t.Setenv("GOMEMLIMIT", "100MiB")
	h.fit(many(30_000))
	if got := debug.SetMemoryLimit(-1); got != heap {
		t.Errorf("GOMEMLIMIT is not respected: %d bytes", got)
	}
}

// What is in use has room beside it: else the collector would run all the time. What
// the runtime takes for itself is within the limit, too.
func TestMemoryFollowsLiveHeap(t *testing.T) {
	before := debug.SetMemoryLimit(-1)
	defer debug.SetMemoryLimit(before)
	t.Setenv("GOMEMLIMIT", "")
	held := make([]byte, 64<<20)
	runtime.GC()
	debug.SetMemoryLimit(heap)
	var h heapFit
	for range lastingSeconds {
		h.fit(&evidence.Counters{})
	}
	if got := debug.SetMemoryLimit(-1); got < 76<<20 || got > 160<<20 {
		t.Errorf("limit of %d bytes with %d in use", got, len(held))
	}
	for range heapSeconds + 5 {
		h.fit(&evidence.Counters{})
	}
	if len(h.needs) != heapSeconds {
		t.Errorf("%d seconds are remembered, want %d", len(h.needs), heapSeconds)
	}
	runtime.KeepAlive(held)
}

// A relocatable program as it is after the start: its relocations (the first) are used
// up, what they changed (the fourth) is read-only now but no longer as in the file.
const relocated = `55eab53af000-55eab56e9000 r--p 00000000 fe:00 10846266                   /usr/bin/tcpcoroner
Size:               3304 kB
Rss:                3304 kB
Private_Dirty:      3304 kB
Anonymous:             0 kB
VmFlags: rd mr mw me 
55eab56e9000-55eab636e000 r-xp 0033a000 fe:00 10846266                   /usr/bin/tcpcoroner
Rss:               10684 kB
Anonymous:             0 kB
AnonHugePages:         0 kB
55eab636e000-55eab6dee000 r--p 00fbf000 fe:00 10846266                   /usr/bin/tcpcoroner
Anonymous:             0 kB
55eab6dee000-55eab7150000 r--p 01a3f000 fe:00 10846266                   /usr/bin/tcpcoroner
Anonymous:          2904 kB
55eab7150000-55eab7217000 rw-p 01da1000 fe:00 10846266                   /usr/bin/tcpcoroner
Anonymous:             0 kB
55eab7217000-55eab9742000 rw-p 00000000 00:00 0 
Anonymous:             0 kB
7f3f08000000-7f3f08001000 r--p 00000000 fe:00 10846270                   /var/lib/x/usr/bin/tcpcoroner
Anonymous:             0 kB
7f3f08001000-7f3f08002000 r--s 00000000 fe:00 10846266                   /usr/bin/tcpcoroner
Anonymous:             0 kB
7ffd5b1f4000-7ffd5b1f6000 r-xp 00000000 00:00 0                          [vdso]
Anonymous:             0 kB
`

func TestParseProgram(t *testing.T) {
	const text = "402000-10b8000 r-xp 00002000 fe:00 1 /usr/bin/tcpcoroner\n"
	for _, c := range []struct {
		name, list string
		want       []mapping
	}{
		{"nothing", "", nil},
		{"relocatable", relocated, []mapping{
			{0x55eab53af000, 0x55eab56e9000}, {0x55eab56e9000, 0x55eab636e000}, {0x55eab636e000, 0x55eab6dee000},
		}},
		{"a breakpoint is in it", text + "Anonymous:             4 kB\n", nil},
		{"nothing known of it", text, nil},
		{"cut off", text + "Anonymous:", nil},
		{"no range", "402000-z r-xp 00002000 fe:00 1 /usr/bin/tcpcoroner\nAnonymous: 0 kB\n", nil},
		{"an empty range", "402000-402000 r-xp 00002000 fe:00 1 /usr/bin/tcpcoroner\nAnonymous: 0 kB\n", nil},
	} {
		got := parseProgram(c.list, "/usr/bin/tcpcoroner")
		if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(mapping{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

// The program works on without the pages that are gone: a collection reads what is
// known of its functions, and this reads text.
func TestForgetStart(t *testing.T) {
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	list, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Skipf("no list of mappings: %v", err)
	}
	found := parseProgram(string(list), program)
	if len(found) == 0 {
		t.Error("nothing of the program was found")
	}
	forgetStart()
	runtime.GC()
	if list, err = os.ReadFile("/proc/self/smaps"); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(found, parseProgram(string(list), program), cmp.AllowUnexported(mapping{})); diff != "" {
		t.Errorf("other mappings than before (-want +got):\n%s", diff)
	}
}

func FuzzParseProgram(f *testing.F) {
	f.Add(relocated, "/usr/bin/tcpcoroner")
	f.Add("1-2 r--p 0 0 0 /a\nAnonymous: 0 kB\n", "/a")
	f.Fuzz(func(t *testing.T, list, program string) {
		for _, m := range parseProgram(list, program) {
			if m.start >= m.end {
				t.Errorf("%x-%x", m.start, m.end)
			}
		}
	})
}
