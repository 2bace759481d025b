package evidence

import (
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestLogLineJSON(t *testing.T) {
	want := LogLine{
		Time: time.Date(2026, 11, 23, 2, 13, 0, 5e8, time.UTC), Source: LogHAProxy, PID: 7, Text: "sD--",
		Party: PartyServer, Phase: PhaseData, Reason: ReasonServerTimeout,
		Client: netip.MustParseAddrPort("192.0.2.1:4711"), Status: 504, Flags: "sD--",
		Timers: []LogTimer{{"Ta", time.Minute}},
	}
	b, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var got LogLine
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.AddrPort{})); diff != "" {
		t.Errorf("round trip (-want +got):\n%s", diff)
	}
	var keys map[string]any
	if err := json.Unmarshal(b, &keys); err != nil {
		t.Fatal(err)
	}
	for _, absent := range []string{"upstream", "local", "began", "trace_id", "unit"} {
		if _, ok := keys[absent]; ok {
			t.Errorf("what the line does not tell is written: %q", absent)
		}
	}
}

func TestLogLineNames(t *testing.T) {
	flow := NewFlowKey(netip.MustParseAddrPort("192.0.2.1:4711"), netip.MustParseAddrPort("192.0.2.2:80"))
	tests := []struct {
		name string
		line LogLine
		want bool
	}{
		{"the client", LogLine{Client: netip.MustParseAddrPort("192.0.2.1:4711")}, true},
		{"another port", LogLine{Client: netip.MustParseAddrPort("192.0.2.1:4712")}, false},
		{"only the address", LogLine{Client: netip.MustParseAddrPort("192.0.2.1:0")}, false},
		{"a role untold", LogLine{Addresses: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.2:80")}}, true},
		{"nothing", LogLine{}, false},
	}
	for _, tt := range tests {
		if got := tt.line.Names(flow); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestLogLineAround(t *testing.T) {
	at := time.Date(2026, 11, 23, 2, 13, 0, 0, time.UTC)
	l := LogLine{Time: at, Precision: time.Second}
	if !l.Around(at.Add(900*time.Millisecond), at.Add(2*time.Second)) {
		t.Error("a line that tells whole seconds is as late as the second's end")
	}
	if l.Around(at.Add(1100*time.Millisecond), at.Add(2*time.Second)) || l.Around(at.Add(-time.Minute), at.Add(-time.Nanosecond)) {
		t.Error("a line outside the window is counted in")
	}
}
