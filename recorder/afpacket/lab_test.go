package afpacket

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tcpcoroner/evidence"
	"tcpcoroner/internal/netlab"
	"tcpcoroner/recorder"
)

const patience = 10 * time.Second

// collector passes on copies of what is stored, and counts all else.
type collector struct {
	packets chan evidence.Packet

	mu      sync.Mutex
	order   recorder.Order // flush is given once
	ticks   int
	counted uint64
	stored  uint64
	skipped uint64
	leaked  bool
	last    uint32 // sequence number, of a plain segment
}

func newCollector() *collector { return &collector{packets: make(chan evidence.Packet, 1<<18)} }

func (c *collector) Add(m *recorder.Meta, header []byte) {
	c.Count(m, header)
	c.Store(m, header)
}

func (c *collector) Count(*recorder.Meta, []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counted++
}

func (c *collector) Store(m *recorder.Meta, header []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stored++
	if len(header) > 27 {
		c.last = binary.BigEndian.Uint32(header[24:])
	}
	c.leaked = c.leaked || bytes.Contains(header, []byte(secret)[:6])
	c.packets <- evidence.Packet{
		Nanos: m.Nanos, Interface: m.Path.Interface, Namespace: m.Path.Namespace, WireBytes: m.WireBytes,
		Direction: m.Path.Direction, LinkType: m.Path.LinkType, SrcMAC: m.Path.SrcMAC, VLAN: m.Path.VLAN,
		Header: bytes.Clone(header),
	}
}

func (c *collector) Skip(packets uint64, first, last int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.skipped += packets
	if first > last || packets == 0 {
		panic("skipped nothing, or backwards")
	}
}

func (c *collector) Tick() recorder.Order {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ticks++
	o := c.order
	c.order.Flush = false
	return o
}

// tell gives the next order and waits until the source has it.
func (c *collector) tell(t *testing.T, s *Source, o recorder.Order) {
	t.Helper()
	c.mu.Lock()
	c.order = o
	c.mu.Unlock()
	c.nextTick(t, s)
	c.nextTick(t, s) // it has obeyed the one before
}

func (c *collector) nextTick(t *testing.T, s *Source) {
	t.Helper()
	before := c.read().ticks
	s.Wake()
	eventually(t, func() bool { return c.read().ticks > before })
}

// numbers are a collector's counters.
type numbers struct {
	ticks                    int
	counted, stored, skipped uint64
	leaked                   bool
	last                     uint32
}

func (c *collector) read() numbers {
	c.mu.Lock()
	defer c.mu.Unlock()
	return numbers{c.ticks, c.counted, c.stored, c.skipped, c.leaked, c.last}
}

// next is the next packet that the test waits for; others are passed over.
func (c *collector) next(t *testing.T, want func(*evidence.Packet) bool) evidence.Packet {
	t.Helper()
	late := time.After(patience)
	for {
		select {
		case p := <-c.packets:
			if want(&p) {
				return p
			}
		case <-late:
			t.Fatal("the packet did not come")
		}
	}
}

func open(t *testing.T, ns *netlab.NS, cfg Config) *Source {
	t.Helper()
	var s *Source
	ns.Run(t, func() {
		var err error
		if s, err = Open(cfg); err != nil {
			t.Fatal(err)
		}
	})
	return s
}

// start runs f until the test ends or stop is called.
func start(t *testing.T, f func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := f(ctx); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	stop = func() { cancel(); running.Wait() }
	t.Cleanup(stop)
	return stop
}

func collect(t *testing.T, ns *netlab.NS, cfg Config) (*Source, *collector) {
	s, c, _ := stoppable(t, ns, cfg)
	return s, c
}

func stoppable(t *testing.T, ns *netlab.NS, cfg Config) (*Source, *collector, func()) {
	s, c := open(t, ns, cfg), newCollector()
	return s, c, start(t, func(ctx context.Context) error { return s.Run(ctx, c) })
}

func eventually(t *testing.T, done func() bool) {
	t.Helper()
	tick, late := time.NewTicker(retire/20), time.After(patience)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatal("did not happen in time")
		}
	}
}

func segment(p *evidence.Packet) evidence.Segment {
	var s evidence.Segment
	_ = evidence.ParseSegment(p, &s) // a zero segment matches nothing
	return s
}

// wire sends raw Ethernet frames out of a namespace's veth device.
type wire struct {
	fd, index int
	mac       net.HardwareAddr
}

func newWire(t *testing.T, ns *netlab.NS) *wire {
	t.Helper()
	w := &wire{}
	ns.Run(t, func() {
		dev, err := net.InterfaceByName(netlab.Device)
		if err != nil {
			t.Fatal(err)
		}
		w.index, w.mac = dev.Index, dev.HardwareAddr
		if w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { unix.Close(w.fd) })
	return w
}

func (w *wire) send(t *testing.T, to net.HardwareAddr, protocol uint16, b []byte) {
	t.Helper()
	frame := slices.Concat(to, w.mac, binary.BigEndian.AppendUint16(nil, protocol), b)
	if err := unix.Sendto(w.fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: w.index}); err != nil {
		t.Fatal(err)
	}
}
