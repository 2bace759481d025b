package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"time"

	"github.com/spf13/cobra"

	"tcpcoroner/evidence"
	"tcpcoroner/exporter/api"
	"tcpcoroner/exporter/report"
)

func explainCommand(e *env) *cobra.Command {
	return &cobra.Command{
		Use: "explain ID|FILE [FLOW]", Short: "how a verdict was found: the chain, the evidence, what was excluded, what to do",
		Args: usageArgs(cobra.RangeArgs(1, 2)),
		Long: "explain tells how the verdict of an incident was found, and of one flow of each kind, or of FLOW alone: an id such\n" +
			"as f3, or the address and port of an end. FILE is what `show --json`, `observe --format json` or `replay --format\n" +
			"json` wrote. In the list of packets, * is the reset and ! what provoked it.",
		RunE: func(c *cobra.Command, args []string) error {
			inc, err := e.incidentOf(c.Context(), args[0])
			if err != nil {
				return err
			}
			var flows []*evidence.Flow
			if len(args) == 2 {
				if flows, err = flowsOf(inc, args[1]); err != nil {
					return err
				}
			}
			return e.explain(inc, flows)
		},
	}
}

func (e *env) explain(inc *evidence.Incident, flows []*evidence.Flow) error {
	switch {
	case !e.json:
		return report.Explain(e.stdout, inc, flows, time.Local)
	case len(flows) == 1:
		return e.print(flows[0])
	case flows != nil:
		return e.print(flows)
	}
	return e.print(inc)
}

// incidentOf is an incident from a file if ref names one, otherwise the daemon's.
func (e *env) incidentOf(ctx context.Context, ref string) (*evidence.Incident, error) {
	b, err := os.ReadFile(ref)
	if errors.Is(err, fs.ErrNotExist) {
		return e.client().Incident(ctx, ref)
	}
	if err != nil {
		return nil, fmt.Errorf("read incident: %w", err)
	}
	inc, err := parseIncident(b)
	if err != nil {
		return nil, usageError{fmt.Errorf("incident %s: %w", ref, err)}
	}
	return inc, nil
}

// parseIncident reads the JSON of an incident.
func parseIncident(b []byte) (*evidence.Incident, error) {
	inc := new(evidence.Incident)
	if err := json.Unmarshal(b, inc); err != nil {
		return nil, fmt.Errorf("%w: give what `show --json` prints", err)
	}
	if inc.Schema != evidence.SchemaIncident {
		return nil, fmt.Errorf("its schema is %q, not %q: give what `show --json` prints", inc.Schema, evidence.SchemaIncident)
	}
	return inc, nil
}

// flowsOf finds the flows that ref means. A server's end is that of many.
func flowsOf(inc *evidence.Incident, ref string) (flows []*evidence.Flow, err error) {
	end, _ := netip.ParseAddrPort(ref) // otherwise it is an id
	for i := range inc.Flows {
		f := &inc.Flows[i]
		if f.ID == ref || end.IsValid() && (f.Client == end || f.Server == end) {
			flows = append(flows, f)
		}
	}
	if flows == nil {
		return nil, &api.Error{Code: api.CodeNotFound, Message: fmt.Sprintf("flow %q is not in incident %s", ref, inc.ID),
			Hint: "`tcpcoroner show` lists its flows; give an id such as f1, or an address with its port"}
	}
	return flows, nil
}
