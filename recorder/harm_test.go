package recorder

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"tcpcoroner/evidence"
)

func TestJudge(t *testing.T) {
	answered := [2]int64{100, 5000}
	tests := []struct {
		name  string
		ended ended
		kind  evidence.HarmKind
		score uint8
	}{
		{"nothing known", ended{}, evidence.HarmStray, 20},
		{"duplicate wins", ended{duplicate: true, known: true, lost: [2]uint32{9, 9}}, evidence.HarmDuplicate, 0},
		{"ignored", ended{ignored: true, known: true, lost: [2]uint32{9, 9}}, evidence.HarmIgnored, 0},
		{"refused once", ended{known: true, opening: true, tries: 1}, evidence.HarmStartup, 30},
		{"refused again", ended{known: true, opening: true, tries: 3}, evidence.HarmRefused, 50},
		{"refused where it served", ended{known: true, opening: true, tries: 1, serving: true}, evidence.HarmRefusedServing, 60},
		{"refused a scanner", ended{known: true, opening: true, tries: 9, scanner: true}, evidence.HarmScan, 0},
		{"half-open check", ended{known: true, fromClient: true, opening: true, age: 1}, evidence.HarmHealthCheck, 0},
		{"check", ended{known: true, fromClient: true, age: 40}, evidence.HarmHealthCheck, 0},
		{"preconnect", ended{known: true, fromClient: true, age: 30000}, evidence.HarmPreconnect, 0},
		{"thrown out", ended{known: true, age: 1}, evidence.HarmRefusedServing, 60},
		{"unused, idle", ended{known: true, age: 60000, idle: 60000}, evidence.HarmIdleClose, 0},
		{"after the answer", ended{known: true, fromClient: true, bytes: answered, pushed: [2]bool{true, true}}, evidence.HarmAbortAfterResponse, 0},
		{"within the answer", ended{known: true, fromClient: true, bytes: answered}, evidence.HarmMidstream, 50},
		{"server aborts", ended{known: true, bytes: answered, pushed: [2]bool{true, true}, age: 2000}, evidence.HarmMidstream, 60},
		{"idle pool", ended{known: true, bytes: answered, idle: 5000}, evidence.HarmIdleClose, 0},
		{"no answer", ended{known: true, bytes: [2]int64{100, 0}, idle: 60000, age: 60000}, evidence.HarmUnanswered, 75},
		{"no answer to the second request", ended{known: true, bytes: answered, pending: [2]bool{true, false}}, evidence.HarmUnanswered, 65},
		{"answer lost", ended{known: true, bytes: answered, lost: [2]uint32{0, 1000}}, evidence.HarmDataLost, 60},
		{"late answer", ended{known: true, fromClient: true, bytes: answered, lost: [2]uint32{0, 1000}, fin: [2]bool{true, false}}, evidence.HarmDataLost, 60},
		{"farewell of the server", ended{known: true, fromClient: true, bytes: answered, lost: [2]uint32{0, 24}, fin: [2]bool{true, false}}, evidence.HarmAfterFIN, 0},
		{"farewell of the client", ended{known: true, bytes: answered, lost: [2]uint32{24, 0}, fin: [2]bool{true, true}}, evidence.HarmAfterFIN, 0},
		{"small request on a closed connection", ended{known: true, bytes: answered, lost: [2]uint32{24, 0}, pending: [2]bool{true, false}, fin: [2]bool{false, true}},
			evidence.HarmDataLost, 75},
		{"closed", ended{known: true, bytes: answered, fin: [2]bool{true, false}}, evidence.HarmAfterFIN, 0},
		{"turned away, client is done", ended{known: true, bytes: answered, unheard: 5000, fin: [2]bool{true, false}}, evidence.HarmUnanswered, 65},
		{"turned away without a word", ended{known: true, bytes: [2]int64{5000, 0}, fin: [2]bool{false, true}}, evidence.HarmUnanswered, 65},
		{"nothing said to a client that is done", ended{known: true, bytes: [2]int64{5000, 0}, fin: [2]bool{true, true}}, evidence.HarmAfterFIN, 0},
		{"farewell of a client that is done", ended{known: true, bytes: answered, unheard: 24, fin: [2]bool{true, false}}, evidence.HarmAfterFIN, 0},
		{"unheard by a server that is done", ended{known: true, bytes: answered, unheard: 5000, fin: [2]bool{true, true}}, evidence.HarmAfterFIN, 0},
	}
	for _, test := range tests {
		kind, score := test.ended.judge()
		if kind != test.kind || score != test.score {
			t.Errorf("%s: %v %d, want %v %d", test.name, kind, score, test.kind, test.score)
		}
		if kind.Harmful() != (score >= harmfulScore) {
			t.Errorf("%s: %v has a score of %d", test.name, kind, score)
		}
	}
}

// talk makes the packets of one connection. Sides: 0 the client, 1 the server.
type talk struct {
	scorer    *Scorer
	ends      [2]netip.AddrPort
	seq       [2]uint32
	acked     [2]uint32
	nanos     int64
	namespace uint16
	to        [2]evidence.Direction // of what the client sends, and the server
}

func newTalk(s *Scorer, client, server string) *talk {
	return &talk{scorer: s, ends: [2]netip.AddrPort{netip.MustParseAddrPort(client), netip.MustParseAddrPort(server)},
		seq: [2]uint32{0xfffffff0, 7000}, nanos: base.UnixNano(), to: [2]evidence.Direction{evidence.Received, evidence.Sent}}
}

func (c *talk) wait(milli int) *talk { c.nanos += int64(milli) * 1e6; return c }

// say sends a segment, one tenth of a millisecond after the one before.
func (c *talk) say(side int, flags byte, payload int) *talk {
	c.nanos += 1e5
	ack := c.acked[side]
	if flags&flagACK == 0 {
		ack = 0
	}
	c.raw(side, flags, c.seq[side], ack, payload)
	c.seq[side] += uint32(payload) + uint32(flags&1) + uint32(flags>>1&1)
	return c
}

// hears acknowledges all that the other side sent.
func (c *talk) hears(side int) *talk { c.acked[side] = c.seq[1-side]; return c }

func (c *talk) raw(side int, flags byte, seq, ack uint32, payload int) {
	src, dst := c.ends[side], c.ends[1-side]
	b := make([]byte, 20, 60)
	if src.Addr().Is6() {
		b = b[:40]
		b[0], b[6], b[7] = 0x60, protoTCP, 64
		binary.BigEndian.PutUint16(b[4:], uint16(20+payload))
		copy(b[8:], src.Addr().AsSlice())
		copy(b[24:], dst.Addr().AsSlice())
	} else {
		b[0], b[8], b[9] = 0x45, 64, protoTCP
		binary.BigEndian.PutUint16(b[2:], uint16(40+payload))
		copy(b[12:], src.Addr().AsSlice())
		copy(b[16:], dst.Addr().AsSlice())
	}
	at := len(b)
	b = append(b, make([]byte, 20)...)
	p := b[at:]
	binary.BigEndian.PutUint16(p, src.Port())
	binary.BigEndian.PutUint16(p[2:], dst.Port())
	binary.BigEndian.PutUint32(p[4:], seq)
	binary.BigEndian.PutUint32(p[8:], ack)
	p[12], p[13] = 0x50, flags
	c.scorer.Add(&evidence.Packet{Nanos: c.nanos, WireBytes: uint32(len(b) + payload), Header: b,
		Namespace: c.namespace, Direction: c.to[side], Interface: 2, LinkType: 1})
}

const (
	sSYN = flagSYN
	sACK = flagACK
	sPSH = flagPSH | flagACK
	sFIN = flagFIN | flagACK
	sRST = flagRST | flagACK
)

func (c *talk) open() *talk {
	return c.say(0, sSYN, 0).hears(1).say(1, sSYN|sACK, 0).hears(0).say(0, sACK, 0)
}

func (c *talk) request() *talk { return c.say(0, sPSH, 300).hears(1).say(1, sACK, 0) }

func (c *talk) answer() *talk { return c.say(1, sPSH, 900).hears(0).say(0, sACK, 0) }

// seal ends the chunk, as a busy host does.
func (c *talk) seal() *talk {
	c.scorer.harm.carry(c.scorer.encoder)
	c.scorer.encoder.reset()
	return c
}

var talks = []struct {
	name string
	say  func(c *talk)
	want map[evidence.HarmKind]uint64
}{
	{"abort after a window probe", func(c *talk) {
		c.open().request().answer().raw(1, sACK, c.seq[1]-1, c.acked[1], 0)
		c.say(0, sACK, 0).say(1, sRST, 0)
	}, one(evidence.HarmMidstream)},
	{"abort after a keepalive probe, while the answer is waited for", func(c *talk) {
		c.open().request().raw(0, sACK, c.seq[0]-1, c.acked[0], 0)
		c.say(1, sACK, 0).say(0, sRST, 0)
	}, one(evidence.HarmUnanswered)},
	{"turned away in the middle of an upload, without a word", func(c *talk) {
		c.open().say(0, sPSH, 5000).hears(1).say(1, sACK, 0).say(1, sFIN, 0).say(1, sRST, 0)
	}, one(evidence.HarmUnanswered)},
	{"health check", func(c *talk) { c.open().say(0, sRST, 0) }, one(evidence.HarmHealthCheck)},
	{"health check instead of the third segment", func(c *talk) {
		c.say(0, sSYN, 0).hears(1).say(1, sSYN|sACK, 0).hears(0).say(0, sRST, 0)
	}, one(evidence.HarmHealthCheck)},
	{"preconnect", func(c *talk) { c.open().wait(9000).say(0, sRST, 0) }, one(evidence.HarmPreconnect)},
	{"accepted and thrown out", func(c *talk) { c.open().say(1, flagRST, 0) }, one(evidence.HarmRefusedServing)},
	{"abort after the response", func(c *talk) { c.open().request().answer().say(0, sRST, 0) }, one(evidence.HarmAbortAfterResponse)},
	{"the reset acknowledges the rest", func(c *talk) {
		c.open().request().say(1, sPSH, 900).hears(0).say(0, sRST, 0)
	}, one(evidence.HarmAbortAfterResponse)},
	{"answer on its way", func(c *talk) { c.open().request().say(1, sPSH, 900).say(0, sRST, 0) }, one(evidence.HarmAbandoned)},
	{"after gigabytes", func(c *talk) {
		c.open().request()
		for range 3 {
			c.seq[1] += 1 << 30
			c.hears(0).say(0, sACK, 0)
		}
		c.answer().say(0, sRST, 0)
	}, one(evidence.HarmAbortAfterResponse)},
	{"gigabytes, and the last on its way", func(c *talk) {
		c.open().request()
		for range 3 {
			c.seq[1] += 1 << 30
			c.hears(0).say(0, sACK, 0)
		}
		c.say(1, sPSH, 900).say(0, sRST, 0)
	}, one(evidence.HarmAbandoned)},
	{"seen from one side only", func(c *talk) {
		c.say(0, sSYN, 0)
		c.acked[0] = c.seq[1] + 1
		c.say(0, sACK, 0).say(0, sPSH, 900).say(0, sPSH, 900).say(0, flagRST, 0)
	}, one(evidence.HarmStray)},
	{"no answer", func(c *talk) { c.open().request().wait(60000).say(0, sRST, 0) }, one(evidence.HarmUnanswered)},
	{"no answer to the second request", func(c *talk) {
		c.open().request().answer().wait(3000).request().wait(60000).say(1, sRST, 0)
	}, one(evidence.HarmUnanswered)},
	{"server aborts after an answer", func(c *talk) { c.open().request().answer().say(1, sRST, 0) }, one(evidence.HarmMidstream)},
	{"idle pool", func(c *talk) { c.open().request().answer().wait(30000).say(1, sRST, 0) }, one(evidence.HarmIdleClose)},
	{"idle pool, in another chunk", func(c *talk) {
		c.open().request().answer().seal().wait(30000).seal().say(1, sRST, 0)
	}, one(evidence.HarmIdleClose)},
	{"no answer, in another chunk", func(c *talk) { c.open().request().seal().wait(20000).say(0, sRST, 0) }, one(evidence.HarmUnanswered)},
	{"both closed", func(c *talk) {
		c.open().request().answer().say(1, sFIN, 0).hears(0).say(0, sFIN, 0).say(1, flagRST, 0)
	}, one(evidence.HarmAfterFIN)},
	{"reuse of a closed connection", func(c *talk) {
		c.open().request().answer().say(1, sFIN, 0).wait(500).say(0, sPSH, 300).say(1, flagRST, 0)
	}, one(evidence.HarmDataLost)},
	{"an early answer to a client that is done at last", func(c *talk) {
		c.open().request().say(1, sPSH, 70).hears(0).say(0, sPSH, 9000).say(0, sFIN, 0).hears(1).say(1, sRST, 0)
	}, one(evidence.HarmUnanswered)},
	{"an answer to a client that is done", func(c *talk) {
		c.open().request().answer().say(0, sFIN, 0).hears(1).say(1, sRST, 0)
	}, one(evidence.HarmAfterFIN)},
	{"TLS says goodbye to a client that is gone", func(c *talk) {
		c.open().request().answer().say(0, sFIN, 0).hears(1).say(1, sPSH, 24).say(0, flagRST, 0)
	}, one(evidence.HarmAfterFIN)},
	{"TLS says goodbye to a server that is gone", func(c *talk) {
		c.open().request().answer().say(1, sPSH, 24).say(1, sFIN, 0).hears(0).say(0, sPSH, 24).say(1, flagRST, 0)
	}, one(evidence.HarmAfterFIN)},
	{"TLS says goodbye with the FIN, to a server that is gone, chunks later", func(c *talk) {
		c.open().request().answer().seal().wait(60000).say(1, sPSH|flagFIN, 31).hears(0).seal().wait(60000).say(0, sPSH, 31).say(1, flagRST, 0)
	}, one(evidence.HarmAfterFIN)},
	{"TLS says goodbye to a server that is about to go", func(c *talk) {
		c.open().request().answer().say(1, sPSH, 24).hears(0).say(0, sPSH, 24).hears(1).say(1, sRST, 0)
	}, one(evidence.HarmAfterFIN)},
	{"an echo that ends", func(c *talk) {
		c.open().say(0, sPSH, 64).hears(1).say(1, sPSH, 64).hears(0).say(0, sPSH, 64).hears(1).say(1, sRST, 0)
	}, one(evidence.HarmUnanswered)},
	{"a request as short as the answer before, which nobody answers", func(c *talk) {
		c.open().request().say(1, sPSH, 24).hears(0).say(0, sPSH, 24).hears(1).wait(500).say(1, sRST, 0)
	}, one(evidence.HarmUnanswered)},
	{"a request as short as the answer long before", func(c *talk) {
		c.open().request().say(1, sPSH, 24).wait(500).hears(0).say(0, sPSH, 24).hears(1).say(1, sRST, 0)
	}, one(evidence.HarmUnanswered)},
	{"TLS says goodbye to a server that takes a while to go", func(c *talk) {
		c.open().request().answer().say(1, sPSH, 24).hears(0).say(0, sACK, 0).say(0, sPSH, 24).wait(40).hears(1).say(1, sACK, 0).wait(170).say(1, sRST, 0)
	}, one(evidence.HarmAfterFIN)},
	{"a request as short as the answer before, confirmed and not answered", func(c *talk) {
		c.open().request().say(1, sPSH, 24).hears(0).say(0, sPSH, 24).wait(40).hears(1).say(1, sACK, 0).wait(1000).say(1, sRST, 0)
	}, one(evidence.HarmUnanswered)},
	{"TLS says goodbye to a server whose FIN it had not seen yet, and closes", func(c *talk) {
		c.open().request().answer().say(1, sPSH, 24).hears(0).say(0, sACK, 0).say(1, sFIN, 0)
		c.say(0, sPSH, 24).hears(0).say(0, sFIN, 0)
		c.raw(1, flagRST, c.seq[1]-1, 0, 0) // answers the first, and is ignored
		c.raw(1, flagRST, c.seq[1], 0, 0)
	}, map[evidence.HarmKind]uint64{evidence.HarmIgnored: 1, evidence.HarmAfterFIN: 1}},
	{"a request as short as the goodbye of the server, and its answer", func(c *talk) {
		c.open().request().answer().say(1, sPSH, 24).say(1, sFIN, 0).hears(0).say(0, sPSH, 23).say(1, flagRST, 0)
	}, one(evidence.HarmDataLost)},
	{"a request as short as the last answer, long ago", func(c *talk) {
		c.open().request().say(1, sPSH, 24).hears(0).say(0, sACK, 0).wait(5000).say(1, sFIN, 0).hears(0).say(0, sPSH, 24).say(1, flagRST, 0)
	}, one(evidence.HarmDataLost)},
	{"one reset an answer", func(c *talk) {
		c.open().request().say(1, sPSH, 900).say(1, sPSH, 900).say(0, flagRST, 0).say(0, flagRST, 0)
	}, map[evidence.HarmKind]uint64{evidence.HarmAbandoned: 1, evidence.HarmDuplicate: 1}},
	{"blind reset, out of the window", func(c *talk) {
		c.open().request().answer()
		c.raw(0, flagRST, c.seq[0]+10, 0, 0)
		c.raw(0, flagRST, c.seq[0]-10, 0, 0)
		c.request().say(1, sRST, 0)
	}, map[evidence.HarmKind]uint64{evidence.HarmIgnored: 2, evidence.HarmUnanswered: 1}},
	{"stray", func(c *talk) { c.say(1, flagRST, 0) }, one(evidence.HarmStray)},
	{"connection of before the start, data on its way", func(c *talk) {
		c.acked = [2]uint32{c.seq[1], c.seq[0]}
		c.say(0, sACK, 0).say(1, sACK, 0).say(0, sPSH, 300).say(1, flagRST, 0)
	}, one(evidence.HarmDataLost)},
	{"refused, tried again and again", func(c *talk) {
		for range 4 {
			c.say(0, sSYN, 0)
			c.raw(1, sRST, 0, c.seq[0], 0)
			c.seq[0] += 1000
			c.wait(100)
		}
	}, map[evidence.HarmKind]uint64{evidence.HarmStartup: 2, evidence.HarmRefused: 2}},
	{"refused by a port that served", func(c *talk) {
		c.open().request().answer().say(0, sFIN, 0).wait(1000)
		c.seq[0] += 5000
		c.say(0, sSYN, 0)
		c.raw(1, sRST, 0, c.seq[0], 0)
	}, one(evidence.HarmRefusedServing)},
	{"refused by a port that was only checked", func(c *talk) {
		c.open().say(0, sRST, 0).wait(1000)
		c.seq[0] += 5000
		c.say(0, sSYN, 0)
		c.raw(1, sRST, 0, c.seq[0], 0)
	}, map[evidence.HarmKind]uint64{evidence.HarmHealthCheck: 1, evidence.HarmStartup: 1}},
	{"refused in the next chunk", func(c *talk) {
		c.say(0, sSYN, 0).seal().raw(1, sRST, 0, c.seq[0], 0)
	}, one(evidence.HarmStartup)},
	{"refused after another SYN", func(c *talk) {
		c.say(0, sSYN, 0).wait(1000).raw(0, sSYN, c.seq[0]-1, 0, 0)
		c.raw(1, sRST, 0, c.seq[0], 0)
	}, one(evidence.HarmStartup)},
	{"refused, sent again, refused", func(c *talk) {
		for range 2 {
			c.wait(500).raw(0, sSYN, 99, 0, 0)
			c.raw(1, sRST, 0, 100, 0)
		}
	}, map[evidence.HarmKind]uint64{evidence.HarmStartup: 1, evidence.HarmDuplicate: 1}},
	{"refused twice", func(c *talk) {
		c.say(0, sSYN, 0).raw(1, sRST, 0, c.seq[0], 0)
		c.raw(1, flagRST, 1, 0, 0)
		c.say(0, sFIN, 0).raw(0, flagRST, c.seq[0], 0, 0)
	}, map[evidence.HarmKind]uint64{evidence.HarmStartup: 1, evidence.HarmDuplicate: 2}},
	{"refused, then accepted", func(c *talk) {
		c.say(0, sSYN, 0).raw(1, sRST, 0, c.seq[0], 0)
		c.seq[0] += 5000
		c.wait(1000).open().request().say(1, sRST, 0)
	}, map[evidence.HarmKind]uint64{evidence.HarmStartup: 1, evidence.HarmUnanswered: 1}},
	{"refused with payload", func(c *talk) {
		c.say(0, sSYN, 0).raw(1, sRST, 0, c.seq[0], 8)
	}, one(evidence.HarmStartup)},
	{"refused in two namespaces", func(c *talk) {
		d := newTalk(c.scorer, c.ends[0].String(), c.ends[1].String())
		d.namespace = 3
		c.say(0, sSYN, 0)
		d.say(0, sSYN, 0)
		c.raw(1, sRST, 0, c.seq[0], 0)
		d.raw(1, sRST, 0, d.seq[0], 0)
	}, map[evidence.HarmKind]uint64{evidence.HarmStartup: 1, evidence.HarmDuplicate: 1}},
	{"given up before the answer", func(c *talk) {
		c.say(0, sSYN, 0).wait(50).raw(0, flagRST, c.seq[0], 0, 0)
	}, one(evidence.HarmHealthCheck)},
	{"given up later", func(c *talk) {
		c.say(0, sSYN, 0).wait(1000).raw(0, sSYN, c.seq[0]-1, 0, 0)
		c.wait(50).raw(0, flagRST, c.seq[0], 0, 0)
	}, one(evidence.HarmPreconnect)},
	{"answered in the next chunk", func(c *talk) {
		c.say(0, sSYN, 0).hears(1).seal().say(1, sSYN|sACK, 0).hears(0).say(0, sACK, 0).request().say(1, sRST, 0)
	}, one(evidence.HarmUnanswered)},
	{"scan", func(c *talk) {
		for port := range uint16(40) {
			c.ends[1] = netip.AddrPortFrom(c.ends[1].Addr(), 20000+port*7)
			c.say(0, sSYN, 0)
			c.raw(1, sRST, 0, c.seq[0], 0)
		}
	}, nil}, // the first ones are of a client that may just be early
	{"reset with payload", func(c *talk) {
		c.open().request()
		c.raw(1, sRST, c.seq[1], c.seq[0], 8)
	}, one(evidence.HarmUnanswered)},
	{"seen in two namespaces", func(c *talk) {
		d := newTalk(c.scorer, c.ends[0].String(), c.ends[1].String())
		d.namespace = 3
		for _, x := range []*talk{c, d} {
			x.open().request()
		}
		c.say(1, sRST, 0)
		d.say(1, sRST, 0)
	}, map[evidence.HarmKind]uint64{evidence.HarmUnanswered: 1, evidence.HarmDuplicate: 1}},
	{"the same ports again", func(c *talk) {
		c.open().request().say(1, sRST, 0).wait(2000)
		c.seq[0] += 100000
		c.seq[1] += 90000
		c.open().say(0, sRST, 0)
	}, map[evidence.HarmKind]uint64{evidence.HarmUnanswered: 1, evidence.HarmHealthCheck: 1}},
}

func one(k evidence.HarmKind) map[evidence.HarmKind]uint64 { return map[evidence.HarmKind]uint64{k: 1} }

func newScorer(t testing.TB) *Scorer {
	t.Helper()
	s, err := NewScorer()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func kinds(s *evidence.HarmSample) map[evidence.HarmKind]uint64 {
	m := map[evidence.HarmKind]uint64{}
	for k, n := range s.Kinds {
		if n > 0 {
			m[evidence.HarmKind(k)] = n
		}
	}
	return m
}

func TestHarm(t *testing.T) {
	for _, ends := range [][2]string{{"192.0.2.7:40000", "192.0.2.200:8080"}, {"[2001:db8:1:2::9]:40000", "[2001:db8::1]:8080"}} {
		for _, test := range talks {
			t.Run(test.name+" "+ends[0], func(t *testing.T) {
				s := newScorer(t)
				test.say(newTalk(s, ends[0], ends[1]))
				sample := s.Sample()
				got := kinds(&sample)
				if test.want == nil {
					if sample.Kinds.Harmful() != 0 || got[evidence.HarmScan] < 20 {
						t.Errorf("kinds %v", got)
					}
				} else if diff := cmp.Diff(test.want, got); diff != "" {
					t.Errorf("kinds (-want +got):\n%s", diff)
				}
			})
		}
	}
}

// A name with two addresses: who listens on IPv4 alone refuses IPv6 each time.
func TestHarmOfAFallback(t *testing.T) {
	for _, test := range []struct {
		name      string
		service   string // what answers over IPv4
		namespace uint16
		wait      int // milliseconds since then
		refused   uint64
	}{
		{"answered", "127.0.0.1:5000", 0, 1000, 0},
		{"answered long ago", "127.0.0.1:5000", 0, 6000, 3},
		{"another port", "127.0.0.1:5001", 0, 1000, 3},
		{"another namespace", "127.0.0.1:5000", 3, 1000, 3},
	} {
		s := newScorer(t)
		v4 := newTalk(s, "127.0.0.1:41000", test.service)
		v4.namespace = test.namespace
		v4.open().wait(test.wait)
		v6 := newTalk(s, "[::1]:40000", "[::1]:5000")
		v6.nanos = v4.nanos
		for i := range uint16(5) {
			v6.ends[0] = netip.AddrPortFrom(v6.ends[0].Addr(), 40000+i)
			v6.say(0, sSYN, 0)
			v6.raw(1, sRST, 0, v6.seq[0], 0)
		}
		if got := s.Sample().Kinds; got[evidence.HarmRefused] != test.refused || got[evidence.HarmStartup] != 5-test.refused {
			t.Errorf("%s: kinds %v", test.name, got)
		}
	}
}

// A client that leaves a page leaves up to six connections, once. What another client
// leaves, or the same one a moment later or in masses, is harm.
func TestHarmOfAPageLeft(t *testing.T) {
	for _, test := range []struct {
		name               string
		connections        int
		wait               int // milliseconds between them
		clients, services  int
		last               uint8 // what the client says
		abandoned, harmful uint64
	}{
		{"a page, with answers unread", 6, 5, 1, 1, sRST, 1, 0},
		{"a page, closed", 6, 5, 1, 1, sFIN, 1, 0},
		{"pages, one now and then", 6, 6000, 1, 1, sRST, 6, 0},
		{"pages, one after the other", 6, 2000, 1, 1, sRST, 1, 5},
		{"a client that drops all it has", 50, 5, 1, 1, sRST, 1, 8},
		{"a client that drops twelve a second", 50, 80, 1, 1, sRST, 1, 16},
		{"many clients", 6, 5, 6, 1, sRST, 1, 5},
		{"many clients that wait longer than a page", 20, 1000, 20, 1, sFIN, 1, 19},
		{"two services", 2, 2000, 1, 2, sRST, 2, 0},
	} {
		s := newScorer(t)
		nanos := base.UnixNano()
		for i := range test.connections {
			c := newTalk(s, fmt.Sprintf("192.0.2.%d:%d", 1+i%test.clients, 40000+i), fmt.Sprintf("198.51.100.1:%d", 443+i%test.services))
			c.nanos = nanos
			c.open().request().say(1, sACK, 1400).hears(0).say(0, sACK, 0).say(1, sACK, 1400).say(0, test.last, 0)
			if test.last == sFIN {
				c.say(1, sACK, 1400).say(0, flagRST, 0)
			}
			nanos = c.nanos + int64(test.wait)*1e6
		}
		got := s.Sample().Kinds
		benign := got[evidence.HarmAbandoned] + got[evidence.HarmDuplicate]
		if got[evidence.HarmAbandoned] != test.abandoned || got.Harmful() != test.harmful || benign+got.Harmful() != uint64(test.connections) {
			t.Errorf("%s: kinds %v", test.name, got)
		}
	}
}

func TestHarmGroups(t *testing.T) {
	s := newScorer(t)
	newTalk(s, "192.0.2.7:40000", "198.51.100.1:8080").open().request().say(1, sRST, 0)
	newTalk(s, "192.0.2.9:40000", "198.51.100.1:8080").open().request().say(1, sRST, 0)
	newTalk(s, "[2001:db8:1:2ff::9]:40000", "[2001:db8::1]:443").open().request().say(1, sRST, 0)
	out := newTalk(s, "198.51.100.1:50000", "203.0.113.5:5432")
	out.to = [2]evidence.Direction{evidence.Sent, evidence.Received}
	out.open().request().say(1, sRST, 0)
	newTalk(s, "192.0.3.7:40000", "198.51.100.1:8080").open().say(0, sRST, 0) // benign: no group
	n := func(n uint64) (c evidence.HarmCounts) { c[evidence.HarmUnanswered] = n; return c }
	want := []evidence.GroupHarm{
		{HarmGroup: evidence.HarmGroup{Port: 8080, Peers: netip.MustParsePrefix("192.0.2.0/24")}, Kinds: n(2)},
		{HarmGroup: evidence.HarmGroup{Port: 443, Peers: netip.MustParsePrefix("2001:db8:1:200::/56")}, Kinds: n(1)},
		{HarmGroup: evidence.HarmGroup{Port: 5432, Outbound: true, Peers: netip.MustParsePrefix("203.0.113.0/24")}, Kinds: n(1)},
	}
	got := s.Sample()
	if diff := cmp.Diff(want, got.Groups, cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
		t.Errorf("groups (-want +got):\n%s", diff)
	}
	if got.Closes != 5 || got.Score != 4*65 {
		t.Errorf("closes %d, score %d", got.Closes, got.Score)
	}
}

func TestHarmGroupsAreBounded(t *testing.T) {
	var tally harmTally
	for i := range harmGroups + 10 {
		tally.add(evidence.HarmDataLost, 60, &harmPeers{port: uint16(i)}, uint32(i))
	}
	s := tally.sample()
	if len(s.Groups) != harmGroups || s.Evicted != 10 || s.Groups[0].Port != harmGroups || s.Groups[10].Port != 10 {
		t.Errorf("%d groups, %d evicted, ports %d, %d", len(s.Groups), s.Evicted, s.Groups[0].Port, s.Groups[10].Port)
	}
	for i := 10; i < harmGroups+10; i++ {
		tally.add(evidence.HarmStartup, 30, &harmPeers{port: uint16(i)}, uint32(harmGroups+i))
	}
	for _, g := range tally.sample().Groups {
		if g.Kinds[evidence.HarmStartup] != 1 {
			t.Errorf("the group of port %d was not found again", g.Port)
		}
	}
}

// A flood of SYNs must not make the recorder forget connections that live.
func TestHarmSurvivesFlood(t *testing.T) {
	s := newScorer(t)
	c := newTalk(s, "192.0.2.7:40000", "198.51.100.1:8080").open().request().seal()
	flood := newTalk(s, "203.0.113.1:1024", "198.51.100.1:8080")
	for i := range 400_000 {
		addr := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		flood.ends[0] = netip.AddrPortFrom(addr, 1024)
		flood.say(0, sSYN, 0)
	}
	c.nanos = flood.nanos
	c.say(1, sRST, 0)
	sample := s.Sample()
	if diff := cmp.Diff(one(evidence.HarmUnanswered), kinds(&sample)); diff != "" {
		t.Errorf("kinds (-want +got):\n%s", diff)
	}
}

// A busy host's connections that end must not make a replay forget those that live.
func TestScorerSurvivesChurn(t *testing.T) {
	const live = 300
	s := newScorer(t)
	client := func(port int) string { return "192.0.2.7:" + strconv.Itoa(port) }
	var all []*talk
	for i := range live {
		all = append(all, newTalk(s, client(32768+2*i), "198.51.100.1:80").open().request().answer())
	}
	for i := range 6_000 {
		newTalk(s, client(34000+i), "198.51.100.1:80").open().request().answer().say(0, sRST, 0)
	}
	for _, c := range all {
		c.seal().wait(20_000).say(1, sRST, 0)
	}
	if got := s.Sample().Kinds; got[evidence.HarmIdleClose] != live || got[evidence.HarmStray] != 0 {
		t.Errorf("kinds %v, want %d of %v", got, live, evidence.HarmIdleClose)
	}
}

// When packets were lost, what is older is not believed.
func TestHarmAfterLoss(t *testing.T) {
	s := newScorer(t)
	c := newTalk(s, "192.0.2.7:40000", "198.51.100.1:8080").open().request().answer()
	s.harm.distrust(c.nanos + 1e6)
	c.wait(50)
	c.seq[0] += 700 // a request that was not seen
	c.hears(1).say(1, sRST, 0)
	sample := s.Sample()
	if diff := cmp.Diff(one(evidence.HarmMidstream), kinds(&sample)); diff != "" {
		t.Errorf("kinds (-want +got):\n%s", diff)
	}
}

// At LevelHold packets are counted first and stored later: each reset is scored
// once, with what the control segments alone say.
func TestHarmIsScoredWhenCounted(t *testing.T) {
	r := newRecorder(t, Config{Memory: small})
	w := &r.w
	w.start(&Replay{})
	w.harm().blind = true
	var packets []evidence.Packet
	c := newTalk(newScorer(t), "192.0.2.7:40000", "198.51.100.1:8080")
	collect := func(flags byte, side int, seq, ack uint32) {
		b := tcp4(flags, nil)
		copy(b[12:], c.ends[side].Addr().AsSlice())
		copy(b[16:], c.ends[1-side].Addr().AsSlice())
		binary.BigEndian.PutUint16(b[20:], c.ends[side].Port())
		binary.BigEndian.PutUint16(b[22:], c.ends[1-side].Port())
		binary.BigEndian.PutUint32(b[24:], seq)
		binary.BigEndian.PutUint32(b[28:], ack)
		c.wait(1)
		packets = append(packets, evidence.Packet{Nanos: c.nanos, WireBytes: uint32(len(b)), Header: b, Direction: c.to[side]})
	}
	collect(sSYN, 0, 100, 0)
	collect(sSYN|sACK, 1, 900, 101)
	collect(sACK, 0, 101, 901)
	collect(sRST, 1, 901, 401) // it has 300 bytes, and sent none
	for i := range packets {
		m := metaFrom(&packets[i])
		w.Count(&m, packets[i].Header)
	}
	for i := range packets {
		m := metaFrom(&packets[i])
		w.Store(&m, packets[i].Header)
	}
	w.stop()
	sample := r.Harm()
	if diff := cmp.Diff(one(evidence.HarmUnanswered), kinds(&sample)); diff != "" {
		t.Errorf("kinds (-want +got):\n%s", diff)
	}
}

func TestHarmUnscored(t *testing.T) {
	s := newScorer(t)
	inner := tcp4(flagRST, nil)
	outer := append([]byte{0x45, 0, 0, byte(20 + len(inner)), 0, 0, 0, 0, 64, 4, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2}, inner...)
	s.Add(&evidence.Packet{Nanos: 1, WireBytes: uint32(len(outer)), Header: outer})
	if got := s.Sample(); got.Unscored != 1 || got.Kinds != (evidence.HarmCounts{}) {
		t.Errorf("%+v", got)
	}
}

func TestHarmDoesNotAllocate(t *testing.T) {
	s := newScorer(t)
	tr := newTraffic(3)
	var all []evidence.Packet
	for len(all) < 3000 {
		all = append(all, tr.next()...)
	}
	i := 0
	add := func() { s.Add(&all[i]); i = (i + 1) % len(all) }
	for range all {
		add()
	}
	if n := testing.AllocsPerRun(5*len(all), add); n != 0 {
		t.Errorf("%v allocations a packet", n)
	}
	if s.Sample().Kinds == (evidence.HarmCounts{}) {
		t.Error("nothing was scored")
	}
}

func TestHarmMemory(t *testing.T) {
	for _, memory := range []int{MinMemory, DefaultMemory, 100 << 20, 1 << 30} {
		h, err := newHarm(memory, 1)
		if err != nil {
			t.Fatal(err)
		}
		n := len(h.flows)
		if n&(n-1) != 0 || len(h.memory) != harmBytes(memory) || len(h.memory) > memory/harmShare+leastHarm {
			t.Errorf("%d bytes: %d connections in %d bytes", memory, n, len(h.memory))
		}
		if err := h.close(); err != nil {
			t.Error(err)
		}
	}
}

func FuzzHarm(f *testing.F) {
	f.Add(tcp4(flagRST, nil), tcp4(flagSYN, nil), int64(5))
	f.Add(tcp4(flagFIN, nil), tcp4(flagRST|flagACK, []byte{1, 1, 1, 1}), int64(-1))
	s, err := NewScorer()
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, a, b []byte, nanos int64) {
		before := s.Sample()
		s.Add(&evidence.Packet{Nanos: nanos, WireBytes: uint32(len(a)), Header: a})
		s.Add(&evidence.Packet{Nanos: nanos * 3, WireBytes: uint32(len(b)), Header: b})
		after := s.Sample()
		n := after.Unscored - before.Unscored
		for k := range after.Kinds {
			n += after.Kinds[k] - before.Kinds[k]
		}
		if n > 2 {
			t.Errorf("2 packets are %d resets", n)
		}
	})
}
