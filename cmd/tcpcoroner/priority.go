package main

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// leastThreads is how many goroutines may run at once at least: recording, a
// judgement, and the pulls. With fewer the recording goroutine would wait for one of
// them whenever it wakes, up to 10 ms each time (forcePreemptNS in the runtime's
// proc.go), while the kernel's ring fills. On fewer processors the kernel shares them
// out, and gives a thread that slept its turn at once.
const leastThreads = 2 + maxPulls

// allowThreads raises GOMAXPROCS to that; where it is set, it wins (runtime).
func allowThreads(getenv func(string) string) {
	if getenv("GOMAXPROCS") == "" && runtime.GOMAXPROCS(0) < leastThreads {
		runtime.GOMAXPROCS(leastThreads)
	}
}

// asideNice is added to the nice value for what can wait: a third of the usual share
// of a processor that others want too (sched_prio_to_weight in kernel/sched/core.c).
const asideNice = 5

// aside runs f on a thread of less priority and returns when it is done: capture,
// and the host, come first.
func aside(f func() error) error {
	done := make(chan error, 1)
	go func() {
		// Nobody may lower a nice value again without CAP_SYS_NICE: the thread stays
		// locked, and ends with its goroutine.
		runtime.LockOSThread()
		beNicer()
		done <- f()
	}()
	return <-done
}

// beNicer lowers the priority of this thread: Linux keeps it for each (setpriority(2),
// notes). If that fails, the work is done all the same.
func beNicer() {
	inverse, err := unix.Getpriority(unix.PRIO_PROCESS, 0) // 20 - nice
	if err == nil {
		_ = unix.Setpriority(unix.PRIO_PROCESS, 0, 20-inverse+asideNice)
	}
}
