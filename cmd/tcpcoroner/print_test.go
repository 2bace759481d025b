package main

import (
	"testing"

	"tcpcoroner/exporter/api"
)

func TestTriggerLine(t *testing.T) {
	tests := []struct {
		want string
		in   api.TriggerStatus
	}{
		{"armed: 3 of 20 resets, usual 1.5; fired 0", api.TriggerStatus{State: "armed", Value: 3, Threshold: 20, Baseline: 1.5, Unit: "{reset}"}},
		{"firing: 96 % of at most 95 %; fired 1, suppressed 2", api.TriggerStatus{State: "firing", Value: 0.96, Threshold: 0.95, Unit: "1", Fired: 1, Suppressed: 2}},
		{"unavailable; fired 0; no module", api.TriggerStatus{State: "unavailable", Why: "no module"}},
	}
	for _, tt := range tests {
		if got := triggerLine(&tt.in); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
}
