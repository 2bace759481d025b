package snapshot

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"tcpcoroner/evidence"
)

// clockTicks is USER_HZ, the unit of times in /proc/PID/stat: 100 on every
// architecture that Go runs on (proc(5), sysconf(3) _SC_CLK_TCK).
const clockTicks = 100

// readProcess describes a process. It fails only if the process is gone: exe
// and cgroup stay empty where they cannot be read.
func (t *Taker) readProcess(pid int, boot int64) (holder, bool) {
	dir := strconv.Itoa(pid)
	stat, err := t.read(dir + "/stat")
	if err != nil {
		return holder{}, false
	}
	comm, ticks, ok := parseStat(stat)
	if !ok {
		return holder{}, false
	}
	o := &evidence.Owner{PID: pid, Comm: comm}
	if boot > 0 {
		o.Started = time.Unix(boot, 0).Add(time.Duration(ticks) * time.Second / clockTicks)
	}
	o.Exe, _ = os.Readlink(filepath.Join(t.cfg.ProcRoot, dir, "exe"))
	if status, err := t.read(dir + "/status"); err == nil {
		o.UID = parseUID(status)
	}
	if cgroup, err := t.read(dir + "/cgroup"); err == nil {
		o.Cgroup = evidence.ParseCgroup(cgroup)
		o.Unit = evidence.UnitOf(o.Cgroup)
	}
	return holder{o, ticks}, true
}

// parseStat reads the name and the start time (field 22) from /proc/PID/stat. The
// name may hold spaces and parentheses: it ends at the last one.
func parseStat(text string) (comm string, ticks uint64, ok bool) {
	from, to := strings.IndexByte(text, '('), strings.LastIndexByte(text, ')')
	if from < 0 || to < from {
		return "", 0, false
	}
	const startTime = 22 - 3 // the fields after the name begin with the third
	fields := strings.Fields(text[to+1:])
	if len(fields) <= startTime {
		return "", 0, false
	}
	ticks, err := strconv.ParseUint(fields[startTime], 10, 64)
	return text[from+1 : to], ticks, err == nil
}

// parseBootTime reads btime, in Unix seconds, from /proc/stat; 0 if it is absent.
func parseBootTime(text string) int64 {
	for line := range strings.Lines(text) {
		if digits, ok := strings.CutPrefix(line, "btime "); ok {
			n, _ := strconv.ParseInt(strings.TrimSpace(digits), 10, 64)
			return n
		}
	}
	return 0
}

// parseUID reads the effective user from /proc/PID/status.
func parseUID(text string) uint32 {
	for line := range strings.Lines(text) {
		if ids, ok := strings.CutPrefix(line, "Uid:"); ok {
			if f := strings.Fields(ids); len(f) > 1 {
				n, _ := strconv.ParseUint(f[1], 10, 32)
				return uint32(n)
			}
		}
	}
	return 0
}
