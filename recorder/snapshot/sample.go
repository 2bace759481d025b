package snapshot

import (
	"context"

	"tcpcoroner/evidence"
)

// Sample is what may change every second in one network namespace.
type Sample struct {
	Counters     evidence.Counters
	CountersErr  error
	Conntrack    *evidence.Conntrack
	ConntrackErr error
	// Listeners are those of a Sample before, if Idle.
	Listeners    []evidence.Socket
	ListenersErr error
	// Idle counts the Samples in a row that did not ask for listeners.
	Idle int
}

// idleSamples is how many Samples in a row may pass without a look at listeners.
const idleSamples = 5

// Next reads counters (without those of the host's processors), connection tracking
// and, if wanted, listeners, with one visit to the namespace. Where nothing moved since the Sample before and no connection
// waits to be accepted, listeners are asked for only each few times: they cost a
// third of all.
func (t *Taker) Next(last *Sample, listeners bool) Sample {
	s, err := within(t, func() (s Sample, _ error) {
		s.Counters, s.CountersErr = t.countersOf(false)
		s.Conntrack, s.ConntrackErr = t.nextConntrack(last)
		switch {
		case !listeners:
		case last.Idle < idleSamples && s.CountersErr == nil && resting(last, &s):
			s.Listeners, s.Idle = last.Listeners, last.Idle+1
		default:
			ctx, cancel := context.WithTimeout(context.Background(), pollTimeout)
			defer cancel()
			s.Listeners, s.ListenersErr = t.sockets(ctx, listenOnly)
		}
		return s, nil
	})
	if err != nil {
		return Sample{CountersErr: err, ConntrackErr: err, ListenersErr: err}
	}
	return s
}

// nextConntrack asks for the loss counters only if there are entries to lose: most
// containers track nothing.
func (t *Taker) nextConntrack(last *Sample) (*evidence.Conntrack, error) {
	if last.ConntrackErr == nil && last.Conntrack != nil && last.Conntrack.Count == 0 {
		if count, err := t.number("sys/net/netfilter/nf_conntrack_count"); err == nil && count == 0 {
			return last.Conntrack, nil
		}
	}
	return t.conntrack()
}

// resting tells whether nothing happened to listeners between two Samples: accept
// queues grow with PassiveOpens and lose with ListenDrops, and sockets are counted.
func resting(last, s *Sample) bool {
	if last.CountersErr != nil || last.ListenersErr != nil || last.Counters.Values == nil {
		return false
	}
	for _, name := range []string{"Tcp.PassiveOpens", "TcpExt.ListenDrops", "Sockstat.TCP.inuse", "Sockstat.TCP6.inuse"} {
		if last.Counters.Values[name] != s.Counters.Values[name] {
			return false
		}
	}
	for i := range last.Listeners {
		if last.Listeners[i].RecvQueue > 0 {
			return false
		}
	}
	return true
}
