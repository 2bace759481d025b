package snapshot

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tcpcoroner/evidence"
	"tcpcoroner/internal/netlab"
)

// look takes a snapshot in the namespace.
func look(t testing.TB, ns *netlab.NS, cfg Config) (s *evidence.Snapshot) {
	t.Helper()
	ns.Run(t, func() { s = New(cfg).Take(t.Context()) })
	return s
}

// timed is look, with the processor time that it took: the wall clock of a shared
// machine says more about its neighbours.
func timed(t testing.TB, ns *netlab.NS, cfg Config) (s *evidence.Snapshot, took time.Duration) {
	t.Helper()
	ns.Run(t, func() {
		start := threadCPU(t)
		s = New(cfg).Take(t.Context())
		took = threadCPU(t) - start
	})
	return s, took
}

func threadCPU(t testing.TB) time.Duration {
	t.Helper()
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &r); err != nil {
		t.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// await polls until ok: the kernel finishes a handshake in its own time.
func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	end := time.After(5 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

func find(all []evidence.Socket, match func(*evidence.Socket) bool) *evidence.Socket {
	for i := range all {
		if match(&all[i]) {
			return &all[i]
		}
	}
	return nil
}

// listenBacklog listens on 127.0.0.1 with a backlog, which net.Listen cannot.
func listenBacklog(t *testing.T, ns *netlab.NS, backlog int) string {
	t.Helper()
	var addr netip.AddrPort
	ns.Run(t, func() {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, backlog)); err != nil {
			t.Fatal(err)
		}
		name, err := unix.Getsockname(fd)
		if err != nil {
			t.Fatal(err)
		}
		in := name.(*unix.SockaddrInet4)
		addr = netip.AddrPortFrom(netip.AddrFrom4(in.Addr), uint16(in.Port))
	})
	return addr.String()
}

func TestFullAcceptQueue(t *testing.T) {
	ns := netlab.NewNS(t)
	addr := listenBacklog(t, ns, 1)
	ns.Dial(t, addr)
	ns.Dial(t, addr)
	isIt := func(s *evidence.Socket) bool { return s.Listening() && s.Local.String() == addr }
	await(t, "two connections in the accept queue", func() bool {
		var all []evidence.Socket
		ns.Run(t, func() {
			var err error
			if all, err = New(Config{}).Listeners(); err != nil {
				t.Fatal(err)
			}
		})
		if len(all) != 1 {
			t.Fatalf("one listener, got %+v", all)
		}
		l := find(all, isIt)
		return l != nil && l.RecvQueue == 2 && l.SendQueue == 1 && l.Owner == nil
	})
	l := find(look(t, ns, Config{}).Sockets, isIt)
	if l == nil || l.Owner == nil || l.Owner.PID != os.Getpid() || l.RecvQueue <= l.SendQueue {
		t.Fatalf("snapshot says %+v", l)
	}
	exe, _ := os.Executable()
	age := time.Since(l.Owner.Started)
	if l.Owner.Exe != exe || l.Owner.Comm == "" || l.Owner.UID != 0 || age < -2*time.Second || age > time.Hour || l.Remote.IsValid() {
		t.Errorf("owner %+v", l.Owner)
	}
}

func TestEstablished(t *testing.T) {
	lab := netlab.New(t)
	for _, ip := range []string{netlab.ServerIP4, netlab.ServerIP6} {
		t.Run(ip, func(t *testing.T) {
			l := lab.Server.Listen(t, net.JoinHostPort(ip, "0"))
			c := lab.Client.Dial(t, l.Addr().String())
			s, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if _, err := c.Write(make([]byte, 1000)); err != nil {
				t.Fatal(err)
			}
			end := func(s *evidence.Socket) bool { return s.Remote.String() == c.LocalAddr().String() }
			await(t, "1000 unread bytes", func() bool {
				got := find(look(t, lab.Server, Config{}).Sockets, end)
				return got != nil && got.RecvQueue == 1000
			})
			got := find(look(t, lab.Server, Config{}).Sockets, end)
			if got.State != "established" || got.Local.String() != l.Addr().String() || got.Inode == 0 || got.Owner.PID != os.Getpid() {
				t.Errorf("socket %+v", got)
			}
			if i := got.Info; i == nil || i.BytesRecv != 1000 || i.PMTU != 1500 || i.RTT == 0 || i.RTO < 100*time.Millisecond || i.SndMSS < 1000 {
				t.Errorf("tcp_info %+v", got.Info)
			}
		})
	}
}

// TestMappedAndMultipath listens as Go does by default: on both families, by
// Multipath TCP. The accepted plain connection is IPv4 on the wire.
func TestMappedAndMultipath(t *testing.T) {
	ns := netlab.NewNS(t)
	var l net.Listener
	ns.Run(t, func() {
		var err error
		var c net.ListenConfig
		c.SetMultipathTCP(true)
		if l, err = c.Listen(t.Context(), "tcp", ":0"); err != nil {
			t.Fatal(err)
		}
	})
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	c := ns.Dial(t, "127.0.0.1:"+port)
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	snap := look(t, ns, Config{})
	listener := find(snap.Sockets, (*evidence.Socket).Listening)
	if listener == nil || listener.Local.String() != "[::]:"+port || listener.Owner == nil || listener.Owner.PID != os.Getpid() {
		t.Errorf("listener %+v", listener)
	}
	got := find(snap.Sockets, func(s *evidence.Socket) bool { return s.Remote.String() == c.LocalAddr().String() })
	if got == nil || got.Local.String() != "127.0.0.1:"+port || got.Owner == nil {
		t.Errorf("accepted %+v", got)
	}
}

func TestCountersOfNamespace(t *testing.T) {
	refused, other := netlab.NewNS(t), netlab.NewNS(t)
	taker := New(Config{}) // one for both: it holds files open
	read := func(ns *netlab.NS) (c evidence.Counters) {
		ns.Run(t, func() {
			var err error
			if c, err = taker.Counters(); err != nil {
				t.Fatal(err)
			}
		})
		return c
	}
	before, otherBefore := read(refused), read(other)
	if _, err := refused.TryDial("127.0.0.1:9"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Fatalf("dial says %v", err)
	}
	after, otherAfter := read(refused), read(other)
	for name, want := range map[string]uint64{"Tcp.OutRsts": 1, "Tcp.AttemptFails": 1, "Tcp.ActiveOpens": 1} {
		if got, not := after.Delta(before, name), otherAfter.Delta(otherBefore, name); got != want || not != 0 {
			t.Errorf("%s grew by %d, want %d; in the other namespace by %d", name, got, want, not)
		}
	}
	for _, name := range []string{"TcpExt.ListenOverflows", "TcpExt.TCPAbortOnClose", "Sockstat.TCP.inuse", "Sockstat.TCP6.inuse", "Softnet.dropped"} {
		if _, ok := after.Values[name]; !ok {
			t.Errorf("%s is absent", name)
		}
	}
}

func TestInterfaces(t *testing.T) {
	lab := netlab.New(t)
	l := lab.Server.Listen(t, netlab.ServerIP4+":0")
	lab.Client.Dial(t, l.Addr().String())
	got := map[string]evidence.InterfaceStats{}
	for _, s := range look(t, lab.Client, Config{}).Interfaces {
		got[s.Name] = s
	}
	lo, veth := got["lo"], got[netlab.Device]
	if len(got) != 2 || lo.LinkType != unix.ARPHRD_LOOPBACK || lo.Index != 1 || !lo.Up {
		t.Errorf("interfaces %+v", got)
	}
	if veth.LinkType != unix.ARPHRD_ETHER || veth.MTU != 1500 || !veth.Up || veth.RxPackets < 1 || veth.TxPackets < 2 {
		t.Errorf("veth %+v", veth)
	}
}

// heldBy starts a process that inherits a listener, and returns its pid.
func heldBy(t *testing.T, l net.Listener) int {
	t.Helper()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command("sleep", "600")
	cmd.ExtraFiles = []*os.File{f}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	await(t, "the child runs sleep", func() bool {
		b, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(cmd.Process.Pid), "comm"))
		return string(b) == "sleep\n"
	})
	return cmd.Process.Pid
}

func TestSharedListener(t *testing.T) {
	ns := netlab.NewNS(t)
	l := ns.Listen(t, "127.0.0.1:0")
	child := heldBy(t, l)
	if s := look(t, ns, Config{}).Sockets; len(s) != 1 || s[0].Owner.PID != os.Getpid() {
		t.Errorf("the opener owns it, got %+v", s)
	}
	l.Close()
	s := look(t, ns, Config{}).Sockets
	if len(s) != 1 || s[0].Owner.PID != child || s[0].Owner.Comm != "sleep" || s[0].Owner.Exe == "" {
		t.Errorf("the heir owns it, got %+v", s)
	}
}

// withoutCaps runs f in the namespace on a thread without capabilities. The
// thread is not given back.
func withoutCaps(t *testing.T, ns *netlab.NS, drop uint64, f func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- ns.Do(func() error {
			head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			var data [2]unix.CapUserData
			if err := unix.Capget(&head, &data[0]); err != nil {
				return err
			}
			data[0].Effective &^= uint32(drop)
			if err := unix.Capset(&head, &data[0]); err != nil {
				return err
			}
			f()
			return nil
		})
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func missing(s *evidence.Snapshot, what string) *evidence.Missing {
	for i, m := range s.Missing {
		if strings.Contains(m.What, what) {
			return &s.Missing[i]
		}
	}
	return nil
}

func TestWithoutCapabilities(t *testing.T) {
	ns := netlab.NewNS(t)
	l := ns.Listen(t, "127.0.0.1:0")
	heldBy(t, l)
	l.Close()
	createEntries(t, ns, 3)
	var s *evidence.Snapshot
	withoutCaps(t, ns, 1<<unix.CAP_SYS_PTRACE|1<<unix.CAP_DAC_READ_SEARCH|1<<unix.CAP_NET_ADMIN, func() {
		s = New(Config{}).Take(t.Context())
	})
	if len(s.Sockets) != 1 || s.Sockets[0].Owner != nil {
		t.Errorf("sockets %+v", s.Sockets)
	}
	m := missing(s, "owners of 1 sockets")
	if m == nil || !strings.HasPrefix(m.Why, "permission denied on /proc/PID/fd of ") || m.Fix != fixOwners {
		t.Errorf("missing %+v", s.Missing)
	}
	if m := missing(s, "top talkers"); m == nil || !strings.Contains(m.Why, "not permitted") || !strings.Contains(m.Fix, "CAP_NET_ADMIN") {
		t.Errorf("missing %+v", s.Missing)
	}
	// Size and counters need no privilege.
	if s.Conntrack == nil || s.Conntrack.Count != 3 || missing(s, "drop counters") != nil || len(s.Missing) != 2 {
		t.Errorf("conntrack %+v, missing %+v", s.Conntrack, s.Missing)
	}
}

func TestNothingMissing(t *testing.T) {
	ns := netlab.NewNS(t)
	ns.Listen(t, "127.0.0.1:0")
	if s := look(t, ns, Config{}); len(s.Missing) != 0 || s.Took <= 0 || s.Taken.IsZero() {
		t.Errorf("snapshot %+v", s)
	}
}

// TestEmptyProc looks at a host whose /proc has nothing.
func TestEmptyProc(t *testing.T) {
	ns := netlab.NewNS(t)
	ns.Listen(t, "127.0.0.1:0")
	s := look(t, ns, Config{ProcRoot: t.TempDir()})
	if len(s.Sockets) != 1 || len(s.Interfaces) != 1 || s.Conntrack != nil || len(s.Missing) != 3 {
		t.Errorf("snapshot %+v", s)
	}
	if m := missing(s, "connection tracking"); m == nil || m.Why != ErrNoConntrack.Error() || m.Fix != fixModule {
		t.Errorf("missing %+v", s.Missing)
	}
	if missing(s, "kernel counters") == nil || missing(s, "owners of 1 sockets") == nil {
		t.Errorf("missing %+v", s.Missing)
	}
	if _, err := New(Config{ProcRoot: t.TempDir()}).Counters(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("counters say %v", err)
	}
}

// TestDeadline lets the time run out after the counters.
func TestDeadline(t *testing.T) {
	ns := netlab.NewNS(t)
	ns.Listen(t, "127.0.0.1:0")
	ctx, cancel := context.WithCancel(t.Context())
	calls := 0
	cfg := Config{Now: func() time.Time {
		if calls++; calls == 2 {
			cancel()
		}
		return time.Now()
	}}
	var s *evidence.Snapshot
	ns.Run(t, func() { s = New(cfg).Take(ctx) })
	if len(s.Counters.Values) == 0 || s.Sockets != nil || s.Interfaces != nil {
		t.Errorf("snapshot %+v", s)
	}
	if len(s.Missing) != 6 || !strings.Contains(missing(s, "TCP sockets").Why, "time for the snapshot was up: context canceled") {
		t.Errorf("missing %+v", s.Missing)
	}
}

func TestMaxSockets(t *testing.T) {
	ns := netlab.NewNS(t)
	for range 3 {
		ns.Listen(t, "127.0.0.1:0")
	}
	s := look(t, ns, Config{MaxSockets: 2})
	if m := missing(s, "TCP sockets other than the first 2"); len(s.Sockets) != 2 || m == nil {
		t.Errorf("%d sockets, missing %+v", len(s.Sockets), s.Missing)
	}
}

// manyPairs opens n connections, and so 2n sockets, on loopback.
func manyPairs(t testing.TB, ns *netlab.NS, n int) {
	t.Helper()
	l := ns.Listen(t, "127.0.0.1:0")
	ns.Run(t, func() {
		for range n {
			c, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			s, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { netlab.Reset(c); s.Close() })
		}
	})
}

func TestFiveThousandSockets(t *testing.T) {
	ns := netlab.NewNS(t)
	manyPairs(t, ns, 2500)
	s, took := timed(t, ns, Config{})
	t.Logf("%d sockets in %v of processor time, %v on the clock", len(s.Sockets), took, s.Took)
	if len(s.Sockets) != 5001 || took > time.Second || len(s.Missing) != 0 {
		t.Errorf("%d sockets in %v, missing %+v", len(s.Sockets), took, s.Missing)
	}
	for i := range s.Sockets {
		if s.Sockets[i].Owner == nil {
			t.Fatalf("no owner: %+v", s.Sockets[i])
		}
	}
}

func BenchmarkTake(b *testing.B) {
	ns := netlab.NewNS(b)
	manyPairs(b, ns, 8000)
	b.ReportAllocs()
	for b.Loop() {
		if s := look(b, ns, Config{}); len(s.Sockets) != 16001 {
			b.Fatal(len(s.Sockets))
		}
	}
}

// BenchmarkPoll is what the daemon asks once a second, on a host with a dozen
// listeners.
func BenchmarkPoll(b *testing.B) {
	ns := netlab.NewNS(b)
	for range 12 {
		ns.Listen(b, "127.0.0.1:0")
	}
	t := New(Config{})
	for _, part := range []struct {
		name string
		look func() error
	}{
		{"Counters", func() error { return second(t.Counters()) }},
		{"Conntrack", func() error { return second(t.Conntrack()) }},
		{"Listeners", func() error { return second(t.Listeners()) }},
	} {
		b.Run(part.name, func(b *testing.B) {
			ns.Run(b, func() {
				b.ReportAllocs()
				for b.Loop() {
					if err := part.look(); err != nil && !errors.Is(err, ErrNoConntrack) {
						b.Fatal(err)
					}
				}
			})
		})
	}
}

func second[T any](_ T, err error) error { return err }
