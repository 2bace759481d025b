package logs

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Each new message is told, a hostile one cut, and the end of the follower is an
// error only if nobody asked for it.
func TestFollow(t *testing.T) {
	program := filepath.Join(t.TempDir(), "journalctl")
	write := func(text string) {
		if err := os.WriteFile(program, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write("echo first; head -c 1000000 /dev/zero | tr '\\0' x; echo; echo last; exec sleep 60")
	ctx, cancel := context.WithCancel(t.Context())
	var got []string
	err := New(Config{Journalctl: program}).Follow(ctx, func(line string) {
		got = append(got, line)
		if line == "last" {
			cancel()
		}
	})
	if err != nil || len(got) != 3 || got[0] != "first" || got[1] != strings.Repeat("x", maxFollowed) {
		t.Errorf("%d lines, error %v", len(got), err)
	}
	write("echo no access >&2; exit 1")
	err = New(Config{Journalctl: program}).Follow(t.Context(), func(string) {})
	if err == nil || !strings.Contains(err.Error(), "no access") {
		t.Errorf("error %v", err)
	}
	err = New(Config{Journalctl: filepath.Join(t.TempDir(), "none")}).Follow(t.Context(), func(string) {})
	if err == nil {
		t.Error("no error without journalctl")
	}
}
