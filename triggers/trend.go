package triggers

import (
	"math"
	"time"
)

const (
	// trendTime is how far back a trend looks, leastTrend how many samples it needs.
	trendTime  = 20 * time.Second
	leastTrend = 8
	// straight is the part of the variance that a line must explain: of a step, none
	// explains more than three quarters.
	straight = 0.9
)

// trend fits a straight line to the last samples of a level.
type trend struct{ samples []sample }

func (t *trend) add(now time.Time, value float64) {
	t.samples = append(t.samples, sample{at: now, n: value})
	n := 0
	for n < len(t.samples) && now.Sub(t.samples[n].at) >= trendTime {
		n++
	}
	t.samples = t.samples[n:]
}

// line is a level at the last sample, its slope in units a second, and how many of
// its standard errors the slope is from zero.
type line struct{ value, slope, sure float64 }

// fit finds the line by least squares; ok tells that the samples are on one.
func fit(samples []sample) (l line, ok bool) {
	n := float64(len(samples))
	last := samples[len(samples)-1].at
	var mx, my, sxx, sxy, syy float64
	for _, s := range samples {
		mx += s.at.Sub(last).Seconds() / n
		my += s.n / n
	}
	for _, s := range samples {
		x, y := s.at.Sub(last).Seconds()-mx, s.n-my
		sxx, sxy, syy = sxx+x*x, sxy+x*y, syy+y*y
	}
	if sxx == 0 || syy == 0 {
		return line{}, false
	}
	l.slope = sxy / sxx
	l.value = my - l.slope*mx
	explained := sxy * sxy / sxx / syy
	l.sure = math.Sqrt(explained * (n - 2) / max(1-explained, 1e-9))
	return l, explained >= straight
}

// reaches tells how long it takes until the level is at a limit, if it goes on like
// this; ok is false if it does not rise straight on. Of the last samples it takes as
// many as tell most: all of a noisy rise, the latest if the rise has just begun.
func (t *trend) reaches(limit float64) (left time.Duration, ok bool) {
	var best line
	for from := 0; from+leastTrend <= len(t.samples); from++ {
		if l, straight := fit(t.samples[from:]); straight && l.sure > best.sure {
			best = l
		}
	}
	if best.slope <= 0 {
		return 0, false
	}
	s := max((limit-best.value)/best.slope, 0)
	if s > maxWindow.Seconds() {
		return 0, false // too far away to be told
	}
	return time.Duration(s * float64(time.Second)), true
}
