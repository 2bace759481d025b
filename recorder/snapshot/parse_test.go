package snapshot

import (
	"encoding/binary"
	"errors"
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

func TestParsePairs(t *testing.T) {
	tests := []struct {
		name, text string
		want       map[string]uint64
	}{
		{"snmp", "Ip: Forwarding OutNoRoutes\nIp: 2 3\n" +
			"Tcp: MaxConn OutRsts InCsumErrors\nTcp: -1 7 0\nUdp: NoPorts\nUdp: 9\n",
			map[string]uint64{"Ip.OutNoRoutes": 3, "Tcp.OutRsts": 7, "Tcp.InCsumErrors": 0}},
		{"old kernel lacks names", "TcpExt: ListenOverflows ListenDrops\nTcpExt: 1 2\n",
			map[string]uint64{"TcpExt.ListenOverflows": 1, "TcpExt.ListenDrops": 2}},
		{"large values", "TcpExt: TCPMD5Failure\nTcpExt: 18446744073709551615\n",
			map[string]uint64{"TcpExt.TCPMD5Failure": 18446744073709551615}},
		{"truncated values", "Tcp: ActiveOpens OutRsts\nTcp: 4\n", map[string]uint64{"Tcp.ActiveOpens": 4}},
		{"names without values", "Tcp: OutRsts\n", map[string]uint64{}},
		{"empty", "", map[string]uint64{}},
		{"noise", "\n: \nTcp:\nTcp: x y\n", map[string]uint64{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := map[string]uint64{}
			parsePairs(tt.text, got)
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestParseSockstatAndSoftnet(t *testing.T) {
	got := map[string]uint64{}
	parseSockstat("sockets: used 13\nTCP: inuse 1 orphan 2 tw 3 alloc 4 mem 73\nFRAG: inuse 0 memory\n", got)
	parseSockstat("TCP6: inuse 5\n", got)
	parseSoftnet("0000001e 00000001 00000002 00000000\n0000b19f 0000000f 00000010\nshort\n", got)
	want := map[string]uint64{
		"Sockstat.sockets.used": 13, "Sockstat.TCP.inuse": 1, "Sockstat.TCP.orphan": 2,
		"Sockstat.TCP.tw": 3, "Sockstat.TCP.alloc": 4, "Sockstat.TCP.mem": 73,
		"Sockstat.FRAG.inuse": 0, "Sockstat.TCP6.inuse": 5,
		"Softnet.dropped": 16, "Softnet.time_squeeze": 18,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestParseStat(t *testing.T) {
	tail := " S 1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 "
	tests := []struct {
		name, text, comm string
		ticks            uint64
		ok               bool
	}{
		{"plain", "123 (nginx)" + tail + "4711 0 0", "nginx", 4711, true},
		{"spaces", "123 (tmux: server)" + tail + "1 0", "tmux: server", 1, true},
		{"parentheses", "9 (a) R (b) c)" + tail + "99\n", "a) R (b) c", 99, true},
		{"empty name", "9 ()" + tail + "5", "", 5, true},
		{"cut short", "9 (a)" + tail, "", 0, false},
		{"no name", "9 a b c", "", 0, false},
		{"empty", "", "", 0, false},
		{"reversed", ")(", "", 0, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			comm, ticks, ok := parseStat(tt.text)
			if ok != tt.ok || ok && (comm != tt.comm || ticks != tt.ticks) {
				t.Errorf("got %q, %d, %t", comm, ticks, ok)
			}
		})
	}
}

func TestParseProcessDetails(t *testing.T) {
	if got := parseBootTime("cpu  1 2\nbtime 1763890000\nprocesses 1\n"); got != 1763890000 {
		t.Errorf("btime %d", got)
	}
	if got := parseBootTime("cpu 1\n"); got != 0 {
		t.Errorf("btime %d without one", got)
	}
	if got := parseUID("Name:\tx\nUid:\t1000\t33\t33\t33\nGid:\t1\t1\t1\t1\n"); got != 33 {
		t.Errorf("effective user %d", got)
	}
	for link, want := range map[string]uint32{
		"socket:[4711]": 4711, "socket:[4294967295]": 4294967295,
		"socket:[]": 0, "socket:[4711": 0, "pipe:[5]": 0, "/dev/null": 0, "socket:[99999999999]": 0,
	} {
		if got, ok := parseSocketLink([]byte(link)); ok != (want != 0) || ok && got != want {
			t.Errorf("%q: %d, %t", link, got, ok)
		}
	}
}

func TestParseCgroup(t *testing.T) {
	tests := []struct{ name, text, path, unit string }{
		{"v2", "0::/system.slice/nginx.service\n", "/system.slice/nginx.service", "nginx.service"},
		{"v2 sub-group", "0::/system.slice/app.service/pool\n", "/system.slice/app.service/pool", "app.service"},
		{"user service", "0::/user.slice/user-1000.slice/user@1000.service/app.slice/web.service\n",
			"/user.slice/user-1000.slice/user@1000.service/app.slice/web.service", "web.service"},
		{"session", "0::/user.slice/user-0.slice/session-3.scope\n", "/user.slice/user-0.slice/session-3.scope", "session-3.scope"},
		{"template", "0::/system.slice/system-getty.slice/getty@tty1.service\n",
			"/system.slice/system-getty.slice/getty@tty1.service", "getty@tty1.service"},
		{"escaped", `0::/system.slice/my\x2dapp.service` + "\n", `/system.slice/my\x2dapp.service`, `my\x2dapp.service`},
		{"kubernetes", "0::/kubepods.slice/kubepods-burstable.slice/cri-containerd-0a1b.scope\n",
			"/kubepods.slice/kubepods-burstable.slice/cri-containerd-0a1b.scope", "cri-containerd-0a1b.scope"},
		{"docker without systemd", "0::/docker/0a1b2c\n", "/docker/0a1b2c", ""},
		{"pid 1", "0::/init.scope\n", "/init.scope", "init.scope"},
		{"slice only", "0::/system.slice\n", "/system.slice", ""},
		{"v1", "9:name=systemd:/system.slice/ssh.service\n4:memory:/system.slice\n", "/system.slice/ssh.service", "ssh.service"},
		{"hybrid, v2 empty", "9:name=systemd:/system.slice/ssh.service\n8:pids:/x\n0::/\n", "/system.slice/ssh.service", "ssh.service"},
		{"v1 without systemd", "8:pids:/\n4:memory:/box/1\n3:cpu:/box/2\n0::/\n", "/box/1", ""},
		{"colon in path", "0::/a:b.service\n", "/a:b.service", "a:b.service"},
		{"other cgroup namespace", "0::/../../system.slice/x.service\n", "/../../system.slice/x.service", "x.service"},
		{"bare suffix is no unit", "0::/.service/.scope\n", "/.service/.scope", ""},
		{"root", "0::/\n", "/", ""},
		{"empty", "", "", ""},
		{"noise", "x\ny:z\n", "/", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := evidence.ParseCgroup(tt.text)
			if path != tt.path || evidence.UnitOf(path) != tt.unit {
				t.Errorf("got %q, unit %q", path, evidence.UnitOf(path))
			}
		})
	}
}

func TestHolderOrder(t *testing.T) {
	h := func(pid int, comm string, ticks uint64) holder {
		return holder{&evidence.Owner{PID: pid, Comm: comm}, ticks}
	}
	tests := []struct {
		name        string
		first, then holder
	}{
		{"master before worker", h(900, "nginx", 10), h(100, "nginx", 11)},
		{"service before the manager that opened its socket", h(900, "sshd", 5000), h(1, "systemd", 1)},
		{"lower pid in the same tick", h(5, "a", 7), h(6, "a", 7)},
	}
	for _, tt := range tests {
		if !tt.first.before(tt.then) || tt.then.before(tt.first) {
			t.Error(tt.name)
		}
	}
}

func TestParseCTStat(t *testing.T) {
	modern := "entries  clashres found new invalid ignore delete chainlength insert insert_failed drop early_drop icmp_error  expect_new expect_create expect_delete search_restart\n" +
		"0000000a  00000000 00000000 00000000 00000001 00000000 00000000 00000000 00000000 00000002 00000010 00000004 00000000  00000000 00000000 00000000 00000000\n" +
		"0000000a  00000000 00000000 00000000 00000001 00000000 00000000 00000000 00000000 00000002 00000010 00000004 00000000  00000000 00000000 00000000 00000000\n"
	old := "entries  searched found new invalid ignore delete delete_list insert insert_failed drop early_drop icmp_error  expect_new expect_create expect_delete search_restart\n" +
		"0000000a  00000000 00000000 00000000 00000003 00000000 00000000 00000000 00000000 00000000 00000000 00000001\n"
	tests := []struct {
		name, text string
		want       evidence.Conntrack
		ok         bool
	}{
		{"two CPUs", modern, evidence.Conntrack{Invalid: 2, InsertFailed: 4, Drop: 32, EarlyDrop: 8}, true},
		{"old names, short row", old, evidence.Conntrack{Invalid: 3, EarlyDrop: 1}, true},
		{"empty", "", evidence.Conntrack{}, false},
		{"head only", "entries drop early_drop\n", evidence.Conntrack{}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got evidence.Conntrack
			if ok := parseCTStat(tt.text, &got); ok != tt.ok {
				t.Errorf("found: %t", ok)
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

// attr builds one netlink attribute, padded.
func attr(typ uint16, value ...byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(value)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, value...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

// entry is a conntrack entry as ctnetlink writes it.
func entry(ip, proto []byte) []byte {
	const nested = 1 << 15
	tuple := append(attr(1|nested, ip...), attr(2|nested, proto...)...)
	return append(make([]byte, nfgenLen), attr(1|nested, tuple...)...)
}

func join(parts ...[]byte) (all []byte) {
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func TestParseEntry(t *testing.T) {
	v4 := join(attr(1, 10, 0, 0, 1), attr(2, 10, 0, 0, 2))
	v6 := join(attr(3, netip.MustParseAddr("fd99::1").AsSlice()...), attr(4, netip.MustParseAddr("fd99::2").AsSlice()...))
	tcp := join(attr(1, 6), attr(2, 0x80, 0), attr(3, 0x01, 0xbb))
	tests := []struct {
		name string
		b    []byte
		want evidence.Talker
		ok   bool
	}{
		{"tcp", entry(v4, tcp), evidence.Talker{Source: netip.MustParseAddr("10.0.0.1"),
			Destination: netip.MustParseAddrPort("10.0.0.2:443"), Protocol: "tcp", Entries: 3}, true},
		{"ipv6, no ports", entry(v6, attr(1, 58)), evidence.Talker{Source: netip.MustParseAddr("fd99::1"),
			Destination: netip.MustParseAddrPort("[fd99::2]:0"), Protocol: "ipv6-icmp", Entries: 3}, true},
		{"unnamed protocol", entry(v4, attr(1, 89)), evidence.Talker{Source: netip.MustParseAddr("10.0.0.1"),
			Destination: netip.MustParseAddrPort("10.0.0.2:0"), Protocol: "89", Entries: 3}, true},
		{"no destination", entry(attr(1, 10, 0, 0, 1), tcp), evidence.Talker{}, false},
		{"bad address", entry(attr(1, 10, 0), tcp), evidence.Talker{}, false},
		{"empty", nil, evidence.Talker{}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			k, ok := parseEntry(tt.b)
			if ok != tt.ok {
				t.Fatalf("ok is %t", ok)
			}
			if d := cmp.Diff(tt.want, k.talker(3), cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
				cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); ok && d != "" {
				t.Error(d)
			}
		})
	}
}

func TestTallyIsBounded(t *testing.T) {
	c := tally{entries: map[talker]uint64{}}
	heavy := talker{port: 443}
	c.add(heavy)
	for i := range uint32(maxTalkers + 1000) {
		var k talker
		binary.BigEndian.PutUint32(k.src[:], i+1)
		c.add(k)
	}
	c.add(heavy)
	if len(c.entries) != maxTalkers || c.sampled != maxTalkers+1002 {
		t.Errorf("holds %d, counted %d", len(c.entries), c.sampled)
	}
	top := c.top()
	if len(top) != topTalkers || top[0].Entries != 2 || top[0].Destination.Port() != 443 {
		t.Errorf("top talkers %v", top)
	}
}

// diag is an inet_diag message of an established IPv4 connection.
func diag(family, state uint8, attrs ...byte) []byte {
	b := make([]byte, diagLen)
	b[0], b[1] = family, state
	binary.BigEndian.PutUint16(b[4:], 443)
	binary.BigEndian.PutUint16(b[6:], 50000)
	copy(b[8:], []byte{10, 0, 0, 1})
	copy(b[24:], []byte{10, 0, 0, 2})
	for i, n := range []uint32{11, 12, 33, 4711} {
		binary.NativeEndian.PutUint32(b[56+4*i:], n)
	}
	return append(b, attrs...)
}

func TestParseDiag(t *testing.T) {
	old := make([]byte, 104) // Linux 3.2: ends after total_retrans
	old[2] = 5
	binary.NativeEndian.PutUint32(old[8:], 204000)
	binary.NativeEndian.PutUint32(old[52:], 60000)
	binary.NativeEndian.PutUint32(old[100:], 9)
	mapped := diag(unix.AF_INET6, 1)
	copy(mapped[8:], netip.MustParseAddr("::ffff:10.0.0.1").AsSlice())
	copy(mapped[24:], netip.MustParseAddr("::ffff:10.0.0.2").AsSlice())
	base := evidence.Socket{State: "established", Local: netip.MustParseAddrPort("10.0.0.1:443"),
		Remote: netip.MustParseAddrPort("10.0.0.2:50000"), RecvQueue: 11, SendQueue: 12, UID: 33, Inode: 4711}
	withInfo := base
	withInfo.Info = &evidence.TCPInfo{Retransmits: 5, RTO: 204 * time.Millisecond, LastReceived: time.Minute, TotalRetrans: 9}
	listener := base
	listener.State, listener.Remote = "listen", netip.AddrPort{}
	waiting := base
	waiting.State = "time_wait"
	tests := []struct {
		name string
		b    []byte
		want evidence.Socket
		ok   bool
	}{
		{"established", diag(unix.AF_INET, 1), base, true},
		{"old tcp_info", diag(unix.AF_INET, 1, attr(inetDiagInfo, old...)...), withInfo, true},
		{"v4-mapped", mapped, base, true},
		{"listener has no remote and no info", diag(unix.AF_INET, 10, attr(inetDiagInfo, old...)...), listener, true},
		{"time_wait", diag(unix.AF_INET, 6), waiting, true},
		{"unknown state", diag(unix.AF_INET, 77), evidence.Socket{}, false},
		{"state 0", diag(unix.AF_INET, 0), evidence.Socket{}, false},
		{"short", diag(unix.AF_INET, 1)[:diagLen-1], evidence.Socket{}, false},
		{"empty", nil, evidence.Socket{}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, ok := parseDiag(tt.b)
			if ok != tt.ok {
				t.Fatalf("ok is %t", ok)
			}
			if d := cmp.Diff(tt.want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestMessages(t *testing.T) {
	message := func(size uint32, typ uint16, data ...byte) []byte {
		b := make([]byte, unix.SizeofNlMsghdr)
		binary.NativeEndian.PutUint32(b, size)
		binary.NativeEndian.PutUint16(b[4:], typ)
		return append(b, data...)
	}
	failed := binary.NativeEndian.AppendUint32(nil, uint32(0xffffffff)) // -EPERM
	for name, tt := range map[string]struct {
		bytes []byte
		want  []uint16
		err   error
	}{
		"padded":           {join(message(17, 20, 1, 0, 0, 0), message(16, unix.NLMSG_DONE)), []uint16{20, unix.NLMSG_DONE}, nil},
		"failed":           {message(20, unix.NLMSG_ERROR, failed...), []uint16{unix.NLMSG_ERROR}, unix.EPERM},
		"acknowledged":     {message(20, unix.NLMSG_ERROR, 0, 0, 0, 0), []uint16{unix.NLMSG_ERROR}, nil},
		"longer than said": {message(15, 20), nil, nil},
		"cut off":          {join(message(16, 20), message(40, 21, 1)), []uint16{20}, nil},
		"empty":            {nil, nil, nil},
	} {
		var got []uint16
		var err error
		for typ, data := range messages(tt.bytes) {
			got, err = append(got, typ), messageError(data)
		}
		if !slices.Equal(got, tt.want) || !errors.Is(err, tt.err) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

// FuzzNetlinkParsers feeds the parsers of kernel bytes. They must not panic, and
// what they accept must be well-formed.
func FuzzNetlinkParsers(f *testing.F) {
	f.Add(diag(unix.AF_INET, 1, attr(inetDiagInfo, make([]byte, 248)...)...))
	f.Add(entry(join(attr(1, 10, 0, 0, 1), attr(2, 10, 0, 0, 2)), join(attr(1, 6), attr(3, 1, 187))))
	f.Add(join(make([]byte, unix.SizeofIfInfomsg), attr(unix.IFLA_IFNAME, 'l', 'o', 0), attr(unix.IFLA_MTU, 1, 2)))
	f.Add(join(make([]byte, nfgenLen), attr(11, 0, 0, 0, 1)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, ok := parseDiag(b); ok && (s.State == "" || !s.Local.IsValid()) {
			t.Errorf("accepted %+v", s)
		}
		if k, ok := parseEntry(b); ok && !k.talker(1).Source.IsValid() {
			t.Errorf("accepted %+v", k)
		}
		if s, ok := parseLink(b); ok && s.Name == "" {
			t.Errorf("accepted %+v", s)
		}
		var sum evidence.Conntrack
		parseCTCounters(b, &sum)
		for _, data := range messages(b) {
			_ = messageError(data)
		}
	})
}

// FuzzProcParsers feeds the parsers of proc(5) texts.
func FuzzProcParsers(f *testing.F) {
	for _, s := range []string{"Tcp: OutRsts\nTcp: 1\n", "TCP: inuse 1\n", "1 (a b) S 1", "0::/a.service\n", "Uid:\t1\t2\n", "btime 1\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		v := map[string]uint64{}
		parsePairs(s, v)
		parseSockstat(s, v)
		parseSoftnet(s, v)
		parseStat(s)
		parseBootTime(s)
		parseUID(s)
		var ct evidence.Conntrack
		parseCTStat(s, &ct)
		if unit := evidence.UnitOf(evidence.ParseCgroup(s)); strings.Contains(unit, "/") {
			t.Errorf("unit %q", unit)
		}
	})
}

// A file that is longer than the buffer is read whole, and after Close anew.
func TestReadLongFile(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "thread-self/net")
	if err := os.MkdirAll(dir, 0o750); err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("0", 3*bufferBytes)
	if err := os.WriteFile(filepath.Join(dir, "snmp"), []byte(long), 0o600); err != nil {
		t.Fatal(err)
	}
	taker := New(Config{ProcRoot: root})
	for range 2 {
		taker.files.enter(root)
		buf := taker.buffer()
		held, err := taker.files.read(root, "snmp", buf)
		text, err2 := taker.read("thread-self/net/snmp")
		if err := errors.Join(err, err2, taker.Close()); err != nil || held != long || text != long {
			t.Errorf("%d and %d bytes: %v", len(held), len(text), err)
		}
	}
}
