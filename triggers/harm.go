package triggers

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"tcpcoroner/evidence"
)

// HarmConfig is the configuration of the trigger "resets".
type HarmConfig struct {
	Enabled bool `yaml:"enabled"`
	// Window is the sliding window in which resets are counted.
	Window time.Duration `yaml:"window"`
	// Threshold is the number of harmful resets of one service and neighbourhood of
	// peers at which it fires, if that is Factor times what is usual there.
	Threshold float64 `yaml:"threshold"`
	Factor    float64 `yaml:"factor"`
	// Share is the harmful part, from 0 to 1, of all connections that ended, at which
	// it fires, however scattered: with Threshold harmful ones at least, at least
	// Closes ends, and Factor times the usual part. 0 is never.
	Share  float64 `yaml:"share"`
	Closes float64 `yaml:"closes"`
	// News fires on that many resets of a harmful kind that was not seen for
	// Forget; 0 is never.
	News   float64       `yaml:"news"`
	Forget time.Duration `yaml:"forget"`
}

// DefaultHarm fires at 5 harmful resets in 10 s if that is four times the usual, at
// 2 % harmful ends, and at 3 of a kind that was not seen for an hour.
func DefaultHarm() HarmConfig {
	return HarmConfig{Enabled: true, Window: 10 * time.Second, Threshold: 5, Factor: 4,
		Share: 0.02, Closes: 50, News: 3, Forget: time.Hour}
}

// Validate names the first field that cannot be.
func (c HarmConfig) Validate() error {
	switch {
	case !c.Enabled:
		return nil
	case c.Window < minWindow || c.Window > maxWindow:
		return windowError("resets.window", c.Window)
	case !(c.Threshold >= 1):
		return fmt.Errorf("resets.threshold is %g: must be at least 1", c.Threshold)
	case !(c.Factor >= 1):
		return fmt.Errorf("resets.factor is %g: must be at least 1", c.Factor)
	case !(c.Share >= 0 && c.Share <= 1):
		return fmt.Errorf("resets.share is %g: must be from 0 to 1", c.Share)
	case c.News < 0:
		return fmt.Errorf("resets.news is %g: must be at least 1, or 0 for never", c.News)
	case c.News > 0 && c.Forget < c.Window:
		return fmt.Errorf("resets.forget is %v: must be at least resets.window (%v)", c.Forget, c.Window)
	}
	return nil
}

// Harm fires when resets did harm: many of one service, a large part of all ends,
// or harm of a new kind.
type Harm struct {
	cfg    HarmConfig
	read   func() evidence.HarmSample
	groups map[evidence.HarmGroup]*groupHarm
	kinds  [evidence.HarmKinds]kindHarm
	// all are the harmful resets, closes the ends of connections.
	all, closes             window
	closed                  counter
	usualHarm, usualClosing baseline
	// started tells that groups which appear now were not there at the start.
	started bool
}

type groupHarm struct {
	kinds  [evidence.HarmKinds]counter
	recent [evidence.HarmKinds]window
	sum    window
	usual  baseline
	listed bool
}

type kindHarm struct {
	count counter
	sum   window
	// last is when it was seen, began when it was after a long silence.
	last, began time.Time
}

// NewHarm makes the trigger; read tells what all resets did so far.
func NewHarm(cfg HarmConfig, read func() evidence.HarmSample) *Harm {
	t := &Harm{cfg: cfg, read: read, groups: map[evidence.HarmGroup]*groupHarm{},
		all: window{span: cfg.Window}, closes: window{span: cfg.Window}}
	for k := range t.kinds {
		t.kinds[k].sum.span = cfg.Window
	}
	return t
}

// Name is "resets".
func (t *Harm) Name() string { return "resets" }

// Enabled tells whether the configuration wants it checked.
func (t *Harm) Enabled() bool { return t.cfg.Enabled }

// Check counts the harm of the window. It never fails.
func (t *Harm) Check(now time.Time, storm bool) (Reading, error) {
	s := t.read()
	t.countAll(now, t.countKinds(now, &s), s.Closes, storm)
	t.countGroups(now, &s, storm)
	t.started = true
	return t.reading(now), nil
}

// countKinds returns how many resets since the last check were harmful.
func (t *Harm) countKinds(now time.Time, s *evidence.HarmSample) (harmful float64) {
	for i := range t.kinds {
		k := &t.kinds[i]
		n := k.count.add(s.Kinds[i])
		k.sum.add(now, float64(n))
		if n == 0 {
			continue
		}
		if evidence.HarmKind(i).Harmful() {
			harmful += float64(n)
		}
		if k.last.IsZero() || now.Sub(k.last) >= t.cfg.Forget {
			k.began = now
		}
		k.last = now
	}
	return harmful
}

func (t *Harm) countAll(now time.Time, harmful float64, closes uint64, storm bool) {
	left := t.all.add(now, harmful)
	ended := t.closes.add(now, float64(t.closed.add(closes)))
	if !storm {
		t.usualHarm.learn(left, t.cfg.Window)
		t.usualClosing.learn(ended, t.cfg.Window)
	}
}

func (t *Harm) countGroups(now time.Time, s *evidence.HarmSample, storm bool) {
	for _, g := range t.groups {
		g.listed = false
	}
	for i := range s.Groups {
		t.group(&s.Groups[i]).count(now, &s.Groups[i].Kinds, t.cfg.Window, storm)
	}
	for key, g := range t.groups {
		if !g.listed { // it made room for others
			delete(t.groups, key)
		}
	}
}

// group finds what is known of a group. One that appears begins at zero.
func (t *Harm) group(s *evidence.GroupHarm) *groupHarm {
	g := t.groups[s.HarmGroup]
	if g == nil {
		g = &groupHarm{sum: window{span: t.cfg.Window}}
		for k := range g.kinds {
			g.kinds[k].known = t.started
			g.recent[k].span = t.cfg.Window
		}
		t.groups[s.HarmGroup] = g
	}
	return g
}

func (g *groupHarm) count(now time.Time, kinds *evidence.HarmCounts, span time.Duration, storm bool) {
	harmful := 0.0
	for k := evidence.HarmDataLost; k < evidence.HarmKinds; k++ {
		n := float64(g.kinds[k].add(kinds[k]))
		g.recent[k].add(now, n)
		harmful += n
	}
	left := g.sum.add(now, harmful)
	if !storm {
		g.usual.learn(left, span)
	}
	g.listed = true
}

// reading asks the three rules, the most telling first.
func (t *Harm) reading(now time.Time) Reading {
	worst, calm := t.worst(now)
	if worst.Over {
		return worst
	}
	for _, rule := range []func(time.Time) Reading{t.scattered, t.news} {
		r := rule(now)
		if r.Over {
			return r
		}
		calm = calm && r.Calm
	}
	worst.Calm = calm
	return worst
}

// worst is the group that is furthest over its threshold; calm tells that all are
// far below.
func (t *Harm) worst(now time.Time) (r Reading, calm bool) {
	r.Firing = t.firing(now, fmt.Sprintf("harmful resets of one service in %s >= %g and >= %g x baseline",
		seconds(t.cfg.Window), t.cfg.Threshold, t.cfg.Factor))
	r.Firing.Threshold, calm = t.cfg.Threshold, true
	most, which := 0.0, evidence.HarmGroup{}
	for key, g := range t.groups {
		limit := max(t.cfg.Threshold, t.cfg.Factor*g.usual.value)
		share := g.sum.sum / limit
		calm = calm && share < 0.5
		if share > most || share == most && share > 0 && key.String() < which.String() {
			most, which = share, key
			r.Firing.Value, r.Firing.Threshold, r.Firing.Baseline = math.Round(g.sum.sum), tenth(limit), tenth(g.usual.value)
		}
	}
	if r.Over = most >= 1; r.Over {
		r.Firing.Reason = fmt.Sprintf("%g harmful resets in %s on %v (%s): the threshold is %g, usual are %g%s",
			r.Firing.Value, seconds(t.cfg.Window), which, listKinds(t.groups[which].recent[:]),
			r.Firing.Threshold, r.Firing.Baseline, t.benign())
	}
	return r, calm
}

// scattered is the rule of the harmful share.
func (t *Harm) scattered(now time.Time) Reading {
	share, usual := ratio(t.all.sum, t.closes.sum), ratio(t.usualHarm.value, t.usualClosing.value)
	limit := max(t.cfg.Share, t.cfg.Factor*usual)
	r := Reading{Firing: t.firing(now, fmt.Sprintf("harmful share of closed connections in %s >= %g and >= %g x baseline, of %g at least",
		seconds(t.cfg.Window), t.cfg.Share, t.cfg.Factor, t.cfg.Closes))}
	r.Firing.Unit, r.Firing.Value, r.Firing.Threshold, r.Firing.Baseline = "1", thousandth(share), thousandth(limit), thousandth(usual)
	counts := t.cfg.Share > 0 && t.closes.sum >= t.cfg.Closes && t.all.sum >= t.cfg.Threshold
	r.Over, r.Calm = counts && share >= limit, !counts || share < limit/2
	if r.Over {
		r.Firing.Reason = fmt.Sprintf("%.1f %% of %.0f connections that ended in %s did harm (%s): the threshold is %.1f %%, usual are %.1f %%",
			share*100, t.closes.sum, seconds(t.cfg.Window), t.list(), limit*100, usual*100)
	}
	return r
}

// news is the rule of a kind of harm that was not seen for long.
func (t *Harm) news(now time.Time) Reading {
	r := Reading{Calm: true, Firing: t.firing(now, fmt.Sprintf("resets of a kind of harm not seen for %v in %s >= %g",
		t.cfg.Forget, seconds(t.cfg.Window), t.cfg.News))}
	r.Firing.Threshold = t.cfg.News
	for i := evidence.HarmDataLost; i < evidence.HarmKinds && t.cfg.News > 0; i++ {
		k := &t.kinds[i]
		if now.Sub(k.began) >= t.cfg.Window || k.sum.sum < t.cfg.News || k.sum.sum <= r.Firing.Value {
			continue
		}
		r.Over, r.Calm, r.Firing.Value = true, false, math.Round(k.sum.sum)
		r.Firing.Reason = fmt.Sprintf("%.0f resets of a new kind of harm in %s: %v, not seen for %v or since the start",
			k.sum.sum, seconds(t.cfg.Window), i, t.cfg.Forget)
	}
	return r
}

func (t *Harm) firing(now time.Time, rule string) evidence.Firing {
	return evidence.Firing{Trigger: t.Name(), Time: now, Unit: "{reset}", Expression: rule}
}

// list names the harmful kinds of the window.
func (t *Harm) list() string {
	var sums [evidence.HarmKinds]window
	for k := range sums {
		sums[k] = t.kinds[k].sum
	}
	return listKinds(sums[:])
}

// listKinds reads "data_lost 5, unanswered 2", the most first.
func listKinds(sums []window) string {
	var kinds []evidence.HarmKind
	for k := evidence.HarmDataLost; k < evidence.HarmKinds; k++ {
		if sums[k].sum >= 0.5 {
			kinds = append(kinds, k)
		}
	}
	slices.SortStableFunc(kinds, func(a, b evidence.HarmKind) int { return cmp.Compare(sums[b].sum, sums[a].sum) })
	parts := make([]string, len(kinds))
	for i, k := range kinds {
		parts[i] = fmt.Sprintf("%v %.0f", k, sums[k].sum)
	}
	return strings.Join(parts, ", ")
}

// benign ends a sentence with the resets that did no harm.
func (t *Harm) benign() string {
	n := 0.0
	for k := range evidence.HarmDataLost {
		n += t.kinds[k].sum.sum
	}
	if n < 0.5 {
		return ""
	}
	return fmt.Sprintf("; %.0f more were benign", n)
}

// ratio is 0 where there is nothing to compare with.
func ratio(a, b float64) float64 {
	if b <= 0 {
		return 0
	}
	return a / b
}

// thousandth rounds a share to a tenth of a percent.
func thousandth(v float64) float64 { return math.Round(v*1000) / 1000 }
