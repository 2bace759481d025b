package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tcpcoroner/evidence"
	"tcpcoroner/exporter/labformat"
	"tcpcoroner/exporter/report"
)

// The formats in which observe and replay tell what they saw.
const (
	formatText = "text"
	formatJSON = "json"
)

// outcome says how an incident that is in no store is told, and where to.
type outcome struct {
	roles, format, out string
	// vantage names the host that looked.
	vantage string
}

func (o *outcome) flags(c *cobra.Command) {
	c.Flags().StringVar(&o.roles, "roles", "", "`file` that says whose addresses are: network and client, proxy, server or network, as YAML or JSON")
	c.Flags().StringVar(&o.format, "format", formatText, "how to tell it: text, json or "+labformat.Name)
	c.Flags().StringVar(&o.out, "out", "", "`file` to write (default standard output)")
}

// check refuses a format that is unknown before the work is done.
func (o *outcome) check(e *env) error {
	if e.json && o.format == formatText {
		o.format = formatJSON
	}
	switch o.format {
	case formatText, formatJSON, labformat.Name:
		return nil
	}
	return usageError{fmt.Errorf("--format is %q: must be %s, %s or %s", o.format, formatText, formatJSON, labformat.Name)}
}

// tell writes the incident.
func (o *outcome) tell(e *env, inc *evidence.Incident) error {
	write := func(w io.Writer) error { return o.write(w, inc) }
	if o.out == "" {
		return write(e.stdout)
	}
	if _, err := writeWhole(o.out, write); err != nil {
		return fmt.Errorf("write %s: %w", o.out, err)
	}
	fmt.Fprintf(e.stderr, "%s: %d flows, %s [%s]\n", o.out, len(inc.Flows), inc.Verdict, inc.Verdict.Claim().Confidence)
	return nil
}

func (o *outcome) write(w io.Writer, inc *evidence.Incident) error {
	switch o.format {
	case formatJSON:
		return indented(w, inc)
	case labformat.Name:
		return indented(w, labformat.Of(inc, o.vantage))
	}
	return report.Whole(w, inc, time.Local)
}

func indented(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// listOf splits what a flag holds; blanks and empty items do not matter.
func listOf(text string) (items []string) {
	for item := range strings.SplitSeq(text, ",") {
		if item = strings.TrimSpace(item); item != "" {
			items = append(items, item)
		}
	}
	return items
}
