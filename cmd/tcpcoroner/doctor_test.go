package main

import (
	"bytes"
	"context"
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tcpcoroner/evidence"
	"tcpcoroner/internal/netlab"
)

// examine runs doctor and decodes what it prints.
func examine(t *testing.T, args ...string) (x examination, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	e := &env{stdout: &out, stderr: &errs, getenv: func(string) string { return "" }}
	code = run(context.Background(), e, append([]string{"doctor", "--json"}, args...))
	if err := json.Unmarshal(out.Bytes(), &x); err != nil {
		t.Fatalf("%v: %s%s", err, &out, &errs)
	}
	return x, code
}

func stateOf(x *examination, name string) string {
	i := slices.IndexFunc(x.Checks, func(c check) bool { return c.Check == name })
	if i < 0 {
		return "absent"
	}
	return x.Checks[i].State
}

// Without a daemon it tries for itself; a store that is not there is a failure.
func TestDoctorAlone(t *testing.T) {
	netlab.NeedRoot(t)
	dir := t.TempDir()
	socket := filepath.Join(dir, "none.sock")
	x, code := examine(t, "--socket", socket, "--data", dir)
	if code != exitOK || !x.OK {
		t.Errorf("exit code %d: %+v", code, x)
	}
	for name, want := range map[string]string{"daemon": checkLess, "capture": checkOK, "store": checkOK} {
		if got := stateOf(&x, name); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	if x.Kernel.Name == "" || len(x.Kernel.Hooks) == 0 && x.Kernel.Why == "" {
		t.Errorf("nothing is said of the kernel: %+v", x.Kernel)
	}
	x, code = examine(t, "--socket", socket, "--data", filepath.Join(dir, "none"))
	if code != exitProblems || x.OK || stateOf(&x, "store") != checkFail {
		t.Errorf("exit code %d with a store that is not there: %+v", code, x)
	}
}

// With a daemon it tells what that one sees.
func TestDoctorAsksTheDaemon(t *testing.T) {
	netlab.NeedRoot(t)
	p := startDaemon(t, netlab.NewNS(t), t.TempDir(), nil)
	x, code := examine(t, "--socket", p.socket)
	if code != exitOK || stateOf(&x, "daemon") != checkOK || stateOf(&x, "capture") == checkFail || stateOf(&x, "store") != checkOK {
		t.Errorf("exit code %d: %+v", code, x)
	}
	if level := p.status(t).Kernel.Level; x.Kernel.Name != level {
		t.Errorf("level %s, want the daemon's, %s", x.Kernel.Name, level)
	}
	p.stop(t)
}

func TestDoctorTellsLevels(t *testing.T) {
	x := &examination{OK: true}
	x.level(evidence.KernelLevel{
		Name: evidence.LevelFull,
		Hooks: []evidence.KernelHook{
			{Name: "inet_csk_accept", Purpose: "owners of accepted connections", Why: "refused"},
			{Name: "sys_exit_accept", Purpose: "owners of accepted connections", Attached: true},
			{Name: "nf_send_reset", Purpose: "firewall rejects, IPv4", Why: "refused"},
		},
	})
	got := map[string]string{}
	for _, c := range x.Checks {
		got[c.Check] = c.State
	}
	for name, want := range map[string]string{
		"kernel evidence": checkOK, "hook inet_csk_accept": checkOK, "hook sys_exit_accept": checkOK, "hook nf_send_reset": checkLess,
	} {
		if got[name] != want {
			t.Errorf("%s is %q, want %q", name, got[name], want)
		}
	}
	if !x.OK {
		t.Error("what tells less is no failure")
	}
	x.level(evidence.KernelLevel{Name: evidence.LevelTuples, Why: "an old kernel", Raise: "a newer one"})
	if last := x.Checks[len(x.Checks)-1]; last.State != checkLess || last.Fix != "a newer one" || !strings.Contains(last.Text, "an old kernel") {
		t.Errorf("%+v", last)
	}
}

func TestDoctorPrints(t *testing.T) {
	var out bytes.Buffer
	x := &examination{Checks: []check{{"capture", checkFail, "no", "grant it"}, {"logs", checkOK, "yes", "not told"}}}
	if err := (&env{stdout: &out}).printExamination(x); err != nil {
		t.Fatal(err)
	}
	const want = "FAIL  capture  no; to raise it: grant it\nok    logs     yes\n"
	if out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
}
