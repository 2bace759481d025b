// Command bench compares the recorder with tcpdump and dumpcap on one machine:
// processor time, losses, bytes kept, and what it costs the host. Its one job is
// to measure the product as it is installed, from outside: it starts the built
// program, imports none of its packages, and ships with nothing.
// packaging/bench builds and runs it; docs/performance.md tells the method.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// part is one table of the comparison.
type part struct {
	name, help string
	run        func(context.Context, *bench) error
}

// parts stand in the order in which they run.
func parts() []part {
	return []part{
		{"truth", "packets and resets counted against those sent", truth},
		{"cpu", "processor time per packet, steady and as fast as it goes", processor},
		{"tax", "what a capture costs the whole machine, the kernel's part included", tax},
		{"flatout", "losses beside two busy processes, also while freezing", flatOut},
		{"quota", "packets per second without loss in 1 % of a processor", quota},
		{"retain", "bytes per packet of real traffic, and every field compared", retain},
		{"freeze", "a freeze of a full buffer under full load, and its pull", freeze},
		{"snapshot", "a look at a host with many sockets and processes, while it records", snapshots},
		{"host", "what a web server's requests cost more", host},
		{"kernel", "what the programs in the kernel cost connections, and a port scan", kernelPrograms},
		{"idle", "the bill of doing nothing", idle},
		{"benign", "resets that do no harm, a real browser's among them, for -minutes: no trigger may wake anybody", benign},
		{"memory", "memory under a flood of connections, freezes and flapping interfaces", memory},
	}
}

// bench is one run of the program.
type bench struct {
	program string // the built tcpcoroner
	dir     string // on a tmpfs
	quick   bool
	minutes float64 // of the part benign
	force   bool
	made    int // namespaces, to give each its name
	out     io.Writer
	report  report
	mu      sync.Mutex
	undo    []func() error
}

// pick is the full or the quick size of something.
func pick[T any](b *bench, full, quick T) T {
	if b.quick {
		return quick
	}
	return full
}

func main() {
	if len(os.Args) == 2 && os.Args[1] == hogVerb {
		hog()
	}
	if len(os.Args) == 3 && os.Args[1] == serveVerb {
		fmt.Fprintln(os.Stderr, "bench:", serve(os.Args[2]))
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	if err := start(ctx, os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func start(ctx context.Context, args []string) error {
	b := &bench{out: os.Stdout}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.StringVar(&b.program, "program", "", "the built tcpcoroner")
	flags.BoolVar(&b.quick, "quick", false, "small numbers: shows that everything works, measures little")
	flags.Float64Var(&b.minutes, "minutes", 0, "how long the part benign lasts: 30, or 1 with -quick")
	flags.BoolVar(&b.force, "force", false, "print ratios although tcpdump's figures vary too much")
	jsonFile := flags.String("json", "", "also write the tables to this file")
	flags.Usage = func() { usage(flags) }
	names, err := parse(flags, args)
	if err != nil {
		return err
	}
	chosen, err := choose(names)
	if err != nil {
		return err
	}
	if b.program, err = executable(b.program); err != nil {
		return err
	}
	err = b.run(ctx, chosen)
	if *jsonFile != "" {
		err = errors.Join(err, b.report.write(*jsonFile))
	}
	return err
}

// parse takes flags before, between and behind the names of parts.
func parse(flags *flag.FlagSet, args []string) (names []string, err error) {
	for err = flags.Parse(args); err == nil && flags.NArg() > 0; err = flags.Parse(flags.Args()[1:]) {
		names = append(names, flags.Arg(0))
	}
	return names, err
}

func usage(flags *flag.FlagSet) {
	fmt.Fprintln(flags.Output(), "usage: bench -program FILE [-quick] [-force] [-minutes N] [-json FILE] [PART...]")
	flags.PrintDefaults()
	fmt.Fprintln(flags.Output(), "parts, all of them if none is named:")
	for _, p := range parts() {
		fmt.Fprintf(flags.Output(), "  %-8s %s\n", p.name, p.help)
	}
}

// choose finds the parts by their names.
func choose(names []string) (chosen []part, err error) {
	if len(names) == 0 {
		return parts(), nil
	}
	for _, name := range names {
		found := false
		for _, p := range parts() {
			if p.name == name {
				chosen, found = append(chosen, p), true
			}
		}
		if !found {
			return nil, fmt.Errorf("part %q is not known: -h lists them", name)
		}
	}
	return chosen, nil
}

func executable(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err == nil {
		_, err = exec.LookPath(path)
	}
	if err != nil {
		return "", fmt.Errorf("find the program to measure: %w: give -program the built tcpcoroner", err)
	}
	return path, nil
}

// run works through the parts. One that fails leaves the others to be run.
func (b *bench) run(ctx context.Context, chosen []part) (err error) {
	defer func() { err = errors.Join(err, b.close()) }()
	if b.dir, err = os.MkdirTemp(tmpfs, "tcpcoroner-bench-"); err != nil {
		return fmt.Errorf("make a directory for captures: %w", err)
	}
	b.defers(func() error { return os.RemoveAll(b.dir) })
	b.report.describe()
	fmt.Fprint(b.out, b.report.head())
	var errs []error
	for _, p := range chosen {
		fmt.Fprintf(b.out, "\n%s: %s (load %s, %s)\n", p.name, p.help, loadAverage(), time.Now().Format("15:04:05"))
		b.report.begin(p)
		if err := errors.Join(p.run(ctx, b), b.unwind(1)); err != nil { // all but the directory
			b.say("FAILED: %v", err)
			errs = append(errs, fmt.Errorf("%s: %w", p.name, err))
		}
		if ctx.Err() != nil {
			return errors.New("interrupted")
		}
	}
	fmt.Fprintf(b.out, "\n%s", b.report.verdict())
	return errors.Join(errs...)
}

// tmpfs is where captures go: so a disk excuses nobody.
const tmpfs = "/dev/shm"

// defers remembers how to undo something; the last is undone first.
func (b *bench) defers(f func() error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.undo = append(b.undo, f)
}

// mark is for unwind, to undo what comes after it.
func (b *bench) mark() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.undo)
}

// unwind undoes all but the first keep.
func (b *bench) unwind(keep int) error {
	b.mu.Lock()
	list := b.undo[keep:]
	b.undo = b.undo[:keep:keep]
	b.mu.Unlock()
	var errs []error
	for _, f := range slices.Backward(list) {
		errs = append(errs, f())
	}
	return errors.Join(errs...)
}

func (b *bench) close() error { return b.unwind(0) }

// say prints a line of progress.
func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(b.out, "  "+strings.TrimSuffix(format, "\n")+"\n", args...)
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
