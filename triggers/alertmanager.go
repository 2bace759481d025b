package triggers

import (
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"tcpcoroner/evidence"
)

// maxText bounds what is kept of a text that another program wrote, in bytes.
const maxText = 300

// alertmanager is the part of a webhook body, version 4, that is used
// (https://prometheus.io/docs/alerting/latest/configuration/#webhook_config).
type alertmanager struct {
	Status string  `json:"status"`
	Alerts []alert `json:"alerts"`
}

type alert struct {
	Status      string            `json:"status"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
	StartsAt    time.Time         `json:"startsAt"`
}

// ParseAlertmanager reads the body of an Alertmanager webhook: what each alert that
// is firing asks for, in their order. Resolved ones ask for nothing.
func ParseAlertmanager(body []byte) ([]Asked, error) {
	const fix = "send what Alertmanager's webhook_config sends"
	var m alertmanager
	if err := json.Unmarshal(body, &m); err != nil {
		return nil, fmt.Errorf("parse webhook body: %w: %s", err, fix)
	}
	if len(m.Alerts) == 0 {
		return nil, errors.New("parse webhook body: it has no alerts: " + fix)
	}
	var all []Asked
	for i := range m.Alerts {
		if a := &m.Alerts[i]; cmp.Or(a.Status, m.Status) == "firing" {
			all = append(all, Asked{Key: keyOf(fmt.Sprint(a.Labels)), Began: a.StartsAt, Firing: evidence.Firing{
				Trigger: NameWebhook, Unit: "{alert}", Value: 1, Threshold: 1, Expression: "an alert is firing", Reason: a.text(),
			}})
		}
	}
	return all, nil
}

// ParseAsked reads the body of a program that is no Alertmanager: a JSON object
// with a reason, and maybe a note.
func ParseAsked(body []byte) ([]Asked, error) {
	const fix = `send {"reason": "...", "note": "..."}`
	var ask struct {
		Reason string `json:"reason"`
		Note   string `json:"note"`
	}
	if err := json.Unmarshal(body, &ask); err != nil {
		return nil, fmt.Errorf("parse webhook body: %w: %s", err, fix)
	}
	reason, note := short(ask.Reason), short(ask.Note)
	if reason == "" {
		return nil, errors.New("parse webhook body: it has no reason: " + fix)
	}
	text := reason
	if note != "" {
		text += " (" + note + ")"
	}
	return []Asked{{Key: keyOf(reason), Firing: evidence.Firing{
		Trigger: NameWebhook, Unit: "{alert}", Value: 1, Threshold: 1, Expression: "asked for by another program", Reason: text,
	}}}, nil
}

// keyOf shortens what names a thing: bodies are long, and many keys are remembered.
func keyOf(name string) string {
	sum := sha256.Sum256([]byte(name))
	return string(sum[:16])
}

// text is an alert in a few words: name, labels in their order, summary.
func (a *alert) text() string {
	text := cmp.Or(a.Labels["alertname"], "alert without a name")
	var labels []string
	for _, name := range slices.Sorted(maps.Keys(a.Labels)) {
		if name != "alertname" {
			labels = append(labels, fmt.Sprintf("%s=%q", name, a.Labels[name]))
		}
	}
	if labels != nil {
		text += " {" + strings.Join(labels, ", ") + "}"
	}
	if about := cmp.Or(a.Annotations["summary"], a.Annotations["description"]); about != "" {
		text += ": " + about
	}
	return short(text)
}

// short makes one line of a text, of bounded length.
func short(text string) string {
	text = strings.ToValidUTF8(strings.Join(strings.Fields(text), " "), "")
	if len(text) > maxText {
		text = strings.ToValidUTF8(text[:maxText], "") + "..."
	}
	return text
}
