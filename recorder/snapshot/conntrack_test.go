package snapshot

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"tcpcoroner/evidence"
	"tcpcoroner/internal/netlab"
)

// createEntries makes n conntrack entries in the namespace: half of them from
// 10.1.0.1, as far as its ports go, the others from a source each.
func createEntries(t testing.TB, ns *netlab.NS, n int) (heavy int) {
	t.Helper()
	heavy = min(n/2, 60_000)
	all := make([]netlab.Connection, n)
	for i := range all {
		src := [4]byte{10, 1, 0, 1}
		if i >= heavy {
			binary.BigEndian.PutUint32(src[:], 0x0b000000+uint32(i))
		}
		all[i] = netlab.Connection{From: netip.AddrPortFrom(netip.AddrFrom4(src), uint16(1+i)), To: netip.MustParseAddrPort("10.9.9.9:443")}
	}
	if err := netlab.NewTracker(t, ns.Do).Track(all...); err != nil {
		t.Fatal(err)
	}
	return heavy
}

func TestConntrack(t *testing.T) {
	const n = 5000
	ns := netlab.NewNS(t)
	createEntries(t, ns, n)
	ct := look(t, ns, Config{}).Conntrack
	if ct == nil || ct.Count != n || ct.Max == 0 || ct.Usage() == 0 || ct.Sampled != n || len(ct.TopTalkers) != topTalkers {
		t.Fatalf("conntrack %+v", ct)
	}
	want := evidence.Talker{Source: netip.MustParseAddr("10.1.0.1"),
		Destination: netip.MustParseAddrPort("10.9.9.9:443"), Protocol: "tcp", Entries: n / 2}
	if ct.TopTalkers[0] != want || ct.TopTalkers[1].Entries != 1 {
		t.Errorf("top talkers %+v", ct.TopTalkers)
	}
	other := netlab.NewNS(t)
	if ct := look(t, other, Config{}).Conntrack; ct == nil || ct.Count != 0 || ct.Sampled != 0 {
		t.Errorf("the other namespace has %+v", ct)
	}
}

func TestTopTalkersLimit(t *testing.T) {
	ns := netlab.NewNS(t)
	createEntries(t, ns, 1000)
	s := look(t, ns, Config{MaxEntries: 100})
	if s.Conntrack.Sampled != 100 || len(s.Missing) != 0 {
		t.Errorf("counted %d, missing %+v", s.Conntrack.Sampled, s.Missing)
	}
}

// TestConntrackCounters makes a counter of the kernel move: tracking begins in
// the middle of a connection whose next packet is a RST, which no state admits
// (tcp_new in nf_conntrack_proto_tcp.c). Netlink and /proc/net/stat must agree.
func TestConntrackCounters(t *testing.T) {
	lab := netlab.New(t)
	l := lab.Server.Listen(t, netlab.ServerIP4+":0")
	c := lab.Client.Dial(t, l.Addr().String())
	rules := "table ip t { chain out { type filter hook output priority 0; ct state invalid counter; }; }"
	if out, err := lab.Client.Command(t.Context(), "nft", rules).CombinedOutput(); err != nil {
		t.Fatalf("nft: %v: %s", err, out)
	}
	read := func() (byNetlink, byFile evidence.Conntrack) {
		lab.Client.Run(t, func() {
			ct, err := New(Config{}).Conntrack()
			if err != nil {
				t.Fatal(err)
			}
			byNetlink = *ct
			text, err := os.ReadFile("/proc/thread-self/net/stat/nf_conntrack")
			if err != nil || !parseCTStat(string(text), &byFile) {
				t.Fatalf("read /proc/net/stat: %v", err)
			}
		})
		return byNetlink, byFile
	}
	before, _ := read()
	if err := netlab.Reset(c); err != nil {
		t.Fatal(err)
	}
	after, file := read()
	if after.Invalid != before.Invalid+1 || file.Invalid != after.Invalid || file.Drop != after.Drop || file.InsertFailed != after.InsertFailed {
		t.Errorf("invalid went from %d to %d, the file says %+v", before.Invalid, after.Invalid, file)
	}
}

// TestTopTalkersDeadline has less time than the table needs.
func TestTopTalkersDeadline(t *testing.T) {
	ns := netlab.NewNS(t)
	createEntries(t, ns, 20_000)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s := &evidence.Snapshot{Conntrack: &evidence.Conntrack{Count: 20_000}}
	ns.Run(t, func() { New(Config{}).takeTalkers(ctx, s) })
	if n := s.Conntrack.Sampled; n != 0 || missing(s, "top talkers") == nil {
		t.Errorf("counted %d, missing %+v", n, s.Missing)
	}
	ctx, cancel = context.WithCancel(t.Context())
	var n int
	var err error
	ns.Run(t, func() {
		err = New(Config{}).dump(ctx, ctRequest(ctGet), func([]byte) bool {
			if n++; n == 1000 {
				cancel()
			}
			return true
		})
	})
	if n != 1000 || !errors.Is(err, context.Canceled) {
		t.Errorf("after %d entries: %v", n, err)
	}
}

// TestManyEntries has the table of a busy gateway, as far as the host's limit goes.
func TestManyEntries(t *testing.T) {
	text, _ := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_max")
	limit, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatalf("read conntrack limit: %v", err)
	}
	n := min(250_000, limit*9/10)
	// Usual is one second, two under the race detector; a walk that is quadratic in
	// anything takes minutes.
	const enough = 5 * time.Second
	ns := netlab.NewNS(t)
	heavy := createEntries(t, ns, n)
	s, took := timed(t, ns, Config{})
	t.Logf("%d entries in %v of processor time, %v on the clock", s.Conntrack.Sampled, took, s.Took)
	if s.Conntrack.Sampled != uint64(n) || took > enough || len(s.Missing) != 0 {
		t.Errorf("counted %d of %d in %v, missing %+v", s.Conntrack.Sampled, n, took, s.Missing)
	}
	if top := s.Conntrack.TopTalkers[0]; top.Entries != uint64(heavy) {
		t.Errorf("top talker %+v, want %d entries", top, heavy)
	}
}
