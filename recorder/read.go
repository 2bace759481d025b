package recorder

import (
	"container/heap"
	"errors"
	"iter"
	"math"
	"slices"
	"time"

	"tcpcoroner/evidence"
)

// Read calls visit for each packet of the chunks with from <= time <= to, ordered
// by time, until visit returns false. The packet and its header are valid during
// the call only. Chunks come oldest first, each valid until the next one.
//
// A damaged chunk costs only its own packets: the others are visited, and the
// errors are returned together. The memory that Read takes does not depend on
// the number of packets: it decodes one chunk at a time, while another thread with
// the caller's priority gets the next one.
func Read(chunks iter.Seq2[[]byte, error], from, to time.Time, visit func(*evidence.Packet) bool) error {
	return ReadNeeded(chunks, from, to, nil, visit)
}

// Need tells how many packets are needed of those that are like this one: which the
// same end of a connection sends and that come the same way, with the same TTL and the
// same Sighting. From 255 on it is all. It is called for one of them at least, who has
// no Number yet and is valid during the call only.
type Need func(like *evidence.Packet) int

// ReadNeeded is Read where not every packet is needed: one is left out only if as many
// like it were visited before as are needed. It counts in the Number of those that
// follow. More than needed are visited where that is less work, a RST and what is no
// plain TCP segment always. With nil all is needed.
func ReadNeeded(chunks iter.Seq2[[]byte, error], from, to time.Time, need Need, visit func(*evidence.Packet) bool) error {
	r := reader{from: from.UnixNano(), to: to.UnixNano(), visit: visit, decoder: decoder{need: need}}
	r.unpacking = unpack(chunks, r.from, r.to)
	defer r.unpacking.end()
	for c := range r.unpacking.full {
		if r.chunk(c); r.done {
			break
		}
	}
	r.open(math.MaxInt64)
	r.flush(math.MaxInt64)
	return errors.Join(r.damage...)
}

// reader puts packets into the order of time. A chunk holds them in the order of
// arrival: those of one ring come nearly in time, those of another a block later.
// A packet waits until no earlier one can follow, in its chunk or the next.
type reader struct {
	from, to int64
	visit    func(*evidence.Packet) bool
	done     bool
	number   int
	damage   []error

	unpacking *unpacking
	decoder   decoder
	// waiting is the chunk that is decoded when the head of the next is known.
	waiting  *unpacked
	later    []int64 // the earliest time of what follows each packet
	heap     packetHeap
	arrivals uint64
}

func (r *reader) chunk(c *unpacked) {
	if c.err != nil {
		r.damage = append(r.damage, c.err)
	}
	if c.err != nil || c.packets == 0 {
		r.unpacking.free <- c
		return
	}
	r.open(c.first)
	r.waiting = c
}

// open decodes the waiting chunk; no later chunk has a packet from before next.
func (r *reader) open(next int64) {
	c := r.waiting
	if c == nil || r.done {
		return
	}
	r.waiting = nil
	r.decoder.start(c)
	r.lookAhead(c.times, next)
	for i := 0; !r.done; i++ {
		w := r.wish(c.times, i)
		ok, err := r.decoder.next(w)
		if err != nil {
			r.damage = append(r.damage, err)
		}
		if !ok {
			break
		}
		r.packet(w, r.later[i])
	}
	r.unpacking.free <- c
	r.flush(next)
}

// wish is for packet i of the chunk that is open.
func (r *reader) wish(times []int64, i int) wish {
	if i == len(times) {
		return wishNone // it is the end
	}
	switch at := times[i]; {
	case at < r.from || at > r.to:
		return wishNone
	case len(r.heap) == 0 && at <= r.later[i]:
		return wishNow
	}
	return wishLater
}

// lookAhead fills later; no later chunk has a packet from before next.
func (r *reader) lookAhead(times []int64, next int64) {
	r.later = slices.Grow(r.later[:0], len(times))[:len(times)]
	for i := len(times) - 1; i >= 0; i-- {
		r.later[i], next = next, min(next, times[i])
	}
}

// packet takes what the decoder made.
func (r *reader) packet(w wish, later int64) {
	p := &r.decoder.packet
	switch {
	case w == wishNone:
	case w == wishLater:
		r.arrivals++
		k := ordered{arrival: r.arrivals, skipped: r.decoder.skipped}
		if k.Nanos = r.decoder.last; !k.skipped {
			k.Packet = *p
			k.Header = append([]byte(nil), p.Header...)
		}
		heap.Push(&r.heap, k)
		r.flush(later)
	case r.decoder.skipped:
		r.number++
	default:
		r.emit(p)
	}
}

// flush visits the packets that wait, up to a time.
func (r *reader) flush(to int64) {
	for len(r.heap) > 0 && r.heap[0].Nanos <= to && !r.done {
		if p := heap.Pop(&r.heap).(ordered); p.skipped {
			r.number++
		} else {
			r.emit(&p.Packet)
		}
	}
}

func (r *reader) emit(p *evidence.Packet) {
	r.number++
	p.Number = r.number
	r.done = !r.visit(p)
}

// ordered is a packet that waits; those of the same time keep their order.
type ordered struct {
	evidence.Packet
	arrival uint64
	skipped bool // it only counts
}

type packetHeap []ordered

func (h packetHeap) Len() int { return len(h) }
func (h packetHeap) Less(i, j int) bool {
	if h[i].Nanos != h[j].Nanos {
		return h[i].Nanos < h[j].Nanos
	}
	return h[i].arrival < h[j].arrival
}
func (h packetHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *packetHeap) Push(x any)   { *h = append(*h, x.(ordered)) }
func (h *packetHeap) Pop() any {
	last := len(*h) - 1
	p := (*h)[last]
	*h = (*h)[:last]
	return p
}
