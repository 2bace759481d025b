package evidence

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestRulesetSince(t *testing.T) {
	rule := func(handle, packets uint64) Rule {
		return Rule{Family: "inet", Table: "t", Chain: "c", Handle: handle, Packets: packets, Bytes: 60 * packets}
	}
	earlier := &Ruleset{Rules: []Rule{rule(1, 5), rule(2, 7), rule(3, 9)}}
	now := &Ruleset{Rules: []Rule{rule(1, 5), rule(2, 8), rule(3, 2), rule(4, 3)}}
	want := []RuleHits{{rule(2, 8), 1, 60}, {rule(3, 2), 2, 120}, {rule(4, 3), 3, 180}}
	if d := cmp.Diff(want, now.Since(earlier)); d != "" {
		t.Error(d)
	}
	if got := now.Since(nil); got != nil {
		t.Errorf("since nothing: %+v", got)
	}
	if r := (Rule{Action: "reject with tcp reset"}); !r.Resets() || (&Rule{Action: "drop"}).Resets() {
		t.Error("which rules reset")
	}
}

func TestSeries(t *testing.T) {
	at := time.Date(2026, 11, 23, 2, 13, 0, 0, time.UTC)
	s := Series{Lines: []Line{{"Tcp.OutRsts", []uint64{5, 5, 9}}, {"Sockstat.TCP.tw", []uint64{9, 3, 1}}, {"Tcp.InErrs", nil}}}
	for i := range 3 {
		s.Times = append(s.Times, at.Add(time.Duration(i)*time.Second))
	}
	for _, tt := range []struct {
		name     string
		from, to time.Duration
		want     uint64
	}{
		{"Tcp.OutRsts", 0, 2 * time.Second, 4},
		{"Tcp.OutRsts", -time.Hour, time.Hour, 4},
		{"Tcp.OutRsts", 1500 * time.Millisecond, 2500 * time.Millisecond, 4},
		{"Tcp.OutRsts", 0, time.Second, 0},
		{"Tcp.OutRsts", -2 * time.Hour, -time.Hour, 0},
		{"Sockstat.TCP.tw", 0, 2 * time.Second, 0},
		{"Tcp.InErrs", 0, time.Second, 0},
		{"Tcp.None", 0, time.Second, 0},
	} {
		if got := s.Growth(tt.name, at.Add(tt.from), at.Add(tt.to)); got != tt.want {
			t.Errorf("%s from %v to %v: %d, want %d", tt.name, tt.from, tt.to, got, tt.want)
		}
	}
	if s.Lines[0].Gauge() || !s.Lines[1].Gauge() {
		t.Error("which numbers are gauges")
	}
}

func TestTranslated(t *testing.T) {
	a, b, c := netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("10.0.0.2:2"), netip.MustParseAddrPort("10.0.0.3:3")
	if f := (TrackedFlow{Original: Tuple{a, b}, Reply: Tuple{b, a}}); f.Translated() {
		t.Error("plain flow is translated")
	}
	if f := (TrackedFlow{Original: Tuple{a, b}, Reply: Tuple{c, a}}); !f.Translated() {
		t.Error("destination is not translated")
	}
}

func TestPortsAndSysctls(t *testing.T) {
	if got := (&PortRange{First: 40000, Last: 40049, Reserved: 10}).Available(); got != 40 {
		t.Errorf("%d ports", got)
	}
	for _, tt := range []struct {
		s    Sysctl
		want bool
	}{{Sysctl{"a", "1", "1"}, false}, {Sysctl{"a", "0", "1"}, true}, {Sysctl{"a", "0", ""}, false}} {
		if tt.s.Changed() != tt.want {
			t.Errorf("%+v changed: %t", tt.s, !tt.want)
		}
	}
}
