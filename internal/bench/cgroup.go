package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// cgroups is where control groups are mounted.
const cgroups = "/sys/fs/cgroup"

// group is a control group for processor time. It is of the first version where
// the machine has the cpu controller there.
type group struct {
	dir string
	v1  bool
}

// newGroup makes a control group.
func newGroup() (*group, error) {
	g := &group{dir: filepath.Join(cgroups, groupName())}
	if _, err := os.Stat(filepath.Join(cgroups, "cgroup.controllers")); err != nil {
		g = &group{dir: filepath.Join(cgroups, "cpu", groupName()), v1: true}
	} else if err := set(filepath.Join(cgroups, "cgroup.subtree_control"), "+cpu"); err != nil {
		return nil, err
	}
	if err := os.Mkdir(g.dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("make control group: %w", err)
	}
	return g, nil
}

func groupName() string { return "bench-" + strconv.Itoa(os.Getpid()) }

// set writes to a file of the kernel, which has to be there.
func set(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("set control group: %w", err)
	}
	_, err = f.WriteString(value)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write %q to %s: %w", value, path, err)
	}
	return nil
}

// add moves a process, all of its threads, into the group.
func (g *group) add(pid int) error {
	return set(filepath.Join(g.dir, "cgroup.procs"), strconv.Itoa(pid))
}

// limit gives the group run of processor time in each period.
func (g *group) limit(run, period time.Duration) error {
	us := func(d time.Duration) string { return strconv.FormatInt(d.Microseconds(), 10) }
	if !g.v1 {
		return set(filepath.Join(g.dir, "cpu.max"), us(run)+" "+us(period))
	}
	return errors.Join(set(filepath.Join(g.dir, "cpu.cfs_period_us"), us(period)), set(filepath.Join(g.dir, "cpu.cfs_quota_us"), us(run)))
}

func (g *group) unlimit() error {
	if !g.v1 {
		return set(filepath.Join(g.dir, "cpu.max"), "max")
	}
	return set(filepath.Join(g.dir, "cpu.cfs_quota_us"), "-1")
}

// remove waits a moment for the last process of the group to be gone.
func (g *group) remove() (err error) {
	for range 50 {
		if err = os.Remove(g.dir); err == nil || errors.Is(err, os.ErrNotExist) {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return fmt.Errorf("remove control group: %w", err)
}
