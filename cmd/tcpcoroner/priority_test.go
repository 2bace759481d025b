package main

import (
	"errors"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The work aside has less priority, its error comes back, and its thread ends: the
// priority stays with nobody.
func TestAside(t *testing.T) {
	failed := errors.New("failed")
	usual, err := unix.Getpriority(unix.PRIO_PROCESS, 0) // 20 - nice
	if err != nil {
		t.Fatal(err)
	}
	tid := os.Getpid()
	for tid == os.Getpid() { // the main thread never ends: spare it
		err := aside(func() error {
			if got, err := unix.Getpriority(unix.PRIO_PROCESS, 0); err != nil || got != max(usual-asideNice, 1) {
				t.Errorf("20 - nice is %d, %v; for others %d", got, err, usual)
			}
			tid = unix.Gettid()
			return failed
		})
		if !errors.Is(err, failed) {
			t.Fatalf("error is %v", err)
		}
	}
	await(t, 5*time.Second, "end of the thread", func() bool {
		return errors.Is(unix.Tgkill(os.Getpid(), tid, 0), unix.ESRCH)
	})
}

func TestAllowThreads(t *testing.T) {
	was := runtime.GOMAXPROCS(1)
	defer runtime.GOMAXPROCS(was)
	allowThreads(func(string) string { return "1" })
	if n := runtime.GOMAXPROCS(0); n != 1 {
		t.Errorf("GOMAXPROCS is %d, but 1 was asked for", n)
	}
	allowThreads(func(string) string { return "" })
	if n := runtime.GOMAXPROCS(0); n != leastThreads {
		t.Errorf("GOMAXPROCS is %d, want %d", n, leastThreads)
	}
}
