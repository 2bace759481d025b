package triggers

import (
	"time"

	"tcpcoroner/evidence"
)

// DefaultDrops fires at 50 lost packets in 10 s if that is four times the usual.
func DefaultDrops() RiseConfig {
	return RiseConfig{Enabled: true, Window: 10 * time.Second, Threshold: 50, Factor: 4}
}

// softnetDropped counts packets for which a CPU's backlog had no room
// (net/core/dev.c, enqueue_to_backlog).
const softnetDropped = "Softnet.dropped"

// NewDrops makes the trigger "drops": packets that this host's interfaces and CPUs
// lost. links lists the interfaces; of counters the backlog's drops are used. A
// source that fails is left out unless both do.
func NewDrops(cfg RiseConfig, links func() ([]evidence.InterfaceStats, error), counters func() (evidence.Counters, error)) *Rise {
	return newRise("drops", "packets lost on this host", "{packet}", cfg, func() (evidence.Counters, error) {
		c, err := counters()
		all, linkErr := links()
		if err != nil && linkErr != nil {
			return c, linkErr
		}
		losses := linkLosses(all)
		if n, ok := c.Values[softnetDropped]; ok {
			losses[softnetDropped] = n
		}
		return evidence.Counters{Time: c.Time, Values: losses}, nil
	}, nil, nil)
}

// linkLosses names what counts. rx_dropped does not: it has packets of protocols
// that nobody speaks (Documentation/networking/statistics.rst).
func linkLosses(links []evidence.InterfaceStats) map[string]uint64 {
	losses := make(map[string]uint64, 3*len(links)+1)
	for i := range links {
		l := &links[i]
		losses[l.Name+" rx_missed"] += l.RxMissed
		losses[l.Name+" rx_errors"] += l.RxErrors
		losses[l.Name+" tx_dropped"] += l.TxDropped
	}
	return losses
}
