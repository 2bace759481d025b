package recorder

import (
	"fmt"
	"time"
)

// governor keeps the recorder inside its CPU budget, and ahead of the kernel's
// ring. The budget fills a bucket, the time that was used empties it: a burst is
// allowed, a lasting excess raises the level, one step at a time. So does a ring
// that fills faster than it is read, whoever else has the processor.
type governor struct {
	budget float64 // of one core; 0: no bound
	bucket float64 // seconds of CPU time left
	level  Level
	// used and at are the clocks of the last look, in nanoseconds.
	used, at int64
	// behind is since when the ring has been as full as the level allows; 0: it is
	// not.
	behind int64
	// raised is when the level rose last, and wait how long it stays at least: it
	// doubles each time that a lower level proved too dear.
	raised, lowered int64
	wait            time.Duration
	changes         uint64
	// why is the reason of the last change.
	why string
}

const (
	// burst is the time's worth of budget that the bucket holds.
	burst = 30 * time.Second
	// step is the least time between two changes upwards: time to see what the
	// last one brought.
	step    = time.Second
	minWait = 10 * time.Second
	maxWait = 10 * time.Minute
)

// tooFull is the part of the ring that may wait at each level, and late for how
// long: after a stall the ring is read much faster than it fills. What is left is
// what the next level needs to take effect before the ring overflows.
var (
	tooFull = [...]float64{LevelFull: .5, LevelPlain: .5, LevelHold: .75, LevelControl: 2}
	late    = [...]time.Duration{LevelFull: 50 * time.Millisecond, LevelPlain: 50 * time.Millisecond,
		LevelHold: 250 * time.Millisecond, LevelControl: 0}
)

func newGovernor(budget float64) governor {
	return governor{budget: budget, bucket: budget * burst.Seconds(), wait: minWait}
}

// look takes the clocks, monotonic and the thread's CPU time, and the part of the
// ring that waits, and sets the level. It tells whether that changed.
func (g *governor) look(mono, used int64, backlog float64) bool {
	passed, spent := mono-g.at, used-g.used
	first := g.at == 0
	g.at, g.used = mono, used
	if first || passed <= 0 || spent < 0 {
		return false
	}
	full := g.budget * burst.Seconds()
	g.bucket = min(full, g.bucket+g.budget*float64(passed)/1e9-float64(spent)/1e9)
	switch {
	case g.isBehind(mono, backlog):
		g.raise(mono, "the kernel's ring filled faster than it was read")
		return true
	case g.budget > 0 && g.bucket < 0 && g.level < LevelControl && mono-g.raised >= int64(step):
		g.raise(mono, "CPU budget used up (recorder.cpu)")
		g.bucket = 0
		return true
	case g.level > LevelFull && backlog == 0 && (g.budget == 0 || g.bucket > full/2) &&
		mono-max(g.raised, g.lowered) >= int64(g.wait):
		g.lower(mono)
		return true
	}
	// What is owed beyond the bucket is not: a stall must not cost minutes.
	g.bucket = max(g.bucket, -full/10)
	return false
}

// isBehind tells whether the ring has been too full for the level for too long.
func (g *governor) isBehind(mono int64, backlog float64) bool {
	switch {
	case backlog < tooFull[g.level]:
		g.behind = 0
	case g.behind == 0:
		g.behind = mono
	case mono-g.behind >= int64(late[g.level]):
		return true
	}
	return false
}

func (g *governor) lower(mono int64) {
	g.level--
	g.lowered, g.why = mono, "there is room again"
	g.changes++
}

func (g *governor) raise(mono int64, why string) {
	// Soon after a step down: that step was a mistake.
	switch tried := mono - g.lowered; {
	case g.lowered != 0 && tried < int64(2*burst):
		g.wait = min(2*g.wait, maxWait)
	case g.lowered != 0:
		g.wait = minWait
	}
	g.level++
	g.raised, g.behind, g.why = mono, 0, why
	g.changes++
}

var levelNames = [...]string{"full", "plain", "hold", "control"}

func (l Level) String() string {
	if int(l) < len(levelNames) {
		return levelNames[l]
	}
	return fmt.Sprintf("level(%d)", uint32(l))
}

// Meaning is what a level keeps, for people.
func (l Level) Meaning() string {
	switch l {
	case LevelFull:
		return "every packet is kept"
	case LevelPlain:
		return "every packet is kept, uncompressed, so that the buffer reaches less far"
	case LevelHold:
		return "every packet is kept as long as the kernel's ring has room for it, then SYN, FIN, RST and ICMP only"
	case LevelControl:
		return "only SYN, FIN, RST and ICMP are recorded"
	}
	return l.String()
}
