package recorder

import (
	"context"

	"fmt"
	"iter"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"tcpcoroner/evidence"
)

const (
	// settle is how long after its end a window is complete: a packet stays in the
	// kernel's ring until its block is full or 100 ms old.
	settle = 200 * time.Millisecond
	// answer is how long a freeze waits for the writer's next Tick.
	answer      = 2 * time.Second
	maxRequests = 16
)

// Frozen is a stretch of the buffer that is kept until Release, unless newer
// packets need the memory of the oldest: that costs a gap, which Window tells.
type Frozen struct {
	recorder *Recorder
	from, to time.Time
	heldFrom time.Time
	gaps     []evidence.Gap
	pinned   []*chunk
	// revoked is set when a reader came too late for one of them.
	revoked atomic.Bool
	release sync.Once
}

// Release lets the memory be used again.
func (f *Frozen) Release() {
	f.release.Do(func() {
		for _, c := range f.pinned {
			c.pins.Add(-1)
		}
	})
}

// Chunks yields the sealed chunks, oldest first: all packets inside the bounds
// and some outside. The bytes are valid until the next step. It can be ranged
// over again; what newer packets needed meanwhile is an error.
func (f *Frozen) Chunks() iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		var b []byte
		var err error
		for _, c := range f.pinned {
			if b, err = c.copy(b[:0]); err != nil {
				f.revoked.Store(true)
			}
			if !yield(b, err) {
				return
			}
		}
	}
}

// Read calls visit for each packet inside the bounds, as the function Read does.
func (f *Frozen) Read(visit func(*evidence.Packet) bool) error {
	return Read(f.Chunks(), f.from, f.to, visit)
}

// ReadNeeded is Read of what is needed, as the function ReadNeeded.
func (f *Frozen) ReadNeeded(need Need, visit func(*evidence.Packet) bool) error {
	return ReadNeeded(f.Chunks(), f.from, f.to, need, visit)
}

// Revoked tells whether one of the Chunks was needed for newer packets before it
// was read, so that two passes may have seen different packets.
func (f *Frozen) Revoked() bool { return f.revoked.Load() }

// Window describes what was frozen, without packets.
func (f *Frozen) Window() evidence.Window {
	w := evidence.Window{From: f.from, To: f.to, HeldFrom: f.heldFrom, Gaps: f.gaps}
	if source := f.recorder.source.Load(); source != nil {
		w.Interfaces, w.Namespaces = (*source).Interfaces(), (*source).Namespaces()
	}
	return w
}

// request is a freeze on its way to the writer.
type request struct {
	from, to time.Time
	// after is the newest chunk that the freezer has already; all asks for the open
	// chunk too.
	after uint64
	all   bool
	taken atomic.Bool // by the writer, or by a freezer that gave up
	done  chan struct{}

	// The writer's answer.
	chunks   []*chunk
	gaps     []evidence.Gap
	heldFrom time.Time
}

// Hold keeps the packets from a time on, as far as they are recorded, at once:
// what came before it cannot be lost to what comes after. Until completes it.
func (r *Recorder) Hold(ctx context.Context, from time.Time) (*Frozen, error) {
	return r.hold(ctx, from, time.Unix(0, math.MaxInt64))
}

func (r *Recorder) hold(ctx context.Context, from, to time.Time) (*Frozen, error) {
	asked := time.Now()
	q := r.request(from, to, 0, false)
	if err := r.ask(ctx, q); err != nil {
		return nil, fmt.Errorf("freeze the buffer: %w", err)
	}
	r.held.Store(int64(time.Since(asked)))
	return &Frozen{recorder: r, from: from, to: to, heldFrom: q.heldFrom, gaps: q.gaps, pinned: q.chunks}, nil
}

// Until completes a held window with what came until a time. It waits until
// packets from before that (or now, if it is sooner) have left the kernel's ring.
// The writer never waits for it.
func (f *Frozen) Until(ctx context.Context, to time.Time) error {
	r := f.recorder
	if err := r.settle(ctx, to); err != nil {
		return err
	}
	after := uint64(0)
	if n := len(f.pinned); n > 0 {
		after = f.pinned[n-1].serial
	}
	q := r.request(f.from, to, after, true)
	if err := r.ask(ctx, q); err != nil {
		return fmt.Errorf("freeze the buffer: %w", err)
	}
	f.to, f.gaps = to, q.gaps
	f.pinned = append(f.stillHeld(), q.chunks...)
	if !q.heldFrom.IsZero() || f.heldFrom.IsZero() {
		f.heldFrom = q.heldFrom
	}
	return nil
}

// stillHeld are the chunks that did not make room meanwhile. Nobody has read them
// yet: the window begins later, and says so.
func (f *Frozen) stillHeld() []*chunk {
	return slices.DeleteFunc(f.pinned, func(c *chunk) bool {
		if c.revoked.Load() {
			c.pins.Add(-1)
		}
		return c.revoked.Load()
	})
}

// Freeze keeps the packets between two times: Hold and Until.
func (r *Recorder) Freeze(ctx context.Context, from, to time.Time) (*Frozen, error) {
	f, err := r.hold(ctx, from, to)
	if err != nil {
		return nil, err
	}
	if err := f.Until(ctx, to); err != nil {
		f.Release()
		return nil, err
	}
	return f, nil
}

func (r *Recorder) request(from, to time.Time, after uint64, all bool) *request {
	return &request{from: from, to: to, after: after, all: all, done: make(chan struct{})}
}

// ask has the request served: by the writer, or here while nothing runs.
func (r *Recorder) ask(ctx context.Context, q *request) error {
	select {
	case r.writer <- struct{}{}:
		defer func() { <-r.writer }()
		r.w.fill(q)
		return nil
	default:
	}
	ctx, cancel := context.WithTimeoutCause(ctx, answer,
		fmt.Errorf("the packet source did not answer within %v", answer))
	defer cancel()
	select {
	case r.requests <- q:
		r.wake()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return r.await(ctx, q)
}

func (r *Recorder) wake() {
	if source := r.source.Load(); source != nil {
		(*source).Wake()
	}
}

// settle waits while a source runs; else there is nothing to wait for.
func (r *Recorder) settle(ctx context.Context, to time.Time) error {
	wait := min(time.Until(to), 0) + settle
	if wait <= 0 || !r.running.Load() {
		return nil
	}
	select {
	case <-time.After(wait):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (r *Recorder) await(ctx context.Context, q *request) error {
	select {
	case <-q.done:
	case r.writer <- struct{}{}: // Run ended in between
		r.w.serve()
		<-r.writer
		<-q.done
	case <-ctx.Done():
		if q.taken.CompareAndSwap(false, true) {
			return context.Cause(ctx)
		}
		<-q.done
	}
	return nil
}

// serve answers all waiting freezes. It costs the writer a pointer and a pin for
// each chunk, and may seal the open one.
func (w *writer) serve() {
	for len(w.r.requests) > 0 {
		q := <-w.r.requests
		if q.taken.CompareAndSwap(false, true) {
			w.fill(q)
			close(q.done)
		}
	}
}

func (w *writer) fill(q *request) {
	b, from, to := w.buffer, q.from.UnixNano(), q.to.UnixNano()
	if q.all && b.encoder.head.touches(from, to) {
		b.seal(w.compress())
	}
	for _, c := range b.sealed {
		if c.serial > q.after && c.head.touches(from, to) {
			c.pins.Add(1)
			q.chunks = append(q.chunks, c)
		}
	}
	first, _ := b.bounds()
	// What went from behind an older frozen chunk is a gap, not a later beginning.
	if b.evicted > 0 && b.evictedTo >= from && first >= from && first != 0 {
		q.heldFrom = time.Unix(0, first)
	}
	w.takeNotes()
	q.gaps = append(w.startGap(q, first), w.gaps.within(q.from, q.to)...)
	if g, ok := w.openGap(); ok && !g.From.After(q.to) {
		q.gaps = append(q.gaps, g)
	}
}

func (h *head) touches(from, to int64) bool {
	return h.packets > 0 && h.last >= from && h.first <= to
}

// startGap is what a window misses that begins before recording did. A replayed
// packet may be older than the recorder: then it is where recording began.
func (w *writer) startGap(q *request, first int64) []evidence.Gap {
	start := w.started
	if t := time.Unix(0, first); first != 0 && t.Before(start) {
		start = t
	}
	if start.After(q.to) {
		start = q.to
	}
	if !q.from.Before(start) {
		return nil
	}
	return []evidence.Gap{{From: q.from, To: start, Reason: "the recorder had not started"}}
}
