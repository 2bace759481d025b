package triggers

import (
	"fmt"
	"time"

	"tcpcoroner/evidence"
)

// PortsConfig is the configuration of the trigger "ports".
type PortsConfig struct {
	Enabled bool `yaml:"enabled"`
	// Usage is the share, from 0 to 1, of the ephemeral ports from one source to one
	// destination at which it fires, Rearm the share below which it is armed again.
	Usage float64 `yaml:"usage"`
	Rearm float64 `yaml:"rearm"`
}

// DefaultPorts fires at 90 %.
func DefaultPorts() PortsConfig { return PortsConfig{Enabled: true, Usage: 0.9, Rearm: 0.8} }

// Validate names the first field that cannot be.
func (c PortsConfig) Validate() error {
	switch {
	case !c.Enabled:
		return nil
	case !(c.Usage > 0 && c.Usage <= 1):
		return fmt.Errorf("ports.usage is %g: must be over 0 and at most 1", c.Usage)
	case !(c.Rearm >= 0 && c.Rearm < c.Usage):
		return fmt.Errorf("ports.rearm is %g: must be at least 0 and below ports.usage (%g)", c.Rearm, c.Usage)
	}
	return nil
}

// Ports fires when a source has nearly no port left for a destination: the next
// connect(2) fails with EADDRNOTAVAIL, and no packet tells.
type Ports struct {
	cfg  PortsConfig
	read func() (*evidence.PortRange, error)
}

// NewPorts makes the trigger; read tells who uses ephemeral ports, busiest first.
func NewPorts(cfg PortsConfig, read func() (*evidence.PortRange, error)) *Ports {
	return &Ports{cfg: cfg, read: read}
}

// Name is "ports".
func (t *Ports) Name() string { return "ports" }

// Enabled tells whether the configuration wants it checked.
func (t *Ports) Enabled() bool { return t.cfg.Enabled }

// Check measures the busiest user.
func (t *Ports) Check(now time.Time, _ bool) (Reading, error) {
	p, err := t.read()
	if err != nil {
		return Reading{}, fmt.Errorf("read use of ephemeral ports: %w", err)
	}
	f := evidence.Firing{Trigger: t.Name(), Time: now, Unit: "1", Threshold: t.cfg.Usage,
		Expression: fmt.Sprintf("ephemeral ports in use / available for one destination >= %g", t.cfg.Usage)}
	if p == nil || len(p.Uses) == 0 || p.Available() == 0 {
		return Reading{Firing: f, Calm: true, Steady: true}, nil
	}
	u := p.Uses[0]
	share := float64(u.Used) / float64(p.Available())
	f.Value = thousandth(share)
	r := Reading{Firing: f, Over: share >= t.cfg.Usage, Calm: share < t.cfg.Rearm, Steady: true}
	if r.Over {
		r.Firing.Reason = fmt.Sprintf("%d of %d ephemeral ports from %v to %v are in use (%.1f %%), %d of them in TIME-WAIT",
			u.Used, p.Available(), u.Source, u.Destination, share*100, u.TimeWait)
	}
	return r, nil
}
