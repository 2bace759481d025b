package afpacket

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"tcpcoroner/evidence"
	"tcpcoroner/internal/netlab"
	"tcpcoroner/recorder"
)

func pathOf(ns *netlab.NS) string { return filepath.Join("/run/netns", ns.Name) }

func received(p *evidence.Packet) bool { return p.Direction == evidence.Received }

func indexes(all []evidence.Namespace) (is []uint16) {
	for _, n := range all {
		is = append(is, n.Index)
	}
	return is
}

// One source records its own namespace and others, attached while it runs,
// and tells them apart.
func TestNamespaces(t *testing.T) {
	own, lab, other := netlab.NewNS(t), netlab.New(t), netlab.NewNS(t)
	s, c := collect(t, own, Config{RingBytes: 1 << 20})
	for _, ns := range []*netlab.NS{lab.Server, lab.Client} {
		if err := s.Attach(pathOf(ns)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, func() bool { return s.Stats().Rings == 3 })
	from, to := newWire(t, lab.Server), newWire(t, lab.Client)
	from.send(t, to.mac, ethIP4, endOfKind)
	seen := map[evidence.Direction]uint16{} // in whichever order
	c.next(t, func(p *evidence.Packet) bool { seen[p.Direction] = p.Namespace; return len(seen) == 2 })
	if diff := cmp.Diff(map[evidence.Direction]uint16{evidence.Sent: 1, evidence.Received: 2}, seen); diff != "" {
		t.Errorf("namespaces (-want +got):\n%s", diff)
	}
	l := own.Listen(t, "127.0.0.1:0")
	netlab.Reset(own.Dial(t, l.Addr().String()))
	if p := c.next(t, func(p *evidence.Packet) bool { return p.LinkType == unix.ARPHRD_LOOPBACK }); p.Namespace != 0 {
		t.Errorf("own namespace is %d", p.Namespace)
	}
	for _, path := range []string{pathOf(lab.Client), pathOf(own)} {
		if err := s.Attach(path); !errors.Is(err, ErrAttached) {
			t.Errorf("attach %s again: %v", path, err)
		}
	}
	if err := s.Attach("/dev/null"); err == nil || !strings.Contains(err.Error(), "enter network namespace") {
		t.Errorf("attach a file: %v", err)
	}
	if err := s.Detach(pathOf(other)); err == nil {
		t.Error("detached what was not attached")
	}
	if err := s.Detach(pathOf(lab.Client)); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { return s.Stats().Rings == 2 })
	if diff := cmp.Diff([]uint16{1}, indexes(s.Attached())); diff != "" {
		t.Errorf("attached (-want +got):\n%s", diff)
	}
	if err := s.Attach(pathOf(lab.Client)); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { return s.Stats().Rings == 3 })
	from.send(t, to.mac, ethIP4, endOfKind)
	if p := c.next(t, received); p.Namespace != 3 {
		t.Errorf("received in namespace %d, want a new one", p.Namespace)
	}
	if diff := cmp.Diff([]uint16{1, 2, 3}, indexes(s.Namespaces())); diff != "" {
		t.Error(diff)
	}
	eventually(t, func() bool { return len(s.Interfaces()) == 4 })
	for _, i := range s.Interfaces() {
		if want := map[uint16]string{0: "lo"}[i.Namespace]; i.Name != netlab.Device && i.Name != want {
			t.Errorf("interface %+v", i)
		}
	}
}

// Rings are read in turns: a full one does not keep the others waiting.
func TestRingsTakeTurns(t *testing.T) {
	s := &Source{}
	for i := range 3 {
		r := memoryRing(0)
		r.sink, r.meta.Path.Namespace = &gatherer{}, uint16(i)
		for at := range 1 + 3*btoi(i == 0) {
			r.hand(at, block(ringPacket{0x0800, 1, 0, 0, 0, 40, ip4TCP("")}))
		}
		s.rings = append(s.rings, r)
	}
	if taken, _ := s.round(); !taken {
		t.Fatal("nothing taken")
	}
	for i, r := range s.rings {
		if n := len(r.sink.(*gatherer).added); n != 1 {
			t.Errorf("ring %d: %d packets in the first round, want 1", i, n)
		}
	}
}

// A ring that the reader cannot take over is not recorded, and nobody is told that
// it is.
func TestRingNotAdopted(t *testing.T) {
	s := &Source{epoll: -1}
	s.event = -1
	r, closed := memoryRing(0), false
	r.inode, r.close = 7, func() { closed = true }
	if err := s.arrive(r, evidence.Namespace{Index: 1, Inode: 7}); err != nil {
		t.Fatal(err)
	}
	s.serve()
	if len(s.Attached()) != 0 || len(s.Namespaces()) != 1 || s.Stats().FilterErrors != 1 || !closed {
		t.Errorf("attached %v of %v, %+v, closed %v", s.Attached(), s.Namespaces(), s.Stats(), closed)
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// Traffic in two namespaces, with attaching and detaching all the time, under
// every level.
func TestAttachUnderTraffic(t *testing.T) {
	lab := netlab.New(t)
	s, c := collect(t, netlab.NewNS(t), Config{RingBytes: 1 << 20, NamespaceRingBytes: 512 << 10})
	var running sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	defer running.Wait()
	defer cancel()
	p := newPump(t, lab)
	running.Go(func() {
		for ctx.Err() == nil {
			p.run(t, 10)
		}
	})
	running.Go(func() {
		for {
			select {
			case <-c.packets:
			case <-ctx.Done():
				return
			}
		}
	})
	for i := range 10 {
		c.mu.Lock()
		c.order = recorder.Order{Level: recorder.Level(i % 4), Flush: i%3 == 0}
		c.mu.Unlock()
		for _, ns := range []*netlab.NS{lab.Client, lab.Server} {
			if err := s.Attach(pathOf(ns)); err != nil {
				t.Fatal(err)
			}
		}
		before := c.read().counted
		eventually(t, func() bool { return c.read().counted > before })
		for _, ns := range []*netlab.NS{lab.Client, lab.Server} {
			if err := s.Detach(pathOf(ns)); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, func() bool { return s.Stats().Rings == 1 })
	}
	if n := c.read(); n.leaked || s.Stats().Held != 0 || len(s.Namespaces()) != 20 {
		t.Errorf("%+v, %+v, %d namespaces", n, s.Stats(), len(s.Namespaces()))
	}
}

// A namespace that is deleted while it is recorded goes: its interfaces are not
// kept, and nothing spins. One that a process is still in is recorded on.
func TestNamespaceDeleted(t *testing.T) {
	own := netlab.NewNS(t)
	s := open(t, own, Config{RingBytes: 1 << 20})
	s.checkEvery = retire
	c := newCollector()
	start(t, func(ctx context.Context) error { return s.Run(ctx, c) })
	mortal := &netlab.NS{Name: fmt.Sprintf("mortal-%d", os.Getpid())}
	netlab.IP(t, "netns", "add", mortal.Name)
	own.IP(t, "link", "add", "v0", "type", "veth", "peer", "name", netlab.Device, "netns", mortal.Name)
	user := mortal.Command(t.Context(), "sleep", "60")
	if err := user.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { // ip(8) has entered it
		i, _ := inode(fmt.Sprintf("/proc/%d/ns/net", user.Process.Pid))
		want, _ := inode(pathOf(mortal))
		return i == want
	})
	if err := s.Attach(pathOf(mortal)); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { return s.Stats().Rings == 2 })
	netlab.IP(t, "netns", "del", mortal.Name)
	want := fmt.Sprintf("/proc/%d/ns/net", user.Process.Pid)
	eventually(t, func() bool { s.Wake(); return s.Namespaces()[0].Path == want })
	if s.Stats().Rings != 2 {
		t.Error("a namespace in use is not recorded any more")
	}
	_ = user.Process.Kill()
	_ = user.Wait()
	eventually(t, func() bool { s.Wake(); return s.Stats().Rings == 1 })
	eventually(t, func() bool { return !strings.Contains(own.IP(t, "link"), "v0") })
	quiet(t, s, 2)
	if n := s.Stats().PollErrors; n != 0 {
		t.Errorf("%d poll errors", n)
	}
}

// A thread that cannot come back to its namespace ends.
func TestLostThreadEnds(t *testing.T) {
	there, err := os.Open(pathOf(netlab.NewNS(t)))
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	tid := os.Getpid()
	for tid == os.Getpid() { // the main thread never ends: spare it
		calls := 0
		broken := func(fd, kind int) error {
			if calls++; calls > 1 && unix.Gettid() != os.Getpid() {
				return unix.EINVAL
			}
			return unix.Setns(fd, kind)
		}
		if err := inside(there, "/proc", broken, func() error { tid = unix.Gettid(); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, func() bool {
		_, err := os.Stat(fmt.Sprintf("/proc/self/task/%d", tid))
		return errors.Is(err, os.ErrNotExist)
	})
}

func TestInsideComesBack(t *testing.T) {
	ns := netlab.NewNS(t)
	there, err := os.Open(pathOf(ns))
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	want, _ := inode(pathOf(ns))
	for range 50 {
		if err := inside(there, "/proc", unix.Setns, func() error {
			if i, _ := inode("/proc/thread-self/ns/net"); i != want {
				return errors.New("not there")
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	home, _ := inode("/proc/self/ns/net")
	tasks, _ := filepath.Glob("/proc/self/task/*/ns/net")
	for _, task := range tasks {
		if i, err := inode(task); err == nil && i != home {
			t.Errorf("%s stayed in another namespace", task)
		}
	}
}

func TestDiscover(t *testing.T) {
	named, used := netlab.NewNS(t), netlab.NewNS(t)
	user := used.Command(t.Context(), "sleep", "60")
	if err := user.Start(); err != nil {
		t.Fatal(err)
	}
	defer user.Wait()
	defer user.Process.Kill()
	all, err := Discover("/proc")
	if err != nil && !errors.Is(err, fs.ErrPermission) { // a sandbox may hide some
		t.Fatal(err)
	}
	inodes, own := map[uint64]string{}, uint64(0)
	own, _ = inode("/proc/thread-self/ns/net")
	for _, n := range all {
		if inodes[n.Inode] != "" || n.Inode == own {
			t.Errorf("%+v is listed again, or the own one", n)
		}
		inodes[n.Inode] = n.Path
	}
	for _, ns := range []*netlab.NS{named, used} {
		if i, _ := inode(pathOf(ns)); inodes[i] != pathOf(ns) {
			t.Errorf("%s is listed as %q", pathOf(ns), inodes[i])
		}
	}
}

// A tree with hard links for namespaces: processes that share one, names, ended
// processes, and other files.
func TestDiscoverFirstPath(t *testing.T) {
	root := t.TempDir()
	link := func(target string, names ...string) {
		t.Helper()
		target = filepath.Join(root, target)
		if err := os.WriteFile(target, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, n := range names {
			n = filepath.Join(root, n)
			if err := errors.Join(os.MkdirAll(filepath.Dir(n), 0o700), os.Link(target, n)); err != nil {
				t.Fatal(err)
			}
		}
	}
	link("own", "proc/thread-self/ns/net", "proc/1/ns/net", "proc/20/ns/net")
	link("blue", "proc/30/ns/net", "run/netns/blue", "proc/4/ns/net")
	link("pod", "proc/100/ns/net", "proc/12/ns/net")
	for _, dir := range []string{"proc/50", "proc/sys/ns"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	got, err := Discover(filepath.Join(root, "proc"))
	if err != nil {
		t.Fatal(err)
	}
	var paths []string
	for _, n := range got {
		paths = append(paths, strings.TrimPrefix(n.Path, root))
	}
	if diff := cmp.Diff([]string{"/run/netns/blue", "/proc/12/ns/net"}, paths); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]uint16{1, 2}, indexes(got)); diff != "" {
		t.Error(diff)
	}
	if _, err := Discover(filepath.Join(root, "nowhere")); err == nil {
		t.Error("no procfs is no error")
	}
}

func TestAttachAfterClose(t *testing.T) {
	ns := netlab.NewNS(t)
	s := open(t, netlab.NewNS(t), Config{RingBytes: 1 << 20})
	s.Close()
	if err := s.Attach(pathOf(ns)); !errors.Is(err, ErrClosed) {
		t.Errorf("error is %v", err)
	}
	s.Wake()
}
