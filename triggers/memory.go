package triggers

import (
	"fmt"
	"strings"
	"time"

	"tcpcoroner/evidence"
)

// MemoryConfig is the configuration of the trigger "memory".
type MemoryConfig struct {
	Enabled bool `yaml:"enabled"`
	// Orphans is the share, from 0 to 1, of net.ipv4.tcp_max_orphans, and Memory that
	// of the third number of net.ipv4.tcp_mem, at which it fires; Rearm is the part
	// of them below which it is armed again.
	Orphans float64 `yaml:"orphans"`
	Memory  float64 `yaml:"memory"`
	Rearm   float64 `yaml:"rearm"`
	// Window is the sliding window in which aborts for want of memory are counted:
	// one fires.
	Window time.Duration `yaml:"window"`
}

// DefaultMemory fires at half of the orphans, at 90 % of the memory, and at the
// first connection that was aborted.
func DefaultMemory() MemoryConfig {
	return MemoryConfig{Enabled: true, Orphans: 0.5, Memory: 0.9, Rearm: 0.8, Window: 10 * time.Second}
}

// Validate names the first field that cannot be.
func (c MemoryConfig) Validate() error {
	switch {
	case !c.Enabled:
		return nil
	case !(c.Orphans > 0 && c.Orphans <= 1):
		return fmt.Errorf("memory.orphans is %g: must be over 0 and at most 1", c.Orphans)
	case !(c.Memory > 0 && c.Memory <= 1):
		return fmt.Errorf("memory.memory is %g: must be over 0 and at most 1", c.Memory)
	case !(c.Rearm > 0 && c.Rearm < 1):
		return fmt.Errorf("memory.rearm is %g: must be over 0 and below 1", c.Rearm)
	case c.Window < minWindow || c.Window > maxWindow:
		return windowError("memory.window", c.Window)
	}
	return nil
}

// MemoryLimits are the kernel's limits; 0 where one could not be read.
type MemoryLimits struct {
	// Orphans is net.ipv4.tcp_max_orphans, Pages the third number of
	// net.ipv4.tcp_mem.
	Orphans, Pages uint64
}

// Memory fires when TCP runs out of memory or of orphans: sockets that no process
// holds any more.
type Memory struct {
	cfg      MemoryConfig
	counters func() (evidence.Counters, error)
	limits   func() (MemoryLimits, error)
	// lost are aborted connections, pressed the times that TCP came under pressure.
	lost, pressed     counter
	lostIn, pressedIn window
}

// NewMemory makes the trigger; counters reads TcpExt and Sockstat.
func NewMemory(cfg MemoryConfig, counters func() (evidence.Counters, error), limits func() (MemoryLimits, error)) *Memory {
	return &Memory{cfg: cfg, counters: counters, limits: limits, lostIn: window{span: cfg.Window}, pressedIn: window{span: cfg.Window}}
}

// Name is "memory".
func (t *Memory) Name() string { return "memory" }

// Enabled tells whether the configuration wants it checked.
func (t *Memory) Enabled() bool { return t.cfg.Enabled }

// The kernel aborts an orphan with a RST and counts it as TCPAbortOnMemory when
// there are too many or memory is short (net/ipv4/tcp.c, tcp_check_oom).
const (
	abortOnMemory   = "TcpExt.TCPAbortOnMemory"
	memoryPressures = "TcpExt.TCPMemoryPressures"
	orphans         = "Sockstat.TCP.orphan"
	memoryPages     = "Sockstat.TCP.mem"
)

// Check measures both levels and the connections that were aborted.
func (t *Memory) Check(now time.Time, _ bool) (Reading, error) {
	c, err := t.counters()
	if err != nil {
		return Reading{}, fmt.Errorf("read memory of TCP: %w", err)
	}
	limits, err := t.limits()
	if err != nil {
		return Reading{}, fmt.Errorf("read limits of TCP's memory: %w", err)
	}
	aborts, ok := c.Values[abortOnMemory]
	if !ok {
		return Reading{}, fmt.Errorf("read memory of TCP: the kernel shows no %s", abortOnMemory)
	}
	t.lostIn.add(now, float64(t.lost.add(aborts)))
	t.pressedIn.add(now, float64(t.pressed.add(c.Values[memoryPressures])))
	return t.reading(now, c.Values, limits), nil
}

// level is one that is measured against a limit.
type level struct {
	name           string
	n, max         uint64
	share, allowed float64
}

func (t *Memory) reading(now time.Time, values map[string]uint64, limits MemoryLimits) Reading {
	levels := []level{
		{name: "orphaned sockets", n: values[orphans], max: limits.Orphans, allowed: t.cfg.Orphans},
		{name: "pages of TCP memory", n: values[memoryPages], max: limits.Pages, allowed: t.cfg.Memory},
	}
	for i := range levels {
		levels[i].share = ratio(float64(levels[i].n), float64(levels[i].max))
	}
	worst := levels[0]
	if levels[1].share/levels[1].allowed > worst.share/worst.allowed {
		worst = levels[1]
	}
	lossy, full := t.lostIn.sum >= 1, worst.share >= worst.allowed
	r := Reading{
		Firing: evidence.Firing{Trigger: t.Name(), Time: now, Unit: "1", Value: thousandth(worst.share), Threshold: worst.allowed,
			Expression: fmt.Sprintf("%s / maximum >= %g", worst.name, worst.allowed)},
		Over: full || lossy, Calm: !lossy && worst.share < worst.allowed*t.cfg.Rearm, Steady: !lossy,
	}
	if !r.Over {
		return r
	}
	if !full {
		r.Firing.Unit, r.Firing.Value, r.Firing.Threshold = "{connection}", tenth(t.lostIn.sum), 1
		r.Firing.Expression = fmt.Sprintf("TCPAbortOnMemory in %s >= 1", seconds(t.cfg.Window))
	}
	r.Firing.Reason = t.reason(levels)
	return r
}

func (t *Memory) reason(levels []level) string {
	var parts []string
	if n := t.lostIn.sum; n > 0 {
		parts = append(parts, fmt.Sprintf("%.0f connections aborted for want of memory in %s", n, seconds(t.cfg.Window)))
	}
	for _, l := range levels {
		if l.max > 0 {
			parts = append(parts, fmt.Sprintf("%d of %d %s (%.1f %%)", l.n, l.max, l.name, l.share*100))
		}
	}
	if n := t.pressedIn.sum; n > 0 {
		parts = append(parts, fmt.Sprintf("memory pressure began %.0f times", n))
	}
	return strings.Join(parts, "; ")
}
