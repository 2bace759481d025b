package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tcpcoroner/evidence"
	"tcpcoroner/exporter/api"
	"tcpcoroner/internal/netlab"
	"tcpcoroner/recorder/afpacket"
)

func pathOf(name string) string { return filepath.Join("/run/netns", name) }

// A configured namespace that is not there does not keep the daemon from starting:
// it is a problem until it is there, again when it ends, and none when it is made
// anew. Its ring counts while it is recorded.
func TestNamespaceComesAndGoes(t *testing.T) {
	netlab.NeedRoot(t)
	t.Parallel()
	dir, name := t.TempDir(), fmt.Sprintf("comes-%d", os.Getpid())
	config := filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, "recorder:\n  ring: 4MiB\n  namespaces: [%s]\n", pathOf(name)), 0o600); err != nil {
		t.Fatal(err)
	}
	p := startDaemon(t, netlab.NewNS(t), dir, nil, "--config", config)
	absent := func(s api.Status) bool {
		return !s.Healthy && slices.ContainsFunc(s.Problems, func(text string) bool {
			return strings.HasPrefix(text, "namespaces: ") && strings.Contains(text, pathOf(name))
		}) && len(s.Recorder.Namespaces) == 0 && s.Recorder.RingBytes == 4<<20
	}
	if s := p.status(t); !absent(s) {
		t.Errorf("problems %q, namespaces %v, rings %d", s.Problems, s.Recorder.Namespaces, s.Recorder.RingBytes)
	}
	for life := range uint16(2) {
		netlab.IP(t, "netns", "add", name)
		p.awaitStatus(t, "namespace in the status", func(s api.Status) bool {
			r := s.Recorder
			return s.Healthy && len(r.Namespaces) == 1 && r.Namespaces[0].Index == life+1 && r.RingBytes == 6<<20
		})
		resetIn(t, &netlab.NS{Name: name}, p, life+1)
		netlab.IP(t, "netns", "del", name)
		p.awaitStatus(t, "problem in the status", absent)
		if s := p.status(t); slices.ContainsFunc(s.Recorder.Interfaces, func(i evidence.Interface) bool { return i.Namespace != 0 }) {
			t.Errorf("interfaces of a namespace that is gone: %+v", s.Recorder.Interfaces)
		}
	}
	p.stop(t)
}

func (p *process) status(t testing.TB) api.Status {
	t.Helper()
	s, err := p.client().Status(t.Context())
	if err != nil {
		t.Fatalf("%v\n%s", err, p.log)
	}
	return s
}

// awaitStatus waits for two looks around: the source's and the daemon's.
func (p *process) awaitStatus(t testing.TB, what string, ok func(api.Status) bool) {
	t.Helper()
	await(t, 3*aroundEvery, what, func() bool { return ok(p.status(t)) })
}

// resetIn resets a connection in a namespace, and wants its packets told as those
// of the namespace with the index.
func resetIn(t *testing.T, ns *netlab.NS, p *process, index uint16) {
	t.Helper()
	ns.IP(t, "link", "set", "lo", "up")
	before := p.status(t).Recorder.Resets
	l := ns.Listen(t, "127.0.0.1:0")
	if err := netlab.Reset(ns.Dial(t, l.Addr().String())); err != nil {
		t.Fatal(err)
	}
	l.Close() // or it would keep the namespace
	await(t, 5*time.Second, "RST seen in the namespace", func() bool { return p.status(t).Recorder.Resets > before })
	f, err := p.client().Freeze(t.Context(), "reset in a namespace")
	if err != nil {
		t.Fatal(err)
	}
	inc := chainIncident(t, p, f.ID)
	if !slices.ContainsFunc(inc.Window.Namespaces, func(n evidence.Namespace) bool { return n.Index == index && n.Path == pathOf(ns.Name) }) {
		t.Errorf("the window does not explain namespace %d: %+v", index, inc.Window.Namespaces)
	}
}

// openSource opens a source in a namespace of its own.
func openSource(t *testing.T) *afpacket.Source {
	t.Helper()
	var s *afpacket.Source
	netlab.NewNS(t).Run(t, func() {
		var err error
		if s, err = afpacket.Open(afpacket.Config{RingBytes: 1 << 20, NamespaceRingBytes: 512 << 10}); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { s.Close() })
	return s
}

func paths(all []evidence.Namespace) (list []string) {
	for _, n := range all {
		list = append(list, n.Path)
	}
	return list
}

// The limit is of those that are recorded now: what came and went does not count.
func TestNamespacesLimit(t *testing.T) {
	s := openSource(t)
	n := &namespaces{source: s, limit: 2}
	var found []evidence.Namespace
	for range 3 {
		found = append(found, namespaceAt(t, pathOf(netlab.NewNS(t).Name)))
	}
	for round := range 5 {
		left, failures := n.attachFound(found, n.limit)
		if got := len(s.Attached()); left != 1 || got != 2 || failures != nil {
			t.Fatalf("round %d: %d attached, %d left, failures %q", round, got, left, failures)
		}
		if err := s.Detach(s.Attached()[0].Path); err != nil {
			t.Fatal(err)
		}
	}
	gone := evidence.Namespace{Inode: 1, Path: pathOf("there-is-none")}
	if left, failures := n.attachFound([]evidence.Namespace{gone}, n.limit); left != 0 || failures != nil {
		t.Errorf("one that ended: %d left, failures %q", left, failures)
	}
	n.left, n.failures = 3, []string{"why"}
	want := []string{"3 network namespaces are not recorded: recorder.memory has room for the rings of 2", "namespaces: why"}
	if diff := cmp.Diff(want, n.problems()); diff != "" {
		t.Error(diff)
	}
}

func namespaceAt(t *testing.T, path string) evidence.Namespace {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return evidence.Namespace{Inode: inodeOf(info), Path: path}
}

// A configured path takes the place of a namespace that no path names.
func TestNamespacesConfiguredFirst(t *testing.T) {
	s, found, wanted := openSource(t), pathOf(netlab.NewNS(t).Name), pathOf(netlab.NewNS(t).Name)
	missing := pathOf("there-is-none")
	n := &namespaces{source: s, limit: 2, wanted: []string{missing, wanted}}
	if err := s.Attach(found); err != nil {
		t.Fatal(err)
	}
	n.look()
	if diff := cmp.Diff([]string{found, wanted}, paths(s.Attached())); diff != "" {
		t.Error(diff)
	}
	n.limit = 1
	n.look()
	if diff := cmp.Diff([]string{wanted}, paths(s.Attached())); diff != "" {
		t.Error(diff)
	}
	if list := n.problems(); len(list) != 1 || !strings.Contains(list[0], missing) {
		t.Errorf("problems %q", list)
	}
}

// A path that is made anew while a process is left in the old namespace is
// recorded: the old one gives way.
func TestNamespaceMadeAnew(t *testing.T) {
	s, name := openSource(t), fmt.Sprintf("anew-%d", os.Getpid())
	n := &namespaces{source: s, limit: 1, wanted: []string{pathOf(name)}}
	netlab.IP(t, "netns", "add", name)
	n.look()
	old := s.Attached()
	user := (&netlab.NS{Name: name}).Command(context.Background(), "sleep", "60")
	if err := user.Start(); err != nil {
		t.Fatal(err)
	}
	defer user.Wait()
	defer user.Process.Kill()
	mine := fmt.Sprintf("/proc/%d/ns/net", user.Process.Pid)
	await(t, 5*time.Second, "process in the namespace", func() bool { return namespaceAt(t, mine).Inode == old[0].Inode })
	netlab.IP(t, "netns", "del", name)
	netlab.IP(t, "netns", "add", name)
	t.Cleanup(func() { netlab.IP(t, "netns", "del", name) })
	n.look()
	all := s.Attached()
	if len(all) == 0 || all[len(all)-1].Inode != namespaceAt(t, pathOf(name)).Inode || n.problems() != nil {
		t.Errorf("attached %+v, problems %q", all, n.problems())
	}
}

func inodeOf(info os.FileInfo) uint64 { return info.Sys().(*syscall.Stat_t).Ino }
