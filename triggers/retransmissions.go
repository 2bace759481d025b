package triggers

import (
	"fmt"
	"time"

	"tcpcoroner/evidence"
)

// RetransmissionsConfig is the configuration of the trigger "retransmissions".
type RetransmissionsConfig struct {
	Enabled bool `yaml:"enabled"`
	// Window is the sliding window in which segments are counted.
	Window time.Duration `yaml:"window"`
	// Share is the part, from 0 to 1, of all segments sent that were sent again, at
	// which it fires if that is Factor times the usual part.
	Share  float64 `yaml:"share"`
	Factor float64 `yaml:"factor"`
	// Least is the number of retransmissions in the window below which it never
	// fires.
	Least float64 `yaml:"least"`
}

// DefaultRetransmissions fires at 5 % and 50 segments sent again in 10 s if that is
// four times the usual part.
func DefaultRetransmissions() RetransmissionsConfig {
	return RetransmissionsConfig{Enabled: true, Window: 10 * time.Second, Share: 0.05, Factor: 4, Least: 50}
}

// Validate names the first field that cannot be.
func (c RetransmissionsConfig) Validate() error {
	switch {
	case !c.Enabled:
		return nil
	case c.Window < minWindow || c.Window > maxWindow:
		return windowError("retransmissions.window", c.Window)
	case !(c.Share > 0 && c.Share <= 1):
		return fmt.Errorf("retransmissions.share is %g: must be over 0 and at most 1", c.Share)
	case !(c.Factor >= 1):
		return fmt.Errorf("retransmissions.factor is %g: must be at least 1", c.Factor)
	case !(c.Least >= 1):
		return fmt.Errorf("retransmissions.least is %g: must be at least 1", c.Least)
	}
	return nil
}

// Retransmissions fires when far more segments than usual have to be sent again.
type Retransmissions struct {
	cfg                    RetransmissionsConfig
	counters               func() (evidence.Counters, error)
	again, sent            counter
	againIn, sentIn        window
	usualAgain, usualSends baseline
}

// NewRetransmissions makes the trigger; counters reads the group Tcp.
func NewRetransmissions(cfg RetransmissionsConfig, counters func() (evidence.Counters, error)) *Retransmissions {
	return &Retransmissions{cfg: cfg, counters: counters, againIn: window{span: cfg.Window}, sentIn: window{span: cfg.Window}}
}

// Name is "retransmissions".
func (t *Retransmissions) Name() string { return "retransmissions" }

// Enabled tells whether the configuration wants it checked.
func (t *Retransmissions) Enabled() bool { return t.cfg.Enabled }

// What is measured, of RFC 4022: tcpOutSegs leaves out segments that contain only
// retransmitted bytes, so that the part may be over 1.
const (
	retransSegs = "Tcp.RetransSegs"
	outSegs     = "Tcp.OutSegs"
)

// Check measures the part of segments that were sent again.
func (t *Retransmissions) Check(now time.Time, storm bool) (Reading, error) {
	c, err := t.counters()
	if err != nil {
		return Reading{}, fmt.Errorf("read retransmission counters: %w", err)
	}
	again, ok := c.Values[retransSegs]
	sent, ok2 := c.Values[outSegs]
	if !ok || !ok2 {
		return Reading{}, fmt.Errorf("read retransmission counters: the kernel shows no %s and %s", retransSegs, outSegs)
	}
	leftAgain := t.againIn.add(now, float64(t.again.add(again)))
	leftSent := t.sentIn.add(now, float64(t.sent.add(sent)))
	if !storm {
		t.usualAgain.learn(leftAgain, t.cfg.Window)
		t.usualSends.learn(leftSent, t.cfg.Window)
	}
	return t.reading(now), nil
}

func (t *Retransmissions) reading(now time.Time) Reading {
	share := ratio(t.againIn.sum, t.sentIn.sum)
	usual := ratio(t.usualAgain.value, t.usualSends.value)
	limit := max(t.cfg.Share, t.cfg.Factor*usual)
	enough := t.againIn.sum >= t.cfg.Least
	r := Reading{
		Firing: evidence.Firing{
			Trigger: t.Name(), Time: now, Unit: "1",
			Expression: fmt.Sprintf("retransmitted part of segments in %s >= %g and >= %g x baseline, of %g at least",
				seconds(t.cfg.Window), t.cfg.Share, t.cfg.Factor, t.cfg.Least),
			Value: thousandth(share), Threshold: thousandth(limit), Baseline: thousandth(usual),
		},
		Over: enough && share >= limit, Calm: !enough || share < limit/2,
	}
	if r.Over {
		r.Firing.Reason = fmt.Sprintf("%.0f of %.0f segments sent in %s were retransmissions (%.1f %%): the threshold is %.1f %%, usual are %.1f %%",
			t.againIn.sum, t.sentIn.sum, seconds(t.cfg.Window), share*100, limit*100, usual*100)
	}
	return r
}
