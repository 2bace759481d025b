package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"tcpcoroner/evidence"
)

// fixOwners is what it takes to see the sockets of other users' processes: the
// first to open /proc/PID/fd, the second to read the links in it (proc(5)).
const fixOwners = "grant CAP_DAC_READ_SEARCH and CAP_SYS_PTRACE"

// takeOwners gives each socket that a process can hold its owner. Sockets without
// inode have none: waiting to be accepted, half open, orphaned or in time_wait.
func (t *Taker) takeOwners(ctx context.Context, s *evidence.Snapshot) {
	var inodes []uint32
	for i := range s.Sockets {
		if n := s.Sockets[i].Inode; n != 0 {
			inodes = append(inodes, n)
		}
	}
	if len(inodes) == 0 {
		return
	}
	owners, err := t.OwnersOf(ctx, inodes)
	unknown := 0
	for i := range s.Sockets {
		sock := &s.Sockets[i]
		if sock.Owner = owners[sock.Inode]; sock.Owner == nil && sock.Inode != 0 {
			unknown++
		}
	}
	if unknown > 0 {
		missOwners(s, unknown, err)
	}
}

func missOwners(s *evidence.Snapshot, unknown int, err error) {
	fix := ""
	switch {
	case err == nil:
		err = errors.New("no process below /proc holds them: closed meanwhile, the kernel's own, or of a hidden process (hidepid, another PID namespace)")
	case errors.Is(err, fs.ErrPermission):
		fix = fixOwners
	}
	miss(s, fmt.Sprintf("owners of %d sockets", unknown), err, fix)
}

// OwnersOf finds the processes that hold the sockets with these inodes, in one
// walk over /proc/PID/fd. Where several hold a socket it is the one that started
// first (a master, not its workers), but a service manager named "systemd" only
// if nobody else does: it keeps the listeners that it opened for its services.
// Several inodes may share an Owner. The error tells why owners may be absent
// from the map, which is valid all the same.
func (t *Taker) OwnersOf(ctx context.Context, inodes []uint32) (map[uint32]*evidence.Owner, error) {
	w := walk{t: t, want: make(map[uint32]bool, len(inodes)), best: make(map[uint32]holder, len(inodes))}
	for _, n := range inodes {
		w.want[n] = true
	}
	err := w.all(ctx)
	owners := make(map[uint32]*evidence.Owner, len(w.best))
	for n, h := range w.best {
		owners[n] = h.owner
	}
	if err == nil && w.denied > 0 && len(owners) < len(w.want) {
		err = fmt.Errorf("%w on /proc/PID/fd of %d processes: needs CAP_DAC_READ_SEARCH and CAP_SYS_PTRACE",
			fs.ErrPermission, w.denied)
	}
	return owners, err
}

// walk is one search for the holders of sockets.
type walk struct {
	t      *Taker
	want   map[uint32]bool
	best   map[uint32]holder
	denied int
	boot   int64
}

// holder is a process that holds a wanted socket.
type holder struct {
	owner *evidence.Owner
	// ticks is the start time since boot, in clock ticks.
	ticks uint64
}

// before tells whether h is a better owner than other.
func (h holder) before(other holder) bool {
	const manager = "systemd"
	if a, b := h.owner.Comm == manager, other.owner.Comm == manager; a != b {
		return b
	}
	if h.ticks != other.ticks {
		return h.ticks < other.ticks
	}
	return h.owner.PID < other.owner.PID
}

func (w *walk) all(ctx context.Context) error {
	if text, err := w.t.read("stat"); err == nil {
		w.boot = parseBootTime(text)
	}
	names, err := readNames(w.t.cfg.ProcRoot)
	if err != nil {
		return fmt.Errorf("list processes: %w", err)
	}
	for i, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if err := timeUp(ctx); err != nil {
			return fmt.Errorf("looked at %d of %d entries of /proc: %w", i, len(names), err)
		}
		w.process(pid)
	}
	return nil
}

// process looks at one process. One that is gone meanwhile holds nothing.
func (w *walk) process(pid int) {
	held, err := heldSockets(filepath.Join(w.t.cfg.ProcRoot, strconv.Itoa(pid), "fd"), w.want)
	if errors.Is(err, fs.ErrPermission) {
		w.denied++
	}
	if len(held) == 0 {
		return
	}
	h, ok := w.t.readProcess(pid, w.boot)
	if !ok {
		return
	}
	for _, n := range held {
		if best, taken := w.best[n]; !taken || h.before(best) {
			w.best[n] = h
		}
	}
}

// heldSockets reads the links in a /proc/PID/fd directory and returns the inodes
// of the wanted sockets among them.
func heldSockets(dir string, want map[uint32]bool) (held []uint32, err error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var link [64]byte
	for _, name := range names {
		n, err := unix.Readlinkat(int(d.Fd()), name, link[:])
		if errors.Is(err, fs.ErrPermission) {
			return held, err
		}
		if err != nil {
			continue // closed meanwhile
		}
		if inode, ok := parseSocketLink(link[:n]); ok && want[inode] {
			held = append(held, inode)
		}
	}
	return held, nil
}

func readNames(dir string) ([]string, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Readdirnames(-1)
}

// parseSocketLink reads "socket:[4711]".
func parseSocketLink(link []byte) (uint32, bool) {
	digits, ok := bytes.CutPrefix(link, []byte("socket:["))
	if !ok {
		return 0, false
	}
	digits, ok = bytes.CutSuffix(digits, []byte("]"))
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(string(digits), 10, 32)
	return uint32(n), err == nil
}
