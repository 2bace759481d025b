package afpacket

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"tcpcoroner/recorder"
)

const (
	// idle is the longest wait: an idle source wakes once in it.
	idle = time.Second
	// checkEvery is how often attached namespaces are looked for.
	checkEvery = 10 * time.Second
)

// The sizes of rings if none are given.
const (
	DefaultRingBytes          = 16 << 20
	DefaultNamespaceRingBytes = 2 << 20
)

// Errors of a Source.
var (
	// ErrClosed is returned for a source that was closed or run before.
	ErrClosed = errors.New("packet source is closed")
	// ErrAttached is returned for a network namespace that is recorded already.
	ErrAttached = errors.New("network namespace is recorded already")
)

// Config says how to open a Source.
type Config struct {
	// RingBytes is the memory of the ring between kernel and program, locked in
	// RAM; rounded down to whole blocks, at least 512 KiB. 0 means
	// DefaultRingBytes.
	RingBytes int
	// Overlay has the segments in VXLAN and Geneve tunnels recorded too. Without,
	// they are seen on the tunnel's device if that is on this host.
	Overlay bool
	// NamespaceRingBytes is RingBytes for each namespace that is attached. 0 means
	// DefaultNamespaceRingBytes.
	NamespaceRingBytes int
	// Proc is where procfs is mounted. "" means /proc.
	Proc string
}

// Source reads all interfaces of one network namespace, and of others that are
// attached. It implements recorder.Source.
type Source struct {
	cfg        Config
	filters    filters
	own        uint64        // inode of the first namespace
	checkEvery time.Duration // of attached namespaces
	epoll      int

	mu     sync.Mutex // held by Run and Close: only one of them has the rings
	closed bool
	// What follows belongs to Run's goroutine.
	rings   []*ring
	sink    recorder.Sink
	hold    bool
	limited bool
	events  [16]unix.EpollEvent
	resting [1]unix.PollFd
	checked time.Time
	batchAt time.Time // of the last batch
	// background waits for what was started aside: closing of sockets, which waits
	// for the kernel, and looks for namespaces.
	background sync.WaitGroup
	checking   atomic.Bool

	packets, dropped, freezes, skipped, malformed, polls, pollErrors atomic.Uint64
	open, held, filterSwaps, filterErrors, backlog                   atomic.Uint64

	requests
}

// Open opens the packet socket in the network namespace of the calling thread:
// for another namespace than the process' own, lock the goroutine to its thread
// and enter the namespace around the call. Run may then be called anywhere.
func Open(cfg Config) (*Source, error) {
	cfg.setDefaults()
	s := &Source{cfg: cfg, checkEvery: checkEvery, epoll: -1}
	s.event = -1
	if err := s.start(); err != nil {
		_ = s.Close()
		return nil, err
	}
	return s, nil
}

func (c *Config) setDefaults() {
	if c.RingBytes == 0 {
		c.RingBytes = DefaultRingBytes
	}
	if c.NamespaceRingBytes == 0 {
		c.NamespaceRingBytes = DefaultNamespaceRingBytes
	}
	if c.Proc == "" {
		c.Proc = "/proc"
	}
}

func (s *Source) start() (err error) {
	if s.filters, err = newFilters(s.cfg.Overlay); err != nil {
		return err
	}
	if s.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return fmt.Errorf("open epoll: %w", err)
	}
	if s.event, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return fmt.Errorf("open eventfd: %w", err)
	}
	if err := s.watch(s.event); err != nil {
		return err
	}
	if s.own, err = inode(s.cfg.Proc + "/thread-self/ns/net"); err != nil {
		return err
	}
	r, err := s.openRing(s.cfg.RingBytes, 0)
	if err != nil {
		return err
	}
	return s.adopt(r)
}

// watch has the descriptor end a wait once for each time that something comes:
// the kernel's usual notification would not rest while blocks are held
// (packet_poll in net/packet/af_packet.c looks at the newest full block).
func (s *Source) watch(fd int) error {
	e := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: int32(fd)}
	if err := unix.EpollCtl(s.epoll, unix.EPOLL_CTL_ADD, fd, &e); err != nil {
		return fmt.Errorf("watch descriptor %d: %w", fd, err)
	}
	return nil
}

func (s *Source) openRing(ringBytes int, namespace uint16) (*ring, error) {
	g := newGeometry(ringBytes)
	socket, err := opened(g, s.filters.full)
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return nil, fmt.Errorf("open packet socket: %w: needs CAP_NET_RAW (run as root or use the systemd unit)", err)
	case err != nil:
		return nil, fmt.Errorf("open packet socket with a ring of %d KiB: %w", g.bytes()>>10, err)
	}
	return newRing(socket, g, namespace), nil
}

// adopt makes a ring one of those that are read. It is closed if that fails.
func (s *Source) adopt(r *ring) error {
	err := s.watch(r.fd)
	if err == nil && s.limited {
		err = r.limit(&s.filters, true)
	}
	if err != nil {
		r.close()
		return err
	}
	r.sink = s.sink
	s.rings = append(s.rings, r)
	s.open.Store(uint64(len(s.rings)))
	return nil
}

// Close gives the sockets back if Run was never called. While Run runs it waits
// for it: end Run by its context.
func (s *Source) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closeAll()
	return nil
}

func (s *Source) closeAll() {
	if s.closed {
		return
	}
	s.closed = true
	for _, r := range slices.Concat(s.rings, s.endRequests()) {
		s.background.Go(r.close)
	}
	s.background.Wait()
	s.rings = nil
	s.open.Store(0)
	if s.epoll >= 0 {
		_ = unix.Close(s.epoll)
	}
}

// Stats implements recorder.Source. The kernel's numbers are at most 100 ms old
// while packets come.
func (s *Source) Stats() recorder.SourceStats {
	return recorder.SourceStats{
		Packets: s.packets.Load(), Dropped: s.dropped.Load(), Freezes: s.freezes.Load(),
		Skipped: s.skipped.Load(), Malformed: s.malformed.Load(),
		Polls: s.polls.Load(), PollErrors: s.pollErrors.Load(),
		Backlog: float64(s.backlog.Load()) / 4,
		Rings:   s.open.Load(), Held: s.held.Load(),
		FilterSwaps: s.filterSwaps.Load(), FilterErrors: s.filterErrors.Load(),
	}
}

// Run implements recorder.Source. It closes the sockets when it ends: a source
// runs once.
func (s *Source) Run(ctx context.Context, sink recorder.Sink) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	defer s.closeAll() // by the reader alone: the rings are unmapped
	defer context.AfterFunc(ctx, s.Wake)()
	s.sink = sink
	for _, r := range s.rings {
		r.sink = sink
	}
	s.batchAt = time.Now()
	for ctx.Err() == nil {
		s.hear()
		s.serve()
		rounds, drained, losing := s.batch()
		s.afterBatch(losing)
		lull := s.lull(rounds)
		if !drained {
			continue
		}
		if err := s.wait(lull); err != nil {
			return err
		}
	}
	s.flush()
	s.countKernel(s.rings...)
	s.nameInterfaces()
	sink.Tick()
	return nil
}

// batch reads all that the kernel has ready, at most a lap of the largest ring:
// what was recorded before a Wake is read before the Tick that answers it. While
// much is waiting the sink hears of it after each block.
func (s *Source) batch() (rounds int, drained, losing bool) {
	most := 0
	for _, r := range s.rings {
		most = max(most, r.blocks)
	}
	for waiting := 0; rounds < most && waiting < muchWaiting; {
		taken, l := s.round()
		losing = losing || l
		waiting = s.waiting()
		s.backlog.Store(uint64(waiting))
		if !taken {
			return rounds, true, losing
		}
		rounds++
	}
	return rounds, false, losing
}

// muchWaiting is in quarters of a ring.
const muchWaiting = 2

// waiting is how much of the fullest ring is there to be read, in quarters.
func (s *Source) waiting() (quarters int) {
	for _, r := range s.rings {
		quarters = max(quarters, r.waiting())
	}
	return quarters
}

// lull is how long the rings can be left alone after a batch: until an eighth of a
// ring has filled at the present rate. Each wake-up costs as much as a hundred
// packets, and more in the runtime, which watches closely whatever has just begun
// to run (sysmon in the runtime's proc.go).
func (s *Source) lull(rounds int) time.Duration {
	now := time.Now()
	passed := now.Sub(s.batchAt)
	s.batchAt = now
	if rounds == 0 || s.hold {
		return 0
	}
	blocks, bytes := s.rings[0].blocks, s.rings[0].bytes()
	for _, r := range s.rings {
		blocks, bytes = min(blocks, r.blocks), min(bytes, r.bytes())
	}
	// At most what the smallest ring takes to fill half, if from one moment to the
	// next the most comes in that one processor can deliver.
	longest := time.Duration(bytes) * time.Second / (2 * mostPackets * packetBytes)
	return min(passed*time.Duration(blocks)/time.Duration(lullShare*rounds), longest)
}

const (
	lullShare = 8
	// mostPackets a second on one processor, each of packetBytes in the ring.
	mostPackets = 1_500_000
	packetBytes = 152
	// minLull is not worth a wait.
	minLull = 2 * time.Millisecond
)

// round reads a block of each ring that has one, so that none is left behind.
func (s *Source) round() (taken, losing bool) {
	for _, r := range s.rings {
		t, l := s.take(r, s.hold)
		taken, losing = taken || t, losing || l
	}
	return taken, losing
}

// afterBatch does what must not be done for each packet.
func (s *Source) afterBatch(losing bool) {
	now := time.Now()
	for _, r := range s.rings {
		since := now.Sub(r.read)
		if losing || r.due && since >= retire || since >= idle {
			r.read, r.due = now, false
			s.countKernel(r)
		}
	}
	s.nameInterfaces()
	s.checkNamespaces(now)
	s.obey(s.sink.Tick())
}

// obey goes on as the sink wishes.
func (s *Source) obey(o recorder.Order) {
	if o.Flush || s.hold && o.Level != recorder.LevelHold {
		s.flush()
		o = s.sink.Tick()
	}
	s.hold = o.Level == recorder.LevelHold
	s.limited = o.Level == recorder.LevelControl
	for _, r := range s.rings {
		if r.limited == s.limited {
			continue
		}
		if r.limit(&s.filters, s.limited) != nil {
			s.filterErrors.Add(1) // and again at the next tick
			continue
		}
		s.filterSwaps.Add(1)
	}
}

// flush gives the sink all that is held, and then all that the kernel has ready,
// at most one lap of it.
func (s *Source) flush() {
	for _, r := range s.rings {
		s.flushRing(r)
	}
}

func (s *Source) flushRing(r *ring) {
	s.letGoAll(r)
	for range r.blocks {
		if taken, _ := s.take(r, false); !taken {
			return
		}
	}
}

// countKernel reads the kernel's counters, which that sets to zero: nobody else
// may read them.
func (s *Source) countKernel(rings ...*ring) {
	for _, r := range rings {
		c, err := unix.GetsockoptTpacketStatsV3(r.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
		if err != nil {
			s.pollErrors.Add(1)
			continue
		}
		s.packets.Add(uint64(c.Packets))
		s.dropped.Add(uint64(c.Drops))
		s.freezes.Add(uint64(c.Freeze_q_cnt))
	}
}

func (s *Source) nameInterfaces() {
	for _, r := range s.rings {
		if len(r.unknown) > 0 {
			s.addInterfaces(r.newInterfaces())
		}
	}
}

// hear takes what Wake wrote: what was asked before is answered by the next Tick,
// what is asked after ends the next wait.
func (s *Source) hear() {
	var b [8]byte
	_, _ = unix.Read(s.event, b[:])
}

// wait ends when a block is full or its time is up, after Wake, or after a second;
// in a lull, only after that or Wake.
func (s *Source) wait(lull time.Duration) error {
	s.polls.Add(1)
	if lull >= minLull {
		return s.rest(lull)
	}
	n, err := unix.EpollWait(s.epoll, s.events[:], int(idle/time.Millisecond))
	if err != nil && err != unix.EINTR {
		return fmt.Errorf("wait for packets: %w", err)
	}
	for _, e := range s.events[:max(n, 0)] {
		if e.Events&unix.EPOLLERR != 0 {
			s.pollErrors.Add(1)
			_, _ = unix.GetsockoptInt(int(e.Fd), unix.SOL_SOCKET, unix.SO_ERROR) // takes it
		}
	}
	return nil
}

// rest waits for Wake only.
func (s *Source) rest(lull time.Duration) error {
	s.resting[0] = unix.PollFd{Fd: int32(s.event), Events: unix.POLLIN}
	if _, err := unix.Poll(s.resting[:], int(lull/time.Millisecond)); err != nil && err != unix.EINTR {
		return fmt.Errorf("wait for packets: %w", err)
	}
	return nil
}
