package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"tcpcoroner/evidence"
	"tcpcoroner/recorder/snapshot"
	"tcpcoroner/triggers"
)

// elsewhere samples the recorded network namespaces beside the daemon's own each
// second, and has triggers watch each. It follows what the source records.
type elsewhere struct {
	// open begins with a namespace, forget ends it.
	open   func(evidence.Namespace) (*space, error)
	forget func(label string)
	// listeners tells whether a trigger needs them.
	listeners bool

	mu       sync.Mutex // of spaces and failures: an incident and the status read them
	spaces   []*space
	failures map[uint16]error // by index
}

// space is one of them. All but timeline is of the watch.
type space struct {
	namespace evidence.Namespace
	label     string
	file      *os.File // the namespace itself: its path may come to name another
	taker     *snapshot.Taker
	timeline  *snapshot.Timeline
	last      snapshot.Sample
	links     cached[[]evidence.InterfaceStats]
	ports     cached[*evidence.PortRange]
	holders   *owners
}

func (d *daemon) newElsewhere() *elsewhere {
	t := &d.cfg.Triggers
	e := &elsewhere{forget: d.triggers.Forget, failures: map[uint16]error{},
		listeners: t.Listen.Enabled || t.AcceptQueue.Enabled || t.Restarts.Enabled}
	e.open = func(n evidence.Namespace) (*space, error) {
		s, err := openSpace(n, e.name(n), int(time.Duration(d.cfg.Recorder.Age)/tick)+1, t.Ports.Rearm)
		if err != nil {
			return nil, err
		}
		s.holders = newOwners(d.walk)
		d.triggers.Watch(s.label, d.watchesOf(s)...)
		return s, nil
	}
	return e
}

// watchesOf are the triggers of a namespace: those that read what each has. Of the
// processors' losses, which are the host's, it has none.
func (d *daemon) watchesOf(s *space) []triggers.Trigger {
	t := &d.cfg.Triggers
	none := func() (evidence.Counters, error) { return evidence.Counters{}, nil }
	return []triggers.Trigger{
		triggers.NewConntrack(t.Conntrack, s.conntrack),
		triggers.NewListen(t.Listen, s.counters, s.listeners),
		triggers.NewQueue(t.AcceptQueue, s.listeners),
		triggers.NewSYNDrops(t.SYNDrops, s.counters),
		triggers.NewConnectFailures(t.ConnectFailures, s.counters),
		triggers.NewTimeouts(t.Timeouts, s.counters),
		triggers.NewRetransmissions(t.Retransmissions, s.counters),
		triggers.NewDrops(t.Drops, s.links.get, none),
		triggers.NewPorts(t.Ports, s.ports.get),
		triggers.NewRestarts(t.Restarts, s.listeners, d.servedBy(s.namespace.Index)),
	}
}

// openSpace opens a namespace that is recorded; part is that of portCount. Nothing is
// read yet. Open files in it keep it: close must be called once it is not recorded any more.
func openSpace(n evidence.Namespace, label string, samples int, part float64) (*space, error) {
	f, err := os.Open(n.Path)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("look at network namespace: %w", err), f.Close())
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || st.Ino != n.Inode {
		return nil, errors.Join(fmt.Errorf("network namespace %s is not the one that is recorded: its path was made anew", n.Path), f.Close())
	}
	s := &space{namespace: n, label: label, file: f, timeline: snapshot.NewTimeline(n.Inode, samples),
		taker: snapshot.New(snapshot.Config{NetNS: fmt.Sprintf("/proc/self/fd/%d", f.Fd())})}
	s.links = cached[[]evidence.InterfaceStats]{every: aroundEvery, read: func() ([]evidence.InterfaceStats, error) {
		return onThread(s.taker.Links)
	}}
	ports := newPortCount(s.taker, part, s.counters)
	s.ports = cached[*evidence.PortRange]{every: portsEvery, read: func() (*evidence.PortRange, error) { return onThread(ports.get) }}
	return s, nil
}

// onThread calls read in a goroutine of its own: one that enters another namespace
// and cannot be brought back must end.
func onThread[T any](read func() (T, error)) (value T, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		value, err = read()
	}()
	<-done
	return value, err
}

func (s *space) close() error { return errors.Join(s.taker.Close(), s.file.Close()) }

func (s *space) counters() (evidence.Counters, error) { return s.last.Counters, s.last.CountersErr }

// conntrack is valid also without its loss counters, as the daemon's own.
func (s *space) conntrack() (*evidence.Conntrack, error) {
	if s.last.Conntrack != nil {
		return s.last.Conntrack, nil
	}
	return nil, s.last.ConntrackErr
}

func (s *space) listeners() ([]evidence.Socket, error) { return s.last.Listeners, s.last.ListenersErr }

// sample follows the attached namespaces and looks at each.
func (e *elsewhere) sample(now time.Time, attached []evidence.Namespace) {
	e.follow(attached)
	if len(e.spaces) == 0 {
		return
	}
	_, _ = onThread(func() (none struct{}, _ error) {
		for _, s := range e.spaces {
			s.last = s.taker.Next(&s.last, e.listeners)
		}
		return none, nil
	})
	for _, s := range e.spaces {
		s.last.Counters.Time = now
		if s.last.CountersErr == nil {
			s.timeline.Add(s.last.Counters, s.last.Conntrack)
		}
		if s.last.ListenersErr == nil {
			s.holders.name(s.last.Listeners)
		}
	}
}

// follow begins with namespaces that are new and ends those that are gone. One that
// cannot be opened is tried again.
func (e *elsewhere) follow(attached []evidence.Namespace) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.spaces = slices.DeleteFunc(e.spaces, func(s *space) bool {
		gone := !slices.ContainsFunc(attached, func(n evidence.Namespace) bool { return n.Index == s.namespace.Index })
		if gone {
			e.forget(s.label)
			_ = s.close() // nothing was written
		}
		return gone
	})
	clear(e.failures)
	for _, n := range attached {
		if slices.ContainsFunc(e.spaces, func(s *space) bool { return s.namespace.Index == n.Index }) {
			continue
		}
		s, err := e.open(n)
		if err != nil {
			e.failures[n.Index] = err
			continue
		}
		e.spaces = append(e.spaces, s)
	}
}

// name is a label that no other has: a path that was made anew names two for a while.
func (e *elsewhere) name(n evidence.Namespace) string {
	label := n.Label()
	if slices.ContainsFunc(e.spaces, func(s *space) bool { return s.label == label }) {
		label = fmt.Sprintf("%s-%d", label, n.Inode)
	}
	return label
}

// series are the numbers of all of them from one time to another, without those that
// were 0 all the time. It is safe for concurrent use.
func (e *elsewhere) series(from, to time.Time) (all []evidence.Series) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, sp := range e.spaces {
		s := sp.timeline.Window(from, to)
		s.Lines = slices.DeleteFunc(s.Lines, func(l evidence.Line) bool {
			return !slices.ContainsFunc(l.Values, func(n uint64) bool { return n > 0 })
		})
		if len(s.Times) > 0 {
			all = append(all, s)
		}
	}
	return all
}

// missing is what is recorded but not counted. It is safe for concurrent use.
func (e *elsewhere) missing() (list []evidence.Missing) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, err := range e.failures {
		list = append(list, evidence.Missing{What: "counters of a network namespace", Why: err.Error()})
	}
	return list
}

// close ends all.
func (e *elsewhere) close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	var errs []error
	for _, s := range e.spaces {
		errs = append(errs, s.close())
	}
	e.spaces = nil
	return errors.Join(errs...)
}
