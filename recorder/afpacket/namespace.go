package afpacket

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"tcpcoroner/evidence"
)

// Attach records another network namespace too, such as /run/netns/blue or
// /proc/812/ns/net. It opens the socket and returns; a running Run takes it over
// soon. It is safe for concurrent use. The namespace is recorded until Detach, or
// until neither its path nor a process is left: a socket in it would keep it, and
// its interfaces, from being removed.
func (s *Source) Attach(path string) error {
	s.attaching.Lock()
	defer s.attaching.Unlock()
	there, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer there.Close()
	n := evidence.Namespace{Path: path}
	if n.Inode, err = inode(path); err != nil {
		return err
	}
	if n.Index, err = s.newIndex(n.Inode); err != nil {
		return fmt.Errorf("attach %s: %w", path, err)
	}
	var r *ring
	err = inside(there, s.cfg.Proc, unix.Setns, func() (err error) {
		r, err = s.openRing(s.cfg.NamespaceRingBytes, n.Index)
		return err
	})
	if err != nil {
		return fmt.Errorf("attach network namespace %s: %w", path, err)
	}
	r.inode = n.Inode
	if err := s.arrive(r, n); err != nil {
		r.close()
		return fmt.Errorf("attach network namespace %s: %w", path, err)
	}
	return nil
}

// newIndex is the next index; indexes are not used again.
func (s *Source) newIndex(inode uint64) (uint16, error) {
	if inode == s.own || slices.ContainsFunc(s.Attached(), func(n evidence.Namespace) bool { return n.Inode == inode }) {
		return 0, ErrAttached
	}
	next := len(s.Namespaces()) + 1
	if next > math.MaxUint16 {
		return 0, fmt.Errorf("%d network namespaces were attached since the start: restart the recorder", next-1)
	}
	return uint16(next), nil
}

// inside runs f in a network namespace, on a thread of its own. A thread that
// cannot be brought back ends with its goroutine, for it is still locked to it.
func inside(there *os.File, proc string, setns func(fd, kind int) error, f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open(filepath.Join(proc, "thread-self/ns/net"))
		if err != nil {
			runtime.UnlockOSThread()
			result <- fmt.Errorf("open this thread's network namespace: %w", err)
			return
		}
		defer home.Close()
		if err := setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			result <- entering(err)
			return
		}
		err = f()
		if setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		result <- err
	}()
	return <-result
}

func entering(err error) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("enter network namespace: %w: needs CAP_SYS_ADMIN", err)
	}
	return fmt.Errorf("enter network namespace: %w", err)
}

func inode(path string) (uint64, error) {
	st, err := look(path)
	return st.Ino, err
}

func look(path string) (st unix.Stat_t, err error) {
	if err := unix.Stat(path, &st); err != nil {
		return st, fmt.Errorf("look at network namespace %s: %w", path, err)
	}
	return st, nil
}

// checkNamespaces looks from time to time, and aside of the reader, whether the
// attached namespaces are still used by somebody else.
func (s *Source) checkNamespaces(now time.Time) {
	if len(s.rings) < 2 || now.Sub(s.checked) < s.checkEvery || s.checking.Swap(true) {
		return
	}
	s.checked = now
	s.background.Go(func() {
		defer s.checking.Store(false)
		s.findGone()
	})
}

// findGone detaches the namespaces whose path is gone. One that a process is still
// in goes on under that path.
func (s *Source) findGone() {
	var gone []evidence.Namespace
	for _, n := range s.Attached() {
		if i, err := inode(n.Path); err != nil || i != n.Inode {
			gone = append(gone, n)
		}
	}
	if len(gone) == 0 {
		return
	}
	left, _ := Discover(s.cfg.Proc) // who may not be looked at may not be recorded
	for _, n := range gone {
		if at := slices.IndexFunc(left, func(l evidence.Namespace) bool { return l.Inode == n.Inode }); at >= 0 {
			s.moved(n.Inode, left[at].Path)
			continue
		}
		_ = s.Detach(n.Path) // it may have been detached meanwhile
	}
}

// Discover lists the network namespaces beside the caller's own: those with a name
// in run/netns, next to procRoot, and those of the processes that procRoot (/proc)
// shows, each once. What it found is valid also with an error, which then tells
// how many processes could not be looked at.
func Discover(procRoot string) ([]evidence.Namespace, error) {
	own, err := look(filepath.Join(procRoot, "thread-self/ns/net"))
	if err != nil {
		return nil, err
	}
	processes, err := os.ReadDir(procRoot)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	l := lister{device: uint64(own.Dev), seen: map[uint64]bool{own.Ino: true}}
	names := filepath.Join(filepath.Dir(procRoot), "run/netns")
	if entries, err := os.ReadDir(names); err == nil { // no name was ever given
		for _, e := range entries {
			l.look(filepath.Join(names, e.Name()))
		}
	}
	for _, pid := range pids(processes) {
		l.look(filepath.Join(procRoot, strconv.Itoa(pid), "ns/net"))
	}
	if l.denied > 0 {
		return l.found, fmt.Errorf("look at the network namespaces of %d processes: %w: needs CAP_SYS_PTRACE",
			l.denied, fs.ErrPermission)
	}
	return l.found, nil
}

// lister collects distinct namespaces.
type lister struct {
	device uint64 // of all namespaces
	seen   map[uint64]bool
	found  []evidence.Namespace
	denied int
}

// look adds the namespace at the path. A process may have ended meanwhile, and a
// name may be a file that a removed namespace left.
func (l *lister) look(path string) {
	st, err := look(path)
	if errors.Is(err, fs.ErrPermission) {
		l.denied++
	}
	if err != nil || uint64(st.Dev) != l.device || l.seen[st.Ino] {
		return
	}
	l.seen[st.Ino] = true
	l.found = append(l.found, evidence.Namespace{Index: uint16(len(l.found) + 1), Inode: st.Ino, Path: path})
}

// pids are in order, so that the oldest process names a namespace.
func pids(entries []os.DirEntry) (all []int) {
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			all = append(all, pid)
		}
	}
	slices.Sort(all)
	return all
}
