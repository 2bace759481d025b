package triggers

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"tcpcoroner/evidence"
)

// ListenConfig is the configuration of the trigger "listen".
type ListenConfig struct {
	Enabled bool `yaml:"enabled"`
	// Window is the sliding window in which overflows are counted.
	Window time.Duration `yaml:"window"`
	// Threshold is the number of connection attempts, lost by listeners in the
	// window, at which it fires.
	Threshold float64 `yaml:"threshold"`
}

// DefaultListen fires at 5 lost connection attempts in 10 s.
func DefaultListen() ListenConfig {
	return ListenConfig{Enabled: true, Window: 10 * time.Second, Threshold: 5}
}

// Validate names the first field that cannot be.
func (c ListenConfig) Validate() error {
	switch {
	case !c.Enabled:
		return nil
	case c.Window < minWindow || c.Window > maxWindow:
		return windowError("listen.window", c.Window)
	case !(c.Threshold >= 1):
		return fmt.Errorf("listen.threshold is %g: must be at least 1", c.Threshold)
	}
	return nil
}

// Listen fires when listeners lose connection attempts, and names the ones
// whose accept queue is full.
type Listen struct {
	cfg       ListenConfig
	counters  func() (evidence.Counters, error)
	listeners func() ([]evidence.Socket, error)
	overflows counter
	drops     counter
	overflow  window
	drop      window
	// full holds the fullest sight of each listener whose queue was at its limit
	// within the window: by the time of the firing it may have drained.
	full    map[listener]sight
	lookErr error
}

type listener struct {
	local netip.AddrPort
	inode uint32
}

type sight struct {
	at     time.Time
	socket evidence.Socket
}

// NewListen makes the trigger. counters reads TcpExt; listeners lists the
// listening sockets with their owners, and is called only at a check at which
// an overflow was counted.
func NewListen(cfg ListenConfig, counters func() (evidence.Counters, error), listeners func() ([]evidence.Socket, error)) *Listen {
	return &Listen{
		cfg: cfg, counters: counters, listeners: listeners,
		overflow: window{span: cfg.Window}, drop: window{span: cfg.Window},
		full: map[listener]sight{},
	}
}

// Name is "listen".
func (t *Listen) Name() string { return "listen" }

// Enabled tells whether the configuration wants it checked.
func (t *Listen) Enabled() bool { return t.cfg.Enabled }

// The kernel counts a connection attempt that finds the accept queue full in
// both (net/ipv4/tcp_input.c tcp_conn_request, net/ipv4/tcp_ipv4.c
// tcp_v4_syn_recv_sock), and one that is lost for another reason in the second
// only: the larger is the number lost, not the sum.
const (
	listenOverflows = "TcpExt.ListenOverflows"
	listenDrops     = "TcpExt.ListenDrops"
)

// Check counts the connection attempts that listeners lost in the window.
func (t *Listen) Check(now time.Time, _ bool) (Reading, error) {
	c, err := t.counters()
	if err != nil {
		return Reading{}, fmt.Errorf("read listen counters: %w", err)
	}
	overflows, ok := c.Values[listenOverflows]
	drops, ok2 := c.Values[listenDrops]
	if !ok || !ok2 {
		return Reading{}, fmt.Errorf("read listen counters: the kernel shows no %s and %s", listenOverflows, listenDrops)
	}
	o, d := t.overflows.add(overflows), t.drops.add(drops)
	t.overflow.add(now, float64(o))
	t.drop.add(now, float64(d))
	if o > 0 || d > 0 {
		t.look(now)
	}
	t.forget(now)
	return t.reading(now), nil
}

// Full tells whether the accept queue of a listener is at its limit. The kernel
// refuses when the length is over the backlog (include/net/sock.h
// sk_acceptq_is_full); a queue that is emptied all the time is seen at it.
func Full(s *evidence.Socket) bool { return s.RecvQueue >= max(s.SendQueue, 1) }

// look remembers the listeners whose queue is full at this moment.
func (t *Listen) look(now time.Time) {
	var sockets []evidence.Socket
	sockets, t.lookErr = t.listeners()
	for i := range sockets {
		s := &sockets[i]
		key := listener{s.Local, s.Inode}
		if !s.Listening() || !Full(s) {
			continue
		}
		if seen, ok := t.full[key]; !ok || s.RecvQueue >= seen.socket.RecvQueue {
			t.full[key] = sight{now, *s}
		}
	}
}

func (t *Listen) forget(now time.Time) {
	for key, seen := range t.full {
		if now.Sub(seen.at) >= t.cfg.Window {
			delete(t.full, key)
		}
	}
}

func (t *Listen) reading(now time.Time) Reading {
	lost := max(t.overflow.sum, t.drop.sum)
	r := Reading{
		Firing: evidence.Firing{
			Trigger: t.Name(), Time: now, Unit: "{connection}",
			Expression: fmt.Sprintf("ListenOverflows or ListenDrops in %s >= %g", seconds(t.cfg.Window), t.cfg.Threshold),
			Value:      tenth(lost), Threshold: t.cfg.Threshold,
		},
		Over: lost >= t.cfg.Threshold,
		Calm: lost < t.cfg.Threshold/2,
	}
	if r.Over {
		r.Firing.Listeners = t.fullest()
		r.Firing.Reason = t.reason(r.Firing.Listeners)
	}
	return r
}

// fullest lists the full listeners, the longest queue first.
func (t *Listen) fullest() []evidence.Socket {
	var all []evidence.Socket
	for _, seen := range t.full {
		all = append(all, seen.socket)
	}
	slices.SortFunc(all, func(a, b evidence.Socket) int {
		return cmp.Or(cmp.Compare(b.RecvQueue, a.RecvQueue), a.Local.Compare(b.Local), cmp.Compare(a.Inode, b.Inode))
	})
	return all
}

// maxNamed bounds the listeners in a sentence; the firing holds them all.
const maxNamed = 3

func (t *Listen) reason(full []evidence.Socket) string {
	parts := []string{fmt.Sprintf("listen queue overflow: %.0f in %s", t.overflow.sum, seconds(t.cfg.Window))}
	if t.overflow.sum < t.cfg.Threshold {
		parts[0] = fmt.Sprintf("listeners dropped connection attempts: %.0f in %s, %.0f of them by a full accept queue",
			t.drop.sum, seconds(t.cfg.Window), t.overflow.sum)
	}
	for _, s := range full[:min(len(full), maxNamed)] {
		parts = append(parts, describe(&s))
	}
	switch {
	case len(full) > maxNamed:
		parts = append(parts, fmt.Sprintf("and %d more listeners", len(full)-maxNamed))
	case len(full) == 0 && t.lookErr != nil:
		parts = append(parts, fmt.Sprintf("which listener is unknown: %v", t.lookErr))
	case len(full) == 0:
		parts = append(parts, "no accept queue was at its limit when it was looked at")
	}
	return strings.Join(parts, "; ")
}

func describe(s *evidence.Socket) string {
	owner := "owner unknown"
	if s.Owner != nil {
		owner = fmt.Sprintf("pid %d %s", s.Owner.PID, s.Owner.Comm)
	}
	return fmt.Sprintf("%v (%s) has %d of %d in its accept queue", s.Local, owner, s.RecvQueue, s.SendQueue)
}
