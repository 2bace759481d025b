package report

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"tcpcoroner/evidence"
)

// What kernel, logs, firewall and processes told is in the report, and so is what
// follows from it.
func TestEvidenceOfTheHost(t *testing.T) {
	api := &evidence.Owner{PID: 812, Comm: "api", Unit: "api.service"}
	rule := evidence.Rule{Family: "inet", Table: "filter", Chain: "input", Handle: 7, Action: "reject with tcp reset",
		Text: "tcp dport 443 limit rate over 50/second reject with tcp reset", Counted: true}
	later := rule
	later.Packets = 31
	snapshot := func(r evidence.Rule) *evidence.Snapshot {
		return &evidence.Snapshot{Implicated: &evidence.Implicated{
			Rules:     &evidence.Ruleset{Rules: []evidence.Rule{r}},
			Processes: []evidence.Process{{Owner: *api, Command: "api --token=***", State: "S (sleeping)", FDs: 12, MaxFDs: 1024}},
			Changes:   []evidence.Change{{Time: start, Kind: evidence.ChangeSysctl, What: "net.ipv4.tcp_fin_timeout", Before: "60", After: "5"}},
		}}
	}
	inc := &evidence.Incident{ID: "X", Time: start, At: snapshot(rule), After: snapshot(later),
		KernelLevel: &evidence.KernelLevel{Name: evidence.LevelTuples, Why: "Linux 6.8 gives no reasons", Raise: "Linux 6.10 or later"},
		Kernel: []evidence.KernelEvent{
			{Kind: evidence.ResetSent, Reason: "TCP_ABORT_ON_CLOSE", State: "closed", Actor: api},
			{Kind: evidence.ResetSent, Reason: "TCP_ABORT_ON_CLOSE", State: "closed", Actor: api},
			{Kind: evidence.ResetSent, Reason: "NO_SOCKET", LastListener: api},
		},
		Suppressed: []evidence.KernelSuppressed{{Kind: evidence.ResetSent, Reason: "NO_SOCKET", Port: 443, Count: 9000}},
		Logs: []evidence.LogLine{
			{Time: start, Source: evidence.LogNginxError, Reason: evidence.ReasonUpstreamReset, Text: "recv() failed (104: Connection reset by peer)"},
			{Time: start, Source: evidence.LogJournal, Text: "an ordinary line"},
		},
		Verdict: judged(t, evidence.Claim{Origin: evidence.OriginLocalProcess, Mechanism: evidence.MechanismActiveAbort, Confidence: evidence.Likely,
			Sentence: "api aborted", Party: evidence.Server, Cause: evidence.CauseAppAbort, CauseConfidence: evidence.Possible, Process: api,
			Decision: &evidence.Decision{By: "server", Text: "closed with FIN after 60.0 s"}, Excluded: []string{"a firewall: no rule matched"},
			Advice: []evidence.Advice{{Text: "read the request before closing", Knob: "lingering_close", Value: "off", SideEffect: "sockets live longer"}}}),
	}
	var out bytes.Buffer
	if err := Text(&out, inc, time.UTC); err != nil {
		t.Fatal(err)
	}
	text := strings.Join(strings.Fields(out.String()), " ")
	for _, want := range []string{
		"To act: the server [likely]; cause: app abort [possible]", "Decided before: server closed with FIN after 60.0 s",
		"Process: api[812] api.service", "Excluded: a firewall: no rule matched",
		"Do: read the request before closing (lingering_close is off here); sockets live longer",
		"KERNEL tells tuples only: Linux 6.8 gives no reasons", "to have more next time: Linux 6.10 or later",
		"2 reset sent TCP_ABORT_ON_CLOSE closed api[812] api.service", "1 reset sent NO_SOCKET - port was api[812] api.service's",
		"9,000 more of reset_sent NO_SOCKET on port 443", "nginx.error upstream reset recv() failed (104: Connection reset by peer)",
		"inet filter input handle 7 +31 tcp dport 443 limit rate over 50/second reject with tcp reset",
		"api[812] api.service S (sleeping)", "12 of 1,024 api --token=***", "sysctl net.ipv4.tcp_fin_timeout: 60 -> 5",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	if strings.Contains(text, "an ordinary line") {
		t.Error("a line without a reason is told")
	}
}
