package triggers

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"tcpcoroner/evidence"
)

// NameWebhook is the trigger of a freeze that another program asked for.
const NameWebhook = "webhook"

// ErrWebhookDisabled tells that the configuration does not want webhooks.
var ErrWebhookDisabled = errors.New("the trigger webhook is disabled")

// WebhookConfig is the configuration of the trigger "webhook".
type WebhookConfig struct {
	Enabled bool `yaml:"enabled"`
	// Listen is a loopback address and port, or "none"; TokenFile holds what a caller
	// there must know.
	Listen    string `yaml:"listen"`
	TokenFile string `yaml:"token_file"`
}

// DefaultWebhook takes webhooks on the control socket only.
func DefaultWebhook() WebhookConfig {
	return WebhookConfig{Enabled: true, Listen: "none", TokenFile: "/etc/tcpcoroner/webhook.token"}
}

// Validate names the first field that cannot be.
func (c WebhookConfig) Validate() error {
	if c.Enabled && c.Listen != "none" && c.TokenFile == "" {
		return fmt.Errorf("webhook.token_file is empty: webhook.listen %s needs one", c.Listen)
	}
	return nil
}

// Asked is one firing that another program asks for.
type Asked struct {
	// Key names the thing, however often it is told; Began is when it began, the
	// zero value if nobody says.
	Key    string
	Began  time.Time
	Firing evidence.Firing
}

// Webhook is the trigger that other programs pull, through Set.Offer. It measures
// nothing itself.
type Webhook struct {
	cfg WebhookConfig
	// told is what fired, by key.
	told  map[string]told
	since uint64 // asked since the last check
	asked window
}

type told struct{ began, fired time.Time }

const (
	// webhookWindow is what its state counts over.
	webhookWindow = time.Minute
	// maxTold bounds what is remembered of things that fired. The oldest make room.
	maxTold = 4096
)

// NewWebhook makes the trigger.
func NewWebhook(cfg WebhookConfig) *Webhook {
	return &Webhook{cfg: cfg, told: map[string]told{}, asked: window{span: webhookWindow}}
}

// Name is "webhook".
func (t *Webhook) Name() string { return NameWebhook }

// Enabled tells whether the configuration wants it.
func (t *Webhook) Enabled() bool { return t.cfg.Enabled }

// Check counts what was asked for in the last minute.
func (t *Webhook) Check(now time.Time, _ bool) (Reading, error) {
	t.asked.add(now, float64(t.since))
	t.since = 0
	return Reading{Calm: true, Firing: evidence.Firing{Trigger: t.Name(), Time: now, Unit: "{alert}", Value: t.asked.sum, Threshold: 1}}, nil
}

// news tells whether a thing may fire: an alert is told again and again while it
// lasts, and fires once; one that comes back has a cool-down like every trigger.
func (t *Webhook) news(now time.Time, a *Asked, coolDown time.Duration) bool {
	was, known := t.told[a.Key]
	return !known || now.Sub(was.fired) >= coolDown && (a.Began.IsZero() || !a.Began.Equal(was.began))
}

func (t *Webhook) remember(now time.Time, a *Asked) {
	if _, known := t.told[a.Key]; !known && len(t.told) >= maxTold {
		t.forgetOldest()
	}
	t.told[a.Key] = told{began: a.Began, fired: now}
}

func (t *Webhook) forgetOldest() {
	oldest, found := "", false
	for key, x := range t.told {
		if !found || x.fired.Before(t.told[oldest].fired) {
			oldest, found = key, true
		}
	}
	delete(t.told, oldest)
}

// Offer fires what other programs ask for, under the bounds of all triggers: each
// thing once while it lasts, then the cool-down; the incidents of an hour; dry run.
// Of one call only the first begins an incident, the others join it. What is not
// fired is counted as suppressed. It is safe for concurrent use.
func (s *Set) Offer(now time.Time, asked []Asked) (fired []evidence.Firing, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.watches, func(w watch) bool { return w.state.Name == NameWebhook })
	if i < 0 || !s.watches[i].state.Enabled {
		return nil, ErrWebhookDisabled
	}
	w := &s.watches[i]
	t, ok := w.trigger.(*Webhook)
	if !ok {
		return nil, ErrWebhookDisabled
	}
	joins := s.ongoing()
	for i := range asked {
		a := &asked[i]
		t.since++
		if !t.news(now, a, s.cfg.CoolDown) {
			w.state.Suppressed++
			continue
		}
		admitted := s.admit(w, now, joins)
		if admitted {
			joins = true
			fired = append(fired, a.Firing)
		}
		if admitted || w.state.DryRun {
			t.remember(now, a)
		}
	}
	return fired, nil
}
