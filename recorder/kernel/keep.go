package kernel

import (
	"iter"
	"slices"
	"sync"
	"time"

	"tcpcoroner/evidence"
)

// phantomTime is how soon after its phantom a reset follows: both are made while
// one segment is handled. Interrupts may come in between.
const phantomTime = 5 * time.Millisecond

// lookBack is how many events may lie between a phantom and what unmasks it.
const lookBack = 64

// record is an event and the address that its location is to be looked up by, 0 if
// none. Addresses of the kernel stay here: who knows one knows where all is.
type record struct {
	evidence.KernelEvent
	location uint64
}

// keeper holds the latest events, bounded by number and age.
type keeper struct {
	max int
	age time.Duration

	mu       sync.Mutex
	list     []record // in the order of arrival
	counts   []evidence.KernelSuppressed
	phantoms uint64
	evicted  uint64
	bad      uint64
}

// add keeps r, and takes back the received reset that r shows to be none.
func (k *keeper) add(r record) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if i := phantom(k.list, &r.KernelEvent); i >= 0 {
		k.list = slices.Delete(k.list, i, i+1)
		k.phantoms++
	}
	if len(k.list) >= k.max {
		k.drop(1)
		k.evicted++
	}
	k.list = append(k.list, r)
}

// phantom finds the received reset that was none: for data that comes after
// shutdown(SHUT_RD) or close, tcp_rcv_state_process() calls tcp_reset() on its own
// socket, and then answers the segment by a reset. One that was received leaves no
// socket that could do so.
func phantom(list []record, e *evidence.KernelEvent) int {
	if e.Kind != evidence.ResetSent || e.Trigger == nil || e.Cookie == 0 {
		return -1
	}
	for i := len(list) - 1; i >= max(0, len(list)-lookBack); i-- {
		p := &list[i]
		if p.Kind == evidence.ResetReceived && p.Cookie == e.Cookie && p.ShutdownRead &&
			(p.State == "fin_wait_1" || p.State == "fin_wait_2") && e.Time.Sub(p.Time) < phantomTime {
			return i
		}
	}
	return -1
}

// drop forgets the n oldest.
func (k *keeper) drop(n int) {
	clear(k.list[:n]) // the owners are not held by the array
	k.list = k.list[n:]
}

// expire forgets what is too old.
func (k *keeper) expire(now time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	limit := now.Add(-k.age)
	n := 0
	for n < len(k.list) && k.list[n].Time.Before(limit) {
		n++
	}
	k.drop(n)
	k.counts = slices.DeleteFunc(k.counts, func(s evidence.KernelSuppressed) bool { return s.To.Before(limit) })
}

func (k *keeper) suppress(s evidence.KernelSuppressed) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.counts) >= k.max {
		n := 1 + len(k.counts)/8
		k.counts = slices.Delete(k.counts, 0, n)
		k.evicted += uint64(n)
	}
	k.counts = append(k.counts, s)
}

func (k *keeper) undecodable() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.bad++
}

// between are the records from from to to, in the order of arrival, while k.mu is held.
func (k *keeper) between(from, to time.Time) iter.Seq[*record] {
	return func(yield func(*record) bool) {
		for i := range k.list {
			if t := k.list[i].Time; !t.Before(from) && !t.After(to) && !yield(&k.list[i]) {
				return
			}
		}
	}
}

func (k *keeper) events(from, to time.Time, name func(uint64) string) (some []evidence.KernelEvent) {
	k.mu.Lock()
	for r := range k.between(from, to) {
		e := r.KernelEvent
		if r.location != 0 {
			e.Location = name(r.location)
		}
		some = append(some, e)
	}
	k.mu.Unlock()
	// Two CPUs write to one ring: they may overtake each other by microseconds.
	slices.SortStableFunc(some, func(a, b evidence.KernelEvent) int { return a.Time.Compare(b.Time) })
	return some
}

// locations are the addresses of events, each as often as it occurs.
func (k *keeper) locations(from, to time.Time) (some []uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for r := range k.between(from, to) {
		if r.location != 0 {
			some = append(some, r.location)
		}
	}
	return some
}

func (k *keeper) uncounted(from, to time.Time) (some []evidence.KernelSuppressed) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, s := range k.counts {
		if !s.To.Before(from) && !s.From.After(to) {
			some = append(some, s)
		}
	}
	return some
}
