package evidence

import (
	"net/netip"
	"time"
)

// Firing is one trigger crossing its threshold. It states the numbers.
type Firing struct {
	// Trigger is the name of the trigger: "resets", "conntrack", "manual", ...
	Trigger string    `json:"trigger"`
	Time    time.Time `json:"time"`
	// Expression is the rule in words, Value what was measured, Threshold what
	// it crossed, Baseline what was usual.
	Expression string  `json:"expression"`
	Value      float64 `json:"value"`
	Threshold  float64 `json:"threshold"`
	Baseline   float64 `json:"baseline"`
	Unit       string  `json:"unit"`
	// Reason is the sentence for people; of a manual freeze what the person gave.
	Reason string `json:"reason"`
	// Namespace is the label of the network namespace that it speaks of; empty is the
	// recorder's own.
	Namespace string `json:"namespace,omitempty"`
	// Listeners are the ones whose accept queue was at its limit.
	Listeners []Socket `json:"listeners,omitempty"`
}

// Host says where an incident was recorded.
type Host struct {
	Name   string `json:"name"`
	ID     string `json:"id"`
	Kernel string `json:"kernel"`
	// NetNS is the inode number of the network namespace that was recorded.
	NetNS uint64 `json:"netns"`
}

// Incident is everything that is kept of one moment.
type Incident struct {
	Schema string `json:"schema"`
	// ID is a ULID.
	ID string `json:"id"`
	// TraceID is 32 lower-case hex digits, random, fixed at the freeze: exporting
	// twice gives the same trace.
	TraceID string `json:"trace_id"`
	Version string `json:"version"`
	Host    Host   `json:"host"`
	// Time is when the first trigger fired; Closed when the window was frozen.
	Time   time.Time `json:"time"`
	Closed time.Time `json:"closed"`
	// Firings holds the first one and those that joined it, in order.
	Firings []Firing `json:"firings"`
	// Joined counts all firings that joined, kept or not.
	Joined int    `json:"joined"`
	Window Window `json:"window"`
	// Before is the last counter sample ahead of the window (or the oldest there
	// is), At the snapshot at the firing, After the one when the window closed.
	Before Counters  `json:"before"`
	At     *Snapshot `json:"at"`
	After  *Snapshot `json:"after,omitempty"`
	// Kernel are the kernel's own events about the window's resets, in order, and
	// Suppressed those that came too fast to be described. KernelLevel says how much
	// this kernel tells; nil if nobody asked it.
	Kernel      []KernelEvent      `json:"kernel,omitempty"`
	Suppressed  []KernelSuppressed `json:"kernel_suppressed,omitempty"`
	KernelLevel *KernelLevel       `json:"kernel_level,omitempty"`
	// Ledger accounts for the resets of the window, second by second.
	Ledger []LedgerSecond `json:"ledger,omitempty"`
	// Logs are lines of around the window, Series the counters second by second, and
	// Elsewhere those of the other recorded network namespaces, without lines of zeros.
	Logs      []LogLine `json:"logs,omitempty"`
	Series    *Series   `json:"series,omitempty"`
	Elsewhere []Series  `json:"series_elsewhere,omitempty"`
	// Roles are what the operator says of addresses.
	Roles []Role `json:"roles,omitempty"`
	// Flows are the implicated ones, exemplars first, at most MaxFlows.
	Flows []Flow `json:"flows"`
	// FlowsTotal counts all flows of the window, FlowsImplicated those that would
	// be in Flows without its bound. They are lower bounds if Window.FlowsAtLeast.
	FlowsTotal      int     `json:"flows_total"`
	FlowsImplicated int     `json:"flows_implicated"`
	Verdict         Verdict `json:"verdict"`
}

// Role says whose the addresses of a network are. The longest prefix wins.
type Role struct {
	Prefix netip.Prefix `json:"prefix"`
	Party  Party        `json:"party"`
}

// SchemaIncident names the JSON layout of an Incident.
const SchemaIncident = "tcpcoroner.incident/v1"

// MaxFlows bounds the flows that an incident describes; all packets are kept.
const MaxFlows = 1000

// Trigger is the name of the first firing.
func (i *Incident) Trigger() string {
	if len(i.Firings) == 0 {
		return ""
	}
	return i.Firings[0].Trigger
}

// CounterDelta is what a counter grew by between Before and the last snapshot.
func (i *Incident) CounterDelta(name string) uint64 {
	for _, s := range []*Snapshot{i.After, i.At} {
		if s != nil && len(s.Counters.Values) > 0 {
			return s.Counters.Delta(i.Before, name)
		}
	}
	return 0
}

// Missing lists what neither snapshot could read.
func (i *Incident) Missing() []Missing {
	seen := map[string]bool{}
	var all []Missing
	for _, s := range []*Snapshot{i.At, i.After} {
		if s == nil {
			continue
		}
		for _, m := range s.Missing {
			if !seen[m.What+m.Why] {
				seen[m.What+m.Why] = true
				all = append(all, m)
			}
		}
	}
	return all
}
