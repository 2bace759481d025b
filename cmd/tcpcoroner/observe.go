package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tcpcoroner/evidence"
	"tcpcoroner/triggers"
)

// The environment of a test bench, which may set what the flags do not.
const (
	envInterfaces = "LAB_IFACES"
	envRoles      = "LAB_ROLES"
	envOut        = "LAB_OUT"
	envVantage    = "LAB_VANTAGE"
	// productFile is what is written into the directory that envOut names.
	productFile = "product.json"
)

// observation is what `observe` was asked for.
type observation struct {
	outcome
	capture string
	limit   time.Duration
	// kernel is the most that is asked of the kernel itself: a level.
	kernel string
	// interfaces must be there: otherwise it is the wrong network namespace.
	interfaces []string
}

func observeCommand(e *env) *cobra.Command {
	var o observation
	c := &cobra.Command{
		Use: "observe [--roles FILE] [--format text|json|rstlab-verdict/1] [--out FILE] [--for DURATION] [--kernel LEVEL]", Args: usageArgs(cobra.NoArgs),
		Short: "record until SIGINT without installation, then tell what was reset, by whom and why",
		Long: "observe records the network namespace it is started in until it gets SIGINT or SIGTERM, or for a duration, and\n" +
			"then judges all that it saw as one incident. It needs no configuration, no service and no directory. What it keeps\n" +
			"meanwhile, the last hour at most, is removed when it ends. A trigger of the daemon that fires is told at once.\n\n" +
			"Where set, LAB_ROLES names the roles file, LAB_OUT a directory to write product.json to, LAB_VANTAGE this host,\n" +
			"and LAB_IFACES interfaces that must be there; flags win.",
		RunE: func(c *cobra.Command, _ []string) error { return e.observe(c.Context(), o) },
	}
	o.flags(c)
	c.Flags().StringVar(&o.capture, "capture", "", "`file` to write the packets to as pcapng, headers only, for Wireshark and verify")
	c.Flags().DurationVar(&o.limit, "for", 0, "how long to record (default until SIGINT)")
	c.Flags().StringVar(&o.kernel, "kernel", evidence.LevelFull, "the most to ask of the kernel itself: `level` "+strings.Join(kernelLevels, ", "))
	return c
}

// fromEnvironment fills what no flag said.
func (o *observation) fromEnvironment(getenv func(string) string) {
	o.interfaces = listOf(getenv(envInterfaces))
	o.vantage = getenv(envVantage)
	if o.roles == "" {
		o.roles = getenv(envRoles)
	}
	if dir := getenv(envOut); dir != "" && o.out == "" {
		o.out = filepath.Join(dir, productFile)
	}
}

// validate finds before recording what would spoil the telling after it.
func (o *observation) validate(e *env) error {
	if err := o.check(e); err != nil {
		return err
	}
	if o.limit < 0 {
		return usageError{fmt.Errorf("--for is %v: give a duration such as 30s", o.limit)}
	}
	if !slices.Contains(kernelLevels, o.kernel) {
		return usageError{fmt.Errorf("--kernel is %q: must be %s", o.kernel, strings.Join(kernelLevels, ", "))}
	}
	for _, file := range []string{o.out, o.capture} {
		if info, err := os.Stat(filepath.Dir(file)); err != nil || !info.IsDir() {
			return usageError{fmt.Errorf("write %s: %s is no directory: make it, or give another file", file, filepath.Dir(file))}
		}
	}
	for _, name := range o.interfaces {
		if _, err := net.InterfaceByName(name); err != nil {
			return usageError{fmt.Errorf("%s names interface %q, which is not in this network namespace: start observe where it is", envInterfaces, name)}
		}
	}
	return nil
}

func (e *env) observe(ctx context.Context, o observation) (err error) {
	o.fromEnvironment(e.getenv)
	if err := o.validate(e); err != nil {
		return err
	}
	roles, err := loadRoles(o.roles)
	if err != nil {
		return err
	}
	// Its results go to the caller, not to the tracing backend of whoever's
	// environment this is.
	if err := os.Setenv("OTEL_SDK_DISABLED", "true"); err != nil {
		return err
	}
	coarseTimers()
	limitMemory(e.getenv)
	allowThreads(e.getenv)
	dir, err := os.MkdirTemp("", "tcpcoroner-observe-")
	if err != nil {
		return fmt.Errorf("make a temporary store: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	return e.observeIn(ctx, dir, roles, o)
}

// observeIn runs the daemon in a directory, with one incident that is open from
// beginning to end, and tells that one.
func (e *env) observeIn(ctx context.Context, dir string, roles []evidence.Role, o observation) error {
	log := slog.New(slog.NewTextHandler(e.stderr, nil))
	socket := filepath.Join(dir, "control.sock")
	d, err := build(ctx, observeConfig(o.kernel), filepath.Join(dir, "data"), socket, log)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var open *openIncident
	ready := func() {
		open = d.keeper.observe(time.Now(), roles)
		if o.limit > 0 {
			time.AfterFunc(o.limit, stop)
		}
		log.Info("recording", "version", version, "socket", socket, "memory", size(d.sizes.memory).String())
	}
	if err := d.run(ctx, ready); err != nil {
		return errors.Join(err, d.close())
	}
	return errors.Join(e.tellObserved(d, open, o), d.close())
}

// observeConfig is the daemon's, for one window that is as long as memory allows,
// and nothing is made up on loopback to test the recorder.
func observeConfig(kernel string) config {
	c := defaultConfig()
	c.Recorder.Kernel = kernel
	c.Recorder.Age = duration(observeAge)
	c.Recorder.SelfTest = 0
	c.Window.Before, c.Window.Max = 0, duration(10*time.Minute)
	return c
}

const (
	// observeAge is how far back it looks at most. The window says where it begins.
	observeAge = time.Hour
	// forever is longer than anybody observes.
	forever = 10 * 365 * 24 * time.Hour
)

// observe opens the incident that everything belongs to. It closes when the keeper
// stops; triggers that fire meanwhile join it.
func (k *keeper) observe(now time.Time, roles []evidence.Role) *openIncident {
	base := k.base(now) // the history of counters is shorter than a long observation
	k.base = func(time.Time) evidence.Counters { return base }
	k.tell = func(*evidence.Incident) {}
	o, _ := k.fire(triggers.Manual(now, "observed from beginning to end"), forever)
	k.mu.Lock()
	defer k.mu.Unlock()
	o.inc.Roles = roles
	return o
}

// tellObserved tells the incident, which the keeper closed when the daemon stopped.
func (e *env) tellObserved(d *daemon, open *openIncident, o observation) error {
	if open == nil {
		return errors.New("observe: stopped before it recorded anything")
	}
	if open.err != nil {
		return fmt.Errorf("observe: %w", open.err)
	}
	if o.vantage == "" {
		o.vantage = d.host.Name
	}
	err := o.tell(e, open.inc)
	if o.capture == "" {
		return err
	}
	_, werr := writeWhole(o.capture, func(w io.Writer) error { return backend{d}.Capture(context.Background(), open.inc.ID, w) })
	if werr != nil {
		werr = fmt.Errorf("write %s: %w", o.capture, werr)
	}
	return errors.Join(err, werr)
}
