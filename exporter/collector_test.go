package exporter

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// buildCollector returns the path of a real OpenTelemetry Collector. The first
// call on a machine builds it, which takes minutes.
func buildCollector(t *testing.T) string {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), "../packaging/backends/otelcol/build")
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("build the collector: %v\n%s", err, stderr.Bytes())
	}
	return strings.TrimSpace(string(out))
}

const collectorConfig = `
receivers:
  otlp:
    protocols:
      %s: {endpoint: "%s"}
exporters:
  file: {path: "%s"}
service:
  telemetry: {metrics: {level: none}, logs: {level: warn}}
  pipelines:
    traces: {receivers: [otlp], exporters: [file]}
    logs: {receivers: [otlp], exporters: [file]}
    metrics: {receivers: [otlp], exporters: [file]}
`

// collector is a running OpenTelemetry Collector that writes what it receives.
type collector struct {
	cmd    *exec.Cmd
	output string
	stderr bytes.Buffer
}

func startCollector(t *testing.T, binary, protocol, address string) *collector {
	t.Helper()
	dir := t.TempDir()
	c := &collector{output: filepath.Join(dir, "out.json")}
	config := filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, collectorConfig, protocol, address, c.output), 0o600); err != nil {
		t.Fatal(err)
	}
	c.cmd = exec.Command(binary, "--config=file:"+config)
	c.cmd.Stderr = &c.stderr
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if c.cmd.ProcessState == nil {
			_ = c.cmd.Process.Kill()
			_ = c.cmd.Wait()
			t.Logf("collector: %s", c.stderr.Bytes())
		}
	})
	return c
}

// stop ends the collector, which flushes, and reads what it wrote.
func (c *collector) stop(t *testing.T) (spans, records, metrics []map[string]any) {
	t.Helper()
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Wait(); err != nil {
		t.Fatalf("collector: %v\n%s", err, c.stderr.Bytes())
	}
	f, err := os.Open(c.output)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 8<<20)
	for lines.Scan() {
		var line map[string]any
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			t.Fatal(err)
		}
		spans = append(spans, collect(line, "resourceSpans", "scopeSpans", "spans")...)
		records = append(records, collect(line, "resourceLogs", "scopeLogs", "logRecords")...)
		metrics = append(metrics, collect(line, "resourceMetrics", "scopeMetrics", "metrics")...)
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return spans, records, metrics
}

// collect follows names through nested JSON lists to the objects at their end.
// Each of these gets its resource's attributes under "resource".
func collect(v map[string]any, names ...string) []map[string]any {
	objects := []map[string]any{v}
	for _, name := range names {
		var below []map[string]any
		for _, o := range objects {
			items, _ := o[name].([]any)
			for _, item := range items {
				child := item.(map[string]any)
				if _, ok := child["resource"]; !ok {
					child["resource"] = o["resource"]
				}
				below = append(below, child)
			}
		}
		objects = below
	}
	return objects
}

// keys lists the attribute names of an OTLP JSON object.
func keys(object map[string]any) (names []string) {
	list, _ := object["attributes"].([]any)
	for _, a := range list {
		names = append(names, a.(map[string]any)["key"].(string))
	}
	return names
}

// freeAddress is a loopback address that nobody listens on.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// TestCollector sends to a real collector that starts after the incident: the
// trace and the records arrive once, with the names that are documented.
func TestCollector(t *testing.T) {
	binary := buildCollector(t)
	for _, tt := range []struct{ otel, receiver string }{{"grpc", "grpc"}, {"http/protobuf", "http"}} {
		t.Run(tt.receiver, func(t *testing.T) {
			address := freeAddress(t)
			point(t, address)
			t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", tt.otel)
			t.Setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1000")
			o := newOutbox(SignalTraces, SignalLogs)
			cfg := testConfig(o)
			cfg.FirstRetry, cfg.MaxRetry = 100*time.Millisecond, time.Second
			t.Setenv("OTEL_METRIC_EXPORT_INTERVAL", "200")
			cfg.Metrics = testMetrics()
			e := start(t, cfg)
			until(t, o, "a failure of each signal", func() bool { return e.Status().Failed >= 2 })
			c := startCollector(t, binary, tt.receiver, address)
			until(t, o, "both signals sent", empty(o))
			settled(t, e, func(st Status) bool { return st.MetricsSent > 0 })
			spans, records, metrics := c.stop(t)
			checkSpans(t, spans)
			checkRecords(t, records)
			checkMetrics(t, metrics)
		})
	}
}

func checkSpans(t *testing.T, spans []map[string]any) {
	t.Helper()
	byName := map[string]map[string]any{}
	for _, s := range spans {
		byName[s["name"].(string)] = s
		if s["traceId"] != testTrace {
			t.Errorf("trace id %v", s["traceId"])
		}
	}
	if len(spans) != 3 || len(byName) != 3 {
		t.Fatalf("%d spans, want 3 once each: %v", len(spans), byName)
	}
	root, flow := byName["incident resets"], byName["tcp refused by peer host"]
	if root == nil || flow == nil {
		t.Fatalf("%v", byName)
	}
	wantKeys(t, root, "tcpcoroner.incident.id", "tcpcoroner.trigger.name", "tcpcoroner.verdict", "tcpcoroner.capture.command",
		"tcpcoroner.conntrack.top_talkers", "tcpcoroner.listen.backlog")
	wantKeys(t, flow, "network.peer.address", "server.port", "error.type", "process.pid", "tcpcoroner.reset.by", "tcpcoroner.reset.cause")
	wantKeys(t, flow["resource"].(map[string]any), "service.name", "service.version", "service.instance.id", "host.name", "host.id", "os.type")
	events, _ := flow["events"].([]any)
	if len(events) != 2 {
		t.Fatalf("%d packets, want 2", len(events))
	}
	wantKeys(t, events[0].(map[string]any), "capture.packet", "tcp.flags")
	if st, _ := flow["status"].(map[string]any); st["message"] != "10.30.7.56:8443 refused: nothing listens" {
		t.Errorf("status %v", st)
	}
	if flow["parentSpanId"] != root["spanId"] {
		t.Error("the flow is no child of the incident")
	}
}

func checkRecords(t *testing.T, records []map[string]any) {
	t.Helper()
	var names []string
	for _, r := range records {
		names = append(names, fmt.Sprint(r["eventName"]))
		wantKeys(t, r, "tcpcoroner.incident.id", "tcpcoroner.event")
		if r["traceId"] != testTrace {
			t.Errorf("trace id %v", r["traceId"])
		}
	}
	slices.Sort(names)
	if want := []string{"tcp.connection.refused", "tcp.connection.reset", "tcpcoroner.incident"}; !slices.Equal(names, want) {
		t.Errorf("records %v, want %v", names, want)
	}
}

func checkMetrics(t *testing.T, metrics []map[string]any) {
	t.Helper()
	var names []string
	for _, m := range metrics {
		names = append(names, fmt.Sprint(m["name"]))
		wantKeys(t, m["resource"].(map[string]any), "service.name", "host.id")
	}
	slices.Sort(names)
	want := []string{"tcpcoroner.recorder.packets", "tcpcoroner.recorder.window.duration", "tcpcoroner.tcp.resets"}
	if names = slices.Compact(names); !slices.Equal(names, want) {
		t.Errorf("metrics %v, want %v", names, want)
	}
}

func wantKeys(t *testing.T, object map[string]any, want ...string) {
	t.Helper()
	got := keys(object)
	for _, k := range want {
		if !slices.Contains(got, k) {
			t.Errorf("%v: no attribute %s among %v", object["name"], k, got)
		}
	}
}
