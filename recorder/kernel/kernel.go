package kernel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/ringbuf"

	"tcpcoroner/evidence"
)

// Config says how much to watch and to keep.
type Config struct {
	// Level is the most that is used of what the kernel offers, one of the Level
	// constants of evidence.
	Level string
	// Keep is how long events are kept, MaxEvents how many at most.
	Keep      time.Duration
	MaxEvents int
	// MaxOwners bounds the live sockets whose owner is known, beyond the 8192 that
	// have a slot: 16 bytes each, and some 100 more for one that is in use.
	MaxOwners uint32
	// Rate is the number of events a second that each CPU may describe of each
	// kind, Burst how many at once. Those beyond are counted.
	Rate, Burst uint32
	// ProgramStats makes the kernel measure the programs' run time, of all BPF
	// programs on the host, for some 20 ns a run.
	ProgramStats bool
	// ProcRoot, CgroupRoot and BTFRoot are the mount points of proc(5), of cgroups(7)
	// and the directory with a file for each module that has BTF.
	ProcRoot, CgroupRoot, BTFRoot string
}

// DefaultConfig is what a daemon wants.
func DefaultConfig() Config {
	return Config{
		Level: evidence.LevelFull, Keep: 5 * time.Minute, MaxEvents: 16384,
		MaxOwners: 1 << 18, Rate: 200, Burst: 200,
		ProcRoot: "/proc", CgroupRoot: "/sys/fs/cgroup", BTFRoot: "/sys/kernel/btf",
	}
}

// Validate names the first field that makes no sense.
func (c Config) Validate() error {
	switch {
	case levelRank(c.Level) < 0:
		return fmt.Errorf("level %q: want full, reasons, tuples or packets", c.Level)
	case c.Keep <= 0:
		return fmt.Errorf("keep %v: want more than 0", c.Keep)
	case c.MaxEvents < 1:
		return fmt.Errorf("max events %d: want at least 1", c.MaxEvents)
	case c.MaxOwners < 1:
		return fmt.Errorf("max owners %d: want at least 1", c.MaxOwners)
	case c.Rate < 1 || c.Rate > 1e6:
		return fmt.Errorf("rate %d events/s: want 1 to 1000000", c.Rate)
	case c.Burst < 1 || c.Burst > 1e6:
		return fmt.Errorf("burst %d events: want 1 to 1000000", c.Burst)
	}
	return nil
}

// Kernel is the set of attached programs and what they told. Its methods may be
// called from several goroutines.
type Kernel struct {
	cfg   Config
	spec  *ebpf.CollectionSpec
	types *btf.Cache // nil after Open
	maps  map[string]*ebpf.Map
	ring  *ringbuf.Reader
	clock *clock
	procs *processes
	dec   decoder
	kept  keeper
	// symbols names what Locate was asked for.
	symbols *symbols
	// drained and counts are what drain reads at once.
	drained [256]bpfSuppressedKey
	counts  [256]uint64

	// mu guards what a module that is loaded later changes, what Watch does, and Close.
	mu      sync.Mutex
	state   state
	hooks   []evidence.KernelHook
	later   []hook
	seeder  *ebpf.Program // nil before the first time
	watched watched
	progs   []program
	closers []io.Closer
	closed  bool
}

// program is a loaded program and the name of the hook that it sits on.
type program struct {
	name string
	*ebpf.Program
}

// Open loads the programs, attaches them and looks up who owns the sockets that
// are there already. It fails only for a configuration that makes no sense: what
// this kernel or this user is not allowed lowers the Level, which says why.
func Open(cfg Config) (*Kernel, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("configure kernel evidence: %w", err)
	}
	k := &Kernel{cfg: cfg, clock: newClock(readClocks), procs: newProcesses(cfg.ProcRoot, cfg.CgroupRoot)}
	k.kept = keeper{max: cfg.MaxEvents, age: cfg.Keep}
	k.dec = decoder{clock: k.clock, hz: ticksPerSecond()}
	k.symbols = newSymbols(cfg.ProcRoot)
	if cfg.Level == evidence.LevelPackets {
		return k, nil
	}
	if err := k.load(); err != nil {
		k.state.broken = err
		return k, nil
	}
	k.attachAll()
	k.seed()
	k.procs.walk()
	k.types = nil // some megabytes that are needed no more
	return k, nil
}

// Run takes the events from the kernel until ctx ends. It is called once.
func (k *Kernel) Run(ctx context.Context) error {
	if k.ring == nil {
		<-ctx.Done()
		return nil
	}
	stop := context.AfterFunc(ctx, func() { _ = k.ring.Close() })
	defer stop()
	next, busy := time.Now().Add(time.Second), true
	k.ring.SetDeadline(next)
	var rec ringbuf.Record
	for {
		err := k.ring.ReadInto(&rec)
		busy = busy || err == nil
		switch {
		case errors.Is(err, ringbuf.ErrClosed):
			return nil
		case err == nil:
			k.clock.current()
			k.take(rec.RawSample)
			if rec.Remaining == 0 {
				rest(ctx)
			}
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return fmt.Errorf("read events of the kernel: %w", err)
		}
		if now := time.Now(); !now.Before(next) {
			k.tick(now)
			next = now.Add(idleTick)
			if busy {
				next = now.Add(busyTick)
			}
			busy = false
			k.ring.SetDeadline(next)
		}
	}
}

// busyTick is how often counts and clocks are looked at while events come, idleTick
// while none do: each look is a wake-up.
const (
	busyTick = time.Second
	idleTick = 10 * time.Second
)

// restTime is how long events may wait in the ring: it has room for more than come
// meanwhile, and one wake-up serves many.
const restTime = 10 * time.Millisecond

func rest(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(restTime):
	}
}

// take decodes one event and keeps it. It does not keep sample.
func (k *Kernel) take(sample []byte) {
	raw, err := parseEvent(sample)
	if err != nil {
		k.kept.undecodable()
		return
	}
	e := k.dec.event(&raw)
	k.procs.fill(e.Owner, raw.Owner)
	k.procs.fill(e.Actor, raw.Actor)
	k.procs.fill(e.LastListener, raw.Listener)
	if e.Grave != nil {
		k.procs.fill(e.Grave.Owner, raw.Grave.Owner)
	}
	e.SocketCgroup = k.procs.cgroup(raw.Cgroup)
	k.kept.add(record{e, raw.Location})
}

// tick is the work of each second.
func (k *Kernel) tick(now time.Time) {
	k.clock.measure()
	k.drain(now)
	k.procs.tick(now)
	k.kept.expire(now)
	k.attachLater()
}

// drain takes the suppressed events' counts out of the kernel. An event that is
// counted meanwhile may be lost to this table; Stats has exact totals.
func (k *Kernel) drain(now time.Time) {
	var cursor ebpf.MapBatchCursor
	for {
		n, err := k.maps[bpfMapSuppressed].BatchLookupAndDelete(&cursor, k.drained[:], k.counts[:], nil)
		for i, key := range k.drained[:n] {
			if k.counts[i] > 0 {
				k.kept.suppress(k.dec.suppressed(key, k.counts[i], now))
			}
		}
		if err != nil { // the end of the map, mostly
			return
		}
	}
}

// Events returns the kept events from from to to, in the order of time. Locations are
// those that Locate has looked up. The slice is the caller's; the owners in it are
// shared and must not be written.
func (k *Kernel) Events(from, to time.Time) []evidence.KernelEvent {
	return k.kept.events(from, to, k.symbols.name)
}

// Locate looks up the functions that dropped the segments of the kept events from
// from to to, for Events to tell. It takes some 100 ms if a place is new.
func (k *Kernel) Locate(from, to time.Time) { k.symbols.lookUp(k.kept.locations(from, to)) }

// Suppressed returns the counts of events that were not described, of the seconds
// that touch from to to. The slice is the caller's.
func (k *Kernel) Suppressed(from, to time.Time) []evidence.KernelSuppressed {
	return k.kept.uncounted(from, to)
}

// OwnerByCookie is the owner of a live socket and how it is known; the cookie is
// that of SO_COOKIE and of inet_diag.
func (k *Kernel) OwnerByCookie(cookie uint64) (owner evidence.Owner, via string, ok bool) {
	raw, ok := k.lookUp(cookie)
	if !ok || !owned(raw) {
		return evidence.Owner{}, "", false
	}
	o := k.dec.owner(raw)
	k.procs.fill(o, raw)
	return *o, viaNames.name(raw.Via), true
}

// lookUp asks as owner_of of bpf/owner.h does.
func (k *Kernel) lookUp(cookie uint64) (o bpfOwner, ok bool) {
	if k.maps == nil {
		return o, false
	}
	slots := k.maps[bpfMapSlots]
	var s bpfSlot
	if slots.Lookup(uint32(cookie)&(slots.MaxEntries()-1), &s) == nil && s.Cookie == cookie {
		return s.Owner, cookie != 0
	}
	return o, k.maps[bpfMapOwners].Lookup(cookie, &o) == nil
}

// Level tells what this kernel gives, and what would raise it.
func (k *Kernel) Level() evidence.KernelLevel {
	k.mu.Lock()
	defer k.mu.Unlock()
	l := levelOf(k.cfg.Level, k.state)
	l.Hooks = append([]evidence.KernelHook(nil), k.hooks...)
	return l
}

// Close detaches the programs and frees their maps. It does not wait for Run,
// which ends by itself. Closing again does nothing.
func (k *Kernel) Close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return nil
	}
	k.closed = true
	var errs []error
	for i := len(k.closers) - 1; i >= 0; i-- {
		errs = append(errs, k.closers[i].Close())
	}
	return errors.Join(errs...)
}
