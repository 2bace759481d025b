package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"tcpcoroner/evidence"
	"tcpcoroner/exporter/api"
	"tcpcoroner/recorder"
	"tcpcoroner/triggers"
)

func triggersCommand(e *env) *cobra.Command {
	c := &cobra.Command{
		Use: "triggers", Short: "what each trigger measures now, its threshold, and when it fired last", Args: usageArgs(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := e.client().Status(c.Context())
			if err != nil {
				return err
			}
			if e.json {
				return e.print(s.Triggers)
			}
			return writeTriggers(e.stdout, s.Triggers)
		},
	}
	c.AddCommand(triggersReplayCommand(e))
	return c
}

func writeTriggers(w io.Writer, all []api.TriggerStatus) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "TRIGGER\tSTATE\tVALUE\tTHRESHOLD\tUSUAL\tUNIT\tFIRED\tHELD BACK\tLAST FIRED\tREMARK")
	quiet, places := 0, map[string]bool{}
	for _, g := range all {
		if g.Namespace != "" && uneventful(&g) {
			quiet, places[g.Namespace] = quiet+1, true
			continue
		}
		last := "never"
		if !g.LastFired.IsZero() {
			last = humanize.Time(g.LastFired)
		}
		fmt.Fprintf(t, "%s\t%s\t%.4g\t%.4g\t%.3g\t%s\t%d\t%d\t%s\t%s\n", placed(&g), g.State, g.Value, g.Threshold, g.Baseline,
			strings.Trim(g.Unit, "{}"), g.Fired, g.Suppressed, last, remark(&g))
	}
	if err := t.Flush(); err != nil || quiet == 0 {
		return err
	}
	_, err := fmt.Fprintf(w, "and %d of %d other network namespaces that have nothing to tell; --json lists them\n", quiet, len(places))
	return err
}

// uneventful tells whether a trigger of another namespace has nothing to tell.
func uneventful(g *api.TriggerStatus) bool {
	return g.Fired+g.Suppressed+g.WouldHaveFired == 0 && (g.State == string(triggers.Armed) || g.State == string(triggers.Disabled) ||
		g.State == string(triggers.Unavailable))
}

func placed(g *api.TriggerStatus) string {
	if g.Namespace == "" {
		return g.Name
	}
	return g.Name + "@" + g.Namespace
}

func remark(g *api.TriggerStatus) string {
	if g.DryRun {
		return fmt.Sprintf("dry run: would have fired %d times", g.WouldHaveFired)
	}
	return strings.ReplaceAll(g.Why, "\n", "; ")
}

// tuning is what `triggers replay` was asked for.
type tuning struct{ config, local, localMAC string }

func triggersReplayCommand(e *env) *cobra.Command {
	var o tuning
	c := &cobra.Command{
		Use: "replay FILE... [--config FILE]", Short: "what the trigger resets would have done on captures", Args: usageArgs(cobra.MinimumNArgs(1)),
		Long: "replay lets the packets of captures pass the trigger \"resets\", at their own pace, with the thresholds of a\n" +
			"configuration file, and lists what would have fired and which resets were harmless. It needs no daemon.",
		RunE: func(_ *cobra.Command, args []string) error { return e.tune(args, o) },
	}
	c.Flags().StringVar(&o.config, "config", "", "configuration file (default "+defaultConfigFile+" if it exists)")
	c.Flags().StringVar(&o.local, "local", "", "addresses or networks of the host of the captures, separated by commas")
	c.Flags().StringVar(&o.localMAC, "local-mac", "", "link-layer addresses of that host, separated by commas")
	return c
}

func (e *env) tune(files []string, o tuning) error {
	cfg, err := loadConfig(o.config)
	if err != nil {
		return err
	}
	here, err := parseLocality(o.local, o.localMAC)
	if err != nil {
		return usageError{err}
	}
	w, damage := readCaptures(files)
	here.orient(w.Packets)
	scorer, err := recorder.NewScorer()
	if err != nil {
		return errors.Join(damage, err)
	}
	defer func() { _ = scorer.Close() }()
	out, err := triggers.Replay(packetsOf(&w), scorer, cfg.Triggers.Resets, cfg.Triggers.SetConfig)
	if err != nil {
		return errors.Join(damage, err)
	}
	if e.json {
		return errors.Join(e.print(out), damage)
	}
	return errors.Join(writeReplayed(e.stdout, &out), damage)
}

func packetsOf(w *evidence.Window) func(func(*evidence.Packet) bool) error {
	return func(yield func(*evidence.Packet) bool) error {
		for i := range w.Packets {
			if !yield(&w.Packets[i]) {
				break
			}
		}
		return nil
	}
}

func writeReplayed(w io.Writer, out *triggers.Replayed) error {
	text := fmt.Sprintf("%s packets in %s: %s connections ended; %d firings\n", humanize.Comma(int64(out.Packets)),
		out.To.Sub(out.From).Round(time.Millisecond), humanize.Comma(int64(out.Harm.Closes)), len(out.Firings))
	for _, f := range out.Firings {
		text += fmt.Sprintf("%s  %s\n", f.Time.UTC().Format(stampUTC), f.Reason)
	}
	for k, n := range out.Harm.Kinds {
		if kind := evidence.HarmKind(k); n > 0 {
			what := "harmless"
			if kind.Harmful() {
				what = "harmful"
			}
			text += fmt.Sprintf("%8s  %s: %v\n", humanize.Comma(int64(n)), what, kind)
		}
	}
	_, err := io.WriteString(w, text)
	return err
}
