// Package exporter tells the tracing backend of incidents, over OpenTelemetry
// only: one trace and a log record an incident, and a log record for each reset
// flow. It also sends the daemon's own numbers as metrics. It must not judge,
// nor change what is stored.
//
// The OpenTelemetry SDK is the encoder, the outbox is the queue. The SDK's own
// batch processors discard what they cannot deliver within seconds; here spans
// and records are captured in memory, handed to the exporter synchronously, and
// the outbox entry goes only when the backend has taken them. Each signal has
// an entry of its own. Trace and span ids are derived from the incident, so a
// delivery that is made twice is the same trace twice.
//
// # Configuration
//
// The standard OTEL_* environment variables (OpenTelemetry specification,
// "OTLP Exporter Configuration"), with two differences. With neither an
// endpoint nor the signal's OTEL_..._EXPORTER set nothing is sent, instead of
// dialling localhost. And OTEL_TRACES_SAMPLER is not heeded: an incident is never
// sampled away.
//
// # Metrics
//
// What Config.Metrics returns is sent every OTEL_METRIC_EXPORT_INTERVAL by the
// SDK's periodic reader, if the environment configures the signal as it does the
// others. Metrics need no outbox: a counter survives a gap. A failure is counted
// in Status and costs nothing but that export. OTEL_METRICS_EXPORTER=none turns
// them off, console and prometheus are served by the SDK.
//
// # Late incidents
//
// Backends refuse old spans (New Relic and Dynatrace after 60 minutes). A trace
// that could not be delivered within Config.MaxAge is given up and stays in the
// outbox as rejected; the log record is sent whenever it can be, then with
// tcpcoroner.late=true.
package exporter
