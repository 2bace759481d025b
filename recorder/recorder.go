package recorder

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"tcpcoroner/evidence"
)

// Config says how much is held, and what it may cost.
type Config struct {
	// Memory is the budget in bytes for all that holds packets: history, frozen
	// chunks, the open chunk, and Ring. It is a hard bound. 0 means DefaultMemory,
	// and it must not be less than MinMemory beside Ring.
	Memory int
	// Ring is what of Memory the source's rings take, in bytes.
	Ring int
	// Age is how long a packet is wished to be held; memory wins. 0: as long as
	// memory lasts. Packets are forgotten at most an eighth of Age later.
	Age time.Duration
	// CPU is the budget of the recording thread as a part of one core, such as
	// 0.02; 0: no bound. Bursts of half a minute's worth are allowed. Above it the
	// recorder does less: see Level.
	CPU float64
	// Clock reads the kernel's clocks; nil means the real ones. Used reads the CPU
	// time of the calling thread in nanoseconds.
	Clock func() Clock
	Used  func() int64
}

const (
	// DefaultMemory is the budget if none is given, in bytes.
	DefaultMemory = 64 << 20
	// MinMemory is the least budget beside the ring, in bytes.
	MinMemory = encoderBytes + 4<<20
)

// ErrRunning is returned for a second Run.
var ErrRunning = errors.New("the recorder is running already")

// Stats counts since the recorder was made. It is as of the last Tick.
type Stats struct {
	// Seen packets came from the source. Each of them was Kept, Discarded (no TCP
	// and no ICMP error about TCP) or Skipped (given up at LevelHold), or is still
	// in the ring at LevelHold.
	Seen, Kept, Discarded, Skipped uint64
	// Sightings of the Kept are further ones of a packet that was kept before.
	Sightings uint64
	// Evicted packets were kept, and made room since; Held are in memory, in
	// HeldBytes: those of sealed chunks, and of the open one, which is not
	// compressed yet.
	Evicted, Held uint64
	HeldBytes     int
	// Bytes is the length on the wire of all packets seen, from the network header.
	Bytes uint64
	// Resets counts RST segments, each once however often it was seen.
	Resets, ResetsReceived, ResetsSent uint64
	// LastResets are the ports of the latest RST segments (source, destination), as
	// a ring of which Resets modulo its length is the next place.
	LastResets [64][2]uint16
	// Memory is what history, frozen chunks, the open chunk and the ring take, in
	// bytes, and Pinned what of it freezes want. Revoked chunks were wanted, but
	// made room for newer packets.
	Memory, Pinned int
	Revoked        uint64
	// Oldest and Newest are the times of the packets at both ends of the buffer;
	// zero if it is empty.
	Oldest, Newest time.Time
	// Level is how much is recorded now, since LevelSince; LevelChanges counts.
	Level        Level
	LevelSince   time.Time
	LevelChanges uint64
	// CPU is the time that the recording thread used.
	CPU time.Duration
	// Gaps counts the gaps ever noted, Lost the packets missing in them.
	Gaps, Lost uint64
	// HoldTime is how long the last freeze took to be safe.
	HoldTime time.Duration
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
	running  atomic.Bool
	held     atomic.Int64 // how long the last Hold took

	mu        sync.Mutex
	published Stats
	harmed    harmTally
	notes     []evidence.Gap // on their way to the writer

	w writer
}

// New makes a recorder that holds nothing yet. Memory is reserved at once, and
// taken as it is needed. Close gives it back.
func New(cfg Config) (*Recorder, error) {
	if cfg.Memory == 0 {
		cfg.Memory = DefaultMemory
	}
	if cfg.Clock == nil {
		cfg.Clock = readClock
	}
	if cfg.Used == nil {
		cfg.Used = threadTime
	}
	if cfg.Memory-cfg.Ring < MinMemory {
		return nil, fmt.Errorf("memory of %d bytes is too little: a ring of %d and at least %d beside it are needed",
			cfg.Memory, cfg.Ring, MinMemory)
	}
	encoder, err := newEncoder(rand.Uint64())
	if err != nil {
		return nil, err
	}
	scores, err := newHarm(cfg.Memory, rand.Uint64())
	if err != nil {
		return nil, errors.Join(err, encoder.close())
	}
	encoder.harm = scores
	memory, err := newPages(cfg.Memory - cfg.Ring - encoderBytes - len(scores.memory))
	if err != nil {
		return nil, errors.Join(err, encoder.close(), scores.close())
	}
	r := &Recorder{
		cfg:    cfg,
		writer: make(chan struct{}, 1), requests: make(chan *request, maxRequests),
	}
	r.w = writer{r: r, governor: newGovernor(cfg.CPU), buffer: &buffer{
		clock: cfg.Clock, age: cfg.Age, memory: memory, encoder: encoder,
	}}
	r.w.buffer.hole = r.w.hole
	return r, nil
}

// Close gives the memory back. Nothing may run or be frozen any more.
func (r *Recorder) Close() error {
	r.writer <- struct{}{} // for ever
	return errors.Join(r.w.buffer.memory.close(), r.w.buffer.encoder.harm.close(), r.w.buffer.encoder.close())
}

// readClock takes the three readings back to back (clock_gettime(2)).
func readClock() (c Clock) {
	c.Realtime = nanos(unix.CLOCK_REALTIME)
	c.Monotonic = nanos(unix.CLOCK_MONOTONIC)
	c.Boottime = nanos(unix.CLOCK_BOOTTIME)
	return c
}

func threadTime() int64 { return nanos(unix.CLOCK_THREAD_CPUTIME_ID) }

// nanos reads a clock that every kernel since 2.6.39 has.
func nanos(id int32) int64 {
	var ts unix.Timespec
	if unix.ClockGettime(id, &ts) != nil {
		return 0
	}
	return ts.Nano()
}

// Run records what the source delivers until the context ends or the source does.
// It keeps a thread of its own, of which it watches the CPU time.
func (r *Recorder) Run(ctx context.Context, source Source) error {
	select {
	case r.writer <- struct{}{}:
	default:
		return ErrRunning
	}
	defer func() { <-r.writer }()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	r.source.Store(&source)
	r.running.Store(true)
	defer r.running.Store(false)
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
	s.HoldTime = time.Duration(r.held.Load())
	if source := r.source.Load(); source != nil {
		s.Source = (*source).Stats()
	}
	return s
}

// Harm is what all resets did, as of the last Tick. It is safe for concurrent use.
func (r *Recorder) Harm() evidence.HarmSample {
	r.mu.Lock()
	tally := r.harmed
	r.mu.Unlock()
	return tally.sample()
}

// Held is the time between the oldest and the newest packet in memory.
func (r *Recorder) Held() time.Duration {
	s := r.Stats()
	return s.Newest.Sub(s.Oldest)
}

// Note has a gap that others found kept with the recording, such as packets that
// an interface lost. It is safe for concurrent use.
func (r *Recorder) Note(gap evidence.Gap) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.notes = append(r.notes, gap)
}
