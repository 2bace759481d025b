package main

import (
	"bytes"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tcpcoroner/evidence"
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

func healthyRecorder() api.RecorderStatus {
	return api.RecorderStatus{
		Interfaces: []evidence.Interface{{Index: 1, Name: "lo"}, {Index: 2, Name: "eth0"}},
		Seen:       1234567, Kept: 1234567, Evicted: 34567, Resets: 60,
		Level: "full", CPUSeconds: 0.42, CPUBudget: 0.02,
		BufferBytes: 34 << 20, BudgetBytes: 64 << 20, RingBytes: 16 << 20,
		HeldPackets: 1200000, HeldBytes: 11400000, HeldSeconds: 48.2,
		SelfTest: &api.SelfTestStatus{Time: time.Unix(1790000000, 0), OK: true, Text: "a reset on loopback was seen by capture and counters"},
	}
}

func TestWriteRecorder(t *testing.T) {
	tests := []struct {
		name   string
		change func(*api.RecorderStatus)
		want   string
	}{
		{"healthy", func(*api.RecorderStatus) {}, `interfaces  lo eth0
buffer      48 s held: 1,200,000 packets at 9.5 bytes; 34 MiB of 64 MiB used, 16 MiB of it by the ring
packets     1,234,567 seen, 1,234,567 kept, 0 dropped by the kernel, 34,567 evicted, 60 RST
level       full; uses 0.42 % of a core on average, 2 % allowed
self-test   ok at 2026-09-21 14:13:20 UTC: a reset on loopback was seen by capture and counters
`},
		{"in need", func(r *api.RecorderStatus) {
			r.Interfaces = append(r.Interfaces, evidence.Interface{Namespace: 1, Index: 2, Name: "eth0"})
			r.Namespaces = []evidence.Namespace{{Index: 1, Inode: 4026532000, Path: "/run/netns/blue"}}
			r.Sightings, r.Skipped, r.Dropped, r.PinnedBytes, r.RevokedChunks = 1000, 4321, 7, 8<<20, 2
			r.Level, r.LevelSince, r.LevelChanges = "control", time.Unix(1790000060, 0), 3
			r.Gaps, r.GapsLost = 5, 4328
			r.SelfTest.OK, r.SelfTest.Text = false, "a reset from 127.0.0.1:4711 was made, and the capture did not see it"
		}, `interfaces  lo eth0 eth0@blue
namespaces  blue
buffer      48 s held: 1,200,000 packets at 9.5 bytes; 34 MiB of 64 MiB used, 16 MiB of it by the ring, 8.0 MiB frozen; 2 frozen chunks made room for newer packets
packets     1,234,567 seen, 1,234,567 kept (1,000 seen again), 4,321 skipped, 7 dropped by the kernel, 34,567 evicted, 60 RST
level       control since 2026-09-21 14:14:20 UTC: only SYN, FIN, RST and ICMP are recorded; uses 0.42 % of a core on average, 2 % allowed; 3 changes
gaps        5 since the start, 4,328 packets lost in them
self-test   FAILED at 2026-09-21 14:13:20 UTC: a reset from 127.0.0.1:4711 was made, and the capture did not see it
`},
		{"no bound, no self-test, nothing held", func(r *api.RecorderStatus) {
			*r = api.RecorderStatus{Level: "full", BufferBytes: 22 << 20, BudgetBytes: 64 << 20, RingBytes: 16 << 20}
		}, `interfaces  none yet
buffer      0 s held: 0 packets; 22 MiB of 64 MiB used, 16 MiB of it by the ring
packets     0 seen, 0 kept, 0 dropped by the kernel, 0 evicted, 0 RST
level       full; uses 0.00 % of a core on average
`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := healthyRecorder()
			tt.change(&r)
			var out bytes.Buffer
			table, line := statusTable(&out)
			writeRecorder(line, &r, 100*time.Second)
			if err := table.Flush(); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, out.String()); diff != "" {
				t.Errorf("status (-want +got):\n%s", diff)
			}
		})
	}
}

func TestHarmLine(t *testing.T) {
	var s evidence.HarmSample
	if got, want := harm(&s), "0 of 0 resets"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	s.Kinds[evidence.HarmAfterFIN], s.Kinds[evidence.HarmScan] = 1200, 1200
	if got, want := harm(&s), "0 of 2,400 resets; harmless: after_fin 1,200, scan 1,200"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	s.Kinds[evidence.HarmMidstream], s.Kinds[evidence.HarmDataLost], s.Unscored = 1, 2, 4
	if got, want := harm(&s), "3 of 2,403 resets: data_lost 2, midstream 1; harmless: after_fin 1,200, scan 1,200; 4 were too odd to tell"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func harm(s *evidence.HarmSample) string {
	h := harmStatus(*s)
	return harmLine(&h)
}

// All kinds are there from the beginning, in the status and as metrics of one name.
func TestHarmKindsAreTold(t *testing.T) {
	s := evidence.HarmSample{Unscored: 3, Closes: 9}
	s.Kinds[evidence.HarmScan], s.Kinds[evidence.HarmRefused] = 5, 6
	h := harmStatus(s)
	if len(h.Harmful)+len(h.Harmless) != int(evidence.HarmKinds) || h.Harmless["scan"] != 5 || h.Harmful["refused"] != 6 || h.Unscored != 3 || h.Closes != 9 {
		t.Errorf("%+v", h)
	}
	for _, m := range harmMetrics(s) {
		counts := h.Harmless
		if m.Attributes["harmful"] == "true" {
			counts = h.Harmful
		}
		if n, ok := counts[m.Attributes["kind"]]; !ok || float64(n) != m.Value || !m.Counter || m.Name != "tcpcoroner.recorder.harm" {
			t.Errorf("%+v, want %d", m, n)
		}
		delete(counts, m.Attributes["kind"])
	}
	if len(h.Harmful)+len(h.Harmless) != 0 {
		t.Errorf("without a metric: %+v", h)
	}
}

func TestMeaning(t *testing.T) {
	if got := meaning("paused"); got != "a level that this release does not know" {
		t.Errorf("an unknown level means %q", got)
	}
}
