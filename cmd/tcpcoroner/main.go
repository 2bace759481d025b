// Command tcpcoroner records TCP headers in memory, keeps the moments in which
// connections were reset, and says who reset them. `tcpcoroner run` is the
// daemon; the other verbs ask it over a Unix socket.
//
// This is the only package that wires the others, handles signals and talks to
// the service manager.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"tcpcoroner/exporter/api"
)

// version is set by the package build (-X main.version=...).
var version = "0.1.0-dev"

// The exit codes, as tcpcoroner(1) documents them.
const (
	exitOK          = 0
	exitError       = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitUnreachable = 4
	exitProblems    = 5
)

// usageError is a mistake in what the person typed or wrote into a file.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// env is the world of a command, so that tests can run whole commands.
type env struct {
	stdout, stderr io.Writer
	getenv         func(string) string
	socket         string
	json           bool
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// A reader that went away (head, grep -q) ends the program quietly.
	signal.Ignore(syscall.SIGPIPE)
	os.Exit(run(ctx, &env{stdout: os.Stdout, stderr: os.Stderr, getenv: os.Getenv}, os.Args[1:]))
}

// run executes one command line and returns its exit code.
func run(ctx context.Context, e *env, args []string) int {
	root := rootCommand(e)
	root.SetArgs(args)
	root.SetOut(e.stdout)
	root.SetErr(e.stderr)
	err := root.ExecuteContext(ctx)
	if err == nil || errors.Is(err, syscall.EPIPE) {
		return exitOK
	}
	fmt.Fprintf(e.stderr, "tcpcoroner: %v\n", err)
	return exitCode(err)
}

func exitCode(err error) int {
	var usage usageError
	var remote *api.Error
	switch {
	case errors.Is(err, errProblems):
		return exitProblems
	case errors.As(err, &usage):
		return exitUsage
	case errors.Is(err, api.ErrUnreachable):
		return exitUnreachable
	case errors.As(err, &remote) && remote.Code == api.CodeNotFound:
		return exitNotFound
	case errors.As(err, &remote) && remote.Code == api.CodeUsage:
		return exitUsage
	}
	return exitError
}

const defaultSocket = "/run/tcpcoroner/control.sock"

func rootCommand(e *env) *cobra.Command {
	root := &cobra.Command{
		Use:   "tcpcoroner",
		Short: "who reset the TCP connection, and the proof",
		Long: "tcpcoroner keeps a rolling buffer of TCP headers in memory. When connections are reset, a listen queue\n" +
			"overflows or the connection-tracking table fills up, it keeps that moment with the sockets, processes and\n" +
			"counters of the host, and says who is responsible.\n\n" +
			"ID is an incident's id, the beginning of one that no other id has, its trace id, or \"last\".\n\n" +
			"Exit codes: 0 ok, 1 error, 2 usage or configuration, 3 no such incident, 4 daemon not reachable,\n5 doctor found what does not work.\n\n" +
			"Data goes to standard output, messages to standard error. Times are local in tables and UTC in JSON.",
		SilenceUsage: true, SilenceErrors: true, Version: version,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w (see `%s --help`)", err, c.CommandPath())}
	})
	socket := e.getenv("TCPCORONER_SOCKET")
	if socket == "" {
		socket = defaultSocket
	}
	root.PersistentFlags().StringVar(&e.socket, "socket", socket, "the daemon's control socket (or $TCPCORONER_SOCKET)")
	root.PersistentFlags().BoolVar(&e.json, "json", false, "print JSON")
	root.AddCommand(runCommand(e), statusCommand(e), freezeCommand(e), incidentsCommand(e), showCommand(e),
		pullCommand(e), selftestCommand(e), doctorCommand(e), versionCommand(e), manCommand(e),
		triggersCommand(e), observeCommand(e), replayCommand(e), explainCommand(e), verifyCommand(e))
	return root
}

// usageArgs makes a wrong number of arguments a usage error that names the fix.
func usageArgs(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if err := check(c, args); err != nil {
			return usageError{fmt.Errorf("%w (usage: %s)", err, c.UseLine())}
		}
		return nil
	}
}
