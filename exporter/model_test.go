package exporter

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/log"
	sdklog "go.opentelemetry.io/otel/sdk/log"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"tcpcoroner/evidence"
)

var (
	noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	host = evidence.Host{Name: "edge-1", ID: "b5c37a3ee2b04b1c8d7ac1b77c0d9a11"}
)

const (
	testID    = "01JQ0000000000000000000001"
	testTrace = "bca7bcebc6e8d80aaf9e41cb4bc4f57a"
)

func verdictOfKind(o evidence.Origin, m evidence.Mechanism, sentence string) evidence.Verdict {
	v, _ := evidence.NewVerdict(evidence.Claim{
		Origin: o, Mechanism: m, Layer: evidence.LayerTransport, Confidence: evidence.Likely, Sentence: sentence,
	}, evidence.Finding{Kind: evidence.KindPacket, Text: "seen"})
	return v
}

// testIncident: f1 is our client refused by the peer's kernel, f2 our server
// aborting its client, and a listener at its limit.
func testIncident() *evidence.Incident {
	local := netip.MustParseAddrPort("10.20.4.18:41216")
	peer := netip.MustParseAddrPort("10.30.7.56:8443")
	server := netip.MustParseAddrPort("[2001:db8::1]:443")
	client := netip.MustParseAddrPort("[2001:db8::2]:51644")
	owner := &evidence.Owner{PID: 1192, Comm: "nginx", Exe: "/usr/sbin/nginx", Cgroup: "/system.slice/nginx.service", Unit: "nginx.service", Started: noon.Add(-time.Hour)}
	refused := verdictOfKind(evidence.OriginPeerHost, evidence.MechanismRefused, "10.30.7.56:8443 refused: nothing listens")
	abort := verdictOfKind(evidence.OriginLocalProcess, evidence.MechanismActiveAbort, "nginx[1192] reset its client")
	return &evidence.Incident{
		Schema: evidence.SchemaIncident, ID: testID, TraceID: testTrace, Host: host,
		Time: noon, Closed: noon.Add(10 * time.Second),
		Firings: []evidence.Firing{{
			Trigger: "resets", Time: noon, Expression: "resets over baseline", Value: 143, Threshold: 20,
			Listeners: []evidence.Socket{{State: "listen", Local: netip.MustParseAddrPort("0.0.0.0:443"), RecvQueue: 129, SendQueue: 128, Owner: owner}},
		}},
		Window: evidence.Window{From: noon.Add(-20 * time.Second), To: noon.Add(10 * time.Second), PacketCount: 4711, Gaps: []evidence.Gap{{Lost: 3}}},
		Before: evidence.Counters{Values: map[string]uint64{"TcpExt.ListenOverflows": 5}},
		At: &evidence.Snapshot{
			Counters: evidence.Counters{Values: map[string]uint64{"TcpExt.ListenOverflows": 17}},
			Conntrack: &evidence.Conntrack{Count: 900, Max: 1024, TopTalkers: []evidence.Talker{
				{Source: netip.MustParseAddr("10.0.0.9"), Destination: peer, Protocol: "tcp", Entries: 800},
			}},
		},
		Flows: []evidence.Flow{
			{
				ID: "f1", Client: local, Server: peer, Local: local, InitiatorSeen: true, First: noon.Add(-2 * time.Second), Last: noon.Add(-time.Second), Packets: 2, Resets: 1,
				Reset: &evidence.Reset{Time: noon.Add(-time.Second), From: peer, Flags: "RST_ACK", TTL: 57, Interface: "ens5"},
				Timeline: []evidence.Step{
					{Time: noon.Add(-2 * time.Second), Flags: "SYN", Line: "+0.000ms > SYN seq=0"},
					{Time: noon.Add(-time.Second), Flags: "RST_ACK", Line: "+1000.000ms < RST ttl=57"},
				},
				Owner: owner, Verdict: refused,
			},
			{
				ID: "f2", Client: client, Server: server, Local: server, First: noon.Add(-3 * time.Second), Last: noon.Add(time.Second),
				Reset: &evidence.Reset{Time: noon, From: server, Flags: "RST", TTL: 64, Interface: "ens5"}, Verdict: abort,
			},
		},
		FlowsTotal: 40, FlowsImplicated: 2, Verdict: refused,
	}
}

func testEncoder(t *testing.T) *encoder {
	t.Helper()
	e, err := newEncoder(t.Context(), "1.2.3", host)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func spansOf(t *testing.T, inc *evidence.Incident) tracetest.SpanStubs {
	t.Helper()
	spans, err := testEncoder(t).spans(inc)
	if err != nil {
		t.Fatal(err)
	}
	memory := tracetest.NewInMemoryExporter()
	if err := memory.ExportSpans(t.Context(), spans); err != nil {
		t.Fatal(err)
	}
	return memory.GetSpans()
}

func texts(kv []attribute.KeyValue) map[string]string {
	m := map[string]string{}
	for _, a := range kv {
		m[string(a.Key)] = a.Value.String()
	}
	return m
}

func TestRootSpan(t *testing.T) {
	spans := spansOf(t, testIncident())
	root := spans[len(spans)-1]
	if root.Name != "incident resets" || root.SpanKind != trace.SpanKindInternal || root.Parent.IsValid() {
		t.Errorf("%s %v %v", root.Name, root.SpanKind, root.Parent)
	}
	if root.Status.Code != codes.Error || root.Status.Description != "10.30.7.56:8443 refused: nothing listens" {
		t.Errorf("%+v", root.Status)
	}
	if !root.StartTime.Equal(noon.Add(-3*time.Second)) || !root.EndTime.Equal(noon.Add(time.Second)) {
		t.Errorf("from %v to %v", root.StartTime, root.EndTime)
	}
	if root.SpanContext.TraceID().String() != testTrace {
		t.Error(root.SpanContext.TraceID())
	}
	want := map[string]string{
		"tcpcoroner.incident.id": testID, "tcpcoroner.trigger.name": "resets",
		"tcpcoroner.trigger.expression": "resets over baseline", "tcpcoroner.trigger.value": "143", "tcpcoroner.trigger.threshold": "20",
		"tcpcoroner.verdict": "peer.host/refused", "tcpcoroner.verdict.confidence": "likely", "tcpcoroner.verdict.benign": "false",
		"tcpcoroner.reset.by": "peer", "tcpcoroner.reset.cause": "no_listener", "tcpcoroner.reset.layer": "transport",
		"tcpcoroner.window.start": "2026-03-01T11:59:40Z", "tcpcoroner.window.duration": "30",
		"tcpcoroner.window.packets": "4711", "tcpcoroner.window.dropped": "3",
		"tcpcoroner.flows.total": "40", "tcpcoroner.flows.implicated": "2",
		"tcpcoroner.capture.command": "tcpcoroner pull " + testID + " -o " + testID + ".pcapng",
		"tcpcoroner.conntrack.count": "900", "tcpcoroner.conntrack.max": "1024",
		"tcpcoroner.conntrack.top_talkers": `["10.0.0.9 to 10.30.7.56:8443 tcp: 800 entries"]`,
		"tcpcoroner.listen.overflows":      "12", "tcpcoroner.listen.address": "0.0.0.0:443", "tcpcoroner.listen.pid": "1192",
		"tcpcoroner.listen.queue": "129", "tcpcoroner.listen.backlog": "128", "tcpcoroner.systemd.unit": "nginx.service",
	}
	if d := cmp.Diff(want, texts(root.Attributes)); d != "" {
		t.Error(d)
	}
	res := texts(root.Resource.Attributes())
	for k, v := range map[string]string{
		"service.name": "tcpcoroner", "service.version": "1.2.3", "service.instance.id": host.ID,
		"host.id": host.ID, "host.name": "edge-1", "os.type": "linux",
	} {
		if res[k] != v {
			t.Errorf("resource %s = %q, want %q", k, res[k], v)
		}
	}
}

func TestFlowSpans(t *testing.T) {
	spans := spansOf(t, testIncident())
	if len(spans) != 3 {
		t.Fatalf("%d spans", len(spans))
	}
	f1, f2, root := spans[0], spans[1], spans[2]
	if f1.Name != "tcp refused by peer host" || f1.SpanKind != trace.SpanKindClient {
		t.Errorf("%s %v", f1.Name, f1.SpanKind)
	}
	if f2.Name != "tcp reset by local process" || f2.SpanKind != trace.SpanKindServer {
		t.Errorf("%s %v", f2.Name, f2.SpanKind)
	}
	if f1.Parent.SpanID() != root.SpanContext.SpanID() {
		t.Error("f1 is no child of the root")
	}
	want := map[string]string{
		"network.transport": "tcp", "network.type": "ipv4",
		"network.local.address": "10.20.4.18", "network.local.port": "41216", "network.peer.address": "10.30.7.56", "network.peer.port": "8443",
		"client.address": "10.20.4.18", "client.port": "41216", "server.address": "10.30.7.56", "server.port": "8443",
		"network.interface.name": "ens5", "error.type": "connection_refused",
		"process.pid": "1192", "process.executable.name": "nginx", "process.executable.path": "/usr/sbin/nginx",
		"process.linux.cgroup": "/system.slice/nginx.service", "process.creation.time": "2026-03-01T11:00:00Z",
		"tcpcoroner.systemd.unit": "nginx.service", "tcpcoroner.incident.id": testID, "tcpcoroner.flow.id": "f1",
		"tcpcoroner.reset.by": "peer", "tcpcoroner.reset.cause": "no_listener", "tcpcoroner.reset.layer": "transport",
		"tcpcoroner.reset.ttl": "57", "tcpcoroner.verdict.confidence": "likely", "tcpcoroner.verdict.benign": "false",
	}
	if d := cmp.Diff(want, texts(f1.Attributes)); d != "" {
		t.Error(d)
	}
	if got := texts(f2.Attributes); got["network.type"] != "ipv6" || got["server.address"] != "2001:db8::1" || got["error.type"] != "connection_reset" {
		t.Errorf("%v", got)
	}
	if len(f1.Events) != 2 || f1.Events[1].Name != "tcp.packet" || !f1.Events[1].Time.Equal(noon.Add(-time.Second)) {
		t.Fatalf("%+v", f1.Events)
	}
	if d := cmp.Diff(map[string]string{"capture.packet": "+1000.000ms < RST ttl=57", "tcp.flags": "RST_ACK"}, texts(f1.Events[1].Attributes)); d != "" {
		t.Error(d)
	}
}

func TestForwardedFlow(t *testing.T) {
	inc := testIncident()
	f := &inc.Flows[0]
	f.Local, f.Verdict = netip.AddrPort{}, verdictOfKind(evidence.OriginForwarded, evidence.MechanismUnknown, "passed through")
	s := spansOf(t, inc)[0]
	if s.SpanKind != trace.SpanKindInternal || s.Name != "tcp reset in transit" {
		t.Errorf("%v %s", s.SpanKind, s.Name)
	}
	if _, ok := texts(s.Attributes)["network.peer.address"]; ok {
		t.Error("a forwarded flow has no peer")
	}
}

// An incident without flows (a full conntrack table, say) and without counters.
func TestBareIncident(t *testing.T) {
	inc := &evidence.Incident{ID: testID, TraceID: testTrace, Host: host, Time: noon, Firings: []evidence.Firing{{Trigger: "conntrack"}}}
	spans := spansOf(t, inc)
	if len(spans) != 1 || spans[0].Name != "incident conntrack" || !spans[0].StartTime.Equal(noon) || !spans[0].EndTime.Equal(noon) {
		t.Errorf("%+v", spans)
	}
	got := texts(spans[0].Attributes)
	for _, k := range []string{"tcpcoroner.conntrack.count", "tcpcoroner.listen.overflows", "tcpcoroner.listen.address"} {
		if v, ok := got[k]; ok {
			t.Errorf("%s = %s, but it was not measured", k, v)
		}
	}
}

func TestManyFlows(t *testing.T) {
	inc := testIncident()
	for len(inc.Flows) < 120 {
		inc.Flows = append(inc.Flows, inc.Flows[0])
	}
	inc.FlowsImplicated = 318
	spans := spansOf(t, inc)
	if len(spans) != maxFlowSpans+2 {
		t.Fatalf("%d spans", len(spans))
	}
	more := spans[maxFlowSpans]
	if more.Name != "… 268 more flows like #1" {
		t.Error(more.Name)
	}
	if got := texts(more.Attributes)["tcpcoroner.flows.more"]; got != `["70 x tcp refused by peer host, 10.30.7.56"]` {
		t.Error(got)
	}
	ids := map[trace.SpanID]bool{}
	for _, s := range spans {
		ids[s.SpanContext.SpanID()] = true
	}
	if len(ids) != len(spans) {
		t.Error("span ids are not unique")
	}
}

func TestSizeIsBounded(t *testing.T) {
	inc := testIncident()
	inc.Flows[0].Timeline = nil
	for range evidence.MaxSteps {
		inc.Flows[0].Timeline = append(inc.Flows[0].Timeline, evidence.Step{Time: noon, Line: strings.Repeat("x", 10_000)})
	}
	for len(inc.Flows) < 50 {
		inc.Flows = append(inc.Flows, inc.Flows[0])
	}
	inc.FlowsImplicated = len(inc.Flows)
	spans, err := testEncoder(t).spans(inc)
	if err != nil || size(spans) > maxExportBytes || len(spans) < 3 {
		t.Errorf("%d spans, %d bytes, %v", len(spans), size(spans), err)
	}
}

func TestDeterministic(t *testing.T) {
	a, b := spansOf(t, testIncident()), spansOf(t, testIncident())
	for i := range a {
		if a[i].SpanContext.SpanID() != b[i].SpanContext.SpanID() {
			t.Errorf("span %d has another id the second time", i)
		}
	}
	other := testIncident()
	other.Host.ID = "another"
	if c := spansOf(t, other); c[0].SpanContext.SpanID() == a[0].SpanContext.SpanID() {
		t.Error("two hosts share span ids")
	}
}

func recordsOf(t *testing.T, inc *evidence.Incident, late bool) []sdklog.Record {
	t.Helper()
	r, err := testEncoder(t).records(inc, late)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func recordTexts(r sdklog.Record) map[string]string {
	var kv []attribute.KeyValue
	r.WalkAttributes(func(a attribute.KeyValue) bool { kv = append(kv, a); return true })
	return texts(kv)
}

func TestRecords(t *testing.T) {
	inc := testIncident()
	records, spans := recordsOf(t, inc, false), spansOf(t, inc)
	if len(records) != 3 {
		t.Fatalf("%d records", len(records))
	}
	for i, want := range []struct {
		name, body string
		span       tracetest.SpanStub
		at         time.Time
	}{
		{"tcpcoroner.incident", "10.30.7.56:8443 refused: nothing listens incident=" + testID, spans[2], noon},
		{"tcp.connection.refused", "10.30.7.56:8443 refused: nothing listens", spans[0], noon.Add(-time.Second)},
		{"tcp.connection.reset", "nginx[1192] reset its client", spans[1], noon},
	} {
		r := records[i]
		got := recordTexts(r)
		if r.EventName() != want.name || got["tcpcoroner.event"] != want.name || r.Body().AsString() != want.body || r.Severity() != log.SeverityError {
			t.Errorf("%d: %s %q %v", i, r.EventName(), r.Body().AsString(), r.Severity())
		}
		if r.TraceID() != want.span.SpanContext.TraceID() || r.SpanID() != want.span.SpanContext.SpanID() || !r.Timestamp().Equal(want.at) {
			t.Errorf("%s: not tied to its span: %v %v", want.name, r.SpanID(), r.Timestamp())
		}
		for k, v := range texts(want.span.Attributes) {
			if got[k] != v {
				t.Errorf("%s: %s = %q, on the span %q", want.name, k, got[k], v)
			}
		}
		if _, ok := got["tcpcoroner.late"]; ok {
			t.Error("late")
		}
	}
}

func TestRecordSeverityAndLate(t *testing.T) {
	inc := testIncident()
	inc.Verdict = evidence.Unknown("nothing is known", "")
	for _, r := range recordsOf(t, inc, true) {
		if r.EventName() == "tcpcoroner.incident" && r.Severity() != log.SeverityWarn {
			t.Errorf("unknown verdict: %v", r.Severity())
		}
		if recordTexts(r)["tcpcoroner.late"] != "true" {
			t.Errorf("%s is not marked late", r.EventName())
		}
	}
}

func TestBadTraceID(t *testing.T) {
	inc := testIncident()
	inc.TraceID = strings.Repeat("0", 32)
	if _, err := testEncoder(t).spans(inc); err == nil {
		t.Error("accepted")
	}
}

// Every claim that the rules can make has a word for the backend.
func TestTables(t *testing.T) {
	for _, o := range []evidence.Origin{
		evidence.OriginLocalProcess, evidence.OriginLocalKernel, evidence.OriginLocalNetfilter, evidence.OriginLocalOther,
		evidence.OriginLocalHost, evidence.OriginPeerProcess, evidence.OriginPeerKernel, evidence.OriginPeerHost,
		evidence.OriginMiddlebox, evidence.OriginMiddleboxNear, evidence.OriginMiddleboxFar, evidence.OriginNAT,
		evidence.OriginForwarded, evidence.OriginNone, evidence.OriginUnknown,
	} {
		if _, ok := resetBy[o]; !ok {
			t.Errorf("origin %s", o)
		}
		for _, m := range []evidence.Mechanism{
			evidence.MechanismRefused, evidence.MechanismRefusedFilter, evidence.MechanismNoSocket, evidence.MechanismUnread,
			evidence.MechanismAfterFIN, evidence.MechanismQueueOverflow, evidence.MechanismConntrackFull, evidence.MechanismUnknown,
		} {
			if c := causeOf(m); c == "" || strings.Contains(c, ".") {
				t.Errorf("mechanism %s: cause %q", m, c)
			}
			f := evidence.Flow{Reset: &evidence.Reset{}, Verdict: verdictOfKind(o, m, "s")}
			if n := spanName(&f); !strings.HasPrefix(n, "tcp ") || strings.ContainsAny(n, "0123456789") {
				t.Errorf("%s/%s: name %q", o, m, n)
			}
		}
	}
}

func TestConfigured(t *testing.T) {
	const endpointKey = "OTEL_EXPORTER_OTLP_ENDPOINT"
	for _, tt := range []struct {
		env          string
		traces, logs bool
		where        string // of traces
	}{
		{"", false, false, ""},
		{endpointKey + "=http://c:4318", true, true, "http://c:4318 (http/protobuf)"},
		{endpointKey + "=http://u:secret@c:4317 OTEL_EXPORTER_OTLP_PROTOCOL=grpc", true, true, "http://u:xxxxx@c:4317 (grpc)"},
		{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://c:4318/v1/traces", true, false, "http://c:4318/v1/traces (http/protobuf)"},
		{"OTEL_TRACES_EXPORTER=otlp", true, false, "http://localhost:4318 (http/protobuf)"},
		{"OTEL_TRACES_EXPORTER=otlp OTEL_EXPORTER_OTLP_PROTOCOL=grpc", true, false, "http://localhost:4317 (grpc)"},
		{"OTEL_TRACES_EXPORTER=console OTEL_LOGS_EXPORTER=none", true, false, "console"},
		{endpointKey + "=http://c:4318 OTEL_LOGS_EXPORTER=none", true, false, "http://c:4318 (http/protobuf)"},
		{endpointKey + "=http://c:4318 OTEL_SDK_DISABLED=TRUE", false, false, ""},
	} {
		env := map[string]string{}
		for _, kv := range strings.Fields(tt.env) {
			k, v, _ := strings.Cut(kv, "=")
			env[k] = v
		}
		get := func(k string) string { return env[k] }
		if a, b := configured(get, SignalTraces), configured(get, SignalLogs); a != tt.traces || b != tt.logs {
			t.Errorf("%q: traces %v, logs %v", tt.env, a, b)
		}
		if got := endpoint(get, SignalTraces); tt.traces && got != tt.where {
			t.Errorf("%q: %q", tt.env, got)
		}
	}
}

func TestVerdictOf(t *testing.T) {
	for text, want := range map[string]string{
		"":                   "sent",
		"connection refused": "failed",
		"traces export: OTLP partial success: too old (3 spans rejected)":       "rejected",
		"OTLP partial success: attribute x is deprecated (0 spans rejected)":    "sent",
		"OTLP partial success: quota (10 log records rejected)":                 "rejected",
		"OTLP partial success: empty message (0 log records rejected)\nfurther": "sent",
	} {
		var err error
		if text != "" {
			err = fmt.Errorf("%s", text)
		}
		got := "failed"
		switch err := verdictOf(err); {
		case err == nil:
			got = "sent"
		case strings.Contains(err.Error(), errRejected.Error()):
			got = "rejected"
		}
		if got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}
