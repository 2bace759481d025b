// Package snapshot takes one look at the host: TCP sockets and the processes
// that hold them, the kernel's counters, connection tracking and interfaces.
//
// A look is bounded in time and memory, and what cannot be read is named in the
// result with the reason: missing is not zero. The package decides nothing,
// keeps nothing but a Timeline and what changed in the last hour, and changes
// nothing on the host, but for the modules tcp_diag and
// nf_conntrack_netlink, which the kernel may load when it is first asked.
//
// Everything is read in the network namespace of the calling thread, or in that
// of Config.NetNS, which the thread enters for the call. Reading goes through
// /proc/thread-self and netlink sockets that are opened for each call. The files
// of Counters stay open as long as it is called in one namespace. No method
// starts a goroutine that reads. A caller that has entered another namespace
// (setns(2)) must have locked its thread, as it must anyway.
//
// What a daemon asks once a second is cheap; see BenchmarkPoll. On an idle host
// with two processors and a dozen listeners (Linux 6.18) Counters takes 125 us
// and Conntrack 45 us, nearly all of it in the kernel. Listeners takes
// 65 us, and is worth asking only when the counters say that a listener
// lost something. With 30,000 sockets, 500 firewall rules and 250 implicated
// connections TakeFor takes 150 ms of processor time; see BenchmarkTakeFor.
package snapshot

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"tcpcoroner/evidence"
)

// Config says where the world is. The zero value is the running host.
type Config struct {
	// ProcRoot is the mount point of proc(5), "/proc" if empty.
	ProcRoot string
	// Now is the clock, time.Now if nil.
	Now func() time.Time
	// MaxSockets bounds the sockets of a Snapshot, 100,000 if 0 (about 40 MB).
	MaxSockets int
	// MaxEntries bounds the conntrack entries that top talkers are counted from,
	// 1,000,000 if 0. It bounds time; memory is bounded by itself.
	MaxEntries uint64
	// MaxRules bounds the firewall rules that are read, 5,000 if 0.
	MaxRules int
	// NetNS is the network namespace to look at, such as /run/netns/blue or
	// /proc/812/ns/net; that of the calling thread if empty. It needs CAP_SYS_ADMIN.
	NetNS string
	// CgroupRoot is the mount point of cgroups(7), "/sys/fs/cgroup" if empty.
	CgroupRoot string
	// PackageLog is the log of dpkg(1), "/var/log/dpkg.log" if empty.
	PackageLog string
	// Redact makes the text of a command line that may be kept. If nil, all
	// but the program is left out.
	Redact func(argv []string) string
	// Adjtimex reads the clock's state, adjtimex(2) if nil.
	Adjtimex func(*unix.Timex) (state int, err error)
}

func (c Config) withDefaults() Config {
	if c.ProcRoot == "" {
		c.ProcRoot = "/proc"
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.MaxSockets == 0 {
		c.MaxSockets = 100_000
	}
	if c.MaxEntries == 0 {
		c.MaxEntries = 1_000_000
	}
	if c.MaxRules == 0 {
		c.MaxRules = 5_000
	}
	if c.CgroupRoot == "" {
		c.CgroupRoot = "/sys/fs/cgroup"
	}
	if c.PackageLog == "" {
		c.PackageLog = "/var/log/dpkg.log"
	}
	if c.Redact == nil {
		c.Redact = programOnly
	}
	if c.Adjtimex == nil {
		c.Adjtimex = unix.Adjtimex
	}
	return c
}

// Taker looks at the host. It may be used by many goroutines at once.
type Taker struct {
	cfg     Config
	buffers sync.Pool // of *[]byte, at least bufferBytes each
	files   netFiles  // of Counters
	changes histories // of Watch and TakeFor
}

// New makes a Taker. It reads nothing.
func New(cfg Config) *Taker { return &Taker{cfg: cfg.withDefaults()} }

// Close closes the files that Counters holds open. A later call opens them again.
func (t *Taker) Close() error {
	t.files.mu.Lock()
	defer t.files.mu.Unlock()
	return t.files.forget()
}

// buffer is for one reader, who puts it back.
func (t *Taker) buffer() *[]byte {
	if b, ok := t.buffers.Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, bufferBytes)
	return &b
}

// pollTimeout bounds the methods without a context. A dump of what they ask for
// takes a millisecond; the bound is there for a kernel that never answers.
const pollTimeout = 2 * time.Second

// part is a piece of a snapshot.
type part struct {
	what string
	read func(context.Context, *evidence.Snapshot)
}

// Take looks at the host as a whole, the cheap and fleeting first, until ctx is
// done. It always returns a snapshot: what could not be read is in its Missing.
func (t *Taker) Take(ctx context.Context) *evidence.Snapshot {
	return t.takeAll(ctx, slices.Concat(t.quick(), t.owners(), t.slow()))
}

func (t *Taker) quick() []part {
	return []part{
		{"kernel counters", t.takeCounters},
		{"TCP sockets", t.takeSockets},
		{"connection tracking", t.takeConntrack},
		{"interface statistics", t.takeInterfaces},
		{"addresses", t.takeAddresses},
	}
}

func (t *Taker) owners() []part { return []part{{"owners of sockets", t.takeOwners}} }

func (t *Taker) slow() []part {
	return []part{{"top talkers of connection tracking", t.takeTalkers}}
}

func (t *Taker) takeAll(ctx context.Context, parts []part) *evidence.Snapshot {
	start := t.cfg.Now()
	s := &evidence.Snapshot{Taken: start}
	_, err := within(t, func() (none struct{}, err error) {
		for _, p := range parts {
			if err := timeUp(ctx); err != nil {
				miss(s, p.what, fmt.Errorf("not looked at: %w", err), "")
				continue
			}
			p.read(ctx, s)
		}
		return none, nil
	})
	if err != nil {
		miss(s, "everything", err, "grant CAP_SYS_ADMIN, and look whether the namespace still exists")
	}
	s.Took = t.cfg.Now().Sub(start)
	return s
}

func (t *Taker) takeCounters(_ context.Context, s *evidence.Snapshot) {
	c, err := t.Counters()
	s.Counters = c
	if err != nil {
		miss(s, "kernel counters", err, "")
	}
}

func (t *Taker) takeSockets(ctx context.Context, s *evidence.Snapshot) {
	all, err := t.sockets(ctx, allStates)
	s.Sockets = all
	if err == nil {
		return
	}
	what, fix := "TCP sockets", "load the kernel modules inet_diag and tcp_diag"
	if len(all) > 0 {
		what, fix = fmt.Sprintf("TCP sockets other than the first %d", len(all)), ""
	}
	miss(s, what, err, fix)
}

func (t *Taker) takeConntrack(_ context.Context, s *evidence.Snapshot) {
	ct, err := t.Conntrack()
	s.Conntrack = ct
	switch {
	case errors.Is(err, ErrNoConntrack):
		miss(s, "connection tracking", err, fixModule)
	case err != nil && ct != nil:
		miss(s, "drop counters of connection tracking", err, fixNetlink)
	case err != nil:
		miss(s, "connection tracking", err, "")
	}
}

func (t *Taker) takeAddresses(_ context.Context, s *evidence.Snapshot) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		miss(s, "addresses of this host", err, "")
	}
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			s.Addresses = append(s.Addresses, p.Addr().Unmap())
		}
	}
}

func (t *Taker) takeInterfaces(ctx context.Context, s *evidence.Snapshot) {
	all, err := t.interfaces(ctx)
	s.Interfaces = all
	if err != nil {
		miss(s, "interface statistics", err, "")
	}
}

func (t *Taker) takeTalkers(ctx context.Context, s *evidence.Snapshot) {
	if s.Conntrack == nil || s.Conntrack.Count == 0 {
		return
	}
	top, sampled, err := t.TopTalkers(ctx, t.cfg.MaxEntries)
	s.Conntrack.TopTalkers, s.Conntrack.Sampled = top, sampled
	switch {
	case err != nil && sampled > 0:
		miss(s, fmt.Sprintf("conntrack entries other than the first %d", sampled), err, "")
	case err != nil:
		miss(s, "top talkers of connection tracking", err, fixNetlink)
	}
}

// The two ways out for an operator.
const (
	fixModule  = "nothing, if this host neither filters by state nor translates addresses; otherwise: modprobe nf_conntrack"
	fixNetlink = "grant CAP_NET_ADMIN, and load the kernel module nf_conntrack_netlink if it is not"
)

func miss(s *evidence.Snapshot, what string, err error, fix string) {
	s.Missing = append(s.Missing, evidence.Missing{What: what, Why: err.Error(), Fix: fix})
}
