package recorder

import (
	"context"
	"fmt"
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

// Frozen is a stretch of the buffer that stays as it is until Release.
type Frozen struct {
	// From and To are the bounds that were asked for.
	From, To time.Time
	// HeldFrom is the time of the oldest packet held if packets inside the bounds
	// were evicted before the freeze; zero if none were.
	HeldFrom time.Time
	// Chunks are sealed, oldest first, and hold all packets inside the bounds and
	// some outside. Do not write them, and do not read them after Release.
	Chunks     [][]byte
	Gaps       []evidence.Gap
	Interfaces []evidence.Interface

	pinned  []*chunk
	release sync.Once
}

// Release gives the memory back. Packets of a Window made from f are gone with it.
func (f *Frozen) Release() {
	f.release.Do(func() {
		for _, c := range f.pinned {
			c.pins.Add(-1)
		}
		f.pinned, f.Chunks = nil, nil
	})
}

// Window decodes the packets inside the bounds. They alias the chunks: use them
// before Release. On damage it holds what is left, together with the error.
func (f *Frozen) Window() (evidence.Window, error) {
	packets, resets, err := Packets(f.Chunks, f.From, f.To)
	return evidence.Window{
		From: f.From, To: f.To, HeldFrom: f.HeldFrom,
		Interfaces: f.Interfaces, Gaps: f.Gaps,
		PacketCount: len(packets), ResetCount: resets, Packets: packets,
	}, err
}

// request is a freeze on its way to the writer.
type request struct {
	from, to time.Time
	taken    atomic.Bool // by the writer, or by a freezer that gave up
	done     chan struct{}

	// The writer's answer.
	chunks   []*chunk
	gaps     []evidence.Gap
	heldFrom time.Time
	// open is the open chunk, nil if it has nothing to give; written is what it
	// held, and head what its header would be.
	open    *chunk
	written []byte
	head    head
}

// Freeze keeps the packets between two times. It waits until packets from before
// the later one (or now, if that is sooner) have left the kernel's ring, and for
// the writer's next Tick; the writer never waits for it.
func (r *Recorder) Freeze(ctx context.Context, from, to time.Time) (*Frozen, error) {
	q := &request{from: from, to: to, done: make(chan struct{}),
		chunks: make([]*chunk, 0, r.w.buffer.limit)}
	if err := r.ask(ctx, q); err != nil {
		return nil, fmt.Errorf("freeze the buffer: %w", err)
	}
	f := &Frozen{From: from, To: to, HeldFrom: q.heldFrom, Gaps: q.gaps, pinned: q.chunks}
	for _, c := range q.chunks {
		f.Chunks = append(f.Chunks, c.bytes)
	}
	if q.open != nil {
		f.Chunks = append(f.Chunks, q.copyOpen())
		q.open.pins.Add(-1)
	}
	if source := r.source.Load(); source != nil {
		f.Interfaces = (*source).Interfaces()
	}
	return f, nil
}

// copyOpen seals a copy of the open chunk. The writer only ever appends behind
// the part that is copied.
func (q *request) copyOpen() []byte {
	b := make([]byte, len(q.written))
	copy(b[chunkHeader:], q.written[chunkHeader:])
	q.head.seal(b)
	return b
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
	if err := r.settle(ctx, q.to); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, answer,
		fmt.Errorf("the packet source did not answer within %v", answer))
	defer cancel()
	select {
	case r.requests <- q:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return r.await(ctx, q)
}

func (r *Recorder) settle(ctx context.Context, to time.Time) error {
	wait := min(time.Until(to), 0) + settle
	if wait <= 0 {
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
// each chunk.
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
	for _, c := range b.sealed {
		if c.head.touches(from, to) {
			c.pins.Add(1)
			q.chunks = append(q.chunks, c)
		}
	}
	if c := b.open; c != nil && c.head.touches(from, to) {
		c.pins.Add(1)
		q.open, q.written, q.head = c, c.bytes, c.head
		q.head.clock = b.clock()
	}
	first, _ := b.bounds()
	if b.evicted > 0 && b.evictedTo >= from && first != 0 {
		q.heldFrom = time.Unix(0, first)
	}
	q.gaps = append(w.startGap(q, first), w.gaps.within(q.from, q.to)...)
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
