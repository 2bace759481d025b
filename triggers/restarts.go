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
	// Recent is how long before its loss a port must have served somebody.
	Recent time.Duration `yaml:"recent"`
}

// DefaultRestarts asks for a minute of age, and for traffic in the last two.
func DefaultRestarts() RestartsConfig {
	return RestartsConfig{Enabled: true, Age: time.Minute, Recent: 2 * time.Minute}
}

// Validate names the first field that cannot be.
func (c RestartsConfig) Validate() error {
	switch {
	case !c.Enabled:
		return nil
	case c.Age < 0:
		return fmt.Errorf("restarts.age is %v: must be at least 0s", c.Age)
	case c.Recent < time.Second || c.Recent > time.Hour:
		return fmt.Errorf("restarts.recent is %v: must be from 1s to 1h", c.Recent)
	}
	return nil
}

// Restarts fires when a serving port is lost: nobody listens there any more, or on
// other sockets than before, or its main process was replaced while its sockets were
// kept by somebody. A graceful reload hands its sockets on, and is none.
type Restarts struct {
	cfg       RestartsConfig
	listeners func() ([]evidence.Socket, error)
	serving   func([]Loss) ([]netip.AddrPort, error)
	// ports are those of the last check.
	ports   map[netip.AddrPort]*port
	checked time.Time
}

// Loss is a port that is not what it was.
type Loss struct {
	Addr netip.AddrPort
	// Until is the last check that saw it as it was: what came later may have served
	// its successor.
	Until time.Time
	text  string
}

// port is one address that is listened on.
type port struct {
	since   time.Time
	sockets []evidence.Socket
	// owner was last seen alive at seen; nil if it is not known yet.
	owner *evidence.Owner
	seen  time.Time
}

// NewRestarts makes the trigger; listeners lists the listening sockets, at each
// check, with owners as far as they are known cheaply. serving tells which of some
// lost ports had connections within RestartsConfig.Recent before Loss.Until, and is
// asked only then: an idle service may go without anybody woken.
func NewRestarts(cfg RestartsConfig, listeners func() ([]evidence.Socket, error), serving func([]Loss) ([]netip.AddrPort, error)) *Restarts {
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
	current := portsOf(sockets, now)
	lost := t.compare(now, current)
	t.ports, t.checked = current, now
	served, err := t.served(lost)
	if err != nil {
		return Reading{}, fmt.Errorf("look whether lost ports were serving: %w", err)
	}
	r := Reading{Firing: evidence.Firing{Trigger: t.Name(), Time: now, Unit: "{port}", Value: float64(len(served)), Threshold: 1,
		Expression: fmt.Sprintf("ports lost that were there for %s and served within %s >= 1", seconds(t.cfg.Age), seconds(t.cfg.Recent))},
		Over: len(served) > 0, Calm: len(served) == 0}
	if r.Over {
		r.Firing.Reason = strings.Join(served[:min(len(served), maxNamed)], "; ")
		if n := len(served) - maxNamed; n > 0 {
			r.Firing.Reason += fmt.Sprintf("; and %d more ports", n)
		}
	}
	return r, nil
}

func portsOf(sockets []evidence.Socket, now time.Time) map[netip.AddrPort]*port {
	all := map[netip.AddrPort]*port{}
	for _, s := range sockets {
		if !s.Listening() {
			continue
		}
		p := all[s.Local]
		if p == nil {
			p = &port{since: now}
			all[s.Local] = p
		}
		p.sockets = append(p.sockets, s)
		if p.owner == nil && s.Owner != nil {
			p.owner, p.seen = s.Owner, now
		}
	}
	return all
}

// compare says what was lost, in the order of addresses, and what goes on.
func (t *Restarts) compare(now time.Time, current map[netip.AddrPort]*port) (lost []Loss) {
	for _, addr := range sorted(t.ports) {
		was, is := t.ports[addr], current[addr]
		text, until := "", t.checked
		switch {
		case is == nil:
			text = fmt.Sprintf("nobody listens on %v any more: it was %s", addr, was.owned())
		case !was.shares(is):
			text = fmt.Sprintf("%v was opened anew: it was %s, it is %s", addr, was.owned(), is.owned())
		case was.replacedBy(is):
			text = fmt.Sprintf("the process behind %v was replaced: it was %s, it is %s", addr, was.owned(), is.owned())
			is.since, until = was.since, was.seen
		default:
			is.goesOn(was)
		}
		if text != "" && now.Sub(was.since) >= t.cfg.Age {
			lost = append(lost, Loss{addr, until, text})
		}
	}
	return lost
}

// served are the texts of the lost ports that had served.
func (t *Restarts) served(lost []Loss) (texts []string, err error) {
	if len(lost) == 0 {
		return nil, nil
	}
	had, err := t.serving(lost)
	for _, l := range lost {
		if slices.Contains(had, l.Addr) {
			texts = append(texts, l.text)
		}
	}
	return texts, err
}

// shares tells whether a socket of before is still there.
func (p *port) shares(o *port) bool {
	return slices.ContainsFunc(p.sockets, func(a evidence.Socket) bool {
		return slices.ContainsFunc(o.sockets, func(b evidence.Socket) bool { return a.Inode == b.Inode })
	})
}

// bootSlack is how far the start of a process may be told wrong: the kernel tells
// when it booted in whole seconds (proc(5), btime).
const bootSlack = 2 * time.Second

// replacedBy tells whether another process has the sockets of p that was not there
// yet while the one before was: with that one, its connections went. A successor
// that started before the end of its predecessor was given the sockets.
func (p *port) replacedBy(o *port) bool {
	return p.owner != nil && o.owner != nil && !sameProcess(p.owner, o.owner) && o.owner.Started.After(p.seen.Add(-bootSlack))
}

func sameProcess(a, b *evidence.Owner) bool { return a.PID == b.PID && a.Started.Equal(b.Started) }

// goesOn takes over what was known of the port, and of its owner if that is not
// told now.
func (p *port) goesOn(was *port) {
	p.since = was.since
	if p.owner == nil {
		p.owner, p.seen = was.owner, was.seen
	}
}

// owned names who listened: the unit and the process, as far as they are known.
func (p *port) owned() string {
	switch o := p.owner; {
	case o == nil:
		return fmt.Sprintf("socket %d", p.sockets[0].Inode)
	case o.Unit != "":
		return fmt.Sprintf("%s (pid %d %s)", o.Unit, o.PID, o.Comm)
	default:
		return fmt.Sprintf("pid %d %s", o.PID, o.Comm)
	}
}

func sorted(ports map[netip.AddrPort]*port) []netip.AddrPort {
	all := make([]netip.AddrPort, 0, len(ports))
	for addr := range ports {
		all = append(all, addr)
	}
	slices.SortFunc(all, netip.AddrPort.Compare)
	return all
}
