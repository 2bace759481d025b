package evidence

import (
	"slices"
	"strings"
	"time"
)

// Series are the kernel's numbers over time, all of one network namespace.
type Series struct {
	// NetNS is the inode number of the network namespace.
	NetNS uint64 `json:"netns,omitempty"`
	// Times are when samples were taken, oldest first.
	Times []time.Time `json:"times"`
	Lines []Line      `json:"lines"`
}

// Line is one number over time, with as many values as Series has Times.
type Line struct {
	// Name is as in Counters; also "Conntrack.count", "Conntrack.drop" and so on.
	Name   string   `json:"name"`
	Values []uint64 `json:"values"`
}

// Gauge tells whether the number goes up and down; others only grow, so that
// their differences count.
func (l *Line) Gauge() bool {
	return strings.HasPrefix(l.Name, "Sockstat.") || l.Name == "Tcp.CurrEstab" || l.Name == "Conntrack.count"
}

// Line finds a line by its name; nil if there is none.
func (s *Series) Line(name string) *Line {
	i := slices.IndexFunc(s.Lines, func(l Line) bool { return l.Name == name })
	if i < 0 {
		return nil
	}
	return &s.Lines[i]
}

// Growth is what a counter grew by between the last sample not after from, or the
// first there is, and the last not after to; 0 if it is not there.
func (s *Series) Growth(name string, from, to time.Time) uint64 {
	l := s.Line(name)
	first, last := max(s.at(from), 0), s.at(to)
	if l == nil || last < first || last >= len(l.Values) || l.Values[last] < l.Values[first] {
		return 0
	}
	return l.Values[last] - l.Values[first]
}

// at is the index of the last sample not after t, -1 if there is none.
func (s *Series) at(t time.Time) int {
	i, found := slices.BinarySearchFunc(s.Times, t, time.Time.Compare)
	if found {
		return i
	}
	return i - 1
}
