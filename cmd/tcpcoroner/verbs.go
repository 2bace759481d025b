package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"tcpcoroner/exporter/api"
	"tcpcoroner/exporter/report"
)

func (e *env) client() *api.Client { return api.NewClient(e.socket) }

// print writes v as indented JSON.
func (e *env) print(v any) error {
	enc := json.NewEncoder(e.stdout)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

func statusCommand(e *env) *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "how the recorder is: buffer, triggers, incidents, export", Args: usageArgs(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := e.client().Status(c.Context())
			if err != nil {
				return err
			}
			if e.json {
				return e.print(s)
			}
			return writeStatus(e.stdout, &s)
		},
	}
}

func freezeCommand(e *env) *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use: "freeze --reason TEXT", Short: "keep the present moment as an incident", Args: usageArgs(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			f, err := e.client().Freeze(c.Context(), reason)
			if err != nil {
				return err
			}
			if e.json {
				return e.print(f)
			}
			if f.Joined {
				fmt.Fprintln(e.stderr, "joined the incident that was open")
			}
			_, err = fmt.Fprintln(e.stdout, f.ID)
			return err
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why, for the report")
	return c
}

func incidentsCommand(e *env) *cobra.Command {
	var limit int
	c := &cobra.Command{
		Use: "incidents", Aliases: []string{"ls"}, Short: "list the incidents, newest first", Args: usageArgs(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			if limit < 0 {
				return usageError{fmt.Errorf("--limit %d: give a number from 0 (0 lists all)", limit)}
			}
			list, err := e.client().Incidents(c.Context(), limit)
			if err != nil {
				return err
			}
			if e.json {
				return e.print(list)
			}
			return report.List(e.stdout, list, time.Local)
		},
	}
	c.Flags().IntVar(&limit, "limit", 0, "list at most this many, 0 for all")
	return c
}

func showCommand(e *env) *cobra.Command {
	return &cobra.Command{
		Use: "show ID|last", Short: "tell what happened in an incident, with the evidence", Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			inc, err := e.client().Incident(c.Context(), args[0])
			if err != nil {
				return err
			}
			if e.json {
				return e.print(inc)
			}
			return report.Text(e.stdout, inc, time.Local)
		},
	}
}

func pullCommand(e *env) *cobra.Command {
	var out string
	c := &cobra.Command{
		Use: "pull ID|last [-o FILE|-]", Short: "write an incident's packets as pcapng, for Wireshark", Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			if out == "-" {
				return e.pullTo(c.Context(), args[0], e.stdout)
			}
			return e.pullFile(c.Context(), args[0], out)
		},
	}
	c.Flags().StringVarP(&out, "output", "o", "", "file to write, - for standard output (default tcpcoroner-ID.pcapng)")
	return c
}

func (e *env) pullTo(ctx context.Context, ref string, w io.Writer) error {
	if f, ok := w.(*os.File); ok {
		if info, err := f.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
			return usageError{errors.New("standard output is a terminal: give -o FILE, or pipe it into `wireshark -k -i -`")}
		}
	}
	return e.client().Capture(ctx, ref, w)
}

// pulled is what `pull --json` prints.
type pulled struct {
	ID    string `json:"id"`
	File  string `json:"file"`
	Bytes int64  `json:"bytes"`
}

// pullFile writes beside the target and renames: there is never half a capture.
func (e *env) pullFile(ctx context.Context, ref, out string) error {
	inc, err := e.client().Incident(ctx, ref)
	if err != nil {
		return err
	}
	if out == "" {
		out = "tcpcoroner-" + inc.ID + ".pcapng"
	}
	n, err := writeWhole(out, func(w io.Writer) error { return e.client().Capture(ctx, inc.ID, w) })
	if err != nil {
		return fmt.Errorf("write capture: %w", err)
	}
	if e.json {
		return e.print(pulled{inc.ID, out, n})
	}
	fmt.Fprintf(e.stderr, "%s: incident %s, %d packets, %d with RST\n", out, inc.ID, inc.Window.PacketCount, inc.Window.ResetCount)
	return nil
}

func writeWhole(path string, write func(io.Writer) error) (n int64, err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".tcpcoroner-*")
	if err != nil {
		return 0, err
	}
	defer func() { _ = os.Remove(f.Name()) }() // fails after the rename, as it should
	if err := errors.Join(write(f), f.Sync()); err != nil {
		return 0, errors.Join(err, f.Close())
	}
	info, err := f.Stat()
	if err != nil {
		return 0, errors.Join(err, f.Close())
	}
	return info.Size(), errors.Join(f.Close(), os.Rename(f.Name(), path))
}

func versionCommand(e *env) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "print the version", Args: usageArgs(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			if e.json {
				return e.print(map[string]string{"version": version})
			}
			_, err := fmt.Fprintln(e.stdout, version)
			return err
		},
	}
}

// manCommand writes the section 1 pages; the package build calls it.
func manCommand(e *env) *cobra.Command {
	return &cobra.Command{
		Use: "man DIR", Short: "write the manual pages into DIR", Hidden: true, Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			root := c.Root()
			root.DisableAutoGenTag = true
			header := &doc.GenManHeader{Title: "TCPCORONER", Section: "1", Source: "tcpcoroner", Manual: "tcpcoroner manual"}
			if err := doc.GenManTree(root, header, args[0]); err != nil {
				return fmt.Errorf("write manual pages to %s: %w", args[0], err)
			}
			return nil
		},
	}
}
