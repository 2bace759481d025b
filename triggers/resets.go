package triggers

import (
	"fmt"
	"math"
	"time"

	"tcpcoroner/evidence"
)

// ResetsConfig is the configuration of the trigger "reset_rate".
type ResetsConfig struct {
	Enabled bool `yaml:"enabled"`
	// Window is the sliding window in which resets are counted.
	Window time.Duration `yaml:"window"`
	// Threshold is the number of resets in the window below which it never fires.
	Threshold float64 `yaml:"threshold"`
	// Factor is how many times the baseline the count must be.
	Factor float64 `yaml:"factor"`
}

// DefaultResets fires at 20 resets in 10 s if that is four times the usual.
func DefaultResets() ResetsConfig {
	return ResetsConfig{Enabled: true, Window: 10 * time.Second, Threshold: 20, Factor: 4}
}

// Validate names the first field that cannot be.
func (c ResetsConfig) Validate() error {
	switch {
	case !c.Enabled:
		return nil
	case c.Window < minWindow || c.Window > maxWindow:
		return windowError("resets.window", c.Window)
	case !(c.Threshold >= 1):
		return fmt.Errorf("resets.threshold is %g: must be at least 1", c.Threshold)
	case !(c.Factor >= 1):
		return fmt.Errorf("resets.factor is %g: must be at least 1", c.Factor)
	}
	return nil
}

// The bounds of a sliding window: shorter is less than two checks, longer than a
// flight buffer can be expected to hold.
const (
	minWindow = 2 * time.Second
	maxWindow = 10 * time.Minute
)

func windowError(field string, v time.Duration) error {
	return fmt.Errorf("%s is %v: must be from %v to %v", field, v, minWindow, maxWindow)
}

// Resets fires when far more RST segments than usual pass, whatever they did.
type Resets struct {
	cfg    ResetsConfig
	resets func() uint64
	count  counter
	window window
	usual  baseline
}

// NewResets makes the trigger; resets is the monotonic count of RST segments seen.
func NewResets(cfg ResetsConfig, resets func() uint64) *Resets {
	return &Resets{cfg: cfg, resets: resets, window: window{span: cfg.Window}}
}

// Name is "reset_rate".
func (t *Resets) Name() string { return "reset_rate" }

// Enabled tells whether the configuration wants it checked.
func (t *Resets) Enabled() bool { return t.cfg.Enabled }

// Check counts the resets of the window. It never fails.
func (t *Resets) Check(now time.Time, storm bool) (Reading, error) {
	left := t.window.add(now, float64(t.count.add(t.resets())))
	if !storm {
		t.usual.learn(left, t.cfg.Window)
	}
	threshold := max(t.cfg.Threshold, t.cfg.Factor*t.usual.value)
	r := Reading{
		Firing: evidence.Firing{
			Trigger: t.Name(), Time: now, Unit: "{reset}",
			Expression: fmt.Sprintf("resets in %s >= %g and >= %g x baseline",
				seconds(t.cfg.Window), t.cfg.Threshold, t.cfg.Factor),
			Value: math.Round(t.window.sum), Threshold: tenth(threshold), Baseline: tenth(t.usual.value),
		},
		Over: t.window.sum >= threshold,
		Calm: t.window.sum < threshold/2,
	}
	if r.Over {
		r.Firing.Reason = fmt.Sprintf("%g resets in %s: the threshold is %g, usual are %g",
			r.Firing.Value, seconds(t.cfg.Window), r.Firing.Threshold, r.Firing.Baseline)
	}
	return r, nil
}

// seconds writes a duration for a sentence: "10 s".
func seconds(d time.Duration) string { return fmt.Sprintf("%g s", d.Seconds()) }

// tenth rounds to one decimal: more is noise to the reader.
func tenth(v float64) float64 { return math.Round(v*10) / 10 }
