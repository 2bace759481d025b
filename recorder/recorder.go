package recorder

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"tcpcoroner/evidence"
)

// Config says how much is held.
type Config struct {
	// Memory is the budget for packets in bytes, chunks pinned by freezes
	// included; 0 means DefaultMemory, and it is never less than 1 MiB. An eighth
	// of it is kept free for recording on while a freeze pins the rest. Each
	// unreleased Frozen adds a copy of the open chunk, at most ChunkBytes.
	Memory int
	// Age is how long a packet is wished to be held; memory wins. 0: as long as
	// memory lasts. Packets are forgotten at most an eighth of Age later.
	Age time.Duration
	// Clock reads the kernel's clocks; nil means the real ones.
	Clock func() Clock
}

// DefaultMemory is the budget if none is given, in bytes.
const DefaultMemory = 64 << 20

// ErrRunning is returned for a second Run.
var ErrRunning = errors.New("the recorder is running already")

// Stats counts since the recorder was made. It is as of the last Tick.
type Stats struct {
	// Seen packets came from the source. Each of them was Kept, Discarded (no TCP
	// and no ICMP error about TCP) or Lost (freezes pinned all memory).
	Seen, Kept, Discarded, Lost uint64
	// Evicted packets were kept, and made room since.
	Evicted uint64
	// Bytes is the length on the wire of all packets seen, from the network header.
	Bytes uint64
	// Resets counts RST segments, one for each interface it was seen on.
	Resets, ResetsReceived, ResetsSent uint64
	// Memory is what the chunks take, Pinned what of it is evicted but still read
	// by a freeze, in bytes.
	Memory, Pinned int
	// Oldest and Newest are the times of the packets at both ends of the buffer;
	// zero if it is empty.
	Oldest, Newest time.Time
	// Source is as of the call.
	Source SourceStats
}

// Recorder is the flight buffer.
type Recorder struct {
	cfg Config
	// writer is held by whoever may touch the writer's fields: Run, or a Freeze
	// while nothing runs.
	writer   chan struct{}
	requests chan *request
	source   atomic.Pointer[Source]

	mu        sync.Mutex
	published Stats

	w writer
}

// New makes a recorder that holds nothing yet. Memory is taken as it is needed.
func New(cfg Config) *Recorder {
	if cfg.Memory == 0 {
		cfg.Memory = DefaultMemory
	}
	if cfg.Clock == nil {
		cfg.Clock = readClock
	}
	r := &Recorder{
		cfg:    cfg,
		writer: make(chan struct{}, 1), requests: make(chan *request, maxRequests),
	}
	r.w = writer{r: r, buffer: newBuffer(cfg.Memory, cfg.Age, cfg.Clock)}
	return r
}

// readClock takes the three readings back to back (clock_gettime(2)).
func readClock() (c Clock) {
	c.Realtime = nanos(unix.CLOCK_REALTIME)
	c.Monotonic = nanos(unix.CLOCK_MONOTONIC)
	c.Boottime = nanos(unix.CLOCK_BOOTTIME)
	return c
}

// nanos reads a clock that every kernel since 2.6.39 has.
func nanos(id int32) int64 {
	var ts unix.Timespec
	if unix.ClockGettime(id, &ts) != nil {
		return 0
	}
	return ts.Nano()
}

// Run records what the source delivers until the context ends or the source does.
func (r *Recorder) Run(ctx context.Context, source Source) error {
	select {
	case r.writer <- struct{}{}:
	default:
		return ErrRunning
	}
	defer func() { <-r.writer }()
	r.source.Store(&source)
	r.w.start(source)
	defer r.w.stop()
	if err := source.Run(ctx, &r.w); err != nil {
		return fmt.Errorf("record packets: %w", err)
	}
	return nil
}

// Stats is safe for concurrent use.
func (r *Recorder) Stats() Stats {
	r.mu.Lock()
	s := r.published
	r.mu.Unlock()
	if source := r.source.Load(); source != nil {
		s.Source = (*source).Stats()
	}
	return s
}

// Held is the time between the oldest and the newest packet in memory.
func (r *Recorder) Held() time.Duration {
	s := r.Stats()
	return s.Newest.Sub(s.Oldest)
}

// writer is the goroutine's side of a recorder: the Sink.
type writer struct {
	r      *Recorder
	source Source
	buffer *buffer
	stats  Stats
	gaps   gaps
	// started is when recording began first; stopped when it last ended.
	started, stopped time.Time
	// ticked is the last Tick, lost and dropped the losses it knew of.
	ticked        time.Time
	lost, dropped uint64
}

// Add implements Sink.
func (w *writer) Add(m *Meta, header []byte) {
	w.stats.Seen++
	w.stats.Bytes += uint64(m.WireBytes)
	n, reset := Cut(header)
	if n == 0 {
		w.stats.Discarded++
		return
	}
	if reset {
		w.countReset(m.Direction)
	}
	if w.buffer.append(m, header[:n], reset) {
		w.stats.Kept++
	} else {
		w.stats.Lost++
	}
}

func (w *writer) countReset(d evidence.Direction) {
	w.stats.Resets++
	switch d {
	case evidence.Received:
		w.stats.ResetsReceived++
	case evidence.Sent:
		w.stats.ResetsSent++
	}
}

// Tick implements Sink.
func (w *writer) Tick() {
	c := w.r.cfg.Clock()
	now := time.Unix(0, c.Realtime)
	w.noteLosses(now)
	w.ticked = now
	w.buffer.expire(c.Monotonic)
	w.serve()
	// A reader of Stats holds the lock: then the next Tick publishes. The writer
	// waits for nobody.
	if w.r.mu.TryLock() {
		w.publish()
		w.r.mu.Unlock()
	}
}

func (w *writer) now() time.Time { return time.Unix(0, w.r.cfg.Clock().Realtime) }

func (w *writer) start(source Source) {
	now := w.now()
	if w.started.IsZero() {
		w.started = now
	} else {
		w.gaps.add(evidence.Gap{From: w.stopped, To: now, Reason: "the recorder was not running"})
	}
	w.source, w.ticked, w.dropped = source, now, source.Stats().Dropped
}

func (w *writer) stop() {
	now := w.now()
	w.noteLosses(now)
	w.stopped = now
	w.serve()
	w.r.mu.Lock()
	w.publish()
	w.r.mu.Unlock()
}

// noteLosses turns what was lost since the last tick into gaps.
func (w *writer) noteLosses(now time.Time) {
	if dropped := w.source.Stats().Dropped; dropped > w.dropped {
		w.gaps.add(evidence.Gap{From: w.ticked, To: now, Lost: dropped - w.dropped,
			Reason: "the kernel's packet ring was full"})
		w.dropped = dropped
	}
	if w.stats.Lost > w.lost {
		w.gaps.add(evidence.Gap{From: w.ticked, To: now, Lost: w.stats.Lost - w.lost,
			Reason: "the recorder's memory was pinned by freezes"})
		w.lost = w.stats.Lost
	}
}

// publish hands the counters to Stats; the caller holds the lock.
func (w *writer) publish() {
	b := w.buffer
	w.stats.Evicted = b.evicted
	w.stats.Memory, w.stats.Pinned = b.made*ChunkBytes, len(b.pinned)*ChunkBytes
	first, last := b.bounds()
	w.stats.Oldest, w.stats.Newest = time.Time{}, time.Time{}
	if first != 0 {
		w.stats.Oldest, w.stats.Newest = time.Unix(0, first), time.Unix(0, last)
	}
	w.r.published = w.stats
}
