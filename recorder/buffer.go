package recorder

import (
	"errors"
	"slices"
	"sync/atomic"
	"time"
)

// chunk is a sealed piece of the history.
type chunk struct {
	head   head
	serial uint64
	pages  []uint32
	size   int
	sealed int64 // monotonic nanoseconds
	memory *pages

	// pins counts the freezes that want the chunk: it is the last to go. Only the
	// writer adds one; anybody may take one away.
	pins atomic.Int32
	// readers counts those that copy it at this moment; revoked tells that its
	// memory was needed. Its pages are used again when no reader is left.
	readers atomic.Int32
	revoked atomic.Bool
}

// errRevoked tells that a frozen chunk's memory was needed for newer packets.
var errRevoked = errors.New("the oldest frozen packets made room for newer ones: too many freezes at once for recorder.memory")

// copy appends the chunk's bytes to b.
func (c *chunk) copy(b []byte) ([]byte, error) {
	c.readers.Add(1)
	defer c.readers.Add(-1)
	if c.revoked.Load() {
		return b, errRevoked
	}
	for i, page := range c.pages {
		b = append(b, c.memory.page(page)[:min(pageBytes, c.size-i*pageBytes)]...)
	}
	return b, nil
}

// buffer is the history. It belongs to the writer: no other goroutine touches
// it, so it needs no lock.
type buffer struct {
	clock   func() Clock
	age     time.Duration
	memory  *pages
	encoder *encoder
	opened  int64 // when the open chunk began, monotonic nanoseconds
	scratch []byte

	sealed  []*chunk // oldest first
	leaving []*chunk // revoked, but a reader still copies them
	serial  uint64
	packed  int // bytes of all sealed chunks

	// evicted is how many packets went with their chunks, evictedTo the time of
	// the latest of them; revoked counts the chunks that a freeze wanted.
	evicted   uint64
	evictedTo int64
	revoked   uint64
	// hole is told of a chunk that went while an older one stayed: a window over
	// both lacks its packets.
	hole func(*head)
}

// agePieces is the number of chunks that Config.Age is cut into, so that old
// packets of a quiet host leave in time.
const agePieces = 8

// append stores a packet, as far as it may be kept.
func (b *buffer) append(m *Meta, header []byte, compress bool) outcome {
	if !b.encoder.room() {
		b.seal(compress)
	}
	return b.encoder.add(m, header)
}

// seal closes the open chunk for ever and evicts what it needs the room of.
func (b *buffer) seal(compress bool) {
	e := b.encoder
	now := b.clock()
	b.opened = now.Monotonic
	if e.head.packets == 0 {
		return
	}
	if n := e.sealedSize(); cap(b.scratch) < n {
		b.scratch = make([]byte, n)
	}
	e.head.clock = now
	bytes := e.seal(b.scratch[:cap(b.scratch)], compress)
	b.makeRoom(len(bytes))
	if b.memory.room(len(bytes)) {
		b.serial++
		b.packed += len(bytes)
		b.sealed = append(b.sealed, &chunk{
			head: e.head, serial: b.serial, pages: b.memory.put(bytes), size: len(bytes),
			sealed: now.Monotonic, memory: b.memory,
		})
	} else {
		b.forget(&e.head)
	}
	if e.harm != nil {
		e.harm.carry(e)
	}
	e.reset()
}

// pinnedShare is the part of the memory that pinned chunks may keep while newer
// packets need it.
const pinnedShare = 2

// makeRoom evicts until there is room: first what no freeze wants, oldest first.
func (b *buffer) makeRoom(n int) {
	for !b.memory.room(n) {
		b.reap()
		if b.memory.room(n) || len(b.sealed) == 0 {
			return
		}
		i := slices.IndexFunc(b.sealed, func(c *chunk) bool { return c.pins.Load() == 0 })
		if pinned := b.pinned(); i < 0 || pinned > b.memory.total()*pageBytes/pinnedShare {
			i = slices.IndexFunc(b.sealed, func(c *chunk) bool { return c.pins.Load() != 0 })
			b.revoked++
		}
		if i > 0 {
			b.hole(&b.sealed[i].head)
		}
		b.evict(max(i, 0))
	}
}

// pinned is what freezes want, in bytes.
func (b *buffer) pinned() (n int) {
	for _, c := range b.sealed {
		if c.pins.Load() != 0 {
			n += len(c.pages) * pageBytes
		}
	}
	return n
}

// evict forgets a sealed chunk.
func (b *buffer) evict(i int) {
	c := b.sealed[i]
	b.sealed = slices.Delete(b.sealed, i, i+1)
	b.packed -= c.size
	b.forget(&c.head)
	c.revoked.Store(true)
	b.leaving = append(b.leaving, c)
	b.reap()
}

func (b *buffer) forget(h *head) {
	b.evicted += uint64(h.packets)
	b.evictedTo = max(b.evictedTo, h.last)
}

// reap takes back the pages of chunks that nobody copies any more. A reader that
// begins now sees that the chunk is revoked.
func (b *buffer) reap() {
	b.leaving = slices.DeleteFunc(b.leaving, func(c *chunk) bool {
		if c.readers.Load() != 0 {
			return false
		}
		b.memory.giveBack(c.pages)
		return true
	})
}

// expire evicts what is older than the wished-for age. It goes by the monotonic
// clock: a step of the wall clock must not empty the buffer.
func (b *buffer) expire(now int64, compress bool) {
	b.reap()
	if b.age <= 0 {
		return
	}
	if now-b.opened > int64(b.age)/agePieces {
		b.seal(compress)
	}
	for len(b.sealed) > 0 && now-b.sealed[0].sealed > int64(b.age) {
		b.evict(0)
	}
}

// bounds are the times of the oldest and newest packet held; 0 if none.
func (b *buffer) bounds() (first, last int64) {
	if n := len(b.sealed); n > 0 {
		first, last = b.sealed[0].head.first, b.sealed[n-1].head.last
	}
	if h := &b.encoder.head; h.packets > 0 {
		if last = max(last, h.last); first == 0 {
			first = h.first
		}
	}
	return first, last
}

// held is the number of packets held, and the bytes that they take.
func (b *buffer) held() (n uint64, size int) {
	for _, c := range b.sealed {
		n += uint64(c.head.packets)
	}
	return n + uint64(b.encoder.head.packets), b.packed + b.encoder.size()
}
