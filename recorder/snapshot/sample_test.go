package snapshot_test

import (
	"path/filepath"
	"testing"

	"tcpcoroner/internal/netlab"
	"tcpcoroner/recorder/snapshot"
)

// Next looks at the namespace, and at its listeners only when something moved or it
// has not for a while.
func TestNext(t *testing.T) {
	netlab.NeedRoot(t)
	ns := netlab.NewNS(t)
	ns.IP(t, "link", "set", "lo", "up")
	taker := snapshot.New(snapshot.Config{NetNS: filepath.Join("/run/netns", ns.Name)})
	t.Cleanup(func() { _ = taker.Close() })
	next := func(last snapshot.Sample) snapshot.Sample {
		s := taker.Next(&last, true)
		if s.CountersErr != nil || s.ListenersErr != nil {
			t.Fatalf("%v, %v", s.CountersErr, s.ListenersErr)
		}
		return s
	}
	s := next(snapshot.Sample{})
	for i := range 5 {
		if s = next(s); s.Idle != i+1 || len(s.Listeners) != 0 {
			t.Errorf("sample %d: idle %d, listeners %+v", i, s.Idle, s.Listeners)
		}
	}
	if s = next(s); s.Idle != 0 {
		t.Errorf("after a while: idle %d", s.Idle)
	}
	l := ns.Listen(t, "127.0.0.1:0")
	if s = next(s); s.Idle != 0 || len(s.Listeners) != 1 || s.Listeners[0].Local.String() != l.Addr().String() {
		t.Errorf("a new listener: idle %d, listeners %+v", s.Idle, s.Listeners)
	}
	before := s.Counters
	ns.Dial(t, l.Addr().String())
	s = next(next(s)) // not accepted: looked at each time
	if s.Idle != 0 || len(s.Listeners) != 1 || s.Listeners[0].RecvQueue != 1 || s.Counters.Delta(before, "Tcp.PassiveOpens") != 1 {
		t.Errorf("a waiting connection: idle %d, listeners %+v", s.Idle, s.Listeners)
	}
}

// A namespace that cannot be entered is an error of all that was asked for.
func TestNextNowhere(t *testing.T) {
	taker := snapshot.New(snapshot.Config{NetNS: "/run/netns/there-is-none"})
	if s := taker.Next(&snapshot.Sample{}, true); s.CountersErr == nil || s.ConntrackErr == nil || s.ListenersErr == nil {
		t.Errorf("%+v", s)
	}
}

// BenchmarkNext is what a recorded namespace costs each second.
func BenchmarkNext(b *testing.B) {
	netlab.NeedRoot(b)
	ns := netlab.NewNS(b)
	taker := snapshot.New(snapshot.Config{NetNS: filepath.Join("/run/netns", ns.Name)})
	b.Cleanup(func() { _ = taker.Close() })
	var s snapshot.Sample
	for b.Loop() {
		s = taker.Next(&s, true)
	}
	if s.CountersErr != nil {
		b.Error(s.CountersErr)
	}
}
