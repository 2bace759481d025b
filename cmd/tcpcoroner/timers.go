package main

import (
	"os"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// timerSlack is how late a timer of the daemon may fire. The runtime's monitor
// sleeps 20 microseconds at a time for a while after anything has run (sysmon in
// the runtime's proc.go): with the kernel's usual slack that costs as much as the
// recording of 30,000 packets a second.
const timerSlack = 10 * time.Millisecond

// slackened marks the second start: it must not become a third.
const slackened = "TCPCORONER_TIMER_SLACK"

// coarseTimers gives all threads of the program a coarser timer. A thread hands it
// on to those that it makes, and the runtime has made its own before main begins:
// so the program starts once more, as the same process (PR_SET_TIMERSLACK(2const)).
// The unit sets TimerSlackNSec instead. Without it, everything works as well.
func coarseTimers() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	now, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	if err != nil || now >= int(timerSlack) || os.Getenv(slackened) != "" {
		return
	}
	self, err := os.Executable() // not /proc/self/exe: the process would be called "exe"
	if err != nil || unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(timerSlack), 0, 0, 0) != nil {
		return
	}
	_ = syscall.Exec(self, os.Args, append(os.Environ(), slackened+"=1"))
}
