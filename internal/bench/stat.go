package main

import (
	"math"
	"slices"
)

// median of a list that is not empty; NaN of an empty one.
func median(list []float64) float64 {
	if len(list) == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(list))
	n := len(s)
	return (s[(n-1)/2] + s[n/2]) / 2
}

func least(list []float64) float64 {
	if len(list) == 0 {
		return math.NaN()
	}
	return slices.Min(list)
}

// spread is how far the farthest value is from the median, as a share of it.
func spread(list []float64) float64 {
	m, far := median(list), 0.0
	for _, v := range list {
		far = max(far, math.Abs(v-m)/m)
	}
	return far
}

// mostSpread is from where on the yardstick is no yardstick.
const mostSpread = 0.25

// The steps of a search: coarse ones find between which two rates the limit is, fine
// ones where. 1.5 is between two and three fine steps.
const (
	coarse = 1.5
	fine   = 1.15
)

// ladder is the rates that are tried, in steps from first to below last.
func ladder(first, last, step float64) (rates []float64) {
	for r := first; r < last; r *= step {
		rates = append(rates, r)
	}
	return rates
}

// limit finds the highest rate between first and last that holds, in coarse steps and
// then in fine ones from the rate that was found. It is 0 if none holds.
func limit(first, last float64, holds func(rate float64) (bool, error)) (float64, error) {
	best, end := 0.0, last
	for _, step := range []float64{coarse, fine} {
		rates := ladder(first, end, step)
		if best != 0 {
			rates = rates[1:] // the first is known to hold
		}
		found, err := highest(len(rates), func(i int) (bool, error) { return holds(rates[i]) })
		if err != nil || found < 0 {
			return best, err
		}
		best = rates[found]
		first, end = best, best*coarse
	}
	return best, nil
}

// highest finds the last rung that holds, where every rung below one that holds
// does too: by halving, as each try takes long. It returns -1 if none does.
func highest(rungs int, holds func(int) (bool, error)) (int, error) {
	low, high := -1, rungs // low holds, high does not
	for high-low > 1 {
		middle := (low + high) / 2
		ok, err := holds(middle)
		if err != nil {
			return low, err
		}
		if ok {
			low = middle
		} else {
			high = middle
		}
	}
	return low, nil
}
