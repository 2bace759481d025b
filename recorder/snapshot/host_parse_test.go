package snapshot

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"io"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"tcpcoroner/evidence"
)

func sameAddr(a, b netip.Addr) bool         { return a == b }
func sameAddrPort(a, b netip.AddrPort) bool { return a == b }

// u32, be32 and be64 are values of attributes.
func u32(n uint32) []byte  { return binary.NativeEndian.AppendUint32(nil, n) }
func be32(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }
func be64(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

func TestParseDiagDetails(t *testing.T) {
	info := make([]byte, tcpInfoLen)
	info[1], info[3], info[4], info[5] = 4, 2, 3, 0b0111
	binary.NativeEndian.PutUint32(info[228:], 65535)
	mem := make([]byte, 9*4)
	for i := range 9 {
		binary.NativeEndian.PutUint32(mem[4*i:], uint32(100+i))
	}
	b := diag(unix.AF_INET, 1,
		join(attr(inetDiagInfo, info...), attr(inetDiagCong, 'b', 'b', 'r', '2', 0), attr(inetDiagTOS, 8), attr(inetDiagShutdown, 2),
			attr(inetDiagMark, u32(7)...), attr(inetDiagCgroupID, 1, 2, 0, 0, 0, 0, 0, 0), attr(inetDiagSKMemInfo, mem...))...)
	b[2], b[3] = 4, 5
	copy(b[44:], join(u32(1), u32(2), u32(1500)))
	got, ok := parseDiag(b)
	if !ok {
		t.Fatal("not parsed")
	}
	want := evidence.Socket{State: "established", Local: got.Local, Remote: got.Remote, RecvQueue: 11, SendQueue: 12, UID: 33, Inode: 4711,
		Cookie: 2<<32 | 1, Timer: &evidence.Timer{Kind: evidence.TimerProbe, Expires: 1500 * time.Millisecond, Tries: 5},
		RecvBuffer: 101, SendBuffer: 103, Drops: 108, Congestion: "bbr2", TOS: 8, ShutdownWrite: true, Mark: 7, CgroupID: 0x201,
		Info: &evidence.TCPInfo{CAState: "loss", Probes: 2, Backoff: 3, Options: []string{"timestamps", "sack", "wscale"}, SndWnd: 65535}}
	if d := cmp.Diff(want, got, cmp.Comparer(sameAddrPort)); d != "" {
		t.Error(d)
	}
	for _, kind := range []uint8{0, 9} {
		if got := diagTimer(kind, 1, 1); got != nil {
			t.Errorf("timer %d: %+v", kind, got)
		}
	}
}

// tuple is what ctnetlink writes.
func tuple(typ uint16, src, dst [4]byte, sport, dport uint16, proto byte) []byte {
	port := func(typ, n uint16) []byte { return attr(typ, byte(n>>8), byte(n)) }
	return attr(typ|unix.NLA_F_NESTED, join(attr(1, join(attr(1, src[:]...), attr(2, dst[:]...))...),
		attr(2, join(attr(1, proto), port(2, sport), port(3, dport))...))...)
}

func TestParseTracked(t *testing.T) {
	a, b, c := [4]byte{10, 0, 0, 1}, [4]byte{10, 0, 0, 2}, [4]byte{10, 0, 0, 3}
	ports := func(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
	counters := join(attr(1, be64(5)...), attr(2, be64(600)...))
	full := join([]byte{2, 0, 0, 0}, tuple(1, a, b, 50000, 80, 6), tuple(2, c, a, 8080, 50000, 6),
		attr(3, be32(0x3e)...), attr(4, attr(1, attr(1, 3)...)...), attr(7, be32(120)...), attr(8, be32(9)...),
		attr(9, counters...), attr(10, counters...), attr(18, 0, 4))
	tests := []struct {
		name string
		b    []byte
		want evidence.TrackedFlow
		ok   bool
	}{
		{"full", full, evidence.TrackedFlow{
			Original: evidence.Tuple{Source: ports("10.0.0.1:50000"), Destination: ports("10.0.0.2:80")},
			Reply:    evidence.Tuple{Source: ports("10.0.0.3:8080"), Destination: ports("10.0.0.1:50000")},
			State:    "established", Status: []string{"seen_reply", "assured", "confirmed", "src_nat", "dst_nat"},
			Timeout: 2 * time.Minute, Mark: 9, Zone: 4, Packets: [2]uint64{5, 5}, Bytes: [2]uint64{600, 600}}, true},
		{"other protocol", join([]byte{2, 0, 0, 0}, tuple(1, a, b, 1, 2, 17), tuple(2, b, a, 2, 1, 17)), evidence.TrackedFlow{}, false},
		{"no reply", join([]byte{2, 0, 0, 0}, tuple(1, a, b, 1, 2, 6)), evidence.TrackedFlow{}, false},
		{"short", []byte{2}, evidence.TrackedFlow{}, false},
		{"empty", nil, evidence.TrackedFlow{}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, ok := parseTracked(tt.b)
			if ok != tt.ok {
				t.Fatalf("ok is %t", ok)
			}
			if d := cmp.Diff(tt.want, got, cmp.Comparer(sameAddrPort)); ok && d != "" {
				t.Error(d)
			}
		})
	}
}

func TestTrackedRequest(t *testing.T) {
	for _, tt := range []struct {
		src, dst string
		ok       bool
	}{
		{"10.0.0.1:1", "10.0.0.2:2", true}, {"[::ffff:10.0.0.1]:1", "10.0.0.2:2", true},
		{"[fd00::1]:1", "[fd00::2]:2", true}, {"10.0.0.1:1", "[fd00::2]:2", false},
	} {
		way := evidence.Tuple{Source: netip.MustParseAddrPort(tt.src), Destination: netip.MustParseAddrPort(tt.dst)}
		b, ok := trackedRequest(way)
		if ok != tt.ok {
			t.Errorf("%v: %t", way, ok)
		}
		if !ok {
			continue
		}
		for typ, value := range attributes(b[nfgenLen:]) {
			got, ok := parseTuple(value)
			if typ != 1 || !ok || got.Source.Addr() != way.Source.Addr().Unmap() || got.Source.Port() != 1 || got.Destination.Port() != 2 {
				t.Errorf("%v asks for %+v", way, got)
			}
		}
	}
}

// TestXtables has matches and targets as iptables-nft 1.8 writes them.
func TestXtables(t *testing.T) {
	xt := func(kind, name string, info []byte) []byte {
		return attr(1, join(attr(1, append([]byte(kind), 0)...), attr(2, join(attr(1, append([]byte(name), 0)...), attr(2, be32(1)...), attr(3, info...))...))...)
	}
	hexed := func(s string) []byte { b, _ := hex.DecodeString(strings.ReplaceAll(s, " ", "")); return b }
	multiport := make([]byte, 48)
	copy(multiport, []byte{1, 3})
	copy(multiport[2:], hexed("5000 901f a41f"))
	multiport[2+30+1] = 1
	state := make([]byte, 164)
	state[146], state[150] = 1, 0b110
	alias := make([]byte, 164)
	binary.NativeEndian.PutUint16(alias[146:], 1|1<<13)
	alias[150] = 8
	tests := []struct {
		name   string
		family uint8
		exprs  []byte
		want   string
	}{
		{"reject", unix.NFPROTO_IPV4, join(xt("match", "tcp", hexed("0000ffff 50005000 00 02 02 00")), xt("target", "REJECT", u32(7))),
			"tcp dport 80 flags & syn == syn reject with tcp reset"},
		{"reject of IPv6", unix.NFPROTO_IPV6, join(xt("match", "udp", hexed("00000001 0000ffff 01")), xt("target", "REJECT", u32(4))),
			"udp sport != 0-256 reject with icmpv6 port-unreachable"},
		{"multiport", unix.NFPROTO_IPV4, join(xt("match", "multiport", multiport), xt("target", "DROP", nil)), "th dport { 80, 8080-8100 } drop"},
		{"state", unix.NFPROTO_IPV4, join(xt("match", "conntrack", state), xt("target", "DELUDE", nil)), "ct state established,related delude with tcp reset"},
		{"alias", unix.NFPROTO_IPV4, xt("match", "conntrack", alias), "ct state new"},
		{"connections", unix.NFPROTO_IPV4, join(xt("match", "comment", []byte("busy\x00x")),
			xt("match", "connlimit", join(make([]byte, 16), u32(20), u32(0), make([]byte, 8)))), "ct count over 20"},
		{"unknown", unix.NFPROTO_IPV4, join(xt("match", "owner\x1b", nil), xt("match", "tcp", nil), xt("target", "NFQUEUE", nil), xt("target", "LOG", nil)),
			"[match owner] [match tcp] queue [target LOG]"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := join([]byte{tt.family, 0, 0, 0}, attr(unix.NFTA_RULE_CHAIN, 'c', 0), attr(unix.NFTA_RULE_EXPRESSIONS, tt.exprs...))
			d, ok := parseRule(b, io.Discard)
			if !ok || d.text() != tt.want {
				t.Errorf("%t: %s", ok, d.text())
			}
		})
	}
}

func TestRuleTextIsBounded(t *testing.T) {
	var d decoder
	d.word(strings.Repeat("é", maxRuleText))
	if n := len(d.text()); n > maxRuleText+4 {
		t.Errorf("%d bytes", n)
	}
	if got := parseComment([]byte{0, 4, 'a', 0x1b, 'b', 0}); got != "ab" {
		t.Errorf("comment %q", got)
	}
}

func TestOperandFormat(t *testing.T) {
	for _, tt := range []struct {
		o    operand
		op   string
		v, m []byte
		want string
	}{
		{operand{"ip saddr", addrField, 4}, "", []byte{10, 1, 0, 0}, []byte{255, 240, 0, 0}, "ip saddr 10.1.0.0/12"},
		{operand{"ip saddr", addrField, 4}, "", []byte{10, 0, 0, 1}, []byte{255, 0, 0, 255}, "ip saddr & 255.0.0.255 == 10.0.0.1"},
		{operand{"ip6 saddr", addrField, 4}, "!= ", []byte{0xfd, 0, 0, 1}, nil, "ip6 saddr != fd00:1::/32"},
		{operand{"ct state", stateField, 4}, "", u32(0), u32(8), "ct state != new"},
		{operand{"iifname", nameField, 16}, "", append([]byte("eth0"), make([]byte, 12)...), nil, `iifname "eth0"`},
		{operand{"meta protocol", etherField, 2}, "", []byte{0x86, 0xdd}, nil, "meta protocol ip6"},
		{operand{"x", hexField, 3}, "", []byte{1, 2, 3}, nil, "x 0x010203"},
		{operand{"th dport", portField, 2}, "", nil, nil, "th dport 0x"},
	} {
		if got := tt.o.compare(tt.op, tt.v, tt.m); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
}

func TestParseProcess(t *testing.T) {
	var p evidence.Process
	parseStatus("Name:\tnginx\nState:\tS (sleeping)\nThreads:\t3\nVmRSS:\t    2048 kB\n", &p)
	if p.State != "S (sleeping)" || p.Threads != 3 || p.Resident != 2<<20 {
		t.Errorf("status %+v", p)
	}
	limits := "Limit                     Soft Limit           Hard Limit           Units     \n" +
		"Max open files            1024                 524288               files     \n"
	if got := parseMaxFDs(limits); got != 1024 {
		t.Errorf("limit %d", got)
	}
	if got := parseMaxFDs("Max open files            unlimited            unlimited            files\n"); got != 0 {
		t.Errorf("limit %d of unlimited", got)
	}
	for line, want := range map[string]string{
		"":                                    "",
		"/usr/bin/app\x00--password=x\x00":    "/usr/bin/app",
		"nginx: worker process\x00\x00\x00":   "nginx:",
		"a\x1b[2Jb\x00-t\x00":                 "a[2Jb",
		"postgres: u db 10.0.0.1(5) SELECT 1": "postgres:",
	} {
		if got := programOnly(parseCommand(line)); got != want {
			t.Errorf("%q: %q", line, got)
		}
	}
}

func TestContainerOf(t *testing.T) {
	id := strings.Repeat("0a1b", 16)
	for path, want := range map[string][2]string{
		"/system.slice/docker-" + id + ".scope": {"docker", id},
		"/docker/" + id:                         {"docker", id},
		"/docker/" + id + "/init.scope":         {"docker", id},
		"/kubepods.slice/kubepods-pod1.slice/cri-containerd-" + id + ".scope": {"containerd", id},
		"/kubepods.slice/kubepods-pod1.slice/crio-" + id + ".scope":           {"crio", id},
		"/kubepods.slice/kubepods-pod1.slice/crio-conmon-" + id + ".scope":    {"", ""},
		"/kubepods/burstable/pod5/" + id:                                      {"cri", id},
		"/machine.slice/libpod-" + id + ".scope/container":                    {"podman", id},
		"/user.slice/user-1000.slice/user@1000.service/libpod_parent/" + id:   {"podman", id},
		"/lxc.payload.web/system.slice/nginx.service":                         {"lxc", "web"},
		"/lxc/web":                         {"lxc", "web"},
		"/system.slice/nginx.service":      {"", ""},
		"/system.slice/docker-short.scope": {"", ""},
		"/":                                {"", ""},
		"":                                 {"", ""},
	} {
		if runtime, got := containerOf(path); runtime != want[0] || got != want[1] {
			t.Errorf("%s: %s, %s", path, runtime, got)
		}
	}
}

// writeFiles makes a directory tree, as of sysfs or procfs.
func writeFiles(t *testing.T, files map[string]string) (root string) {
	t.Helper()
	root = t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// TestCgroup reads files as of Linux 6.8 (version 2) and 5.4 (version 1).
func TestCgroup(t *testing.T) {
	stall := "some avg10=1.53 avg60=0.87 avg300=0.31 total=4711\nfull avg10=0.50 avg60=0.00 avg300=0.00 total=12\n"
	want := evidence.Cgroup{Path: "/a.service", Periods: 100, Throttled: 40, ThrottledTime: 2500 * time.Millisecond,
		Memory: 104857600, MaxMemory: 134217728, AtMax: 17, Kills: 2}
	v2 := want
	v2.Pressure = map[string]evidence.Pressure{"cpu": {
		Some: evidence.Stall{Avg10: 1.53, Avg60: 0.87, Avg300: 0.31, Total: 4711 * time.Microsecond},
		Full: evidence.Stall{Avg10: 0.5, Total: 12 * time.Microsecond}}}
	tests := []struct {
		name, cgroup string
		files        map[string]string
		want         []evidence.Cgroup
	}{
		{"version 2", "0::/a.service\n", map[string]string{
			"a.service/cpu.stat":       "usage_usec 9\nnr_periods 100\nnr_throttled 40\nthrottled_usec 2500000\n",
			"a.service/memory.current": "104857600\n", "a.service/memory.max": "134217728\n",
			"a.service/memory.events": "low 0\nhigh 0\nmax 17\noom 3\noom_kill 2\n", "a.service/cpu.pressure": stall,
		}, []evidence.Cgroup{v2}},
		{"version 1", "4:cpu,cpuacct:/a.service\n3:memory:/a.service\n1:name=systemd:/x\n", map[string]string{
			"cpu,cpuacct/a.service/cpu.stat":  "nr_periods 100\nnr_throttled 40\nthrottled_time 2500000000\n",
			"memory/a.service/memory.failcnt": "17\n", "memory/a.service/memory.usage_in_bytes": "104857600\n",
			"memory/a.service/memory.limit_in_bytes": "134217728\n", "memory/a.service/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
		}, []evidence.Cgroup{want}},
		{"no limit", "0::/a.service\n", map[string]string{"a.service/memory.max": "max\n"}, []evidence.Cgroup{{Path: "/a.service"}}},
		{"no limit in version 1", "3:memory:/a.service\n", map[string]string{"memory/a.service/memory.limit_in_bytes": "9223372036854771712\n"},
			[]evidence.Cgroup{{Path: "/a.service"}}},
		{"outside", "0::/../../etc\n", map[string]string{"x": ""}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := &evidence.Snapshot{Implicated: &evidence.Implicated{}}
			taker := New(Config{ProcRoot: writeFiles(t, map[string]string{"7/cgroup": tt.cgroup}), CgroupRoot: writeFiles(t, tt.files)})
			taker.takeCgroup(s, 7, "/a.service")
			if d := cmp.Diff(tt.want, s.Implicated.Cgroups); d != "" || (tt.want == nil) != (len(s.Missing) == 1) {
				t.Errorf("%s\nmissing %+v", d, s.Missing)
			}
		})
	}
}

func TestParseLoad(t *testing.T) {
	var l evidence.Load
	if !parseLoad("0.20 0.18 1.12 3/80 11206\n", &l) {
		t.Error("not parsed")
	}
	parseMemory("MemTotal:        8045280 kB\nMemFree: 1 kB\nMemAvailable:    4022640 kB\n", &l)
	parseCPUs("cpu  1 2 3 4 250 6 7\ncpu0 1 2 3 4 100 6\ncpu1 1 2 3 4 150 6\nintr 5\n", &l)
	want := evidence.Load{Averages: [3]float64{0.2, 0.18, 1.12}, Running: 3, Tasks: 80, CPUs: 2,
		MemoryTotal: 8045280 << 10, MemoryAvailable: 4022640 << 10, IOWait: 2500 * time.Millisecond}
	if d := cmp.Diff(want, l); d != "" {
		t.Error(d)
	}
	for _, bad := range []string{"", "1 2 3", "x 1 2 1/2", "NaN 1 2 1/2"} {
		if parseLoad(bad, &l) {
			t.Errorf("accepted %q", bad)
		}
	}
	if scaled(math.MaxUint64, time.Second) != math.MaxInt64 {
		t.Error("a duration overflows")
	}
}

func TestParseDisks(t *testing.T) {
	text := " 259       0 nvme0n1 100 0 800 50 200 0 1600 70 3 9000 12000 0 0 0 0\n   7       0 loop0 0 0 0 0 0 0 0 0 0 0 0\nshort 1\n"
	want := []evidence.Disk{{Name: "nvme0n1", Reads: 100, Writes: 200, InFlight: 3, Busy: 9 * time.Second, Weighted: 12 * time.Second}}
	if d := cmp.Diff(want, parseDisks(text)); d != "" {
		t.Error(d)
	}
	if got := len(parseDisks(strings.Repeat(" 8 0 sda 1 0 0 0 0 0 0 0 0 0 0\n", 1000))); got != maxDisks {
		t.Errorf("%d disks", got)
	}
}

func TestClockOf(t *testing.T) {
	for _, tt := range []struct {
		state int
		tx    unix.Timex
		want  evidence.Clock
	}{
		{unix.TIME_OK, unix.Timex{Status: unix.STA_PLL | unix.STA_NANO, Offset: -2500, Maxerror: 500, Esterror: 12},
			evidence.Clock{Synchronized: true, Offset: -2500, MaxError: 500 * time.Microsecond, Error: 12 * time.Microsecond}},
		{unix.TIME_ERROR, unix.Timex{Status: unix.STA_UNSYNC, Offset: 3, Maxerror: 16000000},
			evidence.Clock{Offset: 3 * time.Microsecond, MaxError: 16 * time.Second}},
	} {
		if d := cmp.Diff(tt.want, clockOf(tt.state, &tt.tx)); d != "" {
			t.Error(d)
		}
	}
}

func TestParsePorts(t *testing.T) {
	r, ok := parsePortRange("32768\t60999\n")
	if !ok || r.First != 32768 || r.Last != 60999 || r.Available() != 28232 {
		t.Errorf("range %+v, %t", r, ok)
	}
	for text, want := range map[string]int{"\n": 0, "8080,32768-32777,60999\n": 11, "60990-65535": 10, "1-65535": 28232, "x-y,7-": 0} {
		if got := parseReserved(text, r); got != want {
			t.Errorf("%q: %d", text, got)
		}
	}
	for _, bad := range []string{"", "1", "9 1", "1 99999", "a b"} {
		if _, ok := parsePortRange(bad); ok {
			t.Errorf("accepted %q", bad)
		}
	}
}

func TestParsePackages(t *testing.T) {
	text := "53:11 install cut:amd64 <none> 1\n" +
		"2026-11-23 16:00:00 upgrade old:all 1 2\n" +
		"2026-11-23 17:53:11 startup archives unpack\n" +
		"2026-11-23 17:53:11 upgrade libc6:amd64 2.36-9 2.36-10\n" +
		"2026-11-23 17:53:11 status installed libc-bin:amd64 2.36-9+deb12u14\n" +
		"2026-11-23 17:54:00 install nginx:amd64 <none> 1.22\n" +
		"2026-11-23 17:55:00 remove nginx:amd64 1.22 <none>\n"
	at := func(s string) time.Time { v, _ := time.Parse(time.DateTime, "2026-11-23 "+s); return v }
	want := []evidence.Change{
		{Time: at("17:53:11"), Kind: evidence.ChangePackage, What: "libc6:amd64", Before: "2.36-9", After: "2.36-10"},
		{Time: at("17:54:00"), Kind: evidence.ChangePackage, What: "nginx:amd64", After: "1.22"},
		{Time: at("17:55:00"), Kind: evidence.ChangePackage, What: "nginx:amd64", Before: "1.22"},
	}
	if d := cmp.Diff(want, parsePackages(text, time.UTC, at("17:00:00"))); d != "" {
		t.Error(d)
	}
	long := strings.Repeat("2026-11-23 17:54:00 install nginx:amd64 <none> 1.22\n", 5000)
	taker := New(Config{PackageLog: filepath.Join(writeFiles(t, map[string]string{"log": long}), "log")})
	if got, err := taker.packages(time.Time{}); err != nil || len(got) != maxChanges {
		t.Errorf("%d of a long log: %v", len(got), err)
	}
	if _, err := New(Config{PackageLog: t.TempDir() + "/none"}).packages(time.Time{}); err == nil {
		t.Error("no log is no error")
	}
}

func TestHistories(t *testing.T) {
	var h histories
	at := time.Date(2026, 11, 23, 2, 0, 0, 0, time.UTC)
	value := func(v string) []evidence.Sysctl { return []evidence.Sysctl{{Name: "a", Value: v}} }
	steps := []struct {
		after time.Duration
		now   state
		want  int
	}{
		{0, state{"x", value("1")}, 0},
		{time.Minute, state{"x", value("1")}, 0},
		{2 * time.Minute, state{"y", value("2")}, 2},
		{3 * time.Minute, state{"", nil}, 2},         // nothing could be read
		{4 * time.Minute, state{"y", value("2")}, 2}, // and nothing changed
		{65 * time.Minute, state{"z", value("2")}, 1},
	}
	for i, s := range steps {
		if got := h.observe(1, at.Add(s.after), s.now); len(got) != s.want {
			t.Errorf("step %d: %+v", i, got)
		}
	}
	for ns := range uint64(2 * maxNamespaces) {
		h.observe(ns+2, at, state{})
	}
	if len(h.of) != maxNamespaces {
		t.Errorf("holds %d namespaces", len(h.of))
	}
}

func TestTimeline(t *testing.T) {
	at := time.Date(2026, 11, 23, 2, 13, 0, 0, time.UTC)
	sample := func(second int, rsts, tw uint64) evidence.Counters {
		return evidence.Counters{Time: at.Add(time.Duration(second) * time.Second),
			Values: map[string]uint64{"Tcp.OutRsts": rsts, "Sockstat.TCP.tw": tw, "Tcp.NoSuch": 1}}
	}
	l := NewTimeline(42, 3)
	for i, v := range [][2]uint64{{1 << 40, 100}, {1<<40 + 1, 90}, {1<<40 + 5, 95}, {1<<40 + 5, 0}} {
		var ct *evidence.Conntrack
		if i > 1 {
			ct = &evidence.Conntrack{Count: uint64(i)}
		}
		l.Add(sample(i, v[0], v[1]), ct)
	}
	s := l.Window(at, at.Add(time.Hour))
	if s.NetNS != 42 || len(s.Times) != 3 || !s.Times[0].Equal(at.Add(time.Second)) || l.Restarts() != 0 {
		t.Fatalf("series %+v", s)
	}
	for name, want := range map[string][]uint64{
		"Tcp.OutRsts": {1<<40 + 1, 1<<40 + 5, 1<<40 + 5}, "Sockstat.TCP.tw": {90, 95, 0}, "Conntrack.count": {0, 2, 3},
	} {
		if got := s.Line(name); got == nil || !slices.Equal(got.Values, want) {
			t.Errorf("%s: %+v", name, got)
		}
	}
	if s.Line("Tcp.NoSuch") != nil || s.Line("TcpExt.ListenDrops") != nil {
		t.Error("a number that was never there")
	}
	if part := l.Window(at.Add(2*time.Second), at.Add(2*time.Second)); len(part.Times) != 1 || part.Line("Tcp.OutRsts").Values[0] != 1<<40+5 {
		t.Errorf("part %+v", part)
	}
	l.Add(sample(2, 1<<40, 1), nil) // the clock went back
	if s := l.Window(time.Time{}, at.Add(time.Hour)); l.Restarts() != 1 || len(s.Times) != 1 || s.Line("Tcp.OutRsts").Values[0] != 1<<40 {
		t.Errorf("after a step back %+v", s)
	}
	l.Add(sample(5, 7, 1), nil) // another namespace's number
	if s := l.Window(time.Time{}, at.Add(time.Hour)); l.Restarts() != 2 || s.Line("Tcp.OutRsts").Values[0] != 7 {
		t.Errorf("after a leap %+v", s)
	}
}

func BenchmarkTimelineAdd(b *testing.B) {
	values := map[string]uint64{}
	for _, name := range timelineNames {
		values[name] = 1 << 40
	}
	l, at := NewTimeline(1, 600), time.Unix(0, 0)
	b.ReportAllocs()
	for b.Loop() {
		at = at.Add(time.Second)
		l.Add(evidence.Counters{Time: at, Values: values}, &evidence.Conntrack{})
	}
}

func TestImplicatedPIDs(t *testing.T) {
	end := netip.MustParseAddrPort
	server, client := end("10.0.0.1:80"), end("10.0.0.2:50000")
	sock := func(state, local, remote string, pid int) evidence.Socket {
		s := evidence.Socket{State: state, Local: end(local), Owner: &evidence.Owner{PID: pid}}
		if remote != "" {
			s.Remote = end(remote)
		}
		return s
	}
	sockets := []evidence.Socket{
		sock("established", "10.0.0.1:80", "10.0.0.2:50000", 2), sock("established", "10.0.0.1:80", "10.0.0.2:50001", 3),
		sock("listen", "[::]:80", "", 4), sock("listen", "0.0.0.0:81", "", 5), sock("listen", "10.0.0.1:80", "", 6),
		sock("listen", "10.0.0.9:80", "", 7), sock("established", "10.0.0.1:9", "10.0.0.3:1", 8), {State: "time_wait"},
	}
	w := Implicated{Tuples: []evidence.FlowKey{evidence.NewFlowKey(server, client)}, PIDs: []int{1}, Peers: []netip.Addr{netip.MustParseAddr("10.0.0.3")}}
	if got := w.pids(sockets); !slices.Equal(got, []int{1, 2, 4, 6, 8}) {
		t.Errorf("processes %v", got)
	}
	if got := w.peers(); len(got) != 3 {
		t.Errorf("peers %v", got)
	}
	few := &evidence.Snapshot{Sockets: sockets}
	many := &evidence.Snapshot{Sockets: slices.Repeat(sockets, maxDetailed/len(sockets)+1)}
	for _, s := range []*evidence.Snapshot{few, many} {
		for i := range s.Sockets {
			s.Sockets[i].Info = &evidence.TCPInfo{}
		}
		w.slim(t.Context(), s)
	}
	if few.Sockets[1].Info == nil || many.Sockets[1].Info != nil || many.Sockets[0].Info == nil || many.Sockets[5].Info == nil || len(many.Missing) != 1 {
		t.Errorf("missing %+v", many.Missing)
	}
}

func TestReadFileIsBounded(t *testing.T) {
	path := filepath.Join(writeFiles(t, map[string]string{"f": strings.Repeat("x", 1<<20)}), "f")
	if text, err := New(Config{}).readFile(path, 4096); err != nil || len(text) != 4096 {
		t.Errorf("%d bytes: %v", len(text), err)
	}
}

func TestParseNeighbor(t *testing.T) {
	head := make([]byte, unix.SizeofNdMsg)
	copy(head[4:], u32(3))
	binary.NativeEndian.PutUint16(head[8:], unix.NUD_FAILED)
	got, ok := parseNeighbor(join(head, attr(unix.NDA_DST, 10, 0, 0, 1)))
	want := evidence.Neighbor{Address: netip.MustParseAddr("10.0.0.1"), Index: 3, State: "failed"}
	if d := cmp.Diff(want, got, cmp.Comparer(sameAddr)); !ok || d != "" {
		t.Errorf("%t: %s", ok, d)
	}
	if _, ok := parseNeighbor(head); ok {
		t.Error("accepted one without address")
	}
}

// FuzzHostNetlink feeds the parsers of what the kernel says about connections,
// routes and rules.
func FuzzHostNetlink(f *testing.F) {
	a := [4]byte{10, 0, 0, 1}
	f.Add(join([]byte{2, 0, 0, 0}, tuple(1, a, a, 1, 2, 6), tuple(2, a, a, 2, 1, 6)))
	f.Add(join([]byte{1, 0, 0, 0}, attr(unix.NFTA_RULE_CHAIN, 'c', 0), attr(unix.NFTA_RULE_EXPRESSIONS,
		attr(1, join(attr(1, 'c', 'm', 'p', 0), attr(2, attr(3, attr(1, 1)...)...))...)...)))
	f.Add(join(make([]byte, unix.SizeofRtMsg), attr(unix.RTA_DST, 10, 0, 0, 1), attr(unix.RTA_METRICS, attr(unix.RTAX_MTU, 0, 5, 0, 0)...)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if flow, ok := parseTracked(b); ok && !flow.Original.Source.IsValid() {
			t.Errorf("accepted %+v", flow)
		}
		var r evidence.Route
		parseRoute(b, true, &r)
		if n, ok := parseNeighbor(b); ok && n.State == "" {
			t.Errorf("accepted %+v", n)
		}
		parseChain(b)
		d, _ := parseRule(b, sha256.New())
		for _, use := range d.sets {
			setText(use, parseElements(b))
		}
		if len(d.text()) > maxRuleText+4 {
			t.Errorf("%d bytes of text", len(d.text()))
		}
		matchText("tcp", b)
		matchText("multiport", b)
		matchText("conntrack", b)
	})
}

// FuzzHostTexts feeds the parsers of files.
func FuzzHostTexts(f *testing.F) {
	for _, s := range []string{
		"some avg10=1.53 avg60=0.87 avg300=0.31 total=4711\n", "nr_periods 1\n", "0::/docker/x\n", "1,2-3\n", "32768 60999",
		"2026-11-23 17:54:00 install nginx:amd64 <none> 1.22\n", "a\x00b\x00", "0.1 0.2 0.3 1/2 3\n", "Max open files 1 2 files\n",
		" 8 0 sda 1 0 0 0 0 0 0 0 0 0 0\n", "MemTotal: 1 kB\n", "cpu 1 2 3 4 5\n", "State:\tS (sleeping)\n",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var g evidence.Cgroup
		for _, parse := range cgroupFiles {
			parse(s, &g)
		}
		var l evidence.Load
		parseLoad(s, &l)
		parseMemory(s, &l)
		parseCPUs(s, &l)
		var p evidence.Process
		parseStatus(s, &p)
		parseMaxFDs(s)
		containerOf(s)
		programOnly(parseCommand(s))
		parseDisks(s)
		parsePackages(s, time.UTC, time.Time{})
		for _, dir := range cgroupDirs("/root", s) {
			if !strings.HasPrefix(dir, "/root/") && dir != "/root" {
				t.Errorf("outside: %s", dir)
			}
		}
		if r, ok := parsePortRange(s); ok && parseReserved(s, r) < 0 {
			t.Error("negative")
		}
		if l.IOWait < 0 || g.ThrottledTime < 0 || p.Threads < 0 && !strings.Contains(s, "-") {
			t.Errorf("negative: %+v", l)
		}
	})
}
