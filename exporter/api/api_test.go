package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tcpcoroner/evidence"
	"tcpcoroner/exporter/api"
)

// backend answers with what a test wants.
type backend struct {
	reason string
	kind   api.WebhookKind
	broken bool
}

func (b *backend) Status(context.Context) (api.Status, error) {
	return api.Status{Schema: api.SchemaStatus, Version: "1", Healthy: true}, nil
}

func (b *backend) Freeze(_ context.Context, reason string) (api.Frozen, error) {
	b.reason = reason
	return api.Frozen{ID: "01A", Joined: true}, nil
}

func (b *backend) Incidents(_ context.Context, limit int) ([]evidence.Summary, error) {
	if limit == 0 {
		return nil, nil
	}
	return []evidence.Summary{{ID: "01A"}}, nil
}

func (b *backend) Incident(_ context.Context, ref string) (*evidence.Incident, error) {
	if ref != "01A" {
		return nil, &api.Error{Code: api.CodeNotFound, Message: "incident \"" + ref + "\" is not known", Hint: "list them"}
	}
	return &evidence.Incident{ID: ref}, nil
}

func (b *backend) Capture(_ context.Context, ref string, w io.Writer) error {
	if ref != "01A" {
		return errors.New("disk on fire")
	}
	_, err := w.Write([]byte("pcapng"))
	if b.broken {
		return errors.New("half way")
	}
	return err
}

func serve(t *testing.T, b api.Backend) *api.Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "control.sock")
	s, err := api.Listen(socket, b)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("server ended with %v", err)
		}
	})
	return api.NewClient(socket)
}

func TestRoundTrips(t *testing.T) {
	b := &backend{}
	c := serve(t, b)
	if s, err := c.Status(t.Context()); err != nil || !s.Healthy || s.Schema != api.SchemaStatus {
		t.Errorf("status %+v, error %v", s, err)
	}
	if f, err := c.Freeze(t.Context(), "because"); err != nil || f.ID != "01A" || !f.Joined || b.reason != "because" {
		t.Errorf("freeze %+v, reason %q, error %v", f, b.reason, err)
	}
	if l, err := c.Incidents(t.Context(), 0); err != nil || l == nil || len(l) != 0 {
		t.Errorf("no incidents became %#v, error %v: must be an empty array", l, err)
	}
	if i, err := c.Incident(t.Context(), "01A"); err != nil || i.ID != "01A" {
		t.Errorf("incident %+v, error %v", i, err)
	}
	var out bytes.Buffer
	if err := c.Capture(t.Context(), "01A", &out); err != nil || out.String() != "pcapng" {
		t.Errorf("capture %q, error %v", out.String(), err)
	}
}

func TestErrorsCrossTheSocket(t *testing.T) {
	c := serve(t, &backend{})
	_, err := c.Incident(t.Context(), "a/b ?")
	var e *api.Error
	if !errors.As(err, &e) || e.Code != api.CodeNotFound || !strings.Contains(e.Error(), `"a/b ?" is not known: list them`) {
		t.Errorf("error %v", err)
	}
	err = c.Capture(t.Context(), "other", io.Discard)
	if !errors.As(err, &e) || e.Code != api.CodeInternal || e.Message != "disk on fire" {
		t.Errorf("error %v", err)
	}
}

// A capture that breaks in the middle must not look whole.
func TestBrokenCaptureIsAnError(t *testing.T) {
	c := serve(t, &backend{broken: true})
	if err := c.Capture(t.Context(), "01A", io.Discard); err == nil {
		t.Error("half a capture was taken for a whole one")
	}
}

func TestUnreachable(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "none.sock")
	_, err := api.NewClient(socket).Status(t.Context())
	if !errors.Is(err, api.ErrUnreachable) || !strings.Contains(err.Error(), socket) {
		t.Errorf("error %v", err)
	}
}

func TestListen(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := api.Listen(file, &backend{}); err == nil || !strings.Contains(err.Error(), "is not a socket") {
		t.Errorf("over a regular file: %v", err)
	}
	// A socket file that a killed daemon left behind.
	stale := filepath.Join(dir, "stale.sock")
	l, err := net.Listen("unix", stale)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	s, err := api.Listen(stale, &backend{})
	if err != nil {
		t.Fatalf("over a stale socket: %v", err)
	}
	if info, err := os.Stat(stale); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("socket mode %v, error %v, want 0660", info.Mode(), err)
	}
	if _, err := api.Listen(stale, &backend{}); err == nil || !strings.Contains(err.Error(), "another tcpcoroner") {
		t.Errorf("over a living one: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// The names are read by scripts: `tcpcoroner status --json`.
func TestRecorderStatusJSON(t *testing.T) {
	at := time.Unix(1790000000, 0).UTC()
	whole := api.RecorderStatus{
		Interfaces: []evidence.Interface{{Index: 2, Name: "eth0", LinkType: 1}},
		Namespaces: []evidence.Namespace{{Index: 1, Inode: 4026532000, Path: "/run/netns/blue"}},
		Seen:       1, Kept: 2, Sightings: 3, Skipped: 4, Dropped: 5, Evicted: 6, Resets: 7, Gaps: 8, GapsLost: 9,
		Level: "plain", LevelSince: at, LevelChanges: 10, CPUSeconds: 1.5, CPUBudget: 0.02,
		BufferBytes: 11, BudgetBytes: 12, RingBytes: 13, HeldPackets: 14, HeldBytes: 15, HeldSeconds: 16,
		PinnedBytes: 17, RevokedChunks: 18, HoldSeconds: 0.25, SelfTest: &api.SelfTestStatus{Time: at, OK: true, Text: "seen"},
	}
	tests := []struct {
		name string
		in   api.RecorderStatus
		want string
	}{
		{"all", whole, `{"interfaces":[{"index":2,"name":"eth0","link_type":1}],
			"namespaces":[{"index":1,"inode":4026532000,"path":"/run/netns/blue"}],
			"seen":1,"kept":2,"sightings":3,"skipped":4,"dropped_by_kernel":5,"evicted":6,"resets":7,"gaps":8,"gaps_lost":9,
			"level":"plain","level_since":"2026-09-21T14:13:20Z","level_changes":10,"cpu_seconds":1.5,"cpu_budget":0.02,
			"buffer_bytes":11,"budget_bytes":12,"ring_bytes":13,"held_packets":14,"held_bytes":15,"held_seconds":16,
			"pinned_bytes":17,"revoked_chunks":18,"hold_seconds":0.25,
			"self_test":{"time":"2026-09-21T14:13:20Z","ok":true,"text":"seen"}}`},
		{"nothing yet", api.RecorderStatus{Interfaces: []evidence.Interface{}, Level: "full"}, `{"interfaces":[],
			"seen":0,"kept":0,"sightings":0,"skipped":0,"dropped_by_kernel":0,"evicted":0,"resets":0,"gaps":0,"gaps_lost":0,
			"level":"full","level_changes":0,"cpu_seconds":0,"cpu_budget":0,
			"buffer_bytes":0,"budget_bytes":0,"ring_bytes":0,"held_packets":0,"held_bytes":0,"held_seconds":0,
			"pinned_bytes":0,"revoked_chunks":0,"hold_seconds":0}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := json.Marshal(tt.in)
			if err != nil {
				t.Fatal(err)
			}
			var want bytes.Buffer
			if err := json.Compact(&want, []byte(tt.want)); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want.String(), string(got)); diff != "" {
				t.Errorf("JSON (-want +got):\n%s", diff)
			}
			var back api.RecorderStatus
			if err := json.Unmarshal(got, &back); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.in, back); diff != "" {
				t.Errorf("round trip (-want +got):\n%s", diff)
			}
		})
	}
}
