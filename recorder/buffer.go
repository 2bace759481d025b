package recorder

import (
	"slices"
	"time"

	"tcpcoroner/evidence"
)

// buffer holds the chunks. It belongs to the writer: no other goroutine touches
// it, so it needs no lock.
type buffer struct {
	clock func() Clock
	age   time.Duration
	// limit is the number of chunks that may exist, history the number of sealed
	// ones that may be held. The difference is the room to go on recording while
	// a freeze pins the whole history.
	limit, history int

	open   *chunk
	sealed []*chunk // oldest first
	pinned []*chunk // evicted, but a freeze still reads them
	free   []*chunk
	made   int

	// evicted is how many packets went with their chunks, evictedTo the time of
	// the latest of them.
	evicted   uint64
	evictedTo int64
}

const (
	minChunks = 4
	// reserve is the part of the budget that history may not take.
	reserve = 8
	// agePieces is the number of chunks that Config.Age is cut into, so that old
	// packets of a quiet host leave in time.
	agePieces = 8
)

func newBuffer(memory int, age time.Duration, clock func() Clock) *buffer {
	b := &buffer{clock: clock, age: age, limit: max(memory/ChunkBytes, minChunks)}
	b.history = b.limit - max(2, b.limit/reserve)
	for _, list := range []*[]*chunk{&b.sealed, &b.pinned, &b.free} {
		*list = make([]*chunk, 0, b.limit)
	}
	return b
}

// append stores a record; false if freezes pin all memory there is.
func (b *buffer) append(m *Meta, header []byte, reset bool) bool {
	if b.open != nil {
		if b.open.append(m, header, reset) {
			return true
		}
		b.seal()
	}
	if !b.begin() {
		return false
	}
	return b.open.append(m, header, reset)
}

// seal closes the open chunk for ever and evicts what exceeds the history.
func (b *buffer) seal() {
	c := b.open
	b.open = nil
	c.head.clock = b.clock()
	c.sealed = c.head.clock.Monotonic
	c.head.seal(c.bytes)
	b.sealed = append(b.sealed, c)
	for len(b.sealed) > b.history {
		b.evict()
	}
}

// begin finds memory for a new open chunk.
func (b *buffer) begin() bool {
	b.reap()
	if len(b.free) == 0 && b.made < b.limit {
		b.free = append(b.free, &chunk{bytes: make([]byte, 0, ChunkBytes)})
		b.made++
	}
	// The newest packets matter most: give up history, unless that frees nothing.
	for len(b.free) == 0 && slices.ContainsFunc(b.sealed, unpinned) {
		b.evict()
	}
	if len(b.free) == 0 {
		return false
	}
	last := len(b.free) - 1
	b.open, b.free = b.free[last], b.free[:last]
	b.open.reset(b.clock().Monotonic)
	return true
}

func unpinned(c *chunk) bool { return c.pins.Load() == 0 }

// evict forgets the oldest sealed chunk.
func (b *buffer) evict() {
	c := b.sealed[0]
	b.sealed = slices.Delete(b.sealed, 0, 1)
	b.evicted += uint64(c.head.packets)
	b.evictedTo = max(b.evictedTo, c.head.last)
	if unpinned(c) {
		b.free = append(b.free, c)
	} else {
		b.pinned = append(b.pinned, c)
	}
}

// reap takes back evicted chunks that were released since.
func (b *buffer) reap() {
	b.pinned = slices.DeleteFunc(b.pinned, func(c *chunk) bool {
		if !unpinned(c) {
			return false
		}
		b.free = append(b.free, c)
		return true
	})
}

// expire evicts what is older than the wished-for age. It goes by the monotonic
// clock: a step of the wall clock must not empty the buffer.
func (b *buffer) expire(now int64) {
	if b.age <= 0 {
		return
	}
	if b.open != nil && now-b.open.opened > int64(b.age)/agePieces {
		b.seal()
	}
	for len(b.sealed) > 0 && now-b.sealed[0].sealed > int64(b.age) {
		b.evict()
	}
}

// bounds are the times of the oldest and newest packet held; 0 if none.
func (b *buffer) bounds() (first, last int64) {
	if n := len(b.sealed); n > 0 {
		first, last = b.sealed[0].head.first, b.sealed[n-1].head.last
	}
	if b.open != nil && b.open.head.packets > 0 {
		if last = b.open.head.last; first == 0 {
			first = b.open.head.first
		}
	}
	return first, last
}

// gaps is a bounded list of gaps, oldest first. When it is full the two oldest
// become one: a gap may grow wider than it was, but none is forgotten.
type gaps []evidence.Gap

const maxGaps = 256

func (g *gaps) add(gap evidence.Gap) {
	if n := len(*g); n > 0 {
		if last := &(*g)[n-1]; last.Reason == gap.Reason && !last.To.Before(gap.From) {
			last.To, last.Lost = gap.To, last.Lost+gap.Lost
			return
		}
	}
	if len(*g) == maxGaps {
		(*g)[1].From = (*g)[0].From
		(*g)[1].Lost += (*g)[0].Lost
		*g = slices.Delete(*g, 0, 1)
	}
	*g = append(*g, gap)
}

// within copies the gaps that touch the stretch of time.
func (g gaps) within(from, to time.Time) (found []evidence.Gap) {
	for _, gap := range g {
		if !gap.To.Before(from) && !gap.From.After(to) {
			found = append(found, gap)
		}
	}
	return found
}
