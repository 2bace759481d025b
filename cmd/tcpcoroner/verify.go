package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tcpcoroner/evidence"
	"tcpcoroner/exporter/pcapng"
	"tcpcoroner/recorder"
)

func verifyCommand(e *env) *cobra.Command {
	return &cobra.Command{
		Use: "verify ID|FILE.json [CAPTURE.pcapng]", Short: "derive every verdict of an incident anew from its stored evidence, and compare",
		Args: usageArgs(cobra.RangeArgs(1, 2)),
		Long: "verify judges an incident once more, from its stored packets, snapshots, counters and events, and fails with the\n" +
			"difference if any verdict is another. The incident is the daemon's, or a file that `show --json` wrote together\n" +
			"with the capture that `pull` wrote (`observe` writes both with --format json --out and --capture).",
		RunE: func(c *cobra.Command, args []string) error { return e.verify(c.Context(), args) },
	}
}

// verified is what `verify --json` prints.
type verified struct {
	ID      string `json:"id"`
	OK      bool   `json:"ok"`
	Flows   int    `json:"flows"`
	Packets int    `json:"packets"`
	// Judged is the version that judged first, Version the one that judged now.
	Judged  string `json:"judged_by"`
	Version string `json:"version"`
	// Differences are paths into the incident, with the stored and the derived value.
	Differences []string `json:"differences,omitempty"`
}

func (e *env) verify(ctx context.Context, args []string) error {
	inc, err := e.incidentOf(ctx, args[0])
	if err != nil {
		return err
	}
	w, err := e.packetsOf(ctx, inc, args[1:])
	if err != nil {
		return fmt.Errorf("verify: packets of incident %s: %w", inc.ID, err)
	}
	diff, err := verifyIncident(inc, w.Packets)
	if err != nil {
		return err
	}
	v := verified{ID: inc.ID, OK: len(diff) == 0, Flows: len(inc.Flows), Packets: len(w.Packets),
		Judged: inc.Version, Version: version, Differences: diff}
	if err := e.printVerified(&v); err != nil || v.OK {
		return err
	}
	return fmt.Errorf("verify: incident %s is judged otherwise now: %d differences", inc.ID, len(diff))
}

// packetsOf are the incident's packets: of a capture file, or of the daemon.
func (e *env) packetsOf(ctx context.Context, inc *evidence.Incident, files []string) (w evidence.Window, err error) {
	if len(files) > 0 {
		w, err = readCapture(files[0])
	} else {
		w, err = e.storedPackets(ctx, inc.ID)
	}
	if err != nil {
		return w, err
	}
	if len(w.Packets) != inc.Window.PacketCount {
		return w, fmt.Errorf("the capture holds %d packets, the incident has %d: give the one that belongs to it",
			len(w.Packets), inc.Window.PacketCount)
	}
	return w, nil
}

func (e *env) storedPackets(ctx context.Context, id string) (evidence.Window, error) {
	var capture bytes.Buffer
	if err := e.client().Capture(ctx, id, &capture); err != nil {
		return evidence.Window{}, fmt.Errorf("%w; or give the capture as a second file", err)
	}
	return pcapng.Read(&capture)
}

// maxDifferences bounds what is told.
const maxDifferences = 50

func (e *env) printVerified(v *verified) error {
	if e.json {
		return e.print(v)
	}
	if v.OK {
		_, err := fmt.Fprintf(e.stdout, "incident %s: %d flows judged anew from %d packets: every verdict is the same\n", v.ID, v.Flows, v.Packets)
		return err
	}
	if v.Judged != v.Version {
		fmt.Fprintf(e.stderr, "it was judged by version %s, this is %s: its rules may differ\n", v.Judged, v.Version)
	}
	for _, d := range v.Differences[:min(len(v.Differences), maxDifferences)] {
		if _, err := fmt.Fprintln(e.stdout, d); err != nil {
			return err
		}
	}
	return nil
}

// verifyIncident judges a copy of the incident and returns what differs.
func verifyIncident(inc *evidence.Incident, packets []evidence.Packet) ([]string, error) {
	again := judgeAgain(inc, packets, nil)
	if tests := selfTests(inc, again); tests != nil {
		again = judgeAgain(inc, packets, tests)
	}
	return differences(inc, again)
}

func judgeAgain(inc *evidence.Incident, packets []evidence.Packet, ignored []uint16) *evidence.Incident {
	again := *inc
	again.Flows, again.Verdict = nil, evidence.Verdict{}
	again.Window.Gaps = slices.Clone(inc.Window.Gaps)
	judge(&again, func(_ recorder.Need, visit func(*evidence.Packet) bool) error {
		for i := range packets {
			if !visit(&packets[i]) {
				break
			}
		}
		return nil
	}, ignored)
	return &again
}

// selfTests are the ports of the recorder's self-tests, which were left out of the
// verdict and are not stored: refused on loopback, and of no stored flow.
func selfTests(inc, again *evidence.Incident) (ports []uint16) {
	if inc.Window.OwnResets == 0 {
		return nil
	}
	known := map[evidence.FlowKey]bool{}
	for i := range inc.Flows {
		known[evidence.NewFlowKey(inc.Flows[i].Client, inc.Flows[i].Server)] = true
	}
	home := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	for i := range again.Flows {
		f := &again.Flows[i]
		if f.Server.Addr() == home && f.Client.Addr() == home && f.ClientBytes+f.ServerBytes == 0 &&
			!known[evidence.NewFlowKey(f.Client, f.Server)] {
			ports = append(ports, f.Server.Port())
		}
	}
	return ports
}

// judgement is what two judgements are compared by.
type judgement struct {
	Flows           []evidence.Flow  `json:"flows"`
	FlowsTotal      int              `json:"flows_total"`
	FlowsImplicated int              `json:"flows_implicated"`
	Verdict         evidence.Verdict `json:"verdict"`
	Resets          int              `json:"resets"`
}

func differences(stored, derived *evidence.Incident) ([]string, error) {
	a, errA := plainJudgement(stored)
	b, errB := plainJudgement(derived)
	if err := errors.Join(errA, errB); err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	var all []string
	compare("", a, b, &all)
	return all, nil
}

// plainJudgement is the judgement as JSON shows it.
func plainJudgement(inc *evidence.Incident) (v any, err error) {
	b, err := json.Marshal(judgement{inc.Flows, inc.FlowsTotal, inc.FlowsImplicated, inc.Verdict, inc.Window.ResetCount})
	if err != nil {
		return nil, err
	}
	return v, json.Unmarshal(b, &v)
}

// compare notes where two values of JSON differ.
func compare(path string, stored, derived any, all *[]string) {
	switch a := stored.(type) {
	case map[string]any:
		if b, ok := derived.(map[string]any); ok {
			keys := maps.Clone(a)
			maps.Copy(keys, b)
			for _, k := range slices.Sorted(maps.Keys(keys)) {
				compare(path+"."+k, a[k], b[k], all)
			}
			return
		}
	case []any:
		if b, ok := derived.([]any); ok {
			for i := range max(len(a), len(b)) {
				compare(fmt.Sprintf("%s[%d]", path, i), item(a, i), item(b, i), all)
			}
			return
		}
	default:
		if stored == derived || sameTime(stored, derived) {
			return
		}
	}
	*all = append(*all, fmt.Sprintf("%s: stored %s, derived %s", strings.TrimPrefix(path, "."), brief(stored), brief(derived)))
}

// sameTime: another host writes the same moment in another zone.
func sameTime(a, b any) bool {
	x, ok := a.(string)
	y, also := b.(string)
	if !ok || !also {
		return false
	}
	t, err := time.Parse(time.RFC3339Nano, x)
	u, errU := time.Parse(time.RFC3339Nano, y)
	return err == nil && errU == nil && t.Equal(u)
}

func item(list []any, i int) any {
	if i < len(list) {
		return list[i]
	}
	return nil
}

// brief shortens a value for a line.
func brief(v any) string {
	if v == nil {
		return "nothing"
	}
	b, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	const most = 160
	if len(b) > most {
		return string(b[:most]) + "..."
	}
	return string(b)
}
