package triggers

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"tcpcoroner/evidence"
)

// SetConfig is the storm control, the same for all triggers.
type SetConfig struct {
	// CoolDown is how long after the end of a storm the same trigger does not fire.
	CoolDown time.Duration `yaml:"cool_down"`
	// MaxStorm is how long a storm is reported as ongoing. A condition that lasts
	// longer is not news: it is held until it calms down, and fires no more.
	MaxStorm time.Duration `yaml:"max_storm"`
	// BreakThrough is how many times the size of the storm before a new one must be
	// to fire within the cool-down; 0 is never.
	BreakThrough float64 `yaml:"break_through"`
	// MaxPerHour bounds the incidents that triggers begin in an hour, MaxBytesPerHour
	// the bytes that are stored of them (see Stored); 0 is no bound. A firing that
	// joins an incident is free.
	MaxPerHour      int    `yaml:"max_per_hour"`
	MaxBytesPerHour uint64 `yaml:"max_bytes_per_hour"`
	// DryRun names the triggers that only count what they would have fired.
	DryRun []string `yaml:"dry_run"`
}

// DefaultSet is a cool-down of 5 minutes that four times the storm breaks through,
// and at most 60 incidents and 1 GiB an hour.
func DefaultSet() SetConfig {
	return SetConfig{CoolDown: 5 * time.Minute, MaxStorm: 10 * time.Minute, BreakThrough: 4,
		MaxPerHour: 60, MaxBytesPerHour: 1 << 30}
}

// Validate names the first field that cannot be.
func (c SetConfig) Validate() error {
	switch {
	case c.CoolDown < 0 || c.CoolDown > 24*time.Hour:
		return fmt.Errorf("cool_down is %v: must be from 0s to 24h", c.CoolDown)
	case c.MaxStorm < 10*time.Second || c.MaxStorm > 24*time.Hour:
		return fmt.Errorf("max_storm is %v: must be from 10s to 24h", c.MaxStorm)
	case !(c.BreakThrough == 0 || c.BreakThrough > 1):
		return fmt.Errorf("break_through is %g: must be over 1, or 0 for never", c.BreakThrough)
	case c.MaxPerHour < 0:
		return fmt.Errorf("max_per_hour is %d: must be at least 1, or 0 for no bound", c.MaxPerHour)
	}
	return nil
}

// Phase is where a trigger stands.
type Phase string

// The phases. A storm goes armed, firing, cooling, armed; one that is longer
// than MaxStorm goes through held.
const (
	Armed       Phase = "armed"
	Firing      Phase = "firing"
	Held        Phase = "held"
	Cooling     Phase = "cooling"
	Unavailable Phase = "unavailable"
	Disabled    Phase = "disabled"
)

// State is one trigger as the status shows it.
type State struct {
	Name string `json:"name"`
	// Namespace is as in evidence.Firing.
	Namespace string `json:"namespace,omitempty"`
	Enabled   bool   `json:"enabled"`
	Phase     Phase  `json:"phase"`
	// Until is the end of the cool-down.
	Until     time.Time `json:"until,omitzero"`
	Value     float64   `json:"value"`
	Threshold float64   `json:"threshold"`
	Baseline  float64   `json:"baseline"`
	Unit      string    `json:"unit"`
	LastFired time.Time `json:"last_fired,omitzero"`
	// Fired counts firings, Suppressed the storms that did not fire because of a
	// cool-down or of what an hour may bring, Failed the checks without a reading,
	// WouldHaveFired the firings of a dry run.
	Fired          uint64 `json:"fired"`
	Suppressed     uint64 `json:"suppressed"`
	Failed         uint64 `json:"failed"`
	DryRun         bool   `json:"dry_run,omitempty"`
	WouldHaveFired uint64 `json:"would_have_fired,omitempty"`
	// Why says why it is unavailable.
	Why string `json:"why,omitempty"`
}

// Set checks triggers and turns crossings into firings: a storm is one firing.
//
//	armed    over the threshold: fires, and the storm begins
//	firing   the storm goes on: Check reports it as ongoing, it is the same
//	         incident, unless a level that was only high begins to do damage,
//	         which fires once more; calm again: the cool-down begins
//	held     longer than MaxStorm: not ongoing any more, waits for calm; what is
//	         measured from here on is learned as usual
//	cooling  a new storm is counted as suppressed unless it breaks through; one
//	         that still rages when the cool-down ends fires then
type Set struct {
	cfg SetConfig

	mu      sync.Mutex
	watches []watch
	// hour is what was spent in the last hour.
	hour []spent
}

// spent is an incident that began, or bytes that were stored.
type spent struct {
	at        time.Time
	incidents int
	bytes     uint64
}

// watch is the state of one trigger.
type watch struct {
	trigger Trigger
	state   State
	// since is when the storm began or the cool-down started.
	since time.Time
	// peak is the largest value of the last storm, in peakUnit.
	peak       float64
	peakUnit   string
	suppressed bool
	// steady is Reading.Steady of the last check; escalated that a steady storm
	// has fired again because it began to do harm.
	steady, escalated bool
	// silent tells that the storm did not fire: a dry run, or too much in this hour.
	silent bool
}

// NewSet puts triggers under one storm control.
func NewSet(cfg SetConfig, triggers ...Trigger) *Set {
	s := &Set{cfg: cfg}
	s.add("", triggers)
	return s
}

func (s *Set) add(namespace string, triggers []Trigger) {
	for _, t := range triggers {
		w := watch{trigger: t, state: State{Name: t.Name(), Namespace: namespace, Enabled: t.Enabled(), Phase: Armed,
			DryRun: slices.Contains(s.cfg.DryRun, t.Name())}}
		if !t.Enabled() {
			w.state.Phase = Disabled
		}
		s.watches = append(s.watches, w)
	}
}

// Check checks all triggers, about once a second, from one goroutine. fired are
// the storms that began now; ongoing tells that one that fired, now or earlier,
// has not ended and is not steady, so that its incident should be kept open.
func (s *Set) Check(now time.Time) (fired []evidence.Firing, ongoing bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.watches {
		w := &s.watches[i]
		if !w.state.Enabled {
			continue
		}
		joins := s.ongoing()
		if f, ok := w.check(now, s.cfg); ok && s.admit(w, now, joins) {
			fired = append(fired, w.placed(f))
		}
	}
	return fired, s.ongoing()
}

// ongoing tells whether an incident is open that a firing would join.
func (s *Set) ongoing() bool {
	return slices.ContainsFunc(s.watches, func(w watch) bool {
		return w.state.Phase == Firing && !w.steady && !w.silent
	})
}

// admit decides about a storm that begins. joins tells that its firing begins no
// incident of its own.
func (s *Set) admit(w *watch, now time.Time, joins bool) bool {
	w.silent = true
	if w.state.DryRun {
		w.state.WouldHaveFired++
		return false
	}
	if !joins && !s.affordable(now) {
		w.state.Suppressed++
		return false
	}
	if !joins {
		s.hour = append(s.hour, spent{at: now, incidents: 1})
	}
	w.silent = false
	w.state.LastFired = now
	w.state.Fired++
	return true
}

// affordable tells whether this hour may bring one more incident.
func (s *Set) affordable(now time.Time) bool {
	s.hour = slices.DeleteFunc(s.hour, func(x spent) bool { return now.Sub(x.at) >= time.Hour })
	incidents, bytes := 0, uint64(0)
	for _, x := range s.hour {
		incidents += x.incidents
		bytes += x.bytes
	}
	return (s.cfg.MaxPerHour == 0 || incidents < s.cfg.MaxPerHour) &&
		(s.cfg.MaxBytesPerHour == 0 || bytes < s.cfg.MaxBytesPerHour)
}

// Stored tells how many bytes an incident took, for MaxBytesPerHour. It is safe for
// concurrent use.
func (s *Set) Stored(now time.Time, bytes uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.affordable(now) // forgets what is older
	s.hour = append(s.hour, spent{at: now, bytes: bytes})
}

// States lists all triggers as an operator wants to see them, in the order of
// NewSet. It is safe for concurrent use.
func (s *Set) States() []evidence.TriggerState {
	s.mu.Lock()
	defer s.mu.Unlock()
	states := make([]evidence.TriggerState, len(s.watches))
	for i := range s.watches {
		w := &s.watches[i]
		states[i] = evidence.TriggerState{
			Name: w.state.Name, Namespace: w.state.Namespace, Enabled: w.state.Enabled, DryRun: w.state.DryRun,
			Value: w.state.Value, Threshold: w.state.Threshold, Unit: w.state.Unit,
			Firing: w.state.Phase == Firing && !w.silent, LastFiring: w.state.LastFired,
			Suppressed: w.state.Suppressed, WouldHaveFired: w.state.WouldHaveFired, Why: w.state.Why,
		}
	}
	return states
}

// State lists all triggers, in the order of NewSet.
func (s *Set) State(now time.Time) []State {
	s.mu.Lock()
	defer s.mu.Unlock()
	states := make([]State, len(s.watches))
	for i := range s.watches {
		w := &s.watches[i]
		states[i] = w.state
		switch {
		case !w.state.Enabled:
		case w.state.Why != "":
			states[i].Phase = Unavailable
		case w.state.Phase == Cooling && now.Before(w.since.Add(s.cfg.CoolDown)):
			states[i].Until = w.since.Add(s.cfg.CoolDown)
		case w.state.Phase == Cooling:
			states[i].Phase = Armed
		}
	}
	return states
}

// check measures and moves on. A check without a reading moves only what the
// clock alone can move.
func (w *watch) check(now time.Time, cfg SetConfig) (f evidence.Firing, fires bool) {
	w.expire(now, cfg)
	r, err := w.trigger.Check(now, w.state.Phase == Firing || w.suppressed)
	if err != nil {
		w.state.Failed++
		w.state.Why = err.Error()
		return f, false
	}
	w.state.Why = ""
	w.state.Value, w.state.Threshold = r.Firing.Value, r.Firing.Threshold
	w.state.Baseline, w.state.Unit = r.Firing.Baseline, r.Firing.Unit
	harms := w.steady && !r.Steady
	w.steady = r.Steady
	if r.Calm {
		w.calm(now)
	}
	if r.Over {
		fires = w.over(now, cfg, r.Firing, harms)
	}
	return r.Firing, fires
}

// expire ends what ends by the clock.
func (w *watch) expire(now time.Time, cfg SetConfig) {
	switch {
	case w.state.Phase == Firing && now.Sub(w.since) >= cfg.MaxStorm:
		w.state.Phase = Held
	case w.state.Phase == Cooling && now.Sub(w.since) >= cfg.CoolDown:
		w.state.Phase, w.suppressed = Armed, false
	}
}

// calm ends a storm, fired or suppressed.
func (w *watch) calm(now time.Time) {
	w.suppressed = false
	if w.state.Phase == Firing || w.state.Phase == Held {
		w.state.Phase, w.since = Cooling, now
	}
}

// over begins a storm or lets one grow; it tells whether it fires. harms tells
// that a level which had only been high does damage now: news, once a storm.
func (w *watch) over(now time.Time, cfg SetConfig, f evidence.Firing, harms bool) bool {
	switch w.state.Phase {
	case Firing, Held:
		w.grow(f)
		if !harms || w.escalated {
			return false
		}
		w.begin(now, f)
		w.escalated = true
		return true
	case Cooling:
		if !w.breaksThrough(cfg, f) {
			if !w.suppressed {
				w.state.Suppressed++
			}
			w.suppressed = true
			return false
		}
	}
	w.begin(now, f)
	w.escalated = false
	return true
}

func (w *watch) begin(now time.Time, f evidence.Firing) {
	w.state.Phase, w.since, w.suppressed = Firing, now, false
	w.peak, w.peakUnit = f.Value, f.Unit
}

func (w *watch) grow(f evidence.Firing) {
	if f.Unit != w.peakUnit || f.Value > w.peak {
		w.peak, w.peakUnit = f.Value, f.Unit
	}
}

func (w *watch) breaksThrough(cfg SetConfig, f evidence.Firing) bool {
	return cfg.BreakThrough > 0 && f.Unit == w.peakUnit && f.Value >= cfg.BreakThrough*w.peak
}
