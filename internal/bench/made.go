package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"tcpcoroner/internal/bench/gen"
)

// sample is one run of one engine under made traffic.
type sample struct {
	Sent gen.Count
	Got  counts
	// Engine is the processor time of the recorder's process, from when it was
	// ready until it had read everything; Sender that of the traffic, the kernel's
	// work for the recorder included.
	Engine, Sender time.Duration
}

// lossless tells whether every packet was sent, seen, and not dropped.
func (s sample) lossless() bool {
	return s.Got.Dropped == 0 && s.Got.Packets == int64(s.Sent.Packets)
}

// losses are the packets that were sent and not seen, as a share.
func (s sample) losses() float64 {
	return math.Max(0, 1-float64(s.Got.Packets)/float64(s.Sent.Packets))
}

// flow is a shape of traffic.
type flow struct {
	rate  float64 // packets a second, 0 is as fast as it goes
	total int
	// during is called with the ready engine before the traffic, and what it
	// returns after it; it may be nil.
	during func(context.Context, *session) (func() error, error)
}

// flows is how many connections the traffic has.
const flows = 1024

// measure runs one engine under the flow.
func (b *bench) measure(ctx context.Context, n *namespace, e engine, f flow) (s sample, err error) {
	err = n.send(gen.Config{Flows: flows}, func(g *gen.Generator) error {
		var session *session
		if e.start != nil {
			var err error
			if session, err = e.start(ctx, b, n); err != nil {
				return err
			}
		}
		s, err = watched(ctx, session, g, f)
		if err != nil || session == nil {
			return err
		}
		s.Got, err = e.counts(ctx, session)
		return err
	})
	if err != nil {
		return s, fmt.Errorf("%s at %.0f packets/s: %w", e.name, f.rate, err)
	}
	return s, ctx.Err()
}

// watched sends the traffic and takes the times around it.
func watched(ctx context.Context, s *session, g *gen.Generator, f flow) (out sample, err error) {
	var before time.Duration
	if s != nil {
		if before, err = processorTime(proc, s.pid()); err != nil {
			return out, err
		}
	}
	after := func() error { return nil }
	if f.during != nil && s != nil {
		if after, err = f.during(ctx, s); err != nil {
			return out, err
		}
	}
	if out.Sender, err = sendTimed(ctx, g, f); err != nil {
		return out, errors.Join(err, after())
	}
	out.Sent = g.Sent()
	if err := after(); err != nil || s == nil {
		return out, err
	}
	if err := s.drain(ctx); err != nil {
		return out, err
	}
	end, err := processorTime(proc, s.pid())
	out.Engine = end - before
	return out, err
}

func sendTimed(ctx context.Context, g *gen.Generator, f flow) (time.Duration, error) {
	before, err := gen.CPU()
	if err != nil {
		return 0, err
	}
	if err := g.Pace(ctx, f.rate, f.total); err != nil {
		return 0, err
	}
	after, err := gen.CPU()
	return after - before, err
}

// rounds runs the engines in turn, so that a change of the machine's load meets
// all of them, and returns the samples of each.
func (b *bench) rounds(ctx context.Context, n *namespace, times int, f flow, engines ...engine) ([][]sample, error) {
	all := make([][]sample, len(engines))
	for range times {
		for i, e := range engines {
			keep := b.mark()
			s, err := b.measure(ctx, n, e, f)
			if err = errors.Join(err, b.unwind(keep)); err != nil {
				return nil, err
			}
			all[i] = append(all[i], s)
		}
	}
	return all, nil
}

// each maps samples to numbers.
func each(list []sample, f func(sample) float64) (out []float64) {
	for _, s := range list {
		out = append(out, f(s))
	}
	return out
}

// engineNanos is nanoseconds of the recorder a packet that it has seen: to lose
// packets is no saving.
func engineNanos(s sample) float64 { return perPacket(s.Engine, float64(s.Got.Packets)) }

func senderNanos(s sample) float64 { return perPacket(s.Sender, float64(s.Sent.Packets)) }

func perPacket(d time.Duration, packets float64) float64 {
	return float64(d.Nanoseconds()) / max(1, packets)
}
