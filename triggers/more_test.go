package triggers

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tcpcoroner/evidence"
)

// host is what the triggers read, second by second.
type host struct {
	values  map[string]uint64
	sockets []evidence.Socket
	links   []evidence.InterfaceStats
	ports   *evidence.PortRange
	lines   LogMatches
	err     error
}

func (h *host) counters() (evidence.Counters, error) {
	return evidence.Counters{Values: h.values}, h.err
}

func (h *host) listeners() ([]evidence.Socket, error) { return h.sockets, h.err }

func (h *host) serving(lost []Loss) (had []netip.AddrPort, _ error) {
	for _, l := range lost {
		if l.Addr.Port() != 9 {
			had = append(had, l.Addr)
		}
	}
	return had, nil
}

func (h *host) limits() (MemoryLimits, error) { return MemoryLimits{Orphans: 1000, Pages: 2000}, h.err }

func (h *host) triggers() map[string]Trigger {
	all := []Trigger{
		NewSYNDrops(DefaultSYNDrops(), h.counters),
		NewConnectFailures(DefaultConnectFailures(), h.counters),
		NewTimeouts(DefaultTimeouts(), h.counters),
		NewDrops(DefaultDrops(), func() ([]evidence.InterfaceStats, error) { return h.links, h.err }, h.counters),
		NewRetransmissions(DefaultRetransmissions(), h.counters),
		NewMemory(DefaultMemory(), h.counters, h.limits),
		NewPorts(DefaultPorts(), func() (*evidence.PortRange, error) { return h.ports, h.err }),
		NewQueue(DefaultQueue(), h.listeners),
		NewRestarts(DefaultRestarts(), h.listeners, h.serving),
		NewLogs(DefaultLogs(), func() (LogMatches, error) { return h.lines, h.err }),
	}
	named := map[string]Trigger{}
	for _, t := range all {
		named[t.Name()] = t
	}
	return named
}

func newHost() *host {
	h := &host{values: map[string]uint64{}, sockets: []evidence.Socket{idle, busy, zero}}
	for _, name := range []string{"TcpExt.TCPReqQFullDrop", "TcpExt.TCPReqQFullDoCookies", "TcpExt.SyncookiesSent", "Tcp.AttemptFails",
		"TcpExt.TCPAbortOnTimeout", "TcpExt.TCPTimeouts", "Softnet.dropped", "Tcp.RetransSegs", "Tcp.OutSegs", "TcpExt.TCPAbortOnMemory",
		"TcpExt.TCPMemoryPressures"} {
		h.values[name] = 100_000 // since boot
	}
	h.values["Sockstat.TCP.orphan"], h.values["Sockstat.TCP.mem"] = 10, 20
	for i := range h.sockets {
		h.sockets[i].Inode, h.sockets[i].RecvQueue = uint32(i+1), 0
	}
	h.links = []evidence.InterfaceStats{{Interface: evidence.Interface{Name: "eth0"}, RxMissed: 5, RxDropped: 9}}
	h.ports = &evidence.PortRange{First: 32768, Last: 33767, Uses: []evidence.PortUse{
		{Source: netip.MustParseAddr("192.0.2.1"), Destination: netip.MustParseAddrPort("192.0.2.9:5432"), Used: 10, TimeWait: 3}}}
	return h
}

var moreTests = []struct {
	trigger string
	name    string
	each    func(h *host, sec int)
	fired   []int
	reason  string
}{
	{"syn_drops", "flood", func(h *host, sec int) {
		if sec == 10 || sec == 11 {
			h.values["TcpExt.TCPReqQFullDoCookies"] += 4
			h.values["TcpExt.SyncookiesSent"] += 4
		}
	}, []int{11}, "8 SYNs that found their queue full in 10 s (TcpExt.SyncookiesSent +8, TcpExt.TCPReqQFullDoCookies +8): the threshold is 5, usual are 0"},
	{"syn_drops", "cookies are always sent", func(h *host, sec int) { h.values["TcpExt.SyncookiesSent"] += 90 }, nil, ""},
	{"connect_failures", "usual ones", func(h *host, sec int) { h.values["Tcp.AttemptFails"]++ }, nil, ""},
	{"connect_failures", "a burst", func(h *host, sec int) {
		if sec == 90 {
			h.values["Tcp.AttemptFails"] += 25
		}
	}, []int{90}, "25 connections that failed to open in 10 s (Tcp.AttemptFails +25): the threshold is 20, usual are 0"},
	{"timeouts", "silent deaths", func(h *host, sec int) {
		if sec >= 60 && sec < 64 {
			h.values["TcpExt.TCPAbortOnTimeout"]++
			h.values["TcpExt.TCPTimeouts"] += 7
		}
	}, []int{62}, "3 connections given up for want of an answer in 10 s (TcpExt.TCPTimeouts +21, TcpExt.TCPAbortOnTimeout +3): the threshold is 3, usual are 0"},
	{"drops", "softnet and an interface that came later", func(h *host, sec int) {
		switch sec {
		case 20:
			h.links = append(h.links, evidence.InterfaceStats{Interface: evidence.Interface{Name: "eth1"}, RxMissed: 7777})
		case 30:
			h.values["Softnet.dropped"] += 40
			h.links[1].TxDropped += 30
		}
		h.links[0].RxDropped += 99 // protocols that nobody speaks
	}, []int{30}, "70 packets lost on this host in 10 s (Softnet.dropped +40, eth1 tx_dropped +30): the threshold is 50, usual are 0"},
	{"retransmissions", "storm over a usual part", func(h *host, sec int) {
		h.values["Tcp.OutSegs"] += 1000
		h.values["Tcp.RetransSegs"] += 5
		if sec >= 300 {
			h.values["Tcp.RetransSegs"] += 200
		}
	}, []int{302}, "650 of 10000 segments sent in 10 s were retransmissions (6.5 %): the threshold is 5.0 %, usual are 0.5 %"},
	{"retransmissions", "all of few", func(h *host, sec int) {
		h.values["Tcp.OutSegs"] += 2
		h.values["Tcp.RetransSegs"] += 2
	}, nil, ""},
	{"memory", "orphans, for long", func(h *host, sec int) {
		if sec == 40 {
			h.values["Sockstat.TCP.orphan"] = 620
		}
	}, []int{40}, "620 of 1000 orphaned sockets (62.0 %); 20 of 2000 pages of TCP memory (1.0 %)"},
	{"memory", "pages, then aborts", func(h *host, sec int) {
		switch sec {
		case 40:
			h.values["Sockstat.TCP.mem"] = 1900
		case 50:
			h.values["TcpExt.TCPAbortOnMemory"] += 6
			h.values["TcpExt.TCPMemoryPressures"] += 2
		}
	}, []int{40, 50}, "6 connections aborted for want of memory in 10 s; 10 of 1000 orphaned sockets (1.0 %); 1900 of 2000 pages of TCP memory (95.0 %); memory pressure began 2 times"},
	{"memory", "aborts alone", func(h *host, sec int) {
		if sec == 50 {
			h.values["TcpExt.TCPAbortOnMemory"]++
		}
	}, []int{50}, "1 connections aborted for want of memory in 10 s; 10 of 1000 orphaned sockets (1.0 %); 20 of 2000 pages of TCP memory (1.0 %)"},
	{"ports", "used up, and between the levels", func(h *host, sec int) {
		if sec >= 10 {
			h.ports.Uses[0].Used = 850 + sec%2*60
		}
	}, []int{11}, "910 of 1000 ephemeral ports from 192.0.2.1 to 192.0.2.9:5432 are in use (91.0 %), 3 of them in TIME-WAIT"},
	{"ports", "none used", func(h *host, sec int) { h.ports.Uses = nil }, nil, ""},
	{"accept_queue", "fills", func(h *host, sec int) {
		if h.sockets[1].RecvQueue = 0; sec >= 20 && sec < 40 {
			h.sockets[1].RecvQueue = 110
		}
	}, []int{22}, "an accept queue fills: 0.0.0.0:8080 (pid 4711 app) has 110 of 128 in its accept queue"},
	{"accept_queue", "a burst that is worked off", func(h *host, sec int) { h.sockets[1].RecvQueue = uint32(sec % 2 * 128) }, nil, ""},
	{"accept_queue", "a backlog of one", func(h *host, sec int) { h.sockets[2].RecvQueue = 1 }, nil, ""},
	{"restarts", "gone", func(h *host, sec int) {
		if sec == 100 {
			h.sockets = h.sockets[:1]
		}
	}, []int{100}, "nobody listens on 0.0.0.0:8080 any more: it was pid 4711 app"},
	{"restarts", "opened anew", func(h *host, sec int) {
		if sec == 100 {
			s := h.sockets[1]
			s.Inode, s.Owner = 77, &evidence.Owner{PID: 4712, Comm: "app"}
			h.sockets = []evidence.Socket{h.sockets[0], s, h.sockets[2]}
		}
	}, []int{100}, "0.0.0.0:8080 was opened anew: it was pid 4711 app, it is pid 4712 app"},
	{"restarts", "sockets are handed on", func(h *host, sec int) {
		if sec == 100 {
			h.sockets[1].Owner = &evidence.Owner{PID: 4712, Comm: "app"}
		}
	}, nil, ""},
	{"restarts", "a young one", func(h *host, sec int) {
		if sec == 30 {
			h.sockets = nil
		}
	}, nil, ""},
	{"restarts", "one that served nobody", func(h *host, sec int) {
		if sec == 100 {
			h.sockets = h.sockets[:2]
		}
	}, nil, ""},
	{"logs", "lines", func(h *host, sec int) {
		if h.lines = (LogMatches{}); sec == 50 || sec == 52 {
			h.lines = LogMatches{Count: 2, Examples: []string{"read tcp: connection reset by peer"}}
		}
	}, []int{52}, `4 log lines about resets in 10 s: the threshold is 3, usual are 0; such as "read tcp: connection reset by peer"`},
}

func TestMore(t *testing.T) {
	for _, test := range moreTests {
		t.Run(test.trigger+", "+test.name, func(t *testing.T) {
			h := newHost()
			s := NewSet(DefaultSet(), h.triggers()[test.trigger])
			p := play(s, 0, 350, func(sec int) { test.each(h, sec) })
			if diff := cmp.Diff(test.fired, p.fired); diff != "" {
				t.Errorf("fired (-want +got):\n%s", diff)
			}
			if p.last.Reason != test.reason {
				t.Errorf("reason\n%q, want\n%q", p.last.Reason, test.reason)
			}
			if len(test.fired) > 0 && (p.last.Trigger != test.trigger || p.last.Unit == "" || p.last.Expression == "" || p.last.Threshold == 0) {
				t.Errorf("the firing lacks something: %+v", p.last)
			}
		})
	}
}

// What cannot be read makes a trigger unavailable, and says why.
func TestMoreUnavailable(t *testing.T) {
	h := newHost()
	h.err = errors.New("open /proc/net/snmp: permission denied")
	h.values = nil
	for name, trigger := range h.triggers() {
		s := NewSet(DefaultSet(), trigger)
		s.Check(at(0))
		if got := s.States()[0]; !strings.Contains(got.Why, "permission denied") {
			t.Errorf("%s: %+v", name, got)
		}
	}
	h.err = nil
	for _, name := range []string{"syn_drops", "retransmissions", "memory"} {
		s := NewSet(DefaultSet(), h.triggers()[name])
		s.Check(at(0))
		if got := s.States()[0]; !strings.Contains(got.Why, "the kernel shows no") {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestQueueHighWater(t *testing.T) {
	h := newHost()
	q := NewQueue(DefaultQueue(), h.listeners)
	for sec, n := range []uint32{3, 77, 5} {
		h.sockets[1].RecvQueue = n
		if _, err := q.Check(at(sec), false); err != nil {
			t.Fatal(err)
		}
	}
	if got := q.HighWater()[busy.Local]; got != 77 {
		t.Errorf("high water %d", got)
	}
}

// The time to full is predicted within a quarter, on straight and on noisy rises.
func TestConntrackPrediction(t *testing.T) {
	const limit = 100_000.0
	for _, rate := range []float64{300, 900, 2500} {
		for _, noise := range []float64{0, 0.1, 0.5} { // of what a second brings
			t.Run(fmt.Sprintf("%g a second, noise %g", rate, noise), func(t *testing.T) {
				r := rand.New(rand.NewPCG(uint64(rate), uint64(noise*10)))
				var tr trend
				n, checked := limit/2, 0
				for sec := 0; n < 0.97*limit; sec++ {
					seen := n + noise*rate*r.NormFloat64()
					tr.add(at(sec), float64(int(seen)))
					truth := (limit - n) / rate
					left, ok := tr.reaches(limit)
					if ok && truth > 3 {
						checked++
						if d := left.Seconds()/truth - 1; d < -0.25 || d > 0.25 {
							t.Errorf("at second %d: %.1f s left, predicted %.1f", sec, truth, left.Seconds())
						}
					}
					n += rate
				}
				if checked < 5 {
					t.Errorf("predicted %d times", checked)
				}
			})
		}
	}
}

func TestTrendSeesNoRise(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for name, level := range map[string]func(sec int) float64{
		"flat":  func(int) float64 { return 800 },
		"noise": func(int) float64 { return 800 + 10*r.NormFloat64() },
		"step":  func(sec int) float64 { return 500 + float64(sec/30*300) },
		"falls": func(sec int) float64 { return 900 - float64(sec) },
	} {
		var tr trend
		for sec := range 60 {
			tr.add(at(sec), level(sec))
			if left, ok := tr.reaches(1000); ok && left < time.Minute {
				t.Errorf("%s, second %d: full in %v", name, sec, left)
			}
		}
	}
}

func TestConntrackRises(t *testing.T) {
	ct := evidence.Conntrack{Max: 10000, Count: 6000}
	s := NewSet(DefaultSet(), NewConntrack(DefaultConntrack(), func() (*evidence.Conntrack, error) { return &ct, nil }))
	p := play(s, 0, 25, func(int) { ct.Count += 60 })
	if diff := cmp.Diff([]int{16}, p.fired); diff != "" { // at 7020
		t.Errorf("fired (-want +got):\n%s", diff)
	}
	want := "conntrack table fills: 7020 of 10000 entries (70.2 %), nothing lost yet; full in 50 s if it goes on like this"
	if p.last.Reason != want {
		t.Errorf("reason\n%q, want\n%q", p.last.Reason, want)
	}
}

func TestDryRunAndStates(t *testing.T) {
	l := &ledger{}
	cfg := DefaultSet()
	cfg.DryRun = []string{"resets"}
	s := NewSet(cfg, NewHarm(DefaultHarm(), l.read), NewPorts(PortsConfig{}, nil))
	p := play(s, 0, 40, func(sec int) {
		if sec == 20 {
			l.reset(443, here, evidence.HarmRefused, 8)
		}
	})
	if p.fired != nil || p.ongoing != nil {
		t.Errorf("a dry run fired at %v, ongoing %v", p.fired, p.ongoing)
	}
	want := []evidence.TriggerState{
		{Name: "resets", Enabled: true, DryRun: true, Threshold: 5, Unit: "{reset}", WouldHaveFired: 1},
		{Name: "ports"},
	}
	if diff := cmp.Diff(want, s.States()); diff != "" {
		t.Errorf("states (-want +got):\n%s", diff)
	}
}

// storms is a trigger that is over in each tenth second.
type storms struct{ name string }

func (s storms) Name() string { return s.name }

func (s storms) Enabled() bool { return true }

func (s storms) Check(now time.Time, _ bool) (Reading, error) {
	over := now.Second()%10 == 0
	return Reading{Over: over, Calm: !over, Firing: evidence.Firing{Trigger: s.name, Value: 1, Unit: "1"}}, nil
}

func TestHourlyBounds(t *testing.T) {
	cfg := SetConfig{MaxStorm: time.Hour, MaxPerHour: 5}
	s := NewSet(cfg, storms{"a"})
	p := play(s, 0, 3700, func(int) {})
	if diff := cmp.Diff([]int{0, 10, 20, 30, 40, 3600, 3610, 3620, 3630, 3640}, p.fired); diff != "" {
		t.Errorf("fired (-want +got):\n%s", diff)
	}
	if got := s.States()[0]; got.Suppressed != 360 {
		t.Errorf("suppressed %d", got.Suppressed)
	}
	s = NewSet(SetConfig{MaxStorm: time.Hour, MaxBytesPerHour: 1000}, storms{"a"}, storms{"b"})
	p = play(s, 0, 100, func(sec int) {
		if sec%10 == 5 {
			s.Stored(at(sec), 400)
		}
	})
	// The second joins the incident of the first. At second 30 there are 1200 bytes.
	if diff := cmp.Diff([]int{0, 0, 10, 10, 20, 20}, p.fired); diff != "" {
		t.Errorf("fired (-want +got):\n%s", diff)
	}
}

func TestLogMatcher(t *testing.T) {
	m, err := NewLogMatcher(DefaultLogs().Patterns)
	if err != nil {
		t.Fatal(err)
	}
	for line, want := range map[string]bool{
		"recv() failed (104: Connection reset by peer) while reading": true,
		"Error: read ECONNRESET":                    true,
		"write failed errno=104":                    true,
		"write failed, errno: 104":                  true,
		"errno=1040":                                false,
		"connection closed":                         false,
		strings.Repeat("x", maxLine) + "ECONNRESET": false,
	} {
		if m.Match(line) != want {
			t.Errorf("%.60s: want %v", line, want)
		}
	}
	if _, err := NewLogMatcher([]string{"ok", "("}); err == nil || !strings.HasPrefix(err.Error(), `logs.patterns[1] is "("`) {
		t.Errorf("error %v", err)
	}
}

func TestMoreValidate(t *testing.T) {
	for _, c := range []interface{ Validate() error }{
		DefaultHarm(), DefaultRetransmissions(), DefaultMemory(), DefaultPorts(), DefaultQueue(), DefaultRestarts(), DefaultLogs(),
		HarmConfig{}, RetransmissionsConfig{}, MemoryConfig{}, PortsConfig{}, QueueConfig{}, RestartsConfig{}, LogsConfig{},
	} {
		if err := c.Validate(); err != nil {
			t.Errorf("%T: %v", c, err)
		}
	}
	for _, c := range []RiseConfig{DefaultSYNDrops(), DefaultConnectFailures(), DefaultTimeouts(), DefaultDrops(), {}} {
		if err := c.Validate("x"); err != nil {
			t.Error(err)
		}
	}
	bad := DefaultDrops()
	bad.Factor = 0.5
	if err := bad.Validate("drops"); err == nil || err.Error() != "drops.factor is 0.5: must be at least 1, or 0 for any" {
		t.Errorf("error %v", err)
	}
}
