package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"tcpcoroner/internal/bench/gen"
	"tcpcoroner/internal/bench/wire"
)

// The promises about a daemon that nobody notices.
const (
	floorSnapshot = 10 * time.Millisecond
	floorIdle     = 0.002 // of one processor
	beside        = 48 << 20
)

// freeze freezes a full buffer while traffic comes as fast as it goes.
func freeze(ctx context.Context, b *bench) error {
	n, err := b.loop()
	if err != nil {
		return err
	}
	t := table{Title: "a freeze of a full buffer under full load",
		Columns: []string{"packets/s", "buffer bytes", "asked to stored", "snapshot", "dropped", "packets pulled", "pulled a second"}}
	var all []frozen
	for range pick(b, 3, 1) {
		keep := b.mark()
		one, err := freezeOnce(ctx, b, n)
		if err = errors.Join(err, b.unwind(keep)); err != nil {
			return err
		}
		all = append(all, one)
		t.Rows = append(t.Rows, one.row())
	}
	b.table(t)
	var lost int64
	var longest time.Duration
	for _, f := range all {
		lost, longest = lost+f.dropped, max(longest, f.snapshot)
	}
	b.goal(lost == 0, "a freeze loses no packet", "%d dropped", lost)
	b.goal(longest <= floorSnapshot, fmt.Sprintf("snapshot within %v", floorSnapshot), "%v", longest)
	return nil
}

// frozen is one freeze under load.
type frozen struct {
	rate, pullRate   float64
	buffer           int64
	stored, snapshot time.Duration
	dropped          int64
	packets          int
}

func (f frozen) row() []string {
	return []string{fmt.Sprintf("%.0f", f.rate), fmt.Sprint(f.buffer), f.stored.Round(time.Millisecond).String(),
		f.snapshot.Round(10 * time.Microsecond).String(),
		fmt.Sprint(f.dropped), fmt.Sprint(f.packets), fmt.Sprintf("%.0f", f.pullRate)}
}

func freezeOnce(ctx context.Context, b *bench, n *namespace) (f frozen, err error) {
	s, err := product.start(ctx, b, n)
	if err != nil {
		return f, err
	}
	flood, stop := context.WithCancel(ctx)
	defer stop()
	done := make(chan error, 1)
	start := time.Now()
	var sent gen.Count
	go func() {
		done <- n.send(gen.Config{Flows: flows}, func(g *gen.Generator) error {
			err := g.Pace(flood, 0, endless)
			sent = g.Sent()
			return err
		})
	}()
	err = f.take(ctx, b, s)
	took := time.Since(start)
	stop()
	if err = errors.Join(err, <-done); err != nil {
		return f, err
	}
	f.rate = float64(sent.Packets) / took.Seconds()
	return f, errors.Join(f.pull(ctx, s), s.stop())
}

// endless is more packets than a part has time for.
const endless = 1 << 40

// take waits until the buffer is full, and freezes.
func (f *frozen) take(ctx context.Context, b *bench, s *session) error {
	for end := time.Now().Add(pick(b, 4*patience, patience/6)); time.Now().Before(end) && ctx.Err() == nil; sleep(ctx, 100*time.Millisecond) {
		if st, err := s.status(ctx); err != nil || st.Recorder.Evicted > 0 {
			break // an error comes again below
		}
	}
	before, err := s.status(ctx)
	if err != nil {
		return err
	}
	f.buffer = before.Recorder.BufferBytes
	start := time.Now()
	if err := s.ask(ctx, nil, "freeze", "--reason", "bench"); err != nil {
		return err
	}
	f.stored = time.Since(start)
	after, err := s.status(ctx)
	if err != nil {
		return err
	}
	f.dropped = after.counts().Dropped - before.counts().Dropped
	f.snapshot = time.Duration(after.Recorder.HoldSeconds * float64(time.Second))
	return nil
}

// pull times the way of a stored window to a file, without traffic.
func (f *frozen) pull(ctx context.Context, s *session) error {
	path := filepath.Join(s.dir, "pulled.pcapng")
	start := time.Now()
	if err := s.ask(ctx, nil, "pull", "last", "-o", path); err != nil {
		return err
	}
	took := time.Since(start)
	c, err := wire.CountFiles(path)
	f.packets, f.pullRate = c.Packets, float64(c.Packets)/took.Seconds()
	return err
}

// idle measures a daemon that sees no packet and that nobody asks.
func idle(ctx context.Context, b *bench) error {
	n, err := b.loop()
	if err != nil {
		return err
	}
	s, err := product.start(ctx, b, n)
	if err != nil {
		return err
	}
	sleep(ctx, pick(b, 10*time.Second, 2*time.Second)) // what a start leaves to do
	span := pick(b, 60*time.Second, 5*time.Second)
	cpu, left, err := resting(s)
	if err != nil {
		return err
	}
	sleep(ctx, span)
	cpuAfter, leftAfter, err := resting(s)
	if err != nil {
		return err
	}
	share := float64(cpuAfter-cpu) / float64(span)
	rate := float64(leftAfter-left) / span.Seconds()
	b.table(table{Title: fmt.Sprintf("no packets for %v", span), Columns: []string{"share of a processor", "context switches/s"},
		Rows: [][]string{{fmt.Sprintf("%.3f %%", 100*share), fmt.Sprintf("%.1f", rate)}}})
	b.goal(share <= floorIdle, "idle share of a processor <= 0.2 %", "%.3f %%", 100*share)
	return s.stop()
}

func resting(s *session) (cpu time.Duration, left uint64, err error) {
	if cpu, err = processorTime(proc, s.pid()); err != nil {
		return 0, 0, err
	}
	left, err = switches(proc, s.pid())
	return cpu, left, err
}

// floodRate is the packets a second of the memory part: each of them a new
// connection.
const floodRate = 100_000

// allowed is the resident memory that the daemon may have.
const allowed = usualMemory<<20 + beside

// onDisk is where the incidents of the memory part go: the database maps its
// files, and on a tmpfs the kernel could not take those pages back.
const onDisk = "/var/tmp"

// memory samples the daemon's memory while everything happens that could make
// it grow.
func memory(ctx context.Context, b *bench) error {
	n, err := b.loop()
	if err != nil {
		return err
	}
	if err := b.install(onDisk); err != nil {
		return err
	}
	s, err := startWith(ctx, b, n, usualMemory, onDisk)
	if err != nil {
		return err
	}
	span := pick(b, 10*time.Minute, time.Minute)
	most, err := stressed(ctx, s, n, span)
	if err != nil {
		return err
	}
	st, err := s.status(ctx)
	if err != nil {
		return err
	}
	t := table{Title: fmt.Sprintf("%v of SYN from 2^24 addresses (%d packets seen), a freeze a second, interfaces that come and go", span, st.Recorder.Seen),
		Columns: append([]string{"allowed"}, memoryKinds...), Rows: [][]string{{mebibytes(allowed)}}}
	for _, kind := range memoryKinds {
		t.Rows[0] = append(t.Rows[0], mebibytes(most[kind]))
	}
	b.table(t)
	b.goal(most["VmRSS"] <= allowed, "resident memory <= recorder.memory + 48 MiB", "%s", mebibytes(most["VmRSS"]))
	return s.stop()
}

func mebibytes(n uint64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// stressed runs traffic, freezes and flapping devices beside each other, and
// returns the largest sizes that were seen.
func stressed(ctx context.Context, s *session, n *namespace, span time.Duration) (most map[string]uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, span)
	defer cancel()
	jobs := []func() error{
		func() error {
			return n.send(gen.Config{Flows: 1, Flood: true}, func(g *gen.Generator) error { return g.Pace(ctx, floodRate, endless) })
		},
		func() error {
			return everySecond(ctx, func() error { return s.ask(ctx, nil, "freeze", "--reason", "bench") })
		},
		func() error { return everySecond(ctx, func() error { return flap(n) }) },
	}
	done := make(chan error, len(jobs))
	for _, job := range jobs {
		go func() {
			err := job()
			cancel() // one that fails ends all
			done <- err
		}()
	}
	most, err = watchMemory(ctx, s.pid())
	for range jobs {
		err = errors.Join(err, <-done)
	}
	return most, err
}

func everySecond(ctx context.Context, f func() error) error {
	for ; ctx.Err() == nil; sleep(ctx, time.Second) {
		if err := f(); err != nil && ctx.Err() == nil {
			return err
		}
	}
	return nil
}

// flap makes a device, takes it down and up, and removes it.
func flap(n *namespace) error {
	for _, args := range [][]string{
		{"link", "add", "flap", "type", "veth", "peer", "name", "flap1"}, {"link", "set", "flap", "up"},
		{"link", "set", "flap", "down"}, {"link", "set", "flap", "up"}, {"link", "del", "flap"},
	} {
		if err := ip(append([]string{"-n", n.name}, args...)...); err != nil {
			return err
		}
	}
	return nil
}

// watchMemory looks five times a second.
func watchMemory(ctx context.Context, pid int) (map[string]uint64, error) {
	most := map[string]uint64{}
	for ; ctx.Err() == nil; sleep(ctx, 200*time.Millisecond) {
		now, err := memoryOf(proc, pid)
		if err != nil {
			return most, err
		}
		for kind, n := range now {
			most[kind] = max(most[kind], n)
		}
	}
	return most, nil
}
