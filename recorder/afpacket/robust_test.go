package afpacket

import (
	"bytes"
	"context"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"tcpcoroner/internal/netlab"
	"tcpcoroner/recorder"
)

// flood sends segments with payload until the returned function is called.
func flood(t *testing.T, lab *netlab.Lab) (stop func()) {
	t.Helper()
	p := newPump(t, lab)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		packet := v4(6, 0, 0, tcpAt(0x18, 1, 1000))
		frame := bytes.Join([][]byte{p.to.mac, p.mac, {8, 0}, packet}, nil)
		for ctx.Err() == nil { // a link that is down is no fault here
			_ = unix.Sendto(p.fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: p.index})
		}
	})
	stop = func() { cancel(); running.Wait() }
	t.Cleanup(stop)
	return stop
}

// watcher looks for payload, and takes no memory for what it gets.
type watcher struct {
	nothing
	seen, ticks, leaked atomic.Uint64
	ticked              func()
}

func (w *watcher) Add(_ *recorder.Meta, header []byte) {
	w.seen.Add(1)
	if bytes.Contains(header, []byte(secret)[:6]) {
		w.leaked.Add(1)
	}
}

func (w *watcher) Tick() recorder.Order {
	w.ticks.Add(1)
	if w.ticked != nil {
		w.ticked()
	}
	return recorder.Order{}
}

func watch(t *testing.T, ns *netlab.NS, cfg Config) (*Source, *watcher, func()) {
	s, w := open(t, ns, cfg), &watcher{}
	return s, w, start(t, func(ctx context.Context) error { return s.Run(ctx, w) })
}

func (w *watcher) seesMore(t *testing.T) {
	t.Helper()
	before := w.seen.Load()
	eventually(t, func() bool { return w.seen.Load() > before })
}

// A link that goes down and up again, with traffic on it, is recorded again, and
// makes no poll spin.
func TestLinkDownUp(t *testing.T) {
	lab := netlab.New(t)
	s, w, _ := watch(t, lab.Client, Config{RingBytes: 1 << 20})
	stop := flood(t, lab)
	for range 3 {
		w.seesMore(t)
		lab.Client.IP(t, "link", "set", netlab.Device, "down")
		lab.Client.IP(t, "link", "set", netlab.Device, "up")
	}
	w.seesMore(t)
	lab.Client.IP(t, "link", "set", netlab.Device, "down")
	stop()
	quiet(t, s, 2)
	if st := s.Stats(); st.PollErrors != 0 || st.Malformed != 0 || w.leaked.Load() != 0 {
		t.Errorf("%+v, %d leaked", st, w.leaked.Load())
	}
}

// An interface that is deleted with traffic on it makes no poll spin, and one of
// the same name that comes later is recorded.
func TestInterfaceDeleted(t *testing.T) {
	lab := netlab.New(t)
	s, w, _ := watch(t, lab.Client, Config{RingBytes: 1 << 20})
	stop := flood(t, lab)
	w.seesMore(t)
	lab.Client.IP(t, "link", "del", netlab.Device)
	stop()
	quiet(t, s, 2)
	netlab.IP(t, "-n", lab.Client.Name, "link", "add", netlab.Device, "type", "veth", "peer", "name", netlab.Device,
		"netns", lab.Server.Name)
	lab.Client.IP(t, "link", "set", netlab.Device, "up")
	lab.Server.IP(t, "link", "set", netlab.Device, "up")
	defer flood(t, lab)()
	w.seesMore(t)
	if st := s.Stats(); st.PollErrors != 0 || w.leaked.Load() != 0 {
		t.Errorf("%+v, %d leaked", st, w.leaked.Load())
	}
}

// A pending error of the socket ends one wait and is taken. Sockets that are bound
// to all interfaces get none, so one is bound to a device here.
func TestSocketErrorIsTaken(t *testing.T) {
	lab := netlab.New(t)
	s := open(t, lab.Client, Config{RingBytes: 1 << 20})
	if err := unix.Bind(s.rings[0].fd, &unix.SockaddrLinklayer{Protocol: 0x0300, Ifindex: newWire(t, lab.Client).index}); err != nil {
		t.Fatal(err)
	}
	start(t, func(ctx context.Context) error { return s.Run(ctx, &watcher{}) })
	lab.Client.IP(t, "link", "set", netlab.Device, "down")
	eventually(t, func() bool { return s.Stats().PollErrors == 1 })
	quiet(t, s, 2)
	if n := s.Stats().PollErrors; n != 1 {
		t.Errorf("%d poll errors", n)
	}
}

// Close and the end of Run come at any moment, with traffic, a Wake and an Attach
// at the same time.
func TestCloseDuringTraffic(t *testing.T) {
	lab := netlab.New(t)
	defer flood(t, lab)()
	for range 20 {
		s, w, stop := watch(t, lab.Client, Config{RingBytes: 1 << 20})
		eventually(t, func() bool { return w.seen.Load() > 0 })
		var others sync.WaitGroup
		for range 4 {
			others.Go(func() { s.Wake(); s.Stats(); s.Interfaces(); s.Namespaces() })
			others.Go(func() { _ = s.Close() })
		}
		others.Go(func() { _ = s.Attach(pathOf(lab.Server)) })
		stop()
		others.Wait()
		if st := s.Stats(); st.Rings != 0 || st.Malformed != 0 || w.leaked.Load() != 0 {
			t.Fatalf("%+v, %d leaked", st, w.leaked.Load())
		}
	}
}

// Ten thousand sources are opened, read and closed while packets with payload come
// in: no descriptor is left, and not a byte of what came past the filter between
// the opening of the socket and its filter is delivered.
func TestOpenCloseCycles(t *testing.T) {
	cycles, workers := 10_000, 128
	if raced {
		cycles = 500
	}
	lab := netlab.New(t)
	defer flood(t, lab)()
	before := descriptors(t)
	var left, seen, skipped atomic.Int64
	left.Store(int64(cycles))
	var running sync.WaitGroup
	for range workers {
		running.Go(func() {
			err := lab.Client.Do(func() error {
				for left.Add(-1) >= 0 {
					s, err := Open(Config{RingBytes: 512 << 10})
					if err != nil {
						return err
					}
					ctx, cancel := context.WithCancel(context.Background())
					w := &watcher{}
					w.ticked = func() {
						if w.ticks.Load() > 1 || w.seen.Load() > 0 {
							cancel()
						}
					}
					err = s.Run(ctx, w)
					cancel()
					if st := s.Stats(); err != nil || w.leaked.Load() != 0 || st.Malformed != 0 {
						t.Errorf("%v, %d leaked, %+v", err, w.leaked.Load(), st)
					}
					seen.Add(int64(w.seen.Load()))
					skipped.Add(int64(s.Stats().Skipped))
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	running.Wait()
	if after := descriptors(t); after > before+workers {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
	t.Logf("%d packets, %d from before the filter", seen.Load(), skipped.Load())
}

func descriptors(t *testing.T) int {
	t.Helper()
	var st unix.Stat_t
	n := 0
	for fd := range 4096 {
		if unix.Fstat(fd, &st) == nil {
			n++
		}
	}
	return n
}

// The kernel's counters are cleared when they are read, and are added up in 64
// bits: nobody else reads them, and none of theirs is lost.
func TestCountersAddUp(t *testing.T) {
	s := &Source{}
	s.packets.Store(1<<32 - 10)
	lab := netlab.New(t)
	own := open(t, lab.Client, Config{RingBytes: 1 << 20})
	defer own.Close()
	newPump(t, lab).run(t, 30)
	s.countKernel(own.rings...)
	s.countKernel(own.rings...)
	if n := s.Stats().Packets; n < 1<<32+20 || n > 1<<32+200 {
		t.Errorf("counted %d", n)
	}
}
