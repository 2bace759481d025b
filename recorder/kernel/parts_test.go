package kernel

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf/btf"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"tcpcoroner/evidence"
)

func TestClock(t *testing.T) {
	offset, spread := int64(1000), int64(5)
	c := newClock(func() (int64, int64, int64) { return 7, 7 + offset, spread })
	if got := c.time(50).UnixNano(); got != 1050 {
		t.Errorf("time %d, want 1050", got)
	}
	if !c.time(0).IsZero() {
		t.Error("no time is a time")
	}
	offset += int64(time.Millisecond) // slewed
	c.measure()
	offset -= int64(time.Hour) // set
	c.measure()
	if steps, largest := c.stats(); steps != 1 || largest != time.Hour {
		t.Errorf("%d steps, largest %v", steps, largest)
	}
	if got, want := c.time(50).UnixNano(), 50+offset; got != want {
		t.Errorf("time %d after steps, want %d", got, want)
	}
}

func TestClockTakesTheShortestMoment(t *testing.T) {
	moments := [][3]int64{{0, 900, 500}, {0, 100, 3}, {0, 500, 70}}
	i := 0
	c := newClock(func() (int64, int64, int64) { m := moments[i]; i++; return m[0], m[1], m[2] })
	if got := c.time(1).UnixNano(); got != 101 {
		t.Errorf("offset of the longest moment: %d", got)
	}
}

// The clocks of this host agree, to what a busy host may delay.
func TestRealClock(t *testing.T) {
	boot, _, _ := readClocks()
	before := time.Now()
	got := newClock(readClocks).time(uint64(boot))
	if d := before.Sub(got).Abs(); d > 50*time.Millisecond {
		t.Errorf("off by %v", d)
	}
	if hz := ticksPerSecond(); hz < 24 || hz > 2000 {
		t.Errorf("HZ is %d", hz)
	}
}

func event(kind evidence.KernelEventKind, cookie uint64, state string, nanos int64) evidence.KernelEvent {
	e := evidence.KernelEvent{Kind: kind, Cookie: cookie, State: state, Time: time.Unix(0, nanos)}
	e.ShutdownRead = kind == evidence.ResetReceived
	if kind == evidence.ResetSent {
		e.Trigger = &evidence.Trigger{}
	}
	return e
}

func TestPhantoms(t *testing.T) {
	const us = int64(time.Microsecond)
	sent := event(evidence.ResetSent, 5, "closed", 100*us)
	open := event(evidence.ResetReceived, 5, "fin_wait_2", 90*us)
	open.ShutdownRead = false
	active := sent
	active.Trigger = nil
	for what, tt := range map[string]struct {
		first, then evidence.KernelEvent
		kept        int
	}{
		"phantom":           {event(evidence.ResetReceived, 5, "fin_wait_2", 90*us), sent, 1},
		"in FIN_WAIT1":      {event(evidence.ResetReceived, 5, "fin_wait_1", 90*us), sent, 1},
		"of another socket": {event(evidence.ResetReceived, 6, "fin_wait_2", 90*us), sent, 2},
		"long ago":          {event(evidence.ResetReceived, 5, "fin_wait_2", -90_000*us), sent, 2},
		"real":              {event(evidence.ResetReceived, 5, "established", 90*us), sent, 2},
		"still reading":     {open, sent, 2},
		"by the process":    {event(evidence.ResetReceived, 5, "fin_wait_2", 90*us), active, 2},
	} {
		k := keeper{max: 10, age: time.Hour}
		k.add(record{KernelEvent: tt.first})
		k.add(record{KernelEvent: tt.then})
		if len(k.list) != tt.kept || int(k.phantoms) != 2-tt.kept {
			t.Errorf("%s: %d events kept, want %d", what, len(k.list), tt.kept)
		}
	}
}

func TestKeeperIsBounded(t *testing.T) {
	k := keeper{max: 3, age: 10 * time.Second}
	for i := range 5 {
		k.add(record{KernelEvent: event(evidence.SocketError, uint64(i), "", int64(i)*int64(time.Second))})
		k.suppress(evidence.KernelSuppressed{Count: uint64(i), From: time.Unix(int64(i), 0), To: time.Unix(int64(i+1), 0)})
	}
	if len(k.list) != 3 || k.evicted != 4 || len(k.counts) > 3 {
		t.Errorf("%d events, %d evicted, %d counts", len(k.list), k.evicted, len(k.counts))
	}
	if got := k.events(time.Unix(3, 0), time.Unix(4, 0), nil); len(got) != 2 || got[0].Cookie != 3 {
		t.Errorf("events from 3 to 4: %+v", got)
	}
	if got := k.uncounted(time.Unix(4, 5e8), time.Unix(9, 0)); len(got) != 1 || got[0].Count != 4 {
		t.Errorf("counts from 4.5 to 9: %+v", got)
	}
	k.expire(time.Unix(13, 5e8))
	if len(k.list) != 1 || len(k.counts) != 2 {
		t.Errorf("after %v: %d events, %d counts", k.age, len(k.list), len(k.counts))
	}
}

func TestEventsAreInOrder(t *testing.T) {
	k := keeper{max: 3, age: time.Hour}
	for _, n := range []int64{2, 1, 3} {
		k.add(record{KernelEvent: event(evidence.SocketError, uint64(n), "", n)})
	}
	for i, e := range k.events(time.Time{}, time.Unix(1, 0), nil) {
		if e.Cookie != uint64(i+1) {
			t.Errorf("event %d is number %d", e.Cookie, i)
		}
	}
}

func TestParseStart(t *testing.T) {
	for text, want := range map[string]uint64{
		"4619 (kernel (x) y) S 1 4619 4619 0 -1 4194560 1 0 0 0 5 6 0 0 20 0 7 0 123456 1 2 3\n": 123456,
		"4619 (short) S 1": 0, "": 0, "1 (x": 0,
	} {
		if got := parseStart(text); got != want {
			t.Errorf("parseStart(%q) = %d, want %d", text, got, want)
		}
	}
}

func TestParseCgroup(t *testing.T) {
	for text, want := range map[string]string{
		"0::/system.slice/web.service\n":                                                 "/system.slice/web.service",
		"2:cpu:/a\n1:name=systemd:/user.slice/x.scope\n0::/\n":                           "/user.slice/x.scope",
		"2:cpu:/a\n0::/\n":                                                               "/a",
		"0::/system.slice/web.service (deleted)\n":                                       "/system.slice/web.service",
		"0::/kubepods.slice/pod1.slice/cri-containerd-0a.scope:x\n2:cpu:/system.slice\n": "/kubepods.slice/pod1.slice/cri-containerd-0a.scope:x",
		"": "", "nonsense\n": "",
	} {
		if got := cgroupOf(text); got != want {
			t.Errorf("cgroupOf(%q) = %q, want %q", text, got, want)
		}
	}
	for path, want := range map[string]string{
		"/system.slice/web.service": "web.service", "/user.slice/user@1.service/app.slice/x.scope": "x.scope",
		"/system.slice": "", "": "", "/.service": "",
	} {
		if got := evidence.UnitOf(path); got != want {
			t.Errorf("UnitOf(%q) = %q, want %q", path, got, want)
		}
	}
}

func FuzzParseProc(f *testing.F) {
	f.Add("4619 (x) S 1 2 3\n0::/a.service\nffffffff81000000 T start")
	f.Fuzz(func(t *testing.T, text string) {
		parseStart(text)
		evidence.UnitOf(cgroupOf(text))
		findSymbols(strings.NewReader(text), []uint64{1 << 31, 1 << 63})
	})
}

func TestFindSymbol(t *testing.T) {
	const text = "0000000000000000 A start\n" +
		"ffffffff81000000 T first\n" +
		"ffffffff81000200 t second\n" +
		"ffffffff81000180 d data\n" +
		"ffffffffc0000000 t nft_do_chain\t[nf_tables]\n" +
		"short\n"
	addrs := []uint64{0xffffffff80000000, 0xffffffff81000000, 0xffffffff810001ff, 0xffffffff81000200, 0xffffffff81000300, 0xffffffffc0000010}
	want := []string{"", "first", "first", "second", "second", "nft_do_chain"}
	if diff := cmp.Diff(want, findSymbols(strings.NewReader(text), addrs)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	hidden := "0000000000000000 T first\n0000000000000000 t second\n"
	if got := findSymbols(strings.NewReader(hidden), addrs[1:2]); got[0] != "" {
		t.Errorf("kptr_restrict hides addresses, but got %q", got)
	}
}

// The kernel's symbols are read when somebody wants a name, and not for an event.
func TestLocate(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Level, cfg.ProcRoot = evidence.LevelPackets, t.TempDir()
	k, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	file := filepath.Join(cfg.ProcRoot, "kallsyms")
	if err := unix.Mkfifo(file, 0o600); err != nil { // who reads it waits for ever
		t.Fatal(err)
	}
	for _, location := range []uint64{0xffffffff81000010, 0xffffffff81000020, 0xffffffff82000000} {
		r := bpfEvent{Kind: 4, Time: 1, Location: location}
		k.take(sample(t, &r))
	}
	from, to := time.Time{}, time.Now().Add(time.Hour)
	located := func() (names []string) {
		for _, e := range k.Events(from, to) {
			names = append(names, e.Location)
		}
		return names
	}
	if diff := cmp.Diff([]string{"", "", ""}, located()); diff != "" {
		t.Errorf("before it is asked for (-want +got)\n%s", diff)
	}
	const text = "ffffffff81000000 T tcp_v4_rcv\nffffffff82000000 t nf_hook_slow\n"
	if err := errors.Join(os.Remove(file), os.WriteFile(file, []byte(text), 0o600)); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time nothing is read
		k.Locate(from, to)
		if diff := cmp.Diff([]string{"tcp_v4_rcv", "tcp_v4_rcv", "nf_hook_slow"}, located()); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
		_ = os.Remove(file)
	}
}

// fakeProc has one process.
func fakeProc(t *testing.T, stat string) string {
	t.Helper()
	root := t.TempDir()
	dir := filepath.Join(root, "42")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"stat": stat, "cgroup": "0::/system.slice/web.service\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/usr/sbin/web", filepath.Join(dir, "exe")); err != nil {
		t.Fatal(err)
	}
	return root
}

const webStat = "42 (web) S 1 42 42 0 -1 0 1 0 0 0 5 6 0 0 20 0 7 0 500 1 2 3\n"

func TestProcessDetails(t *testing.T) {
	root := fakeProc(t, webStat)
	p := newProcesses(root, t.TempDir())
	web := bpfOwner{Pid: 42, Start: 5_003_000_000, Comm: name("web")}
	want := evidence.Owner{Exe: "/usr/sbin/web", Cgroup: "/system.slice/web.service", Unit: "web.service"}
	for _, what := range []string{"alive", "dead, but known"} {
		var got evidence.Owner
		p.fill(&got, web)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got)\n%s", what, diff)
		}
		os.RemoveAll(filepath.Join(root, "42"))
	}
}

// A process that has another's number is not described as that one.
func TestProcessNumberIsUsedAgain(t *testing.T) {
	p := newProcesses(fakeProc(t, webStat), t.TempDir())
	var got evidence.Owner
	p.fill(&got, bpfOwner{Pid: 42, Start: 4_000_000_000, Comm: name("web")})
	if diff := cmp.Diff(evidence.Owner{}, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	p.fill(nil, bpfOwner{Pid: 42})
}

// The cgroup of a dead process is known by its number, also when it is removed.
func TestCgroupsByNumber(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "system.slice", "web.service")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "cgroup.controllers"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	p := newProcesses(t.TempDir(), root)
	id := inode(t, dir)
	for _, what := range []string{"there", "removed"} {
		if got := p.cgroup(id); got != "/system.slice/web.service" {
			t.Errorf("%s: %q", what, got)
		}
		os.RemoveAll(dir)
		p.walk()
	}
	if got := p.cgroup(1); got != "" {
		t.Errorf("the root is %q", got)
	}
}

// TestTypes needs nothing but a kernel that describes itself.
func TestTypes(t *testing.T) {
	types, err := btf.LoadKernelSpec()
	if err != nil {
		t.Skip(err)
	}
	if n := tracepointArgs(types, "tcp_receive_reset"); n != 1 {
		t.Errorf("tcp_receive_reset has %d arguments", n)
	}
	if n := tracepointArgs(types, "there_is_none"); n != 0 {
		t.Errorf("a tracepoint that is not there has %d arguments", n)
	}
	if names := enumNames(types, "there_is_none", "X"); names != nil {
		t.Errorf("an enum that is not there has %v", names)
	}
	names := enumNames(types, "skb_drop_reason", "SKB_DROP_REASON_")
	if names == nil {
		t.Skip("this kernel has no reasons of drops")
	}
	for n, name := range names {
		if strings.HasPrefix(name, "SKB_DROP_") || name == "MAX" || n > 0xffff {
			t.Errorf("reason %d is %q", n, name)
		}
	}
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}
