package report

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"tcpcoroner/evidence"
)

// explained is a flow of which everything is known.
func explained(t *testing.T) *evidence.Incident {
	t.Helper()
	claim := evidence.Claim{
		Origin: evidence.OriginLocalKernel, Mechanism: evidence.MechanismLateData, Layer: evidence.LayerTransport, Confidence: evidence.Likely,
		Party: evidence.Server, PartyConfidence: evidence.Likely, Cause: evidence.CauseTimeout, CauseConfidence: evidence.Possible,
		Decision: &evidence.Decision{By: "proxy", Time: start.Add(time.Second), Packet: 7, Text: "closed with FIN after 60.0 s of silence"},
		Trigger:  8, Excluded: []string{"a crash: the process lives"}, Process: app,
		Advice:   []evidence.Advice{{Text: "raise the timeout", Knob: "timeout server", Value: "60s", SideEffect: "idle connections live longer"}},
		Sentence: "the proxy had closed the connection, and late data was answered with RST", Settle: "a capture on the server",
	}
	v := judged(t, claim, evidence.Finding{Kind: evidence.KindKernel, Text: "and the kernel did not", Against: false},
		evidence.Finding{Kind: evidence.KindPacket, Text: "the packets show it", Packets: []int{7, 8, 9}, Source: "RFC 9293"})
	f := resetFlow(1, v, app)
	f.Timeline = []evidence.Step{
		{Time: start, Packet: 7, Line: "+0.000ms > FIN_ACK"}, {Time: start, Packet: 8, Line: "+1.000ms < PSH_ACK"},
		{Time: start, Packet: f.Reset.Packet, Line: "+1.100ms > RST"},
	}
	return &evidence.Incident{ID: "01JN", Time: start, Verdict: v, Flows: []evidence.Flow{f, resetFlow(2, v, app)},
		At: &evidence.Snapshot{Missing: []evidence.Missing{{What: "logs", Why: "no permission"}}}}
}

func TestExplain(t *testing.T) {
	inc := explained(t)
	var one, all bytes.Buffer
	if err := Explain(&one, inc, []*evidence.Flow{&inc.Flows[0]}, zone); err != nil {
		t.Fatal(err)
	}
	terminal(t, one.String())
	golden(t, "explain.txt", one.Bytes())
	if err := Explain(&all, inc, nil, zone); err != nil {
		t.Fatal(err)
	}
	// The incident's own verdict first, then one exemplar of the two alike.
	if !strings.HasPrefix(all.String(), "verdict  the proxy had closed") || strings.Count(all.String(), "FLOW f") != 1 {
		t.Errorf("all:\n%s", &all)
	}
}

// Whole is Text, without the way to a capture that is not kept.
func TestWhole(t *testing.T) {
	for _, inc := range []*evidence.Incident{storm(t), flooded(t), quiet(), explained(t)} {
		var text, whole bytes.Buffer
		if err := Text(&text, inc, zone); err != nil {
			t.Fatal(err)
		}
		if err := Whole(&whole, inc, zone); err != nil {
			t.Fatal(err)
		}
		rest, ok := strings.CutPrefix(text.String(), whole.String())
		if !ok || !strings.HasPrefix(rest, "\nCAPTURE\n") {
			t.Errorf("incident %s: the report is not the whole and its capture:\n%s", inc.ID, rest)
		}
	}
}
