package exporter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"go.opentelemetry.io/contrib/exporters/autoexport"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetricgrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetrichttp"
	"go.opentelemetry.io/otel/metric"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
)

// signalMetrics is no signal of the outbox: counters survive a gap, so what
// could not be sent is not sent again.
const signalMetrics = "metrics"

// Metric is one number of the daemon as it is now.
type Metric struct {
	// Name is a name of OpenTelemetry ("tcpcoroner.recorder.packets"), Unit a unit
	// of UCUM ("{packet}", "s", "1").
	Name, Unit, Description string
	// Counter says that the value only grows while the process lives.
	Counter bool
	Value   float64
	// Attributes tell numbers of the same name apart. They must be few and of few
	// values: never an address.
	Attributes map[string]string
}

// metricExporter counts how the exports go. It keeps failures from the SDK, which
// would print them.
type metricExporter struct {
	sdkmetric.Exporter
	exporter *Exporter
}

func (m metricExporter) Export(ctx context.Context, data *metricdata.ResourceMetrics) error {
	err := verdictOf(m.Exporter.Export(ctx, data))
	if err == nil {
		m.exporter.note(metricsSent, nil)
		return nil
	}
	m.exporter.note(metricsFailed, fmt.Errorf("send metrics to %s: %w%s",
		endpoint(os.Getenv, signalMetrics), err, hint(os.Getenv, signalMetrics)))
	return nil
}

func metricsSent(s *Status) *uint64   { return &s.MetricsSent }
func metricsFailed(s *Status) *uint64 { return &s.MetricsFailed }

// otlpMetrics tells whether metrics go over OTLP. The other exporters are local
// and are left to the SDK as a whole.
func otlpMetrics(getenv func(string) string) bool {
	name := getenv("OTEL_METRICS_EXPORTER")
	return name == "" || name == "otlp"
}

// dialMetrics makes the OTLP exporter that the environment describes. It does
// not connect.
func (e *Exporter) dialMetrics(ctx context.Context) (err error) {
	if !otlpMetrics(os.Getenv) {
		return nil
	}
	m := metricExporter{exporter: e}
	switch p := protocol(os.Getenv, signalMetrics); p {
	case "grpc":
		m.Exporter, err = otlpmetricgrpc.New(ctx)
	case "http/protobuf":
		m.Exporter, err = otlpmetrichttp.New(ctx)
	default:
		err = fmt.Errorf("protocol %q: use grpc or http/protobuf", p)
	}
	if err != nil {
		return fmt.Errorf("set up OpenTelemetry metrics to %s: %w: check the OTEL_ variables", endpoint(os.Getenv, signalMetrics), err)
	}
	e.metrics = m
	return nil
}

// startMetrics begins to send metrics every OTEL_METRIC_EXPORT_INTERVAL
// milliseconds, 60,000 by default. The function that it returns sends the last.
func (e *Exporter) startMetrics(ctx context.Context) (stop func(context.Context) error, err error) {
	var reader sdkmetric.Reader
	if e.metrics.Exporter != nil {
		reader = sdkmetric.NewPeriodicReader(e.metrics)
	} else if reader, err = autoexport.NewMetricReader(ctx); err != nil {
		return nil, fmt.Errorf("set up OpenTelemetry metrics to %s: %w: check the OTEL_ variables", endpoint(os.Getenv, signalMetrics), err)
	}
	provider := sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader), sdkmetric.WithResource(e.encoder.resource))
	meter := provider.Meter(scopeName, metric.WithInstrumentationVersion(e.cfg.Version))
	if err := observe(meter, e.cfg.Metrics); err != nil {
		return nil, errors.Join(fmt.Errorf("set up OpenTelemetry metrics: %w", err), provider.Shutdown(ctx))
	}
	return provider.Shutdown, nil
}

// stopMetrics has its own context: Run's has ended.
func (e *Exporter) stopMetrics(stop func(context.Context) error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := stop(ctx); err != nil {
		e.note(nil, fmt.Errorf("stop sending metrics: %w", err))
	}
}

// observe makes an instrument for each name that read returns now, and has read
// asked once for all of them whenever metrics are collected.
func observe(meter metric.Meter, read func() []Metric) error {
	instruments := map[string]metric.Float64Observable{}
	var all []metric.Observable
	for _, m := range read() {
		if instruments[m.Name] != nil {
			continue
		}
		i, err := instrument(meter, m)
		if err != nil {
			return err
		}
		instruments[m.Name], all = i, append(all, i)
	}
	_, err := meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		for _, m := range read() {
			if i := instruments[m.Name]; i != nil {
				o.ObserveFloat64(i, m.Value, metric.WithAttributeSet(m.attributes()))
			}
		}
		return nil
	}, all...)
	return err
}

func instrument(meter metric.Meter, m Metric) (metric.Float64Observable, error) {
	if m.Counter {
		return meter.Float64ObservableCounter(m.Name, metric.WithUnit(m.Unit), metric.WithDescription(m.Description))
	}
	return meter.Float64ObservableGauge(m.Name, metric.WithUnit(m.Unit), metric.WithDescription(m.Description))
}

func (m *Metric) attributes() attribute.Set {
	var all []attribute.KeyValue
	for k, v := range m.Attributes {
		all = append(all, attribute.String(k, v))
	}
	return attribute.NewSet(all...)
}
