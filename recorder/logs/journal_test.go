package logs

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"tcpcoroner/evidence"
	"tcpcoroner/internal/netlab"
)

func TestParseEntry(t *testing.T) {
	at := time.UnixMicro(1795399980500123).UTC()
	tests := []struct {
		name, json string
		want       evidence.LogLine
	}{
		{"a unit", `{"MESSAGE":"write: broken pipe","_TRANSPORT":"stdout","_SYSTEMD_UNIT":"app.service","_PID":"42","PRIORITY":"3","__REALTIME_TIMESTAMP":"1795399980500123"}`,
			evidence.LogLine{Source: evidence.LogJournal, Unit: "app.service", PID: 42, Level: "error", Text: "write: broken pipe", Reason: evidence.ReasonBrokenPipe}},
		{"the manager about a unit", `{"MESSAGE":"app.service: Main process exited, code=killed, status=9/KILL","_SYSTEMD_UNIT":"init.scope","UNIT":"app.service","_PID":"1","PRIORITY":"5","__REALTIME_TIMESTAMP":"1795399980500123"}`,
			evidence.LogLine{Source: evidence.LogJournal, Unit: "app.service", PID: 1, Level: "notice", Text: "app.service: Main process exited, code=killed, status=9/KILL", Reason: evidence.ReasonProcessDied}},
		{"a start", `{"MESSAGE":"Started app.service - The app.","UNIT":"app.service","_PID":"1","PRIORITY":"6","__REALTIME_TIMESTAMP":"1795399980500123"}`,
			evidence.LogLine{Source: evidence.LogJournal, Unit: "app.service", PID: 1, Level: "info", Text: "Started app.service - The app.", Reason: evidence.ReasonUnitStarted}},
		{"the kernel", `{"MESSAGE":"nf_conntrack: nf_conntrack: table full, dropping packet","_TRANSPORT":"kernel","PRIORITY":"4","_SOURCE_REALTIME_TIMESTAMP":"1795399980500123","__REALTIME_TIMESTAMP":"1795399980600000"}`,
			evidence.LogLine{Source: evidence.LogKernel, Level: "warning", Text: "nf_conntrack: nf_conntrack: table full, dropping packet", Party: evidence.PartyNetwork, Phase: evidence.PhaseConnect, Reason: evidence.ReasonTableFull}},
		{"not UTF-8", `{"MESSAGE":[98,97,100,255],"_PID":"42","__REALTIME_TIMESTAMP":"1795399980500123"}`,
			evidence.LogLine{Source: evidence.LogJournal, PID: 42, Text: "bad"}},
		{"too long", `{"MESSAGE":null,"_PID":"42","__REALTIME_TIMESTAMP":"1795399980500123"}`,
			evidence.LogLine{Source: evidence.LogJournal, PID: 42, Text: tooLong}},
		{"a field twice", `{"MESSAGE":["one","two"],"_PID":"42","__REALTIME_TIMESTAMP":"1795399980500123"}`,
			evidence.LogLine{Source: evidence.LogJournal, PID: 42, Text: "one"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.want.Time, tt.want.Precision = at, time.Microsecond
			got, message, err := parseEntry([]byte(tt.json), here)
			if err != nil {
				t.Fatal(err)
			}
			finish(message, &got)
			diffLine(t, tt.want, got)
		})
	}
	for _, bad := range []string{"{", `{"MESSAGE":"x"}`, `{"MESSAGE":"x","__REALTIME_TIMESTAMP":"soon"}`} {
		if _, _, err := parseEntry([]byte(bad), here); err == nil {
			t.Errorf("%s was taken for an entry", bad)
		}
	}
}

func TestJournalIsMissing(t *testing.T) {
	tests := []struct{ name, journalctl, why string }{
		{"not installed", "no-such-program-as-this", "not installed"},
		{"may not run", "/dev/null", "permission denied"},
		{"fails", script(t, "echo 'No journal files were found.' >&2; exit 1"), "No journal files were found."},
		{"writes something else", script(t, "echo '{'; echo '{}'; echo -- No entries --"), "not what journalctl"},
		{"writes without end", script(t, `exec yes '{"MESSAGE":"x","_PID":"42","__REALTIME_TIMESTAMP":"1795399980500123"}'`), "more than 100000 bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, missing := reader(t, Config{Journalctl: tt.journalctl, MaxBytes: 100000}).Around(t.Context(), window(Query{}))
			if len(missing) != 1 || !strings.Contains(missing[0].Why, tt.why) {
				t.Errorf("missing %+v, want %q", missing, tt.why)
			}
		})
	}
}

// A line of a mebibyte in the output costs one entry.
func TestJournalOfLongLines(t *testing.T) {
	entry := `{"MESSAGE":"econnreset","_PID":"42","__REALTIME_TIMESTAMP":"` + "1795435200000000" + `"}`
	j := script(t, "head -c 1048576 /dev/zero | tr '\\0' '{'; echo; echo '"+entry+"'")
	lines, missing := reader(t, Config{Journalctl: j}).Around(t.Context(), window(Query{PIDs: []int{42}}))
	if len(lines) != 1 || lines[0].Reason != evidence.ReasonReset || len(missing) != 1 {
		t.Errorf("lines %+v, missing %+v", lines, missing)
	}
}

// A journald of its own, in a mount namespace of its own, writes; the system's
// journal is not touched.
func TestRealJournal(t *testing.T) {
	netlab.NeedRoot(t)
	const daemon = "/lib/systemd/systemd-journald"
	for _, need := range []string{daemon, "journalctl"} {
		if _, err := exec.LookPath(need); err != nil {
			t.Skipf("needs %s", need)
		}
	}
	dir := t.TempDir()
	for _, d := range []string{"journal", "run"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-c",
		`mount --bind "$0/journal" /var/log/journal && mount --bind "$0/run" /run && exec `+daemon+" logs-test", dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	run(t, cmd)
	var c net.Conn
	eventually(t, "journald's socket", func() (err error) {
		c, err = net.Dial("unixgram", filepath.Join(dir, "run/systemd/journal.logs-test/socket"))
		return err
	})
	defer func() { _ = c.Close() }()
	from := time.Now().Add(-time.Second)
	for _, message := range []string{
		"read tcp 192.0.2.1:1->192.0.2.2:2: connection reset by peer token=hunter2", "plain",
		"192.0.2.9:4711 [23/Nov/2026:02:13:00.100] f b/s 0/0/400 3 sD 0/0/0/0/0 0/0", "bad \xff byte",
	} {
		if _, err := c.Write([]byte("PRIORITY=3\nMESSAGE=" + message + "\n")); err != nil {
			t.Fatal(err)
		}
	}
	stored, err := filepath.Glob(filepath.Join(dir, "journal/*"))
	if err != nil || len(stored) != 1 {
		t.Fatalf("journal directories %v, error %v", stored, err)
	}
	r := New(Config{JournalDir: stored[0], ProcRoot: t.TempDir(), MaxTime: 10 * time.Second})
	var lines []evidence.LogLine
	eventually(t, "all entries", func() error {
		var missing []evidence.Missing
		lines, missing = r.Around(t.Context(), Query{From: from, To: time.Now().Add(time.Second), PIDs: []int{os.Getpid()}})
		if len(lines) < 4 {
			return fmt.Errorf("%d lines, missing %+v", len(lines), missing)
		}
		return nil
	})
	want := []string{string(evidence.LogJournal), string(evidence.ReasonReset), "", "", string(evidence.LogHAProxy), string(evidence.ReasonServerTimeout)}
	got := []string{string(lines[0].Source), string(lines[0].Reason), string(lines[1].Reason), string(lines[3].Reason), string(lines[2].Source), string(lines[2].Reason)}
	if !slices.Equal(got, want) || strings.Contains(lines[0].Text, "hunter2") || lines[0].PID != os.Getpid() || lines[3].Text != "bad   byte" {
		t.Errorf("got %q\n%+v", got, lines)
	}
	early, missing := r.Around(t.Context(), Query{From: from.Add(-time.Hour), To: from.Add(-time.Minute), PIDs: []int{os.Getpid()}})
	if len(early) != 0 || len(missing) != 0 {
		t.Errorf("an hour before: %+v, missing %+v", early, missing)
	}
}
