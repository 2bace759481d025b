package snapshot

import (
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"tcpcoroner/evidence"
	"tcpcoroner/internal/netlab"
)

// lookFor takes a snapshot for the sake of something in the namespace, which the
// Taker enters by itself.
func lookFor(t testing.TB, ns *netlab.NS, what Implicated) *evidence.Snapshot {
	t.Helper()
	return New(Config{NetNS: filepath.Join("/run/netns", ns.Name)}).TakeFor(t.Context(), what)
}

func nft(t testing.TB, ns *netlab.NS, rules string) {
	t.Helper()
	cmd := ns.Command(t.Context(), "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v: %s", err, out)
	}
}

// connect opens one connection from client to server and accepts it.
func connect(t testing.TB, lab *netlab.Lab, l net.Listener) (client, server net.Conn) {
	t.Helper()
	c := lab.Client.Dial(t, l.Addr().String())
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return c, s
}

func addrPort(a net.Addr) netip.AddrPort { return netip.MustParseAddrPort(a.String()) }

func TestTakeForConnection(t *testing.T) {
	lab := netlab.New(t)
	l := lab.Server.Listen(t, netlab.ServerIP4+":0")
	c, _ := connect(t, lab, l)
	tuple := evidence.NewFlowKey(addrPort(c.LocalAddr()), addrPort(c.RemoteAddr()))
	s := lookFor(t, lab.Server, Implicated{Tuples: []evidence.FlowKey{tuple}, PIDs: []int{1 << 30}})
	if m := missing(s, "process 1073741824"); m == nil || len(s.Missing) != 1 {
		t.Errorf("missing %+v", s.Missing)
	}
	checkProcess(t, s)
	checkSocket(t, s, tuple)
	checkRoutes(t, s)
	i := s.Implicated
	if i.Load == nil || i.Load.Tasks == 0 || i.Load.CPUs == 0 || i.Load.MemoryTotal == 0 || i.Load.MemoryAvailable == 0 || len(i.Load.Pressure) != 3 {
		t.Errorf("load %+v", i.Load)
	}
	if i.Clock == nil || i.Clock.Boot.IsZero() || i.Clock.Boot.After(time.Now()) {
		t.Errorf("clock %+v", i.Clock)
	}
	if i.Ports == nil || i.Ports.First == 0 || i.Ports.Available() < 1000 {
		t.Errorf("ports %+v", i.Ports)
	}
	if !slices.ContainsFunc(i.Sysctls, func(s evidence.Sysctl) bool {
		return s.Name == "net.ipv4.tcp_retries2" && s.Value != "" && !s.Changed()
	}) {
		t.Errorf("sysctls %+v", i.Sysctls)
	}
}

func checkProcess(t *testing.T, s *evidence.Snapshot) {
	t.Helper()
	if len(s.Implicated.Processes) != 1 {
		t.Fatalf("processes %+v", s.Implicated.Processes)
	}
	p := s.Implicated.Processes[0]
	if p.PID != os.Getpid() || p.Command != os.Args[0] || p.Threads < 2 || p.FDs < 3 || p.MaxFDs == 0 || p.Resident == 0 || p.State == "" || p.Started.IsZero() {
		t.Errorf("process %+v", p)
	}
	if len(s.Implicated.Cgroups) != 1 || s.Implicated.Cgroups[0].Path != p.Cgroup {
		t.Errorf("control groups %+v", s.Implicated.Cgroups)
	}
	if !slices.ContainsFunc(s.Implicated.Changes, func(c evidence.Change) bool {
		return c.Kind == evidence.ChangeStart && strings.Contains(c.What, p.Comm)
	}) {
		t.Errorf("changes %+v", s.Implicated.Changes)
	}
}

func checkSocket(t *testing.T, s *evidence.Snapshot, tuple evidence.FlowKey) {
	t.Helper()
	sock := find(s.Sockets, func(s *evidence.Socket) bool { return evidence.NewFlowKey(s.Local, s.Remote) == tuple })
	if sock == nil || sock.Cookie == 0 || sock.CgroupID == 0 || sock.Congestion == "" || sock.RecvBuffer == 0 || sock.SendBuffer == 0 || sock.Timer == nil {
		t.Fatalf("socket %+v", sock)
	}
	// Go turns keepalive on for what it accepts.
	if sock.Timer.Kind != evidence.TimerKeepalive || sock.Timer.Expires <= 0 || sock.Timer.Expires > 20*time.Second {
		t.Errorf("timer %+v", sock.Timer)
	}
	if i := sock.Info; !slices.Contains(i.Options, "timestamps") || i.SndWnd == 0 {
		t.Errorf("tcp_info %+v", i)
	}
}

func checkRoutes(t *testing.T, s *evidence.Snapshot) {
	t.Helper()
	routes := map[string]evidence.Route{}
	for _, r := range s.Implicated.Routes {
		routes[r.Peer.String()] = r
	}
	local, peer := routes[netlab.ServerIP4], routes[netlab.ClientIP4]
	if local.Type != "local" || len(routes) != 2 {
		t.Errorf("local %+v of %d", local, len(routes))
	}
	if peer.Type != "unicast" || peer.Prefix.String() != "10.99.0.0/24" || peer.Protocol != "kernel" || peer.Interface != netlab.Device ||
		peer.Source.String() != netlab.ServerIP4 || peer.MTU != 1500 || peer.Gateway.IsValid() {
		t.Errorf("peer %+v", peer)
	}
	if n := peer.Neighbor; n == nil || n.State == "" || len(n.MAC) != 17 || n.Address != peer.Peer {
		t.Errorf("neighbour %+v", peer.Neighbor)
	}
}

func TestRefusedRoutes(t *testing.T) {
	lab := netlab.New(t)
	for _, route := range []string{
		"blackhole 192.0.2.0/24", "unreachable 198.51.100.0/24", "prohibit 203.0.113.0/24",
		"10.50.0.0/16 via " + netlab.ClientIP4 + " mtu 1300", "fd50::/64 via " + netlab.ClientIP6,
	} {
		lab.Server.IP(t, append([]string{"route", "add"}, strings.Fields(route)...)...)
	}
	var peers []netip.Addr
	for _, a := range []string{"192.0.2.1", "198.51.100.1", "203.0.113.1", "10.50.1.1", "fd50::1", "8.8.8.8"} {
		peers = append(peers, netip.MustParseAddr(a))
	}
	s := lookFor(t, lab.Server, Implicated{Peers: peers})
	type want struct {
		Type, Error, Gateway, Prefix, Protocol string
		MTU                                    uint32
	}
	var got []want
	for _, r := range s.Implicated.Routes {
		w := want{r.Type, r.Error, "", "", r.Protocol, r.MTU}
		if r.Gateway.IsValid() {
			w.Gateway, w.Prefix = r.Gateway.String(), r.Prefix.String()
		}
		got = append(got, w)
	}
	if d := cmp.Diff([]want{
		{"blackhole", "invalid argument", "", "", "", 0},
		{"unreachable", "no route to host", "", "", "", 0},
		{"prohibit", "permission denied", "", "", "", 0},
		{"unicast", "", netlab.ClientIP4, "10.50.0.0/16", "boot", 1300},
		{"unicast", "", netlab.ClientIP6, "fd50::/64", "boot", 1500},
		{"", "network is unreachable", "", "", "", 0},
	}, got); d != "" || len(s.Missing) != 0 {
		t.Errorf("%s\nmissing %+v", d, s.Missing)
	}
}

// TestLearnedMTU lets the path say that it is narrow: a router's ICMP "frag
// needed" for a connection that sends full segments.
func TestLearnedMTU(t *testing.T) {
	lab := netlab.New(t)
	far := netlab.NewNS(t)
	netlab.IP(t, "-n", lab.Client.Name, "link", "add", "far", "type", "veth", "peer", "name", "far", "netns", far.Name)
	for _, cmd := range []struct {
		ns   *netlab.NS
		args string
	}{
		{lab.Client, "link set far mtu 1400 up"}, {lab.Client, "addr add 10.98.0.1/24 dev far"},
		{far, "link set far up"}, {far, "addr add 10.98.0.2/24 dev far"},
		{far, "route add default via 10.98.0.1"}, {lab.Server, "route add 10.98.0.0/24 via " + netlab.ClientIP4},
	} {
		cmd.ns.IP(t, strings.Fields(cmd.args)...)
	}
	if out, err := lab.Client.Command(t.Context(), "sysctl", "-w", "net.ipv4.ip_forward=1").CombinedOutput(); err != nil {
		t.Fatalf("sysctl: %v: %s", err, out)
	}
	l := far.Listen(t, "10.98.0.2:0")
	c := lab.Server.Dial(t, l.Addr().String())
	if _, err := c.Write(make([]byte, 64<<10)); err != nil {
		t.Fatal(err)
	}
	await(t, "a learned MTU of 1400", func() bool {
		s := lookFor(t, lab.Server, Implicated{Peers: []netip.Addr{netip.MustParseAddr("10.98.0.2")}})
		r := s.Implicated.Routes[0]
		return r.PMTU == 1400 && r.PMTUExpires > 0 && r.PMTUExpires <= 10*time.Minute && r.MTU == 1500
	})
}

// TestTrackedBothWays finds a translated connection by what each side sees.
func TestTrackedBothWays(t *testing.T) {
	lab := netlab.New(t)
	nft(t, lab.Server, `table ip t {
		chain pre { type nat hook prerouting priority dstnat; tcp dport 8080 dnat to `+netlab.ServerIP4+`:9090; }
		chain in { type filter hook input priority 0; ct mark set 7; }
	}`)
	l := lab.Server.Listen(t, netlab.ServerIP4+":9090")
	c := lab.Client.Dial(t, netlab.ServerIP4+":8080")
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	client := addrPort(c.LocalAddr())
	for _, seen := range []string{netlab.ServerIP4 + ":8080", netlab.ServerIP4 + ":9090"} {
		tuple := evidence.NewFlowKey(client, netip.MustParseAddrPort(seen))
		got := lookFor(t, lab.Server, Implicated{Tuples: []evidence.FlowKey{tuple}}).Implicated.Tracked
		if len(got) != 1 {
			t.Fatalf("by %s: %+v", seen, got)
		}
		f := got[0]
		if f.Original.Destination.Port() != 8080 || f.Reply.Source.Port() != 9090 || f.Original.Source != client || !f.Translated() {
			t.Errorf("by %s: tuples %+v, %+v", seen, f.Original, f.Reply)
		}
		if f.State != "established" || f.Mark != 7 || f.Timeout < time.Hour || !slices.Contains(f.Status, "assured") || !slices.Contains(f.Status, "dst_nat") {
			t.Errorf("by %s: %+v", seen, f)
		}
	}
	none := evidence.NewFlowKey(client, netip.MustParseAddrPort("10.99.0.2:1"))
	if s := lookFor(t, lab.Server, Implicated{Tuples: []evidence.FlowKey{none}}); len(s.Implicated.Tracked) != 0 || len(s.Missing) != 0 {
		t.Errorf("tracked %+v, missing %+v", s.Implicated.Tracked, s.Missing)
	}
}

const manyRules = `
table inet fw {
	set banned { type ipv4_addr; elements = { 192.0.2.1 }; }
	map ports { type inet_service : verdict; elements = { 81 : drop, 82 : accept }; }
	chain in {
		type filter hook input priority filter; policy drop;
		ct state established,related accept
		ip saddr 10.99.0.0/24 tcp dport 8001 counter reject with tcp reset comment "refuse 8001"
		tcp dport { 80, 443 } drop
		tcp dport { 1000-2000, 3000 } ip6 daddr fd99::2 drop
		ip saddr @banned drop
		ip saddr . tcp dport { 10.0.0.1 . 22, 10.0.0.2 . 23 } drop
		tcp dport vmap @ports
		iifname "eth*" meta mark & 0xff == 0x1 drop
		iif lo oifname != "x" drop
		tcp dport 8002 limit rate over 50/second burst 5 packets reject
		tcp dport 8003 limit rate 10/minute accept
		tcp dport 8004 ct count over 20 reject with tcp reset
		ct state invalid counter drop
		ct state != new tcp flags & (syn | ack) == syn drop
		tcp flags syn tcp dport 8005 drop
		tcp flags & (fin | rst) == 0 tcp dport 8006 drop
		meta mark & 0xff != 0x1 drop
		meta l4proto udp th dport 53 reject with icmpx admin-prohibited
		ip saddr 10.1.0.0/16 ip daddr != 10.2.3.4 tcp sport >= 1024 jump refuse
		tcp dport 100-200 meta skuid 33 drop
		ip6 saddr fd00::/8 icmpv6 type 128 drop
		accept
	}
	chain refuse { counter reject with tcp reset; }
}
table ip plain {
	chain out { type filter hook output priority 5; ip protocol tcp ip daddr 203.0.113.7 ip ttl 3 reject with icmp type host-prohibited; }
}
`

func TestRuleset(t *testing.T) {
	ns := netlab.NewNS(t)
	nft(t, ns, manyRules)
	s := lookFor(t, ns, Implicated{})
	r := s.Implicated.Rules
	if len(s.Missing) != 0 || r == nil {
		t.Fatalf("missing %+v", s.Missing)
	}
	var got []string
	for _, rule := range r.Rules {
		got = append(got, rule.Action+" | "+rule.Text)
	}
	if d := cmp.Diff([]string{
		`reject with tcp reset | ip saddr 10.99.0.0/24 tcp dport 8001 reject with tcp reset`,
		`drop | tcp dport { 80, 443 } drop`,
		`drop | tcp dport { 1000-2000, 3000 } ip6 daddr fd99::2 drop`,
		`drop | ip saddr @banned drop`,
		`drop | ip saddr . tcp dport { 10.0.0.1 . 22, 10.0.0.2 . 23 } drop`,
		`drop | tcp dport vmap { 81 : drop, 82 : accept }`,
		`drop | iifname "eth*" meta mark & 0xff == 0x1 drop`,
		`drop | iif 1 oifname != "x" drop`,
		`reject with icmpx port-unreachable | tcp dport 8002 limit rate over 50/second burst 5 packets reject with icmpx port-unreachable`,
		`limit | tcp dport 8003 limit rate 10/minute burst 5 packets accept`,
		`reject with tcp reset | tcp dport 8004 ct count over 20 reject with tcp reset`,
		`drop | ct state invalid drop`,
		`drop | ct state != new tcp flags & (syn | ack) == syn drop`,
		`drop | tcp flags syn tcp dport 8005 drop`,
		`drop | tcp flags & (fin | rst) == 0x0 tcp dport 8006 drop`,
		`drop | meta mark & 0xff != 0x1 drop`,
		`reject with icmpx admin-prohibited | udp dport 53 reject with icmpx admin-prohibited`,
		`drop | tcp dport 100-200 meta skuid 33 drop`,
		`drop | ip6 saddr fd00::/8 icmpv6 type 128 drop`,
		`reject with tcp reset | meta l4proto tcp reject with tcp reset`,
		`reject with icmp code 10 | ip ttl 3 ip protocol tcp ip daddr 203.0.113.7 reject with icmp code 10`,
	}, got); d != "" {
		t.Error(d)
	}
	first, via := r.Rules[0], r.Rules[len(r.Rules)-2]
	if first.Comment != "refuse 8001" || first.Handle == 0 || !first.Counted || !first.Resets() || first.Table != "fw" || first.Chain != "in" {
		t.Errorf("rule %+v", first)
	}
	if !slices.Equal(via.Via, []string{"in: ip saddr 10.1.0.0/16 ip daddr != 10.2.3.4 tcp sport >= 1024 jump refuse"}) {
		t.Errorf("via %q", via.Via)
	}
	if d := cmp.Diff([]evidence.Chain{
		{Family: "inet", Table: "fw", Name: "in", Type: "filter", Hook: "input", Policy: "drop"},
		{Family: "ip", Table: "plain", Name: "out", Type: "filter", Hook: "output", Priority: 5, Policy: "accept"},
	}, r.Chains); d != "" {
		t.Error(d)
	}
}

// TestIptables has rules that the tool for the older firewall made.
func TestIptables(t *testing.T) {
	if _, err := exec.LookPath("iptables-nft"); err != nil {
		t.Skip("needs iptables-nft of iptables")
	}
	ns := netlab.NewNS(t)
	for _, rule := range []string{
		"-A INPUT -p tcp --dport 8001 -m comment --comment closed -j REJECT --reject-with tcp-reset",
		"-A INPUT -p tcp -m multiport --dports 80,8080:8100 -j REJECT --reject-with tcp-reset",
		"-A INPUT -m conntrack --ctstate INVALID -j DROP",
		"-A INPUT -s 10.1.0.0/16 -i eth+ -p tcp --syn -m limit --limit 50/s --limit-burst 5 -j REJECT",
		"-A INPUT -p tcp -m connlimit --connlimit-above 20 -j REJECT --reject-with tcp-reset",
		"-A INPUT -p tcp ! --dport 22 -m state --state NEW -j DROP",
		"-N refuse", "-A refuse -j DROP", "-A FORWARD -d 10.0.0.1 -j refuse",
	} {
		if out, err := ns.Command(t.Context(), "iptables-nft", strings.Fields(rule)...).CombinedOutput(); err != nil {
			t.Fatalf("iptables-nft %s: %v: %s", rule, err, out)
		}
	}
	var got []string
	for _, rule := range lookFor(t, ns, Implicated{}).Implicated.Rules.Rules {
		got = append(got, strings.Join(append([]string{rule.Text, rule.Comment}, rule.Via...), " | "))
	}
	if d := cmp.Diff([]string{
		"tcp dport 8001 reject with tcp reset | closed",
		"meta l4proto tcp th dport { 80, 8080-8100 } reject with tcp reset | ",
		"ct state invalid drop | ",
		`iifname "eth*" ip saddr 10.1.0.0/16 tcp flags & (fin | syn | rst | ack) == syn limit rate 50/second burst 5 packets reject with icmp port-unreachable | `,
		"meta l4proto tcp ct count over 20 reject with tcp reset | ",
		"tcp dport != 22 ct state new drop | ",
		"drop |  | FORWARD: ip daddr 10.0.0.1 jump refuse",
	}, got); d != "" {
		t.Error(d)
	}
}

// TestRuleHits counts what a rule refused between two snapshots. The traffic must
// not change the hash, another rule must.
func TestRuleHits(t *testing.T) {
	ns := netlab.NewNS(t)
	nft(t, ns, "table ip t { chain in { type filter hook input priority 0; tcp dport 9 counter reject with tcp reset; }; }")
	taker := New(Config{NetNS: "/run/netns/" + ns.Name})
	before := taker.TakeFor(t.Context(), Implicated{}).Implicated
	if _, err := ns.TryDial("127.0.0.1:9"); err == nil {
		t.Fatal("connected to a port that is refused")
	}
	after := taker.TakeFor(t.Context(), Implicated{}).Implicated
	hits := after.Rules.Since(before.Rules)
	if len(hits) != 1 || hits[0].Packets != 1 || hits[0].Bytes != 60 || hits[0].Rule.Text != "tcp dport 9 reject with tcp reset" {
		t.Errorf("hits %+v", hits)
	}
	if after.Rules.Hash != before.Rules.Hash || len(before.Rules.Hash) != 32 {
		t.Errorf("hashes %s, %s", before.Rules.Hash, after.Rules.Hash)
	}
	nft(t, ns, "add rule ip t in tcp dport 10 drop")
	if out, err := ns.Command(t.Context(), "sysctl", "-w", "net.ipv4.tcp_fin_timeout=5").CombinedOutput(); err != nil {
		t.Fatalf("sysctl: %v: %s", err, out)
	}
	if err := taker.Watch(t.Context()); err != nil {
		t.Fatal(err)
	}
	var got []evidence.Change
	for _, c := range taker.TakeFor(t.Context(), Implicated{}).Implicated.Changes {
		if c.Kind != evidence.ChangePackage {
			got = append(got, c)
		}
	}
	if len(got) != 2 || got[0].Kind != evidence.ChangeRuleset || got[0].Before != after.Rules.Hash ||
		got[1].What != "net.ipv4.tcp_fin_timeout" || got[1].Before != "60" || got[1].After != "5" {
		t.Errorf("changes %+v", got)
	}
}

func TestMaxRules(t *testing.T) {
	ns := netlab.NewNS(t)
	nft(t, ns, manyRules)
	s := New(Config{NetNS: "/run/netns/" + ns.Name, MaxRules: 5}).TakeFor(t.Context(), Implicated{})
	if r := s.Implicated.Rules; missing(s, "other than the first 5") == nil || r.Total != 5 || len(r.Rules) != 4 || r.Hash != "" {
		t.Errorf("rules %+v, missing %+v", r, s.Missing)
	}
}

func TestTakeForWithoutCapabilities(t *testing.T) {
	ns := netlab.NewNS(t)
	createEntries(t, ns, 3)
	tuple := evidence.NewFlowKey(netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("10.0.0.2:2"))
	var s *evidence.Snapshot
	withoutCaps(t, ns, 1<<unix.CAP_NET_ADMIN|1<<unix.CAP_SYS_ADMIN, func() {
		s = New(Config{}).TakeFor(t.Context(), Implicated{Tuples: []evidence.FlowKey{tuple}})
	})
	for _, what := range []string{"firewall rules", "conntrack entries of the connections"} {
		if m := missing(s, what); m == nil || !strings.Contains(m.Why, "not permitted") || !strings.Contains(m.Fix, "CAP_NET_ADMIN") {
			t.Errorf("%s: %+v", what, s.Missing)
		}
	}
	if i := s.Implicated; i.Load == nil || len(i.Routes) != 2 || len(i.Sysctls) == 0 || i.Rules != nil {
		t.Errorf("implicated %+v", i)
	}
}

func TestVanishedNamespace(t *testing.T) {
	s := New(Config{NetNS: filepath.Join(t.TempDir(), "gone")}).TakeFor(t.Context(), Implicated{})
	if m := missing(s, "everything"); m == nil || !strings.Contains(m.Why, "open network namespace") {
		t.Errorf("missing %+v", s.Missing)
	}
}

// TestEphemeralPorts uses up most of a small range for one destination.
func TestEphemeralPorts(t *testing.T) {
	ns := netlab.NewNS(t)
	for _, set := range []string{"net.ipv4.ip_local_port_range=40000 40049", "net.ipv4.ip_local_reserved_ports=40000-40009,50000"} {
		if out, err := ns.Command(t.Context(), "sysctl", "-w", set).CombinedOutput(); err != nil {
			t.Fatalf("sysctl: %v: %s", err, out)
		}
	}
	l := ns.Listen(t, "127.0.0.1:99")
	for i := range 30 {
		c := ns.Dial(t, l.Addr().String())
		s, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		if i < 10 { // the end that closes first waits
			c.Close()
			s.Close()
		}
	}
	await(t, "10 ports in time_wait", func() bool {
		p := lookFor(t, ns, Implicated{}).Implicated.Ports
		if len(p.Uses) == 0 || p.Available() != 40 {
			t.Fatalf("ports %+v", p)
		}
		return p.Uses[0] == evidence.PortUse{Source: netip.MustParseAddr("127.0.0.1"), Destination: addrPort(l.Addr()), Used: 30, TimeWait: 10}
	})
}

// BenchmarkTakeFor looks at 30,002 sockets, 12,000 of them in time_wait, 500
// rules of a firewall and 250 implicated connections.
func BenchmarkTakeFor(b *testing.B) {
	const pairs, waiting = 9000, 12000
	ns := netlab.NewNS(b)
	if out, err := ns.Command(b.Context(), "sysctl", "-w", "net.ipv4.tcp_tw_reuse=0").CombinedOutput(); err != nil {
		b.Fatalf("sysctl: %v: %s", err, out)
	}
	manyPairs(b, ns, pairs)
	l := ns.Listen(b, "127.0.0.1:0")
	ns.Run(b, func() {
		for range waiting {
			c, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				b.Fatal(err)
			}
			s, err := l.Accept()
			if err != nil {
				b.Fatal(err)
			}
			c.Close()
			s.Close()
		}
	})
	nft(b, ns, "table ip t { chain in { type filter hook input priority 0; "+
		strings.Repeat("ip saddr 192.0.2.1 tcp dport 7 counter reject with tcp reset; ", 500)+"}; }")
	var what Implicated
	for i := range uint16(250) {
		to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), 30000+i)
		what.Tuples = append(what.Tuples, evidence.NewFlowKey(to, addrPort(l.Addr())))
	}
	b.ReportAllocs()
	for b.Loop() {
		s := lookFor(b, ns, what)
		if len(s.Sockets) != 2*pairs+waiting+2 || len(s.Implicated.Rules.Rules) != 500 || len(s.Missing) != 1 {
			b.Fatalf("%d sockets, missing %+v", len(s.Sockets), s.Missing)
		}
	}
}
