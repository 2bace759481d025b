package api_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tcpcoroner/evidence"
	"tcpcoroner/exporter/api"
)

// backend answers with what a test wants.
type backend struct {
	reason string
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
