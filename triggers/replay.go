package triggers

import (
	"fmt"
	"time"

	"tcpcoroner/evidence"
)

// Scorer tells what resets did, as the recorder does.
type Scorer interface {
	Add(p *evidence.Packet)
	Sample() evidence.HarmSample
}

// Replayed is what would have happened.
type Replayed struct {
	Firings []evidence.Firing
	State   evidence.TriggerState
	Harm    evidence.HarmSample
	Packets int
	// From and To are the times of the first and last packet.
	From, To time.Time
}

// longSilence is a gap in a capture that is not lived through second by second.
const longSilence = time.Hour

// Replay lets packets, in the order of time, pass the scorer and the trigger
// "resets", which is checked each second of the packets' time.
func Replay(packets func(yield func(*evidence.Packet) bool) error, scorer Scorer, harm HarmConfig, storms SetConfig) (Replayed, error) {
	var out Replayed
	set := NewSet(storms, NewHarm(harm, scorer.Sample))
	var next time.Time
	until := func(end time.Time) {
		for ; !next.After(end); next = next.Add(time.Second) {
			fired, _ := set.Check(next)
			out.Firings = append(out.Firings, fired...)
		}
	}
	err := packets(func(p *evidence.Packet) bool {
		at := p.Time()
		if out.Packets == 0 {
			out.From, next = at, at
		}
		if at.Sub(next) > longSilence {
			next = at
		}
		until(at)
		scorer.Add(p)
		out.Packets++
		out.To = at
		return true
	})
	if out.Packets > 0 {
		until(out.To.Add(time.Second))
	}
	out.State, out.Harm = set.States()[0], scorer.Sample()
	if err != nil {
		return out, fmt.Errorf("replay packets: %w", err)
	}
	return out, nil
}
