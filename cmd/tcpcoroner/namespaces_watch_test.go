package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tcpcoroner/evidence"
	"tcpcoroner/exporter/api"
	"tcpcoroner/internal/netlab"
	"tcpcoroner/triggers"
)

// smallBacklog listens in a namespace, accepts nothing, and has room for two.
func smallBacklog(t *testing.T, ns *netlab.NS) *unix.SockaddrInet4 {
	t.Helper()
	addr := &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}
	err := ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		t.Cleanup(func() { unix.Close(fd) })
		if err := errors.Join(unix.Bind(fd, addr), unix.Listen(fd, 1)); err != nil {
			return err
		}
		name, err := unix.Getsockname(fd)
		if err == nil {
			addr = name.(*unix.SockaddrInet4)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

// knockAt begins connections and waits for none.
func knockAt(t *testing.T, ns *netlab.NS, addr *unix.SockaddrInet4, n int) {
	t.Helper()
	err := ns.Do(func() error {
		for range n {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
			if err != nil {
				return err
			}
			t.Cleanup(func() { unix.Close(fd) })
			if err := unix.Connect(fd, addr); err != nil && !errors.Is(err, unix.EINPROGRESS) {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A listener that overflows in another namespace fires there and nowhere else, and
// the incident has that namespace's numbers from before it on.
func TestTriggerInNamespace(t *testing.T) {
	netlab.NeedRoot(t)
	t.Parallel()
	blue, dir := netlab.NewNS(t), t.TempDir()
	blue.IP(t, "link", "set", "lo", "up")
	config := filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, "recorder: {namespaces: [%s]}\nwindow: {before: 5s, after: 1s, max: 2s}\n", pathOf(blue.Name)), 0o600); err != nil {
		t.Fatal(err)
	}
	p := startDaemon(t, netlab.NewNS(t), dir, nil, "--config", config)
	seen := func(name string) bool {
		return slices.ContainsFunc(p.status(t).Triggers, func(s api.TriggerStatus) bool {
			return s.Name == name && s.Namespace == blue.Name && s.State == "armed"
		})
	}
	await(t, 10*time.Second, "trigger of the namespace", func() bool { return seen("listen") })
	addr := smallBacklog(t, blue)
	knockAt(t, blue, addr, 20)
	list := p.awaitIncidents(t, 1, 40*time.Second)
	inc := chainIncident(t, p, list[0].ID)
	f := inc.Firings[0]
	if f.Trigger != "listen" || f.Namespace != blue.Name || !strings.HasPrefix(f.Reason, "namespace "+blue.Name+": listen queue overflow") {
		t.Errorf("firing %+v", f)
	}
	if len(f.Listeners) != 1 || f.Listeners[0].Owner == nil || f.Listeners[0].Owner.PID != os.Getpid() {
		t.Errorf("listeners %+v", f.Listeners)
	}
	if len(inc.Elsewhere) != 1 || inc.Elsewhere[0].NetNS != namespaceAt(t, pathOf(blue.Name)).Inode ||
		inc.Elsewhere[0].Growth("TcpExt.ListenOverflows", inc.Window.From, inc.Closed) < 5 {
		t.Errorf("series of other namespaces: %+v", inc.Elsewhere)
	}
	out, errs, code := cli(t, "triggers", "--socket", p.socket)
	if code != exitOK || !strings.Contains(out, "listen@"+blue.Name) || strings.Contains(out, "ports@"+blue.Name) {
		t.Errorf("exit %d, %s%s", code, out, errs)
	}
	p.stop(t)
}

// What is followed is what is recorded: namespaces come, fail, and go with their
// triggers and files.
func TestElsewhereFollows(t *testing.T) {
	netlab.NeedRoot(t)
	ns := netlab.NewNS(t)
	there := namespaceAt(t, pathOf(ns.Name))
	there.Index = 1
	set := triggers.NewSet(triggers.DefaultSet())
	e := &elsewhere{forget: set.Forget, failures: map[uint16]error{}, listeners: true}
	e.open = func(n evidence.Namespace) (*space, error) {
		s, err := openSpace(n, e.name(n), 60, triggers.DefaultPorts().Rearm)
		if err == nil {
			s.holders = newOwners(newOwnerWalk(nil))
			set.Watch(s.label, triggers.NewPorts(triggers.DefaultPorts(), s.ports.get))
		}
		return s, err
	}
	anew := there
	anew.Index, anew.Inode = 2, 1
	now := time.Now()
	for i := range 3 {
		e.sample(now.Add(time.Duration(i)*time.Second), []evidence.Namespace{there, anew})
	}
	if m := e.missing(); len(e.spaces) != 1 || len(m) != 1 || !strings.Contains(m[0].Why, "made anew") {
		t.Errorf("%d spaces, missing %+v", len(e.spaces), m)
	}
	s := e.spaces[0]
	if s.last.CountersErr != nil || len(s.last.Counters.Values) < 100 || s.last.Idle != 2 {
		t.Errorf("sample %+v", s.last)
	}
	if all := e.series(now, now.Add(time.Minute)); len(all) != 1 || len(all[0].Times) != 3 {
		t.Errorf("series %+v", all)
	}
	if fired, _ := set.Check(now); fired != nil || len(set.States()) != 1 || set.States()[0].Namespace != ns.Name || set.States()[0].Why != "" {
		t.Errorf("fired %+v, states %+v", fired, set.States())
	}
	if got := e.name(there); got != fmt.Sprintf("%s-%d", ns.Name, there.Inode) {
		t.Errorf("second label %q", got)
	}
	file := s.file.Fd()
	e.sample(now, nil)
	var st syscall.Stat_t
	if err := syscall.Fstat(int(file), &st); len(e.spaces) != 0 || len(set.States()) != 0 || (err == nil && st.Ino == there.Inode) {
		t.Errorf("%d spaces, %d triggers left, file open: %v", len(e.spaces), len(set.States()), err)
	}
	if err := e.close(); err != nil {
		t.Error(err)
	}
}
