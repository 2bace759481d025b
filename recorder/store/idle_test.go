package store

import (
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// childIdle holds an open store with an incident for idleWindows times as many seconds as
// STORE_TEST_SECONDS says, and prints what each window cost.
func childIdle(dir string) error {
	s, err := Open(Config{Dir: dir})
	if err != nil {
		return err
	}
	if err := s.Put(incidentAt(noon, 1), each(randomChunks(1, 16, 256<<10))); err != nil {
		return err
	}
	seconds, err := strconv.Atoi(os.Getenv("STORE_TEST_SECONDS"))
	if err != nil {
		return err
	}
	<-time.After(2 * time.Second) // what the put left to do
	for range idleWindows {
		before := usage()
		<-time.After(time.Duration(seconds) * time.Second)
		after := usage()
		cpu := time.Duration(after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano())
		fmt.Printf("%d %d\n", cpu.Microseconds(), after.Nvcsw-before.Nvcsw)
	}
	return nil
}

func usage() (u unix.Rusage) {
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
	return u
}

// idleWindows are measured, and the cheapest counts: a slow disk lets the put's
// compaction run into the first, and a busy machine only adds.
const idleWindows = 3

// TestIdle bounds what an open store costs while nothing happens.
func TestIdle(t *testing.T) {
	skipRace(t)
	const seconds = 2
	cmd := child(t, "idle", t.TempDir())
	cmd.Env = append(cmd.Env, fmt.Sprint("STORE_TEST_SECONDS=", seconds))
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	micros, switches := cheapest(t, string(out))
	t.Logf("%d s: %d us of processor time, %d context switches", seconds, micros, switches)
	if micros > seconds*500 || switches > seconds*20 {
		t.Errorf("%d us and %d context switches a second, want 500 and 20 at most", micros/seconds, switches/seconds)
	}
}

func cheapest(t *testing.T, out string) (micros, switches int) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) != idleWindows {
		t.Fatalf("%d windows: %q", len(lines), out)
	}
	micros, switches = math.MaxInt, math.MaxInt
	for _, line := range lines {
		var m, n int
		if _, err := fmt.Sscan(line, &m, &n); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		micros, switches = min(micros, m), min(switches, n)
	}
	return micros, switches
}
