package triggers

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"tcpcoroner/evidence"
)

// NameWebhook is the trigger of a freeze that another program asked for.
const NameWebhook = "webhook"

// ErrNotFiring tells that a body says nothing new: all its alerts are resolved.
var ErrNotFiring = errors.New("no alert is firing")

// maxText bounds what is kept of a text that another program wrote, in bytes.
const maxText = 300

// alertmanager is the part of a webhook body, version 4, that is used
// (https://prometheus.io/docs/alerting/latest/configuration/#webhook_config).
type alertmanager struct {
	Status string `json:"status"`
	Alerts []struct {
		Status      string            `json:"status"`
		Labels      map[string]string `json:"labels"`
		Annotations map[string]string `json:"annotations"`
		StartsAt    time.Time         `json:"startsAt"`
	} `json:"alerts"`
}

// ParseAlertmanager reads the body of an Alertmanager webhook. Time is when the
// first of the firing alerts began, which is often before its news comes; the zero
// value if it does not say. The error is ErrNotFiring if all are resolved.
func ParseAlertmanager(body []byte) (evidence.Firing, error) {
	var m alertmanager
	if err := json.Unmarshal(body, &m); err != nil {
		return evidence.Firing{}, fmt.Errorf("parse webhook body: %w: send what Alertmanager's webhook_config sends", err)
	}
	f := evidence.Firing{Trigger: NameWebhook, Unit: "{alert}", Threshold: 1, Expression: "alerts firing >= 1"}
	var reasons []string
	for _, a := range m.Alerts {
		if cmp.Or(a.Status, m.Status) != "firing" {
			continue
		}
		f.Value++
		if f.Time.IsZero() || !a.StartsAt.IsZero() && a.StartsAt.Before(f.Time) {
			f.Time = a.StartsAt
		}
		reasons = append(reasons, alertText(a.Labels, a.Annotations))
	}
	switch {
	case len(m.Alerts) == 0:
		return evidence.Firing{}, errors.New("parse webhook body: it has no alerts: send what Alertmanager's webhook_config sends")
	case f.Value == 0:
		return evidence.Firing{}, ErrNotFiring
	}
	reasons = slices.Compact(reasons)
	f.Reason = strings.Join(reasons[:min(len(reasons), maxNamed)], "; ")
	if n := len(reasons) - maxNamed; n > 0 {
		f.Reason += fmt.Sprintf("; and %d more alerts", n)
	}
	return f, nil
}

// alertText is one alert in a few words: name, instance, summary.
func alertText(labels, annotations map[string]string) string {
	text := cmp.Or(labels["alertname"], "alert without a name")
	if instance := labels["instance"]; instance != "" {
		text += " on " + instance
	}
	if about := cmp.Or(annotations["summary"], annotations["description"]); about != "" {
		text += ": " + about
	}
	text = strings.ToValidUTF8(strings.Join(strings.Fields(text), " "), "")
	if len(text) > maxText {
		text = strings.ToValidUTF8(text[:maxText], "") + "..."
	}
	return text
}
