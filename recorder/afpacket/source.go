package afpacket

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"tcpcoroner/evidence"
	"tcpcoroner/recorder"
)

const (
	// blockBytes is the size of a ring block: 6900 packets. Smaller ones cost more
	// wake-ups and lose packets.
	blockBytes = 1 << 20
	minBlocks  = 4
	// retire is how long a packet waits at most for its block to fill.
	retire = 100 * time.Millisecond
)

// DefaultRingBytes is the size of the kernel's ring if none is given.
const DefaultRingBytes = 16 << 20

// ErrClosed is returned by Run for a source that was closed or run before.
var ErrClosed = errors.New("packet source is closed")

// Config says how to open a Source.
type Config struct {
	// RingBytes is the memory of the ring between kernel and program, locked in
	// RAM; rounded down to whole MiB, at least 4 MiB. 0 means DefaultRingBytes.
	RingBytes int
}

// socket is an open packet socket with its ring.
type socket struct {
	fd    int
	ring  []byte
	close func()
	// since is CLOCK_REALTIME nanoseconds: earlier packets came past the filter.
	since int64
}

// Source reads all interfaces of one network namespace. It implements
// recorder.Source.
type Source struct {
	mu     sync.Mutex // held by Run and Close: only one of them has the socket
	socket *socket

	// What follows belongs to Run's goroutine.
	meta    recorder.Meta
	sink    recorder.Sink
	known   map[uint32]bool
	unknown []evidence.Interface
	lap     int // blocks read, up to one lap of the ring
	read    time.Time

	packets, dropped, freezes, skipped, malformed, polls, pollErrors atomic.Uint64

	namesMu sync.Mutex
	names   []evidence.Interface
}

// Open opens the packet socket in the network namespace of the calling thread:
// for another namespace than the process' own, lock the goroutine to its thread
// and enter the namespace around the call. Run may then be called anywhere.
func Open(cfg Config) (*Source, error) {
	if cfg.RingBytes == 0 {
		cfg.RingBytes = DefaultRingBytes
	}
	program, err := filter()
	if err != nil {
		return nil, err
	}
	blocks := max(cfg.RingBytes/blockBytes, minBlocks)
	s, err := opened(blocks, program)
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return nil, fmt.Errorf("open packet socket: %w: needs CAP_NET_RAW (run as root or use the systemd unit)", err)
	case err != nil:
		return nil, fmt.Errorf("open packet socket with a ring of %d MiB: %w", blocks, err)
	}
	return &Source{socket: s, known: map[uint32]bool{}}, nil
}

// Close gives the socket back if Run was never called. While Run runs it waits
// for it: end Run by its context.
func (s *Source) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closeSocket()
	return nil
}

func (s *Source) closeSocket() {
	if s.socket != nil {
		s.socket.close()
		s.socket = nil
	}
}

// Stats implements recorder.Source. The kernel's numbers are at most 100 ms old.
func (s *Source) Stats() recorder.SourceStats {
	return recorder.SourceStats{
		Packets: s.packets.Load(), Dropped: s.dropped.Load(), Freezes: s.freezes.Load(),
		Skipped: s.skipped.Load(), Malformed: s.malformed.Load(),
		Polls: s.polls.Load(), PollErrors: s.pollErrors.Load(),
	}
}

// Interfaces implements recorder.Source.
func (s *Source) Interfaces() []evidence.Interface {
	s.namesMu.Lock()
	defer s.namesMu.Unlock()
	return slices.Clone(s.names)
}

// Run implements recorder.Source. It ends at most 100 ms after the context and
// closes the socket: a source runs once.
func (s *Source) Run(ctx context.Context, sink recorder.Sink) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.socket == nil {
		return ErrClosed
	}
	defer s.closeSocket() // by the reader alone: the ring is unmapped
	s.sink = sink
	ring := s.socket.ring
	for at := 0; ctx.Err() == nil; {
		block := ring[at : at+blockBytes]
		status := (*uint32)(unsafe.Pointer(&block[blockStatus]))
		v := atomic.LoadUint32(status)
		if v&unix.TP_STATUS_USER == 0 {
			if err := s.wait(ctx); err != nil {
				return err
			}
			continue
		}
		s.take(block)
		s.afterBatch(v&statusLosing != 0)
		atomic.StoreUint32(status, unix.TP_STATUS_KERNEL)
		at = (at + blockBytes) % len(ring)
	}
	s.afterBatch(true)
	return nil
}

// take reads one block. The kernel wrote all of it before its status.
func (s *Source) take(block []byte) {
	used := int(u32(block, blockUsed))
	if used < blockHeader || used > len(block) {
		s.malformed.Add(1)
		return
	}
	visit, early := s.add, s.early(block)
	if early {
		visit = s.addFiltered
	}
	if !parseBlock(block[:used], &s.meta, visit) {
		s.malformed.Add(1)
	}
	if early {
		clear(block[blockHeader:used]) // payload may be in it
	}
}

// early tells whether the kernel began a block before the filter was set. It
// looks at the ring's first lap only: a later step of the clock must not look
// like it.
func (s *Source) early(block []byte) bool {
	if s.lap >= len(s.socket.ring)/blockBytes {
		return false
	}
	s.lap++
	began := int64(u32(block, blockTime))*1e9 + int64(u32(block, blockTime+4))
	return began < s.socket.since
}

// addFiltered leaves out the packets that came before the filter.
func (s *Source) addFiltered(m *recorder.Meta, header []byte) {
	if m.Nanos < s.socket.since {
		s.skipped.Add(1)
		return
	}
	s.add(m, header)
}

func (s *Source) add(m *recorder.Meta, header []byte) {
	if !s.known[m.Interface] {
		s.known[m.Interface] = true
		s.unknown = append(s.unknown, evidence.Interface{Index: m.Interface, LinkType: m.LinkType})
	}
	s.sink.Add(m, header)
}

// afterBatch does what must not be done for each packet.
func (s *Source) afterBatch(countNow bool) {
	if now := time.Now(); countNow || now.Sub(s.read) >= retire {
		s.read = now
		s.countKernel()
	}
	s.nameInterfaces()
	s.sink.Tick()
}

// countKernel reads the kernel's counters, which that sets to zero: nobody else
// may read them.
func (s *Source) countKernel() {
	c, err := unix.GetsockoptTpacketStatsV3(s.socket.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		s.pollErrors.Add(1)
		return
	}
	s.packets.Add(uint64(c.Packets))
	s.dropped.Add(uint64(c.Drops))
	s.freezes.Add(uint64(c.Freeze_q_cnt))
}

// nameInterfaces looks up the interfaces that were new in the batch. The socket
// answers for its own namespace, whatever the thread's is (netdevice(7)).
func (s *Source) nameInterfaces() {
	if len(s.unknown) == 0 {
		return
	}
	s.namesMu.Lock()
	defer s.namesMu.Unlock()
	for _, i := range s.unknown {
		if describe(s.socket.fd, &i) == nil {
			s.names = append(s.names, i)
		}
	}
	s.unknown = s.unknown[:0]
}

func describe(fd int, i *evidence.Interface) error {
	r, err := unix.NewIfreq("")
	if err != nil {
		return err
	}
	r.SetUint32(i.Index)
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFNAME, r); err != nil {
		return fmt.Errorf("name interface %d: %w", i.Index, err)
	}
	i.Name = r.Name()
	if r, err = unix.NewIfreq(i.Name); err == nil && unix.IoctlIfreq(fd, unix.SIOCGIFMTU, r) == nil {
		i.MTU = int(r.Uint32())
	}
	return nil
}

// wait polls for the next block, at most for the retire time.
func (s *Source) wait(ctx context.Context) error {
	s.polls.Add(1)
	fds := []unix.PollFd{{Fd: int32(s.socket.fd), Events: unix.POLLIN | unix.POLLERR}}
	n, err := unix.Poll(fds, int(retire/time.Millisecond))
	switch {
	case err != nil && err != unix.EINTR:
		return fmt.Errorf("wait for packets: %w", err)
	case n > 0 && fds[0].Revents&^unix.POLLIN != 0:
		s.clearError(ctx)
	case n > 0:
		return nil
	}
	s.afterBatch(true)
	return nil
}

// clearError takes the socket's pending error, which would wake every poll, and
// backs off in case there is more.
func (s *Source) clearError(ctx context.Context) {
	s.pollErrors.Add(1)
	_, _ = unix.GetsockoptInt(s.socket.fd, unix.SOL_SOCKET, unix.SO_ERROR)
	select {
	case <-ctx.Done():
	case <-time.After(retire):
	}
}
