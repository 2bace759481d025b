package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// proc is where the kernel tells of processes.
const proc = "/proc"

func loadAverage() string {
	text, err := os.ReadFile(filepath.Join(proc, "loadavg"))
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(text))[:3], " ")
}

// processorTime adds up the time that the threads of processes have run, in the
// nanoseconds of the scheduler: /proc/PID/stat counts in hundredths of a second.
// The time of threads that have ended is lost, but a recorder ends none.
func processorTime(root string, pids ...int) (sum time.Duration, err error) {
	for _, pid := range pids {
		files, _ := filepath.Glob(filepath.Join(root, strconv.Itoa(pid), "task/*/schedstat"))
		if len(files) == 0 {
			return 0, fmt.Errorf("read processor time of process %d: it has ended, or the kernel has no CONFIG_SCHED_INFO", pid)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				continue // a thread that has just ended
			}
			ran, err := parseSchedstat(string(text))
			if err != nil {
				return 0, fmt.Errorf("%s: %w", file, err)
			}
			sum += ran
		}
	}
	return sum, nil
}

// parseSchedstat reads the time on a processor (Documentation/scheduler/sched-stats.rst).
func parseSchedstat(text string) (time.Duration, error) {
	fields := strings.Fields(text)
	if len(fields) != 3 {
		return 0, fmt.Errorf("%q is not three numbers", text)
	}
	n, err := strconv.ParseInt(fields[0], 10, 64)
	return time.Duration(n), err
}

// switches counts how often the threads of a process left a processor.
func switches(root string, pid int) (sum uint64, err error) {
	files, _ := filepath.Glob(filepath.Join(root, strconv.Itoa(pid), "task/*/status"))
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		s := parseStatus(text)
		sum += s["voluntary_ctxt_switches"] + s["nonvoluntary_ctxt_switches"]
	}
	if len(files) == 0 {
		return 0, fmt.Errorf("count context switches of process %d: it has ended", pid)
	}
	return sum, nil
}

// memoryOf reads VmRSS, RssAnon, RssFile and RssShmem of a process, in bytes.
func memoryOf(root string, pid int) (map[string]uint64, error) {
	text, err := os.ReadFile(filepath.Join(root, strconv.Itoa(pid), "status"))
	if err != nil {
		return nil, fmt.Errorf("read memory of process: %w", err)
	}
	s := parseStatus(text)
	out := map[string]uint64{}
	for _, name := range memoryKinds {
		out[name] = s[name] << 10
	}
	return out, nil
}

var memoryKinds = []string{"VmRSS", "RssAnon", "RssFile", "RssShmem"}

// parseStatus reads the lines "Name: number" and "Name: number kB" of
// /proc/PID/status, in the unit of the line.
func parseStatus(text []byte) map[string]uint64 {
	out := map[string]uint64{}
	for line := range bytes.Lines(text) {
		name, value, _ := strings.Cut(string(line), ":")
		fields := strings.Fields(value)
		if len(fields) == 0 {
			continue
		}
		if n, err := strconv.ParseUint(fields[0], 10, 64); err == nil {
			out[name] = n
		}
	}
	return out
}

// children lists the processes that a process with one thread has started.
func children(root string, pid int) (list []int, err error) {
	id := strconv.Itoa(pid)
	text, err := os.ReadFile(filepath.Join(root, id, "task", id, "children"))
	if err != nil {
		return nil, fmt.Errorf("list children of process: %w", err)
	}
	for _, f := range strings.Fields(string(text)) {
		n, err := strconv.Atoi(f)
		if err != nil {
			return nil, fmt.Errorf("list children of process %d: %w", pid, err)
		}
		list = append(list, n)
	}
	if list == nil {
		return nil, fmt.Errorf("process %d has started none", pid)
	}
	return list, nil
}
