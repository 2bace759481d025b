package triggers

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"tcpcoroner/evidence"
)

// RiseConfig is the configuration of a trigger that watches what counters grow by.
type RiseConfig struct {
	Enabled bool `yaml:"enabled"`
	// Window is the sliding window in which events are counted.
	Window time.Duration `yaml:"window"`
	// Threshold is the number of events in the window below which it never fires.
	Threshold float64 `yaml:"threshold"`
	// Factor is how many times the baseline the count must be; 0: whatever is usual.
	Factor float64 `yaml:"factor"`
}

// Validate names the first field that cannot be; name is that of the trigger.
func (c RiseConfig) Validate(name string) error {
	switch {
	case !c.Enabled:
		return nil
	case c.Window < minWindow || c.Window > maxWindow:
		return windowError(name+".window", c.Window)
	case !(c.Threshold >= 1):
		return fmt.Errorf("%s.threshold is %g: must be at least 1", name, c.Threshold)
	case !(c.Factor == 0 || c.Factor >= 1):
		return fmt.Errorf("%s.factor is %g: must be at least 1, or 0 for any", name, c.Factor)
	}
	return nil
}

// Rise fires when counters grow by far more than usual.
type Rise struct {
	cfg  RiseConfig
	name string
	// what are the events, for people; unit of the count.
	what, unit string
	// counted are the counters of which the growth is added up; nil means all that
	// are read. told are others that belong into the sentence.
	counted, told []string
	read          func() (evidence.Counters, error)
	each          map[string]*growth
	sum           window
	usual         baseline
}

type growth struct {
	count  counter
	recent window
}

func newRise(name, what, unit string, cfg RiseConfig, read func() (evidence.Counters, error), counted, told []string) *Rise {
	return &Rise{cfg: cfg, name: name, what: what, unit: unit, counted: counted, told: told, read: read,
		each: map[string]*growth{}, sum: window{span: cfg.Window}}
}

// Name is the trigger's name.
func (t *Rise) Name() string { return t.name }

// Enabled tells whether the configuration wants it checked.
func (t *Rise) Enabled() bool { return t.cfg.Enabled }

// Check adds up what the counters grew by.
func (t *Rise) Check(now time.Time, storm bool) (Reading, error) {
	c, err := t.read()
	if err != nil {
		return Reading{}, fmt.Errorf("read counters of %s: %w", t.name, err)
	}
	n, found := t.grow(now, c.Values)
	if !found {
		return Reading{}, fmt.Errorf("read counters of %s: the kernel shows none of %s", t.name, strings.Join(t.counted, ", "))
	}
	left := t.sum.add(now, n)
	if !storm {
		t.usual.learn(left, t.cfg.Window)
	}
	return t.reading(now), nil
}

// grow takes the counters over; it returns the growth of those that count.
func (t *Rise) grow(now time.Time, values map[string]uint64) (n float64, found bool) {
	names := slices.Concat(t.counted, t.told)
	if t.counted == nil {
		found = true // no counter is no event
		for name := range values {
			names = append(names, name)
		}
	}
	for _, name := range names {
		total, ok := values[name]
		if !ok {
			continue
		}
		g := t.each[name]
		if g == nil {
			g = &growth{recent: window{span: t.cfg.Window}}
			t.each[name] = g
		}
		more := float64(g.count.add(total))
		g.recent.add(now, more)
		if t.counted == nil || slices.Contains(t.counted, name) {
			n, found = n+more, true
		}
	}
	if t.counted == nil {
		t.forget(values)
	}
	return n, found
}

// forget drops what is not read any more, such as interfaces that are gone.
func (t *Rise) forget(values map[string]uint64) {
	for name := range t.each {
		if _, ok := values[name]; !ok {
			delete(t.each, name)
		}
	}
}

func (t *Rise) reading(now time.Time) Reading {
	limit := max(t.cfg.Threshold, t.cfg.Factor*t.usual.value)
	rule := fmt.Sprintf("%s in %s >= %g", t.what, seconds(t.cfg.Window), t.cfg.Threshold)
	if t.cfg.Factor > 0 {
		rule += fmt.Sprintf(" and >= %g x baseline", t.cfg.Factor)
	}
	r := Reading{
		Firing: evidence.Firing{
			Trigger: t.name, Time: now, Unit: t.unit, Expression: rule,
			Value: math.Round(t.sum.sum), Threshold: tenth(limit), Baseline: tenth(t.usual.value),
		},
		Over: t.sum.sum >= limit, Calm: t.sum.sum < limit/2,
	}
	if r.Over {
		r.Firing.Reason = fmt.Sprintf("%.0f %s in %s (%s): the threshold is %g, usual are %g",
			t.sum.sum, t.what, seconds(t.cfg.Window), t.list(), r.Firing.Threshold, r.Firing.Baseline)
	}
	return r
}

// maxCounters bounds the counters in a sentence.
const maxCounters = 4

// list names the counters that moved, the most first.
func (t *Rise) list() string {
	var names []string
	for name, g := range t.each {
		if g.recent.sum >= 0.5 {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, func(a, b string) int {
		if x, y := t.each[a].recent.sum, t.each[b].recent.sum; x != y {
			return int(math.Copysign(1, y-x))
		}
		return strings.Compare(a, b)
	})
	names = names[:min(len(names), maxCounters)]
	for i, name := range names {
		names[i] = fmt.Sprintf("%s +%.0f", name, t.each[name].recent.sum)
	}
	return strings.Join(names, ", ")
}
