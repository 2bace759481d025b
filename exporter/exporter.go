package exporter

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"time"

	"tcpcoroner/evidence"
)

// Outbox is the durable queue of deliveries.
type Outbox interface {
	// Pending returns what is due at now, the longest due first, and when the
	// next of the others is due (zero if there is none).
	Pending(now time.Time) (due []evidence.OutboxEntry, next time.Time, err error)
	Done(signal, incident string) error
	// Retry replaces the entry; it must not make one that is gone.
	Retry(evidence.OutboxEntry) error
	PendingCount() (int, error)
}

// Config wires the exporter. Where to send is in the environment.
type Config struct {
	Version string
	Host    evidence.Host
	Outbox  Outbox
	// Load reads an incident. evidence.ErrNoIncident says that it was deleted: its
	// delivery is dropped.
	Load func(id string) (*evidence.Incident, error)
	// Metrics returns what the daemon has to count, once per export, from any
	// goroutine; nil if it has nothing. Every name has to be there when Run begins:
	// a name that appears later is not sent.
	Metrics func() []Metric
	// MaxAge is how late a trace may be, 55 minutes if 0.
	MaxAge time.Duration
	// FirstRetry and MaxRetry bound the time between attempts, doubling from the
	// one to the other: 2 seconds and 5 minutes if 0.
	FirstRetry, MaxRetry time.Duration
	// Timeout bounds one delivery, 30 seconds if 0. OTEL_EXPORTER_OTLP_TIMEOUT,
	// by default 10 seconds, usually ends it before.
	Timeout time.Duration
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Status is how the deliveries go. Counts are since the start, one an incident
// and signal.
type Status struct {
	Configured bool
	Signals    []string
	// Endpoint says where to, without credentials; both signals' if they differ.
	Endpoint string
	// Pending is what the outbox holds.
	Pending int
	Sent    uint64
	// Failed counts attempts that will be repeated, Rejected deliveries that the
	// backend refused for good, Expired traces that became too old, Dropped
	// deliveries whose incident was deleted first.
	Failed, Rejected, Expired, Dropped uint64
	LastError                          string
	LastErrorTime, LastSent            time.Time
	// MetricsEndpoint says where metrics go, empty if nowhere. MetricsSent and
	// MetricsFailed count exports of all of them; one that failed is not repeated,
	// the next one has the newer numbers. Only exports over OTLP are counted.
	MetricsEndpoint            string
	MetricsSent, MetricsFailed uint64
}

// Exporter delivers what the outbox holds.
type Exporter struct {
	cfg     Config
	encoder *encoder
	signals []string
	clients map[string]client // of Run's goroutine
	// metricsOn says that metrics are sent; metrics has no Exporter if not over OTLP.
	metricsOn bool
	metrics   metricExporter
	// failures and gate are, per signal, how often it failed in a row and the
	// time before which it is not tried again: a backend that is down is asked
	// once, not once an incident.
	failures map[string]int
	gate     map[string]time.Time
	kick     chan struct{}

	mu     sync.Mutex
	status Status
}

// New reads the environment. Nothing is dialled before Run; a setting that
// cannot work is an error here.
func New(ctx context.Context, cfg Config) (*Exporter, error) {
	cfg.setDefaults()
	e := &Exporter{
		cfg: cfg, clients: map[string]client{}, kick: make(chan struct{}, 1),
		failures: map[string]int{}, gate: map[string]time.Time{},
	}
	var where []string
	for _, s := range signals {
		if !configured(os.Getenv, s) {
			continue
		}
		c, err := dial(ctx, s)
		if err != nil {
			return nil, errors.Join(err, e.close())
		}
		e.clients[s], e.signals = c, append(e.signals, s)
		if w := endpoint(os.Getenv, s); len(where) == 0 || where[0] != w {
			where = append(where, w)
		}
	}
	e.status = Status{Configured: len(e.signals) > 0, Signals: e.signals, Endpoint: strings.Join(where, ", ")}
	var err error
	if cfg.Metrics != nil && configured(os.Getenv, signalMetrics) {
		if err = e.dialMetrics(ctx); err != nil {
			return nil, errors.Join(err, e.close())
		}
		e.metricsOn, e.status.MetricsEndpoint = true, endpoint(os.Getenv, signalMetrics)
	}
	if e.encoder, err = newEncoder(ctx, cfg.Version, cfg.Host); err != nil {
		return nil, errors.Join(err, e.close())
	}
	return e, nil
}

func (c *Config) setDefaults() {
	set := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	set(&c.MaxAge, 55*time.Minute)
	set(&c.FirstRetry, 2*time.Second)
	set(&c.MaxRetry, 5*time.Minute)
	set(&c.Timeout, 30*time.Second)
	if c.Now == nil {
		c.Now = time.Now
	}
}

// Signals are the ones that are configured: an incident gets an outbox entry
// for each.
func (e *Exporter) Signals() []string { return e.signals }

// Kick says that the outbox has something new. It never blocks.
func (e *Exporter) Kick() {
	select {
	case e.kick <- struct{}{}:
	default:
	}
}

// Status is safe to call at any time.
func (e *Exporter) Status() Status {
	e.mu.Lock()
	st := e.status
	e.mu.Unlock()
	n, err := e.cfg.Outbox.PendingCount()
	if err != nil {
		st.LastError = err.Error()
	}
	st.Pending = n
	return st
}

// Run delivers until ctx ends. A delivery that it cuts short stays in the
// outbox for the next start.
func (e *Exporter) Run(ctx context.Context) error {
	if e.metricsOn {
		stop, err := e.startMetrics(ctx)
		if err != nil {
			e.note(metricsFailed, err) // this costs only the metrics
		} else {
			defer e.stopMetrics(stop)
		}
	}
	if len(e.signals) == 0 {
		<-ctx.Done()
		return nil
	}
	return e.run(ctx)
}

func (e *Exporter) run(ctx context.Context) error {
	for ctx.Err() == nil {
		wait := e.deliverDue(ctx)
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-e.kick:
		case <-timer.C:
		}
		timer.Stop()
	}
	return e.close()
}

// close has its own context: Run's has ended.
func (e *Exporter) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	var err error
	for _, c := range e.clients {
		err = errors.Join(err, c.shutdown(ctx))
	}
	return err
}

// note counts an outcome.
func (e *Exporter) note(count func(*Status) *uint64, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if count != nil {
		*count(&e.status)++
	}
	if err != nil {
		e.status.LastError, e.status.LastErrorTime = err.Error(), e.cfg.Now()
	}
}

func sent(s *Status) *uint64     { return &s.Sent }
func failed(s *Status) *uint64   { return &s.Failed }
func rejected(s *Status) *uint64 { return &s.Rejected }
func expired(s *Status) *uint64  { return &s.Expired }
func dropped(s *Status) *uint64  { return &s.Dropped }

// backoff is the time after the n-th failure in a row, with up to a quarter of
// it in jitter: a thousand hosts shall not return together.
func (e *Exporter) backoff(n int) time.Duration {
	d := e.cfg.MaxRetry
	if n < 30 {
		d = min(d, e.cfg.FirstRetry<<max(n-1, 0))
	}
	return d - rand.N(d/4+1)
}

func (e *Exporter) fail(where string, err error) error {
	err = fmt.Errorf("%s: %w", where, err)
	e.note(nil, err)
	return err
}
