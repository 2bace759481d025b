package kernel

import (
	"maps"
	"slices"
	"testing"
	"time"

	"tcpcoroner/evidence"
	"tcpcoroner/internal/netlab"
)

// What was thrown away is told where it explains a reset, or that there is none.
func TestDrops(t *testing.T) {
	netlab.NeedRoot(t)
	k := open(t, config())
	for name, want := range map[string]struct {
		reason string
		flags  evidence.Flags
	}{
		"inject-in-window":     {"TCP_RESET", evidence.RST},
		"inject-out-of-window": {"TCP_OLD_SEQUENCE", evidence.RST},
		"syn-into-established": {"TCP_INVALID_SYN", evidence.SYN},
		"reject-input":         {"NETFILTER_DROP", evidence.SYN},
		"reject-output":        {"NETFILTER_DROP", evidence.ACK},
		"overflow-abort":       {"TCP_LISTEN_OVERFLOW", evidence.ACK},
	} {
		t.Run(name, func(t *testing.T) {
			if !slices.Contains(slices.Collect(maps.Values(k.dec.drops)), want.reason) {
				t.Skipf("this kernel has no reason %s", want.reason)
			}
			l := newLab(t, k)
			l.play(t, name)
			fit := func(e *evidence.KernelEvent) bool {
				return e.Kind == evidence.SegmentDropped && e.Reason == want.reason && e.Trigger.Flags.Has(want.flags)
			}
			l.atLeast(t, 1, want.reason, fit)
			k.Locate(l.since, time.Now())
			got := l.atLeast(t, 1, want.reason, fit)
			if e := got[0]; e.Location == "" || name == "reject-output" != e.Trigger.Outgoing {
				t.Errorf("location and direction are to be known:%s", list(got))
			}
		})
	}
}
