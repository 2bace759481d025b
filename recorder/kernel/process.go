package kernel

import (
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"tcpcoroner/evidence"
)

const (
	// clockTicks is USER_HZ, the unit of times in /proc/PID/stat (proc(5)).
	clockTicks = 100
	// mostKnown bounds the processes that are remembered.
	mostKnown = 4096
	// walkEvery is how often the cgroups are listed, to know the path of one that
	// is gone later; walkAtMost how often for one that is not known.
	walkEvery  = time.Minute
	walkAtMost = time.Second
)

// processes adds to owners what /proc and the cgroup tree tell, and remembers it
// for when they are gone.
type processes struct {
	proc, cgroups string
	now           func() time.Time

	mu     sync.Mutex
	known  map[process]details
	paths  map[uint64]string
	walked time.Time
}

// process names a process for good: execve(2) changes the name and the executable.
type process struct {
	pid   uint32
	start uint64
	comm  [16]int8
}

type details struct{ exe, cgroup string }

func newProcesses(proc, cgroups string) *processes {
	return &processes{
		proc: proc, cgroups: version2(cgroups), now: time.Now,
		known: map[process]details{}, paths: map[uint64]string{},
	}
}

// version2 is where the tree of cgroups of version 2 is mounted; empty if nowhere.
func version2(root string) string {
	for _, dir := range []string{root, filepath.Join(root, "unified")} { // systemd's hybrid setup
		if _, err := os.Stat(filepath.Join(dir, "cgroup.controllers")); err == nil {
			return dir
		}
	}
	return ""
}

// initialPIDs is the inode number of the initial PID namespace, PROC_PID_INIT_INO
// of include/linux/proc_ns.h.
const initialPIDs = 0xEFFFFFFC

// pidNamespace is the inode number of the recorder's PID namespace; 0 for the
// initial one, which is the only one where there is no such file.
func pidNamespace(proc string) uint32 {
	var st syscall.Stat_t
	if syscall.Stat(filepath.Join(proc, "self/ns/pid"), &st) != nil || st.Ino == initialPIDs {
		return 0
	}
	return uint32(st.Ino)
}

// fill adds executable, cgroup and unit to o, which may be nil or be of another
// record: then r is empty.
func (p *processes) fill(o *evidence.Owner, r bpfOwner) {
	if o == nil || r.Pid == 0 {
		return
	}
	d := p.details(process{r.Pid, r.Start, r.Comm})
	o.Exe, o.Cgroup = d.exe, d.cgroup
	if o.Cgroup == "" {
		o.Cgroup = p.cgroup(r.Cgroup)
	}
	o.Unit = evidence.UnitOf(o.Cgroup)
}

func (p *processes) details(id process) details {
	p.mu.Lock()
	defer p.mu.Unlock()
	if d, ok := p.known[id]; ok {
		return d
	}
	d := p.read(id)
	if d == (details{}) {
		return d
	}
	if len(p.known) >= mostKnown {
		clear(p.known)
	}
	p.known[id] = d
	return d
}

// read asks /proc, if the process there is still the one that was meant.
func (p *processes) read(id process) (d details) {
	dir := filepath.Join(p.proc, strconv.Itoa(int(id.pid)))
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil || parseStart(string(stat)) != id.start/(uint64(time.Second)/clockTicks) {
		return d
	}
	d.exe, _ = os.Readlink(filepath.Join(dir, "exe"))
	if text, err := os.ReadFile(filepath.Join(dir, "cgroup")); err == nil {
		d.cgroup = cgroupOf(string(text))
	}
	return d
}

// cgroup is the path of a cgroup of version 2 by its number; empty if not known.
// The number is the inode's (kernfs). 1 is the root: no cgroup in particular.
func (p *processes) cgroup(id uint64) string {
	if id <= 1 {
		return ""
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	path, ok := p.paths[id]
	if !ok && p.now().Sub(p.walked) >= walkAtMost {
		p.list()
		path = p.paths[id]
	}
	return path
}

// walk lists the cgroups.
func (p *processes) walk() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.list()
}

// tick lists the cgroups from time to time.
func (p *processes) tick(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now.Sub(p.walked) >= walkEvery {
		p.list()
	}
}

// list adds the cgroups that there are to those that are known.
func (p *processes) list() {
	p.walked = p.now()
	if p.cgroups == "" {
		return
	}
	if len(p.paths) >= 4*mostKnown {
		clear(p.paths)
	}
	// What cannot be read is not known.
	_ = filepath.WalkDir(p.cgroups, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil
		}
		if info, err := d.Info(); err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				p.paths[st.Ino] = "/" + strings.TrimPrefix(strings.TrimPrefix(path, p.cgroups), "/")
			}
		}
		return nil
	})
}

// parseStart reads the start time, in clock ticks since boot, from
// /proc/PID/stat (field 22). The name may hold spaces and parentheses: it ends at
// the last one. 0 if it is not there.
func parseStart(text string) uint64 {
	const startTime = 22 - 3 // the fields after the name begin with the third
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	if len(fields) <= startTime {
		return 0
	}
	n, _ := strconv.ParseUint(fields[startTime], 10, 64)
	return n
}

// cgroupOf is the telling path of /proc/PID/cgroup; empty for the root, which tells
// nothing of a process.
func cgroupOf(text string) string {
	path := strings.TrimSuffix(evidence.ParseCgroup(text), " (deleted)")
	if path == "/" {
		return ""
	}
	return path
}
