package main

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"tcpcoroner/evidence"
	"tcpcoroner/triggers"
)

// ownerWalk finds who holds sockets, for all namespaces at once, by a walk through
// all of /proc; not too often.
type ownerWalk struct {
	find func(context.Context, []uint32) (map[uint32]*evidence.Owner, error)
	now  func() time.Time

	wanted map[uint32]bool // asked for since the last walk
	tried  map[uint32]bool // asked for at the last walk
	found  map[uint32]*evidence.Owner
	// next is the earliest time of the next walk, later that of one for nothing but
	// what the last one did not find; pause is what lies between.
	next, later time.Time
	pause       time.Duration
}

const (
	// ownersEvery is the shortest time between two walks, and they may take one part
	// in ownersPart of all time: on a host with thousands of processes there are fewer.
	ownersEvery = 5 * time.Second
	ownersPart  = 2000
	// ownersPause is the longest time between two walks in vain.
	ownersPause = 5 * time.Minute
)

// ask are the owners that the last walk found. The others are looked for by the next.
func (w *ownerWalk) ask(inodes []uint32) map[uint32]*evidence.Owner {
	for _, n := range inodes {
		if w.found[n] == nil {
			w.wanted[n] = true
		}
	}
	return w.found
}

// atOnce finds the owners of sockets at once, and of no others: there is trouble.
func (w *ownerWalk) atOnce(inodes []uint32) map[uint32]*evidence.Owner {
	if len(inodes) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), snapshotTime)
	defer cancel()
	found, _ := w.find(ctx, inodes) // what could not be read stays unnamed; the snapshot says why
	return found
}

// walk looks for all that was asked for, if it is time: once a second is called.
func (w *ownerWalk) walk() {
	start := w.now()
	news := slices.ContainsFunc(slices.Collect(maps.Keys(w.wanted)), func(n uint32) bool { return !w.tried[n] })
	if len(w.wanted) == 0 || start.Before(w.next) || !news && start.Before(w.later) {
		return
	}
	w.found = w.atOnce(slices.Collect(maps.Keys(w.wanted)))
	// A service manager that keeps a socket for a service which does not run is not
	// its owner.
	maps.DeleteFunc(w.found, func(_ uint32, o *evidence.Owner) bool { return o.PID == 1 })
	w.wanted, w.tried = map[uint32]bool{}, w.wanted
	if w.pause = min(max(2*w.pause, ownersEvery), ownersPause); len(w.found) > 0 {
		w.pause = 0
	}
	end := w.now()
	w.next = end.Add(max(ownersEvery, ownersPart*end.Sub(start)))
	w.later = w.next.Add(w.pause)
}

// forget has an owner found anew.
func (w *ownerWalk) forget(inode uint32) {
	delete(w.found, inode)
	delete(w.tried, inode)
}

// owners remembers who holds the listeners of a namespace, and looks again only when
// there are new ones or a process ended. Of the watch.
type owners struct {
	walk  *ownerWalk
	alive func(pid int) bool
	known map[uint32]*evidence.Owner // by inode
}

func newOwnerWalk(find func(context.Context, []uint32) (map[uint32]*evidence.Owner, error)) *ownerWalk {
	return &ownerWalk{find: find, now: time.Now, wanted: map[uint32]bool{}}
}

func newOwners(walk *ownerWalk) *owners {
	alive := func(pid int) bool { return !errors.Is(unix.Kill(pid, 0), unix.ESRCH) }
	return &owners{walk: walk, alive: alive}
}

// name gives the sockets, which are all there are, their owners, as far as they are
// known. Whoever is not found is looked for again.
func (o *owners) name(all []evidence.Socket) {
	known := make(map[uint32]*evidence.Owner, len(all))
	ended := map[int]bool{}
	var unknown []uint32
	for i := range all {
		n := all[i].Inode
		switch owner := o.known[n]; {
		case n == 0:
		case owner == nil:
			unknown = append(unknown, n)
		case o.gone(owner.PID, ended):
			o.walk.forget(n)
			unknown = append(unknown, n)
		default:
			known[n] = owner
		}
	}
	found := o.walk.ask(unknown)
	for _, n := range unknown {
		if owner := found[n]; owner != nil && !o.gone(owner.PID, ended) {
			known[n] = owner
		}
	}
	maps.Copy(known, o.walk.atOnce(fullOnes(all, known)))
	o.known = known
	for i := range all {
		all[i].Owner = known[all[i].Inode]
	}
}

// fullOnes are the listeners with a full accept queue whose owner is not known.
func fullOnes(all []evidence.Socket, known map[uint32]*evidence.Owner) (inodes []uint32) {
	for i := range all {
		if s := &all[i]; triggers.Full(s) && s.Inode != 0 && known[s.Inode] == nil {
			inodes = append(inodes, s.Inode)
		}
	}
	return inodes
}

// gone asks once for each process.
func (o *owners) gone(pid int, ended map[int]bool) bool {
	is, asked := ended[pid]
	if !asked {
		is = !o.alive(pid)
		ended[pid] = is
	}
	return is
}

// errServedOften tells that ports are lost too often to look at each.
var errServedOften = errors.New("ports are lost too often to look through the recording for each")

const (
	// Looking through the recording may take one part in servedPart of all time.
	servedPart = 100
	// servedUntil is what is left out at the end: packets that are on their way from
	// the kernel, which one would have to wait for.
	servedUntil = 300 * time.Millisecond
)

// servedBy is served of one namespace.
func (d *daemon) servedBy(namespace uint16) func([]triggers.Loss) ([]netip.AddrPort, error) {
	return func(lost []triggers.Loss) ([]netip.AddrPort, error) { return d.served(namespace, lost) }
}

// served tells which of the lost ports of a recorded namespace (0 is the own) had
// payload in either direction lately, from the recording. It is asked only when a
// port was lost.
func (d *daemon) served(namespace uint16, lost []triggers.Loss) (had []netip.AddrPort, err error) {
	now := time.Now()
	if now.Before(d.servedNext) {
		return nil, errServedOften
	}
	lost = slices.Clone(lost)
	from, to := span(lost)
	ctx, cancel := context.WithTimeout(context.Background(), snapshotTime)
	defer cancel()
	kept, err := d.recorder.Freeze(ctx, from.Add(-d.cfg.Triggers.Restarts.Recent), earlier(to, now.Add(-servedUntil)))
	if err != nil {
		return nil, err
	}
	defer kept.Release()
	start := time.Now()
	defer func() { d.servedNext = time.Now().Add(servedPart * time.Since(start)) }()
	err = aside(func() error {
		return kept.Read(func(p *evidence.Packet) bool {
			var s evidence.Segment
			if p.Namespace == namespace && evidence.ParseSegment(p, &s) == nil {
				had, lost = settleServed(had, lost, p.Direction, &s)
			}
			return len(lost) > 0
		})
	})
	return had, err
}

// span is from the first to the last end of service.
func span(lost []triggers.Loss) (first, last time.Time) {
	byEnd := func(a, b triggers.Loss) int { return a.Until.Compare(b.Until) }
	return slices.MinFunc(lost, byEnd).Until, slices.MaxFunc(lost, byEnd).Until
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// settleServed moves the port that a segment shows in service from lost to had.
func settleServed(had []netip.AddrPort, lost []triggers.Loss, way evidence.Direction, s *evidence.Segment) ([]netip.AddrPort, []triggers.Loss) {
	i := slices.IndexFunc(lost, func(l triggers.Loss) bool { return !s.Time.After(l.Until) && serves(l.Addr, way, s) })
	if i < 0 {
		return had, lost
	}
	return append(had, lost[i].Addr), slices.Delete(lost, i, i+1)
}

// serves tells whether a segment carries payload from or to a port of this host.
// Connections without any, of scanners and simple health checks, are no service.
func serves(port netip.AddrPort, way evidence.Direction, s *evidence.Segment) bool {
	if s.PayloadBytes == 0 || s.Flags.Has(evidence.RST) {
		return false
	}
	return way != evidence.Received && listensAt(port, s.Src) || way != evidence.Sent && listensAt(port, s.Dst)
}

// listensAt tells whether a listener takes what goes to an address. A wildcard takes
// all of its port; IPv6's takes IPv4 as well.
func listensAt(port, to netip.AddrPort) bool {
	if port.Port() != to.Port() {
		return false
	}
	return port.Addr() == to.Addr() || port.Addr().IsUnspecified() && (port.Addr().Is6() || to.Addr().Is4())
}
