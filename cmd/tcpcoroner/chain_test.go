package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"tcpcoroner/evidence"
	"tcpcoroner/exporter/api"
	"tcpcoroner/internal/netlab"
)

// These tests are the whole chain: real resets in a namespace, a real daemon, a
// real OpenTelemetry Collector, and tshark reading what was pulled.

// marker is in every request and answer: no capture may hold it.
const marker = "TOP-SECRET-PAYLOAD"

// site is an HTTP server in the lab's server namespace with ordinary clients.
type site struct {
	lab    *netlab.Lab
	addr   string
	served atomic.Uint64
}

func newSite(t *testing.T, lab *netlab.Lab) *site {
	s := &site{lab: lab}
	l := lab.Server.Listen(t, netlab.ServerIP4+":0")
	s.addr = l.Addr().String()
	srv := &http.Server{Handler: http.HandlerFunc(s.answer)}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	return s
}

func (s *site) answer(w http.ResponseWriter, r *http.Request) {
	s.served.Add(1)
	if r.URL.Path != "/abort" {
		fmt.Fprintln(w, marker)
		return
	}
	c, _, err := w.(http.Hijacker).Hijack()
	if err == nil {
		_ = netlab.Reset(c)
	}
}

// client makes requests from the lab's client namespace.
func (s *site) client() *http.Client {
	return &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DialContext: func(_ context.Context, _, addr string) (net.Conn, error) { return s.lab.Client.TryDial(addr) },
	}}
}

func (s *site) get(c *http.Client, path string) error {
	req, err := http.NewRequest(http.MethodGet, "http://"+s.addr+path, nil)
	if err != nil {
		return err
	}
	req.Header.Set("X-Marker", marker)
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

// browse is ordinary traffic, 20 requests a second, until the context ends: half
// on a kept connection, half on new ones.
func (s *site) browse(ctx context.Context, t *testing.T) {
	kept := s.client()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for i := 0; ; i++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		c := kept
		if i%2 == 1 {
			c = s.client()
		}
		if err := s.get(c, "/"); err != nil && ctx.Err() == nil {
			t.Errorf("ordinary request: %v", err)
		}
		if c != kept {
			c.CloseIdleConnections()
		}
	}
}

// abort makes n connections within d that the server aborts.
func (s *site) abort(t *testing.T, n int, d time.Duration) {
	t.Helper()
	tick := time.NewTicker(d / time.Duration(n))
	defer tick.Stop()
	for range n {
		<-tick.C
		if err := s.get(s.client(), "/abort"); err == nil {
			t.Error("a request that should have been aborted was answered")
		}
	}
}

// reference is a tcpdump beside the daemon.
func reference(t *testing.T, ns *netlab.NS) (file string, stop func()) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "reference.pcap")
	cmd := ns.Command(context.Background(), "tcpdump", "-i", netlab.Device, "-U", "-s", "96", "-Z", "root", "-w", file, "tcp")
	log := newWatched()
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if !log.wait("listening on", 10*time.Second) {
		t.Fatalf("tcpdump: %s", log)
	}
	stop = func() {
		_ = cmd.Process.Signal(syscall.SIGINT)
		_ = cmd.Wait()
	}
	return file, stop
}

// tool runs a reader of captures and wants it to be silent on stderr.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	lines(&errs, func(line string) {
		if !strings.HasPrefix(line, "Running as user") { // tshark says so to every root
			t.Errorf("%s warns: %s", name, line)
		}
	})
	if err != nil {
		t.Fatalf("%s %v: %v", name, args, err)
	}
	return out.String()
}

// resets lists the RST segments of a capture as tshark sees them.
func resets(t *testing.T, file, filter string) []string {
	t.Helper()
	out := tool(t, "tshark", "-r", file, "-Y", "tcp.flags.reset==1 && "+filter, "-T", "fields", "-o", "tcp.relative_sequence_numbers:false",
		"-e", "ip.src", "-e", "tcp.srcport", "-e", "ip.dst", "-e", "tcp.dstport", "-e", "tcp.seq", "-e", "tcp.ack", "-e", "tcp.flags")
	list := strings.Fields(strings.ReplaceAll(out, "\t", "|"))
	slices.Sort(list)
	return list
}

func TestChainResets(t *testing.T) {
	netlab.NeedRoot(t)
	t.Parallel()
	lab := netlab.New(t)
	col := newCollector(t, lab.Server)
	s := newSite(t, lab)
	p := startDaemon(t, lab.Server, t.TempDir(), col.env())
	pcap, stopReference := reference(t, lab.Server)
	ctx, stopTraffic := context.WithCancel(t.Context())
	go s.browse(ctx, t)
	pause(t, 30*time.Second)
	col.kill()
	killed := time.Now()
	s.abort(t, 60, 4*time.Second)
	list := p.awaitIncidents(t, 1, 70*time.Second)
	pause(t, 3*time.Second)
	stopTraffic()
	stopReference()

	inc := chainIncident(t, p, list[0].ID)
	checkAborts(t, inc, s)
	checkCapture(t, p, inc.ID, pcap)

	pause(t, time.Until(killed.Add(40*time.Second)))
	col.start(t)
	col.await(t, inc)
	checkOne(t, p)
	col.checkOnce(t, inc)
	p.stop(t)
}

func checkOne(t *testing.T, p *process) {
	t.Helper()
	if list := p.awaitIncidents(t, 1, time.Second); len(list) != 1 {
		t.Errorf("%d incidents, want exactly one: %+v", len(list), list)
	}
}

// pause waits while the world goes on; the traffic of the test needs the time.
func pause(t *testing.T, d time.Duration) {
	t.Helper()
	select {
	case <-time.After(d):
	case <-t.Context().Done():
	}
}

func chainIncident(t *testing.T, p *process, id string) *evidence.Incident {
	t.Helper()
	inc := new(evidence.Incident)
	cliJSON(t, inc, "show", id, "--socket", p.socket)
	return inc
}

func checkAborts(t *testing.T, inc *evidence.Incident, s *site) {
	t.Helper()
	c := inc.Verdict.Claim()
	if inc.Trigger() != "resets" || c.Origin != evidence.OriginLocalProcess || c.Mechanism != evidence.MechanismLinger {
		t.Errorf("incident by %q: %s/%s: %s", inc.Trigger(), c.Origin, c.Mechanism, c.Sentence)
	}
	aborted := 0
	for _, f := range inc.Flows {
		if f.Server.String() != s.addr || f.Verdict.Claim().Benign {
			continue
		}
		aborted++
		if f.Owner == nil || f.Owner.PID != os.Getpid() {
			t.Errorf("flow %v: owner %+v, want pid %d", &f, f.Owner, os.Getpid())
		}
	}
	if aborted != 60 {
		t.Errorf("%d aborted flows, want 60", aborted)
	}
}

// checkCapture pulls and compares with the reference.
func checkCapture(t *testing.T, p *process, id, reference string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "pulled.pcapng")
	if _, stderr, code := cli(t, "pull", id, "-o", file, "--socket", p.socket); code != 0 {
		t.Fatalf("pull: exit %d: %s", code, stderr)
	}
	want := resets(t, reference, "tcp")
	got := resets(t, file, "ip.addr=="+netlab.ClientIP4)
	for _, r := range want {
		if !slices.Contains(got, r) {
			t.Errorf("the capture lacks the RST %s", r)
		}
	}
	if len(want) < 60 {
		t.Errorf("the reference holds %d resets, want at least 60", len(want))
	}
	checkHeadersOnly(t, file)
	checkPrelude(t, file)
	tool(t, "capinfos", file)
	if out := tool(t, "tshark", "-r", file, "-Y", "frame.comment contains \"tcpcoroner\"", "-T", "fields", "-e", "frame.number"); strings.Count(out, "\n") < 60 {
		t.Errorf("%d packets carry a verdict as comment, want 60", strings.Count(out, "\n"))
	}
}

func checkHeadersOnly(t *testing.T, file string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(text, []byte(marker)) || bytes.Contains(text, []byte("HTTP/1.1")) {
		t.Error("the capture holds payload")
	}
	if out := tool(t, "tshark", "-r", file, "-Y", "tcp.payload", "-T", "fields", "-e", "frame.number"); out != "" {
		t.Errorf("packets with payload: %s", out)
	}
}

// checkPrelude wants packets from at least 20 s before the first RST.
func checkPrelude(t *testing.T, file string) {
	t.Helper()
	times := func(filter string) string {
		out := tool(t, "tshark", "-r", file, "-Y", filter, "-T", "fields", "-e", "frame.time_epoch")
		first, _, _ := strings.Cut(out, "\n")
		return first
	}
	var first, reset float64
	if _, err := fmt.Sscan(times("tcp"), &first); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscan(times("tcp.flags.reset==1"), &reset); err != nil {
		t.Fatal(err)
	}
	if reset-first < 20 {
		t.Errorf("the capture begins %.1f s before the first RST, want 20 s", reset-first)
	}
}

// TestChainListen fills an accept queue.
func TestChainListen(t *testing.T) {
	netlab.NeedRoot(t)
	t.Parallel()
	lab := netlab.New(t)
	col := newCollector(t, lab.Server)
	const backlog = 4
	port := stalledListener(t, lab.Server, backlog)
	p := startDaemon(t, lab.Server, t.TempDir(), col.env())
	pcap, stopReference := reference(t, lab.Server)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	knock(ctx, lab.Client, fmt.Sprintf("%s:%d", netlab.ServerIP4, port), 40)
	list := p.awaitIncidents(t, 1, 40*time.Second)
	cancel()
	stopReference()
	inc := chainIncident(t, p, list[0].ID)
	checkListen(t, inc, port, backlog)
	file := filepath.Join(t.TempDir(), "pulled.pcapng")
	if _, stderr, code := cli(t, "pull", "last", "-o", file, "--socket", p.socket); code != 0 {
		t.Fatalf("pull: exit %d: %s", code, stderr)
	}
	checkHeadersOnly(t, file)
	tool(t, "capinfos", file)
	syns := func(f string) int {
		return strings.Count(tool(t, "tshark", "-r", f, "-Y", "tcp.flags.syn==1 && tcp.flags.ack==0", "-T", "fields", "-e", "frame.number"), "\n")
	}
	if got, want := syns(file), syns(pcap); got == 0 || got > want {
		t.Errorf("%d SYN in the capture, %d in the reference", got, want)
	}
	col.await(t, inc)
	col.checkOnce(t, inc)
	checkOne(t, p)
	col.checkAttributes(t, inc, "tcpcoroner.listen.address", "tcpcoroner.listen.pid", "tcpcoroner.listen.backlog", "tcpcoroner.listen.overflows")
}

// stalledListener listens with a backlog and never accepts.
func stalledListener(t *testing.T, ns *netlab.NS, backlog int) (port int) {
	t.Helper()
	ns.Run(t, func() {
		fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { syscall.Close(fd) })
		addr := netip.MustParseAddr(netlab.ServerIP4).As4()
		if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: addr}); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Listen(fd, backlog); err != nil {
			t.Fatal(err)
		}
		name, err := syscall.Getsockname(fd)
		if err != nil {
			t.Fatal(err)
		}
		port = name.(*syscall.SockaddrInet4).Port
	})
	return port
}

// knock tries n connections at once and holds those that come through.
func knock(ctx context.Context, ns *netlab.NS, addr string, n int) {
	for range n {
		go func() {
			c, err := ns.TryDial(addr)
			if err == nil {
				<-ctx.Done()
				c.Close()
			}
		}()
	}
}

func checkListen(t *testing.T, inc *evidence.Incident, port, backlog int) {
	t.Helper()
	if inc.Trigger() != "listen" || len(inc.Firings[0].Listeners) == 0 {
		t.Fatalf("incident by %q with listeners %+v", inc.Trigger(), inc.Firings[0].Listeners)
	}
	l := inc.Firings[0].Listeners[0]
	if int(l.Local.Port()) != port || int(l.SendQueue) != backlog || l.Owner == nil || l.Owner.PID != os.Getpid() {
		t.Errorf("listener %+v owner %+v, want port %d, backlog %d, pid %d", l, l.Owner, port, backlog, os.Getpid())
	}
	c := inc.Verdict.Claim()
	for _, want := range []string{fmt.Sprint(port), fmt.Sprintf("[%d]", os.Getpid()), fmt.Sprint(backlog)} {
		if !strings.Contains(c.Sentence, want) {
			t.Errorf("the sentence %q does not name %s", c.Sentence, want)
		}
	}
	if c.Confidence != evidence.Proven {
		t.Errorf("confidence %s, want proven", c.Confidence)
	}
}

// TestChainConntrack fills the connection-tracking table to 96 %.
func TestChainConntrack(t *testing.T) {
	netlab.NeedRoot(t)
	t.Parallel()
	lab := netlab.New(t)
	col := newCollector(t, lab.Server)
	s := newSite(t, lab)
	// Filled within a second, the table would be foreseen to be full from 70 % on.
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte("triggers:\n  conntrack:\n    full_within: 0s\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := startDaemon(t, lab.Server, t.TempDir(), col.env(), "--config", file)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go s.browse(ctx, t)
	pause(t, 3*time.Second)
	limit := conntrackMax(t)
	fillConntrack(t, lab.Server, limit*96/100)
	list := p.awaitIncidents(t, 1, 40*time.Second)
	cancel()
	inc := chainIncident(t, p, list[0].ID)
	checkConntrack(t, inc, limit)
	file = filepath.Join(t.TempDir(), "pulled.pcapng")
	if _, stderr, code := cli(t, "pull", "last", "-o", file, "--socket", p.socket); code != 0 {
		t.Fatalf("pull: exit %d: %s", code, stderr)
	}
	checkHeadersOnly(t, file)
	tool(t, "capinfos", file)
	col.await(t, inc)
	col.checkOnce(t, inc)
	checkOne(t, p)
	col.checkAttributes(t, inc, "tcpcoroner.conntrack.count", "tcpcoroner.conntrack.max", "tcpcoroner.conntrack.top_talkers")
}

func conntrackMax(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_max")
	if err != nil {
		t.Fatal(err)
	}
	var n int
	if _, err := fmt.Sscan(string(text), &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// The one host that fills the table, and where it connects to.
var (
	talker   = netip.MustParseAddr("192.0.2.66")
	talkedTo = netip.MustParseAddrPort("198.51.100.7:443")
)

// fillConntrack makes entries of one talker over many of its ports and of the
// addresses beside the one it talks to.
func fillConntrack(t *testing.T, ns *netlab.NS, n int) {
	t.Helper()
	if err := netlab.NewTracker(t, ns.Do).Track(talks(0, n)...); err != nil {
		t.Fatal(err)
	}
}

// talks are the talker's connections from one number to before another.
func talks(from, to int) []netlab.Connection {
	all := make([]netlab.Connection, 0, to-from)
	for i := from; i < to; i++ {
		dst := talkedTo.Addr().As4()
		dst[3] += byte(i / 60000)
		all = append(all, netlab.Connection{
			From: netip.AddrPortFrom(talker, uint16(1024+i%60000)), To: netip.AddrPortFrom(netip.AddrFrom4(dst), talkedTo.Port())})
	}
	return all
}

func checkConntrack(t *testing.T, inc *evidence.Incident, limit int) {
	t.Helper()
	if inc.Trigger() != "conntrack" || inc.At == nil || inc.At.Conntrack == nil {
		t.Fatalf("incident by %q, conntrack missing: %+v", inc.Trigger(), inc.Missing())
	}
	ct := inc.At.Conntrack
	if int(ct.Max) != limit || int(ct.Count) < limit*95/100 {
		t.Errorf("%d of %d entries, want 95 %% of %d or more", ct.Count, ct.Max, limit)
	}
	if len(ct.TopTalkers) == 0 || ct.TopTalkers[0].Source != talker || ct.TopTalkers[0].Entries < 50000 {
		t.Errorf("top talkers %+v, want %v first", ct.TopTalkers, talker)
	}
	if c := inc.Verdict.Claim(); c.Mechanism != evidence.MechanismConntrackFull {
		t.Errorf("%s: %s", c.Mechanism, c.Sentence)
	}
}

// TestKill9 kills the daemon during freezes: what was announced is there whole
// after the restart, and nothing is there half.
func TestKill9(t *testing.T) {
	netlab.NeedRoot(t)
	t.Parallel()
	ns, dir := netlab.NewNS(t), t.TempDir()
	announced := map[string]bool{}
	for round := range 20 {
		p := startDaemon(t, ns, dir, nil)
		checkAnnounced(t, p, announced)
		ids := make(chan string, 64)
		for range 3 {
			go freezeUntilKilled(p.client(), ids)
		}
		// The freezes last a second each, one after another: round by round the
		// kill moves through one.
		<-time.After(1200*time.Millisecond + time.Duration(round)*67*time.Millisecond)
		p.kill()
		collect(ids, announced, 3)
		lines(strings.NewReader(p.log.String()), func(line string) {
			if _, rest, ok := strings.Cut(line, `msg="incident `); ok {
				id, _, _ := strings.Cut(rest, ":")
				announced[id] = true
			}
		})
	}
	p := startDaemon(t, ns, dir, nil)
	checkAnnounced(t, p, announced)
	if len(announced) < 10 {
		t.Errorf("only %d incidents were announced in 20 rounds", len(announced))
	}
	t.Logf("%d incidents announced, all whole", len(announced))
}

// freezeUntilKilled asks for freezes until the daemon is gone; then it sends "".
func freezeUntilKilled(c *api.Client, ids chan<- string) {
	for {
		f, err := c.Freeze(context.Background(), "to be killed")
		if err != nil {
			ids <- ""
			return
		}
		ids <- f.ID
	}
}

func collect(ids <-chan string, announced map[string]bool, ends int) {
	for ends > 0 {
		if id := <-ids; id == "" {
			ends--
		} else {
			announced[id] = true
		}
	}
}

// checkAnnounced wants every announced incident, and every listed one whole.
func checkAnnounced(t *testing.T, p *process, announced map[string]bool) {
	t.Helper()
	list, err := p.client().Incidents(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{}
	for _, s := range list {
		there[s.ID] = true
		var b bytes.Buffer
		if err := p.client().Capture(t.Context(), s.ID, &b); err != nil {
			t.Errorf("incident %s is listed but not whole: %v", s.ID, err)
		}
		if b.Len() < 8 || binary.LittleEndian.Uint32(b.Bytes()) != 0x0a0d0d0a {
			t.Errorf("incident %s: the capture is no pcapng", s.ID)
		}
		if inc, err := p.client().Incident(t.Context(), s.ID); err != nil || inc.At == nil || inc.After == nil {
			t.Errorf("incident %s: %v, snapshots missing", s.ID, err)
		}
	}
	for id := range announced {
		if !there[id] {
			t.Errorf("incident %s was announced and is gone", id)
		}
	}
}

func TestSelftest(t *testing.T) {
	netlab.NeedRoot(t)
	t.Parallel()
	ns := netlab.NewNS(t)
	p := startDaemon(t, ns, t.TempDir(), nil)
	cmd := ns.Command(t.Context(), self(t), "selftest", "--socket", p.socket)
	cmd.Env = append(os.Environ(), asProgram+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("selftest: %v\n%s\n%s", err, out, p.log)
	}
	for _, step := range []string{"reset", "freeze", "seen", "owned", "pulled"} {
		if !strings.Contains(string(out), "ok    "+step) {
			t.Errorf("step %q is missing in:\n%s", step, out)
		}
	}
	p.stop(t)
}
