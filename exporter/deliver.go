package exporter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"tcpcoroner/evidence"
)

// idle is how long Run sleeps if nothing is due and nobody kicks.
const idle = time.Minute

// deliverDue tries everything that is due and returns how long to sleep.
func (e *Exporter) deliverDue(ctx context.Context) time.Duration {
	due, next, err := e.cfg.Outbox.Pending(e.cfg.Now())
	if err != nil {
		_ = e.fail("read outbox", err)
		return e.cfg.FirstRetry
	}
	wake := e.cfg.Now().Add(idle)
	earlier := func(t time.Time) {
		if !t.IsZero() && t.Before(wake) {
			wake = t
		}
	}
	earlier(next)
	for _, entry := range due {
		if ctx.Err() != nil {
			break
		}
		earlier(e.deliver(ctx, entry))
	}
	return max(wake.Sub(e.cfg.Now()), 0)
}

// deliver tries one entry. It returns when to look again, zero if it is done.
func (e *Exporter) deliver(ctx context.Context, entry evidence.OutboxEntry) time.Time {
	if !slices.Contains(e.signals, entry.Signal) {
		return time.Time{} // left by another configuration: it waits for its signal
	}
	if gate := e.gate[entry.Signal]; gate.After(e.cfg.Now()) {
		return gate
	}
	err := e.export(ctx, entry)
	if ctx.Err() != nil && err != nil {
		return time.Time{} // cut short by the shutdown, which is no attempt
	}
	again, err := e.settle(ctx, entry, err)
	if err != nil {
		// The outbox cannot be written: the entry stays as it is.
		_ = e.fail("write outbox", err)
		e.gate[entry.Signal] = e.cfg.Now().Add(e.cfg.FirstRetry)
		return e.gate[entry.Signal]
	}
	return again
}

// Outcomes of export beside success and failures that pass.
var (
	errRejected = errors.New("rejected for good")
	errExpired  = errors.New("too old for tracing backends")
	errDropped  = errors.New("incident was deleted")
)

// export encodes and sends one signal of an incident.
func (e *Exporter) export(ctx context.Context, entry evidence.OutboxEntry) error {
	inc, err := e.cfg.Load(entry.Incident)
	if errors.Is(err, evidence.ErrNoIncident) {
		return errDropped
	}
	if err != nil {
		return fmt.Errorf("load incident %s: %w", entry.Incident, err)
	}
	late := e.cfg.Now().Sub(closed(inc)) > e.cfg.MaxAge
	if late && entry.Signal == SignalTraces {
		return fmt.Errorf("%w (over %v): %s", errExpired, e.cfg.MaxAge, entry.LastError)
	}
	ctx, cancel := context.WithTimeout(ctx, e.cfg.Timeout)
	defer cancel()
	if entry.Signal == SignalTraces {
		spans, err := e.encoder.spans(inc)
		if err != nil {
			return fmt.Errorf("%w: %w", errRejected, err)
		}
		return verdictOf(e.clients[entry.Signal].traces.ExportSpans(ctx, spans))
	}
	records, err := e.encoder.records(inc, late)
	if err != nil {
		return fmt.Errorf("%w: %w", errRejected, err)
	}
	return verdictOf(e.clients[entry.Signal].logs.Export(ctx, records))
}

// partialSuccess begins the text by which the OTLP exporters report that the
// backend took the request and refused records of it; the type is internal to
// them. The specification forbids to repeat such a request.
const partialSuccess = "OTLP partial success:"

// verdictOf tells a refusal for good from a failure that may pass. A partial
// success that refused nothing is a warning, not a failure (OTLP specification,
// "Partial Success").
func verdictOf(err error) error {
	if err == nil || !strings.Contains(err.Error(), partialSuccess) {
		return err
	}
	if strings.Contains(err.Error(), "(0 ") && strings.Contains(err.Error(), " rejected)") {
		return nil
	}
	return fmt.Errorf("%w: %w", errRejected, err)
}

// settle writes the outcome to the outbox and returns when to look again.
func (e *Exporter) settle(ctx context.Context, entry evidence.OutboxEntry, outcome error) (time.Time, error) {
	switch {
	case outcome == nil:
		return time.Time{}, e.settleSent(entry)
	case errors.Is(outcome, errDropped):
		e.note(dropped, nil)
		return time.Time{}, e.cfg.Outbox.Done(entry.Signal, entry.Incident)
	case errors.Is(outcome, errRejected), errors.Is(outcome, errExpired):
		return time.Time{}, e.settleRejected(entry, outcome)
	}
	return e.settleFailed(ctx, entry, outcome)
}

func (e *Exporter) settleSent(entry evidence.OutboxEntry) error {
	e.failures[entry.Signal] = 0
	if err := e.cfg.Outbox.Done(entry.Signal, entry.Incident); err != nil {
		return err
	}
	e.note(sent, nil)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.status.LastSent = e.cfg.Now()
	return nil
}

func (e *Exporter) settleRejected(entry evidence.OutboxEntry, outcome error) error {
	entry.Attempts++
	entry.Rejected, entry.LastError = true, outcome.Error()
	if err := e.cfg.Outbox.Retry(entry); err != nil {
		return err
	}
	counter := rejected
	if errors.Is(outcome, errExpired) {
		counter = expired
	}
	e.note(counter, e.describe(entry, outcome))
	return nil
}

// settleFailed plans the next attempt and replaces the connection: a gRPC
// channel that found nobody for a while waits up to two minutes by itself
// (gRPC connection backoff), a fresh one connects at once.
func (e *Exporter) settleFailed(ctx context.Context, entry evidence.OutboxEntry, outcome error) (time.Time, error) {
	e.failures[entry.Signal]++
	outcome = e.describe(entry, outcome)
	e.note(failed, outcome)
	now := e.cfg.Now()
	e.gate[entry.Signal] = now.Add(e.backoff(e.failures[entry.Signal]))
	entry.Attempts++
	entry.Next, entry.LastError = now.Add(e.backoff(entry.Attempts)), outcome.Error()
	e.redial(ctx, entry.Signal)
	if err := e.cfg.Outbox.Retry(entry); err != nil {
		return time.Time{}, err
	}
	if gate := e.gate[entry.Signal]; gate.After(entry.Next) {
		return gate, nil
	}
	return entry.Next, nil
}

func (e *Exporter) redial(ctx context.Context, signal string) {
	fresh, err := dial(ctx, signal)
	if err != nil {
		e.note(nil, err)
		return
	}
	old := e.clients[signal]
	e.clients[signal] = fresh
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	_ = old.shutdown(ctx) // it has nothing left to lose
}

// describe says what failed, whither, and what may help.
func (e *Exporter) describe(entry evidence.OutboxEntry, err error) error {
	return fmt.Errorf("send %s of incident %s to %s: %w%s", entry.Signal, entry.Incident,
		endpoint(os.Getenv, entry.Signal), err, hint(os.Getenv, entry.Signal))
}

// closed is when the incident was complete.
func closed(inc *evidence.Incident) time.Time {
	if inc.Closed.IsZero() {
		return inc.Time
	}
	return inc.Closed
}
