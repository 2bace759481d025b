package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"tcpcoroner/internal/bench/wire"
)

// kept is what was kept of one trace.
type kept struct {
	packets, resets int
	theirs, ours    float64 // bytes a packet
	dropped         [2]int64
	difference      wire.Difference
}

// retain compares the bytes that a packet takes, and then every field of every
// packet with what tcpdump saw at the same interface.
func retain(ctx context.Context, b *bench) error {
	t := table{Title: "the same traffic kept by both, and compared field by field",
		Columns: []string{"trace", "packets", "RST", "tcpdump B/packet", "tcpcoroner B/packet", "times", "equal", "only tcpdump", "only tcpcoroner"}}
	var worst []string
	for _, tr := range traces() {
		keep := b.mark()
		k, err := keepTrace(ctx, b, tr)
		if err = errors.Join(err, b.unwind(keep)); err != nil {
			return fmt.Errorf("%s: %w", tr.name, err)
		}
		d := k.difference
		t.Rows = append(t.Rows, []string{tr.name, fmt.Sprint(k.packets), fmt.Sprint(k.resets), fmt.Sprintf("%.1f", k.theirs),
			fmt.Sprintf("%.2f", k.ours), fmt.Sprintf("%.1f", k.theirs/k.ours), fmt.Sprint(d.Equal), fmt.Sprint(d.OnlyA), fmt.Sprint(d.OnlyB)})
		if d.OnlyA+d.OnlyB > 0 {
			worst = append(worst, tr.name+": "+d.String())
		}
		b.judgeTrace(tr, k)
	}
	b.table(t)
	for _, w := range worst {
		b.say("%s", w)
	}
	return nil
}

// The headline: minutes at a rate of packets in a buffer.
const (
	headlineBytes = 64 << 20
	headlineRate  = 20_000
	headlineTime  = 10 * time.Minute
)

func (b *bench) judgeTrace(tr trace, k kept) {
	if tr.floor > 0 {
		b.goal(k.theirs/k.ours >= tr.floor, fmt.Sprintf("%s: bytes a packet <= 1/%.0f of tcpdump's", tr.name, tr.floor), "1/%.1f", k.theirs/k.ours)
	}
	if tr.floor >= 20 {
		held := time.Duration(headlineBytes / k.ours / headlineRate * float64(time.Second)).Round(time.Second)
		b.goal(held >= headlineTime, tr.name+": 64 MiB hold 10 minutes at 20,000 packets/s", "%v", held)
	}
	what := tr.name + ": every packet is kept, every field as it was"
	switch d := k.difference; {
	case k.dropped != [2]int64{}:
		b.refuse(what, "the kernel dropped %d packets of tcpdump's and %d of tcpcoroner's", k.dropped[0], k.dropped[1])
	default:
		b.goal(d.OnlyA+d.OnlyB == 0 && d.Equal > 0, what, "%d equal, %d different or missing", d.Equal, max(d.OnlyA, d.OnlyB))
	}
}

func keepTrace(ctx context.Context, b *bench, tr trace) (k kept, err error) {
	v, err := b.serve(anyCPU)
	if err != nil {
		return k, err
	}
	ours, err := startWith(ctx, b, v.server, wideMemory, b.dir)
	if err != nil {
		return k, err
	}
	theirs, err := plain.start(ctx, b, v.server)
	if err != nil {
		return k, err
	}
	if err := tr.run(ctx, v, pick(b, 5.0, 1.0)); err != nil {
		return k, err
	}
	if err := errors.Join(theirs.drain(ctx), ours.drain(ctx)); err != nil {
		return k, err
	}
	if err := k.compare(ctx, ours, theirs); err != nil {
		return k, err
	}
	return k, ours.stop()
}

// compare takes the two recordings and puts them beside each other.
func (k *kept) compare(ctx context.Context, ours, theirs *session) error {
	saw, err := plain.counts(ctx, theirs)
	if err != nil {
		return err
	}
	path := filepath.Join(theirs.dir, "x.pcap")
	file, err := wire.CountFiles(path)
	if err != nil {
		return err
	}
	if err := ours.ask(ctx, nil, "freeze", "--reason", "bench"); err != nil {
		return err
	}
	st, err := ours.status(ctx)
	if err != nil {
		return err
	}
	k.packets, k.resets = file.Packets, file.Resets
	k.theirs, k.ours = float64(file.Bytes)/float64(max(1, file.Packets)), st.bytesPerPacket()
	k.dropped = [2]int64{saw.Dropped, st.counts().Dropped}
	pulled := filepath.Join(ours.dir, "x.pcapng")
	if err := ours.ask(ctx, nil, "pull", "last", "-o", pulled); err != nil {
		return err
	}
	k.difference, err = wire.Compare(path, pulled)
	return err
}

// visit is one run of wrk beside an engine.
type visit struct {
	micros   float64 // processor time of nginx and wrk a request
	recorder float64 // that of the engine's process
	rate     float64 // requests a second
}

// host measures what a recorder costs a web server: the engines in turns that
// begin with another one each time, and each round's figures against those of the
// same round without a recorder.
func host(ctx context.Context, b *bench) error {
	v, err := b.serve(sendCPU)
	if err != nil {
		return err
	}
	engines := []engine{nothing, product, tcpdump}
	all := make([][]visit, len(engines))
	for round := range pick(b, 15, 3) {
		for turn := range engines {
			i := (round + turn) % len(engines)
			keep := b.mark()
			one, err := visited(ctx, v, engines[i], pick(b, 3.0, 1.0))
			if err = errors.Join(err, b.unwind(keep)); err != nil {
				return fmt.Errorf("%s: %w", engines[i].name, err)
			}
			all[i] = append(all[i], one)
		}
	}
	t := table{Title: fmt.Sprintf("nginx and wrk, 50 kept connections, %d rounds in turn, medians", len(all[0])),
		Columns: []string{"engine", "us a request", "recorder's us", "together", "more than with nothing", "without the recorder's", "requests/s", "less"}}
	var more [3]float64
	for i, e := range engines {
		whole := pairs(all[i], all[0], func(v visit) float64 { return v.micros + v.recorder })
		served := pairs(all[i], all[0], func(v visit) float64 { return v.micros })
		rate := pairs(all[i], all[0], func(v visit) float64 { return v.rate })
		more[i] = median(whole) - 1
		figure := func(f func(visit) float64) string { return fmt.Sprintf("%.2f", medianOf(all[i], f)) }
		t.Rows = append(t.Rows, []string{e.name, figure(func(v visit) float64 { return v.micros }),
			figure(func(v visit) float64 { return v.recorder }), figure(func(v visit) float64 { return v.micros + v.recorder }),
			fmt.Sprintf("%+.1f %%", 100*more[i]), fmt.Sprintf("%+.1f %%", 100*(median(served)-1)),
			fmt.Sprintf("%.0f", medianOf(all[i], func(v visit) float64 { return v.rate })), fmt.Sprintf("%.1f %%", 100*(1-median(rate)))})
	}
	b.table(t)
	b.goal(more[1] < more[2], "a request costs the host less than with tcpdump", "%+.1f %% against %+.1f %%", 100*more[1], 100*more[2])
	return nil
}

// pairs divides each run by the bare one of its round.
func pairs(list, bare []visit, f func(visit) float64) (out []float64) {
	for i := range list {
		out = append(out, f(list[i])/f(bare[i]))
	}
	return out
}

func medianOf(list []visit, f func(visit) float64) float64 {
	var out []float64
	for _, v := range list {
		out = append(out, f(v))
	}
	return median(out)
}

func visited(ctx context.Context, v *servers, e engine, seconds float64) (out visit, err error) {
	var s *session
	if e.start != nil {
		if s, err = e.start(ctx, v.b, v.server); err != nil {
			return out, err
		}
	}
	workers, err := children(proc, v.nginx.pid())
	if err != nil {
		return out, err
	}
	before, err := times(s, workers)
	if err != nil {
		return out, err
	}
	n, client, err := v.wrk(ctx, sendCPU, seconds, page)
	if err != nil {
		return out, err
	}
	if s != nil {
		if err := s.drain(ctx); err != nil {
			return out, err
		}
	}
	after, err := times(s, workers)
	if err != nil {
		return out, err
	}
	wrk := client.cmd.ProcessState.SystemTime() + client.cmd.ProcessState.UserTime()
	out.micros = float64((after[1] - before[1] + wrk).Nanoseconds()) / 1e3 / n
	out.recorder = float64((after[0] - before[0]).Nanoseconds()) / 1e3 / n
	out.rate = n / seconds
	if s != nil {
		_, err = e.counts(ctx, s)
	}
	return out, err
}

// times are the processor times of the recorder and of the web server.
func times(s *session, workers []int) (t [2]time.Duration, err error) {
	if s != nil {
		if t[0], err = processorTime(proc, s.pid()); err != nil {
			return t, err
		}
	}
	t[1], err = processorTime(proc, workers...)
	return t, err
}
