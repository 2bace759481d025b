package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"tcpcoroner/evidence"
	"tcpcoroner/exporter"
	"tcpcoroner/exporter/api"
	"tcpcoroner/recorder"
	"tcpcoroner/recorder/afpacket"
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

	source   *afpacket.Source
	recorder *recorder.Recorder
	taker    *snapshot.Taker
	store    *store.Store
	exporter *exporter.Exporter
	triggers *triggers.Set
	keeper   *keeper
	server   *api.Server
	history  counterHistory
	// pulling is held while a stored window is read and sent, which takes as much
	// memory as the buffer again: one at a time. Incidents never wait for it.
	pulling chan struct{}

	failed    atomic.Uint64
	lastError atomic.Pointer[string]
}

// build opens everything that can fail at start, in the order in which a
// mistake is cheapest to report: database, socket, capture.
func build(ctx context.Context, cfg config, data, socket string, log *slog.Logger) (*daemon, error) {
	d := &daemon{cfg: cfg, data: data, log: log, started: time.Now(), host: thisHost(), pulling: make(chan struct{}, 1)}
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
	d.taker = snapshot.New(snapshot.Config{})
	d.history.span = time.Duration(d.cfg.Window.Before+d.cfg.Window.Max) + 10*time.Second
	d.exporter, err = exporter.New(ctx, exporter.Config{
		Version: version, Host: d.host, Outbox: d.store, Load: d.store.Get,
	})
	if err != nil {
		return err
	}
	d.recorder = recorder.New(recorder.Config{Memory: int(d.cfg.Recorder.Memory), Age: time.Duration(d.cfg.Recorder.Age)})
	d.triggers = d.watches()
	d.keeper = d.newKeeper()
	if d.server, err = api.Listen(socket, backend{d}); err != nil {
		return err
	}
	d.source, err = afpacket.Open(afpacket.Config{RingBytes: int(d.cfg.Recorder.Ring)})
	return err
}

func (d *daemon) watches() *triggers.Set {
	t := d.cfg.Triggers
	return triggers.NewSet(t.storms(),
		triggers.NewResets(t.Resets.config(), func() uint64 { return d.recorder.Stats().Resets }),
		triggers.NewConntrack(t.Conntrack.config(), d.conntrack),
		triggers.NewListen(t.Listen.config(), d.history.latest, d.listeners),
	)
}

// conntrack reads the table's level. Without its drop counters the level is
// still worth watching.
func (d *daemon) conntrack() (*evidence.Conntrack, error) {
	ct, err := d.taker.Conntrack()
	if ct != nil {
		return ct, nil
	}
	return nil, err
}

// listeners lists the listeners, those with a full accept queue with owners.
func (d *daemon) listeners() ([]evidence.Socket, error) {
	all, err := d.taker.Listeners()
	if err != nil {
		return nil, err
	}
	var full []uint32
	for i := range all {
		if triggers.Full(&all[i]) {
			full = append(full, all[i].Inode)
		}
	}
	if full == nil {
		return all, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), snapshotTime)
	defer cancel()
	owners, _ := d.taker.OwnersOf(ctx, full) // what could not be read stays unnamed; the snapshot says why
	for i := range all {
		all[i].Owner = owners[all[i].Inode]
	}
	return all, nil
}

// snapshotTime bounds one look at the host.
const snapshotTime = 5 * time.Second

func (d *daemon) newKeeper() *keeper {
	return &keeper{
		before: time.Duration(d.cfg.Window.Before), after: time.Duration(d.cfg.Window.After),
		max: time.Duration(d.cfg.Window.Max), host: d.host, version: version,
		stopping: make(chan struct{}),
		look:     d.look,
		base:     d.history.before,
		freeze:   d.freeze,
		put: func(inc *evidence.Incident, chunks [][]byte) error {
			return d.store.Put(inc, chunks, d.exporter.Signals()...)
		},
		tell:   d.tell,
		failed: d.incidentFailed,
	}
}

func (d *daemon) look() *evidence.Snapshot {
	ctx, cancel := context.WithTimeout(context.Background(), snapshotTime)
	defer cancel()
	return d.taker.Take(ctx)
}

// headroom is what the program needs beside the buffer: a decoded window, the
// database's tables, and the program itself.
const headroom = 160 << 20

// limitMemory makes the collector work harder before the service's memory limit
// would end the program. GOMEMLIMIT, where set, wins (runtime/debug).
func limitMemory(buffer size, getenv func(string) string) {
	if getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(int64(buffer) + headroom)
	}
}

// freeze keeps a window. Damage inside it is told as a gap, not as a failure.
func (d *daemon) freeze(from, to time.Time) (capture, error) {
	ctx, cancel := context.WithTimeout(context.Background(), snapshotTime)
	defer cancel()
	f, err := d.recorder.Freeze(ctx, from, to)
	if err != nil {
		return capture{}, err
	}
	w, err := f.Window()
	if err != nil {
		w.Gaps = append(w.Gaps, evidence.Gap{From: from, To: to, Reason: err.Error()})
	}
	return capture{window: w, chunks: f.Chunks, release: f.Release}, nil
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
	serving.run(func() error { return d.server.Run(ctx) })
	serving.run(func() error { return d.exporter.Run(ctx) })
	serving.run(func() error { return d.watch(ctx, ready) })
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
	if d.store != nil {
		errs = append(errs, d.store.Close())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("stop: %w", err)
	}
	return nil
}
