package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"tcpcoroner/evidence"
)

// Bounds of what is told of processes.
const (
	maxProcesses = 64
	maxCommand   = 4096 // bytes of a command line that are read
)

// programOnly is the command line without arguments: they may hold secrets.
func programOnly(argv []string) string {
	if len(argv) == 0 {
		return ""
	}
	// A process may write its title over all arguments (setproctitle(3)).
	program, _, _ := strings.Cut(argv[0], " ")
	return clean(program)
}

// takeProcesses describes the processes that hold implicated sockets, and their
// control groups.
func (t *Taker) takeProcesses(ctx context.Context, s *evidence.Snapshot, pids []int) {
	if len(pids) > maxProcesses {
		miss(s, fmt.Sprintf("processes other than the first %d", maxProcesses), fmt.Errorf("%d are implicated", len(pids)), "")
		pids = pids[:maxProcesses]
	}
	boot := int64(0)
	if text, err := t.read("stat"); err == nil {
		boot = parseBootTime(text)
	}
	groups := map[string]bool{}
	for _, pid := range pids {
		if timeUp(ctx) != nil {
			miss(s, fmt.Sprintf("process %d", pid), timeUp(ctx), "")
			continue
		}
		p, ok := t.process(pid, boot)
		if !ok {
			miss(s, fmt.Sprintf("process %d", pid), errGone, "")
			continue
		}
		s.Implicated.Processes = append(s.Implicated.Processes, p)
		if p.Cgroup != "" && !groups[p.Cgroup] {
			groups[p.Cgroup] = true
			t.takeCgroup(s, pid, p.Cgroup)
		}
	}
}

var errGone = errors.New("it has exited, or is in another PID namespace")

// process reads what proc(5) tells. It fails only if the process is gone.
func (t *Taker) process(pid int, boot int64) (p evidence.Process, ok bool) {
	h, ok := t.readProcess(pid, boot)
	if !ok {
		return p, false
	}
	dir := strconv.Itoa(pid)
	p.Owner = *h.owner
	p.Runtime, p.Container = containerOf(p.Cgroup)
	if text, err := t.readFile(filepath.Join(t.cfg.ProcRoot, dir, "cmdline"), maxCommand); err == nil {
		p.Command = t.cfg.Redact(parseCommand(text))
	}
	if text, err := t.read(dir + "/status"); err == nil {
		parseStatus(text, &p)
	}
	if text, err := t.read(dir + "/limits"); err == nil {
		p.MaxFDs = parseMaxFDs(text)
	}
	if text, err := t.read(dir + "/wchan"); err == nil && text != "0" {
		p.Waiting = clean(text)
	}
	p.FDs, _ = countFDs(filepath.Join(t.cfg.ProcRoot, dir, "fd"))
	return p, true
}

// parseCommand splits a command line, whose arguments end with NUL.
func parseCommand(text string) []string {
	text = strings.TrimRight(text, "\x00")
	if text == "" {
		return nil
	}
	return strings.Split(text, "\x00")
}

// parseStatus reads /proc/PID/status.
func parseStatus(text string, p *evidence.Process) {
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		value = strings.TrimSpace(value)
		switch name {
		case "State":
			p.State = strings.Join(strings.Fields(value), " ")
		case "Threads":
			p.Threads, _ = strconv.Atoi(value)
		case "VmRSS":
			p.Resident = kilobytes(value)
		}
	}
}

// kilobytes reads "12 kB".
func kilobytes(value string) uint64 {
	n, _ := strconv.ParseUint(strings.TrimSuffix(value, " kB"), 10, 54)
	return n << 10
}

// parseMaxFDs reads the soft limit of open files from /proc/PID/limits; 0 if there
// is none.
func parseMaxFDs(text string) uint64 {
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, "Max open files"); ok {
			first, _ := field(rest)
			n, _ := strconv.ParseUint(first, 10, 64)
			return n
		}
	}
	return 0
}

// countFDs counts open descriptors: since Linux 6.2 they are the size of the
// directory (proc_readfd_count in fs/proc/fd.c).
func countFDs(dir string) (int, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err == nil && st.Size > 0 {
		return int(st.Size), nil
	}
	names, err := readNames(dir)
	return len(names), err
}

// containerOf finds a container's id in a cgroup path.
func containerOf(path string) (runtime, id string) {
	parts := strings.Split(path, "/")
	for i := len(parts) - 1; i >= 0; i-- {
		name := strings.TrimSuffix(parts[i], ".scope")
		for prefix, runtime := range scopePrefixes {
			if id, ok := strings.CutPrefix(name, prefix); ok && isID(id) {
				return runtime, id
			}
		}
		if name, ok := strings.CutPrefix(name, "lxc.payload."); ok {
			return "lxc", name
		}
		if i == 0 {
			break
		}
		switch parent := parts[i-1]; {
		case parent == "lxc" && name != "":
			return "lxc", name
		case isID(name) && parent == "docker":
			return "docker", name
		case isID(name) && strings.Contains(path, "kubepods"):
			return "cri", name
		case isID(name) && strings.HasPrefix(parent, "libpod"):
			return "podman", name
		}
	}
	return "", ""
}

// scopePrefixes lead the names of the scopes that runtimes make.
var scopePrefixes = map[string]string{
	"docker-": "docker", "cri-containerd-": "containerd", "nerdctl-": "containerd", "crio-": "crio", "libpod-": "podman",
}

// isID tells whether s is a container's id: 64 hexadecimal digits.
func isID(s string) bool {
	return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == ""
}

// takeCgroup reads the control group of a process.
func (t *Taker) takeCgroup(s *evidence.Snapshot, pid int, path string) {
	text, err := t.read(strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		miss(s, "control group "+path, err, "")
		return
	}
	g := evidence.Cgroup{Path: path}
	found := false
	for _, dir := range cgroupDirs(t.cfg.CgroupRoot, text) {
		found = t.cgroup(dir, &g) || found
	}
	if !found {
		miss(s, "control group "+path, fmt.Errorf("read its files below %s: %w", t.cfg.CgroupRoot, fs.ErrNotExist), "mount cgroup2 with the controllers cpu and memory")
		return
	}
	s.Implicated.Cgroups = append(s.Implicated.Cgroups, g)
}

// cgroupDirs are the directories of a process' control groups that have the CPU
// and memory controllers, from /proc/PID/cgroup: those of version 1 by their
// names, that of version 2 at the root or, beside version 1, in "unified". Paths
// that lead out of a cgroup namespace ("/../..") stay below the root.
func cgroupDirs(root, text string) (dirs []string) {
	for line := range strings.Lines(text) {
		f := strings.SplitN(strings.TrimRight(line, "\n"), ":", 3)
		if len(f) < 3 {
			continue
		}
		path := filepath.Clean("/" + f[2])
		if f[0] == "0" && f[1] == "" {
			dirs = append(dirs, filepath.Join(root, path), filepath.Join(root, "unified", path))
			continue
		}
		for _, controller := range strings.Split(f[1], ",") {
			if controller == "cpu" || controller == "memory" {
				dirs = append(dirs, filepath.Join(root, f[1], path))
			}
		}
	}
	return dirs
}

// cgroup reads what files there are in one directory.
func (t *Taker) cgroup(dir string, g *evidence.Cgroup) (found bool) {
	for name, parse := range cgroupFiles {
		text, err := t.readFile(filepath.Join(dir, name), maxCommand)
		if err != nil {
			continue
		}
		parse(text, g)
		found = true
	}
	return found
}

// cgroupFiles are the files of both versions (Documentation/admin-guide/cgroup-v2.rst,
// cgroup-v1/memory.rst, scheduler/sched-bwc.rst).
var cgroupFiles = map[string]func(string, *evidence.Cgroup){
	"cpu.stat":              parseCPUStat,
	"memory.events":         parseMemoryEvents,
	"memory.oom_control":    parseMemoryEvents,
	"memory.current":        func(s string, g *evidence.Cgroup) { g.Memory = number(s) },
	"memory.usage_in_bytes": func(s string, g *evidence.Cgroup) { g.Memory = number(s) },
	"memory.max":            func(s string, g *evidence.Cgroup) { g.MaxMemory = number(s) },
	"memory.limit_in_bytes": func(s string, g *evidence.Cgroup) { g.MaxMemory = limited(number(s)) },
	"memory.failcnt":        func(s string, g *evidence.Cgroup) { g.AtMax = number(s) },
	"cpu.pressure":          pressureOf("cpu"),
	"io.pressure":           pressureOf("io"),
	"memory.pressure":       pressureOf("memory"),
}

func pressureOf(resource string) func(string, *evidence.Cgroup) {
	return func(text string, g *evidence.Cgroup) {
		p, ok := parsePressure(text)
		if !ok {
			return
		}
		if g.Pressure == nil {
			g.Pressure = map[string]evidence.Pressure{}
		}
		g.Pressure[resource] = p
	}
}

// number reads one number; "max" and what is none read as 0.
func number(text string) uint64 {
	n, _ := strconv.ParseUint(strings.TrimSpace(text), 10, 64)
	return n
}

// limited is 0 for version 1's way to say that there is no limit: the largest
// number of whole pages (PAGE_COUNTER_MAX).
func limited(n uint64) uint64 {
	if n >= 1<<62 {
		return 0
	}
	return n
}

// parseCPUStat reads times in microseconds (version 2) or nanoseconds.
func parseCPUStat(text string, g *evidence.Cgroup) {
	for name, n := range namedNumbers(text) {
		switch name {
		case "nr_periods":
			g.Periods = n
		case "nr_throttled":
			g.Throttled = n
		case "throttled_usec":
			g.ThrottledTime = microseconds(n)
		case "throttled_time":
			g.ThrottledTime = nanoseconds(n)
		}
	}
}

func parseMemoryEvents(text string, g *evidence.Cgroup) {
	for name, n := range namedNumbers(text) {
		switch name {
		case "max":
			g.AtMax = n
		case "oom_kill":
			g.Kills = n
		}
	}
}
