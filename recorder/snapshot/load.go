package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"math"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"tcpcoroner/evidence"
)

// maxDisks bounds the block devices that are told of.
const maxDisks = 64

func (t *Taker) takeLoad(_ context.Context, s *evidence.Snapshot) {
	var l evidence.Load
	text, err := t.read("loadavg")
	if err != nil || !parseLoad(text, &l) {
		miss(s, "load", errors.Join(errors.New("/proc/loadavg cannot be read"), err), "")
		return
	}
	if text, err := t.read("meminfo"); err == nil {
		parseMemory(text, &l)
	}
	if text, err := t.read("stat"); err == nil {
		parseCPUs(text, &l)
	}
	for _, resource := range []string{"cpu", "io", "memory"} {
		text, err := t.read("pressure/" + resource)
		if err != nil {
			miss(s, "pressure of "+resource, err, "boot with psi=1, if the kernel has CONFIG_PSI")
			continue
		}
		if p, ok := parsePressure(text); ok {
			if l.Pressure == nil {
				l.Pressure = map[string]evidence.Pressure{}
			}
			l.Pressure[resource] = p
		}
	}
	s.Implicated.Load = &l
}

// parseLoad reads "0.20 0.18 0.12 1/80 11206".
func parseLoad(text string, l *evidence.Load) bool {
	f := strings.Fields(text)
	if len(f) < 4 {
		return false
	}
	for i := range l.Averages {
		n, err := strconv.ParseFloat(f[i], 64)
		if err != nil || math.IsNaN(n) || math.IsInf(n, 0) {
			return false
		}
		l.Averages[i] = n
	}
	running, tasks, _ := strings.Cut(f[3], "/")
	l.Running, _ = strconv.Atoi(running)
	l.Tasks, _ = strconv.Atoi(tasks)
	return true
}

func parseMemory(text string, l *evidence.Load) {
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		switch name {
		case "MemTotal":
			l.MemoryTotal = kilobytes(strings.TrimSpace(value))
		case "MemAvailable":
			l.MemoryAvailable = kilobytes(strings.TrimSpace(value))
		}
	}
}

// parseCPUs reads iowait, the fifth number, of all CPUs and counts them.
func parseCPUs(text string, l *evidence.Load) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		switch {
		case len(f) < 6 || !strings.HasPrefix(f[0], "cpu"):
		case f[0] == "cpu":
			l.IOWait = ticks(number(f[5]))
		default:
			l.CPUs++
		}
	}
}

// Durations of counters; what does not fit is the longest there is.

func ticks(n uint64) time.Duration        { return scaled(n, time.Second/clockTicks) }
func milliseconds(n uint64) time.Duration { return scaled(n, time.Millisecond) }
func microseconds(n uint64) time.Duration { return scaled(n, time.Microsecond) }
func nanoseconds(n uint64) time.Duration  { return scaled(n, time.Nanosecond) }

func scaled(n uint64, unit time.Duration) time.Duration {
	if n > uint64(math.MaxInt64/unit) {
		return math.MaxInt64
	}
	return time.Duration(n) * unit
}

// namedNumbers walks lines of a name and a number.
func namedNumbers(text string) iter.Seq2[string, uint64] {
	return func(yield func(string, uint64) bool) {
		for line := range strings.Lines(text) {
			f := strings.Fields(line)
			if len(f) != 2 {
				continue
			}
			if n, err := strconv.ParseUint(f[1], 10, 64); err == nil && !yield(f[0], n) {
				return
			}
		}
	}
}

// parsePressure reads "some avg10=0.12 avg60=0.00 avg300=0.00 total=4711" and the
// same for "full", which the CPU of a host had not before Linux 5.13.
func parsePressure(text string) (p evidence.Pressure, ok bool) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 5 {
			continue
		}
		switch f[0] {
		case "some":
			p.Some, ok = parseStall(f[1:]), true
		case "full":
			p.Full = parseStall(f[1:])
		}
	}
	return p, ok
}

func parseStall(fields []string) (s evidence.Stall) {
	for _, f := range fields {
		name, value, _ := strings.Cut(f, "=")
		share, err := strconv.ParseFloat(value, 64)
		if err != nil || !(share >= 0 && share <= 100) {
			share = 0
		}
		switch name {
		case "avg10":
			s.Avg10 = share
		case "avg60":
			s.Avg60 = share
		case "avg300":
			s.Avg300 = share
		case "total":
			s.Total = microseconds(number(value))
		}
	}
	return s
}

func (t *Taker) takeDisks(_ context.Context, s *evidence.Snapshot) {
	text, err := t.read("diskstats")
	switch {
	case errors.Is(err, fs.ErrNotExist): // no block devices
	case err != nil:
		miss(s, "disk statistics", err, "")
	default:
		s.Implicated.Disks = parseDisks(text)
	}
}

// parseDisks reads /proc/diskstats (Documentation/admin-guide/iostats.rst). Devices
// that never did anything are left out.
func parseDisks(text string) (all []evidence.Disk) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 14 || len(all) == maxDisks {
			continue
		}
		d := evidence.Disk{
			Name: clean(f[2]), Reads: number(f[3]), Writes: number(f[7]), InFlight: number(f[11]),
			Busy: milliseconds(number(f[12])), Weighted: milliseconds(number(f[13])),
		}
		if d.Reads+d.Writes+d.InFlight > 0 {
			all = append(all, d)
		}
	}
	return all
}

func (t *Taker) takeClock(_ context.Context, s *evidence.Snapshot) {
	var tx unix.Timex
	state, err := t.cfg.Adjtimex(&tx)
	if err != nil {
		miss(s, "state of the clock", fmt.Errorf("adjtimex: %w", err), "")
		return
	}
	c := clockOf(state, &tx)
	if text, err := t.read("stat"); err == nil {
		if boot := parseBootTime(text); boot > 0 {
			c.Boot = time.Unix(boot, 0)
		}
	}
	s.Implicated.Clock = &c
}

// clockOf reads struct timex (adjtimex(2)): errors are in microseconds, the offset
// too unless STA_NANO says otherwise.
func clockOf(state int, tx *unix.Timex) evidence.Clock {
	unit := time.Microsecond
	if tx.Status&unix.STA_NANO != 0 {
		unit = time.Nanosecond
	}
	return evidence.Clock{
		Synchronized: state != unix.TIME_ERROR && tx.Status&unix.STA_UNSYNC == 0,
		Offset:       time.Duration(tx.Offset) * unit,
		MaxError:     time.Duration(tx.Maxerror) * time.Microsecond,
		Error:        time.Duration(tx.Esterror) * time.Microsecond,
	}
}
