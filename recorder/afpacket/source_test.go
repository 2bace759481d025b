package afpacket

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
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
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tcpcoroner/evidence"
	"tcpcoroner/internal/netlab"
	"tcpcoroner/recorder"
)

const patience = 10 * time.Second

// collector passes on copies of what it gets.
type collector struct{ packets chan evidence.Packet }

func (c *collector) Add(m *recorder.Meta, header []byte) {
	c.packets <- evidence.Packet{
		Nanos: m.Nanos, Interface: m.Interface, WireBytes: m.WireBytes, Direction: m.Direction,
		LinkType: m.LinkType, SrcMAC: m.SrcMAC, VLAN: m.VLAN, Header: bytes.Clone(header),
	}
}

func (c *collector) Tick() {}

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

func open(t *testing.T, ns *netlab.NS) *Source {
	t.Helper()
	var s *Source
	ns.Run(t, func() {
		var err error
		if s, err = Open(Config{RingBytes: 4 << 20}); err != nil {
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

func collect(t *testing.T, ns *netlab.NS) (*Source, *collector) {
	s, c := open(t, ns), &collector{make(chan evidence.Packet, 1<<16)}
	start(t, func(ctx context.Context) error { return s.Run(ctx, c) })
	return s, c
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

const secret = "SECRET-PAYLOAD-"

// tcpAt is a TCP header with timestamps; the number in seq names the test case,
// and the wrong checksum keeps the receiving kernel from answering.
func tcpAt(flags byte, number int, payload int) []byte {
	b := make([]byte, 32)
	binary.BigEndian.PutUint16(b, 40000)
	binary.BigEndian.PutUint16(b[2:], 81)
	binary.BigEndian.PutUint32(b[4:], uint32(number))
	b[12], b[13], b[16], b[17] = 8<<4, flags, 0xba, 0xad
	copy(b[20:], []byte{1, 1, 8, 10})
	return append(b, strings.Repeat(secret, 200)[:payload]...)
}

func v4(proto byte, fragment uint16, options int, rest []byte) []byte {
	b := make([]byte, 20+options)
	b[0], b[8], b[9] = 0x40|byte(len(b)/4), 64, proto
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)+len(rest)))
	binary.BigEndian.PutUint16(b[6:], fragment)
	copy(b[12:], net.ParseIP(netlab.ServerIP4).To4())
	copy(b[16:], net.ParseIP(netlab.ClientIP4).To4())
	for i := range options {
		b[20+i] = 1
	}
	return append(b, rest...)
}

func v6(next byte, rest ...[]byte) []byte {
	b := make([]byte, 40)
	body := bytes.Join(rest, nil)
	b[0], b[6], b[7] = 0x60, next, 64
	binary.BigEndian.PutUint16(b[4:], uint16(len(body)))
	copy(b[8:], net.ParseIP(netlab.ServerIP6))
	copy(b[24:], net.ParseIP(netlab.ClientIP6))
	return append(b, body...)
}

func icmp(kind byte, quoted []byte) []byte {
	return append([]byte{kind, 4, 0, 0, 0, 0, 0, 0}, quoted...)
}

// TestKinds sends one frame of each kind through the real kernel and filter.
func TestKinds(t *testing.T) {
	const ip4, ip6, q, ad = unix.ETH_P_IP, unix.ETH_P_IPV6, unix.ETH_P_8021Q, unix.ETH_P_8021AD
	hop := []byte{6, 0, 1, 4, 0, 0, 0, 0}
	lab := netlab.New(t)
	_, received := collect(t, lab.Client)
	_, sent := collect(t, lab.Server)
	to, from := newWire(t, lab.Client), newWire(t, lab.Server)
	end := v4(6, 0, 0, tcpAt(0x10, 0xeeee, 0))
	ended := func(p *evidence.Packet) bool { return bytes.Equal(p.Header, end) }
	for name, c := range map[string]struct {
		protocol uint16
		packet   func(n int) []byte
		// kernel is what the filter lets through and keep what Cut keeps; 0: nothing.
		kernel, keep int
		vlan         [2]uint16
	}{
		"v4":           {ip4, func(n int) []byte { return v4(6, 0, 0, tcpAt(0x18, n, 500)) }, 52, 52, [2]uint16{}},
		"v4 options":   {ip4, func(n int) []byte { return v4(6, 0, 8, tcpAt(0x18, n, 500)) }, 60, 60, [2]uint16{}},
		"v4 reset":     {ip4, func(n int) []byte { return v4(6, 0, 0, tcpAt(0x14, n, 100)) }, 116, 116, [2]uint16{}},
		"v4 udp":       {ip4, func(n int) []byte { return v4(17, 0, 0, tcpAt(0x18, n, 500)) }, 0, 0, [2]uint16{}},
		"v4 fragment":  {ip4, func(n int) []byte { return v4(6, 9, 0, tcpAt(0x18, n, 500)) }, 20, 20, [2]uint16{}},
		"v6":           {ip6, func(n int) []byte { return v6(6, tcpAt(0x18, n, 500)) }, 72, 72, [2]uint16{}},
		"v6 reset":     {ip6, func(n int) []byte { return v6(6, tcpAt(4, n, 100)) }, 136, 136, [2]uint16{}},
		"v6 extension": {ip6, func(n int) []byte { return v6(0, hop, tcpAt(0x18, n, 500)) }, 80 + 64, 80, [2]uint16{}},
		"v6 extension, reset": {ip6, func(n int) []byte { return v6(0, hop, tcpAt(4, n, 100)) },
			80 + 64, 80 + 64, [2]uint16{}},
		"fragmentation needed": {ip4, func(n int) []byte { return v4(1, 0, 0, icmp(3, v4(6, 0, 0, tcpAt(0x18, n, 500)))) },
			188, 28 + 52, [2]uint16{}},
		"time exceeded": {ip4, func(n int) []byte { return v4(1, 0, 0, icmp(11, v4(6, 0, 0, tcpAt(0x18, n, 500)))) },
			188, 28 + 52, [2]uint16{}},
		"echo": {ip4, func(n int) []byte { return v4(1, 0, 0, icmp(8, v4(6, 0, 0, tcpAt(0x18, n, 500)))) }, 0, 0, [2]uint16{}},
		"too big": {ip6, func(n int) []byte { return v6(58, icmp(2, v6(6, tcpAt(0x18, n, 500)))) },
			212, 48 + 72, [2]uint16{}},
		"vlan": {q, func(n int) []byte { return tag(0x6007, ip4, v4(6, 0, 0, tcpAt(0x18, n, 500))) },
			52, 52, [2]uint16{0x6007, 0}},
		"vlan v6 reset": {q, func(n int) []byte { return tag(7, ip6, v6(6, tcpAt(4, n, 100))) }, 136, 136, [2]uint16{7, 0}},
		"qinq": {ad, func(n int) []byte { return tag(9, q, tag(0x4507, ip4, v4(6, 0, 0, tcpAt(0x18, n, 500)))) },
			52, 52, [2]uint16{9, 0x4507}},
		"qinq v6": {ad, func(n int) []byte { return tag(9, q, tag(7, ip6, v6(6, tcpAt(0x18, n, 500)))) },
			72, 72, [2]uint16{9, 7}},
	} {
		t.Run(name, func(t *testing.T) {
			packet := c.packet(0xaaaa)
			from.send(t, to.mac, c.protocol, packet)
			from.send(t, to.mac, unix.ETH_P_IP, end)
			for direction, side := range map[evidence.Direction]*collector{
				evidence.Received: received, evidence.Sent: sent} {
				p := side.next(t, func(p *evidence.Packet) bool { return p.Direction == direction })
				if ended(&p) != (c.kernel == 0) {
					t.Fatalf("%v: got %d bytes, want %d", direction, len(p.Header), c.kernel)
				}
				if c.kernel == 0 {
					continue
				}
				if keep, _ := recorder.Cut(p.Header); len(p.Header) != c.kernel || keep != c.keep {
					t.Errorf("%v: kernel gives %d, recorder keeps %d; want %d and %d",
						direction, len(p.Header), keep, c.kernel, c.keep)
				}
				tags := 4 * (len(slices.DeleteFunc(slices.Clone(c.vlan[:]), func(v uint16) bool { return v == 0 })))
				ip := packet[tags:]
				if !bytes.HasPrefix(ip, p.Header) || int(p.WireBytes) != len(ip) {
					t.Errorf("%v: %d bytes on the wire, want %d; header %x", direction, p.WireBytes, len(ip), p.Header)
				}
				if p.VLAN != c.vlan && direction == evidence.Received {
					t.Errorf("VLAN tags %x, want %x", p.VLAN, c.vlan)
				}
				if !bytes.Equal(p.SrcMAC[:], from.mac) || p.LinkType != unix.ARPHRD_ETHER {
					t.Errorf("%v: sender %x on link type %d", direction, p.SrcMAC, p.LinkType)
				}
				side.next(t, ended)
			}
		})
	}
}

func TestElsewhere(t *testing.T) {
	lab := netlab.New(t)
	lab.Client.IP(t, "link", "set", netlab.Device, "promisc", "on")
	_, c := collect(t, lab.Client)
	newWire(t, lab.Server).send(t, net.HardwareAddr{2, 9, 9, 9, 9, 9}, unix.ETH_P_IP, v4(6, 0, 0, tcpAt(4, 1, 0)))
	if p := c.next(t, func(*evidence.Packet) bool { return true }); p.Direction != evidence.Elsewhere {
		t.Errorf("direction is %v", p.Direction)
	}
}

func segment(p *evidence.Packet) evidence.Segment {
	var s evidence.Segment
	_ = evidence.ParseSegment(p, &s) // a zero segment matches nothing
	return s
}

func TestLoopbackOnce(t *testing.T) {
	ns := netlab.NewNS(t)
	_, c := collect(t, ns)
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
	s, c := collect(t, lab.Client)
	netlab.IP(t, "-n", lab.Client.Name, "link", "add", "late0", "type", "veth", "peer", "name", "late0",
		"netns", lab.Server.Name)
	for i, ns := range []*netlab.NS{lab.Client, lab.Server} {
		ns.IP(t, "link", "set", "late0", "up", "mtu", "1400")
		ns.IP(t, "addr", "add", fmt.Sprintf("10.98.0.%d/24", i+1), "dev", "late0")
	}
	l := lab.Server.Listen(t, "10.98.0.2:0")
	netlab.Reset(lab.Client.Dial(t, l.Addr().String()))
	p := c.next(t, func(p *evidence.Packet) bool { return segment(p).Flags.Has(evidence.RST) })
	check := func() {
		t.Helper()
		w := evidence.Window{Interfaces: s.Interfaces()}
		if w.InterfaceName(p.Interface) != "late0" || w.Interfaces[0].MTU != 1400 {
			t.Errorf("interface %d is not in %+v", p.Interface, w.Interfaces)
		}
	}
	eventually(t, func() bool { return len(s.Interfaces()) > 0 })
	check()
	lab.Client.IP(t, "link", "set", netlab.Device, "down")
	lab.Client.IP(t, "link", "del", "late0")
	began, before := time.Now(), s.Stats().Polls
	eventually(t, func() bool { return s.Stats().Polls >= before+5 })
	if took := time.Since(began); took < 3*retire {
		t.Errorf("5 polls took %v: the poll spins", took)
	}
	if n := s.Stats().PollErrors; n != 0 {
		t.Errorf("%d poll errors", n)
	}
	check()
}

func eventually(t *testing.T, done func() bool) {
	t.Helper()
	tick, late := time.NewTicker(retire/10), time.After(patience)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatal("did not happen in time")
		}
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

// Through recorder and ring: as many packets as tcpdump's kernel counter says, no
// drop, and not a byte of payload.
func TestCountsAndPrivacy(t *testing.T) {
	lab := netlab.New(t)
	s, r := open(t, lab.Client), recorder.New(recorder.Config{})
	stop := start(t, func(ctx context.Context) error { return r.Run(ctx, s) })
	counted := tcpdump(t, lab.Client)
	from := time.Now()
	talk(t, lab, 400)
	last := uint64(0)
	quiet := 0
	eventually(t, func() bool { // until nothing comes any more
		if n := r.Stats().Source.Packets; n != last || n == 0 {
			last, quiet = n, 0
		}
		quiet++
		return quiet > 50
	})
	want := counted()
	stop()
	f, err := r.Freeze(t.Context(), from, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Release()
	w, err := f.Window()
	if err != nil {
		t.Fatal(err)
	}
	st := r.Stats()
	if w.PacketCount != want || st.Kept != uint64(want) || st.Source.Packets != uint64(want) || st.Source.Dropped != 0 || w.ResetCount < 40 {
		t.Errorf("tcpdump counts %d; window %d with %d resets, %+v", want, w.PacketCount, w.ResetCount, st)
	}
	if bytes.Contains(bytes.Join(f.Chunks, nil), []byte(secret[:6])) {
		t.Error("payload is in a chunk")
	}
	t.Logf("%d packets, %d resets", want, w.ResetCount)
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
		s := open(t, lab.Client)
		stop := start(t, func(ctx context.Context) error { return s.Run(ctx, &collector{make(chan evidence.Packet, 1<<18)}) })
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
	s := open(t, netlab.NewNS(t))
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
