package snapshot

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"tcpcoroner/evidence"
)

// Bounds of what a look at implicated things asks the kernel for, and the time
// that one part may take: a part that hangs must not cost the others.
const (
	maxTuples = 256
	maxPeers  = 64
	partTime  = 500 * time.Millisecond
	// maxDetailed is how many sockets are told of in full, a few megabytes.
	maxDetailed = 5000
)

// Implicated says for whose sake TakeFor looks.
type Implicated struct {
	// Tuples are connections, each once, as the packets show them.
	Tuples []evidence.FlowKey
	// Peers are addresses of other hosts, beside those of Tuples.
	Peers []netip.Addr
	// PIDs are processes, beside those that hold sockets of Tuples.
	PIDs []int
}

// TakeFor is Take, and looks also at what has to do with certain connections:
// processes with their control groups, tracked entries, firewall rules, routes,
// ports, settings, load, disks, clock and changes. Parts that take too long are
// cut off. It remembers what it saw for the next one, as Watch does.
func (t *Taker) TakeFor(ctx context.Context, what Implicated) *evidence.Snapshot {
	return t.takeAll(ctx, slices.Concat(
		[]part{{"implicated things", func(_ context.Context, s *evidence.Snapshot) { s.Implicated = &evidence.Implicated{} }}},
		t.quick(), t.related(what), t.owners(), t.holders(what), t.slow()))
}

// related are the parts that need no process.
func (t *Taker) related(what Implicated) []part {
	tuples, peers := what.Tuples, what.peers()
	return []part{
		{"conntrack entries of the connections", func(ctx context.Context, s *evidence.Snapshot) { t.takeTracked(ctx, s, tuples) }},
		{"firewall rules", bounded(t.takeRules)},
		{"routes to the peers", func(ctx context.Context, s *evidence.Snapshot) { t.takeRoutes(ctx, s, peers) }},
		{"load", t.takeLoad},
		{"disk statistics", t.takeDisks},
		{"state of the clock", t.takeClock},
		{"kernel settings", t.takeSysctls},
		{"use of ephemeral ports", t.takePorts},
	}
}

// holders are the parts that need the owners of sockets.
func (t *Taker) holders(what Implicated) []part {
	return []part{
		{"processes", bounded(func(ctx context.Context, s *evidence.Snapshot) {
			t.takeProcesses(ctx, s, what.pids(s.Sockets))
		})},
		{"what changed", t.takeChanges},
		{"sockets in short", what.slim},
	}
}

// bounded bounds the time of a part.
func bounded(read func(context.Context, *evidence.Snapshot)) func(context.Context, *evidence.Snapshot) {
	return func(ctx context.Context, s *evidence.Snapshot) {
		ctx, cancel := context.WithTimeout(ctx, partTime)
		defer cancel()
		read(ctx, s)
	}
}

// peers are the addresses of both ends: whichever is this host's has a route of
// type local, which says so.
func (w Implicated) peers() (all []netip.Addr) {
	seen := map[netip.Addr]bool{}
	add := func(a netip.Addr) {
		if a = a.Unmap().WithZone(""); a.IsValid() && !seen[a] {
			seen[a] = true
			all = append(all, a)
		}
	}
	for _, a := range w.Peers {
		add(a)
	}
	for _, f := range w.Tuples {
		add(f.A.Addr())
		add(f.B.Addr())
	}
	return all
}

// matcher finds what is implicated among sockets.
type matcher struct {
	flows map[evidence.FlowKey]bool
	ends  map[netip.AddrPort]bool
	peers map[netip.Addr]bool
}

func (w Implicated) matcher() matcher {
	m := matcher{map[evidence.FlowKey]bool{}, map[netip.AddrPort]bool{}, map[netip.Addr]bool{}}
	for _, f := range w.Tuples {
		m.flows[f] = true
		m.ends[f.A], m.ends[f.B] = true, true
	}
	for _, p := range w.Peers {
		m.peers[p.Unmap()] = true
	}
	return m
}

// match tells whether a socket is one of the connections, has one of the peers,
// or listens where the connections go.
func (m matcher) match(s *evidence.Socket) bool {
	if s.Listening() {
		return listensFor(s.Local, m.ends)
	}
	return m.flows[evidence.NewFlowKey(s.Local, s.Remote)] || m.peers[s.Remote.Addr()]
}

// pids are the processes that own implicated sockets.
func (w Implicated) pids(sockets []evidence.Socket) []int {
	m := w.matcher()
	all := slices.Clone(w.PIDs)
	seen := map[int]bool{}
	for _, pid := range all {
		seen[pid] = true
	}
	for i := range sockets {
		s := &sockets[i]
		if s.Owner != nil && !seen[s.Owner.PID] && m.match(s) {
			seen[s.Owner.PID] = true
			all = append(all, s.Owner.PID)
		}
	}
	return all
}

// slim takes what makes sockets large from those that are neither implicated nor
// listening, if there are more than a snapshot has room for.
func (w Implicated) slim(_ context.Context, s *evidence.Snapshot) {
	if len(s.Sockets) <= maxDetailed {
		return
	}
	m, n := w.matcher(), 0
	for i := range s.Sockets {
		k := &s.Sockets[i]
		if k.Listening() || k.Info == nil || m.match(k) {
			continue
		}
		k.Info, k.Timer, k.Congestion, k.RecvBuffer, k.SendBuffer = nil, nil, "", 0, 0
		n++
	}
	if n > 0 {
		miss(s, fmt.Sprintf("tcp_info, timers and buffers of %d sockets that are not implicated", n),
			fmt.Errorf("there are more than %d sockets", maxDetailed), "")
	}
}

// listensFor tells whether a listener takes connections to one of the ends. A
// wildcard takes all of its port; IPv6's takes IPv4 as well.
func listensFor(local netip.AddrPort, ends map[netip.AddrPort]bool) bool {
	if !local.Addr().IsUnspecified() {
		return ends[local]
	}
	for e := range ends {
		if e.Port() == local.Port() && (local.Addr().Is6() || e.Addr().Is4()) {
			return true
		}
	}
	return false
}

func (t *Taker) takeTracked(ctx context.Context, s *evidence.Snapshot, tuples []evidence.FlowKey) {
	if s.Conntrack == nil || s.Conntrack.Count == 0 {
		return
	}
	if len(tuples) > maxTuples {
		miss(s, fmt.Sprintf("conntrack entries of connections other than the first %d", maxTuples), fmt.Errorf("%d are implicated", len(tuples)), "")
		tuples = tuples[:maxTuples]
	}
	ctx, cancel := context.WithTimeout(ctx, partTime)
	defer cancel()
	all, err := t.tracked(ctx, tuples)
	s.Implicated.Tracked = all
	if err != nil {
		miss(s, "conntrack entries of the connections", err, fixNetlink)
	}
}

func (t *Taker) takeRoutes(ctx context.Context, s *evidence.Snapshot, peers []netip.Addr) {
	if len(peers) > maxPeers {
		miss(s, fmt.Sprintf("routes to peers other than the first %d", maxPeers), fmt.Errorf("%d are implicated", len(peers)), "")
		peers = peers[:maxPeers]
	}
	ctx, cancel := context.WithTimeout(ctx, partTime)
	defer cancel()
	all, err := t.routes(ctx, peers, s.Interfaces)
	s.Implicated.Routes = all
	if err != nil {
		miss(s, "routes to the peers", err, "")
	}
	if len(all) == 0 {
		return
	}
	if err := t.neighbors(ctx, all); err != nil {
		miss(s, "neighbours", err, "")
	}
}
