package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"tcpcoroner/evidence"
	"tcpcoroner/exporter"
	"tcpcoroner/exporter/api"
	"tcpcoroner/recorder"
	"tcpcoroner/recorder/afpacket"
	"tcpcoroner/recorder/kernel"
	"tcpcoroner/recorder/logs"
	"tcpcoroner/recorder/snapshot"
	"tcpcoroner/recorder/store"
	"tcpcoroner/triggers"
)

// daemon is the wired recorder. build makes it, run works until its context
// ends, close undoes build.
type daemon struct {
	cfg     config
	data    string
	log     *slog.Logger
	host    evidence.Host
	started time.Time

	sizes    sizes
	source   *afpacket.Source
	recorder *recorder.Recorder
	prober   *prober
	spaces   *namespaces
	taker    *snapshot.Taker
	kernel   *kernel.Kernel
	logs     *logs.Reader
	store    *store.Store
	exporter *exporter.Exporter
	triggers *triggers.Set
	keeper   *keeper
	server   *api.Server
	hook     *api.Server // for webhooks on loopback; nil if there is none
	history  counterHistory
	heap     heapFit // of the watch
	timeline *snapshot.Timeline
	// tracking is the state of connection tracking at the last tick: of the watch.
	tracking tracking
	lines    lineCounter
	// links, listening, ports and limits are what triggers read.
	ports     cached[*evidence.PortRange]
	links     cached[[]evidence.InterfaceStats]
	listening cached[[]evidence.Socket]
	limits    cached[triggers.MemoryLimits]
	// walk and holders find owners of listeners; servedNext is the earliest time of
	// the next look through the recording for what a port served.
	walk       *ownerWalk
	holders    *owners
	servedNext time.Time
	elsewhere  *elsewhere
	around     around
	// pulling is held while a stored window is read and sent, which takes some
	// memory: a few at a time. Incidents never wait for it.
	pulling chan struct{}

	failed    atomic.Uint64
	lastError atomic.Pointer[string]
}

// build opens everything that can fail at start, in the order in which a
// mistake is cheapest to report: database, socket, capture.
func build(ctx context.Context, cfg config, data, socket string, log *slog.Logger) (*daemon, error) {
	d := &daemon{cfg: cfg, data: data, log: log, started: time.Now(), host: thisHost(), pulling: make(chan struct{}, maxPulls)}
	if err := d.open(ctx, socket); err != nil {
		return nil, errors.Join(err, d.close())
	}
	return d, nil
}

func (d *daemon) open(ctx context.Context, socket string) (err error) {
	d.store, err = store.Open(store.Config{
		Dir: d.data, MaxAge: time.Duration(d.cfg.Store.MaxAge), MaxBytes: uint64(d.cfg.Store.MaxBytes),
	})
	if err != nil {
		return err
	}
	d.taker = snapshot.New(snapshot.Config{Redact: func(argv []string) string { return logs.Redact(strings.Join(argv, " ")) }})
	d.timeline = snapshot.NewTimeline(d.host.NetNS, int(time.Duration(d.cfg.Recorder.Age)/tick)+1)
	d.logs = logs.New(logs.Config{})
	d.history.span = time.Duration(d.cfg.Window.Before+d.cfg.Window.Max) + 10*time.Second
	d.exporter, err = exporter.New(ctx, exporter.Config{
		Version: version, Host: d.host, Outbox: d.store, Load: d.store.Get, Metrics: d.metrics,
	})
	if err != nil {
		return err
	}
	if err := d.openRecorder(); err != nil {
		return err
	}
	if err := d.openKernel(); err != nil {
		return err
	}
	if d.triggers, err = d.watches(); err != nil {
		return err
	}
	d.elsewhere = d.newElsewhere()
	d.keeper = d.newKeeper()
	if d.server, err = api.Listen(socket, backend{d}); err != nil {
		return err
	}
	if err := d.openHook(); err != nil {
		return err
	}
	return d.openSource()
}

// openSource opens the capture. A namespace that cannot be recorded is a problem
// that status tells; the daemon records what is there.
func (d *daemon) openSource() (err error) {
	c := d.cfg.Recorder
	d.source, err = afpacket.Open(afpacket.Config{
		RingBytes: d.sizes.ring, Overlay: c.Overlay, NamespaceRingBytes: namespaceRing,
	})
	if err != nil {
		return err
	}
	d.spaces = &namespaces{source: d.source, proc: "/proc", limit: d.sizes.namespaces, wanted: c.Namespaces, discover: c.Discover}
	d.spaces.look()
	d.watchKernel()
	return nil
}

func (d *daemon) openRecorder() (err error) {
	c := d.cfg.Recorder
	d.sizes = c.sizes(ram())
	d.recorder, err = recorder.New(recorder.Config{
		Memory: d.sizes.memory, Ring: d.sizes.rings(), Age: time.Duration(c.Age), CPU: float64(c.CPU) / 100,
	})
	if err != nil {
		return fmt.Errorf("recorder.memory is %v: %w", size(d.sizes.memory), err)
	}
	d.prober = &prober{
		every: time.Duration(c.SelfTest), resets: d.recorder.Stats,
		counter: func() (uint64, bool) { return d.sentResets() },
	}
	return nil
}

// maxPulls bounds the captures that are sent at once.
const maxPulls = 2

// snapshotTime bounds one look at the host.
const snapshotTime = 5 * time.Second

func (d *daemon) newKeeper() *keeper {
	return &keeper{
		before: time.Duration(d.cfg.Window.Before), after: time.Duration(d.cfg.Window.After),
		max: time.Duration(d.cfg.Window.Max), host: d.host, version: version, roles: d.cfg.Roles,
		stopping: make(chan struct{}),
		look:     d.look,
		base:     d.history.before,
		gather:   d.gather,
		hold:     d.hold,
		put: func(inc *evidence.Incident, chunks iter.Seq2[[]byte, error]) error {
			before, _ := d.store.Bytes(inc.ID) // it may be put again
			err := d.store.Put(inc, chunks, d.exporter.Signals()...)
			after, _ := d.store.Bytes(inc.ID) // none if it could not be put
			d.triggers.Stored(time.Now(), after-min(before, after))
			return err
		},
		stored: d.store.Chunks,
		probes: d.prober.ports,
		tell:   d.tell,
		failed: d.incidentFailed,
	}
}

// look takes a snapshot for the sake of the resets that the kernel told of since a
// time.
func (d *daemon) look(since time.Time) *evidence.Snapshot {
	ctx, cancel := context.WithTimeout(context.Background(), snapshotTime)
	defer cancel()
	return d.taker.TakeFor(ctx, implicated(d.kernelEvents(since, time.Now())))
}

// hold keeps what was recorded since a time, at once.
func (d *daemon) hold(from time.Time) (held, error) {
	ctx, cancel := context.WithTimeout(context.Background(), snapshotTime)
	defer cancel()
	return d.recorder.Hold(ctx, from)
}

// tell announces an incident that is durable.
func (d *daemon) tell(inc *evidence.Incident) {
	announce(d.log, inc)
	d.exporter.Kick()
}

func (d *daemon) incidentFailed(err error) {
	d.failed.Add(1)
	d.fault(err)
}

// fault logs an error that costs evidence but not the daemon, and keeps it for
// the status.
func (d *daemon) fault(err error) {
	text := err.Error()
	d.lastError.Store(&text)
	d.log.Error(text)
}

// run works until ctx ends or a part that it cannot do without fails. An
// incident that is open then is kept before capture stops.
func (d *daemon) run(ctx context.Context, ready func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	capturing, stopCapture := context.WithCancel(context.WithoutCancel(ctx))
	defer stopCapture()
	d.sample(time.Now()) // before the first packet: see counterHistory
	serving, recording := &parts{ended: cancel}, &parts{ended: cancel}
	recording.run(func() error { return d.recorder.Run(capturing, d.source) })
	recording.run(func() error { return d.runKernel(capturing) })
	serving.run(func() error { return d.server.Run(ctx) })
	serving.run(func() error { return d.runHook(ctx) })
	serving.run(func() error { return d.exporter.Run(ctx) })
	serving.run(func() error { return d.watch(ctx, ready) })
	serving.run(func() error { return d.followLogs(ctx) })
	<-ctx.Done()
	d.keeper.stop()
	err := serving.wait()
	stopCapture()
	return errors.Join(err, recording.wait())
}

// parts are goroutines of which none may end before the others: ended is called
// when one does.
type parts struct {
	ended func()
	group sync.WaitGroup
	mu    sync.Mutex
	errs  []error
}

func (p *parts) run(part func() error) {
	p.group.Go(func() {
		defer p.ended()
		err := part()
		p.mu.Lock()
		defer p.mu.Unlock()
		p.errs = append(p.errs, err)
	})
}

func (p *parts) wait() error {
	p.group.Wait()
	return errors.Join(p.errs...)
}

func (d *daemon) close() error {
	var errs []error
	if d.source != nil {
		errs = append(errs, d.source.Close())
	}
	if d.server != nil {
		errs = append(errs, d.server.Close())
	}
	if d.hook != nil {
		errs = append(errs, d.hook.Close())
	}
	if d.kernel != nil {
		errs = append(errs, d.kernel.Close())
	}
	if d.elsewhere != nil {
		errs = append(errs, d.elsewhere.close())
	}
	if d.taker != nil {
		errs = append(errs, d.taker.Close())
	}
	if d.store != nil {
		errs = append(errs, d.store.Close())
	}
	if d.recorder != nil {
		errs = append(errs, d.recorder.Close())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("stop: %w", err)
	}
	return nil
}
