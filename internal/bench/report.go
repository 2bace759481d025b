package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// report is everything that was measured, as -json writes it.
type report struct {
	Time     time.Time `json:"time"`
	Kernel   string    `json:"kernel"`
	CPU      string    `json:"cpu"`
	CPUs     int       `json:"cpus"`
	Load     string    `json:"load"`
	Programs []string  `json:"programs"`
	Parts    []result  `json:"parts"`
}

// result is that of one part.
type result struct {
	Name   string  `json:"name"`
	Tables []table `json:"tables"`
	Goals  []goal  `json:"goals"`
}

// table is a heading, columns, and rows of as many cells.
type table struct {
	Title   string     `json:"title"`
	Columns []string   `json:"columns"`
	Rows    [][]string `json:"rows"`
}

// goal is a promise of docs/performance.md and what came of it.
type goal struct {
	What  string `json:"what"`
	Value string `json:"value"`
	Met   bool   `json:"met"`
	// Refused says why there is no value.
	Refused string `json:"refused,omitempty"`
}

// describe notes what was measured on what.
func (r *report) describe() {
	r.Time, r.CPUs, r.Load = time.Now().UTC().Round(time.Second), runtime.NumCPU(), loadAverage()
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		r.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		r.CPU = cpuModel(string(text))
	}
	for _, args := range [][]string{{"tcpdump", "--version"}, {"dumpcap", "--version"}, {"nginx", "-v"}, {"haproxy", "-v"}} {
		out, _ := exec.Command(args[0], args[1:]...).CombinedOutput() // tcpdump built without a version exits with 1
		line, _, _ := strings.Cut(string(out), "\n")
		if line == "" {
			line = args[0] + ": not installed"
		}
		r.Programs = append(r.Programs, line)
	}
}

func cpuModel(cpuinfo string) string {
	m := regexp.MustCompile(`(?m)^model name\s*: (.*)$`).FindStringSubmatch(cpuinfo)
	if m == nil {
		return "not named by /proc/cpuinfo"
	}
	return m[1]
}

func (r *report) head() string {
	return fmt.Sprintf("%s, Linux %s, %d x %s, load %s\n%s\n",
		r.Time.Format(time.RFC3339), r.Kernel, r.CPUs, r.CPU, r.Load, strings.Join(r.Programs, "; "))
}

func (r *report) begin(p part) { r.Parts = append(r.Parts, result{Name: p.name}) }

// table prints a table and keeps it.
func (b *bench) table(t table) {
	part := &b.report.Parts[len(b.report.Parts)-1]
	part.Tables = append(part.Tables, t)
	writeTable(b.out, t)
}

func writeTable(w io.Writer, t table) {
	fmt.Fprintf(w, "\n  %s\n", t.Title)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range append([][]string{t.Columns}, t.Rows...) {
		fmt.Fprintf(tw, "  %s\n", strings.Join(row, "\t"))
	}
	_ = tw.Flush() // a lost terminal loses the table, not the run
}

// goal prints a goal and keeps it.
func (b *bench) goal(met bool, what, format string, args ...any) {
	b.keep(goal{What: what, Value: fmt.Sprintf(format, args...), Met: met})
}

// refuse says why there is no answer.
func (b *bench) refuse(what, format string, args ...any) {
	b.keep(goal{What: what, Refused: fmt.Sprintf(format, args...)})
}

func (b *bench) keep(g goal) {
	part := &b.report.Parts[len(b.report.Parts)-1]
	part.Goals = append(part.Goals, g)
	fmt.Fprintln(b.out, " ", g)
}

func (g goal) String() string {
	switch {
	case g.Refused != "":
		return fmt.Sprintf("no answer  %s: %s", g.What, g.Refused)
	case g.Met:
		return fmt.Sprintf("met        %s: %s", g.What, g.Value)
	}
	return fmt.Sprintf("MISSED     %s: %s", g.What, g.Value)
}

// verdict counts the goals.
func (r *report) verdict() string {
	var met, missed, refused int
	for _, p := range r.Parts {
		for _, g := range p.Goals {
			switch {
			case g.Refused != "":
				refused++
			case g.Met:
				met++
			default:
				missed++
			}
		}
	}
	return fmt.Sprintf("%d goals met, %d missed, %d without an answer\n", met, missed, refused)
}

func (r *report) write(path string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encode report: %w", err)
	}
	if err := os.WriteFile(path, append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

// atMost answers "ours is at most this share of a rival's". The rival is the
// yardstick: one whose runs differ too much measures nothing.
func (b *bench) atMost(share float64, what string, ours, rival []float64) {
	if s := spread(rival); s > mostSpread && !b.force {
		b.refuse(what, "the rival's own runs are up to %.0f %% off their median, more than %.0f %%: too much else runs here (-force prints the ratio)",
			100*s, 100*mostSpread)
		return
	}
	r := median(ours) / median(rival)
	b.goal(r <= share, what, "%.3f, one %.1fth", r, 1/r)
}
