package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"tcpcoroner/internal/netlab"
)

// TestBadInput: each mistake gives one line that names the thing and the fix,
// and the exit code that tcpcoroner(1) documents.
func TestBadInput(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	none := filepath.Join(dir, "none.sock")
	made := 0
	runWith := func(cfg string) []string {
		made++
		return []string{"run", "--check", "--config", file(fmt.Sprintf("c%d.yaml", made), cfg)}
	}
	tests := []struct {
		name string
		args []string
		code int
		want []string
	}{
		{"unknown key", runWith("triggers:\n  resets:\n    treshold: 3\n"), 2, []string{".yaml", "line 3", `"treshold"`, "tcpcoroner.yaml(5)"}},
		{"bad duration", runWith("window:\n  before: 30\n"), 2, []string{".yaml", "line 2", "window.before", `"30"`, "30s"}},
		{"bad size", runWith("recorder:\n  memory: lots\n"), 2, []string{"line 2", "recorder.memory", `"lots"`, "64MiB"}},
		{"bad number", runWith("triggers:\n  resets:\n    threshold: many\n"), 2, []string{"line 3", "threshold"}},
		{"out of bounds", runWith("recorder:\n  memory: 1KiB\n"), 2, []string{"recorder.memory is 1.0 KiB", "from 16MiB"}},
		{"two out of bounds", runWith("window:\n  after: 1ms\nstore:\n  max_age: 1s\n"), 2, []string{"window.after", "store.max_age"}},
		{"trigger out of bounds", runWith("triggers:\n  conntrack:\n    usage: 95\n"), 2, []string{"triggers.conntrack.usage is 95"}},
		{"not YAML", runWith("a: [\n"), 2, []string{"line 1"}},
		{"no such file", []string{"run", "--config", filepath.Join(dir, "nothing")}, 2, []string{"nothing", "--config"}},
		{"unknown verb", []string{"frezze"}, 2, []string{"frezze"}},
		{"unknown flag", []string{"status", "--jsonn"}, 2, []string{"--jsonn", "tcpcoroner status --help"}},
		{"missing id", []string{"show"}, 2, []string{"show ID|last"}},
		{"bad limit", []string{"incidents", "--limit", "-1"}, 2, []string{"--limit -1"}},
		{"daemon not running", []string{"status", "--socket", none}, 4, []string{none, "tcpcoroner run"}},
		{"pull without a daemon", []string{"pull", "last", "-o", "-", "--socket", none}, 4, []string{none}},
		{"database directory is a file", []string{"run", "--config", file("d.yaml", ""), "--socket", none, "--data", file("plain", "")}, 1, []string{filepath.Join(dir, "plain"), "--data"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, stderr, code := cli(t, tt.args...)
			checkComplaint(t, stderr, code, tt.code, tt.want)
		})
	}
}

// checkComplaint wants one line that holds all of want.
func checkComplaint(t *testing.T, stderr string, code, wantCode int, want []string) {
	t.Helper()
	if code != wantCode {
		t.Errorf("exit code %d, want %d", code, wantCode)
	}
	if n := strings.Count(strings.TrimSpace(stderr), "\n"); n != 0 {
		t.Errorf("%d lines, want one:\n%s", n+1, stderr)
	}
	for _, w := range want {
		if !strings.Contains(stderr, w) {
			t.Errorf("%q does not name %q", strings.TrimSpace(stderr), w)
		}
	}
}

func TestSecondDaemon(t *testing.T) {
	netlab.NeedRoot(t)
	p := startDaemon(t, netlab.NewNS(t), t.TempDir(), nil)
	_, stderr, code := cli(t, "run", "--config", os.DevNull, "--data", p.data, "--socket", filepath.Join(t.TempDir(), "s"))
	checkComplaint(t, stderr, code, exitError, []string{p.data, "another tcpcoroner", "--data"})
	_, stderr, code = cli(t, "run", "--config", os.DevNull, "--data", t.TempDir(), "--socket", p.socket)
	checkComplaint(t, stderr, code, exitError, []string{p.socket, "another tcpcoroner", "--socket"})
	if _, err := p.client().Status(t.Context()); err != nil {
		t.Errorf("the first daemon suffered: %v", err)
	}
}

func TestUnknownIncident(t *testing.T) {
	netlab.NeedRoot(t)
	p := startDaemon(t, netlab.NewNS(t), t.TempDir(), nil)
	for _, verb := range [][]string{{"show", "last"}, {"show", "01J"}, {"pull", "01J", "-o", "-"}} {
		_, stderr, code := cli(t, append(verb, "--socket", p.socket)...)
		checkComplaint(t, stderr, code, exitNotFound, []string{"incident", "tcpcoroner "})
	}
}

// TestMissingCapability starts the daemon as nobody.
func TestMissingCapability(t *testing.T) {
	netlab.NeedRoot(t)
	dir, err := os.MkdirTemp("", "tcpcoroner-nobody-") // t.TempDir is closed to others
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	const nobody = 65534
	binary := filepath.Join(dir, "tcpcoroner")
	text, err := os.ReadFile(self(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(binary, text, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, "run", "--config", os.DevNull, "--data", filepath.Join(dir, "data"), "--socket", filepath.Join(dir, "s"))
	cmd.Env = append(os.Environ(), asProgram+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	_ = cmd.Run()
	checkComplaint(t, stderr.String(), cmd.ProcessState.ExitCode(), exitError, []string{"CAP_NET_RAW"})
}
