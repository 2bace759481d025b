package evidence

import "time"

// TriggerState is one trigger as an operator wants to see it.
type TriggerState struct {
	Name string `json:"name"`
	// Namespace is as in Firing.
	Namespace string `json:"namespace,omitempty"`
	Enabled   bool   `json:"enabled"`
	// DryRun tells that it counts what it would have fired, and fires nothing.
	DryRun    bool    `json:"dry_run"`
	Value     float64 `json:"value"`
	Threshold float64 `json:"threshold"`
	Unit      string  `json:"unit"`
	// Firing tells that the storm that it fired for is going on.
	Firing     bool      `json:"firing"`
	LastFiring time.Time `json:"last_firing,omitzero"`
	// Suppressed counts the storms that did not fire because of a cool-down or of
	// what an hour may bring; WouldHaveFired those of a dry run.
	Suppressed     uint64 `json:"suppressed"`
	WouldHaveFired uint64 `json:"would_have_fired"`
	// Why says why it is unavailable; empty if it works.
	Why string `json:"why,omitempty"`
}
