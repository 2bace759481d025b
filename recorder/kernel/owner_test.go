package kernel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tcpcoroner/evidence"
	"tcpcoroner/internal/netlab"
)

// pair is a connection inside one namespace.
type pair struct{ client, server *net.TCPConn }

func connect(t *testing.T, ns *netlab.NS) pair {
	t.Helper()
	ln := ns.Listen(t, "127.0.0.1:0")
	c := ns.Dial(t, ln.Addr().String())
	s, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return pair{c, s.(*net.TCPConn)}
}

func cookie(t *testing.T, c *net.TCPConn) (n uint64) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if cerr := raw.Control(func(fd uintptr) { n, err = unix.GetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_COOKIE) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	return n
}

// wantVia checks that this process is known as the owner.
func wantVia(t *testing.T, k *Kernel, c *net.TCPConn, want string) {
	t.Helper()
	o, via, ok := k.OwnerByCookie(cookie(t, c))
	if !ok || via != want {
		t.Errorf("owner of %v: %+v by %q (%v), want by %q", c.LocalAddr(), o, via, ok, want)
		return
	}
	exe, _ := os.Executable()
	if o.PID != os.Getpid() || o.Exe != exe || o.Started.IsZero() || !strings.HasPrefix(filepath.Base(exe), o.Comm) {
		t.Errorf("owner %+v, want this process", o)
	}
}

func TestOwnersOfNewSockets(t *testing.T) {
	k := open(t, config())
	p := connect(t, netlab.NewNS(t))
	wantVia(t, k, p.client, evidence.ViaConnect)
	wantAccepted(t, k, p.server)
}

// wantAccepted checks that this process is known to have accepted a connection, at
// once or when it uses it: as well as this kernel tells.
func wantAccepted(t *testing.T, k *Kernel, c *net.TCPConn) {
	t.Helper()
	if attached(k, hookAccept) || attached(k, hookAccept4) {
		wantVia(t, k, c, evidence.ViaAccept)
		return
	}
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	wantVia(t, k, c, evidence.ViaFirstUse)
}

func attached(k *Kernel, h hook) bool {
	return slices.ContainsFunc(k.Level().Hooks, func(is evidence.KernelHook) bool { return is.Name == h.name && is.Attached })
}

// A connection that was there before has its owner from the files of processes.
func TestOwnersOfOldSockets(t *testing.T) {
	netlab.NeedRoot(t)
	p := connect(t, netlab.NewNS(t))
	k := open(t, config())
	wantVia(t, k, p.client, evidence.ViaSeed)
	wantVia(t, k, p.server, evidence.ViaSeed)
}

// Where accept cannot be watched, nobody owns a connection until it is used.
func TestOwnersByFirstUse(t *testing.T) {
	cfg := config()
	cfg.Level = evidence.LevelReasons
	k := open(t, cfg)
	for _, h := range []hook{hookState, hookDestroy, hookRecv, hookSend} {
		if !k.attach(h) {
			t.Skipf("this kernel has no %s", h.name)
		}
	}
	p := connect(t, netlab.NewNS(t))
	if o, via, ok := k.OwnerByCookie(cookie(t, p.server)); ok {
		t.Errorf("owner %+v by %s before it was used", o, via)
	}
	if _, err := p.server.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	wantVia(t, k, p.server, evidence.ViaFirstUse)
}

// A tracepoint of a system call makes all system calls slower: it is taken only where
// nothing else tells who accepts.
func TestSystemCallsAreTheLast(t *testing.T) {
	k := open(t, config())
	if attached(k, hookAccept) || attached(k, hookRecv) && attached(k, hookSend) {
		for _, h := range []hook{hookAccept4, hookAcceptSys} {
			if attached(k, h) {
				t.Errorf("%s is attached", h.name)
			}
		}
	}
}

// Where there is nothing else, the system call tells.
func TestOwnersBySystemCall(t *testing.T) {
	cfg := config()
	cfg.Level = evidence.LevelReasons
	k := open(t, cfg)
	if err := withTracefs(func() error {
		for _, h := range []hook{hookState, hookDestroy, hookAccept4, hookAcceptSys} {
			if !k.attach(h) {
				return fmt.Errorf("this kernel has no %s", h.name)
			}
		}
		return nil
	}); err != nil {
		t.Skip(err)
	}
	wantVia(t, k, connect(t, netlab.NewNS(t)).server, evidence.ViaAccept)
}

// What is closed leaves the table, or it would fill.
func TestOwnersGo(t *testing.T) {
	k := open(t, config())
	ns := netlab.NewNS(t)
	if err := k.Watch([]uint64{inode(t, "/run/netns/"+ns.Name)}); err != nil {
		t.Fatal(err)
	}
	before := k.Stats().Owners // of the host's own sockets: they can only become fewer
	p := connect(t, ns)
	gone := []uint64{cookie(t, p.client), cookie(t, p.server)}
	p.server.Close()
	p.client.Close()
	for range 200 {
		p := connect(t, ns)
		if err := netlab.Reset(p.client); err != nil {
			t.Fatal(err)
		}
		p.server.Close()
	}
	until(t, "the owners of closed sockets are forgotten", func() bool {
		_, _, client := k.OwnerByCookie(gone[0])
		_, _, server := k.OwnerByCookie(gone[1])
		// 201 listeners stay.
		return !client && !server && k.Stats().Owners < before+201+200
	})
	if s := k.Stats(); s.OwnersFailed != 0 || s.Graves < 400 {
		t.Errorf("%d owners found no room, %d sockets were buried", s.OwnersFailed, s.Graves)
	}
}

// The number of a namespace that is gone is used again, but not for its listeners.
func TestNamespaceNumbersAreUsedAgain(t *testing.T) {
	k := open(t, config())
	const addr = "127.0.0.1:9999"
	number := uint64(0)
	t.Run("before", func(t *testing.T) {
		ns := netlab.NewNS(t)
		ns.Listen(t, addr).Close()
		number = refusedIn(t, k, ns, addr, os.Getpid())
	})
	for range 8 { // the kernel takes the lowest number that is free
		again := uint64(0)
		t.Run("after", func(t *testing.T) { again = refusedIn(t, k, netlab.NewNS(t), addr, 0) })
		if again == number {
			return
		}
	}
	t.Skip("the kernel did not use the number again")
}

// refusedIn has a connection refused and checks who is said to have had the port.
func refusedIn(t *testing.T, k *Kernel, ns *netlab.NS, addr string, listener int) uint64 {
	t.Helper()
	since := time.Now()
	if _, err := ns.TryDial(addr); err == nil {
		t.Fatalf("%s is open", addr)
	}
	var e evidence.KernelEvent
	until(t, "the reset is told", func() bool {
		for _, e = range k.Events(since, time.Now()) {
			if e.Kind == evidence.ResetSent && e.Local.String() == addr {
				return true
			}
		}
		return false
	})
	if pidOf(e.LastListener) != listener {
		t.Errorf("last listener %+v, want %d", e.LastListener, listener)
	}
	return e.NetNS
}

// A connection that waits at a port of two processes is of neither.
func TestSharedPort(t *testing.T) {
	k := open(t, config())
	ns := netlab.NewNS(t)
	const addr = "127.0.0.1:9998"
	listenElsewhere(t, ns, addr)
	ns.Run(t, func() {
		l, err := reusePort(addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
	})
	since := time.Now()
	if err := netlab.Reset(ns.Dial(t, addr)); err != nil {
		t.Fatal(err)
	}
	until(t, "the reset is told", func() bool {
		for _, e := range k.Events(since, time.Now()) {
			if e.Kind == evidence.ResetReceived && e.Local.String() == addr {
				if e.Owner != nil {
					t.Errorf("the owner is said to be %+v by %s", e.Owner, e.Via)
				}
				return true
			}
		}
		return false
	})
}

func reusePort(addr string) (net.Listener, error) {
	c := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		cerr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
		return errors.Join(cerr, err)
	}}
	c.SetMultipathTCP(false)
	return c.Listen(context.Background(), "tcp", addr)
}

// listenEnv makes the test binary listen at the address that is its value, until
// its input ends.
const listenEnv = "KERNEL_TEST_LISTEN"

func listening() {
	addr, ok := os.LookupEnv(listenEnv)
	if !ok {
		return
	}
	if _, err := reusePort(addr); err != nil {
		panic(err)
	}
	os.Stdout.WriteString("ready\n")
	_, _ = io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

// listenElsewhere has another process listen.
func listenElsewhere(t *testing.T, ns *netlab.NS, addr string) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := ns.Command(t.Context(), exe)
	cmd.Env = append(os.Environ(), listenEnv+"="+addr)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); _ = cmd.Wait() })
	if _, err := out.Read(make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
}
