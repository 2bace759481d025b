package main

import (
	"math"
	"math/rand/v2"
	"regexp"
	"strconv"
	"testing"
	"time"

	"tcpcoroner/internal/netlab"
	"tcpcoroner/recorder/snapshot"
	"tcpcoroner/triggers"
)

// TestConntrackIsForetold fills a table unevenly from 85 % to the end. The trigger
// fires at 90 % and says when the table will be full; then it is waited for.
func TestConntrackIsForetold(t *testing.T) {
	netlab.NeedRoot(t)
	t.Parallel()
	ns, limit := netlab.NewNS(t), conntrackMax(t)
	filled := limit * 85 / 100
	fillConntrack(t, ns, filled)
	cfg := triggers.DefaultConntrack()
	cfg.Rising, cfg.FullWithin, cfg.Drops, cfg.InsertFailed = 0.9, time.Minute, 0, 0
	f := foretold{tracker: netlab.NewTracker(t, ns.Do), limit: limit, trigger: triggers.NewConntrack(cfg, snapshot.New(snapshot.Config{}).Conntrack)}
	if err := ns.Do(func() error { return f.fill(filled) }); err != nil {
		t.Fatal(err)
	}
	left, want := f.left.Seconds(), f.full.Sub(f.fired).Seconds()
	t.Logf("at %.1f %%: full in %.0f s; it took %.1f s", f.usage*100, left, want)
	// The reason tells whole seconds.
	if f.fired.IsZero() || math.Abs(left-want) > 0.25*want+0.5 {
		t.Errorf("foretold %.0f s, was %.1f s", left, want)
	}
}

type foretold struct {
	tracker *netlab.Tracker
	limit   int
	trigger *triggers.Conntrack
	fired   time.Time
	left    time.Duration
	usage   float64
	full    time.Time
}

// fill takes about six seconds for the last 15 %, uneven by a third up and down.
func (f *foretold) fill(n int) error {
	const beat = 200 * time.Millisecond
	every := time.NewTicker(beat)
	defer every.Stop()
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // the same each time
	share := float64(f.limit-n) * beat.Seconds() / 6
	for n < f.limit-1 {
		to := min(n+int(share*(0.67+0.66*random.Float64())), f.limit-1)
		if err := f.tracker.Track(talks(n, to)...); err != nil {
			return err
		}
		n = to
		if err := f.check(<-every.C); err != nil {
			return err
		}
	}
	f.full = time.Now()
	return nil
}

var inSeconds = regexp.MustCompile(`full in (\d+) s`)

func (f *foretold) check(now time.Time) error {
	r, err := f.trigger.Check(now, false)
	m := inSeconds.FindStringSubmatch(r.Firing.Reason)
	if err != nil || !f.fired.IsZero() || !r.Over || m == nil {
		return err
	}
	s, err := strconv.Atoi(m[1])
	f.fired, f.left, f.usage = now, time.Duration(s)*time.Second, r.Firing.Value
	return err
}
