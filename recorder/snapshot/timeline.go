package snapshot

import (
	"math"
	"sync"
	"time"

	"tcpcoroner/evidence"
)

// timelineNames are the numbers that a Timeline keeps: those that move when
// connections get into trouble.
var timelineNames = []string{
	"Tcp.ActiveOpens", "Tcp.PassiveOpens", "Tcp.AttemptFails", "Tcp.EstabResets", "Tcp.CurrEstab",
	"Tcp.InSegs", "Tcp.OutSegs", "Tcp.RetransSegs", "Tcp.InErrs", "Tcp.OutRsts", "Tcp.InCsumErrors",
	"TcpExt.SyncookiesSent", "TcpExt.SyncookiesRecv", "TcpExt.SyncookiesFailed", "TcpExt.EmbryonicRsts",
	"TcpExt.ListenOverflows", "TcpExt.ListenDrops", "TcpExt.TCPReqQFullDrop", "TcpExt.TCPReqQFullDoCookies",
	"TcpExt.TCPBacklogDrop", "TcpExt.TCPAbortOnData", "TcpExt.TCPAbortOnClose", "TcpExt.TCPAbortOnMemory",
	"TcpExt.TCPAbortOnTimeout", "TcpExt.TCPAbortOnLinger", "TcpExt.TCPAbortFailed", "TcpExt.TCPMemoryPressures",
	"TcpExt.TCPTimeouts", "TcpExt.TcpTimeoutRehash", "TcpExt.TCPSynRetrans", "TcpExt.TCPChallengeACK",
	"TcpExt.TCPSYNChallenge", "TcpExt.TCPACKSkippedChallenge", "TcpExt.TCPSpuriousRTOs", "TcpExt.PAWSEstab",
	"TcpExt.TCPTimeWaitOverflow", "TcpExt.TCPMTUPFail", "TcpExt.TCPMTUPSuccess", "TcpExt.TCPWqueueTooBig",
	"TcpExt.TCPRcvQDrop", "TcpExt.TCPZeroWindowDrop", "TcpExt.PruneCalled", "TcpExt.OfoPruned", "TcpExt.LockDroppedIcmps",
	"Ip.OutNoRoutes", "Icmp.InDestUnreachs", "Icmp.OutDestUnreachs",
	"Sockstat.TCP.inuse", "Sockstat.TCP.orphan", "Sockstat.TCP.tw", "Sockstat.TCP.alloc", "Sockstat.TCP.mem",
	"Softnet.dropped", "Softnet.time_squeeze",
	"Conntrack.count", "Conntrack.found", "Conntrack.invalid", "Conntrack.insert_failed", "Conntrack.drop",
	"Conntrack.early_drop", "Conntrack.error", "Conntrack.search_restart",
}

// Timeline keeps the kernel's numbers of one network namespace, a sample a second
// or so. It holds a fixed number of samples in fixed memory, four bytes a value:
// each sample is the difference from the one before. It is safe for concurrent
// use and reads nothing itself.
type Timeline struct {
	mu       sync.Mutex
	netns    uint64
	times    []int64 // Unix nanoseconds; a ring
	deltas   []int32 // a row of timelineNames for each of times
	first, n int
	oldest   []uint64 // values at times[first]
	newest   []uint64
	seen     []bool
	restarts uint64
}

// NewTimeline makes a Timeline of the given number of samples, at least two, for
// the network namespace with this inode number.
func NewTimeline(netns uint64, samples int) *Timeline {
	samples = max(samples, 2)
	return &Timeline{
		netns:  netns,
		times:  make([]int64, samples),
		deltas: make([]int32, samples*len(timelineNames)),
		oldest: make([]uint64, len(timelineNames)),
		newest: make([]uint64, len(timelineNames)),
		seen:   make([]bool, len(timelineNames)),
	}
}

// Add keeps a sample of the results of Counters and Conntrack, which may be nil.
// Time must grow. If it goes back, or a value leaps by more than 31 bits hold,
// everything from before is forgotten.
func (l *Timeline) Add(c evidence.Counters, ct *evidence.Conntrack) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := c.Time.UnixNano()
	var row [64]int32
	deltas := row[:0]
	fits := l.n == 0 || now > l.times[l.slot(l.n-1)]
	for i, name := range timelineNames {
		value, ok := sampleValue(name, c, ct)
		l.seen[i] = l.seen[i] || ok
		if !ok {
			value = l.newest[i]
		}
		delta := int64(value - l.newest[i])
		if l.n == 0 {
			delta = 0
		}
		fits = fits && delta >= math.MinInt32 && delta <= math.MaxInt32
		deltas = append(deltas, int32(delta))
		l.newest[i] = value
	}
	if !fits {
		l.restarts++
		l.n = 0
		clear(deltas)
	}
	l.keep(now, deltas)
}

// sampleValue finds a number by its name.
func sampleValue(name string, c evidence.Counters, ct *evidence.Conntrack) (uint64, bool) {
	if ct != nil {
		switch name {
		case "Conntrack.count":
			return ct.Count, true
		case "Conntrack.found":
			return ct.Found, true
		case "Conntrack.invalid":
			return ct.Invalid, true
		case "Conntrack.insert_failed":
			return ct.InsertFailed, true
		case "Conntrack.drop":
			return ct.Drop, true
		case "Conntrack.early_drop":
			return ct.EarlyDrop, true
		case "Conntrack.error":
			return ct.Error, true
		case "Conntrack.search_restart":
			return ct.SearchRestart, true
		}
	}
	value, ok := c.Values[name]
	return value, ok
}

// slot is the place of the i-th oldest sample.
func (l *Timeline) slot(i int) int { return (l.first + i) % len(l.times) }

func (l *Timeline) row(i int) []int32 {
	at := l.slot(i) * len(timelineNames)
	return l.deltas[at : at+len(timelineNames)]
}

// keep appends a row, over the oldest if there is no room.
func (l *Timeline) keep(now int64, deltas []int32) {
	switch {
	case l.n == 0:
		copy(l.oldest, l.newest)
	case l.n == len(l.times):
		l.first = l.slot(1)
		l.n--
		advance(l.oldest, l.row(0))
	}
	l.times[l.slot(l.n)] = now
	l.n++
	copy(l.row(l.n-1), deltas)
}

func advance(values []uint64, deltas []int32) {
	for i, d := range deltas {
		values[i] += uint64(int64(d))
	}
}

// Window is what was sampled from one time to another, both included. Numbers
// that this kernel does not have are left out; of those that it got on the way,
// earlier values are 0.
func (l *Timeline) Window(from, to time.Time) evidence.Series {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := evidence.Series{NetNS: l.netns}
	values := append([]uint64(nil), l.oldest...)
	var rows [][]uint64
	for i := range l.n {
		if i > 0 {
			advance(values, l.row(i))
		}
		at := time.Unix(0, l.times[l.slot(i)])
		if at.Before(from) || at.After(to) {
			continue
		}
		s.Times = append(s.Times, at)
		rows = append(rows, append([]uint64(nil), values...))
	}
	for i, name := range timelineNames {
		if !l.seen[i] {
			continue
		}
		line := evidence.Line{Name: name, Values: make([]uint64, len(rows))}
		for j, row := range rows {
			line.Values[j] = row[i]
		}
		s.Lines = append(s.Lines, line)
	}
	return s
}

// Restarts counts how often everything was forgotten because the clock went back
// or a value leapt.
func (l *Timeline) Restarts() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.restarts
}
