package exporter

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/log"
	sdklog "go.opentelemetry.io/otel/sdk/log"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"tcpcoroner/evidence"
)

const scopeName = "tcpcoroner/exporter"

// Bounds of one incident's export: gRPC receivers refuse messages over 4 MiB.
const (
	maxFlowSpans   = 50
	maxExportBytes = 1 << 20
	maxTextBytes   = 4 << 10
)

// moreSpan numbers the span that stands for the flows without one of their own.
const moreSpan = 1 << 20

// encoder turns incidents into what the OTLP exporters take. It is a pure
// function of the incident: twice the same incident, twice the same bytes.
type encoder struct {
	version  string
	resource *resource.Resource
}

// newEncoder describes this host. The environment (OTEL_SERVICE_NAME,
// OTEL_RESOURCE_ATTRIBUTES) comes last and wins.
func newEncoder(ctx context.Context, version string, h evidence.Host) (*encoder, error) {
	res, err := resource.New(ctx,
		resource.WithSchemaURL(schemaURL),
		resource.WithTelemetrySDK(),
		resource.WithAttributes(
			semconv.ServiceName("tcpcoroner"), semconv.ServiceVersion(version), semconv.ServiceInstanceID(h.ID),
			semconv.HostName(h.Name), semconv.HostID(h.ID), semconv.OSTypeLinux),
		resource.WithFromEnv())
	if err != nil && !errors.Is(err, resource.ErrPartialResource) && !errors.Is(err, resource.ErrSchemaURLConflict) {
		return nil, fmt.Errorf("describe this host to OpenTelemetry: %w: check OTEL_RESOURCE_ATTRIBUTES", err)
	}
	return &encoder{version: version, resource: res}, nil
}

// spans is the incident's trace. If it is too large, fewer flows have spans.
func (e *encoder) spans(inc *evidence.Incident) ([]sdktrace.ReadOnlySpan, error) {
	id, err := traceID(inc)
	if err != nil {
		return nil, err
	}
	for n := min(maxFlowSpans, len(inc.Flows)); ; n /= 2 {
		c := new(spanCapture)
		provider := sdktrace.NewTracerProvider(
			sdktrace.WithResource(e.resource), sdktrace.WithSpanProcessor(c), sdktrace.WithSampler(sdktrace.AlwaysSample()),
			sdktrace.WithIDGenerator(ids{id, inc.Host.ID}), sdktrace.WithRawSpanLimits(spanLimits))
		buildTrace(provider.Tracer(scopeName, trace.WithInstrumentationVersion(e.version), trace.WithSchemaURL(schemaURL)), inc, n)
		if n == 0 || size(c.spans) <= maxExportBytes {
			return c.spans, nil
		}
	}
}

var spanLimits = sdktrace.SpanLimits{
	AttributeValueLengthLimit: maxTextBytes, AttributeValueDepthLimit: 8,
	AttributeCountLimit: 128, EventCountLimit: 256, LinkCountLimit: 128,
	AttributePerEventCountLimit: 16, AttributePerLinkCountLimit: 16,
}

// buildTrace makes the root and the spans of the first n flows.
func buildTrace(t trace.Tracer, inc *evidence.Incident, n int) {
	start, end := interval(inc)
	ctx, root := t.Start(number(context.Background(), 0), rootName(inc), trace.WithNewRoot(),
		trace.WithTimestamp(start), trace.WithAttributes(incidentAttributes(inc)...))
	root.SetStatus(codes.Error, inc.Verdict.String())
	for i := range inc.Flows[:n] {
		buildFlow(ctx, t, inc, i)
	}
	if more := max(inc.FlowsImplicated, len(inc.Flows)) - n; more > 0 {
		_, s := t.Start(number(ctx, moreSpan), fmt.Sprintf("… %d more flows like #1", more),
			trace.WithTimestamp(start), trace.WithAttributes(moreAttributes(inc, n, more)...))
		s.End(trace.WithTimestamp(end))
	}
	root.End(trace.WithTimestamp(end))
}

func rootName(inc *evidence.Incident) string { return "incident " + cmp.Or(inc.Trigger(), "unknown") }

// buildFlow makes the span of a flow. A backend draws the status' text on every
// view, so the verdict is there; only an error may have one.
func buildFlow(ctx context.Context, t trace.Tracer, inc *evidence.Incident, i int) {
	f := &inc.Flows[i]
	_, s := t.Start(number(ctx, i+1), spanName(f), trace.WithSpanKind(kind(f)),
		trace.WithTimestamp(f.First), trace.WithAttributes(flowAttributes(inc, f)...))
	for _, step := range f.Timeline {
		s.AddEvent("tcp.packet", trace.WithTimestamp(step.Time), trace.WithAttributes(stepAttributes(step)...))
	}
	if !f.Verdict.Claim().Benign {
		s.SetStatus(codes.Error, f.Verdict.String())
	}
	s.End(trace.WithTimestamp(f.Last))
}

func kind(f *evidence.Flow) trace.SpanKind {
	switch f.Local {
	case f.Client:
		return trace.SpanKindClient
	case f.Server:
		return trace.SpanKindServer
	}
	return trace.SpanKindInternal
}

// moreAttributes counts the flows without a span by name and peer, as far as
// the incident describes them.
func moreAttributes(inc *evidence.Incident, n, more int) []attribute.KeyValue {
	const shown = 20
	counts := map[string]int{}
	for i := range inc.Flows[n:] {
		f := &inc.Flows[n+i]
		peer := f.Peer()
		if !peer.IsValid() {
			peer = f.Server
		}
		counts[spanName(f)+", "+address(peer)]++
	}
	var lines []string
	for _, what := range byCount(counts) {
		lines = append(lines, fmt.Sprintf("%d x %s", counts[what], what))
	}
	l := list{attribute.StringSlice(prefix+"flows.more", lines[:min(len(lines), shown)])}
	l.text("incident.id", inc.ID)
	l.number("flows.more.count", uint64(more))
	return l
}

func byCount(counts map[string]int) []string {
	var keys []string
	for k := range counts {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b string) int { return cmp.Or(counts[b]-counts[a], cmp.Compare(a, b)) })
	return keys
}

// interval is the evidence: from the first packet of the earliest implicated
// flow, not before the window, to the last one. A root as long as the window
// would make the flows one pixel wide.
func interval(inc *evidence.Incident) (start, end time.Time) {
	for _, f := range inc.Flows {
		if start.IsZero() || f.First.Before(start) {
			start = f.First
		}
		if f.Last.After(end) {
			end = f.Last
		}
	}
	if start.IsZero() {
		start = inc.Time
	}
	if start.Before(inc.Window.From) {
		start = inc.Window.From
	}
	if end.Before(start) {
		end = start
	}
	return start, end
}

// records are the incident's log record and one for each reset flow.
func (e *encoder) records(inc *evidence.Incident, late bool) ([]sdklog.Record, error) {
	id, err := traceID(inc)
	if err != nil {
		return nil, err
	}
	c := new(recordCapture)
	provider := sdklog.NewLoggerProvider(sdklog.WithResource(e.resource), sdklog.WithProcessor(c),
		sdklog.WithAttributeValueLengthLimit(maxTextBytes))
	l := provider.Logger(scopeName, log.WithInstrumentationVersion(e.version), log.WithSchemaURL(schemaURL))
	w := recordWriter{log: l, ids: ids{id, inc.Host.ID}, late: late, observed: closed(inc)}
	severity := log.SeverityError
	if inc.Verdict.Claim().Confidence == evidence.Uncertain {
		severity = log.SeverityWarn
	}
	w.write(0, "tcpcoroner.incident", inc.Time, severity, inc.Verdict.String()+" incident="+inc.ID, incidentAttributes(inc))
	for i := range inc.Flows[:min(maxFlowSpans, len(inc.Flows))] {
		w.writeFlow(inc, i)
	}
	return c.records, nil
}

// recordWriter writes the records of one incident.
type recordWriter struct {
	log      log.Logger
	ids      ids
	late     bool
	observed time.Time
}

func (w recordWriter) writeFlow(inc *evidence.Incident, i int) {
	f := &inc.Flows[i]
	if f.Reset == nil {
		return
	}
	name := "tcp.connection.reset"
	if errorType(f) == "connection_refused" {
		name = "tcp.connection.refused"
	}
	severity := log.SeverityError
	if f.Verdict.Claim().Confidence == evidence.Uncertain || f.Verdict.Claim().Benign {
		severity = log.SeverityWarn
	}
	w.write(i+1, name, f.Reset.Time, severity, f.Verdict.String(), flowAttributes(inc, f))
}

// write emits one record. The name is an attribute too: Loki drops EventName.
func (w recordWriter) write(span int, name string, at time.Time, severity log.Severity, body string, kv []attribute.KeyValue) {
	var r log.Record
	r.SetEventName(name)
	r.SetTimestamp(at)
	r.SetObservedTimestamp(w.observed)
	r.SetSeverity(severity)
	r.SetSeverityText(severity.String())
	r.SetBody(attribute.StringValue(body))
	r.AddAttributes(kv...)
	r.AddAttributes(attribute.String(prefix+"event", name))
	if w.late {
		r.AddAttributes(attribute.Bool(prefix+"late", true))
	}
	w.log.Emit(trace.ContextWithSpanContext(context.Background(), w.ids.context(span)), r)
}

// traceID refuses an incident whose trace id was never made: it cannot be sent.
func traceID(inc *evidence.Incident) (trace.TraceID, error) {
	id, err := trace.TraceIDFromHex(inc.TraceID)
	if err != nil {
		return id, fmt.Errorf("trace id %q of incident %s: %w", inc.TraceID, inc.ID, err)
	}
	return id, nil
}

// ids derives span ids from the trace, the host and a number: 0 is the root, the
// flows count from 1.
type ids struct {
	trace trace.TraceID
	host  string
}

func (g ids) span(n int) (id trace.SpanID) {
	b := binary.BigEndian.AppendUint64(append(append(g.trace[:], '|'), g.host+"|"...), uint64(n))
	sum := sha256.Sum256(b)
	copy(id[:], sum[:])
	return id
}

func (g ids) context(n int) trace.SpanContext {
	return trace.NewSpanContext(trace.SpanContextConfig{TraceID: g.trace, SpanID: g.span(n), TraceFlags: trace.FlagsSampled})
}

type numberKey struct{}

// number tells the id generator which span comes next.
func number(ctx context.Context, n int) context.Context {
	return context.WithValue(ctx, numberKey{}, n)
}

// NewIDs implements sdktrace.IDGenerator.
func (g ids) NewIDs(ctx context.Context) (trace.TraceID, trace.SpanID) {
	return g.trace, g.NewSpanID(ctx, g.trace)
}

// NewSpanID implements sdktrace.IDGenerator.
func (g ids) NewSpanID(ctx context.Context, _ trace.TraceID) trace.SpanID {
	n, _ := ctx.Value(numberKey{}).(int)
	return g.span(n)
}

// spanCapture and recordCapture keep what the SDK made, in memory.
type spanCapture struct{ spans []sdktrace.ReadOnlySpan }

func (*spanCapture) OnStart(context.Context, sdktrace.ReadWriteSpan) {}
func (c *spanCapture) OnEnd(s sdktrace.ReadOnlySpan)                 { c.spans = append(c.spans, s) }
func (*spanCapture) Shutdown(context.Context) error                  { return nil }
func (*spanCapture) ForceFlush(context.Context) error                { return nil }

type recordCapture struct{ records []sdklog.Record }

func (*recordCapture) Enabled(context.Context, sdklog.EnabledParameters) bool { return true }
func (c *recordCapture) OnEmit(_ context.Context, r *sdklog.Record) error {
	c.records = append(c.records, r.Clone())
	return nil
}
func (*recordCapture) Shutdown(context.Context) error   { return nil }
func (*recordCapture) ForceFlush(context.Context) error { return nil }

// size estimates the encoded spans from above by their texts.
func size(spans []sdktrace.ReadOnlySpan) (n int) {
	const overhead = 24 // tags, lengths, numbers of an attribute or event
	attributes := func(kv []attribute.KeyValue) {
		for _, a := range kv {
			n += overhead + len(a.Key) + len(a.Value.String())
		}
	}
	for _, s := range spans {
		n += 128 + len(s.Name()) + len(s.Status().Description)
		attributes(s.Attributes())
		for _, e := range s.Events() {
			n += overhead + len(e.Name)
			attributes(e.Attributes)
		}
	}
	return n
}
