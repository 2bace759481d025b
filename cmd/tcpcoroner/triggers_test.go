package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tcpcoroner/exporter/api"
)

// Every trigger may be named in dry_run, and nothing else.
func TestTriggerNames(t *testing.T) {
	d := &daemon{cfg: defaultConfig()}
	set, err := d.watches()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range set.States() {
		names = append(names, s.Name)
	}
	if got, want := strings.Join(names, " "), strings.Join(triggerNames, " "); got != want {
		t.Errorf("the daemon has the triggers\n%s, the configuration names\n%s", got, want)
	}
	c := defaultConfig()
	err = parseConfig([]byte("triggers:\n  dry_run: [drops, drips]\n"), &c)
	if err == nil || !strings.Contains(err.Error(), `"drips"`) || strings.Contains(err.Error(), `"drops"`) {
		t.Errorf("error %v", err)
	}
}

func TestWriteTriggers(t *testing.T) {
	var out strings.Builder
	err := writeTriggers(&out, []api.TriggerStatus{
		{Name: "resets", State: "armed", Value: 2, Threshold: 5, Unit: "{reset}", Fired: 3, LastFired: time.Now().Add(-time.Hour)},
		{Name: "drops", State: "armed", DryRun: true, WouldHaveFired: 2},
		{Name: "logs", State: "unavailable", Why: "no journalctl"},
	})
	text := strings.Join(strings.Fields(out.String()), " ")
	for _, want := range []string{"resets armed 2 5 0 reset 3 0 1 hour ago", "dry run: would have fired 2 times", "never no journalctl"} {
		if err != nil || !strings.Contains(text, want) {
			t.Errorf("error %v, no %q in\n%s", err, want, out.String())
		}
	}
}

// A capture is scored by the recorder's own rules.
func TestTriggersReplay(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.pcapng")
	if err := os.WriteFile(file, smallCapture(t), 0o600); err != nil {
		t.Fatal(err)
	}
	stdout, stderr, code := cli(t, "triggers", "replay", file)
	if code != exitOK || !strings.Contains(stdout, "connections ended; 0 firings") {
		t.Errorf("exit %d, %s%s", code, stdout, stderr)
	}
	if _, stderr, code = cli(t, "triggers", "replay", file+".not"); code != exitError || !strings.Contains(stderr, file+".not") {
		t.Errorf("exit %d, %s", code, stderr)
	}
}

// Lines that match are counted, quoted without their secrets, and handed over once.
func TestLineCounter(t *testing.T) {
	c := lineCounter{matches: func(line string) bool { return strings.Contains(line, "reset by peer") }}
	for _, line := range []string{"an ordinary line", "reset by peer, password=hunter2", "reset by peer", "reset by peer", "reset by peer"} {
		c.visit(line)
	}
	got, err := c.take()
	if err != nil || got.Count != 4 || len(got.Examples) != maxExamples || strings.Contains(strings.Join(got.Examples, ""), "hunter2") {
		t.Errorf("%+v, %v", got, err)
	}
	if again, _ := c.take(); again.Count != 0 {
		t.Errorf("handed over twice: %+v", again)
	}
}
