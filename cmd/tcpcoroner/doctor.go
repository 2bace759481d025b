package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"tcpcoroner/evidence"
	"tcpcoroner/exporter/api"
	"tcpcoroner/recorder/afpacket"
	"tcpcoroner/recorder/kernel"
	"tcpcoroner/recorder/logs"
	"tcpcoroner/recorder/snapshot"
)

func doctorCommand(e *env) *cobra.Command {
	data := defaultData
	c := &cobra.Command{
		Use: "doctor [--data DIR]", Short: "what this host allows the recorder to see, what it does not, and what would change that",
		Args: usageArgs(cobra.NoArgs),
		Long: "doctor checks packet capture, the kernel's own evidence with each of its hooks, connection tracking, logs and the\n" +
			"store. It asks the daemon if there is one, and else tries for itself, for a moment and with its own privileges.\n" +
			"It exits with 5 if a check FAILs; \"less\" means that everything works and tells less.",
		RunE: func(c *cobra.Command, _ []string) error { return e.doctor(c.Context(), data) },
	}
	c.Flags().StringVar(&data, "data", data, "directory for incidents, if no daemon runs")
	return c
}

// The outcomes of a check.
const (
	checkOK   = "ok"
	checkLess = "less"
	checkFail = "FAIL"
)

// check is one line of the doctor.
type check struct {
	Check string `json:"check"`
	State string `json:"state"`
	Text  string `json:"text"`
	// Fix is what would raise it.
	Fix string `json:"fix,omitempty"`
}

// schemaDoctor names the JSON layout of an examination.
const schemaDoctor = "tcpcoroner.doctor/v1"

// examination is what `doctor --json` prints.
type examination struct {
	Schema string  `json:"schema"`
	OK     bool    `json:"ok"`
	Checks []check `json:"checks"`
	// Kernel is the level of kernel evidence with all its hooks.
	Kernel evidence.KernelLevel `json:"kernel"`
}

func (x *examination) add(name, state, fix, format string, args ...any) {
	x.Checks = append(x.Checks, check{name, state, fmt.Sprintf(format, args...), fix})
	x.OK = x.OK && state != checkFail
}

// errProblems is the outcome of a check that FAILs, apart from those of a doctor
// that could not look.
var errProblems = errors.New("doctor: not everything works: see the lines that FAIL")

// doctorTime bounds each thing that is tried.
const doctorTime = 10 * time.Second

func (e *env) doctor(ctx context.Context, data string) error {
	ctx, cancel := context.WithTimeout(ctx, doctorTime)
	defer cancel()
	x := &examination{Schema: schemaDoctor, OK: true}
	s, err := e.client().Status(ctx)
	switch {
	case err == nil:
		x.ask(&s)
	case errors.Is(err, api.ErrUnreachable):
		x.add("daemon", checkLess, "systemctl start tcpcoroner", "not reachable: what follows is what this user could do here")
		x.try(data)
	default:
		return err
	}
	x.host(ctx)
	if err := e.printExamination(x); err != nil || x.OK {
		return err
	}
	return errProblems
}

// ask takes the daemon's word: it runs with other privileges than this program.
func (x *examination) ask(s *api.Status) {
	x.add("daemon", checkOK, "", "version %s, pid %d, up since %s", s.Version, s.PID, s.Started.UTC().Format(stampUTC))
	if !s.Healthy {
		x.add("recording", checkFail, "", "%s", strings.Join(s.Problems, "; "))
	}
	switch r := &s.Recorder; {
	case len(r.Interfaces) == 0:
		x.add("capture", checkLess, "record the network namespace of the traffic, if there is any", "no packet has come yet")
	case r.Dropped > 0:
		x.add("capture", checkLess, "a larger recorder.ring", "%d interfaces, %d packets seen, %d dropped by the kernel", len(r.Interfaces), r.Seen, r.Dropped)
	default:
		x.add("capture", checkOK, "", "%d interfaces, %d packets seen", len(r.Interfaces), r.Seen)
	}
	k := &s.Kernel
	x.level(evidence.KernelLevel{Name: k.Level, Why: k.Why, Raise: k.Raise, Hooks: k.Hooks})
	for _, m := range kernelLosses(k) {
		x.add(m.What, checkLess, "", "%s", m.Why)
	}
	if i := &s.Incidents; i.Failed > 0 {
		x.add("store", checkFail, "", "%d incidents could not be kept in %s: %s", i.Failed, i.Directory, i.LastError)
	} else {
		x.store(i.Directory)
	}
}

// try opens for a moment what the daemon would hold.
func (x *examination) try(data string) {
	source, err := afpacket.Open(afpacket.Config{})
	if err == nil {
		err = source.Close()
	}
	if err != nil {
		x.add("capture", checkFail, "", "%v", err)
	} else {
		x.add("capture", checkOK, "", "a packet socket with its ring can be opened")
	}
	k, err := kernel.Open(kernel.DefaultConfig())
	if err != nil {
		x.add("kernel evidence", checkFail, "", "%v", err)
	} else {
		x.level(k.Level())
		if err := k.Close(); err != nil {
			x.add("kernel evidence", checkFail, "", "%v", err)
		}
	}
	x.store(data)
}

// level tells each hook too: that one is missing may be no loss, as there are
// several ways to the same.
func (x *examination) level(l evidence.KernelLevel) {
	x.Kernel = l
	state, text := checkOK, "level "+l.Name
	if l.Name != evidence.LevelFull {
		state = checkLess
	}
	if l.Why != "" {
		text += ": " + l.Why
	}
	x.add("kernel evidence", state, l.Raise, "%s", text)
	served := map[string]bool{}
	for _, h := range l.Hooks {
		served[h.Purpose] = served[h.Purpose] || h.Attached
	}
	for _, h := range l.Hooks {
		switch {
		case h.Attached:
			x.add("hook "+h.Name, checkOK, "", "%s", h.Purpose)
		case served[h.Purpose] || strings.HasPrefix(h.Purpose, "owners of accepted") && l.Name == evidence.LevelFull:
			x.add("hook "+h.Name, checkOK, "", "%s: not needed, another serves (%s)", h.Purpose, h.Why)
		default:
			x.add("hook "+h.Name, checkLess, hookFix(&h), "%s: %s", h.Purpose, h.Why)
		}
	}
}

// hookFix is what may help a hook, by what it is.
func hookFix(h *evidence.KernelHook) string {
	if strings.HasPrefix(h.Name, "nf_") {
		return "CAP_SYS_ADMIN, a kernel with BPF trampolines, and the module nf_reject_ipv4 or nf_reject_ipv6"
	}
	return "CAP_BPF and CAP_PERFMON, and a kernel with BTF"
}

// littleRoom is less than a few large incidents take.
const littleRoom = 100 << 20

// store looks at the directory only: the database is the daemon's.
func (x *examination) store(dir string) {
	var fs unix.Statfs_t
	err := unix.Access(dir, unix.W_OK|unix.X_OK)
	if err == nil {
		err = unix.Statfs(dir, &fs)
	}
	if err != nil {
		x.add("store", checkFail, "make the directory, or give another with --data", "%s cannot be written: %v", dir, err)
		return
	}
	free := fs.Bavail * uint64(fs.Bsize)
	if free < littleRoom {
		x.add("store", checkLess, "make room: incidents may not be kept", "%s has %s left", dir, humanize.IBytes(free))
		return
	}
	x.add("store", checkOK, "", "%s can be written, %s are free", dir, humanize.IBytes(free))
}

// host looks at what is read anew for each incident.
func (x *examination) host(ctx context.Context) {
	t := snapshot.New(snapshot.Config{})
	ct, err := t.Conntrack()
	switch {
	case errors.Is(err, snapshot.ErrNoConntrack):
		x.add("connection tracking", checkOK, "", "not in use in this network namespace")
	case err != nil:
		x.add("connection tracking", checkLess, "grant CAP_NET_ADMIN", "%v", err)
	default:
		x.add("connection tracking", checkOK, "", "%d of %d connections, counters readable", ct.Count, ct.Max)
	}
	if err := t.Close(); err != nil {
		x.add("connection tracking", checkLess, "", "%v", err)
	}
	now := time.Now()
	lines, missing := logs.New(logs.Config{}).Around(ctx, logs.Query{From: now.Add(-time.Minute), To: now, Moment: now})
	x.logs(lines, missing)
}

// logs tells what could not be read once for each thing to do about it.
func (x *examination) logs(lines []evidence.LogLine, missing []evidence.Missing) {
	if len(missing) == 0 {
		x.add("logs", checkOK, "", "readable, %d lines of the last minute are worth a look", len(lines))
	}
	more := map[string]int{}
	for _, m := range missing {
		more[m.Fix]++
	}
	for _, m := range missing {
		switch n := more[m.Fix]; {
		case n > 1:
			x.add("logs", checkLess, m.Fix, "%s: %s, and %d more", m.What, m.Why, n-1)
		case n == 1:
			x.add("logs", checkLess, m.Fix, "%s: %s", m.What, m.Why)
		}
		delete(more, m.Fix)
	}
}

func (e *env) printExamination(x *examination) error {
	if e.json {
		return e.print(x)
	}
	t := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	for _, c := range x.Checks {
		text := c.Text
		if c.Fix != "" && c.State != checkOK {
			text += "; to raise it: " + c.Fix
		}
		fmt.Fprintf(t, "%s\t%s\t%s\n", c.State, c.Check, text)
	}
	return t.Flush()
}
