package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"tcpcoroner/evidence"
	"tcpcoroner/recorder/logs"
	"tcpcoroner/recorder/snapshot"
	"tcpcoroner/triggers"
)

// watches makes the triggers. What they read, they read at the daemon's tick.
func (d *daemon) watches() (*triggers.Set, error) {
	t, counters := d.cfg.Triggers, d.history.latest
	matcher, err := triggers.NewLogMatcher(t.Logs.Patterns)
	if err != nil {
		return nil, fmt.Errorf("triggers.%w", err)
	}
	d.lines.matches = matcher.Match
	d.cache()
	return triggers.NewSet(t.SetConfig,
		triggers.NewHarm(t.Resets, d.recorder.Harm),
		triggers.NewResets(t.ResetRate, func() uint64 { return d.recorder.Stats().Resets }),
		triggers.NewConntrack(t.Conntrack, d.conntrack),
		triggers.NewListen(t.Listen, counters, d.listeners),
		triggers.NewQueue(t.AcceptQueue, d.listeners),
		triggers.NewSYNDrops(t.SYNDrops, counters),
		triggers.NewConnectFailures(t.ConnectFailures, counters),
		triggers.NewTimeouts(t.Timeouts, counters),
		triggers.NewRetransmissions(t.Retransmissions, counters),
		triggers.NewDrops(t.Drops, d.links.get, counters),
		triggers.NewMemory(t.Memory, counters, d.limits.get),
		triggers.NewPorts(t.Ports, d.ports.get),
		triggers.NewRestarts(t.Restarts, d.listeners, d.servedBy(0)),
		triggers.NewLogs(t.Logs, d.lines.take),
		triggers.NewWebhook(t.Webhook),
	), nil
}

// cached is something that is read now and then: at most once in every.
type cached[T any] struct {
	every time.Duration
	read  func() (T, error)
	at    time.Time
	value T
	err   error
}

func (c *cached[T]) get() (T, error) {
	if c.at.IsZero() || time.Since(c.at) >= c.every {
		c.value, c.err = c.read()
		c.at = time.Now()
	}
	return c.value, c.err
}

// cache sets up what triggers share, or need not read each second.
func (d *daemon) cache() {
	d.links = cached[[]evidence.InterfaceStats]{every: aroundEvery, read: d.taker.Links}
	d.walk = newOwnerWalk(d.taker.OwnersOf)
	d.holders = newOwners(d.walk)
	d.listening = cached[[]evidence.Socket]{every: tick / 2, read: d.ownedListeners}
	d.ports = cached[*evidence.PortRange]{every: portsEvery, read: newPortCount(d.taker, d.cfg.Triggers.Ports.Rearm, d.history.latest).get}
	d.limits = cached[triggers.MemoryLimits]{every: time.Minute, read: func() (l triggers.MemoryLimits, err error) {
		l.Orphans, l.Pages, err = d.taker.MemoryLimits()
		return l, err
	}}
}

func (d *daemon) listeners() ([]evidence.Socket, error) { return d.listening.get() }

const (
	// portsEvery is how often ephemeral ports are looked at, portsAgain how often they
	// are counted though there are too few sockets: the range may change.
	portsEvery = 10 * time.Second
	portsAgain = time.Minute
)

// portCount counts the ephemeral ports in use of a namespace, if there are enough
// sockets to use the configured part of them: to count is to list all sockets.
type portCount struct {
	count func(context.Context) (*evidence.PortRange, error)
	// latest are the numbers of sockets.
	latest func() (evidence.Counters, error)
	// part of the range, from 0 to 1, below which nobody is interested.
	part float64
	now  func() time.Time

	counted time.Time
	last    *evidence.PortRange
	// above tells that there were enough sockets for last.
	above bool
}

func newPortCount(t *snapshot.Taker, part float64, latest func() (evidence.Counters, error)) *portCount {
	return &portCount{count: t.Ports, latest: latest, part: part, now: time.Now}
}

// get is the last count where another would tell nothing else.
func (p *portCount) get() (*evidence.PortRange, error) {
	if p.last != nil && !p.above && !p.enough() && p.now().Sub(p.counted) < portsAgain {
		return p.last, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), snapshotTime)
	defer cancel()
	last, err := p.count(ctx)
	if p.last = nil; err != nil {
		return last, err
	}
	p.last, p.counted = last, p.now()
	p.above = p.enough()
	return last, nil
}

// enough tells whether there may be sockets at the part of the range: all of IPv4 and
// IPv6, wherever they lead.
func (p *portCount) enough() bool {
	c, err := p.latest()
	return err != nil || float64(socketsIn(&c)) >= p.part*float64(p.last.Available())
}

// lineCounter counts lines of the journal that speak of resets.
type lineCounter struct {
	matches func(string) bool

	mu   sync.Mutex
	seen triggers.LogMatches
	err  error
}

// maxExamples bounds the lines that a firing quotes.
const maxExamples = 3

func (c *lineCounter) visit(line string) {
	if !c.matches(line) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen.Count++
	if len(c.seen.Examples) < maxExamples {
		c.seen.Examples = append(c.seen.Examples, logs.Redact(line))
	}
}

// take hands over what came since the call before.
func (c *lineCounter) take() (triggers.LogMatches, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	seen := c.seen
	c.seen = triggers.LogMatches{}
	return seen, c.err
}

func (c *lineCounter) failed(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err
}

// followLogs counts lines of the journal until ctx ends. A journal that cannot be
// followed costs one trigger, which says so; it is tried again.
func (d *daemon) followLogs(ctx context.Context) error {
	for d.cfg.Triggers.Logs.Enabled && ctx.Err() == nil {
		d.lines.failed(nil)
		d.lines.failed(d.logs.Follow(ctx, d.lines.visit))
		select {
		case <-time.After(followAgain):
		case <-ctx.Done():
		}
	}
	<-ctx.Done()
	return nil
}

// followAgain is how long to wait for a journal that ended.
const followAgain = time.Minute

// tracking is one look at connection tracking. Without its drop counters the
// level is still worth watching.
type tracking struct {
	state *evidence.Conntrack
	err   error
}

func (d *daemon) conntrack() (*evidence.Conntrack, error) {
	if d.tracking.state != nil {
		return d.tracking.state, nil
	}
	return nil, d.tracking.err
}

// ownedListeners lists the listeners with their owners.
func (d *daemon) ownedListeners() ([]evidence.Socket, error) {
	all, err := d.taker.Listeners()
	if err == nil {
		d.holders.name(all)
	}
	return all, err
}
