// Package netlab makes small laboratories out of Linux network namespaces, so
// that tests meet the real kernel and touch nothing of the host. It is for
// tests only and must not be imported by anything that ships.
package netlab

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The addresses of the two ends of a Lab.
const (
	ClientIP4 = "10.99.0.1"
	ServerIP4 = "10.99.0.2"
	ClientIP6 = "fd99::1"
	ServerIP6 = "fd99::2"
)

// Device is the name of the veth device, the same in both namespaces.
const Device = "veth0"

const dialTimeout = 5 * time.Second

// made counts namespaces of this process, to give each its own name.
var made atomic.Uint32

// NeedRoot skips the test when it may not make namespaces. Where the
// environment says CI=true it fails instead: a gate must not skip in silence. With
// -short, as in a package build, it always skips.
func NeedRoot(t testing.TB) {
	t.Helper()
	why := ""
	if testing.Short() {
		t.Skip("-short, as in a package build: no network namespaces")
	}
	if os.Geteuid() != 0 {
		why = "needs root to make network namespaces"
	} else if _, err := exec.LookPath("ip"); err != nil {
		why = "needs ip(8) of iproute2"
	}
	if why == "" {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// Lab is two namespaces joined by a veth pair. Client has 10.99.0.1/24 and
// fd99::1/64, Server 10.99.0.2/24 and fd99::2/64.
type Lab struct{ Client, Server *NS }

// New makes a Lab that is removed when the test ends.
func New(t testing.TB) *Lab {
	t.Helper()
	lab := &Lab{Client: NewNS(t), Server: NewNS(t)}
	IP(t, "-n", lab.Client.Name, "link", "add", Device, "type", "veth",
		"peer", "name", Device, "netns", lab.Server.Name)
	lab.Client.up(t, ClientIP4, ClientIP6)
	lab.Server.up(t, ServerIP4, ServerIP6)
	return lab
}

// NS is one named network namespace.
type NS struct {
	// Name is what ip-netns(8) knows it by.
	Name string
}

// NewNS makes a namespace with nothing but loopback, which is up. It is removed
// when the test ends.
func NewNS(t testing.TB) *NS {
	t.Helper()
	NeedRoot(t)
	ns := &NS{fmt.Sprintf("netlab-%d-%d", os.Getpid(), made.Add(1))}
	IP(t, "netns", "add", ns.Name)
	t.Cleanup(func() {
		if out, err := exec.Command("ip", "netns", "del", ns.Name).CombinedOutput(); err != nil {
			t.Errorf("remove namespace %s: %v: %s", ns.Name, err, out)
		}
	})
	ns.IP(t, "link", "set", "lo", "up")
	return ns
}

// up gives the veth device its addresses. The device makes no link-local address
// of its own and does no duplicate address detection, so both ends are ready at
// once and send nothing that the test did not ask for.
func (n *NS) up(t testing.TB, ip4, ip6 string) {
	t.Helper()
	n.IP(t, "link", "set", Device, "addrgenmode", "none")
	n.IP(t, "link", "set", Device, "up")
	n.IP(t, "addr", "add", ip4+"/24", "dev", Device)
	n.IP(t, "addr", "add", ip6+"/64", "dev", Device, "nodad")
}

// IP runs ip(8) in the namespace.
func (n *NS) IP(t testing.TB, args ...string) string {
	t.Helper()
	return IP(t, append([]string{"-n", n.Name}, args...)...)
}

// IP runs ip(8), fails the test if it fails, and returns its output.
func IP(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command("ip", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// Do runs f in the namespace, on the caller's goroutine and a locked thread.
// Sockets that f makes stay in the namespace; goroutines that f starts do not
// run in it. A thread that cannot be brought back stays locked, so that it dies
// with its goroutine.
func (n *NS) Do(f func() error) error {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open this thread's network namespace: %w", err)
	}
	defer home.Close()
	if err := n.enter(); err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer func() {
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
	}()
	return f()
}

func (n *NS) enter() error {
	there, err := os.Open(filepath.Join("/run/netns", n.Name))
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer there.Close()
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace %s: %w", n.Name, err)
	}
	return nil
}

// Run is Do for tests: f may call t.Fatal.
func (n *NS) Run(t testing.TB, f func()) {
	t.Helper()
	if err := n.Do(func() error { f(); return nil }); err != nil {
		t.Fatal(err)
	}
}

// Command is a process in the namespace. Killing it by its Process works: ip(8)
// replaces itself by the command.
func (n *NS) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", n.Name, name}, args...)...)
}

// Listen opens a TCP listener ("10.99.0.2:0") in the namespace, closed when the
// test ends. It speaks plain TCP: Go would prefer Multipath TCP.
func (n *NS) Listen(t testing.TB, addr string) net.Listener {
	t.Helper()
	var l net.Listener
	n.Run(t, func() {
		var c net.ListenConfig
		c.SetMultipathTCP(false)
		var err error
		if l, err = c.Listen(context.Background(), "tcp", addr); err != nil {
			t.Fatalf("listen on %s in %s: %v", addr, n.Name, err)
		}
	})
	t.Cleanup(func() { l.Close() })
	return l
}

// Dial connects from the namespace; the connection is closed when the test ends.
func (n *NS) Dial(t testing.TB, addr string) *net.TCPConn {
	t.Helper()
	c, err := n.TryDial(addr)
	if err != nil {
		t.Fatalf("dial %s in %s: %v", addr, n.Name, err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// TryDial is Dial for connections that are meant to be refused. The address must
// be a literal: names are not resolved inside the namespace.
func (n *NS) TryDial(addr string) (*net.TCPConn, error) {
	var c net.Conn
	err := n.Do(func() (err error) {
		d := net.Dialer{Timeout: dialTimeout}
		c, err = d.Dial("tcp", addr)
		return err
	})
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// Reset ends a TCP connection with a RST: close with linger time 0 (tcp(7)).
func Reset(c net.Conn) error {
	if err := c.(*net.TCPConn).SetLinger(0); err != nil {
		return fmt.Errorf("set linger time: %w", err)
	}
	return c.Close()
}
