package exporter

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	collogspb "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	colmetricspb "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"tcpcoroner/evidence"
)

// memoryOutbox is the durable outbox' contract without the disk.
type memoryOutbox struct {
	mu      sync.Mutex
	entries map[string]evidence.OutboxEntry
	changed chan struct{} // buffered: something was settled
}

func newOutbox(signals ...string) *memoryOutbox {
	o := &memoryOutbox{entries: map[string]evidence.OutboxEntry{}, changed: make(chan struct{}, 1000)}
	o.add(testID, signals...)
	return o
}

func (o *memoryOutbox) add(id string, signals ...string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, s := range signals {
		o.entries[s+id] = evidence.OutboxEntry{Signal: s, Incident: id}
	}
}

func (o *memoryOutbox) Pending(now time.Time) (due []evidence.OutboxEntry, next time.Time, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, e := range o.entries {
		switch {
		case e.Rejected:
		case !e.Next.After(now):
			due = append(due, e)
		case next.IsZero() || e.Next.Before(next):
			next = e.Next
		}
	}
	return due, next, nil
}

func (o *memoryOutbox) Done(signal, id string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.entries, signal+id)
	o.changed <- struct{}{}
	return nil
}

func (o *memoryOutbox) Retry(e evidence.OutboxEntry) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, ok := o.entries[e.Signal+e.Incident]; ok {
		o.entries[e.Signal+e.Incident] = e
	}
	o.changed <- struct{}{}
	return nil
}

func (o *memoryOutbox) PendingCount() (n int, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, e := range o.entries {
		if !e.Rejected {
			n++
		}
	}
	return n, nil
}

func (o *memoryOutbox) get(signal, id string) (evidence.OutboxEntry, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	e, ok := o.entries[signal+id]
	return e, ok
}

// backend is an OTLP server that answers as it is told and keeps what it got.
type backend struct {
	coltracepb.UnimplementedTraceServiceServer
	mu     sync.Mutex
	traces []*coltracepb.ExportTraceServiceRequest
	logs   []*collogspb.ExportLogsServiceRequest
	// answer is asked with the number of the call, from 1, of both signals.
	answer func(ctx context.Context, call int) (rejected int64, err error)
	calls  int
	// metrics gets the metrics, if it is not nil; refuse is the answer to them.
	metrics chan *colmetricspb.ExportMetricsServiceRequest
	refuse  error
}

func (b *backend) called(ctx context.Context) (int64, error) {
	b.mu.Lock()
	b.calls++
	n := b.calls
	b.mu.Unlock()
	if b.answer == nil {
		return 0, nil
	}
	return b.answer(ctx, n)
}

func (b *backend) Export(ctx context.Context, r *coltracepb.ExportTraceServiceRequest) (*coltracepb.ExportTraceServiceResponse, error) {
	b.mu.Lock()
	b.traces = append(b.traces, r)
	b.mu.Unlock()
	n, err := b.called(ctx)
	resp := &coltracepb.ExportTraceServiceResponse{}
	if n > 0 {
		resp.PartialSuccess = &coltracepb.ExportTracePartialSuccess{RejectedSpans: n, ErrorMessage: "too old"}
	}
	return resp, err
}

type logsBackend struct {
	collogspb.UnimplementedLogsServiceServer
	*backend
}

func (b logsBackend) Export(ctx context.Context, r *collogspb.ExportLogsServiceRequest) (*collogspb.ExportLogsServiceResponse, error) {
	b.mu.Lock()
	b.logs = append(b.logs, r)
	b.mu.Unlock()
	n, err := b.called(ctx)
	resp := &collogspb.ExportLogsServiceResponse{}
	if n > 0 {
		resp.PartialSuccess = &collogspb.ExportLogsPartialSuccess{RejectedLogRecords: n, ErrorMessage: "too old"}
	}
	return resp, err
}

// serve starts the backend on a loopback address; "" picks a free port.
func (b *backend) serve(t *testing.T, address string) string {
	t.Helper()
	if address == "" {
		address = "127.0.0.1:0"
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	coltracepb.RegisterTraceServiceServer(s, b)
	collogspb.RegisterLogsServiceServer(s, logsBackend{backend: b})
	colmetricspb.RegisterMetricsServiceServer(s, metricsBackend{backend: b})
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	t.Cleanup(func() { s.Stop(); <-done })
	return l.Addr().String()
}

// point makes the environment name the backend; a delivery takes at most 300 ms.
func point(t *testing.T, address string) {
	t.Helper()
	clearEnv(t)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"+address)
	t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
	t.Setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "300")
}

// clearEnv hides the settings of whoever runs the tests.
func clearEnv(t *testing.T) {
	t.Helper()
	for _, kv := range os.Environ() {
		if k, v, _ := strings.Cut(kv, "="); strings.HasPrefix(k, "OTEL_") {
			t.Setenv(k, v) // so that it is restored
			if err := os.Unsetenv(k); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func testConfig(o Outbox) Config {
	return Config{
		Version: "1.2.3", Host: host, Outbox: o, Load: func(string) (*evidence.Incident, error) { return testIncident(), nil },
		FirstRetry: 10 * time.Millisecond, MaxRetry: 40 * time.Millisecond, Now: func() time.Time { return time.Now() },
		MaxAge: 100 * 365 * 24 * time.Hour,
	}
}

// start runs an exporter until the test ends.
func start(t *testing.T, cfg Config) *Exporter {
	t.Helper()
	e, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	return e
}

// until waits for settled entries until ok.
func until(t *testing.T, o *memoryOutbox, what string, ok func() bool) {
	t.Helper()
	timeout := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-o.changed:
		case <-timeout:
			t.Fatalf("not reached: %s", what)
		}
	}
}

// settled waits for the status, which is counted after the outbox was written.
func settled(t *testing.T, e *Exporter, ok func(Status) bool) Status {
	t.Helper()
	timeout, tick := time.After(5*time.Second), time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		st := e.Status()
		if ok(st) {
			return st
		}
		select {
		case <-tick.C:
		case <-timeout:
			t.Fatalf("status %+v", st)
		}
	}
}

func empty(o *memoryOutbox) func() bool {
	return func() bool { n, _ := o.PendingCount(); return n == 0 }
}

func TestDelivers(t *testing.T) {
	b, o := &backend{}, newOutbox(SignalTraces, SignalLogs)
	point(t, b.serve(t, ""))
	t.Setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "30000") // nothing may fail, however busy the machine is
	e := start(t, testConfig(o))
	until(t, o, "both signals sent", empty(o))
	if len(b.traces) != 1 || len(b.logs) != 1 {
		t.Errorf("%d traces and %d logs requests", len(b.traces), len(b.logs))
	}
	if n := len(b.traces[0].ResourceSpans[0].ScopeSpans[0].Spans); n != 3 {
		t.Errorf("%d spans", n)
	}
	o.add("second", SignalTraces)
	e.Kick()
	until(t, o, "the kicked one sent", empty(o))
	st := e.Status()
	if !st.Configured || st.Pending != 0 || st.Failed != 0 || st.LastError != "" || !strings.Contains(st.Endpoint, "grpc") {
		t.Errorf("%+v", st)
	}
}

// The collector is down at first: nothing is lost, it is told in the status,
// and what arrives in the end arrives once.
func TestBackendComesLate(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	b, o := &backend{}, newOutbox(SignalTraces, SignalLogs)
	point(t, address)
	e := start(t, testConfig(o))
	until(t, o, "three failures", func() bool { return e.Status().Failed >= 3 })
	if st := e.Status(); !strings.Contains(st.LastError, address) || st.Pending != 2 {
		t.Errorf("%+v", st)
	}
	b.serve(t, address)
	until(t, o, "both signals sent", empty(o))
	if len(b.traces) != 1 || len(b.logs) != 1 {
		t.Errorf("%d traces and %d logs requests", len(b.traces), len(b.logs))
	}
}

// A request that was taken but not acknowledged is repeated byte for byte, so
// that a backend can tell that it is the same.
func TestDuplicateIsIdentical(t *testing.T) {
	b, o := &backend{}, newOutbox(SignalTraces)
	b.answer = func(_ context.Context, call int) (int64, error) {
		if call == 1 {
			return 0, status.Error(codes.Internal, "disk on fire")
		}
		return 0, nil
	}
	point(t, b.serve(t, ""))
	e := start(t, testConfig(o))
	until(t, o, "sent", empty(o))
	if len(b.traces) != 2 || !proto.Equal(b.traces[0], b.traces[1]) {
		t.Errorf("%d requests, or they differ", len(b.traces))
	}
	if st := e.Status(); st.Failed != 1 || !strings.Contains(st.LastError, "disk on fire") {
		t.Errorf("%+v", st)
	}
}

func TestTimeoutIsRetried(t *testing.T) {
	b, o := &backend{}, newOutbox(SignalLogs)
	b.answer = func(ctx context.Context, call int) (int64, error) {
		if call == 1 {
			<-ctx.Done()
		}
		return 0, ctx.Err()
	}
	point(t, b.serve(t, ""))
	e := start(t, testConfig(o))
	until(t, o, "sent", empty(o))
	if st := e.Status(); st.Failed == 0 {
		t.Errorf("%+v", st)
	}
}

// A partial success is final: not repeated, not forgotten.
func TestPartialSuccessIsFinal(t *testing.T) {
	b, o := &backend{}, newOutbox(SignalTraces, SignalLogs)
	b.answer = func(context.Context, int) (int64, error) { return 2, nil }
	point(t, b.serve(t, ""))
	e := start(t, testConfig(o))
	until(t, o, "rejected", empty(o))
	for _, s := range signals {
		entry, ok := o.get(s, testID)
		if !ok || !entry.Rejected || !strings.Contains(entry.LastError, "too old") {
			t.Errorf("%s: %+v %v", s, entry, ok)
		}
	}
	st := settled(t, e, func(st Status) bool { return st.Rejected == 2 })
	if b.calls != 2 || st.Sent != 0 || !strings.Contains(st.LastError, "too old") {
		t.Errorf("%d calls, %+v", b.calls, st)
	}
}

// One signal's trouble is not the other's.
func TestSignalsAreSeparate(t *testing.T) {
	b, o := &backend{}, newOutbox(SignalTraces, SignalLogs)
	point(t, b.serve(t, ""))
	t.Setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:1")
	start(t, testConfig(o))
	until(t, o, "logs sent", func() bool { _, ok := o.get(SignalLogs, testID); return !ok })
	until(t, o, "traces failed", func() bool { e, _ := o.get(SignalTraces, testID); return e.Attempts > 0 })
}

// What no attempt can deliver does not stop what can be delivered.
func TestPoisonDoesNotBlock(t *testing.T) {
	b, o := &backend{}, newOutbox()
	for i := range 5 {
		o.add(fmt.Sprint("id", i), SignalTraces)
	}
	point(t, b.serve(t, ""))
	cfg := testConfig(o)
	cfg.Load = func(id string) (*evidence.Incident, error) {
		if id == "id2" {
			return nil, errors.New("stored data is damaged")
		}
		return testIncident(), nil
	}
	start(t, cfg)
	until(t, o, "the other four sent", func() bool { n, _ := o.PendingCount(); return n == 1 })
}

func TestTooOld(t *testing.T) {
	b, o := &backend{}, newOutbox(SignalTraces, SignalLogs)
	point(t, b.serve(t, ""))
	cfg := testConfig(o)
	cfg.MaxAge = 55 * time.Minute
	cfg.Now = func() time.Time { return noon.Add(2 * time.Hour) }
	e := start(t, cfg)
	until(t, o, "settled", empty(o))
	if len(b.traces) != 0 || len(b.logs) != 1 {
		t.Fatalf("%d traces and %d logs requests", len(b.traces), len(b.logs))
	}
	if !strings.Contains(b.logs[0].String(), "tcpcoroner.late") {
		t.Error("the log record is not marked late")
	}
	if entry, ok := o.get(SignalTraces, testID); !ok || !entry.Rejected {
		t.Errorf("the trace is not to be seen any more: %+v", entry)
	}
	if st := settled(t, e, func(st Status) bool { return st.Sent == 1 }); st.Expired != 1 {
		t.Errorf("%+v", st)
	}
}

func TestDeletedIncident(t *testing.T) {
	o := newOutbox(SignalTraces)
	point(t, (&backend{}).serve(t, ""))
	cfg := testConfig(o)
	cfg.Load = func(string) (*evidence.Incident, error) {
		return nil, fmt.Errorf("read: %w", evidence.ErrNoIncident)
	}
	e := start(t, cfg)
	until(t, o, "dropped", empty(o))
	if st := e.Status(); st.Dropped != 1 {
		t.Errorf("%+v", st)
	}
}

// A shutdown in the middle of a delivery leaves the entry as it was.
func TestShutdownLosesNothing(t *testing.T) {
	b, o := &backend{}, newOutbox(SignalTraces)
	reached := make(chan struct{}, 10)
	b.answer = func(ctx context.Context, _ int) (int64, error) {
		reached <- struct{}{}
		<-ctx.Done()
		return 0, ctx.Err()
	}
	point(t, b.serve(t, ""))
	t.Setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "60000")
	e, err := New(t.Context(), testConfig(o))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	<-reached
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if entry, ok := o.get(SignalTraces, testID); !ok || entry.Attempts != 0 || entry.Rejected {
		t.Errorf("%+v %v", entry, ok)
	}
}

// forbidden fails the test on every use.
type forbidden struct{ t *testing.T }

func (f forbidden) Pending(time.Time) ([]evidence.OutboxEntry, time.Time, error) {
	f.t.Error("the outbox was read")
	return nil, time.Time{}, nil
}
func (f forbidden) Done(string, string) error        { f.t.Error("done"); return nil }
func (f forbidden) Retry(evidence.OutboxEntry) error { f.t.Error("retry"); return nil }
func (f forbidden) PendingCount() (int, error)       { return 0, nil }

func TestNotConfiguredDialsNothing(t *testing.T) {
	for name, env := range map[string]string{
		"nothing set": "", "disabled": "OTEL_SDK_DISABLED=true OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318",
		"none": "OTEL_TRACES_EXPORTER=none OTEL_LOGS_EXPORTER=none OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318",
	} {
		t.Run(name, func(t *testing.T) {
			clearEnv(t)
			for _, kv := range strings.Fields(env) {
				k, v, _ := strings.Cut(kv, "=")
				t.Setenv(k, v)
			}
			listeners := defaultPorts(t)
			e, err := New(t.Context(), testConfig(forbidden{t}))
			if err != nil {
				t.Fatal(err)
			}
			if len(e.Signals()) != 0 || e.Status().Configured {
				t.Errorf("%v %+v", e.Signals(), e.Status())
			}
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			e.Kick()
			if err := e.Run(ctx); err != nil {
				t.Error(err)
			}
			for _, l := range listeners {
				if c, err := l.Accept(); err == nil {
					t.Errorf("%v was dialled", l.Addr())
					_ = c.Close()
				}
			}
		})
	}
}

// defaultPorts listens where OTLP exporters dial by default. An accept that
// finds nobody within 10 ms fails.
func defaultPorts(t *testing.T) []net.Listener {
	t.Helper()
	var all []net.Listener
	for _, port := range []int{4317, 4318} {
		l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
		if err != nil {
			t.Logf("port %d is taken on this host, not watched: %v", port, err)
			continue
		}
		t.Cleanup(func() { _ = l.Close() })
		all = append(all, deadlined{l})
	}
	return all
}

type deadlined struct{ *net.TCPListener }

func (d deadlined) Accept() (net.Conn, error) {
	if err := d.SetDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
		return nil, err
	}
	return d.TCPListener.Accept()
}

func TestBadEnvironment(t *testing.T) {
	clearEnv(t)
	t.Setenv("OTEL_TRACES_EXPORTER", "carrier-pigeon")
	if _, err := New(t.Context(), testConfig(forbidden{t})); err == nil || !strings.Contains(err.Error(), "OTEL_") {
		t.Error(err)
	}
}

func TestBackoff(t *testing.T) {
	cfg := Config{}
	cfg.setDefaults()
	e := &Exporter{cfg: cfg}
	for n, want := range map[int]time.Duration{1: 2 * time.Second, 2: 4 * time.Second, 3: 8 * time.Second, 8: 256 * time.Second, 9: 5 * time.Minute, 1000: 5 * time.Minute} {
		if d := e.backoff(n); d > want || d < want*3/4 {
			t.Errorf("after %d failures: %v, want %v less up to a quarter", n, d, want)
		}
	}
}

func TestHint(t *testing.T) {
	get := func(k string) string {
		return map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317"}[k]
	}
	if h := hint(get, SignalTraces); !strings.Contains(h, "OTEL_EXPORTER_OTLP_PROTOCOL=grpc") {
		t.Errorf("%q", h)
	}
}
