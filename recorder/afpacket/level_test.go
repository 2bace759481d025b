package afpacket

import (
	"encoding/binary"
	"sync/atomic"
	"testing"

	"tcpcoroner/evidence"
	"tcpcoroner/internal/netlab"
	"tcpcoroner/recorder"
)

// everyControl is how often the pump sends a SYN, FIN or RST.
const everyControl = 50

// pump sends numbered segments with payload.
type pump struct {
	*wire
	to   *wire
	sent atomic.Uint32
	// behind is how many packets the reader may be behind at most, 0 for any number:
	// a machine that is busy with other things must not fill a small ring.
	behind uint64
	reader *collector
}

func newPump(t *testing.T, lab *netlab.Lab) *pump {
	return &pump{wire: newWire(t, lab.Server), to: newWire(t, lab.Client)}
}

func isControl(number uint32) bool { return number%everyControl == 0 }

// run sends as many segments as asked for.
func (p *pump) run(t *testing.T, segments int) {
	t.Helper()
	data := v4(6, 0, 0, tcpAt(0x18, 0, 100))
	reset := v4(6, 0, 0, tcpAt(0x14, 0, 0)) // its payload would be kept
	flags := []byte{2, 0x11, 0x14}
	for range segments {
		n := p.sent.Load()
		packet, flag := data, byte(0x18)
		if isControl(n) {
			flag = flags[n/everyControl%3]
		}
		if flag&byte(evidence.RST) != 0 {
			packet = reset
		}
		p.pace(t)
		binary.BigEndian.PutUint32(packet[24:], n)
		packet[33] = flag
		p.send(t, p.to.mac, ethIP4, packet)
		p.sent.Add(1)
	}
}

func (p *pump) pace(t *testing.T) {
	if n := p.sent.Load(); p.behind != 0 && n%100 == 0 && uint64(n) > p.reader.read().counted+p.behind {
		eventually(t, func() bool { return uint64(n) <= p.reader.read().counted+p.behind })
	}
}

// finish has the source store everything, and waits for one more segment.
func (p *pump) finish(t *testing.T, s *Source, c *collector) {
	t.Helper()
	c.tell(t, s, recorder.Order{})
	p.run(t, 1)
	eventually(t, func() bool { return c.read().last == p.sent.Load()-1 })
}

// account empties the collector and tells how often each number was stored.
func (c *collector) account() map[uint32]int {
	all := map[uint32]int{}
	for {
		select {
		case p := <-c.packets:
			all[binary.BigEndian.Uint32(p.Header[24:])]++
		default:
			return all
		}
	}
}

// checkAll fails for what was stored twice and for control packets that were not
// stored, and returns the number of data packets.
func checkAll(t *testing.T, stored map[uint32]int, sent uint32) (data int) {
	t.Helper()
	for n := range sent {
		switch {
		case stored[n] > 1:
			t.Errorf("packet %d is stored %d times", n, stored[n])
		case isControl(n) && stored[n] == 0:
			t.Errorf("control packet %d is lost", n)
		case !isControl(n):
			data += stored[n]
		}
	}
	return data
}

// Whatever the sink orders while packets come, each is counted once and stored at
// most once, control packets are all stored, and the kernel drops nothing.
func TestLevelsLoseNothing(t *testing.T) {
	const hold, full, control = recorder.LevelHold, recorder.LevelFull, recorder.LevelControl
	for _, c := range []struct {
		name      string
		ringBytes int
		segments  int
		orders    []recorder.Order
		// all tells that data packets are not given up either.
		all bool
	}{
		{"full", 1 << 20, 20000, []recorder.Order{{}}, true},
		{"hold under pressure", 1 << 20, 40000, []recorder.Order{{Level: hold}}, false},
		{"full, hold, full", 1 << 20, 40000, []recorder.Order{{Level: hold}, {Level: full}}, false},
		{"full, hold, plain without pressure", 32 << 20, 20000, []recorder.Order{{Level: hold}, {Level: recorder.LevelPlain}}, true},
		{"hold with flush", 1 << 20, 40000, []recorder.Order{{Level: hold}, {Level: hold, Flush: true}}, false},
		{"hold with flush without pressure", 32 << 20, 20000, []recorder.Order{{Level: hold}, {Level: hold, Flush: true}}, true},
		{"full with flush", 16 << 20, 20000, []recorder.Order{{Flush: true}}, true},
		{"full, control", 16 << 20, 20000, []recorder.Order{{Level: control}, {Level: full}}, false},
		{"all", 32 << 20, 40000, []recorder.Order{{Level: hold}, {Level: control}, {Level: hold, Flush: true}, {Level: full}}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			lab := netlab.New(t)
			s, col, stop := stoppable(t, lab.Client, Config{RingBytes: c.ringBytes})
			p := newPump(t, lab)
			if p.reader = col; c.ringBytes == 1<<20 {
				p.behind = 1500 // two of eight blocks
			}
			done := make(chan struct{})
			go func() { defer close(done); p.run(t, c.segments) }()
			for i, running := 0, true; running; i++ {
				col.tell(t, s, c.orders[i%len(c.orders)])
				select {
				case <-done:
					running = false
				default:
				}
			}
			p.finish(t, s, col)
			stop()
			st, got := s.Stats(), col.read()
			data := checkAll(t, col.account(), p.sent.Load())
			if st.Dropped != 0 || st.Freezes != 0 || st.Malformed != 0 || st.Held != 0 || got.leaked {
				t.Errorf("%+v, %+v", st, got)
			}
			if got.stored+got.skipped != got.counted || got.counted > st.Packets || got.counted+st.Skipped < st.Packets {
				t.Errorf("counts do not add up: %+v, %+v", got, st)
			}
			if want := c.segments + 1 - (c.segments+everyControl)/everyControl; c.all && data != want {
				t.Errorf("%d data packets of %d are stored", data, want)
			}
		})
	}
}

// At control level exactly the control packets come in, and all of them again
// afterwards.
func TestControlLevel(t *testing.T) {
	lab := netlab.New(t)
	s, c := collect(t, lab.Client, Config{RingBytes: 8 << 20})
	p := newPump(t, lab)
	const n = 5000
	for round, step := range []struct {
		level recorder.Level
		want  uint64
	}{{recorder.LevelFull, n}, {recorder.LevelControl, n / everyControl}, {recorder.LevelFull, n},
		{recorder.LevelControl, n / everyControl}, {recorder.LevelPlain, n}} {
		c.tell(t, s, recorder.Order{Level: step.level})
		before := c.read().stored
		p.run(t, n)
		eventually(t, func() bool { return c.read().stored >= before+step.want })
		if got := c.read().stored - before; got != step.want {
			t.Errorf("round %d at level %d: %d packets, want %d", round, step.level, got, step.want)
		}
	}
	if st := s.Stats(); st.FilterSwaps != 4 || st.FilterErrors != 0 || st.Dropped != 0 {
		t.Errorf("%+v", st)
	}
	checkAll(t, c.account(), p.sent.Load())
}

// What is held was counted but not stored, until it is asked for. Holding takes no
// processor time.
func TestHoldUntilFlush(t *testing.T) {
	lab := netlab.New(t)
	s, c := collect(t, lab.Client, Config{RingBytes: 16 << 20})
	p := newPump(t, lab)
	p.finish(t, s, c) // the first block may have begun before the filter
	first := (<-c.packets).Nanos
	c.tell(t, s, recorder.Order{Level: recorder.LevelHold})
	p.run(t, 1000)
	eventually(t, func() bool { return c.read().counted == 1001 })
	if n := c.read(); n.stored != 1 || s.Stats().Held == 0 {
		t.Errorf("%+v, held %d", n, s.Stats().Held)
	}
	quiet(t, s, 3)
	ticks := c.read().ticks
	c.tell(t, s, recorder.Order{Level: recorder.LevelHold, Flush: true})
	n := c.read()
	if n.stored != 1001 || n.counted != 1001 || n.skipped != 0 || s.Stats().Held != 0 || n.ticks < ticks+3 {
		t.Errorf("after the flush: %+v, held %d", n, s.Stats().Held)
	}
	last := first
	for range 1000 {
		if p := <-c.packets; p.Nanos < last {
			t.Fatal("stored out of order")
		} else {
			last = p.Nanos
		}
	}
}
