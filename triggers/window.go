package triggers

import (
	"math"
	"time"
)

// counter turns a monotonic counter into increments. The first reading is only
// the base, for counters count since boot; one that went backwards (a module
// was reloaded, the source was restarted) is a new base.
type counter struct {
	last  uint64
	known bool
}

func (c *counter) add(total uint64) (increment uint64) {
	if c.known && total >= c.last {
		increment = total - c.last
	}
	c.last, c.known = total, true
	return increment
}

// window sums the increments of the last span. It holds one sample a check.
type window struct {
	span    time.Duration
	sum     float64
	checked time.Time
	samples []sample
}

type sample struct {
	from, at time.Time
	n        float64
}

// add puts the increment since the last check into the window and returns the
// samples that left it. A check that comes later than a whole span after the
// one before counts only the part that falls into the span, on average.
func (w *window) add(now time.Time, increment float64) (left []sample) {
	s := sample{from: w.checked, at: now, n: increment}
	if w.checked.IsZero() {
		s.from = now
	}
	if gap := now.Sub(s.from); gap > w.span {
		s.n *= float64(w.span) / float64(gap)
	}
	w.checked = now
	w.samples = append(w.samples, s)
	w.sum += s.n
	n := 0
	for n < len(w.samples) && now.Sub(w.samples[n].at) >= w.span {
		w.sum -= w.samples[n].n
		n++
	}
	left, w.samples = w.samples[:n:n], w.samples[n:]
	if len(w.samples) == 1 { // no rounding error outlives its samples
		w.sum = w.samples[0].n
	}
	return left
}

// baselineTime is the time constant of the baseline: a level that stays is known
// after about two minutes.
const baselineTime = time.Minute

// baseline is what is usual in one span of a window: an exponentially weighted
// mean of the samples that have left it. It begins at zero, so that a young
// recorder is sensitive, not blind.
type baseline struct{ value float64 }

func (b *baseline) learn(left []sample, span time.Duration) {
	for _, s := range left {
		took := s.at.Sub(s.from)
		if took <= 0 {
			continue
		}
		weight := 1 - math.Exp(-took.Seconds()/baselineTime.Seconds())
		b.value += weight * (s.n*float64(span)/float64(min(took, span)) - b.value)
	}
}
