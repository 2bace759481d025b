package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"

	"tcpcoroner/exporter/api"
)

// writeStatus prints the daemon's state for a terminal.
func writeStatus(w io.Writer, s *api.Status) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) { fmt.Fprintf(t, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }
	health := "ok"
	if !s.Healthy {
		health = "PROBLEM: " + strings.Join(s.Problems, "; ")
	}
	line("health", "%s", health)
	line("daemon", "version %s, pid %d, up %s on %s", s.Version, s.PID, time.Since(s.Started).Round(time.Second), s.Host.Name)
	r := s.Recorder
	var names []string
	for _, i := range r.Interfaces {
		names = append(names, i.Name)
	}
	line("interfaces", "%s", strings.Join(names, " "))
	line("buffer", "%.0f s held in %s of %s", r.HeldSeconds, humanize.IBytes(r.BufferBytes), humanize.IBytes(r.BudgetBytes))
	line("packets", "%s seen, %s kept, %d dropped by the kernel, %d lost, %s evicted, %d RST",
		humanize.Comma(int64(r.Seen)), humanize.Comma(int64(r.Kept)), r.Dropped, r.Lost, humanize.Comma(int64(r.Evicted)), r.Resets)
	for _, g := range s.Triggers {
		line("trigger "+g.Name, "%s", triggerLine(&g))
	}
	line("incidents", "%s", incidentsLine(&s.Incidents))
	line("export", "%s", exportText(&s.Export))
	for _, m := range s.Missing {
		line("missing", "%s: %s %s", m.What, m.Why, m.Fix)
	}
	return t.Flush()
}

func triggerLine(g *api.TriggerStatus) string {
	text := g.State
	if g.Threshold > 0 {
		text += ": " + levels(g)
	}
	text += fmt.Sprintf("; fired %d", g.Fired)
	if g.Suppressed > 0 {
		text += fmt.Sprintf(", suppressed %d", g.Suppressed)
	}
	if g.Why != "" {
		text += "; " + g.Why
	}
	return text
}

// levels prints value and threshold; units are those of UCUM: "1" is a share,
// "{reset}" counts.
func levels(g *api.TriggerStatus) string {
	if g.Unit == "1" {
		return fmt.Sprintf("%.0f %% of at most %.0f %%", 100*g.Value, 100*g.Threshold)
	}
	return fmt.Sprintf("%.4g of %.4g %ss, usual %.3g", g.Value, g.Threshold, strings.Trim(g.Unit, "{}"), g.Baseline)
}

func incidentsLine(i *api.IncidentsStatus) string {
	text := fmt.Sprintf("%d stored, %s in %s", i.Stored, humanize.IBytes(i.Bytes), i.Directory)
	if i.Last != "" {
		text += fmt.Sprintf(", last %s %s", i.Last, humanize.Time(i.LastTime))
	}
	if i.Open {
		text += ", one is open"
	}
	return text
}

func exportText(x *api.ExportStatus) string {
	if !x.Configured {
		return "off: set OTEL_EXPORTER_OTLP_ENDPOINT to send incidents to a tracing backend"
	}
	text := fmt.Sprintf("to %s: %d sent, %d pending, %d failed tries, %d rejected", x.Endpoint, x.Sent, x.Pending, x.Failed, x.Rejected)
	if x.LastError != "" {
		text += "; last error: " + x.LastError
	}
	return text
}
