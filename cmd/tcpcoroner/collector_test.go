package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tcpcoroner/evidence"
	"tcpcoroner/internal/netlab"
)

// collector is a real OpenTelemetry Collector with a file exporter, in the
// daemon's namespace. The exporter truncates its file at a start, so each life
// writes its own.
type collector struct {
	ns     *netlab.NS
	binary string
	dir    string
	lives  int
	cmd    *exec.Cmd
}

const otlpEndpoint = "127.0.0.1:4317"

func newCollector(t *testing.T, ns *netlab.NS) *collector {
	t.Helper()
	out, err := exec.Command("../../packaging/backends/otelcol/build").Output()
	if err != nil {
		t.Fatalf("build the collector: %v", err)
	}
	c := &collector{ns: ns, binary: strings.TrimSpace(string(out)), dir: t.TempDir()}
	t.Cleanup(c.kill)
	c.start(t)
	return c
}

func (c *collector) env() []string {
	return []string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://" + otlpEndpoint, "OTEL_EXPORTER_OTLP_PROTOCOL=grpc"}
}

func (c *collector) file(life int) string {
	return filepath.Join(c.dir, fmt.Sprintf("out%d.json", life))
}

func (c *collector) start(t *testing.T) {
	t.Helper()
	c.lives++
	cfg := filepath.Join(c.dir, fmt.Sprintf("config%d.yaml", c.lives))
	text := fmt.Sprintf(`receivers: {otlp: {protocols: {grpc: {endpoint: %q}}}}
exporters: {file: {path: %q, flush_interval: 100ms}}
service:
  telemetry: {metrics: {level: none}}
  pipelines:
    traces: {receivers: [otlp], exporters: [file]}
    logs: {receivers: [otlp], exporters: [file]}
`, otlpEndpoint, c.file(c.lives))
	if err := os.WriteFile(cfg, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c.cmd = c.ns.Command(context.Background(), c.binary, "--config", "file:"+cfg)
	log := newWatched()
	c.cmd.Stderr = log
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if !log.wait("Everything is ready", 20*time.Second) {
		t.Fatalf("the collector does not start:\n%s", log)
	}
}

func (c *collector) kill() {
	if c.cmd != nil && c.cmd.ProcessState == nil {
		_ = c.cmd.Process.Kill()
		_ = c.cmd.Wait()
	}
}

// received is the part of OTLP/JSON that the tests look at.
type received struct {
	ResourceSpans []struct {
		ScopeSpans []struct {
			Spans []otlpItem `json:"spans"`
		} `json:"scopeSpans"`
	} `json:"resourceSpans"`
	ResourceLogs []struct {
		ScopeLogs []struct {
			LogRecords []otlpItem `json:"logRecords"`
		} `json:"scopeLogs"`
	} `json:"resourceLogs"`
}

type otlpItem struct {
	TraceID    string `json:"traceId"`
	SpanID     string `json:"spanId"`
	ParentID   string `json:"parentSpanId"`
	Name       string `json:"name"`
	EventName  string `json:"eventName"`
	Attributes []struct {
		Key string `json:"key"`
	} `json:"attributes"`
}

func (i *otlpItem) has(key string) bool {
	for _, a := range i.Attributes {
		if a.Key == key {
			return true
		}
	}
	return false
}

// of returns what all lives received of an incident's trace.
func (c *collector) of(t *testing.T, inc *evidence.Incident) (spans, logs []otlpItem) {
	t.Helper()
	for life := 1; life <= c.lives; life++ {
		text, err := os.ReadFile(c.file(life))
		if err != nil {
			continue // not written yet
		}
		for line := range bytes.Lines(text) {
			var r received
			if json.Unmarshal(line, &r) != nil {
				continue // half a line: it is being written
			}
			s, l := r.items()
			spans, logs = append(spans, s...), append(logs, l...)
		}
	}
	other := func(i otlpItem) bool { return i.TraceID != inc.TraceID }
	return slices.DeleteFunc(spans, other), slices.DeleteFunc(logs, other)
}

func (r *received) items() (spans, logs []otlpItem) {
	for _, rs := range r.ResourceSpans {
		for _, ss := range rs.ScopeSpans {
			spans = append(spans, ss.Spans...)
		}
	}
	for _, rl := range r.ResourceLogs {
		for _, sl := range rl.ScopeLogs {
			logs = append(logs, sl.LogRecords...)
		}
	}
	return spans, logs
}

// await waits until trace and log have arrived.
func (c *collector) await(t *testing.T, inc *evidence.Incident) {
	t.Helper()
	await(t, 90*time.Second, "trace and log in the collector's file", func() bool {
		spans, logs := c.of(t, inc)
		return len(spans) > 0 && len(logs) > 0
	})
}

// checkOnce wants one root span, one span per flow, and one incident record.
func (c *collector) checkOnce(t *testing.T, inc *evidence.Incident) {
	t.Helper()
	spans, logs := c.of(t, inc)
	ids, roots := map[string]int{}, 0
	for _, s := range spans {
		ids[s.SpanID]++
		if s.ParentID == "" {
			roots++
			c.checkKeys(t, &s, "tcpcoroner.incident.id", "tcpcoroner.trigger.name", "tcpcoroner.verdict", "tcpcoroner.verdict.confidence",
				"tcpcoroner.window.packets", "tcpcoroner.flows.total", "tcpcoroner.capture.command")
			continue
		}
		if s.has("tcpcoroner.flow.id") {
			c.checkKeys(t, &s, "network.peer.address", "network.peer.port")
		}
		if s.has("tcpcoroner.flow.id") && (strings.HasPrefix(s.Name, "tcp reset") || strings.HasPrefix(s.Name, "tcp refused")) {
			c.checkKeys(t, &s, "tcpcoroner.reset.by", "tcpcoroner.reset.cause", "error.type")
		}
	}
	for id, n := range ids {
		if n != 1 {
			t.Errorf("span %s arrived %d times", id, n)
		}
	}
	if want := 1 + min(len(inc.Flows), 50); roots != 1 || len(spans) < want {
		t.Errorf("%d roots and %d spans, want 1 root and %d spans at least", roots, len(spans), want)
	}
	records := 0
	for _, l := range logs {
		if l.EventName == "tcpcoroner.incident" {
			records++
			c.checkKeys(t, &l, "tcpcoroner.event", "tcpcoroner.incident.id")
		}
	}
	if records != 1 {
		t.Errorf("the incident's log record arrived %d times", records)
	}
}

func (c *collector) checkKeys(t *testing.T, i *otlpItem, keys ...string) {
	t.Helper()
	for _, k := range keys {
		if !i.has(k) {
			t.Errorf("%s%s lacks the attribute %s", i.Name, i.EventName, k)
		}
	}
}

// checkAttributes wants keys on the root span and on the incident's record.
func (c *collector) checkAttributes(t *testing.T, inc *evidence.Incident, keys ...string) {
	t.Helper()
	spans, logs := c.of(t, inc)
	for _, s := range spans {
		if s.ParentID == "" {
			c.checkKeys(t, &s, keys...)
		}
	}
	for _, l := range logs {
		if l.EventName == "tcpcoroner.incident" {
			c.checkKeys(t, &l, keys...)
		}
	}
}
