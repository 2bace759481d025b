package kernel

import (
	"fmt"
	"slices"

	"tcpcoroner/evidence"
)

// state is what loading and attaching brought about.
type state struct {
	// broken: nothing could be loaded.
	broken error
	// sentArgs and dropArgs are the numbers of arguments of tcp_send_reset and of
	// kfree_skb; 0 if the tracepoint is absent.
	sentArgs, dropArgs int
	// activeReasons: the kernel also tells why applications' resets are sent.
	activeReasons bool
	// sent, owners and accept tell what could be attached.
	sent, owners, accept bool
}

// levels are the names, best first.
var levels = []string{evidence.LevelFull, evidence.LevelReasons, evidence.LevelTuples, evidence.LevelPackets}

func levelRank(name string) int { return slices.Index(levels, name) }

// fixCaps is what the programs need (capabilities(7)).
const fixCaps = "grant CAP_BPF and CAP_PERFMON"

// levelOf judges what there is. limit is the level that was asked for.
func levelOf(limit string, s state) evidence.KernelLevel {
	l := possible(s)
	if levelRank(limit) >= levelRank(l.Name) && limit != evidence.LevelFull {
		return evidence.KernelLevel{Name: limit, Why: "limited by the configuration", Raise: "set the level of kernel evidence to full"}
	}
	return l
}

// possible is the level, whatever was asked for.
func possible(s state) evidence.KernelLevel {
	switch {
	case s.broken != nil:
		return evidence.KernelLevel{Name: evidence.LevelPackets, Why: s.broken.Error(), Raise: fixCaps + "; needs Linux 5.12 with BTF"}
	case !s.sent:
		return evidence.KernelLevel{Name: evidence.LevelPackets, Why: "tcp_send_reset cannot be watched", Raise: fixCaps}
	case s.sentArgs < 3:
		return evidence.KernelLevel{Name: evidence.LevelTuples, Why: fmt.Sprintf("tcp_send_reset has %d arguments: this kernel gives no reason", s.sentArgs),
			Raise: "Linux 6.10 tells why it sends a reset, 6.12 also for applications'"}
	case !s.activeReasons:
		return evidence.KernelLevel{Name: evidence.LevelReasons, Why: "this kernel gives no reason for resets that applications cause", Raise: "Linux 6.12"}
	case !s.owners:
		return evidence.KernelLevel{Name: evidence.LevelReasons, Why: "the owners of sockets cannot be watched", Raise: fixCaps}
	case !s.accept:
		return evidence.KernelLevel{Name: evidence.LevelReasons, Why: "accept cannot be watched: accepted connections show their listener's owner",
			Raise: "mount tracefs and grant CAP_DAC_READ_SEARCH, or use Linux 6.3"}
	}
	return evidence.KernelLevel{Name: evidence.LevelFull}
}
