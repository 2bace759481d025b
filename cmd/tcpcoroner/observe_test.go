package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tcpcoroner/evidence"
	"tcpcoroner/internal/netlab"
)

// observed is what an observation, and tcpdump beside it, have of the same resets.
type observed struct {
	incident, capture string // files that observe wrote
	ethernet, cooked  string // files that tcpdump wrote
	mac               string // of the host's interface
	server            string
}

// observeResets starts observe and two tcpdumps in the lab's server namespace,
// and has connections aborted and refused there.
func observeResets(t *testing.T) observed {
	t.Helper()
	lab := netlab.New(t)
	dir := t.TempDir()
	o := observed{incident: filepath.Join(dir, "incident.json"), capture: filepath.Join(dir, "own.pcapng")}
	tmp := filepath.Join(dir, "tmp")
	if err := os.Mkdir(tmp, 0o700); err != nil {
		t.Fatal(err)
	}
	p := startObserve(t, lab.Server, tmp, "--format", "json", "--out", o.incident, "--capture", o.capture)
	var stopEthernet, stopCooked func()
	o.ethernet, stopEthernet = tcpdump(t, lab.Server, netlab.Device)
	o.cooked, stopCooked = tcpdump(t, lab.Server, "any")
	s := newSite(t, lab)
	o.server = s.addr
	s.abort(t, 5, 500*time.Millisecond)
	if c, err := lab.Client.TryDial(netlab.ServerIP4 + ":1"); err == nil {
		c.Close()
		t.Fatal("a closed port took a connection")
	}
	if err := s.get(s.client(), "/"); err != nil {
		t.Fatal(err)
	}
	// tcpdump and the kernel's ring hand packets over late: the last ones are those
	// that everybody has when they have what came before.
	pause(t, 500*time.Millisecond)
	stopEthernet()
	stopCooked()
	p.stop(t)
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("observe left %v (%v)", left, err)
	}
	o.mac = strings.Fields(strings.SplitAfter(lab.Server.IP(t, "-o", "link", "show", netlab.Device), "link/ether ")[1])[0]
	return o
}

// startObserve starts it in a namespace and waits until it records.
func startObserve(t testing.TB, ns *netlab.NS, tmp string, args ...string) *process {
	t.Helper()
	p := &process{log: newWatched()}
	p.Cmd = ns.Command(context.Background(), self(t), append([]string{"observe"}, args...)...)
	return p.recording(t, []string{"TMPDIR=" + tmp})
}

// tcpdump captures in a namespace until stop.
func tcpdump(t *testing.T, ns *netlab.NS, device string) (file string, stop func()) {
	t.Helper()
	file = filepath.Join(t.TempDir(), device+".pcap")
	cmd := ns.Command(context.Background(), "tcpdump", "-i", device, "-U", "-s", "128", "-Z", "root", "--time-stamp-precision=nano", "-w", file, "tcp")
	log := newWatched()
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if !log.wait("listening on", 10*time.Second) {
		t.Fatalf("tcpdump: %s", log)
	}
	return file, func() {
		_ = cmd.Process.Signal(syscall.SIGINT)
		_ = cmd.Wait()
	}
}

func readIncident(t *testing.T, text []byte) *evidence.Incident {
	t.Helper()
	inc, err := parseIncident(text)
	if err != nil {
		t.Fatalf("%v in %.200s", err, text)
	}
	return inc
}

// replayed is what `replay` says of files.
func replayed(t *testing.T, args ...string) *evidence.Incident {
	t.Helper()
	out, errs, code := cli(t, append([]string{"replay", "--format", "json"}, args...)...)
	if code != exitOK {
		t.Fatalf("replay %v: exit %d: %s", args, code, errs)
	}
	return readIncident(t, []byte(out))
}

// seenFlow is what packets alone tell of a flow, whoever captured them.
type seenFlow struct {
	Client, Server           netip.AddrPort
	Initiator                bool
	Packets, Resets          int
	ClientBytes, ServerBytes uint64
	From                     netip.AddrPort
	Direction                evidence.Direction
	Flags                    string
	TTL                      uint8
	Local                    bool
}

func seenFlows(inc *evidence.Incident) (all []seenFlow) {
	for _, f := range inc.Flows {
		s := seenFlow{f.Client, f.Server, f.InitiatorSeen, f.Packets, f.Resets, f.ClientBytes, f.ServerBytes,
			f.Reset.From, f.Reset.Direction, f.Reset.Flags, f.Reset.TTL, f.Verdict.Claim().Origin.Local()}
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b seenFlow) int { return a.Client.Compare(b.Client) })
	return all
}

var sameAddr = cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })

// What packets tell is the same, live and replayed, by Ethernet and by cooked
// frames; and verify, explain and the exit codes do on real files what they say.
func TestObserveAndReplay(t *testing.T) {
	o := observeResets(t)
	text, err := os.ReadFile(o.incident)
	if err != nil {
		t.Fatal(err)
	}
	live := readIncident(t, text)
	if len(live.Flows) != 6 {
		t.Fatalf("%d flows, want 5 aborted and 1 refused: %s", len(live.Flows), live.Verdict)
	}
	for name, inc := range map[string]*evidence.Incident{
		"own capture":         replayed(t, o.capture),
		"ethernet by mac":     replayed(t, o.ethernet, "--local-mac", o.mac),
		"ethernet by address": replayed(t, o.ethernet, "--local", netlab.ServerIP4),
		"cooked":              replayed(t, o.cooked),
	} {
		if diff := cmp.Diff(seenFlows(live), seenFlows(inc), sameAddr); diff != "" {
			t.Errorf("%s (-live +replayed):\n%s", name, diff)
		}
	}
	t.Run("verdicts do not depend on the file", func(t *testing.T) {
		checkSameVerdicts(t, replayed(t, o.cooked), replayed(t, o.ethernet, "--local-mac", o.mac))
	})
	t.Run("verify", func(t *testing.T) { checkVerify(t, o, text) })
	t.Run("explain", func(t *testing.T) { checkExplain(t, o, live) })
	t.Run("damaged", func(t *testing.T) { checkDamaged(t, o) })
	t.Run("no direction", func(t *testing.T) {
		_, errs, code := cli(t, "replay", o.ethernet)
		if code != exitOK || !strings.Contains(errs, "give --local-mac or --local") {
			t.Errorf("exit %d: %s", code, errs)
		}
	})
}

func checkSameVerdicts(t *testing.T, a, b *evidence.Incident) {
	t.Helper()
	said := func(inc *evidence.Incident) (all []string) {
		for _, f := range inc.Flows {
			c := f.Verdict.Claim()
			all = append(all, fmt.Sprint(f.String(), c.Origin, c.Mechanism, c.Confidence, c.Benign))
		}
		slices.Sort(all)
		return all
	}
	if diff := cmp.Diff(said(a), said(b)); diff != "" {
		t.Errorf("verdicts (-cooked +ethernet):\n%s", diff)
	}
}

func checkVerify(t *testing.T, o observed, text []byte) {
	out, errs, code := cli(t, "verify", o.incident, o.capture)
	if code != exitOK || !strings.Contains(out, "every verdict is the same") {
		t.Errorf("exit %d: %s%s", code, out, errs)
	}
	forged := filepath.Join(t.TempDir(), "forged.json")
	if err := os.WriteFile(forged, []byte(strings.Replace(string(text), `"resets": 1`, `"resets": 7`, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	out, errs, code = cli(t, "verify", forged, o.capture)
	if code != exitError || !strings.Contains(out, "resets: stored 7, derived 1") || !strings.Contains(errs, "1 differences") {
		t.Errorf("a forged verdict: exit %d: %s%s", code, out, errs)
	}
	var v verified
	out, _, _ = cli(t, "verify", forged, o.capture, "--json")
	if err := json.Unmarshal([]byte(out), &v); err != nil || v.OK || len(v.Differences) != 1 {
		t.Errorf("%+v: %v", v, err)
	}
	// Neither half a capture nor that of something else is taken for it.
	own, err := os.ReadFile(o.capture)
	if err != nil {
		t.Fatal(err)
	}
	half := filepath.Join(t.TempDir(), "half.pcapng")
	if err := os.WriteFile(half, own[:len(own)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, errs, code = cli(t, "verify", o.incident, half); code != exitError || !strings.Contains(errs, "packets of incident") {
		t.Errorf("half a capture: exit %d: %s", code, errs)
	}
	if err := os.WriteFile(half, own[:sectionEnd(own)], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, errs, code = cli(t, "verify", o.incident, half); code != exitError || !strings.Contains(errs, "give the one that belongs to it") {
		t.Errorf("an empty capture: exit %d: %s", code, errs)
	}
}

// sectionEnd is where the section header block of a pcapng file ends.
func sectionEnd(file []byte) uint32 { return binary.LittleEndian.Uint32(file[4:]) }

func checkExplain(t *testing.T, o observed, live *evidence.Incident) {
	f := live.Flows[0]
	for _, ref := range []string{f.ID, f.Client.String()} {
		out, errs, code := cli(t, "explain", o.incident, ref)
		for _, want := range []string{"FLOW " + f.ID + ", " + f.String(), f.Verdict.Claim().Sentence[:20], "for      ",
			fmt.Sprintf("* %d", f.Reset.Packet)} {
			if code != exitOK || !strings.Contains(out, want) {
				t.Errorf("explain %s: exit %d, no %q in:\n%s%s", ref, code, want, out, errs)
			}
		}
	}
	if out, errs, code := cli(t, "explain", o.incident); code != exitOK || !strings.HasPrefix(out, "verdict") {
		t.Errorf("exit %d: %s%s", code, out, errs)
	}
	var got evidence.Flow
	cliJSON(t, &got, "explain", o.incident, f.ID)
	if got.ID != f.ID || got.Verdict.Claim().Sentence != f.Verdict.Claim().Sentence {
		t.Errorf("flow %+v", got)
	}
	if _, errs, code := cli(t, "explain", o.incident, "f99"); code != exitNotFound || !strings.Contains(errs, "`tcpcoroner show` lists its flows") {
		t.Errorf("unknown flow: exit %d: %s", code, errs)
	}
}

func checkDamaged(t *testing.T, o observed) {
	whole, err := os.ReadFile(o.cooked)
	if err != nil {
		t.Fatal(err)
	}
	cut := filepath.Join(t.TempDir(), "cut.pcap")
	if err := os.WriteFile(cut, whole[:len(whole)-5], 0o600); err != nil {
		t.Fatal(err)
	}
	out, errs, code := cli(t, "replay", cut)
	if code != exitError || !strings.Contains(out, "implicated of") || !strings.Contains(errs, "cut.pcap: read capture, packet") {
		t.Errorf("exit %d: %s%s", code, out, errs)
	}
}

// The environment of a test bench is obeyed, and flags win.
func TestObserveEnvironment(t *testing.T) {
	bench := map[string]string{envInterfaces: "lo, none", envRoles: "/r", envOut: "/o", envVantage: "here"}
	var o observation
	o.fromEnvironment(func(name string) string { return bench[name] })
	if o.out != "/o/product.json" || o.roles != "/r" || o.vantage != "here" || !slices.Equal(o.interfaces, []string{"lo", "none"}) {
		t.Errorf("%+v", o)
	}
	o = observation{outcome: outcome{roles: "mine", out: "my.json"}}
	o.fromEnvironment(func(name string) string { return bench[name] })
	if o.out != "my.json" || o.roles != "mine" {
		t.Errorf("%+v", o)
	}
}

func TestObserveBadInput(t *testing.T) {
	for _, tt := range []struct {
		name string
		args []string
		env  map[string]string
		want string
	}{
		{"format", []string{"--format", "xml"}, nil, `--format is "xml": must be text, json or rstlab-verdict/1`},
		{"duration", []string{"--for", "-1s"}, nil, "--for is -1s: give a duration"},
		{"kernel", []string{"--kernel", "most"}, nil, `--kernel is "most": must be full, reasons, tuples, packets`},
		{"roles", []string{"--roles", "/nowhere/roles"}, nil, "read roles: open /nowhere/roles"},
		{"out", []string{"--out", "/nowhere/x.json"}, nil, "/nowhere is no directory: make it"},
		{"capture", []string{"--capture", "/nowhere/x.pcapng"}, nil, "/nowhere is no directory: make it"},
		{"interface", nil, map[string]string{envInterfaces: "lo,nowhere0"}, `LAB_IFACES names interface "nowhere0", which is not in this network namespace`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out, errs strings.Builder
			e := &env{stdout: &out, stderr: &errs, getenv: func(name string) string { return tt.env[name] }}
			code := run(t.Context(), e, append([]string{"observe"}, tt.args...))
			if code != exitUsage || !strings.Contains(errs.String(), tt.want) {
				t.Errorf("exit %d: %s, want %q", code, errs.String(), tt.want)
			}
		})
	}
}

// verify of an incident that the daemon keeps, which has tested itself meanwhile.
func TestVerifyStored(t *testing.T) {
	lab := netlab.New(t)
	dir := t.TempDir()
	config := filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(config, []byte("recorder: {self_test: 1s}\nwindow: {before: 30s, after: 1s, max: 2s}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := startDaemon(t, lab.Server, dir, nil, "--config", config)
	s := newSite(t, lab)
	s.abort(t, 3, 3*time.Second)
	out, errs, code := cli(t, "freeze", "--reason", "test", "--socket", p.socket)
	if code != exitOK {
		t.Fatalf("freeze: exit %d: %s", code, errs)
	}
	id := strings.TrimSpace(out)
	inc, err := p.client().Incident(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if inc.Window.OwnResets == 0 || len(inc.Flows) != 3 {
		t.Errorf("%d own resets, %d flows: no test of both", inc.Window.OwnResets, len(inc.Flows))
	}
	out, errs, code = cli(t, "verify", id, "--socket", p.socket)
	if code != exitOK || !strings.Contains(out, "every verdict is the same") {
		t.Errorf("exit %d: %s%s", code, out, errs)
	}
	if out, errs, code = cli(t, "explain", "last", "f1", "--socket", p.socket); code != exitOK || !strings.Contains(out, "FLOW f1") {
		t.Errorf("exit %d: %s%s", code, out, errs)
	}
	p.stop(t)
}

// --for ends it, however short, --kernel bounds what is asked of the kernel, and
// nothing is left.
func TestObserveFor(t *testing.T) {
	tmp := t.TempDir()
	file := filepath.Join(t.TempDir(), "x.json")
	p := startObserve(t, netlab.NewNS(t), tmp, "--for", "100ms", "--kernel", "packets", "--format", "json", "--out", file)
	if err := p.Wait(); err != nil {
		t.Errorf("%v: %s", err, p.log)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if l := readIncident(t, text).KernelLevel; l == nil || l.Name != evidence.LevelPackets {
		t.Errorf("kernel evidence is %+v, want that of level packets", l)
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("observe left %v (%v)", left, err)
	}
}
