package main

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// rivalsAndUs is who is compared; tcpdump is the yardstick and stands first.
func rivalsAndUs() []engine { return []engine{tcpdump, dumpcap, product} }

// The floors below which a release does not ship, as docs/performance.md says.
const (
	floorCPUTcpdump   = 1.0 / 3
	floorCPUDumpcap   = 1.0 / 8
	floorTax          = 0.6
	floorQuotaTcpdump = 4
	floorQuotaDumpcap = 8
)

// truth compares what each engine counted with what was sent, at rates that all
// of them can take.
func truth(ctx context.Context, b *bench) error {
	n, err := b.loop()
	if err != nil {
		return err
	}
	t := table{Title: "counted / sent", Columns: []string{"packets/s", "engine", "packets", "RST", "dropped"}}
	exact := true
	for _, rate := range pick(b, []float64{5_000, 20_000, 60_000, 150_000}, []float64{20_000, 100_000}) {
		f := flow{rate: rate, total: min(300_000, int(rate*pick(b, 5.0, 1.0)))}
		all, err := b.rounds(ctx, n, 1, f, rivalsAndUs()...)
		if err != nil {
			return err
		}
		for i, e := range rivalsAndUs() {
			s := all[i][0]
			t.Rows = append(t.Rows, []string{fmt.Sprintf("%.0f", rate), e.name,
				fmt.Sprintf("%d / %d", s.Got.Packets, s.Sent.Packets), fmt.Sprintf("%d / %d", s.Got.Resets, s.Sent.Resets),
				fmt.Sprint(s.Got.Dropped)})
			if e.name == product.name {
				exact = exact && s.lossless() && s.Got.Resets == int64(s.Sent.Resets)
			}
		}
	}
	b.table(t)
	b.goal(exact, "tcpcoroner counts every packet and every RST", "%v", exact)
	return nil
}

// processor compares processor time per packet.
func processor(ctx context.Context, b *bench) error {
	n, err := b.loop()
	if err != nil {
		return err
	}
	for _, f := range []flow{
		{rate: 150_000, total: pick(b, 1_000_000, 150_000)},
		{rate: 0, total: pick(b, 2_000_000, 300_000)},
	} {
		all, err := b.rounds(ctx, n, pick(b, 5, 2), f, rivalsAndUs()...)
		if err != nil {
			return err
		}
		b.table(processorTable(f, all))
		ours := each(all[2], engineNanos)
		changes := 0
		for _, s := range all[2] {
			changes += int(s.Got.Levels)
		}
		b.goal(changes == 0, f.String()+": every packet is compressed", "level changed %d times", changes)
		b.atMost(floorCPUTcpdump, f.String()+": processor time <= 1/3 of tcpdump's", ours, each(all[0], engineNanos))
		b.atMost(floorCPUDumpcap, f.String()+": processor time <= 1/8 of dumpcap's", ours, each(all[1], engineNanos))
	}
	return nil
}

func (f flow) String() string {
	if f.rate == 0 {
		return "as fast as it goes"
	}
	return fmt.Sprintf("%.0f packets/s", f.rate)
}

func processorTable(f flow, all [][]sample) table {
	t := table{
		Title:   fmt.Sprintf("%s, %d packets, %d runs in turn: nanoseconds of processor time a packet", f, f.total, len(all[0])),
		Columns: []string{"engine", "median", "least", "spread", "lost in each run"},
	}
	for i, e := range rivalsAndUs() {
		ns := each(all[i], engineNanos)
		t.Rows = append(t.Rows, []string{e.name, fmt.Sprintf("%.0f", median(ns)), fmt.Sprintf("%.0f", least(ns)),
			fmt.Sprintf("%.0f %%", 100*spread(ns)), lossList(all[i])})
	}
	return t
}

// lossList prints the losses of each run, 0 only if nothing was lost.
func lossList(list []sample) string {
	var out []string
	for _, s := range list {
		text := "0"
		if !s.lossless() {
			text = fmt.Sprintf("%.3f%%", 100*s.losses())
		}
		out = append(out, text)
	}
	return strings.Join(out, " ")
}

// tax measures the sender too: the kernel copies a packet for a recorder in the
// time of whoever brings the packet.
func tax(ctx context.Context, b *bench) error {
	n, err := b.loop()
	if err != nil {
		return err
	}
	engines := []engine{nothing, tcpdump, product}
	f := flow{rate: 0, total: pick(b, 1_000_000, 200_000)}
	all, err := b.rounds(ctx, n, pick(b, 9, 3), f, engines...)
	if err != nil {
		return err
	}
	bare := median(each(all[0], senderNanos))
	cost := func(s sample) float64 { return senderNanos(s) - bare + engineNanos(s) }
	t := table{
		Title:   fmt.Sprintf("%s, %d runs in turn: nanoseconds of processor time a packet, medians", f, len(all[0])),
		Columns: []string{"engine", "sender", "kernel's tap", "process", "tap + process", "least"},
	}
	for i, e := range engines {
		sender, engine := median(each(all[i], senderNanos)), median(each(all[i], engineNanos))
		t.Rows = append(t.Rows, []string{e.name, fmt.Sprintf("%.0f", sender), fmt.Sprintf("%+.0f", sender-bare),
			fmt.Sprintf("%.0f", engine), fmt.Sprintf("%.0f", median(each(all[i], cost))), fmt.Sprintf("%.0f", least(each(all[i], cost)))})
	}
	b.table(t)
	b.atMost(floorTax, "cost to the whole machine <= 0.6 of tcpdump's", each(all[2], cost), each(all[1], cost))
	return nil
}

// flatOut is the noisy neighbour: traffic as fast as it goes while a busy
// process has the recorder's processor too.
func flatOut(ctx context.Context, b *bench) error {
	n, err := b.loop()
	if err != nil {
		return err
	}
	stop, err := b.hogs(n)
	if err != nil {
		return err
	}
	defer stop()
	f := flow{rate: 0, total: pick(b, 2_000_000, 300_000)}
	all, err := b.rounds(ctx, n, pick(b, 5, 2), f, rivalsAndUs()...)
	if err != nil {
		return err
	}
	f.during = freezing
	more, err := b.rounds(ctx, n, pick(b, 5, 2), f, product)
	if err != nil {
		return err
	}
	t := table{Title: fmt.Sprintf("%d packets as fast as it goes, beside two busy processes", f.total),
		Columns: []string{"engine", "lost in each run"}}
	for i, e := range rivalsAndUs() {
		t.Rows = append(t.Rows, []string{e.name, lossList(all[i])})
	}
	t.Rows = append(t.Rows, []string{product.name + " while freezing", lossList(more[0])})
	b.table(t)
	b.goal(allLossless(all[2]), "no packet lost beside two busy processes", "lost %s", lossList(all[2]))
	b.goal(allLossless(more[0]), "nor while freezing and storing", "lost %s", lossList(more[0]))
	return nil
}

func allLossless(list []sample) bool {
	for _, s := range list {
		if !s.lossless() {
			return false
		}
	}
	return true
}

// freezing freezes again and again until it is stopped.
func freezing(ctx context.Context, s *session) (func() error, error) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() {
		for ctx.Err() == nil {
			if err := s.ask(ctx, nil, "freeze", "--reason", "bench"); err != nil && ctx.Err() == nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	return func() error {
		cancel()
		return <-done
	}, nil
}

// quota finds the rate that each engine takes without loss in 1 % of a processor.
func quota(ctx context.Context, b *bench) error {
	n, err := b.loop()
	if err != nil {
		return err
	}
	seconds := pick(b, 30.0, 4.0)
	best := map[string]float64{}
	t := table{Title: fmt.Sprintf("packets/s without loss for %.0f s in 1 %% of a processor, in steps of %.2f", seconds, fine),
		Columns: []string{"engine", "lossless", "tried"}}
	for _, e := range rivalsAndUs() {
		var tried []string
		found, err := limit(5_000, 1_000_000, func(rate float64) (bool, error) {
			keep := b.mark()
			s, err := b.measure(ctx, n, e, flow{rate: rate, total: int(rate * seconds), during: limited})
			if err == nil {
				tried = append(tried, fmt.Sprintf("%.0f: %s%s", rate, lossList([]sample{s}), s.Got.leveled()))
				err = b.unwind(keep)
			}
			return s.lossless(), err
		})
		if err != nil {
			return err
		}
		best[e.name] = found
		t.Rows = append(t.Rows, []string{e.name, fmt.Sprintf("%.0f", best[e.name]), strings.Join(tried, ", ")})
	}
	b.table(t)
	b.times(floorQuotaTcpdump, best, tcpdump.name)
	b.times(floorQuotaDumpcap, best, dumpcap.name)
	return nil
}

// leveled tells at which level the product went on, if it could not keep up at the
// first.
func (c counts) leveled() string {
	if c.Levels == 0 {
		return ""
	}
	return fmt.Sprintf(" (%s)", c.Level)
}

func (b *bench) times(floor float64, best map[string]float64, rival string) {
	what := fmt.Sprintf("lossless rate in 1 %% of a processor >= %.0f times %s's", floor, rival)
	if best[rival] == 0 {
		b.refuse(what, "%s loses packets at the lowest rate already", rival)
		return
	}
	r := best[product.name] / best[rival]
	b.goal(r >= floor, what, "%.1f times", r)
}

// limited gives the engine 1 % of a processor while the traffic flows. What is
// in its buffer at the end it may read without the limit.
func limited(_ context.Context, s *session) (func() error, error) {
	g, err := newGroup()
	if err != nil {
		return nil, err
	}
	s.b.defers(func() error {
		s.kill() // a group with a process in it cannot be removed
		return g.remove()
	})
	if err := g.add(s.pid()); err != nil {
		return nil, err
	}
	return g.unlimit, g.limit(time.Millisecond, 100*time.Millisecond)
}
