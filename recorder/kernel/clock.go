package kernel

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// bigStep is a change of the wall clock that is set, not slewed: adjtimex(2) slews
// by 0.5 ms a second at most.
const bigStep = 2 * time.Millisecond

// clock converts the kernel's boot clock, which goes on in suspend, to the wall
// clock (clock_gettime(2), CLOCK_BOOTTIME and CLOCK_REALTIME).
type clock struct {
	read func() (boot, real, spread int64)

	mu       sync.Mutex
	measured time.Time
	offset   int64
	steps    uint64
	largest  time.Duration
}

// newClock measures once. read returns both clocks in nanoseconds, read at the
// same moment, and how long that moment was.
func newClock(read func() (boot, real, spread int64)) *clock {
	c := &clock{read: read}
	c.offset, c.measured = c.between(), time.Now()
	return c
}

// between is the difference of the clocks, from the shortest of three moments.
func (c *clock) between() (offset int64) {
	best := int64(1<<63 - 1)
	for range 3 {
		boot, real, spread := c.read()
		if spread < best {
			best, offset = spread, real-boot
		}
	}
	return offset
}

// measure follows the wall clock and counts when it was set.
func (c *clock) measure() {
	now := c.between()
	c.mu.Lock()
	defer c.mu.Unlock()
	step := time.Duration(now - c.offset).Abs()
	c.offset, c.measured = now, time.Now()
	if step > bigStep {
		c.steps++
		c.largest = max(c.largest, step)
	}
}

// current measures if that was not done for a second.
func (c *clock) current() {
	c.mu.Lock()
	old := time.Since(c.measured) > time.Second
	c.mu.Unlock()
	if old {
		c.measure()
	}
}

// time is the wall clock's time at a reading of the boot clock; the zero time for 0.
func (c *clock) time(boot uint64) time.Time {
	if boot == 0 {
		return time.Time{}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Unix(0, int64(boot)+c.offset)
}

func (c *clock) stats() (steps uint64, largest time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.steps, c.largest
}

// readClocks reads the boot clock before and after the wall clock.
func readClocks() (boot, real, spread int64) {
	var before, wall, after unix.Timespec
	// They cannot fail: the clocks exist since Linux 2.6.39.
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &before)
	_ = unix.ClockGettime(unix.CLOCK_REALTIME, &wall)
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &after)
	spread = after.Nano() - before.Nano()
	return before.Nano() + spread/2, wall.Nano(), spread
}

// ticksPerSecond is the kernel's HZ: its coarse clock counts ticks.
func ticksPerSecond() uint64 {
	var tick unix.Timespec
	if unix.ClockGetres(unix.CLOCK_MONOTONIC_COARSE, &tick) != nil || tick.Nano() <= 0 {
		return 0
	}
	return uint64(time.Second) / uint64(tick.Nano())
}
