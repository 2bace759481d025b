package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"

	"tcpcoroner/evidence"
	"tcpcoroner/exporter/api"
	"tcpcoroner/recorder"
)

// writeStatus prints the daemon's state for a terminal.
func writeStatus(w io.Writer, s *api.Status) error {
	t, line := statusTable(w)
	health := "ok"
	if !s.Healthy {
		health = "PROBLEM: " + strings.Join(s.Problems, "; ")
	}
	line("health", "%s", health)
	line("daemon", "version %s, pid %d, up %s on %s", s.Version, s.PID, time.Since(s.Started).Round(time.Second), s.Host.Name)
	writeRecorder(line, &s.Recorder, time.Since(s.Started))
	line("harm", "%s", harmLine(&s.Harm))
	line("kernel", "%s", kernelLine(&s.Kernel))
	for _, g := range s.Triggers {
		if g.Namespace == "" || !uneventful(&g) {
			line("trigger "+placed(&g), "%s", triggerLine(&g))
		}
	}
	line("incidents", "%s", incidentsLine(&s.Incidents))
	line("export", "%s", exportText(&s.Export))
	for _, m := range s.Missing {
		line("missing", "%s: %s %s", m.What, m.Why, m.Fix)
	}
	return t.Flush()
}

// printLine prints a line of the status: its name, and the rest of it.
type printLine func(name, format string, args ...any)

func statusTable(w io.Writer) (*tabwriter.Writer, printLine) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	return t, func(name, format string, args ...any) { fmt.Fprintf(t, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }
}

// writeRecorder prints what is always worth a line, and of the rest what there is.
func writeRecorder(line printLine, r *api.RecorderStatus, up time.Duration) {
	w := evidence.Window{Interfaces: r.Interfaces, Namespaces: r.Namespaces}
	var names, spaces []string
	for _, i := range r.Interfaces {
		names = append(names, w.InterfaceOf(&evidence.Packet{Interface: i.Index, Namespace: i.Namespace}))
	}
	for _, n := range r.Namespaces {
		spaces = append(spaces, n.Label())
	}
	if len(names) == 0 {
		names = []string{"none yet"}
	}
	line("interfaces", "%s", strings.Join(names, " "))
	if len(spaces) > 0 {
		line("namespaces", "%s", strings.Join(spaces, " "))
	}
	line("buffer", "%s", bufferLine(r))
	line("packets", "%s", packetsLine(r))
	line("level", "%s", levelLine(r, up))
	if r.Gaps > 0 {
		line("gaps", "%s since the start, %s packets lost in them", humanize.Comma(int64(r.Gaps)), humanize.Comma(int64(r.GapsLost)))
	}
	if t := r.SelfTest; t != nil {
		verdict := "ok"
		if !t.OK {
			verdict = "FAILED"
		}
		line("self-test", "%s at %s: %s", verdict, t.Time.UTC().Format(stampUTC), t.Text)
	}
}

// harmLine tells what the resets did.
func harmLine(h *api.HarmStatus) string {
	harmful, harmless := sum(h.Harmful), sum(h.Harmless)
	text := fmt.Sprintf("%s of %s resets", humanize.Comma(harmful), humanize.Comma(harmful+harmless))
	if harmful > 0 {
		text += ": " + mostFirst(h.Harmful)
	}
	if harmless > 0 {
		text += "; harmless: " + mostFirst(h.Harmless)
	}
	if h.Unscored > 0 {
		text += fmt.Sprintf("; %s were too odd to tell", humanize.Comma(int64(h.Unscored)))
	}
	return text
}

func sum(counts map[string]uint64) (n int64) {
	for _, v := range counts {
		n += int64(v)
	}
	return n
}

// mostFirst reads "data_lost 2, midstream 1".
func mostFirst(counts map[string]uint64) string {
	var parts []string
	for _, name := range slices.SortedFunc(maps.Keys(counts), func(a, b string) int {
		return cmp.Or(cmp.Compare(counts[b], counts[a]), cmp.Compare(a, b))
	}) {
		if n := counts[name]; n > 0 {
			parts = append(parts, name+" "+humanize.Comma(int64(n)))
		}
	}
	return strings.Join(parts, ", ")
}

// kernelLine tells what the kernel itself tells.
func kernelLine(k *api.KernelStatus) string {
	text := fmt.Sprintf("level %s; %s events", k.Level, humanize.Comma(int64(k.Events)))
	if k.Suppressed > 0 {
		text += fmt.Sprintf(", %s more only counted", humanize.Comma(int64(k.Suppressed)))
	}
	if k.Lost > 0 {
		text += fmt.Sprintf(", %s lost", humanize.Comma(int64(k.Lost)))
	}
	text += fmt.Sprintf("; owners of %s sockets known, %s of kernel memory", humanize.Comma(int64(k.Owners)), humanize.IBytes(k.MapBytes))
	if k.CPUSeconds > 0 {
		text += fmt.Sprintf("; programs ran %.2f s", k.CPUSeconds)
	}
	return text
}

// stampUTC is a moment as the list of incidents shows it.
const stampUTC = time.DateTime + " UTC"

func bufferLine(r *api.RecorderStatus) string {
	text := fmt.Sprintf("%.0f s held: %s packets", r.HeldSeconds, humanize.Comma(int64(r.HeldPackets)))
	if r.HeldPackets > 0 && r.HeldBytes > 0 {
		text += fmt.Sprintf(" at %.1f bytes", float64(r.HeldBytes)/float64(r.HeldPackets))
	}
	text += fmt.Sprintf("; %s of %s used, %s of it by the ring",
		humanize.IBytes(r.BufferBytes), humanize.IBytes(r.BudgetBytes), humanize.IBytes(r.RingBytes))
	if r.PinnedBytes > 0 {
		text += ", " + humanize.IBytes(r.PinnedBytes) + " frozen"
	}
	if r.RevokedChunks > 0 {
		text += fmt.Sprintf("; %d frozen chunks made room for newer packets", r.RevokedChunks)
	}
	return text
}

func packetsLine(r *api.RecorderStatus) string {
	text := fmt.Sprintf("%s seen, %s kept", humanize.Comma(int64(r.Seen)), humanize.Comma(int64(r.Kept)))
	if r.Sightings > 0 {
		text += fmt.Sprintf(" (%s seen again)", humanize.Comma(int64(r.Sightings)))
	}
	if r.Skipped > 0 {
		text += fmt.Sprintf(", %s skipped", humanize.Comma(int64(r.Skipped)))
	}
	return text + fmt.Sprintf(", %d dropped by the kernel, %s evicted, %d RST", r.Dropped, humanize.Comma(int64(r.Evicted)), r.Resets)
}

// levelLine tells what is recorded, and what that costs.
func levelLine(r *api.RecorderStatus, up time.Duration) string {
	text := r.Level
	if r.Level != recorder.LevelFull.String() {
		text += " since " + r.LevelSince.UTC().Format(stampUTC) + ": " + meaning(r.Level)
	}
	if up > 0 {
		text += fmt.Sprintf("; uses %.2f %% of a core on average", 100*r.CPUSeconds/up.Seconds())
	}
	if r.CPUBudget > 0 {
		text += fmt.Sprintf(", %g %% allowed", 100*r.CPUBudget)
	}
	if r.LevelChanges > 0 {
		text += fmt.Sprintf("; %d changes", r.LevelChanges)
	}
	return text
}

func meaning(level string) string {
	for l := recorder.LevelFull; l <= recorder.LevelControl; l++ {
		if l.String() == level {
			return l.Meaning()
		}
	}
	return "a level that this release does not know"
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
		text += "; " + strings.ReplaceAll(g.Why, "\n", "; ")
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
