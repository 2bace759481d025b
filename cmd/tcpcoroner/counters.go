package main

import (
	"bytes"
	"encoding/binary"
	"slices"
	"sync"
	"time"

	"tcpcoroner/evidence"
)

// counterHistory remembers the counters of the last seconds. It is safe for
// concurrent use. The kernel has some 400 of them, a map of which takes 20 KiB and
// more, and in a second only some dozens move: those are kept, in a few bytes each.
type counterHistory struct {
	span time.Duration

	mu      sync.Mutex
	err     error
	last    evidence.Counters // this second's
	names   []string          // of all counters that were ever seen
	oldest  []counterValue    // at the first of samples, by number of the name
	newest  []counterValue
	samples []counterSample
	scratch []byte
}

// counterSample is how a sample differs from the one before.
type counterSample struct {
	at    time.Time
	moved []byte
}

// counterValue is one that the kernel may not have.
type counterValue struct {
	n     uint64
	there bool
}

// add keeps a sample, or the reason why there is none this second. The values belong
// to the history from then on.
func (h *counterHistory) add(c evidence.Counters, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.err = err; err != nil {
		return
	}
	h.last = c
	h.learn(c.Values)
	h.scratch = appendMoved(h.scratch[:0], h.names, h.newest, c.Values)
	h.samples = append(h.samples, counterSample{c.Time, bytes.Clone(h.scratch)})
	for len(h.samples) > 1 && c.Time.Sub(h.samples[0].at) > h.span {
		h.samples = h.samples[1:]
		applyMoved(h.oldest, h.samples[0].moved)
	}
	if len(h.samples) == 1 {
		copy(h.oldest, h.newest)
	}
}

// learn gives names that are new a number. They are the kernel's: few, and for ever.
func (h *counterHistory) learn(values map[string]uint64) {
	known := 0
	for _, name := range h.names {
		if _, ok := values[name]; ok {
			known++
		}
	}
	if known == len(values) {
		return
	}
	for name := range values {
		if !slices.Contains(h.names, name) {
			h.names = append(h.names, name)
		}
	}
	h.oldest = append(h.oldest, make([]counterValue, len(h.names)-len(h.oldest))...)
	h.newest = append(h.newest, make([]counterValue, len(h.names)-len(h.newest))...)
}

// appendMoved appends what differs between last and values, and brings last up to
// date: twice the number of the counter, and the difference; or one more than that, for
// one that is not there any more.
func appendMoved(b []byte, names []string, last []counterValue, values map[string]uint64) []byte {
	for i, name := range names {
		n, there := values[name]
		switch now := (counterValue{n, there}); {
		case now == last[i]:
			continue
		case there:
			b = binary.AppendUvarint(b, uint64(i)<<1)
			b = binary.AppendVarint(b, int64(n-last[i].n))
			last[i] = now
		default:
			b = binary.AppendUvarint(b, uint64(i)<<1|1)
			last[i] = now
		}
	}
	return b
}

// applyMoved brings values up to date by what appendMoved made.
func applyMoved(values []counterValue, b []byte) {
	for len(b) > 0 {
		tag, n := binary.Uvarint(b)
		b = b[n:]
		v := &values[tag>>1]
		if tag&1 != 0 {
			*v = counterValue{}
			continue
		}
		difference, n := binary.Varint(b)
		b = b[n:]
		*v = counterValue{v.n + uint64(difference), true}
	}
}

// latest is this second's sample.
func (h *counterHistory) latest() (evidence.Counters, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.err != nil {
		return evidence.Counters{}, h.err
	}
	return h.last, nil
}

// before is the last sample not later than at, or the oldest there is.
func (h *counterHistory) before(at time.Time) (c evidence.Counters) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.samples) == 0 {
		return c
	}
	values := slices.Clone(h.oldest)
	c.Time = h.samples[0].at
	for _, s := range h.samples[1:] {
		if s.at.After(at) {
			break
		}
		applyMoved(values, s.moved)
		c.Time = s.at
	}
	c.Values = make(map[string]uint64, len(values))
	for i, v := range values {
		if v.there {
			c.Values[h.names[i]] = v.n
		}
	}
	return c
}
