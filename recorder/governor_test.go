package recorder

import (
	"strings"
	"testing"
	"time"

	"tcpcoroner/evidence"
)

// drive runs a governor for some seconds, at a cost of each level in parts of a
// core, and returns the levels second by second.
func drive(g *governor, from, seconds int, cost func(second int) [4]float64) (levels []Level) {
	var used float64
	for s := from; s < from+seconds; s++ {
		for range 10 {
			used += cost(s)[g.level] / 10
			g.look(g.at+int64(100*time.Millisecond), g.used+int64(cost(s)[g.level]*1e8), 0)
		}
		levels = append(levels, g.level)
	}
	return levels
}

func governorAt(budget float64) *governor {
	g := newGovernor(budget)
	g.look(1, 0, 0)
	return &g
}

func steady(cost [4]float64) func(int) [4]float64 { return func(int) [4]float64 { return cost } }

func TestGovernor(t *testing.T) {
	for _, c := range []struct {
		name  string
		cost  [4]float64
		final Level
	}{
		{"inside the budget", [4]float64{.015, .015, .015, .015}, LevelFull},
		{"compression is too dear", [4]float64{.03, .015, .01, .01}, LevelPlain},
		{"encoding is too dear", [4]float64{.1, .08, .01, .001}, LevelHold},
		{"all is too dear", [4]float64{.5, .4, .1, .01}, LevelControl},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := governorAt(.02)
			levels := drive(g, 0, 600, steady(c.cost))
			var at [4]int
			for _, l := range levels {
				at[l]++
			}
			if most := levels[len(levels)-1]; at[c.final] < 300 && most != c.final {
				t.Errorf("seconds at each level: %v, want most at %v", at, c.final)
			}
			mean := float64(g.used) / float64(g.at)
			if mean > .02*1.35 && c.final != LevelFull {
				t.Errorf("used %.4f of a core on average, budget 0.02", mean)
			}
			t.Logf("seconds at each level %v, %d changes, %.4f of a core", at, g.changes, mean)
		})
	}
}

func TestGovernorAllowsBursts(t *testing.T) {
	g := governorAt(.02)
	drive(g, 0, 60, steady([4]float64{.005, 0, 0, 0}))
	if levels := drive(g, 0, 5, steady([4]float64{.1, 0, 0, 0})); levels[4] != LevelFull {
		t.Errorf("five seconds of load led to level %v", levels[4])
	}
}

func TestGovernorComesBack(t *testing.T) {
	g := governorAt(.02)
	drive(g, 0, 120, steady([4]float64{.5, .4, .3, .001}))
	levels := drive(g, 0, 900, steady([4]float64{.001, .001, .001, .001}))
	if last := levels[len(levels)-1]; last != LevelFull {
		t.Errorf("with no load, the level is %v after 15 minutes", last)
	}
}

func TestGovernorOff(t *testing.T) {
	g := governorAt(0)
	if drive(g, 0, 60, steady([4]float64{1, 1, 1, 1})); g.changes != 0 {
		t.Errorf("%d changes without a budget", g.changes)
	}
}

// Each change of level is in the window, and what is left out meanwhile.
func TestLevelsAreInTheWindow(t *testing.T) {
	now := Clock{Realtime: base.UnixNano(), Monotonic: 1}
	used := int64(0)
	r := newRecorder(t, Config{CPU: .02, Clock: func() Clock { return now }, Used: func() int64 { return used }})
	r.w.start(&Replay{})
	var levels []Level
	for range 8 {
		now.Realtime, now.Monotonic = now.Realtime+int64(time.Second), now.Monotonic+int64(time.Second)
		used += int64(time.Second)
		levels = append(levels, r.w.Tick().Level)
	}
	if last := levels[len(levels)-1]; last != LevelControl {
		t.Fatalf("levels %v", levels)
	}
	r.w.Skip(9, now.Realtime-5e8, now.Realtime)
	gaps := freeze(t, r, base, base.Add(time.Hour)).Window().Gaps
	var text strings.Builder
	for _, g := range gaps {
		text.WriteString(g.Reason + "\n")
	}
	for _, want := range []string{"full -> plain", "plain -> hold", "hold -> control", "only SYN, FIN, RST and ICMP are recorded", "of this time were kept"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no gap tells %q:\n%s", want, text.String())
		}
	}
	if w := (evidence.Window{Gaps: gaps}); w.Lost() != 9 {
		t.Errorf("lost %d packets, want 9", w.Lost())
	}
}

// A ring that fills up raises the level, also without a budget: soon, but not for
// a stall that is being made up for.
func TestGovernorKeepsUp(t *testing.T) {
	at := func(d time.Duration) int64 { return 1 + int64(d) }
	g := governorAt(0)
	for i, c := range []struct {
		at      time.Duration
		backlog float64
		want    Level
	}{
		{10 * time.Millisecond, .25, LevelFull},
		{20 * time.Millisecond, .75, LevelFull},
		{40 * time.Millisecond, .25, LevelFull}, // it was a stall
		{80 * time.Millisecond, .5, LevelFull},
		{140 * time.Millisecond, .5, LevelPlain},
		{180 * time.Millisecond, .25, LevelPlain}, // it fills no further
		{900 * time.Millisecond, .5, LevelPlain},
		{1000 * time.Millisecond, .5, LevelHold},
		{1001 * time.Millisecond, .75, LevelHold},
		{1200 * time.Millisecond, .75, LevelHold},
		{1220 * time.Millisecond, .5, LevelHold},
		{12 * time.Second, .25, LevelHold},
		{13 * time.Second, 0, LevelPlain},
		{22 * time.Second, 0, LevelPlain},
		{24 * time.Second, 0, LevelFull},
		{25 * time.Second, .5, LevelFull},
		{26 * time.Second, .5, LevelPlain},
		{26100 * time.Millisecond, .25, LevelPlain},
		{37 * time.Second, 0, LevelPlain}, // it was a mistake: longer this time
		{47 * time.Second, 0, LevelFull},
		{48 * time.Second, 1, LevelFull},
		{49 * time.Second, 1, LevelPlain},
		{50 * time.Second, 1, LevelPlain},
		{51 * time.Second, 1, LevelHold},
		{52 * time.Second, 1, LevelHold},
		{53 * time.Second, 1, LevelControl},
		{54 * time.Second, 1, LevelControl},
	} {
		g.look(at(c.at), 0, c.backlog)
		if g.level != c.want {
			t.Fatalf("step %d, after %v with %.2f waiting: level %v, want %v", i, c.at, c.backlog, g.level, c.want)
		}
	}
}
