package main

import (
	"context"
	"errors"
	"iter"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"tcpcoroner/evidence"
	"tcpcoroner/recorder"
)

// ledger is what a keeper under test did, in order.
type ledger struct {
	mu   sync.Mutex
	did  []string
	kept []*evidence.Incident
	from []time.Time
	to   []time.Time
	fail error
	// revoked plays a recorder that was short of memory.
	revoked bool
}

func (l *ledger) note(what string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.did = append(l.did, what)
}

func (l *ledger) keeper() *keeper {
	return &keeper{
		gather: func(*evidence.Incident, time.Time, time.Time) {},
		before: 30 * time.Second, after: 5 * time.Second, max: time.Minute, stopping: make(chan struct{}),
		look: func(time.Time) *evidence.Snapshot { l.note("look"); return &evidence.Snapshot{} },
		base: func(time.Time) evidence.Counters { return evidence.Counters{} },
		hold: func(from time.Time) (held, error) {
			l.note("hold")
			l.from = append(l.from, from)
			return &heldTest{l}, nil
		},
		put: func(inc *evidence.Incident, _ iter.Seq2[[]byte, error]) error {
			l.note("put")
			l.kept = append(l.kept, inc)
			return l.fail
		},
		stored: func(string) iter.Seq2[[]byte, error] { return nothing },
		probes: func() []uint16 { return nil },
		tell:   func(*evidence.Incident) { l.note("tell") },
		failed: func(error) { l.note("failed") },
	}
}

// heldTest is a frozen window without packets.
type heldTest struct{ l *ledger }

func nothing(func([]byte, error) bool) {}

func (h *heldTest) Until(_ context.Context, to time.Time) error {
	h.l.note("freeze")
	h.l.to = append(h.l.to, to)
	return nil
}
func (h *heldTest) Window() evidence.Window                                     { return evidence.Window{} }
func (h *heldTest) ReadNeeded(recorder.Need, func(*evidence.Packet) bool) error { return nil }
func (h *heldTest) Chunks() iter.Seq2[[]byte, error]                            { return nothing }
func (h *heldTest) Revoked() bool                                               { return h.l.revoked }
func (h *heldTest) Release()                                                    { h.l.note("release") }

func firing() evidence.Firing { return evidence.Firing{Trigger: "resets", Time: time.Now()} }

func TestKeeperTellsAfterItIsDurable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &ledger{}
		start := time.Now()
		o, joined := l.keeper().fire(firing(), 5*time.Second)
		<-o.done
		want := []string{"hold", "look", "look", "freeze", "put", "release", "tell"}
		if joined || !slices.Equal(l.did, want) {
			t.Errorf("joined %v, did %v, want %v", joined, l.did, want)
		}
		if got := l.to[0].Sub(l.from[0]); got != 35*time.Second || time.Since(start) != 5*time.Second {
			t.Errorf("window of %v after %v, want 35s after 5s", got, time.Since(start))
		}
	})
}

// A storm is one incident that grows, up to its bound.
func TestKeeperStormIsOneIncident(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &ledger{}
		k := l.keeper()
		o, _ := k.fire(firing(), k.after)
		for range 200 {
			time.Sleep(time.Second)
			k.ongoing(time.Now())
		}
		<-o.done
		if len(l.kept) != 1 {
			t.Fatalf("%d incidents, want 1", len(l.kept))
		}
		if got := l.to[0].Sub(l.from[0]); got != 90*time.Second {
			t.Errorf("the window is %v, want 30s before and at most 60s after", got)
		}
	})
}

func TestKeeperJoins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &ledger{}
		k := l.keeper()
		a, _ := k.fire(firing(), k.after)
		time.Sleep(2 * time.Second)
		b, joined := k.fire(firing(), k.after)
		<-a.done
		if a != b || !joined || len(a.inc.Firings) != 2 || a.inc.Joined != 1 {
			t.Errorf("same %v, joined %v, %d firings", a == b, joined, len(a.inc.Firings))
		}
		c, joined := k.fire(firing(), k.after)
		<-c.done
		if c == a || joined || c.inc.ID == a.inc.ID {
			t.Error("a firing after the end joined the closed incident")
		}
	})
}

func TestKeeperStopKeepsTheOpenIncidentAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &ledger{}
		k := l.keeper()
		start := time.Now()
		k.fire(firing(), k.after)
		k.stop()
		if len(l.kept) != 1 || time.Since(start) != 0 {
			t.Errorf("%d incidents kept after %v, want 1 at once", len(l.kept), time.Since(start))
		}
		o, _ := k.fire(firing(), k.after)
		<-o.done
		if !errors.Is(o.err, errStopping) {
			t.Errorf("a firing after the stop: %v", o.err)
		}
	})
}

func TestKeeperFailedPutIsNotTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &ledger{fail: errors.New("disk full")}
		o, _ := l.keeper().fire(firing(), time.Second)
		<-o.done
		want := []string{"hold", "look", "look", "freeze", "put", "release", "failed"}
		if !slices.Equal(l.did, want) || !errors.Is(o.err, l.fail) {
			t.Errorf("did %v, error %v", l.did, o.err)
		}
	})
}

// Where packets were lost between two passes, what was stored is judged again.
func TestKeeperJudgesWhatIsStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &ledger{revoked: true}
		o, _ := l.keeper().fire(firing(), time.Second)
		<-o.done
		want := []string{"hold", "look", "look", "freeze", "put", "put", "release", "tell"}
		if !slices.Equal(l.did, want) || o.err != nil {
			t.Errorf("did %v, error %v", l.did, o.err)
		}
	})
}

func TestCounterHistoryBefore(t *testing.T) {
	h := counterHistory{span: 10 * time.Second}
	start := time.Unix(1000, 0)
	if got := h.before(start); got.Values != nil {
		t.Errorf("an empty history gave %v", got)
	}
	for i := range 20 {
		h.add(evidence.Counters{Time: start.Add(time.Duration(i) * time.Second)}, nil)
	}
	for _, tt := range []struct{ at, want int }{{15, 15}, {3, 9}, {30, 19}} {
		if got := h.before(start.Add(time.Duration(tt.at) * time.Second)).Time; got != start.Add(time.Duration(tt.want)*time.Second) {
			t.Errorf("before second %d is second %v, want %d", tt.at, got.Sub(start).Seconds(), tt.want)
		}
	}
}
