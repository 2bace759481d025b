package triggers

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"tcpcoroner/evidence"
)

// deploy is a host on which a service listens at one address, from second 0 on.
type deploy struct {
	sockets []evidence.Socket
	asked   int
	until   time.Time // as told when asked
	err     error
}

func newDeploy() *deploy {
	return &deploy{sockets: []evidence.Socket{{State: "listen", Local: netip.MustParseAddrPort("192.0.2.1:443"), Inode: 1,
		Owner: &evidence.Owner{PID: 10, Comm: "web", Unit: "web.service", Started: at(-1000)}}}}
}

func (d *deploy) listeners() ([]evidence.Socket, error) {
	return append([]evidence.Socket(nil), d.sockets...), nil
}

func (d *deploy) serving(lost []Loss) (had []netip.AddrPort, _ error) {
	d.asked++
	for _, l := range lost {
		had, d.until = append(had, l.Addr), l.Until
	}
	return had, d.err
}

// own has the socket held by a process that started at a second; 0 is nobody known.
func (d *deploy) own(pid, started int) {
	d.sockets[0].Owner = nil
	if pid != 0 {
		d.sockets[0].Owner = &evidence.Owner{PID: pid, Comm: "web", Unit: "web.service", Started: at(started)}
	}
}

func TestRestartsOfAUnit(t *testing.T) {
	for _, tt := range []struct {
		name   string
		each   func(d *deploy, sec int)
		fired  int // the second, 0 is never
		until  int // the last second in which it was as before
		reason string
	}{
		{"killed", func(d *deploy, sec int) {
			if sec == 100 {
				d.sockets = nil
			}
		}, 100, 99, "nobody listens on 192.0.2.1:443 any more: it was web.service (pid 10 web)"},
		{"its socket was kept by the service manager", func(d *deploy, sec int) {
			switch sec {
			case 100:
				d.own(0, 0)
			case 103:
				d.own(11, 101)
			}
		}, 103, 99, "the process behind 192.0.2.1:443 was replaced: it was web.service (pid 10 web), it is web.service (pid 11 web)"},
		{"opened anew", func(d *deploy, sec int) {
			if sec == 100 {
				d.sockets[0].Inode = 2
				d.own(11, 100)
			}
		}, 100, 99, "192.0.2.1:443 was opened anew: it was web.service (pid 10 web), it is web.service (pid 11 web)"},
		{"the successor was given the socket", func(d *deploy, sec int) {
			if sec == 100 {
				d.own(11, 90)
			}
		}, 0, 0, ""},
		{"the same number, another process", func(d *deploy, sec int) {
			if sec == 100 {
				d.own(10, 99)
			}
		}, 100, 99, "the process behind 192.0.2.1:443 was replaced: it was web.service (pid 10 web), it is web.service (pid 10 web)"},
		{"nobody is known any more", func(d *deploy, sec int) {
			if sec == 100 {
				d.own(0, 0)
			}
		}, 0, 0, ""},
		{"young", func(d *deploy, sec int) {
			if sec == 59 {
				d.own(11, 59)
			}
		}, 0, 0, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newDeploy()
			s := NewSet(DefaultSet(), NewRestarts(DefaultRestarts(), d.listeners, d.serving))
			var fired []evidence.Firing
			second := 0
			for sec := range 200 {
				tt.each(d, sec)
				f, _ := s.Check(at(sec))
				if len(f) > 0 {
					second = sec
				}
				fired = append(fired, f...)
			}
			if second != tt.fired || len(fired) > 1 || len(fired) == 1 && fired[0].Reason != tt.reason {
				t.Errorf("at %d fired %+v", second, fired)
			}
			if asked := min(tt.fired, 1); d.asked != asked {
				t.Errorf("asked %d times who served, want %d", d.asked, asked)
			} else if asked == 1 && !d.until.Equal(at(tt.until)) {
				t.Errorf("asked who served until %v, want %v", d.until, at(tt.until))
			}
		})
	}
}

// Whether a port served must be known: without, it is unavailable and not a firing.
func TestRestartsUnknown(t *testing.T) {
	d := newDeploy()
	s := NewSet(DefaultSet(), NewRestarts(DefaultRestarts(), d.listeners, d.serving))
	s.Check(at(0))
	d.sockets, d.err = nil, errors.New("no recording")
	if fired, _ := s.Check(at(100)); fired != nil || !strings.Contains(s.States()[0].Why, "no recording") {
		t.Errorf("fired %+v, %+v", fired, s.States()[0])
	}
	bad := DefaultRestarts()
	bad.Recent = 2 * time.Hour
	if err := bad.Validate(); err == nil || err.Error() != "restarts.recent is 2h0m0s: must be from 1s to 1h" {
		t.Errorf("error %v", err)
	}
}

// Triggers of other namespaces say which, have storms of their own, and share what an
// hour may bring.
func TestWatch(t *testing.T) {
	s := NewSet(SetConfig{MaxStorm: time.Hour, CoolDown: time.Minute, DryRun: []string{"b"}}, storms{"a"})
	s.Watch("blue", storms{"a"}, storms{"b"})
	fired, ongoing := s.Check(at(0))
	if len(fired) != 2 || !ongoing || fired[0].Namespace != "" || fired[1].Namespace != "blue" || !strings.HasPrefix(fired[1].Reason, "namespace blue: ") {
		t.Errorf("fired %+v", fired)
	}
	states, full := s.States(), s.State(at(0))
	if len(states) != 3 || states[1].Namespace != "blue" || full[2].Namespace != "blue" || !states[2].DryRun || states[2].WouldHaveFired != 1 {
		t.Errorf("states %+v, %+v", states, full)
	}
	s.Forget("blue")
	s.Forget("")
	if states := s.States(); len(states) != 1 || states[0].Name != "a" {
		t.Errorf("left %+v", states)
	}
	if fired, _ := s.Check(at(1)); fired != nil {
		t.Errorf("fired again %+v", fired)
	}
}
