package scenes

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Stage is three network namespaces in a row; the router forwards between the
// other two. It belongs to one caller at a time.
type Stage struct {
	Client, Router, Server *Host
	// IPv6 makes scenes use the IPv6 addresses; every host has both.
	IPv6 bool
	// OwnMachine allows scenes that change settings of the whole machine.
	OwnMachine bool
	more       []*Host
	actors     []*actor
	dirs       []string
}

// Host is one namespace of a stage.
type Host struct {
	// Name is "client", "router" or "server".
	Name  string
	netns *os.File
}

// The addresses of a stage. The router's are its legs to client and server.
const (
	clientIP4, routerIP4c, routerIP4s, serverIP4 = "10.98.1.2", "10.98.1.1", "10.98.2.1", "10.98.2.2"
	clientIP6, routerIP6c, routerIP6s, serverIP6 = "fd98:1::2", "fd98:1::1", "fd98:2::1", "fd98:2::2"
)

// NewStage makes the namespaces and joins them. Close removes them.
func NewStage() (*Stage, error) {
	st := &Stage{}
	for _, h := range []struct {
		name string
		host **Host
	}{{FromClient, &st.Client}, {FromRouter, &st.Router}, {FromServer, &st.Server}} {
		made, err := newHost(h.name)
		if err != nil {
			return nil, errors.Join(err, st.Close())
		}
		*h.host = made
	}
	if err := st.wire(); err != nil {
		return nil, errors.Join(err, st.Close())
	}
	return st, nil
}

func (st *Stage) wire() error {
	for _, l := range []leg{
		{st.Router, st.Client, "client", clientIP4, clientIP6, routerIP4c, routerIP6c},
		{st.Router, st.Server, "server", serverIP4, serverIP6, routerIP4s, routerIP6s},
	} {
		if err := l.connect(); err != nil {
			return err
		}
	}
	return st.forward(true)
}

// forward opens or cuts the path. A router that does not forward drops in
// silence (net/ipv4/route.c ip_error, net/ipv6/ip6_output.c ip6_forward), so no
// ICMP error reaches the ends.
func (st *Stage) forward(on bool) error {
	value := "0"
	if on {
		value = "1"
	}
	if err := st.Router.Sysctl("net.ipv4.ip_forward", value); err != nil {
		return err
	}
	return st.Router.Sysctl("net.ipv6.conf.all.forwarding", value)
}

// Close kills the actors, waits for them and gives up the namespaces. It may be
// called twice.
func (st *Stage) Close() error {
	for _, a := range st.actors {
		a.end()
	}
	st.actors = nil
	errs := []error{st.removeDirs()}
	for _, h := range append([]*Host{st.Client, st.Router, st.Server}, st.more...) {
		if h != nil && h.netns != nil {
			errs = append(errs, h.netns.Close())
			h.netns = nil
		}
	}
	return errors.Join(errs...)
}

// AddHost puts a further host behind one, which forwards for it from now on. Its
// addresses are 10.98.n.2 and fd98:n::2, n from 3 on.
func (st *Stage) AddHost(behind *Host, name string, n int) (*Host, error) {
	h, err := newHost(name)
	if err != nil {
		return nil, err
	}
	st.more = append(st.more, h)
	ip4, ip6 := fmt.Sprintf("10.98.%d.", n), fmt.Sprintf("fd98:%d::", n)
	if err := (leg{behind, h, name, ip4 + "2", ip6 + "2", ip4 + "1", ip6 + "1"}).connect(); err != nil {
		return nil, err
	}
	return h, errors.Join(behind.Sysctl("net.ipv4.ip_forward", "1"), behind.Sysctl("net.ipv6.conf.all.forwarding", "1"))
}

// Host returns a host by its name, as in Truth.RSTFrom; nil if there is none.
func (st *Stage) Host(name string) *Host {
	for _, h := range []*Host{st.Client, st.Router, st.Server} {
		if h.Name == name {
			return h
		}
	}
	return nil
}

// ip picks an address by the stage's family.
func (st *Stage) ip(v4, v6 string) netip.Addr {
	if st.IPv6 {
		return netip.MustParseAddr(v6)
	}
	return netip.MustParseAddr(v4)
}

// ClientIP is the client's address in the stage's family.
func (st *Stage) ClientIP() netip.Addr { return st.ip(clientIP4, clientIP6) }

// ServerIP is the server's address in the stage's family.
func (st *Stage) ServerIP() netip.Addr { return st.ip(serverIP4, serverIP6) }

func newHost(name string) (*Host, error) {
	h := &Host{Name: name}
	err := elsewhere(func() error { return unix.Unshare(unix.CLONE_NEWNET) }, func() (err error) {
		h.netns, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("make network namespace %s (root is needed): %w", name, err)
	}
	if err := h.up("lo"); err != nil {
		return nil, errors.Join(err, h.netns.Close())
	}
	return h, nil
}

// Do runs f in the namespace, on the caller's goroutine and a locked thread.
// Sockets and processes that f makes stay in the namespace; goroutines that it
// starts do not run there.
func (h *Host) Do(f func() error) error {
	return elsewhere(func() error {
		if err := unix.Setns(int(h.netns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", h.Name, err)
		}
		return nil
	}, f)
}

// elsewhere leaves the thread's namespace by move, runs f, and comes back. A
// thread that cannot come back stays locked and dies with its goroutine.
func elsewhere(move, f func() error) error {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open this thread's network namespace: %w", err)
	}
	defer home.Close()
	if err := move(); err != nil {
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

// NetNS is the inode number of the namespace, as in /proc/PID/ns/net.
func (h *Host) NetNS() (uint64, error) {
	var s unix.Stat_t
	if err := unix.Fstat(int(h.netns.Fd()), &s); err != nil {
		return 0, fmt.Errorf("stat network namespace %s: %w", h.Name, err)
	}
	return s.Ino, nil
}

// Sysctl sets a net.* setting of the namespace.
func (h *Host) Sysctl(name, value string) error {
	path := filepath.Join("/proc/sys", strings.ReplaceAll(name, ".", "/"))
	err := h.Do(func() error { return os.WriteFile(path, []byte(value), 0) })
	if err != nil {
		return fmt.Errorf("set %s to %s on %s: %w", name, value, h.Name, err)
	}
	return nil
}

// Counters reads a network namespace's counters by "Group.Name", as in
// /proc/net/snmp and /proc/net/netstat: "Tcp.OutRsts".
func (h *Host) Counters() (map[string]uint64, error) {
	all := map[string]uint64{}
	for _, name := range []string{"snmp", "netstat"} {
		text, err := h.proc(name)
		if err != nil {
			return nil, err
		}
		parseCounters(text, all)
	}
	text, err := h.proc("snmp6")
	if err != nil {
		return nil, err
	}
	parsePairs(text, all)
	return all, nil
}

// proc reads a file of /proc/net in the namespace.
func (h *Host) proc(name string) (string, error) {
	var b []byte
	err := h.Do(func() (err error) {
		b, err = os.ReadFile("/proc/thread-self/net/" + name)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("read /proc/net/%s of %s: %w", name, h.Name, err)
	}
	return string(b), nil
}

// nft loads a ruleset in the namespace.
func (h *Host) nft(ruleset string) error {
	err := h.Do(func() error {
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader(ruleset)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("load nft rules %q on %s: %w", ruleset, h.Name, err)
	}
	return nil
}
