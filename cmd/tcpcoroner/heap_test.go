package main

import (
	"os"
	"runtime"
	"runtime/debug"
	"testing"

	"github.com/google/go-cmp/cmp"

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
