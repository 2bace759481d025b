package triggers

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"tcpcoroner/evidence"
)

// RestartsConfig is the configuration of the trigger "restarts".
type RestartsConfig struct {
	Enabled bool `yaml:"enabled"`
	// Age is how long a port must have been there before its loss is news.
	Age time.Duration `yaml:"age"`
}

// DefaultRestarts asks for a minute.
func DefaultRestarts() RestartsConfig { return RestartsConfig{Enabled: true, Age: time.Minute} }

// Validate names the first field that cannot be.
func (c RestartsConfig) Validate() error {
	if c.Enabled && c.Age < 0 {
		return fmt.Errorf("restarts.age is %v: must be at least 0s", c.Age)
	}
	return nil
}

// Restarts fires when a serving port is lost: nobody listens there any more, or on
// other sockets than before. A graceful reload hands its sockets on, and is none.
type Restarts struct {
	cfg       RestartsConfig
	listeners func() ([]evidence.Socket, error)
	serving   func(netip.AddrPort) bool
	ports     map[netip.AddrPort]*port
}

// port is one address that is listened on.
type port struct {
	since   time.Time
	sockets []evidence.Socket
}

// NewRestarts makes the trigger; listeners lists the listening sockets, at each
// check, with owners as far as they are known cheaply. serving tells whether a port
// had connections lately: an idle service may go without anybody woken.
func NewRestarts(cfg RestartsConfig, listeners func() ([]evidence.Socket, error), serving func(netip.AddrPort) bool) *Restarts {
	return &Restarts{cfg: cfg, listeners: listeners, serving: serving, ports: map[netip.AddrPort]*port{}}
}

// Name is "restarts".
func (t *Restarts) Name() string { return "restarts" }

// Enabled tells whether the configuration wants it checked.
func (t *Restarts) Enabled() bool { return t.cfg.Enabled }

// Check compares the listeners with those of the check before.
func (t *Restarts) Check(now time.Time, _ bool) (Reading, error) {
	sockets, err := t.listeners()
	if err != nil {
		return Reading{}, fmt.Errorf("list listeners: %w", err)
	}
	current := map[netip.AddrPort]*port{}
	for _, s := range sockets {
		if !s.Listening() {
			continue
		}
		p := current[s.Local]
		if p == nil {
			p = &port{since: now}
			current[s.Local] = p
		}
		p.sockets = append(p.sockets, s)
	}
	lost := t.compare(now, current)
	t.ports = current
	r := Reading{Firing: evidence.Firing{Trigger: t.Name(), Time: now, Unit: "{port}", Value: float64(len(lost)), Threshold: 1,
		Expression: fmt.Sprintf("serving ports lost that were there for %s >= 1", seconds(t.cfg.Age))},
		Over: len(lost) > 0, Calm: len(lost) == 0}
	if r.Over {
		r.Firing.Reason = strings.Join(lost[:min(len(lost), maxNamed)], "; ")
		if n := len(lost) - maxNamed; n > 0 {
			r.Firing.Reason += fmt.Sprintf("; and %d more ports", n)
		}
	}
	return r, nil
}

// compare says what was lost, in the order of addresses.
func (t *Restarts) compare(now time.Time, current map[netip.AddrPort]*port) (lost []string) {
	for _, addr := range sorted(t.ports) {
		was, is := t.ports[addr], current[addr]
		if is != nil && was.shares(is) {
			is.since = was.since
			continue
		}
		if now.Sub(was.since) < t.cfg.Age || !t.serving(addr) {
			continue
		}
		if is == nil {
			lost = append(lost, fmt.Sprintf("nobody listens on %v any more: it was %s", addr, owned(was)))
		} else {
			lost = append(lost, fmt.Sprintf("%v was opened anew: it was %s, it is %s", addr, owned(was), owned(is)))
		}
	}
	return lost
}

// shares tells whether a socket of before is still there.
func (p *port) shares(o *port) bool {
	return slices.ContainsFunc(p.sockets, func(a evidence.Socket) bool {
		return slices.ContainsFunc(o.sockets, func(b evidence.Socket) bool { return a.Inode == b.Inode })
	})
}

func owned(p *port) string {
	for i := range p.sockets {
		if o := p.sockets[i].Owner; o != nil {
			return fmt.Sprintf("pid %d %s", o.PID, o.Comm)
		}
	}
	return fmt.Sprintf("socket %d", p.sockets[0].Inode)
}

func sorted(ports map[netip.AddrPort]*port) []netip.AddrPort {
	all := make([]netip.AddrPort, 0, len(ports))
	for addr := range ports {
		all = append(all, addr)
	}
	slices.SortFunc(all, netip.AddrPort.Compare)
	return all
}
