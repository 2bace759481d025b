package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"tcpcoroner/evidence"
	"tcpcoroner/exporter/api"
	"tcpcoroner/internal/netlab"
	"tcpcoroner/internal/scenes"
)

// asProgram makes the test binary be tcpcoroner, so that tests start real
// daemons: in a namespace, without privileges, to be killed.
const asProgram = "TCPCORONER_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) == "1" {
		main()
	}
	scenes.Main()
	os.Exit(m.Run())
}

func self(t testing.TB) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// process is a daemon under test.
type process struct {
	*exec.Cmd
	socket, data string
	log          *watched
}

// startDaemon starts a daemon in a namespace (the host's if nil) and waits until
// it records.
func startDaemon(t testing.TB, ns *netlab.NS, dir string, env []string, args ...string) *process {
	t.Helper()
	p := &process{socket: filepath.Join(dir, "control.sock"), data: filepath.Join(dir, "data"), log: newWatched()}
	args = append([]string{"run", "--socket", p.socket, "--data", p.data}, args...)
	if ns != nil {
		p.Cmd = ns.Command(context.Background(), self(t), args...)
	} else {
		p.Cmd = exec.Command(self(t), args...)
	}
	return p.recording(t, env)
}

// recording starts it, and returns when it records.
func (p *process) recording(t testing.TB, env []string) *process {
	t.Helper()
	p.Env = append(append(os.Environ(), asProgram+"=1"), env...)
	p.Stderr = p.log
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	if !p.log.wait("msg=recording", 20*time.Second) {
		p.kill()
		t.Fatalf("%s does not record:\n%s", p.Args, p.log)
	}
	return p
}

// kill is kill -9; a second one does nothing.
func (p *process) kill() {
	if p.ProcessState == nil {
		_ = p.Process.Kill()
		_ = p.Wait()
	}
}

// stop ends the daemon as a service manager does.
func (p *process) stop(t testing.TB) {
	t.Helper()
	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(); err != nil {
		t.Errorf("the daemon ended with %v:\n%s", err, p.log)
	}
}

func (p *process) client() *api.Client { return api.NewClient(p.socket) }

// awaitIncidents waits until n incidents are stored.
func (p *process) awaitIncidents(t testing.TB, n int, limit time.Duration) []evidence.Summary {
	t.Helper()
	var list []evidence.Summary
	await(t, limit, "incidents", func() bool {
		var err error
		if list, err = p.client().Incidents(t.Context(), 0); err != nil {
			t.Fatalf("list incidents: %v\n%s", err, p.log)
		}
		return len(list) >= n
	})
	return list
}

// await polls a condition that has no event to wait for.
func await(t testing.TB, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	end := time.After(limit)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("no %s within %v", what, limit)
		}
	}
}

// cli runs a command line in this process.
func cli(t testing.TB, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), &env{stdout: &out, stderr: &errs, getenv: func(string) string { return "" }}, args)
	return out.String(), errs.String(), code
}

// cliJSON runs a command with --json and decodes what it prints.
func cliJSON(t testing.TB, into any, args ...string) {
	t.Helper()
	out, errs, code := cli(t, append(args, "--json")...)
	if code != 0 {
		t.Fatalf("%v: exit %d: %s", args, code, errs)
	}
	if err := json.Unmarshal([]byte(out), into); err != nil {
		t.Fatalf("%v printed %q: %v", args, out, err)
	}
}

// watched is a log that a test can wait on.
type watched struct {
	mu    sync.Mutex
	text  strings.Builder
	grown chan struct{}
}

func newWatched() *watched { return &watched{grown: make(chan struct{}, 1)} }

func (w *watched) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	select {
	case w.grown <- struct{}{}:
	default:
	}
	return w.text.Write(b)
}

func (w *watched) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.String()
}

func (w *watched) wait(text string, limit time.Duration) bool {
	end := time.After(limit)
	for !strings.Contains(w.String(), text) {
		select {
		case <-w.grown:
		case <-end:
			return false
		}
	}
	return true
}

// lines calls f for each line of r.
func lines(r io.Reader, f func(string)) {
	for s := bufio.NewScanner(r); s.Scan(); {
		f(s.Text())
	}
}
