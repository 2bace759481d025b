package recorder

import (
	"fmt"
	"time"
)

// governor keeps the recorder inside its CPU budget. The budget fills a bucket,
// the time that was used empties it: a burst is allowed, a lasting excess raises
// the level, one step at a time.
type governor struct {
	budget float64 // of one core; 0: no bound
	bucket float64 // seconds of CPU time left
	level  Level
	// used and at are the clocks of the last look, in nanoseconds.
	used, at int64
	// raised is when the level rose last, and wait how long it stays at least: it
	// doubles each time that a lower level proved too dear.
	raised, lowered int64
	wait            time.Duration
	changes         uint64
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

func newGovernor(budget float64) governor {
	return governor{budget: budget, bucket: budget * burst.Seconds(), wait: minWait}
}

// look takes the clocks, monotonic and the thread's CPU time, and sets the level.
// It tells whether that changed.
func (g *governor) look(mono, used int64) bool {
	passed, spent := mono-g.at, used-g.used
	first := g.at == 0
	g.at, g.used = mono, used
	if g.budget == 0 || first || passed <= 0 || spent < 0 {
		return false
	}
	full := g.budget * burst.Seconds()
	g.bucket = min(full, g.bucket+g.budget*float64(passed)/1e9-float64(spent)/1e9)
	switch {
	case g.bucket < 0 && g.level < LevelControl && mono-g.raised >= int64(step):
		g.raise(mono)
		return true
	case g.bucket > full/2 && g.level > LevelFull && mono-max(g.raised, g.lowered) >= int64(g.wait):
		g.level--
		g.lowered = mono
		g.changes++
		return true
	}
	// What is owed beyond the bucket is not: a stall must not cost minutes.
	g.bucket = max(g.bucket, -full/10)
	return false
}

func (g *governor) raise(mono int64) {
	// Soon after a step down: that step was a mistake.
	switch tried := mono - g.lowered; {
	case g.lowered != 0 && tried < int64(2*burst):
		g.wait = min(2*g.wait, maxWait)
	case g.lowered != 0:
		g.wait = minWait
	}
	g.level++
	g.raised = mono
	g.changes++
	g.bucket = 0
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
		return "every packet is kept, uncompressed"
	case LevelHold:
		return "every packet is kept as long as the kernel's ring has room for it, then SYN, FIN, RST and ICMP only"
	case LevelControl:
		return "only SYN, FIN, RST and ICMP are recorded"
	}
	return l.String()
}
