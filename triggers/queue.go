package triggers

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"tcpcoroner/evidence"
)

// QueueConfig is the configuration of the trigger "accept_queue".
type QueueConfig struct {
	Enabled bool `yaml:"enabled"`
	// Usage is the share, from 0 to 1, of a listener's backlog at which it fires if
	// Checks checks in a row see it; Rearm the share below which it is armed again.
	Usage  float64 `yaml:"usage"`
	Rearm  float64 `yaml:"rearm"`
	Checks int     `yaml:"checks"`
	// Least is the backlog below which a listener does not count: a queue of 1 is
	// full at every connection.
	Least uint32 `yaml:"least"`
}

// DefaultQueue fires at 80 % of a backlog of 8 or more, three checks in a row.
func DefaultQueue() QueueConfig {
	return QueueConfig{Enabled: true, Usage: 0.8, Rearm: 0.5, Checks: 3, Least: 8}
}

// Validate names the first field that cannot be.
func (c QueueConfig) Validate() error {
	switch {
	case !c.Enabled:
		return nil
	case !(c.Usage > 0 && c.Usage <= 1):
		return fmt.Errorf("accept_queue.usage is %g: must be over 0 and at most 1", c.Usage)
	case !(c.Rearm >= 0 && c.Rearm < c.Usage):
		return fmt.Errorf("accept_queue.rearm is %g: must be at least 0 and below accept_queue.usage (%g)", c.Rearm, c.Usage)
	case c.Checks < 1:
		return fmt.Errorf("accept_queue.checks is %d: must be at least 1", c.Checks)
	}
	return nil
}

// Queue fires when an accept queue fills, before it overflows.
type Queue struct {
	cfg       QueueConfig
	listeners func() ([]evidence.Socket, error)
	seen      map[listener]filling
}

// filling is how a queue was seen: rows checks in a row over the level, at most high.
type filling struct {
	rows int
	high uint32
}

// NewQueue makes the trigger; listeners lists the listening sockets, at each check.
func NewQueue(cfg QueueConfig, listeners func() ([]evidence.Socket, error)) *Queue {
	return &Queue{cfg: cfg, listeners: listeners, seen: map[listener]filling{}}
}

// Name is "accept_queue".
func (t *Queue) Name() string { return "accept_queue" }

// Enabled tells whether the configuration wants it checked.
func (t *Queue) Enabled() bool { return t.cfg.Enabled }

// HighWater is the longest that each queue was seen since it was last empty of
// trouble, by the listener's address; of listeners with one address, the longest.
func (t *Queue) HighWater() map[netip.AddrPort]uint32 {
	high := make(map[netip.AddrPort]uint32, len(t.seen))
	for l, f := range t.seen {
		high[l.local] = max(high[l.local], f.high)
	}
	return high
}

// Check looks at all accept queues.
func (t *Queue) Check(now time.Time, _ bool) (Reading, error) {
	sockets, err := t.listeners()
	if err != nil {
		return Reading{}, fmt.Errorf("list listeners: %w", err)
	}
	seen, worst := map[listener]filling{}, 0.0
	var over []evidence.Socket
	for i := range sockets {
		s := &sockets[i]
		if !s.Listening() || s.SendQueue < t.cfg.Least || s.SendQueue == 0 {
			continue
		}
		key := listener{s.Local, s.Inode}
		share, f := float64(s.RecvQueue)/float64(s.SendQueue), t.seen[key]
		if f.rows++; share < t.cfg.Usage {
			f.rows = 0
		}
		f.high = max(f.high, s.RecvQueue)
		seen[key], worst = f, max(worst, share)
		if f.rows >= t.cfg.Checks {
			over = append(over, *s)
		}
	}
	t.seen = seen
	return t.reading(now, worst, over), nil
}

func (t *Queue) reading(now time.Time, worst float64, over []evidence.Socket) Reading {
	r := Reading{Firing: evidence.Firing{Trigger: t.Name(), Time: now, Unit: "1", Value: thousandth(worst), Threshold: t.cfg.Usage,
		Expression: fmt.Sprintf("accept queue / backlog >= %g at %d checks in a row", t.cfg.Usage, t.cfg.Checks)},
		Over: len(over) > 0, Calm: worst < t.cfg.Rearm}
	if !r.Over {
		return r
	}
	slices.SortFunc(over, func(a, b evidence.Socket) int {
		return cmp.Or(cmp.Compare(b.RecvQueue, a.RecvQueue), a.Local.Compare(b.Local))
	})
	r.Firing.Listeners = over
	r.Firing.Reason = "an accept queue fills: " + describe(&over[0])
	if n := len(over) - 1; n > 0 {
		r.Firing.Reason += fmt.Sprintf("; and %d more listeners", n)
	}
	return r
}
