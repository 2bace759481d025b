package triggers

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tcpcoroner/evidence"
	"tcpcoroner/recorder"
)

// ledger is what the recorder would tell.
type ledger struct{ s evidence.HarmSample }

func (l *ledger) read() evidence.HarmSample {
	s := l.s
	s.Groups = append([]evidence.GroupHarm(nil), s.Groups...)
	return s
}

// reset books resets of one kind for a group; every one closes a connection.
func (l *ledger) reset(port uint16, peers string, kind evidence.HarmKind, n uint64) {
	l.s.Kinds[kind] += n
	l.s.Closes += n
	key := evidence.HarmGroup{Port: port, Peers: netip.MustParsePrefix(peers)}
	for i := range l.s.Groups {
		if l.s.Groups[i].HarmGroup == key {
			l.s.Groups[i].Kinds[kind] += n
			return
		}
	}
	if kind.Harmful() {
		g := evidence.GroupHarm{HarmGroup: key}
		g.Kinds[kind] = n
		l.s.Groups = append(l.s.Groups, g)
	}
}

const here = "192.0.2.0/24"

// known books old harm of all kinds, one after another, so that no kind is new.
func (l *ledger) known(sec int) {
	if k := evidence.HarmDataLost + evidence.HarmKind((sec+100)/20); sec%20 == 0 && sec < 0 && k < evidence.HarmKinds {
		l.reset(1, "198.51.100.0/24", k, 1)
	}
}

var harmTests = []struct {
	name   string
	each   func(l *ledger, sec int)
	fired  []int
	reason string
}{
	{"only benign, many", func(l *ledger, sec int) {
		for k := range evidence.HarmDataLost {
			l.reset(80, here, k, 20)
		}
	}, nil, ""},
	{"five of one service", func(l *ledger, sec int) {
		if sec >= 30 && sec < 35 {
			l.reset(8080, here, evidence.HarmUnanswered, 1)
			l.reset(8080, here, evidence.HarmHealthCheck, 2)
		}
	}, []int{34}, "5 harmful resets in 10 s on port 8080 for 192.0.2.0/24 (unanswered 5): the threshold is 5, usual are 0; 10 more were benign"},
	{"four are not enough", func(l *ledger, sec int) {
		if sec >= 30 && sec < 34 {
			l.reset(8080, here, evidence.HarmUnanswered, 1)
		}
	}, nil, ""},
	{"a usual level of one group, and a spike of another", func(l *ledger, sec int) {
		if sec%5 == 0 {
			l.reset(443, "203.0.113.0/24", evidence.HarmMidstream, 1)
		}
		if sec == 400 {
			l.reset(8080, here, evidence.HarmDataLost, 4)
			l.reset(8080, here, evidence.HarmMidstream, 2)
		}
	}, []int{400}, "6 harmful resets in 10 s on port 8080 for 192.0.2.0/24 (data_lost 4, midstream 2): the threshold is 5, usual are 0"},
	{"a usual level grows slowly", func(l *ledger, sec int) {
		if n := max(10-sec/100, 2); sec%n == 0 {
			l.reset(443, here, evidence.HarmMidstream, 1)
		}
	}, nil, ""},
	{"scattered over peers, a large part of all ends", func(l *ledger, sec int) {
		l.s.Closes += 20
		if sec == 100 || sec == 101 || sec == 102 {
			l.reset(443, "10.0.1.0/24", evidence.HarmDataLost, 1)
			l.reset(443, "10.0.2.0/24", evidence.HarmMidstream, 1)
		}
	}, []int{102}, "2.9 % of 206 connections that ended in 10 s did harm (data_lost 3, midstream 3): the threshold is 2.0 %, usual are 0.0 %"},
	{"scattered, a small part of all ends", func(l *ledger, sec int) {
		l.s.Closes += 60
		if sec >= 100 && sec < 103 {
			l.reset(443, "10.0.1.0/24", evidence.HarmDataLost, 1)
			l.reset(443, "10.0.2.0/24", evidence.HarmMidstream, 1)
		}
	}, nil, ""},
}

func TestHarm(t *testing.T) {
	for _, test := range harmTests {
		t.Run(test.name, func(t *testing.T) {
			l := &ledger{}
			s := NewSet(DefaultSet(), NewHarm(DefaultHarm(), l.read))
			p := play(s, -101, 600, func(sec int) {
				if l.known(sec); sec >= 0 {
					test.each(l, sec)
				}
			})
			if diff := cmp.Diff(test.fired, p.fired); diff != "" {
				t.Errorf("fired (-want +got):\n%s", diff)
			}
			if p.last.Reason != test.reason {
				t.Errorf("reason\n%q, want\n%q", p.last.Reason, test.reason)
			}
		})
	}
}

func TestNewKindOfHarm(t *testing.T) {
	l := &ledger{}
	s := NewSet(DefaultSet(), NewHarm(DefaultHarm(), l.read))
	p := play(s, 0, 8000, func(sec int) {
		if sec == 10 || sec == 2000 || sec == 7000 {
			l.reset(443, here, evidence.HarmRefused, 3)
		}
	})
	// The second time it was known for less than an hour.
	if diff := cmp.Diff([]int{10, 7000}, p.fired); diff != "" {
		t.Errorf("fired (-want +got):\n%s", diff)
	}
	want := "3 resets of a new kind of harm in 10 s: refused, not seen for 1h0m0s or since the start"
	if p.last.Reason != want || p.last.Value != 3 || p.last.Threshold != 3 {
		t.Errorf("%+v", p.last)
	}
}

func TestHarmForgetsGroups(t *testing.T) {
	l := &ledger{}
	h := NewHarm(DefaultHarm(), l.read)
	for sec := range 30 {
		l.s.Groups = nil
		l.reset(uint16(sec), here, evidence.HarmDataLost, 1)
		if _, err := h.Check(at(sec), false); err != nil {
			t.Fatal(err)
		}
	}
	if len(h.groups) != 1 {
		t.Errorf("remembers %d groups", len(h.groups))
	}
}

func TestHarmValidate(t *testing.T) {
	for want, change := range map[string]func(*HarmConfig){
		"":                                       func(*HarmConfig) {},
		"resets.share is 2: must be from 0 to 1": func(c *HarmConfig) { c.Share = 2 },
		"resets.forget is 1s: must be at least resets.window (10s)": func(c *HarmConfig) { c.Forget = time.Second },
		"resets.threshold is 0: must be at least 1":                 func(c *HarmConfig) { c.Threshold = 0 },
		"resets.window is 1s: must be from 2s to 10m0s":             func(c *HarmConfig) { c.Window = time.Second },
		"resets.factor is 0: must be at least 1":                    func(c *HarmConfig) { c.Factor = 0 },
		"resets.news is -1: must be at least 1, or 0 for never":     func(c *HarmConfig) { c.News = -1 },
	} {
		c := DefaultHarm()
		change(&c)
		got := ""
		if err := c.Validate(); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// step is one segment of a connection.
type step struct {
	client   bool
	flags    byte
	seq, ack uint32
	payload  int
	milli    int64 // since the first
}

const (
	fin, syn, rst, push, ack = 1, 2, 4, 8, 16
)

var (
	opening  = []step{{true, syn, 100, 0, 0, 0}, {false, syn | ack, 900, 101, 0, 1}, {true, ack, 101, 901, 0, 2}}
	request  = []step{{true, push | ack, 101, 901, 200, 3}, {false, ack, 901, 301, 0, 4}}
	answer   = []step{{false, push | ack, 901, 301, 500, 50}, {true, ack, 301, 1401, 0, 51}}
	aborted  = slices.Concat(opening, request, []step{{false, rst | ack, 901, 301, 0, 50}})
	answered = slices.Concat(opening, request, answer, []step{{true, rst | ack, 301, 1401, 0, 52}})
	refused  = []step{{true, syn, 100, 0, 0, 0}, {false, rst | ack, 0, 101, 0, 1}}
)

// talk yields a connection of a client, "192.0.2.x", with "198.51.100.1".
func talk(yield func(*evidence.Packet) bool, nanos int64, client byte, ports [2]uint16, steps []step) {
	for _, s := range steps {
		b := make([]byte, 40)
		b[0], b[8], b[9] = 0x45, 64, 6
		wire := uint32(40 + s.payload)
		binary.BigEndian.PutUint16(b[2:], uint16(wire))
		from, to := 12, 16
		if !s.client {
			from, to = 16, 12
		}
		copy(b[from:], []byte{192, 0, 2, client})
		copy(b[to:], []byte{198, 51, 100, 1})
		binary.BigEndian.PutUint16(b[20+(from-12)/2:], ports[0])
		binary.BigEndian.PutUint16(b[20+(to-12)/2:], ports[1])
		binary.BigEndian.PutUint32(b[24:], s.seq)
		binary.BigEndian.PutUint32(b[28:], s.ack)
		b[32], b[33] = 0x50, s.flags
		yield(&evidence.Packet{Nanos: nanos + s.milli*1e6, WireBytes: wire, Header: b})
	}
}

func TestReplay(t *testing.T) {
	scorer, err := recorder.NewScorer()
	if err != nil {
		t.Fatal(err)
	}
	defer scorer.Close()
	got, err := Replay(func(yield func(*evidence.Packet) bool) error {
		for i := range 300 { // one a second; from second 200 on, 6 are aborted
			steps := answered
			if i >= 200 && i < 206 {
				steps = aborted
			}
			talk(yield, at(i).UnixNano(), 7, [2]uint16{uint16(30000 + i), 8080}, steps)
		}
		talk(yield, at(100000).UnixNano(), 7, [2]uint16{20000, 8080}, answered) // a day later
		return nil
	}, scorer, DefaultHarm(), DefaultSet())
	if err != nil {
		t.Fatal(err)
	}
	if got.Harm.Kinds[evidence.HarmUnanswered] != 6 || got.Harm.Kinds[evidence.HarmAbortAfterResponse] != 295 || got.Harm.Closes != 301 {
		t.Errorf("harm %+v", got.Harm)
	}
	if got.Packets != 301*8-6*2 || !got.From.Equal(at(0)) || got.To.Sub(at(100000)) != 52*time.Millisecond {
		t.Errorf("%d packets from %v to %v", got.Packets, got.From, got.To)
	}
	// The third is the first of a new kind that counts.
	if len(got.Firings) != 1 || got.Firings[0].Time.Sub(at(0)) != 203*time.Second ||
		!strings.HasPrefix(got.Firings[0].Reason, "3 resets of a new kind of harm in 10 s: unanswered") {
		t.Errorf("firings %+v", got.Firings)
	}
	if got.State.Name != "resets" || got.State.LastFiring.IsZero() {
		t.Errorf("state %+v", got.State)
	}
}

// benign are the resets that nobody is to be woken for: each every so many seconds.
var benign = []struct {
	every, port int
	steps       []step
}{
	{2, 8080, slices.Concat(opening, []step{{true, rst | ack, 101, 901, 0, 3}})}, // health check
	{2, 8081, []step{opening[0], opening[1], {true, rst | ack, 101, 901, 0, 2}}}, // the same, by a proxy in a hurry
	{1, 8080, answered}, // a load generator
	{3, 443, slices.Concat(opening, []step{{true, rst | ack, 101, 901, 0, 800}})},                        // connected in advance
	{5, 443, slices.Concat(opening, request, answer, []step{{false, rst | ack, 1401, 301, 0, 900}})[:7]}, // open for good
	{4, 443, slices.Concat(opening, request, answer, []step{{true, fin | ack, 301, 1401, 0, 60}, {false, push | ack, 1401, 302, 24, 61}, {true, rst, 302, 0, 0, 62}})},
	{4, 80, slices.Concat(opening, request, answer, []step{{false, fin | ack, 1401, 301, 0, 60}, {true, fin | ack, 301, 1402, 0, 61}, {false, rst, 1402, 0, 0, 62}})},
	{20, 9999, refused}, // somebody tries again and again, slowly
}

// Half an hour of benign resets wakes nobody; all are counted as benign.
func TestBenignLoad(t *testing.T) {
	scorer, err := recorder.NewScorer()
	if err != nil {
		t.Fatal(err)
	}
	defer scorer.Close()
	got, err := Replay(func(yield func(*evidence.Packet) bool) error {
		for sec := range 1800 {
			for i, b := range benign {
				if sec%b.every == 0 {
					talk(yield, at(sec).UnixNano()+int64(i)*7e6, byte(i+1), [2]uint16{uint16(20000 + sec), uint16(b.port)}, b.steps)
				}
			}
			for n := range 10 {
				if sec >= 600 && sec < 608 { // a scan
					talk(yield, at(sec).UnixNano()+int64(800+n)*1e6, 99, [2]uint16{40000, uint16(20000 + 10*sec + n)}, refused)
				}
			}
			if sec == 900 || sec == 902 { // an idle service is deployed, its health check goes on
				talk(yield, at(sec).UnixNano()+9e8, 98, [2]uint16{uint16(40000 + sec), 8081}, refused)
			}
		}
		return nil
	}, scorer, DefaultHarm(), DefaultSet())
	if err != nil || len(got.Firings) != 0 || got.Harm.Kinds.Harmful() != 0 {
		t.Errorf("%v, firings %+v, harm %+v", err, got.Firings, got.Harm)
	}
	for _, kind := range []evidence.HarmKind{evidence.HarmHealthCheck, evidence.HarmAbortAfterResponse, evidence.HarmPreconnect,
		evidence.HarmAfterFIN, evidence.HarmStartup, evidence.HarmScan} {
		if got.Harm.Kinds[kind] < 40 {
			t.Errorf("%v: %d", kind, got.Harm.Kinds[kind])
		}
	}
}
