package triggers

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"tcpcoroner/evidence"
)

var start = time.Date(2025, 3, 1, 2, 13, 0, 0, time.UTC)

func at(second int) time.Time { return start.Add(time.Duration(second) * time.Second) }

// play checks the set once a second and lists the seconds at which it fired and
// the stretches in which it was ongoing.
type played struct {
	fired   []int
	ongoing [][2]int
	last    evidence.Firing
}

func play(s *Set, from, to int, each func(second int)) (p played) {
	was := false
	for sec := from; sec < to; sec++ {
		each(sec)
		fired, ongoing := s.Check(at(sec))
		for _, f := range fired {
			p.fired, p.last = append(p.fired, sec), f
		}
		switch {
		case ongoing && !was:
			p.ongoing = append(p.ongoing, [2]int{sec, sec + 1})
		case ongoing:
			p.ongoing[len(p.ongoing)-1][1] = sec + 1
		}
		was = ongoing
	}
	return p
}

// burst is n a second from a second on, up to another.
type burst struct {
	from, to int
	n        float64
}

func rate(bursts []burst, second int) (n float64) {
	for _, b := range bursts {
		if second >= b.from && second < b.to {
			n += b.n
		}
	}
	return n
}

func TestResetsStorms(t *testing.T) {
	tests := []struct {
		name       string
		seconds    int
		bursts     []burst
		fired      []int
		suppressed uint64
	}{
		{"silence", 600, nil, nil, 0},
		{"60 resets in 4 s", 120, []burst{{50, 54, 15}}, []int{51}, 0},
		{"60 resets in 4 s, right after the start", 60, []burst{{1, 5, 15}}, []int{2}, 0},
		{"60 resets within one check", 60, []burst{{30, 31, 60}}, []int{30}, 0},
		{"below the threshold", 300, []burst{{10, 12, 9}}, nil, 0},
		{"storm of minutes is one firing", 500, []burst{{60, 300, 30}}, []int{60}, 0},
		{"flapping around the threshold", 200, []burst{{60, 200, 1.8}, {65, 66, 6}, {85, 86, 6}, {105, 106, 6}}, []int{67}, 0},
		{"a usual level that was learned below the threshold", 600, []burst{{0, 600, 1.5}, {400, 401, 30}}, nil, 0},
		{"a spike over a usual level", 600, []burst{{0, 600, 1.5}, {400, 404, 15}}, []int{402}, 0},
		{"slow ramp is followed", 1200, []burst{{0, 1200, 1}, {200, 1200, 1}, {400, 1200, 1}, {600, 1200, 1}, {800, 1200, 1}, {1000, 1200, 1}}, nil, 0},
		{"second storm within the cool-down", 300, []burst{{60, 64, 15}, {160, 164, 15}, {220, 224, 15}}, []int{61}, 2},
		{"second storm after the cool-down", 600, []burst{{60, 64, 15}, {460, 464, 15}}, []int{61, 461}, 0},
		{"storm that outlasts the cool-down", 500, []burst{{60, 64, 15}, {300, 420, 15}}, []int{61, 373}, 1},
		{"four times the storm breaks through", 300, []burst{{60, 64, 15}, {160, 164, 100}}, []int{61, 162}, 1},
		{"constant from the start is known after one firing", 4000, []burst{{0, 4000, 50}}, []int{1}, 0},
		{"spike over a constant that is known", 4000, []burst{{0, 4000, 50}, {3000, 3010, 300}}, []int{1, 3004}, 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			total := 1000.0 // since boot: must not count
			s := NewSet(DefaultSet(), NewResets(DefaultResets(), func() uint64 { return uint64(total) }))
			p := play(s, 0, test.seconds, func(sec int) { total += rate(test.bursts, sec) })
			if diff := cmp.Diff(test.fired, p.fired); diff != "" {
				t.Errorf("fired at seconds (-want +got):\n%s", diff)
			}
			state := s.State(at(test.seconds))[0]
			if state.Suppressed != test.suppressed || state.Fired != uint64(len(p.fired)) {
				t.Errorf("suppressed %d, want %d; fired %d of %d: %+v", state.Suppressed, test.suppressed, state.Fired, len(p.fired), state)
			}
		})
	}
}

func TestResetsOngoing(t *testing.T) {
	total := 0.0
	s := NewSet(DefaultSet(), NewResets(DefaultResets(), func() uint64 { return uint64(total) }))
	bursts := []burst{{60, 300, 30}}
	p := play(s, 0, 400, func(sec int) { total += rate(bursts, sec) })
	// It ends when fewer than 10 resets are left of the last 10 s.
	if diff := cmp.Diff([][2]int{{60, 309}}, p.ongoing); diff != "" {
		t.Errorf("ongoing (-want +got):\n%s", diff)
	}
	want := evidence.Firing{
		Trigger: "reset_rate", Time: at(60), Unit: "{reset}", Value: 30, Threshold: 20,
		Expression: "resets in 10 s >= 20 and >= 4 x baseline",
		Reason:     "30 resets in 10 s: the threshold is 20, usual are 0",
	}
	if diff := cmp.Diff(want, p.last); diff != "" {
		t.Errorf("firing (-want +got):\n%s", diff)
	}
	if b := s.State(at(400))[0].Baseline; b > 5 {
		t.Errorf("baseline is %g after a storm: the storm was learned", b)
	}
}

func TestHeldAfterMaxStorm(t *testing.T) {
	total := 0.0
	s := NewSet(DefaultSet(), NewResets(DefaultResets(), func() uint64 { return uint64(total) }))
	p := play(s, 0, 605, func(int) { total += 50 })
	if diff := cmp.Diff([][2]int{{1, 601}}, p.ongoing); diff != "" {
		t.Errorf("ongoing (-want +got):\n%s", diff)
	}
	if got := s.State(at(605))[0].Phase; got != Held {
		t.Errorf("phase %s, want held", got)
	}
}

func TestResetsSourceRestarts(t *testing.T) {
	total := uint64(5000)
	s := NewSet(DefaultSet(), NewResets(DefaultResets(), func() uint64 { return total }))
	p := play(s, 0, 60, func(sec int) {
		if sec == 30 {
			total = 100
		}
	})
	if p.fired != nil {
		t.Errorf("fired at %v: a counter that goes backwards is a new base", p.fired)
	}
}

// A check that comes late counts what falls into the window, on average.
func TestLateCheck(t *testing.T) {
	total := uint64(0)
	s := NewSet(DefaultSet(), NewResets(DefaultResets(), func() uint64 { return total }))
	play(s, 0, 10, func(int) {})
	total = 60
	fired, _ := s.Check(at(309)) // 60 in 300 s are 2 in 10 s
	if len(fired) != 0 {
		t.Errorf("fired %+v", fired)
	}
}

type conntrackStep struct {
	second int
	ct     evidence.Conntrack
	err    error
}

var boot = evidence.Conntrack{Count: 100, Max: 1000, Drop: 77, EarlyDrop: 3, InsertFailed: 9}

func with(change func(*evidence.Conntrack)) evidence.Conntrack { c := boot; change(&c); return c }

var full = with(func(c *evidence.Conntrack) { c.Count = 960 })
var conntrackTests = []struct {
	name    string
	steps   []conntrackStep
	seconds int
	fired   []int
	ongoing [][2]int
	reason  string
}{
	{"counters since boot", []conntrackStep{{0, boot, nil}}, 60, nil, nil, ""},
	{
		"full", []conntrackStep{{0, boot, nil}, {5, full, nil}, {20, boot, nil}}, 60,
		[]int{5}, nil, // a level that holds does not keep its incident open
		"conntrack table nearly full: 960 of 1000 entries (96.0 %), nothing lost yet",
	},
	{
		"full for long is one firing", []conntrackStep{{0, full, nil}}, 3000,
		[]int{0}, nil,
		"conntrack table nearly full: 960 of 1000 entries (96.0 %), nothing lost yet",
	},
	{
		"between the levels it is not armed again",
		[]conntrackStep{
			{0, boot, nil}, {5, full, nil}, {10, with(func(c *evidence.Conntrack) { c.Count = 900 }), nil},
			{400, full, nil},
		},
		450, []int{5}, nil,
		"conntrack table nearly full: 960 of 1000 entries (96.0 %), nothing lost yet",
	},
	{
		"full, then it drops", []conntrackStep{{0, boot, nil}, {5, full, nil}, {8, with(func(c *evidence.Conntrack) { c.Count, c.Drop = 960, c.Drop+4 }), nil}}, 60,
		[]int{5, 8}, [][2]int{{8, 18}},
		"conntrack table nearly full: 960 of 1000 entries (96.0 %); in 10 s drop +4",
	},
	{
		"full, and it drops now and then", []conntrackStep{
			{0, boot, nil}, {5, full, nil},
			{8, with(func(c *evidence.Conntrack) { c.Count, c.Drop = 960, c.Drop+4 }), nil},
			{40, with(func(c *evidence.Conntrack) { c.Count, c.Drop = 960, c.Drop+9 }), nil},
		}, 60,
		[]int{5, 8}, [][2]int{{8, 18}, {40, 50}},
		"conntrack table nearly full: 960 of 1000 entries (96.0 %); in 10 s drop +4",
	},
	{
		"drop", []conntrackStep{{0, boot, nil}, {5, with(func(c *evidence.Conntrack) { c.Drop += 4; c.EarlyDrop++ }), nil}}, 60,
		[]int{5}, [][2]int{{5, 15}},
		"conntrack table loses entries: 100 of 1000 entries (10.0 %); in 10 s drop +4, early_drop +1",
	},
	{
		"insert failed", []conntrackStep{{0, boot, nil}, {5, with(func(c *evidence.Conntrack) { c.InsertFailed += 2 }), nil}}, 60,
		[]int{5}, [][2]int{{5, 15}},
		"conntrack table loses entries: 100 of 1000 entries (10.0 %); in 10 s insert_failed +2",
	},
	{"counters go backwards", []conntrackStep{{0, boot, nil}, {5, evidence.Conntrack{Count: 1, Max: 1000, Drop: 1}, nil}}, 60, nil, nil, ""},
	{"no module, then one", []conntrackStep{{0, boot, errors.New("no such file")}, {20, boot, nil}}, 60, nil, nil, ""},
	{"no maximum", []conntrackStep{{0, evidence.Conntrack{Count: 5}, nil}}, 60, nil, nil, ""},
}

func TestConntrack(t *testing.T) {
	for _, test := range conntrackTests {
		t.Run(test.name, func(t *testing.T) {
			var now conntrackStep
			s := NewSet(DefaultSet(), NewConntrack(DefaultConntrack(), func() (*evidence.Conntrack, error) {
				return &now.ct, now.err
			}))
			p := play(s, 0, test.seconds, func(sec int) {
				for _, st := range test.steps {
					if st.second <= sec {
						now = st
					}
				}
			})
			if diff := cmp.Diff(test.fired, p.fired); diff != "" {
				t.Errorf("fired (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(test.ongoing, p.ongoing); diff != "" {
				t.Errorf("ongoing (-want +got):\n%s", diff)
			}
			if p.last.Reason != test.reason {
				t.Errorf("reason %q, want %q", p.last.Reason, test.reason)
			}
		})
	}
}

func TestConntrackStatesTheLoss(t *testing.T) {
	ct := evidence.Conntrack{Count: 10, Max: 1000}
	c := NewConntrack(DefaultConntrack(), func() (*evidence.Conntrack, error) { return &ct, nil })
	if _, err := c.Check(at(0), false); err != nil {
		t.Fatal(err)
	}
	ct.Drop = 7
	r, err := c.Check(at(1), false)
	if err != nil {
		t.Fatal(err)
	}
	want := evidence.Firing{
		Trigger: "conntrack", Time: at(1), Unit: "{loss}", Value: 7, Threshold: 1,
		Expression: "conntrack drop + early_drop in 10 s >= 1",
	}
	if diff := cmp.Diff(want, r.Firing, cmpopts.IgnoreFields(evidence.Firing{}, "Reason")); diff != "" {
		t.Errorf("firing (-want +got):\n%s", diff)
	}
}

func TestUnavailable(t *testing.T) {
	var err error = errors.New("open /proc/sys/net/netfilter/nf_conntrack_count: no such file or directory")
	s := NewSet(DefaultSet(),
		NewConntrack(DefaultConntrack(), func() (*evidence.Conntrack, error) { return nil, err }),
		NewListen(ListenConfig{}, nil, nil))
	play(s, 0, 3, func(int) {})
	want := []State{
		{
			Name: "conntrack", Enabled: true, Phase: Unavailable, Failed: 3,
			Why: "read conntrack: open /proc/sys/net/netfilter/nf_conntrack_count: no such file or directory",
		},
		{Name: "listen", Phase: Disabled},
	}
	if diff := cmp.Diff(want, s.State(at(3))); diff != "" {
		t.Errorf("state (-want +got):\n%s", diff)
	}
	err = nil
	play(s, 3, 4, func(int) {})
	if got := s.State(at(4))[0].Why; got != "read conntrack: no connection tracking on this host" {
		t.Errorf("why %q", got)
	}
}

func TestStatePhases(t *testing.T) {
	total := 0.0
	s := NewSet(DefaultSet(), NewResets(DefaultResets(), func() uint64 { return uint64(total) }))
	play(s, 0, 20, func(sec int) { total += rate([]burst{{5, 6, 60}}, sec) })
	got := s.State(at(20))[0]
	want := State{
		Name: "reset_rate", Enabled: true, Phase: Cooling, Until: at(315),
		Threshold: 20, Unit: "{reset}", LastFired: at(5), Fired: 1,
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(State{}, "Baseline")); diff != "" {
		t.Errorf("state (-want +got):\n%s", diff)
	}
	if got := s.State(at(315))[0].Phase; got != Armed {
		t.Errorf("phase after the cool-down is %s", got)
	}
}

// lab is a host with listeners and the counters of the kernel.
type lab struct {
	overflows, drops uint64
	sockets          []evidence.Socket
	looked           int
	err              error
}

func (l *lab) trigger() *Listen {
	return NewListen(DefaultListen(), func() (evidence.Counters, error) {
		return evidence.Counters{Values: map[string]uint64{listenOverflows: l.overflows, listenDrops: l.drops}}, nil
	}, func() ([]evidence.Socket, error) {
		l.looked++
		return l.sockets, l.err
	})
}

func (l *lab) lose(n uint64) { l.overflows += n; l.drops += n }

func socket(addr string, length, backlog uint32, pid int, comm string) evidence.Socket {
	s := evidence.Socket{State: "listen", Local: netip.MustParseAddrPort(addr), RecvQueue: length, SendQueue: backlog}
	if pid != 0 {
		s.Owner = &evidence.Owner{PID: pid, Comm: comm}
	}
	return s
}

var (
	busy = socket("0.0.0.0:8080", 129, 128, 4711, "app")
	idle = socket("0.0.0.0:22", 0, 128, 1, "sshd")
	zero = socket("[::]:9", 1, 0, 0, "")
)

var listenTests = []struct {
	name      string
	each      func(l *lab, second int)
	fired     []int
	looked    int
	listeners []evidence.Socket
	reason    string
}{
	{"counters since boot", func(*lab, int) {}, nil, 0, nil, ""},
	{"a few are below the threshold", func(l *lab, sec int) {
		if sec == 10 {
			l.lose(4)
		}
	}, nil, 1, nil, ""},
	{"overflow, one listener full", func(l *lab, sec int) {
		l.sockets = []evidence.Socket{idle, busy}
		if sec == 10 {
			l.lose(12)
		}
	}, []int{10}, 1, []evidence.Socket{busy},
		"listen queue overflow: 12 in 10 s; 0.0.0.0:8080 (pid 4711 app) has 129 of 128 in its accept queue"},
	{"the queue had drained when it fired", func(l *lab, sec int) {
		l.sockets = []evidence.Socket{idle}
		switch sec {
		case 10:
			l.sockets = []evidence.Socket{idle, busy}
			l.lose(3)
		case 13:
			l.lose(3)
		}
	}, []int{13}, 2, []evidence.Socket{busy},
		"listen queue overflow: 6 in 10 s; 0.0.0.0:8080 (pid 4711 app) has 129 of 128 in its accept queue"},
	{"a sight of a minute ago names nobody", func(l *lab, sec int) {
		l.sockets = []evidence.Socket{idle}
		switch sec {
		case 1:
			l.sockets = []evidence.Socket{busy}
			l.lose(1)
		case 30:
			l.lose(5)
		}
	}, []int{30}, 2, nil, "listen queue overflow: 5 in 10 s; no accept queue was at its limit when it was looked at"},
	{"drops without overflow, backlog 0, no owner", func(l *lab, sec int) {
		l.sockets = []evidence.Socket{zero}
		if sec == 10 {
			l.drops += 9
		}
	}, []int{10}, 1, []evidence.Socket{zero},
		"listeners dropped connection attempts: 9 in 10 s, 0 of them by a full accept queue; [::]:9 (owner unknown) has 1 of 0 in its accept queue"},
	{"listeners cannot be read", func(l *lab, sec int) {
		l.err = errors.New("dial inet_diag: permission denied")
		if sec == 10 {
			l.lose(5)
		}
	}, []int{10}, 1, nil, "listen queue overflow: 5 in 10 s; which listener is unknown: dial inet_diag: permission denied"},
	{"many listeners", func(l *lab, sec int) {
		l.sockets = nil
		for _, a := range []string{"10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1", "10.0.0.4:1", "10.0.0.5:1"} {
			l.sockets = append(l.sockets, socket(a, 2, 1, 0, ""))
		}
		if sec == 10 {
			l.lose(5)
		}
	}, []int{10}, 1, []evidence.Socket{
		socket("10.0.0.1:1", 2, 1, 0, ""), socket("10.0.0.2:1", 2, 1, 0, ""), socket("10.0.0.3:1", 2, 1, 0, ""),
		socket("10.0.0.4:1", 2, 1, 0, ""), socket("10.0.0.5:1", 2, 1, 0, ""),
	}, "listen queue overflow: 5 in 10 s; 10.0.0.1:1 (owner unknown) has 2 of 1 in its accept queue; " +
		"10.0.0.2:1 (owner unknown) has 2 of 1 in its accept queue; 10.0.0.3:1 (owner unknown) has 2 of 1 in its accept queue; and 2 more listeners"},
	{"counters go backwards", func(l *lab, sec int) {
		if sec == 10 {
			l.overflows, l.drops = 1, 1
		}
	}, nil, 0, nil, ""},
}

func TestListen(t *testing.T) {
	for _, test := range listenTests {
		t.Run(test.name, func(t *testing.T) {
			l := &lab{overflows: 500, drops: 600}
			s := NewSet(DefaultSet(), l.trigger())
			p := play(s, 0, 60, func(sec int) { test.each(l, sec) })
			if diff := cmp.Diff(test.fired, p.fired); diff != "" {
				t.Errorf("fired (-want +got):\n%s", diff)
			}
			if l.looked != test.looked {
				t.Errorf("listed the listeners %d times, want %d", l.looked, test.looked)
			}
			if diff := cmp.Diff(test.listeners, p.last.Listeners, cmpopts.EquateComparable(netip.AddrPort{})); diff != "" {
				t.Errorf("listeners (-want +got):\n%s", diff)
			}
			if p.last.Reason != test.reason {
				t.Errorf("reason\n%q, want\n%q", p.last.Reason, test.reason)
			}
		})
	}
}

func TestListenWithoutCounters(t *testing.T) {
	l := NewListen(DefaultListen(), func() (evidence.Counters, error) { return evidence.Counters{}, nil }, nil)
	_, err := l.Check(at(0), false)
	if err == nil || !strings.Contains(err.Error(), listenOverflows) {
		t.Errorf("error %v does not name the counter", err)
	}
}

func TestManual(t *testing.T) {
	f := Manual(at(1), "users complain")
	if f.Trigger != "manual" || f.Reason != "users complain" || !f.Time.Equal(at(1)) {
		t.Errorf("%+v", f)
	}
	if Manual(at(1), "").Reason == "" {
		t.Error("a manual firing without a reason")
	}
}

func TestValidate(t *testing.T) {
	for _, ok := range []interface{ Validate() error }{
		DefaultResets(), DefaultConntrack(), DefaultListen(), DefaultSet(), ResetsConfig{}, ConntrackConfig{}, ListenConfig{},
	} {
		if err := ok.Validate(); err != nil {
			t.Errorf("%T: %v", ok, err)
		}
	}
	resets, ct, listen, set := DefaultResets(), DefaultConntrack(), DefaultListen(), DefaultSet()
	resets.Factor = 0.5
	ct.Rearm = 0.96
	listen.Window = time.Second
	set.BreakThrough = 1
	for _, bad := range []struct {
		config interface{ Validate() error }
		want   string
	}{
		{resets, "resets.factor is 0.5: must be at least 1"},
		{ct, "conntrack.rearm is 0.96: must be at least 0 and below conntrack.usage (0.95)"},
		{listen, "listen.window is 1s: must be from 2s to 10m0s"},
		{set, "break_through is 1: must be over 1, or 0 for never"},
	} {
		if err := bad.config.Validate(); err == nil || err.Error() != bad.want {
			t.Errorf("%T: %v, want %s", bad.config, err, bad.want)
		}
	}
}
