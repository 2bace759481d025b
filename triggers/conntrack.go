package triggers

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"tcpcoroner/evidence"
)

// ConntrackConfig is the configuration of the trigger "conntrack".
type ConntrackConfig struct {
	Enabled bool `yaml:"enabled"`
	// Usage is the share of the table, from 0 to 1, at which it fires, Rearm the
	// share below which it is armed again.
	Usage float64 `yaml:"usage"`
	Rearm float64 `yaml:"rearm"`
	// FullWithin fires earlier, at a share of Rising, if the table will be full in
	// that time should it go on like in the last seconds; 0 is never.
	Rising     float64       `yaml:"rising"`
	FullWithin time.Duration `yaml:"full_within"`
	// Window is the sliding window in which losses are counted.
	Window time.Duration `yaml:"window"`
	// Drops fires on that many packets dropped or entries evicted because the table
	// was full (drop + early_drop); 0 is never.
	Drops uint64 `yaml:"drops"`
	// InsertFailed fires on that many entries that could not be inserted; 0 is
	// never. Hosts where two packets of one UDP flow race (DNS behind source NAT)
	// show a few without harm.
	InsertFailed uint64 `yaml:"insert_failed"`
}

// DefaultConntrack fires at 95 %, at 70 % if the table is full in a minute, and at
// the first loss.
func DefaultConntrack() ConntrackConfig {
	return ConntrackConfig{
		Enabled: true, Usage: 0.95, Rearm: 0.85, Rising: 0.7, FullWithin: time.Minute,
		Window: 10 * time.Second, Drops: 1, InsertFailed: 1,
	}
}

// Validate names the first field that cannot be.
func (c ConntrackConfig) Validate() error {
	switch {
	case !c.Enabled:
		return nil
	case !(c.Usage > 0 && c.Usage <= 1):
		return fmt.Errorf("conntrack.usage is %g: must be over 0 and at most 1", c.Usage)
	case !(c.Rearm >= 0 && c.Rearm < c.Usage):
		return fmt.Errorf("conntrack.rearm is %g: must be at least 0 and below conntrack.usage (%g)", c.Rearm, c.Usage)
	case c.FullWithin < 0 || c.FullWithin > maxWindow:
		return fmt.Errorf("conntrack.full_within is %v: must be from 0s (never) to %v", c.FullWithin, maxWindow)
	case c.FullWithin > 0 && !(c.Rising > 0 && c.Rising <= c.Usage):
		return fmt.Errorf("conntrack.rising is %g: must be over 0 and at most conntrack.usage (%g)", c.Rising, c.Usage)
	case c.Window < minWindow || c.Window > maxWindow:
		return windowError("conntrack.window", c.Window)
	}
	return nil
}

// Conntrack fires when the connection-tracking table is nearly full, will be soon,
// or loses entries or packets.
type Conntrack struct {
	cfg  ConntrackConfig
	read func() (*evidence.Conntrack, error)
	// loss are drop, early_drop and insert_failed.
	loss [3]struct {
		count  counter
		window window
	}
	count trend
}

// NewConntrack makes the trigger; read reads count, max and the counters. TopTalkers
// are not needed.
func NewConntrack(cfg ConntrackConfig, read func() (*evidence.Conntrack, error)) *Conntrack {
	t := &Conntrack{cfg: cfg, read: read}
	for i := range t.loss {
		t.loss[i].window.span = cfg.Window
	}
	return t
}

// Name is "conntrack".
func (t *Conntrack) Name() string { return "conntrack" }

// Enabled tells whether the configuration wants it checked.
func (t *Conntrack) Enabled() bool { return t.cfg.Enabled }

var errNoConntrack = errors.New("no connection tracking on this host")

// Check reads the table. storm does not matter: the limits are absolute.
func (t *Conntrack) Check(now time.Time, _ bool) (Reading, error) {
	ct, err := t.read()
	if err == nil && ct == nil {
		err = errNoConntrack
	}
	if err != nil {
		return Reading{}, fmt.Errorf("read conntrack: %w", err)
	}
	drop, early, failed := t.losses(now, ct)
	lossy := t.cfg.Drops > 0 && drop+early >= float64(t.cfg.Drops) ||
		t.cfg.InsertFailed > 0 && failed >= float64(t.cfg.InsertFailed)
	full := ct.Max > 0 && ct.Usage() >= t.cfg.Usage
	t.count.add(now, float64(ct.Count))
	left, rises := t.count.reaches(float64(ct.Max))
	soon := rises && t.cfg.FullWithin > 0 && ct.Usage() >= t.cfg.Rising && left <= t.cfg.FullWithin
	r := Reading{Firing: t.firing(now, ct), Over: full || lossy || soon,
		Calm: !lossy && !soon && ct.Usage() < t.cfg.Rearm, Steady: !lossy}
	if !r.Over {
		return r, nil
	}
	switch {
	case full:
	case lossy:
		t.stateLoss(&r.Firing, drop+early, failed)
	default:
		r.Firing.Threshold = t.cfg.Rising
		r.Firing.Expression = fmt.Sprintf("conntrack count / max >= %g and full within %s", t.cfg.Rising, seconds(t.cfg.FullWithin))
	}
	r.Firing.Reason = t.reason(ct, full, lossy, drop, early, failed)
	if rises && ct.Count < ct.Max {
		r.Firing.Reason += fmt.Sprintf("; full in %.0f s if it goes on like this", left.Seconds())
	}
	return r, nil
}

func (t *Conntrack) losses(now time.Time, ct *evidence.Conntrack) (drop, early, failed float64) {
	for i, total := range []uint64{ct.Drop, ct.EarlyDrop, ct.InsertFailed} {
		l := &t.loss[i]
		l.window.add(now, float64(l.count.add(total)))
	}
	return t.loss[0].window.sum, t.loss[1].window.sum, t.loss[2].window.sum
}

func (t *Conntrack) firing(now time.Time, ct *evidence.Conntrack) evidence.Firing {
	return evidence.Firing{
		Trigger: t.Name(), Time: now, Unit: "1",
		Expression: fmt.Sprintf("conntrack count / max >= %g", t.cfg.Usage),
		Value:      ct.Usage(), Threshold: t.cfg.Usage,
	}
}

// stateLoss makes the losses the numbers of the firing, for the table is not full now.
func (t *Conntrack) stateLoss(f *evidence.Firing, drops, failed float64) {
	f.Unit = "{loss}"
	if t.cfg.Drops > 0 && drops >= float64(t.cfg.Drops) {
		f.Value, f.Threshold = drops, float64(t.cfg.Drops)
		f.Expression = fmt.Sprintf("conntrack drop + early_drop in %s >= %d", seconds(t.cfg.Window), t.cfg.Drops)
		return
	}
	f.Value, f.Threshold = failed, float64(t.cfg.InsertFailed)
	f.Expression = fmt.Sprintf("conntrack insert_failed in %s >= %d", seconds(t.cfg.Window), t.cfg.InsertFailed)
}

func (t *Conntrack) reason(ct *evidence.Conntrack, full, lossy bool, drop, early, failed float64) string {
	what := "conntrack table fills"
	switch {
	case full:
		what = "conntrack table nearly full"
	case lossy:
		what = "conntrack table loses entries"
	}
	s := fmt.Sprintf("%s: %d of %d entries (%.1f %%)", what, ct.Count, ct.Max, ct.Usage()*100)
	var moved []string
	for _, l := range []struct {
		name string
		n    float64
	}{{"drop", drop}, {"early_drop", early}, {"insert_failed", failed}} {
		if l.n > 0 {
			moved = append(moved, fmt.Sprintf("%s +%.0f", l.name, l.n))
		}
	}
	if moved == nil {
		return s + ", nothing lost yet"
	}
	return fmt.Sprintf("%s; in %s %s", s, seconds(t.cfg.Window), strings.Join(moved, ", "))
}
