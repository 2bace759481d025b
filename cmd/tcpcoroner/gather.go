package main

import (
	"context"
	"slices"
	"time"

	"tcpcoroner/evidence"
	"tcpcoroner/recorder/kernel"
	"tcpcoroner/recorder/logs"
	"tcpcoroner/recorder/snapshot"
)

const (
	// maxKernelEvents bounds those that an incident keeps; the resets themselves
	// go before what surrounds them.
	maxKernelEvents = 4096
	// maxLogTuples and maxLogPIDs bound what log lines are looked for.
	maxLogTuples = 512
	maxLogPIDs   = 64
	// joinSlack is how far the times of a packet and of its kernel event may lie
	// apart: a reset is traced before or after its transmission.
	joinSlack = 5 * time.Millisecond
)

// openKernel opens the kernel's own evidence. What the kernel does not allow
// lowers its level, which status tells, and nothing else.
func (d *daemon) openKernel() (err error) {
	cfg := kernel.DefaultConfig()
	cfg.Level = d.cfg.Recorder.Kernel
	cfg.Keep = time.Duration(d.cfg.Window.Before+d.cfg.Window.Max) + time.Minute
	d.kernel, err = kernel.Open(cfg)
	return err
}

// watchKernel has the kernel tell of the namespaces that are recorded. What it
// tells of others would only cost.
func (d *daemon) watchKernel() {
	if err := d.kernel.Watch(d.namespaces()); err != nil {
		d.fault(err)
	}
}

// namespaces are the inode numbers of those that are recorded.
func (d *daemon) namespaces() []uint64 {
	inodes := []uint64{d.host.NetNS}
	for _, n := range d.source.Attached() {
		inodes = append(inodes, n.Inode)
	}
	return inodes
}

// runKernel takes the kernel's events. Its end is not the daemon's.
func (d *daemon) runKernel(ctx context.Context) error {
	if err := d.kernel.Run(ctx); err != nil {
		d.fault(err)
	}
	<-ctx.Done()
	return nil
}

// gather adds what kernel and logs tell of a window.
func (d *daemon) gather(inc *evidence.Incident, from, to time.Time) {
	level := d.kernel.Level()
	inc.KernelLevel = &level
	d.kernel.Locate(from.Add(-joinSlack), to.Add(joinSlack))
	inc.Kernel = d.kernelEvents(from, to)
	inc.Suppressed = slices.DeleteFunc(d.kernel.Suppressed(from, to), func(s evidence.KernelSuppressed) bool { return !d.recorded(s.NetNS) })
	ctx, cancel := context.WithTimeout(context.Background(), snapshotTime)
	defer cancel()
	q := logQuery(inc, from, to)
	if d.host.NetNS != 0 { // or else nobody knows which are ours
		q.NetNS = d.namespaces()
	}
	lines, missing := d.logs.Around(ctx, q)
	inc.Logs = lines
	if s := d.timeline.Window(from, to); len(s.Times) > 0 {
		inc.Series = &s
	}
	inc.Elsewhere = d.elsewhere.series(from, to)
	inc.Ledger = d.kernelLedger(inc, from, to)
	if inc.After != nil {
		inc.After.Missing = append(inc.After.Missing, missing...)
	}
}

// recorded tells whether a network namespace is one of those that are recorded:
// the kernel tells of all.
func (d *daemon) recorded(inode uint64) bool {
	return inode == 0 || slices.Contains(d.namespaces(), inode)
}

func (d *daemon) kernelEvents(from, to time.Time) []evidence.KernelEvent {
	all := slices.DeleteFunc(d.kernel.Events(from.Add(-joinSlack), to.Add(joinSlack)),
		func(e evidence.KernelEvent) bool { return !d.recorded(e.NetNS) })
	return mostTelling(all, maxKernelEvents)
}

// mostTelling keeps at most n events in their order: resets first, then errors of
// sockets, then drops.
func mostTelling(all []evidence.KernelEvent, n int) []evidence.KernelEvent {
	if len(all) <= n {
		return all
	}
	kept := make([]bool, len(all))
	for _, kinds := range [][]evidence.KernelEventKind{
		{evidence.ResetSent, evidence.ResetReceived, evidence.FirewallReject}, {evidence.SocketError}, {evidence.SegmentDropped},
	} {
		for i := range all {
			if n > 0 && !kept[i] && slices.Contains(kinds, all[i].Kind) {
				kept[i] = true
				n--
			}
		}
	}
	some := all[:0]
	for i := range all {
		if kept[i] {
			some = append(some, all[i])
		}
	}
	return some
}

// logQuery asks for lines about the flows and processes of the kernel's events,
// and of processes that listen: a proxy may have nothing to do with a reset but to
// report it.
func logQuery(inc *evidence.Incident, from, to time.Time) logs.Query {
	q := logs.Query{From: from, To: to, Moment: inc.Time}
	pids, units := map[int]bool{}, map[string]bool{}
	note := func(o *evidence.Owner) {
		if o == nil || len(pids) >= maxLogPIDs || pids[o.PID] {
			return
		}
		pids[o.PID] = true
		q.PIDs = append(q.PIDs, o.PID)
		if o.Unit != "" && !units[o.Unit] {
			units[o.Unit] = true
			q.Units = append(q.Units, o.Unit)
		}
	}
	seen := map[evidence.FlowKey]bool{}
	for i := range inc.Kernel {
		e := &inc.Kernel[i]
		note(e.Owner)
		note(e.Actor)
		note(e.LastListener)
		if k := evidence.NewFlowKey(e.Local, e.Remote); e.Remote.IsValid() && !seen[k] && len(q.Tuples) < maxLogTuples {
			seen[k] = true
			q.Tuples = append(q.Tuples, k)
		}
	}
	if inc.At != nil {
		for i := range inc.At.Sockets {
			if s := &inc.At.Sockets[i]; s.Listening() {
				note(s.Owner)
			}
		}
	}
	return q
}

// implicated are the connections and processes that the kernel's events tell of.
func implicated(all []evidence.KernelEvent) (some snapshot.Implicated) {
	flows, pids := map[evidence.FlowKey]bool{}, map[int]bool{}
	for i := range all {
		e := &all[i]
		if k := evidence.NewFlowKey(e.Local, e.Remote); e.Remote.IsValid() && !flows[k] {
			flows[k] = true
			some.Tuples = append(some.Tuples, k)
		}
		for _, o := range []*evidence.Owner{e.Owner, e.Actor, e.LastListener} {
			if o != nil && !pids[o.PID] {
				pids[o.PID] = true
				some.PIDs = append(some.PIDs, o.PID)
			}
		}
	}
	return some
}
