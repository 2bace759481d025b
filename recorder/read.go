package recorder

import (
	"container/heap"
	"errors"
	"fmt"
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
// the number of packets: it decodes one chunk at a time.
func Read(chunks iter.Seq2[[]byte, error], from, to time.Time, visit func(*evidence.Packet) bool) error {
	r := reader{from: from.UnixNano(), to: to.UnixNano(), visit: visit}
	n := 0
	for chunk, err := range chunks {
		n++
		if err == nil {
			err = r.chunk(chunk)
		}
		if err != nil {
			r.damage = append(r.damage, fmt.Errorf("read chunk %d: %w", n, err))
		}
		if r.done {
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

	decoder decoder
	// waiting is the chunk that is read when the head of the next is known.
	waiting  *head
	columns  [columns]cursor
	spare    [2][]byte // memory of the waiting chunk's columns, and of the next one's
	later    []int64   // the earliest time of what follows each packet
	heap     packetHeap
	arrivals uint64
}

func (r *reader) chunk(b []byte) error {
	h, err := parseHead(b)
	if err != nil {
		return err
	}
	if h.first > r.to || h.last < r.from || h.packets == 0 {
		return nil
	}
	columns, buf, err := columnsOf(b, r.spare[1])
	if r.spare[1] = buf; err != nil {
		return err
	}
	r.open(h.first)
	r.waiting, r.columns = &h, columns
	r.spare[0], r.spare[1] = r.spare[1], r.spare[0]
	return nil
}

// open reads the waiting chunk; no later chunk has a packet from before next.
func (r *reader) open(next int64) {
	if r.waiting == nil || r.done {
		return
	}
	h := r.waiting
	r.waiting = nil
	r.decoder.start(h, &r.columns)
	r.lookAhead(next)
	for i := 0; !r.done; i++ {
		ok, err := r.decoder.next()
		if err != nil {
			r.damage = append(r.damage, err)
		}
		if !ok {
			break
		}
		r.packet(&r.decoder.packet, r.later[i])
	}
	r.flush(next)
}

// lookAhead fills later; no later chunk has a packet from before next.
func (r *reader) lookAhead(next int64) {
	times := r.decoder.times
	r.later = slices.Grow(r.later[:0], len(times))[:len(times)]
	for i := len(times) - 1; i >= 0; i-- {
		r.later[i], next = next, min(next, times[i])
	}
}

func (r *reader) packet(p *evidence.Packet, later int64) {
	if p.Nanos < r.from || p.Nanos > r.to {
		return
	}
	if len(r.heap) == 0 && p.Nanos <= later {
		r.emit(p)
		return
	}
	k := *p
	k.Header = append([]byte(nil), p.Header...)
	r.arrivals++
	heap.Push(&r.heap, ordered{k, r.arrivals})
	r.flush(later)
}

// flush visits the packets that wait, up to a time.
func (r *reader) flush(to int64) {
	for len(r.heap) > 0 && r.heap[0].Nanos <= to && !r.done {
		p := heap.Pop(&r.heap).(ordered)
		r.emit(&p.Packet)
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
