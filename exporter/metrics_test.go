package exporter

import (
	"context"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	colmetricspb "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	metricspb "go.opentelemetry.io/proto/otlp/metrics/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

type metricsBackend struct {
	colmetricspb.UnimplementedMetricsServiceServer
	*backend
}

func (b metricsBackend) Export(_ context.Context, r *colmetricspb.ExportMetricsServiceRequest) (*colmetricspb.ExportMetricsServiceResponse, error) {
	select {
	case b.metrics <- r:
	default:
	}
	return &colmetricspb.ExportMetricsServiceResponse{}, b.refuse
}

// testMetrics is what a daemon counts; the value of the counter grows each time.
func testMetrics() func() []Metric {
	var packets atomic.Int64
	return func() []Metric {
		return []Metric{
			{Name: "tcpcoroner.recorder.packets", Unit: "{packet}", Description: "Packets recorded", Counter: true, Value: float64(packets.Add(10))},
			{Name: "tcpcoroner.tcp.resets", Unit: "{reset}", Counter: true, Value: 3, Attributes: map[string]string{"network.io.direction": "receive"}},
			{Name: "tcpcoroner.tcp.resets", Unit: "{reset}", Counter: true, Value: 4, Attributes: map[string]string{"network.io.direction": "transmit"}},
			{Name: "tcpcoroner.recorder.window.duration", Unit: "s", Value: 31.5},
		}
	}
}

// flatten lists metrics as "name unit kind attributes value".
func flatten(r *colmetricspb.ExportMetricsServiceRequest) (all []string, packets float64) {
	for _, rm := range r.ResourceMetrics {
		for _, sm := range rm.ScopeMetrics {
			for _, m := range sm.Metrics {
				kind, points := "gauge", m.GetGauge().GetDataPoints()
				if sum := m.GetSum(); sum != nil {
					kind, points = "counter", sum.DataPoints
					if !sum.IsMonotonic || sum.AggregationTemporality != metricspb.AggregationTemporality_AGGREGATION_TEMPORALITY_CUMULATIVE {
						kind = "other sum"
					}
				}
				for _, p := range points {
					line := []string{m.Name, m.Unit, kind}
					for _, a := range p.Attributes {
						line = append(line, a.Key+"="+a.Value.GetStringValue())
					}
					if m.Name == "tcpcoroner.recorder.packets" {
						packets = p.GetAsDouble()
					}
					all = append(all, strings.Join(line, " "))
				}
			}
		}
	}
	slices.Sort(all)
	return all, packets
}

func TestMetrics(t *testing.T) {
	b := &backend{metrics: make(chan *colmetricspb.ExportMetricsServiceRequest, 2)}
	point(t, b.serve(t, ""))
	t.Setenv("OTEL_METRIC_EXPORT_INTERVAL", "20")
	cfg := testConfig(newOutbox())
	cfg.Metrics = testMetrics()
	e := start(t, cfg)
	first, one := flatten(<-b.metrics)
	second, two := flatten(<-b.metrics)
	want := []string{
		"tcpcoroner.recorder.packets {packet} counter",
		"tcpcoroner.recorder.window.duration s gauge",
		"tcpcoroner.tcp.resets {reset} counter network.io.direction=receive",
		"tcpcoroner.tcp.resets {reset} counter network.io.direction=transmit",
	}
	if d := cmp.Diff(want, first) + cmp.Diff(want, second); d != "" {
		t.Error(d)
	}
	if one <= 0 || two != one+10 { // read once per export
		t.Errorf("the counter went from %v to %v", one, two)
	}
	st := settled(t, e, func(st Status) bool { return st.MetricsSent >= 2 })
	if st.MetricsFailed != 0 || st.LastError != "" || !strings.Contains(st.MetricsEndpoint, "grpc") {
		t.Errorf("%+v", st)
	}
}

// A backend that takes no metrics still gets incidents.
func TestMetricsFail(t *testing.T) {
	b := &backend{refuse: status.Error(codes.Unimplemented, "no metrics here")}
	point(t, b.serve(t, ""))
	t.Setenv("OTEL_METRIC_EXPORT_INTERVAL", "20")
	o := newOutbox(SignalTraces, SignalLogs)
	cfg := testConfig(o)
	cfg.Metrics = testMetrics()
	e := start(t, cfg)
	until(t, o, "both signals sent", empty(o))
	st := settled(t, e, func(st Status) bool { return st.MetricsFailed >= 2 && st.Sent == 2 })
	if st.MetricsSent != 0 || st.Failed != 0 || !strings.Contains(st.LastError, "send metrics to http://127.0.0.1") || !strings.Contains(st.LastError, "no metrics here") {
		t.Errorf("%+v", st)
	}
}

func TestMetricsConfigured(t *testing.T) {
	for _, tt := range []struct {
		name string
		env  map[string]string
		want string
	}{
		{"nothing set", nil, ""},
		{"another signal's endpoint", map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1"}, ""},
		{"off", map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_METRICS_EXPORTER": "none"}, ""},
		{"all off", map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"}, ""},
		{"common endpoint", map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, "http://127.0.0.1:1 (http/protobuf)"},
		{"console", map[string]string{"OTEL_METRICS_EXPORTER": "console"}, "console"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			clearEnv(t)
			for k, v := range tt.env {
				t.Setenv(k, v)
			}
			cfg := testConfig(newOutbox())
			cfg.Metrics = testMetrics()
			e, err := New(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			if got := e.Status().MetricsEndpoint; got != tt.want {
				t.Errorf("metrics go to %q, want %q", got, tt.want)
			}
			if slices.Contains(e.Signals(), signalMetrics) {
				t.Error("metrics are in the outbox")
			}
		})
	}
	clearEnv(t)
	t.Setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://127.0.0.1:1")
	t.Setenv("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "http/json")
	cfg := testConfig(newOutbox())
	cfg.Metrics = testMetrics()
	if _, err := New(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), `protocol "http/json": use grpc or http/protobuf`) {
		t.Errorf("an unknown protocol: %v", err)
	}
}
