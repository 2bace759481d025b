package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"tcpcoroner/evidence"
	"tcpcoroner/internal/netlab"
	"tcpcoroner/internal/scenes"
)

// The golden cases are what `observe` recorded of scenes, in verdict/testdata. That
// package's test judges them from the recorded evidence; here they are made, and
// replayed from their packets alone.

var makeGolden = flag.Bool("golden", false, "play the scenes and record the golden cases of verdict/testdata anew (root); -run TestGoldenRecord/NAME records one")

var ownMachine = flag.Bool("golden-own", false, "with -golden: the machine is one's own, and scenes may change settings of all of it")

const goldenDir = "../../verdict/testdata"

// goldenCase is one scene, seen from one host.
type goldenCase struct {
	scene string
	// host is where the recorder ran: client, router or server.
	host string
	ipv6 bool
	// kernel is the level of kernel evidence, full if empty.
	kernel string
}

func (g goldenCase) name() string {
	name := g.scene + "-at-" + g.host
	if g.ipv6 {
		name += "-ipv6"
	}
	if g.kernel != "" {
		name += "-" + g.kernel
	}
	return name
}

// goldenCases names for each scene the hosts from which it is told. On the host
// that made the reset the kernel's word decides; elsewhere, and with level
// "packets", the headers do.
func goldenCases() (all []goldenCase) {
	add := func(scene string, hosts ...string) {
		for _, h := range hosts {
			g := goldenCase{scene: scene}
			g.host, g.kernel, _ = strings.Cut(h, "/")
			g.host, g.ipv6 = strings.CutSuffix(g.host, "6")
			all = append(all, g)
		}
	}
	for scene, hosts := range map[string]string{
		"close-unread": "server server/packets client", "linger0": "server server/packets client router", "linger0-client": "server",
		"shutdown-late-data": "server server/packets client", "close-late-data": "server",
		"sigkill-unread": "server client", "sigsegv-unread": "server",
		"half-open-listener": "server client", "half-open": "server server/packets client router",
		"sock-destroy": "server server/tuples client", "connect-unspec": "client", "prefork": "server",
		"closed-port": "server server6 server/packets client router", "restarted": "server",
		"listener-closed": "server client", "listener-killed": "server",
		"overflow-abort": "server server/packets client", "overflow-drop": "server client router",
		"keepalive": "server server/tuples client", "user-timeout": "server client",
		"reject-input": "server server6 server/packets client client6", "reject-forward": "router router/packets client server", "reject-output": "server",
		"inject-exact": "client client/packets server router", "inject-in-window": "client", "rst-into-time-wait": "server",
		"conntrack-snat": "router server", "conntrack-dnat": "router client",
		"orphan-limit": "server server/tuples server/packets",
		"nginx-502":    "router", "haproxy-timeout-server": "router",
	} {
		add(scene, strings.Fields(hosts)...)
	}
	for _, s := range goldenScenes {
		add(s.name, strings.Fields(s.hosts)...)
	}
	slices.SortFunc(all, func(a, b goldenCase) int { return cmp.Compare(a.name(), b.name()) })
	return all
}

// TestGoldenRecord makes the cases anew, if asked to.
func TestGoldenRecord(t *testing.T) {
	if !*makeGolden {
		t.Skip("makes the golden cases only with -golden")
	}
	netlab.NeedRoot(t)
	for _, g := range goldenCases() {
		t.Run(g.name(), func(t *testing.T) { g.record(t) })
	}
}

func (g goldenCase) record(t *testing.T) {
	st, err := scenes.NewStage()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	}()
	st.IPv6, st.OwnMachine = g.ipv6, *ownMachine
	dir := filepath.Join(goldenDir, g.name())
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	incident, capture := filepath.Join(dir, "incident.json"), filepath.Join(dir, "window.pcapng")
	p := observeOn(t, st.Host(g.host), "--format", "json", "--out", incident, "--capture", capture, "--kernel", cmp.Or(g.kernel, evidence.LevelFull))
	if err := playOn(t.Context(), g.scene, st); errors.Is(err, scenes.ErrNeeds) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	pause(t, 300*time.Millisecond) // the kernel's ring hands packets over late
	p.stop(t)
	tidyIncident(t, incident)
}

// observeOn starts observe on a host of a stage and waits until it records.
func observeOn(t *testing.T, h *scenes.Host, args ...string) *process {
	t.Helper()
	p := &process{log: newWatched()}
	p.Cmd = exec.Command(self(t), append([]string{"observe"}, args...)...)
	p.Env = append(os.Environ(), asProgram+"=1")
	p.Stderr = p.log
	if err := h.Do(p.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	if !p.log.wait("msg=recording", 20*time.Second) {
		t.Fatalf("observe does not record:\n%s", p.log)
	}
	return p
}

func playOn(ctx context.Context, name string, st *scenes.Stage) error {
	for _, s := range goldenScenes {
		if s.name == name {
			return s.play(st)
		}
	}
	for _, s := range scenes.All() {
		if s.Name == name {
			_, err := s.Play(ctx, st)
			return err
		}
	}
	return fmt.Errorf("there is no scene %q", name)
}

// tidyIncident leaves out of a recorded incident what was concluded from it, what is
// of the machine that it was recorded on, and what no rule reads.
func tidyIncident(t *testing.T, file string) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	b = bytes.ReplaceAll(b, []byte(self(t)), []byte("/usr/bin/actor"))
	b = regexp.MustCompile(`"(cgroup|unit)": ?"[^"]*"`).ReplaceAll(b, []byte(`"$1": ""`))
	inc := readIncident(t, b)
	inc.Flows, inc.Verdict, inc.FlowsTotal, inc.FlowsImplicated = nil, evidence.Verdict{}, 0, 0
	inc.Version, inc.Host.Name, inc.Host.ID, inc.Host.Kernel = "golden", "host", "", ""
	inc.Series, inc.Ledger, inc.KernelLevel.Hooks = nil, nil, nil
	tidyLogs(inc)
	tidyCounters(&inc.Before)
	tidySnapshot(inc.At)
	tidySnapshot(inc.After)
	if b, err = json.Marshal(inc); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, append(b, '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{file, filepath.Join(filepath.Dir(file), "window.pcapng")} { // observe keeps them to itself
		if err := os.Chmod(f, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// tidyLogs leaves the lines of nginx' own, without the client's words: what else the
// machine logs is no part of a scene.
func tidyLogs(inc *evidence.Incident) {
	inc.Logs = slices.DeleteFunc(inc.Logs, func(l evidence.LogLine) bool { return l.Source != evidence.LogNginxError || l.Reason == "" })
	for i := range inc.Logs {
		l := &inc.Logs[i]
		l.Unit, l.File = "", ""
		l.Text, _, _ = strings.Cut(l.Text, ", request: ")
	}
}

// goldenCounters and goldenSysctls are those that rules or advice show.
var (
	goldenCounters = regexp.MustCompile(`^(Tcp\.OutRsts|TcpExt\.(TCPAbort|Listen).*)$`)
	goldenSysctls  = regexp.MustCompile(`^net\.(core\.somaxconn|ipv4\.tcp_(abort_on_overflow|keepalive_time))$`)
)

func tidyCounters(c *evidence.Counters) {
	maps.DeleteFunc(c.Values, func(name string, _ uint64) bool { return !goldenCounters.MatchString(name) })
}

func tidySnapshot(s *evidence.Snapshot) {
	if s == nil {
		return
	}
	tidyCounters(&s.Counters)
	s.Interfaces = nil
	for i := range s.Sockets {
		s.Sockets[i].Info = nil
	}
	if im := s.Implicated; im != nil {
		im.Processes, im.Cgroups, im.Routes, im.Load, im.Disks, im.Clock, im.Changes = nil, nil, nil, nil, nil, nil, nil
		im.Sysctls = slices.DeleteFunc(im.Sysctls, func(s evidence.Sysctl) bool { return !goldenSysctls.MatchString(s.Name) })
	}
}

// TestGoldenReplay: what the packets alone say agrees with what all the evidence
// says, or says less.
func TestGoldenReplay(t *testing.T) {
	captures, err := filepath.Glob(filepath.Join(goldenDir, "*", "window.pcapng"))
	if err != nil || len(captures) == 0 {
		t.Fatalf("no golden cases (%v)", err)
	}
	for _, capture := range captures {
		name := filepath.Base(filepath.Dir(capture))
		w, err := readCapture(capture)
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(filepath.Dir(capture), "incident.json"))
		if err != nil {
			t.Fatal(err)
		}
		full := judgeAgain(readIncident(t, b), w.Packets, nil)
		if len(w.Packets) == 0 {
			continue
		}
		replayed, err := rejudge(t.Context(), w, evidence.Host{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		knows := map[evidence.FlowKey]evidence.Claim{}
		for i := range full.Flows {
			f := &full.Flows[i]
			knows[evidence.NewFlowKey(f.Client, f.Server)] = f.Verdict.Claim()
		}
		for i := range replayed.Flows {
			f := &replayed.Flows[i]
			diff := contradiction(f.Verdict.Claim(), knows[evidence.NewFlowKey(f.Client, f.Server)])
			if known, ok := goldenKnown[diff]; diff != "" && !(ok && strings.HasPrefix(name, known)) {
				t.Errorf("%s %v: %s\npackets: %s", name, f, diff, f.Verdict)
			}
		}
	}
}

// contradiction tells what packets alone claim otherwise than all the evidence. What
// is only possible is no claim.
func contradiction(packets, all evidence.Claim) string {
	claims := func(c evidence.Confidence) bool { return c == evidence.Likely || c == evidence.Proven }
	place := func(o evidence.Origin) string { p, _, _ := strings.Cut(string(o), "."); return p }
	switch p := packets; {
	case !claims(p.Confidence):
	case place(p.Origin) != place(all.Origin):
		return fmt.Sprintf("origin %s instead of %s", p.Origin, all.Origin)
	case claims(cmp.Or(p.MechanismConfidence, p.Confidence)) && p.Mechanism.Family() != all.Mechanism.Family():
		return fmt.Sprintf("mechanism %s instead of %s", p.Mechanism, all.Mechanism)
	// Packets of one connection do not show that it is a proxy's.
	case claims(p.PartyConfidence) && p.Party != all.Party && all.Party != evidence.PartyUnknown && all.Party != evidence.Proxy:
		return fmt.Sprintf("party %s instead of %s", p.Party, all.Party)
	case claims(p.CauseConfidence) && p.Cause != all.Cause && all.Cause != evidence.CauseUnknown:
		return fmt.Sprintf("cause %s instead of %s", p.Cause, all.Cause)
	}
	return ""
}

// goldenKnown are the contradictions that nothing in the packets could avoid: one
// keepalive probe is not enough to tell TCP's timer from the application's, a full
// table is silent, and what a server answered before it closed is not recorded. Each
// is known of the cases of a scene at a host.
var goldenKnown = map[string]string{
	"party server instead of client":                     "keepalive-at-server",
	"mechanism timeout.silent instead of conntrack.full": "conntrack-full-at-router",
	"mechanism after_fin instead of active_abort":        "tls-to-plain-at-server",
}

// What is in the directory is what can be made anew.
func TestGoldenCases(t *testing.T) {
	entries, err := os.ReadDir(goldenDir)
	if err != nil {
		t.Fatal(err)
	}
	var there, want []string
	for _, e := range entries {
		if e.IsDir() {
			there = append(there, e.Name())
		}
	}
	for _, g := range goldenCases() {
		want = append(want, g.name())
	}
	if diff := gocmp.Diff(want, there); diff != "" {
		t.Errorf("golden cases (-listed +recorded); make them with -golden:\n%s", diff)
	}
}
