package afpacket

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tcpcoroner/evidence"
	"tcpcoroner/internal/netlab"
)

func TestElsewhere(t *testing.T) {
	lab := netlab.New(t)
	lab.Client.IP(t, "link", "set", netlab.Device, "promisc", "on")
	_, c := collect(t, lab.Client, Config{RingBytes: 1 << 20})
	newWire(t, lab.Server).send(t, net.HardwareAddr{2, 9, 9, 9, 9, 9}, unix.ETH_P_IP, v4(6, 0, 0, tcpAt(4, 1, 0)))
	if p := c.next(t, func(*evidence.Packet) bool { return true }); p.Direction != evidence.Elsewhere {
		t.Errorf("direction is %v", p.Direction)
	}
}

func TestLoopbackOnce(t *testing.T) {
	ns := netlab.NewNS(t)
	_, c := collect(t, ns, Config{RingBytes: 1 << 20})
	l := ns.Listen(t, "127.0.0.1:0")
	conn := ns.Dial(t, l.Addr().String())
	netlab.Reset(conn)
	var flags []evidence.Flags
	c.next(t, func(p *evidence.Packet) bool {
		f := segment(p).Flags
		flags = append(flags, f)
		if p.Direction != evidence.Loopback || p.LinkType != unix.ARPHRD_LOOPBACK {
			t.Errorf("direction %v on link type %d", p.Direction, p.LinkType)
		}
		return f.Has(evidence.RST)
	})
	want := []evidence.Flags{evidence.SYN, evidence.SYN | evidence.ACK, evidence.ACK, evidence.RST | evidence.ACK}
	if !slices.Equal(flags, want) {
		t.Errorf("segments %v, want %v", flags, want)
	}
}

// An interface that comes later is seen, one that goes is remembered, and its
// going makes no poll spin.
func TestInterfacesComeAndGo(t *testing.T) {
	lab := netlab.New(t)
	s, c := collect(t, lab.Client, Config{RingBytes: 1 << 20})
	netlab.IP(t, "-n", lab.Client.Name, "link", "add", "late0", "type", "veth", "peer", "name", "late0",
		"netns", lab.Server.Name)
	for i, ns := range []*netlab.NS{lab.Client, lab.Server} {
		ns.IP(t, "link", "set", "late0", "up", "mtu", "1400")
		ns.IP(t, "addr", "add", fmt.Sprintf("10.98.0.%d/24", i+1), "dev", "late0")
	}
	l := lab.Server.Listen(t, "10.98.0.2:0")
	netlab.Reset(lab.Client.Dial(t, l.Addr().String()))
	p := c.next(t, func(p *evidence.Packet) bool { return segment(p).Flags.Has(evidence.RST) })
	known := func() bool { // beside others, which may have had packets before the filter
		return slices.ContainsFunc(s.Interfaces(), func(i evidence.Interface) bool {
			return i.Index == p.Interface && i.Name == "late0" && i.MTU == 1400
		})
	}
	eventually(t, known)
	lab.Client.IP(t, "link", "set", netlab.Device, "down")
	lab.Client.IP(t, "link", "del", "late0")
	quiet(t, s, 2)
	if n := s.Stats().PollErrors; n != 0 {
		t.Errorf("%d poll errors", n)
	}
	if !known() {
		t.Errorf("interface %d is not in %+v", p.Interface, s.Interfaces())
	}
}

// talk makes short connections that carry the secret both ways.
func talk(t *testing.T, lab *netlab.Lab, connections int) {
	t.Helper()
	l := lab.Server.Listen(t, net.JoinHostPort(netlab.ServerIP4, "0"))
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { io.Copy(c, c); c.Close() }()
		}
	}()
	message := []byte(strings.Repeat(secret, 500))
	for i := range connections {
		c := lab.Client.Dial(t, l.Addr().String())
		go c.Write(message)
		if _, err := io.ReadFull(c, make([]byte, len(message))); err != nil {
			t.Fatal(err)
		}
		if i%10 == 0 {
			netlab.Reset(c)
			continue
		}
		c.CloseWrite()
		io.Copy(io.Discard, c)
		c.Close()
	}
}

// As many packets as tcpdump's kernel counter says, no drop, and not a byte of
// payload, at full speed.
func TestCountsAndPrivacy(t *testing.T) {
	lab := netlab.New(t)
	s, c, stop := stoppable(t, lab.Client, Config{RingBytes: 8 << 20})
	counted := tcpdump(t, lab.Client)
	talk(t, lab, 400)
	last, quiet := uint64(0), 0
	eventually(t, func() bool { // until nothing comes any more
		if n := c.read().stored; n != last || n == 0 {
			last, quiet = n, 0
		}
		quiet++
		return quiet > 100
	})
	want := uint64(counted())
	stop()
	got, st := c.read(), s.Stats()
	if got.stored != want || st.Packets != want || st.Dropped != 0 || st.Freezes != 0 || got.leaked {
		t.Errorf("tcpdump counts %d; %+v, %+v", want, got, st)
	}
}

// A source that nothing comes to wakes about once a second, and so does one that
// holds blocks.
func TestIdleSourceSleeps(t *testing.T) {
	s, c := collect(t, netlab.NewNS(t), Config{RingBytes: 1 << 20})
	eventually(t, func() bool { return c.read().ticks > 0 })
	before := c.read().ticks
	quiet(t, s, 2)
	if n := c.read().ticks - before; n < 2 {
		t.Errorf("%d ticks in two seconds", n)
	}
}

// quiet lets the source wait so often, and fails if that takes no time. After
// traffic two waits more are short: a lull, and the news of what came in it.
func quiet(t *testing.T, s *Source, polls uint64) {
	t.Helper()
	began, before := time.Now(), s.Stats().Polls
	eventually(t, func() bool { return s.Stats().Polls >= before+polls+2 })
	if took := time.Since(began); took < time.Duration(polls-1)*idle {
		t.Errorf("%d polls took %v: the poll spins", polls, took)
	}
}

func TestWake(t *testing.T) {
	s := open(t, netlab.NewNS(t), Config{RingBytes: 1 << 20})
	s.Wake() // before Run
	c := newCollector()
	stop := start(t, func(ctx context.Context) error { return s.Run(ctx, c) })
	eventually(t, func() bool { return c.read().ticks > 0 })
	began := time.Now()
	for range 20 {
		c.nextTick(t, s)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("20 wakes took %v", took)
	}
	began = time.Now()
	stop()
	if took := time.Since(began); took > idle-retire { // the end of the context ends the wait
		t.Errorf("stopping took %v", took)
	}
	s.Wake() // after Run
}

// tcpdump counts TCP packets until the returned function is called.
func tcpdump(t *testing.T, ns *netlab.NS) func() int {
	t.Helper()
	cmd := ns.Command(context.Background(), "tcpdump", "-i", netlab.Device, "-n", "-s", "96", "-B", "16384",
		"-Z", "root", "-w", filepath.Join(t.TempDir(), "tcpdump.pcap"), "tcp")
	out, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start tcpdump: %v", err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() && !strings.Contains(lines.Text(), "listening on") {
	}
	return func() int {
		_ = cmd.Process.Signal(os.Interrupt)
		count := regexp.MustCompile(`^(\d+) packets received by filter`)
		n := -1
		for lines.Scan() {
			if m := count.FindStringSubmatch(lines.Text()); m != nil {
				n, _ = strconv.Atoi(m[1])
			}
		}
		_ = cmd.Wait()
		return n
	}
}

func TestStopUnderLoad(t *testing.T) {
	lab := netlab.New(t)
	done := make(chan struct{})
	go func() { defer close(done); talk(t, lab, 100) }()
	for range 10 {
		s := open(t, lab.Client, Config{RingBytes: 1 << 20})
		stop := start(t, func(ctx context.Context) error { return s.Run(ctx, newCollector()) })
		eventually(t, func() bool { return s.Stats().Polls > 0 })
		s.Interfaces()
		stop()
		if err := s.Run(t.Context(), nil); !errors.Is(err, ErrClosed) {
			t.Errorf("a second Run says %v", err)
		}
		s.Close()
	}
	<-done
}

func TestCloseWithoutRun(t *testing.T) {
	s := open(t, netlab.NewNS(t), Config{})
	s.Close()
	s.Close()
}

// The capability is taken from one thread, which dies with its goroutine.
func TestOpenWithoutCapability(t *testing.T) {
	netlab.NeedRoot(t)
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var caps [2]unix.CapUserData
		if err := unix.Capset(&head, &caps[0]); err != nil {
			result <- err
			return
		}
		_, err := Open(Config{})
		result <- err
	}()
	const want = "open packet socket: operation not permitted: needs CAP_NET_RAW (run as root or use the systemd unit)"
	if err := <-result; err == nil || err.Error() != want {
		t.Errorf("error is %v", err)
	}
}
