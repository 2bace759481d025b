package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"

	"tcpcoroner/evidence"
	"tcpcoroner/recorder"
	"tcpcoroner/triggers"
	"tcpcoroner/verdict"
)

// maxFirings bounds the firings that an incident lists; all are counted.
const maxFirings = 64

// keeper turns firings into durable incidents: snapshot at once, wait for the
// post-roll, freeze, judge, store, and only then tell. A firing during an open
// incident joins it, so a storm is one incident that grows.
type keeper struct {
	before, after, max time.Duration
	host               evidence.Host
	version            string
	// roles are what the operator says of addresses.
	roles []evidence.Role

	// look takes a snapshot, with what has to do with the resets since a time; base
	// finds the counters from before one.
	look func(since time.Time) *evidence.Snapshot
	base func(at time.Time) evidence.Counters
	// gather adds what kernel and logs tell of a window.
	gather func(inc *evidence.Incident, from, to time.Time)
	// hold keeps the packets since a time from being forgotten.
	hold func(from time.Time) (held, error)
	put  func(*evidence.Incident, iter.Seq2[[]byte, error]) error
	// stored gives the chunks of an incident that was put.
	stored func(id string) iter.Seq2[[]byte, error]
	// probes are the ports of the self-tests: their resets are no evidence.
	probes func() []uint16
	tell   func(*evidence.Incident)
	failed func(error)

	// stopping is closed when the daemon stops: post-rolls end at once.
	stopping chan struct{}

	// concluding is held while an incident is judged and stored: the memory that
	// takes is needed once.
	concluding sync.Mutex

	mu      sync.Mutex
	open    *openIncident
	stopped bool
	work    sync.WaitGroup
}

// held is a part of the recording that is kept until Release.
type held interface {
	// Until completes it with what came until a time.
	Until(ctx context.Context, to time.Time) error
	// Window describes it, ReadNeeded reads its packets in order, Chunks gives what
	// they are stored as. Revoked tells that memory was short: two passes over the
	// packets may have seen different ones.
	Window() evidence.Window
	ReadNeeded(need recorder.Need, visit func(*evidence.Packet) bool) error
	Chunks() iter.Seq2[[]byte, error]
	Revoked() bool
	Release()
}

// openIncident is an incident whose window is still growing.
type openIncident struct {
	inc *evidence.Incident
	// until is when the window closes; last is the latest it may.
	until, last time.Time
	changed     chan struct{} // buffered 1: until moved
	looks       sync.WaitGroup
	done        chan struct{} // closed when durable or failed
	err         error         // valid after done
}

// fire opens an incident, or joins the open one. after is the post-roll.
func (k *keeper) fire(f evidence.Firing, after time.Duration) (o *openIncident, joined bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case k.stopped:
		return refused(f), false
	case k.open != nil:
		if k.open.join(f, after) {
			k.lookAgain(k.open, f.Time)
		}
		return k.open, true
	}
	k.open = k.begin(f, after)
	k.work.Add(1)
	go k.run(k.open)
	return k.open, false
}

func (k *keeper) begin(f evidence.Firing, after time.Duration) *openIncident {
	inc := &evidence.Incident{
		Schema: evidence.SchemaIncident, ID: ulid.Make().String(), TraceID: newTraceID(), Version: k.version,
		Host: k.host, Roles: k.roles, Time: f.Time, Firings: []evidence.Firing{f},
	}
	return &openIncident{
		inc: inc, until: f.Time.Add(after), last: f.Time.Add(max(k.max, after)),
		changed: make(chan struct{}, 1), done: make(chan struct{}),
	}
}

var errStopping = errors.New("the daemon is stopping")

func refused(f evidence.Firing) *openIncident {
	o := &openIncident{inc: &evidence.Incident{Firings: []evidence.Firing{f}}, done: make(chan struct{}), err: errStopping}
	close(o.done)
	return o
}

// newTraceID is random, not the ULID: some backends strip leading zeros.
func newTraceID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}

// join tells whether it is the first news of an incident that a person began, who
// may have begun it long before there was anything to see.
func (o *openIncident) join(f evidence.Firing, after time.Duration) (news bool) {
	o.inc.Joined++
	news = o.inc.Joined == 1 && o.inc.Trigger() == triggers.NameManual && f.Trigger != triggers.NameManual
	if len(o.inc.Firings) < maxFirings {
		o.inc.Firings = append(o.inc.Firings, f)
	}
	o.extend(f.Time.Add(after))
	return news
}

// lookAgain replaces the first snapshot: sockets vanish.
func (k *keeper) lookAgain(o *openIncident, at time.Time) {
	o.looks.Go(func() {
		s := k.look(at.Add(-recently))
		k.mu.Lock()
		defer k.mu.Unlock()
		o.inc.At = s
	})
}

// extend moves the end of the window, never past its bound and never back.
func (o *openIncident) extend(until time.Time) {
	if until.After(o.last) {
		until = o.last
	}
	if !until.After(o.until) {
		return
	}
	o.until = until
	select {
	case o.changed <- struct{}{}:
	default:
	}
}

// ongoing lets the open incident grow while its trigger still holds.
func (k *keeper) ongoing(now time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.open != nil {
		k.open.extend(now.Add(k.after))
	}
}

// isOpen tells whether an incident is growing.
func (k *keeper) isOpen() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.open != nil
}

// stop ends the post-roll of an open incident and returns when every incident
// that was opened is durable or has failed. What fires later is refused.
func (k *keeper) stop() {
	k.mu.Lock()
	k.stopped = true
	k.mu.Unlock()
	close(k.stopping)
	k.work.Wait()
}

func (k *keeper) run(o *openIncident) {
	defer k.work.Done()
	defer close(o.done)
	from := o.inc.Time.Add(-k.before)
	kept, err := k.hold(from)
	at := k.look(o.inc.Time.Add(-recently))
	k.mu.Lock()
	if o.inc.At == nil {
		o.inc.At = at
	}
	k.mu.Unlock()
	k.postRoll(o)
	o.looks.Wait()
	if o.err = err; err == nil {
		o.err = k.conclude(o, kept, from)
		kept.Release()
	}
	if o.err != nil {
		k.failed(fmt.Errorf("keep incident %s: %w", o.inc.ID, o.err))
		return
	}
	k.tell(o.inc)
}

// postRoll waits for the window's end; the daemon's stop ends it at once. After
// it nobody joins any more.
func (k *keeper) postRoll(o *openIncident) {
	for left := k.left(o); left > 0; left = k.left(o) {
		timer := time.NewTimer(left)
		select {
		case <-timer.C:
		case <-o.changed:
		case <-k.stopping:
			timer.Stop()
			k.shut(o)
			return
		}
		timer.Stop()
	}
}

// left is the time until the window closes; at zero nobody joins any more.
func (k *keeper) left(o *openIncident) time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	left := time.Until(o.until)
	if left <= 0 && k.open == o {
		k.open = nil
	}
	return left
}

func (k *keeper) shut(o *openIncident) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.open == o {
		k.open = nil
	}
}

// recently is how long before a firing its resets may lie.
const recently = 10 * time.Second

// freezeTime bounds how long an incident waits for its last packets.
const freezeTime = 5 * time.Second

// conclude freezes, judges and stores. It does not stop with the daemon: what
// was recorded is written before the program ends.
func (k *keeper) conclude(o *openIncident, kept held, from time.Time) error {
	inc, to := o.inc, time.Now()
	inc.Before = k.base(from)
	// The counters are read after the window's end, so that they cover every
	// RST in it: the ledger may only err towards doubt.
	inc.After = k.look(inc.Time.Add(-recently))
	ctx, cancel := context.WithTimeout(context.Background(), freezeTime)
	defer cancel()
	if err := kept.Until(ctx, to); err != nil {
		return err
	}
	k.gather(inc, from, to)
	k.concluding.Lock()
	defer k.concluding.Unlock()
	inc.Window, inc.Closed = kept.Window(), to
	return aside(func() error { return k.keep(inc, kept) })
}

// keep judges and stores.
func (k *keeper) keep(inc *evidence.Incident, kept held) error {
	k.judge(inc, kept.ReadNeeded)
	if err := k.put(inc, kept.Chunks()); err != nil || !kept.Revoked() {
		return err
	}
	return k.again(inc)
}

// again judges what was stored: a part of the frozen packets made room for newer
// ones meanwhile, and the verdict must speak of those that can be pulled.
func (k *keeper) again(inc *evidence.Incident) error {
	k.judge(inc, func(need recorder.Need, visit func(*evidence.Packet) bool) error {
		return recorder.ReadNeeded(k.stored(inc.ID), inc.Window.From, inc.Window.To, need, visit)
	})
	return k.put(inc, k.stored(inc.ID))
}

// judge reads the window twice: to find what matters, and to copy it.
func (k *keeper) judge(inc *evidence.Incident, read reading) {
	read = ahead(read)
	sel := verdict.NewSelection()
	sel.Ignore(k.probes())
	wire := &evidence.WireResets{}
	wire.Expect(inc.Kernel)
	err := read(nil, func(p *evidence.Packet) bool { sel.Survey(p); wire.Count(p); return true })
	err = errors.Join(err, read(sel.Need(), func(p *evidence.Packet) bool { sel.Take(p); return true }))
	w := &inc.Window
	sel.Fill(w)
	if err != nil {
		// Damage is told as a gap, not as a failure.
		w.Gaps = append(w.Gaps, evidence.Gap{From: w.From, To: w.To, Reason: err.Error()})
	}
	inc.Ledger = balance(inc, wire)
	j := verdict.Judge(inc)
	inc.Flows, inc.FlowsTotal, inc.FlowsImplicated, inc.Verdict = j.Flows, j.FlowsTotal, j.FlowsImplicated, j.Verdict
	w.Packets, w.Excerpts = nil, nil
}
