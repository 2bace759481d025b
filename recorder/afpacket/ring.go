package afpacket

import (
	"fmt"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"tcpcoroner/evidence"
	"tcpcoroner/recorder"
)

const (
	// maxBlock is the size of a block of a large ring: 6900 packets. Smaller ones
	// cost more wake-ups.
	maxBlock = 1 << 20
	minBlock = 64 << 10
	// minBlocks is the least number of blocks: with fewer the kernel drops packets
	// while the reader is at work.
	minBlocks = 8
	// retire is how long a packet waits at most for its block to fill.
	retire = 100 * time.Millisecond

	// The reader may come this late, while packets come at this many bytes a
	// second (500000 packets of 152 bytes): room for them is left when blocks are
	// held.
	lag     = 50 * time.Millisecond
	peak    = 500_000 * 152
	lagTime = int(lag / time.Millisecond)
)

// geometry divides a ring into blocks.
type geometry struct{ blockBytes, blocks int }

func newGeometry(ringBytes int) geometry {
	block := maxBlock
	for block > minBlock && ringBytes/block < minBlocks {
		block /= 2
	}
	return geometry{block, max(ringBytes/block, minBlocks)}
}

func (g geometry) bytes() int { return g.blockBytes * g.blocks }

// hold is how many blocks may be held back from the kernel. It counts the ring as
// full when the block a quarter of the ring ahead is not free, and then drops a
// packet that comes while another CPU closes a block (net/packet/af_packet.c,
// __packet_rcv_has_room and prb_close_block). So a quarter, what comes in until
// the reader does, and two blocks for the one in use and the one being closed stay
// free.
func (g geometry) hold() int {
	late := min((peak/1000*lagTime+g.blockBytes-1)/g.blockBytes, (g.blocks+3)/4)
	reserve := (g.blocks+3)/4 + late + 2
	return max(g.blocks-reserve, 0)
}

// socket is an open packet socket with its ring.
type socket struct {
	fd    int
	ring  []byte
	close func()
	// since is CLOCK_REALTIME nanoseconds: earlier packets came past the filter.
	since int64
}

// ring is the reader's side of a socket: it belongs to one goroutine.
type ring struct {
	walker
	geometry
	*socket
	inode uint64
	// next is the block to read. The held ones before it were counted and are not
	// released.
	next, held int
	lap        int // blocks read, up to one lap
	// read is when the counters were read; due tells that blocks came since.
	read    time.Time
	due     bool
	limited bool // by the filter that passes control packets only
}

func newRing(s *socket, g geometry, namespace uint16) *ring {
	r := &ring{socket: s, geometry: g}
	r.known, r.walker.since = map[uint32]struct{}{}, s.since
	r.meta.Path.Namespace = namespace
	return r
}

func (r *ring) block(at int) []byte {
	at = (at + r.blocks) % r.blocks * r.blockBytes
	return r.ring[at : at+r.blockBytes : at+r.blockBytes]
}

// status is shared with the kernel: a block is the reader's from when it has read
// TP_STATUS_USER to when it writes TP_STATUS_KERNEL.
func status(block []byte) *uint32 { return (*uint32)(unsafe.Pointer(&block[blockStatus])) }

// take reads the next block if the kernel has handed it over, and holds it if
// that is wished and there is room. It reports whether there was a block, and
// whether the kernel was losing packets.
func (s *Source) take(r *ring, hold bool) (taken, losing bool) {
	if r.held == r.blocks {
		return false, false // never: hold leaves room
	}
	b := r.block(r.next)
	v := atomic.LoadUint32(status(b))
	if v&unix.TP_STATUS_USER == 0 {
		return false, false
	}
	r.next, r.due = (r.next+1)%r.blocks, true
	switch {
	case r.isEarly(b):
		s.letGoAll(r)
		s.walk(r, b, addLate)
		clear(b[blockHeader:]) // payload may be in it
		release(b)
	case hold:
		s.walk(r, b, count)
		r.held++
		s.held.Add(1)
		for r.held > r.hold() {
			s.letGo(r, evict)
		}
	default:
		s.walk(r, b, add)
		release(b)
	}
	return true, v&statusLosing != 0
}

// waiting is how many quarters of what is not held are ready to be read: blocks
// become ready in order.
func (r *ring) waiting() int {
	for q := 3; q > 0; q-- {
		b := r.block(r.next + (r.blocks-r.held)*q/4 - 1)
		if atomic.LoadUint32(status(b))&unix.TP_STATUS_USER != 0 {
			return q
		}
	}
	return 0
}

func release(b []byte) { atomic.StoreUint32(status(b), unix.TP_STATUS_KERNEL) }

// letGo releases the oldest block that is held.
func (s *Source) letGo(r *ring, do purpose) {
	b := r.block(r.next - r.held)
	s.walk(r, b, do)
	release(b)
	r.held--
	s.held.Add(^uint64(0))
	if r.skipped > 0 {
		r.sink.Skip(r.skipped, r.first, r.last)
		r.skipped = 0
	}
}

// letGoAll gives the sink all that is held.
func (s *Source) letGoAll(r *ring) {
	for r.held > 0 {
		s.letGo(r, store)
	}
}

// walk reads one block. The kernel wrote all of it before its status.
func (s *Source) walk(r *ring, b []byte, do purpose) {
	used := int(u32(b, blockUsed))
	ok := used >= blockHeader && used <= len(b) && r.walker.walk(b[:used], do)
	if !ok && do <= count {
		s.malformed.Add(1) // once for each block
	}
	if r.early > 0 {
		s.skipped.Add(r.early)
		r.early = 0
	}
}

// isEarly tells whether the kernel began a block before the filter was set. It
// looks at the ring's first lap only: a later step of the clock must not look
// like it.
func (r *ring) isEarly(b []byte) bool {
	if r.lap >= r.blocks {
		return false
	}
	r.lap++
	return int64(u32(b, blockTime))*1e9+int64(u32(b, blockTime+4)) < r.walker.since
}

// limit changes the filter.
func (r *ring) limit(f *filters, limited bool) error {
	program := f.full
	if limited {
		program = f.control
	}
	if err := attach(r.fd, program); err != nil {
		return err
	}
	r.limited = limited
	return nil
}

// newInterfaces looks up the interfaces that were not seen before. The socket
// answers for its own namespace, whatever the thread's is (netdevice(7)). One that
// is gone already stays without a name.
func (r *ring) newInterfaces() []evidence.Interface {
	found := make([]evidence.Interface, 0, len(r.unknown))
	for _, i := range r.unknown {
		if describe(r.fd, &i) == nil {
			found = append(found, i)
		}
	}
	r.unknown = r.unknown[:0]
	return found
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

var _ recorder.Source = (*Source)(nil)
