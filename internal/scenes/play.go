package scenes

import (
	"context"
	"fmt"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// play carries a scene through its steps. The first error sticks: all further
// steps do nothing.
type play struct {
	ctx context.Context
	st  *Stage
	err error
}

func (p *play) run(s script) []Truth {
	truths := s.play(p)
	for i := range truths {
		t := &truths[i]
		t.Scene, t.Current = s.name, t.GuiltyPID != 0
		t.GuiltyComm, t.OwnerComm = p.st.comm(t.GuiltyPID), p.st.comm(t.OwnerPID)
	}
	return truths
}

// comm is the name of an actor, dead or alive.
func (st *Stage) comm(pid int) string {
	for _, a := range st.actors {
		if a.PID == pid {
			return a.Name
		}
	}
	return ""
}

func (p *play) check(err error) {
	if p.err == nil {
		p.err = err
	}
}

// actor starts a process on a host; never nil.
func (p *play) actor(h *Host, name string) *actor {
	if p.err == nil {
		a, err := p.st.actor(p.ctx, h, name)
		if err == nil {
			return a
		}
		p.err = err
	}
	return &actor{}
}

func (p *play) kill(a *actor, sig syscall.Signal) {
	if p.err == nil {
		p.err = a.kill(sig)
	}
}

// try has an actor do something that may be refused.
func (p *play) try(a *actor, r request) (done reply) {
	if p.err == nil {
		done, p.err = a.do(r)
	}
	return done
}

// do has an actor do something that must succeed.
func (p *play) do(a *actor, r request) reply {
	done := p.try(a, r)
	if p.err == nil && done.Errno != 0 {
		p.err = fmt.Errorf("%s[%d] %s: %w", a.Name, a.PID, r.Op, done.Errno)
	}
	return done
}

// pause is between two looks at a state that no system call waits for.
const pause = 200 * time.Microsecond

// until waits for a condition that the kernel shows.
func (p *play) until(what string, met func() bool) {
	for end := time.Now().Add(patience); p.err == nil && !met(); time.Sleep(pause) {
		if err := p.ctx.Err(); err != nil {
			p.check(fmt.Errorf("wait until %s: %w", what, err))
		} else if time.Now().After(end) {
			p.check(fmt.Errorf("wait until %s: it did not come in %v", what, patience))
		}
	}
}

// counter reads one counter of a host, as "Tcp.OutRsts".
func (p *play) counter(h *Host, name string) uint64 {
	if p.err != nil {
		return 0
	}
	all, err := h.Counters()
	p.check(err)
	return all[name]
}

// after runs f and waits until it moved the counter.
func (p *play) after(h *Host, counter string, f func()) {
	before := p.counter(h, counter)
	f()
	p.until(h.Name+"'s "+counter+" grows", func() bool { return p.counter(h, counter) > before })
}

// discards are the packets that a host would not pass on.
func (p *play) discards(h *Host) (n uint64) {
	for _, name := range []string{"Ip.InAddrErrors", "Ip.InDiscards", "Ip.OutNoRoutes", "Ip6InAddrErrors", "Ip6InDiscards", "Ip6InNoRoutes", "Ip6OutNoRoutes"} {
		n += p.counter(h, name)
	}
	return n
}

// awaitState waits for a connection's state where no descriptor is left to ask;
// state 0 means that it is gone.
func (p *play) awaitState(h *Host, local, remote netip.AddrPort, states ...int) {
	p.until(fmt.Sprintf("%s's socket %v > %v is in a state of %v", h.Name, local, remote, states), func() bool {
		now, err := h.state(local, remote)
		p.check(err)
		for _, s := range states {
			if s == now {
				return true
			}
		}
		return false
	})
}

func (p *play) sysctl(h *Host, name, value string) {
	if p.err == nil {
		p.err = h.Sysctl(name, value)
	}
}

func (p *play) nft(h *Host, format string, args ...any) {
	if p.err == nil {
		p.err = h.nft(fmt.Sprintf(format, args...))
	}
}

func (p *play) forward(on bool) {
	if p.err == nil {
		p.err = p.st.forward(on)
	}
}

func (p *play) inject(h *Host, s segment) {
	if p.err == nil {
		p.err = h.inject(s)
	}
}

// sock is a socket of an actor.
type sock struct {
	p           *play
	a           *actor
	fd          int
	local, peer netip.AddrPort
}

// backlog is room enough for scenes that do not care.
const backlog = 64

func (p *play) listen(a *actor, ip netip.Addr, backlog int) *sock {
	d := p.do(a, request{Op: "listen", Local: netip.AddrPortFrom(ip, 0), N: backlog})
	return &sock{p, a, d.FD, d.Local, netip.AddrPort{}}
}

func (p *play) dial(a *actor, to netip.AddrPort) *sock {
	d := p.do(a, request{Op: "connect", Peer: to})
	return &sock{p, a, d.FD, d.Local, to}
}

// refused dials where the answer is to be that error. Connect(2) forgets the
// port that it chose, so the socket is bound before.
func (p *play) refused(a *actor, from netip.Addr, to netip.AddrPort, want syscall.Errno) *sock {
	b := p.do(a, request{Op: "bind", Local: netip.AddrPortFrom(from, 0)})
	d := p.try(a, request{Op: "connect", FD: b.FD, Peer: to})
	if d.Errno != want {
		p.check(fmt.Errorf("connect to %v says %q, want %q", to, errnoName(d.Errno), errnoName(want)))
	}
	return &sock{p, a, b.FD, b.Local, to}
}

func (s *sock) accept() *sock {
	d := s.p.do(s.a, request{Op: "accept", FD: s.fd})
	return &sock{s.p, s.a, d.FD, d.Local, d.Peer}
}

func (s *sock) read(n int) string { return s.p.do(s.a, request{Op: "read", FD: s.fd, N: n}).Text }
func (s *sock) write(n int)       { s.p.do(s.a, request{Op: "write", FD: s.fd, N: n}) }
func (s *sock) close()            { s.p.do(s.a, request{Op: "close", FD: s.fd}) }
func (s *sock) shutdown(how int)  { s.p.do(s.a, request{Op: "shutdown", FD: s.fd, N: how}) }
func (s *sock) linger(sec int)    { s.p.do(s.a, request{Op: "linger", FD: s.fd, N: sec}) }

func (s *sock) say(text string) { s.p.do(s.a, request{Op: "write", FD: s.fd, Text: text}) }

func (s *sock) set(option, value int) {
	s.p.do(s.a, request{Op: "set", FD: s.fd, Level: unix.IPPROTO_TCP, Opt: option, Value: value})
}

// vanish closes the socket in repair mode: it is gone and nobody is told
// (net/ipv4/tcp.c __tcp_close).
func (s *sock) vanish() {
	s.set(unix.TCP_REPAIR, 1)
	s.close()
}

// awaitUnread waits for bytes in the receive queue.
func (s *sock) awaitUnread(n int) { s.await("unread", n) }

// awaitQueue waits for the length of a listener's accept queue.
func (s *sock) awaitQueue(n int) { s.await("info", n) }

// awaitState waits for a state of the connection.
func (s *sock) awaitState(state int) { s.await("info", state) }

func (s *sock) await(op string, n int) {
	s.p.until(fmt.Sprintf("%s's %s is %d", s.a.Name, op, n), func() bool {
		return s.p.do(s.a, request{Op: op, FD: s.fd}).N == n
	})
}

// dies waits for the end of the connection and checks the error.
func (s *sock) dies(want syscall.Errno) {
	got := s.p.try(s.a, request{Op: "error", FD: s.fd}).Errno
	if s.p.err == nil && got != want {
		s.p.err = fmt.Errorf("%s's connection %v > %v ends with %q, want %q", s.a.Name, s.local, s.peer, errnoName(got), errnoName(want))
	}
}

func errnoName(e syscall.Errno) string {
	if e == 0 {
		return "no error"
	}
	return e.Error()
}

// conn is an accepted connection with both its ends.
type conn struct {
	p        *play
	srv, cli *actor
	l, s, c  *sock
}

// connect starts a server and a client and joins them.
func (p *play) connect() *conn {
	srv, cli := p.actor(p.st.Server, "srv"), p.actor(p.st.Client, "cli")
	return p.join(p.listen(srv, p.st.ServerIP(), backlog), cli)
}

// join makes a connection to a listener of the stage's server.
func (p *play) join(l *sock, cli *actor) *conn {
	c := p.dial(cli, l.local)
	return &conn{p, l.a, cli, l, l.accept(), c}
}

// works shows that the connection is alive, and that all that was sent on the
// path before has arrived.
func (c *conn) works() {
	c.s.write(1)
	c.c.read(1)
	c.c.write(1)
	c.s.read(1)
}

// truth is what both ends know of a reset from one of them.
func (c *conn) truth(from, reason, state string) Truth {
	t := Truth{Client: c.c.local, Server: c.s.local, RSTFrom: from, Reason: reason, State: state}
	switch from {
	case FromClient:
		t.Claimed, t.OwnerPID = t.Client, c.cli.PID
	case FromServer:
		t.Claimed, t.OwnerPID = t.Server, c.srv.PID
	}
	return t
}

// by blames the process; seen is the receiver's error.
func (t Truth) by(a *actor) Truth               { t.GuiltyPID = a.PID; return t }
func (t Truth) seen(errno syscall.Errno) Truth  { t.Errno = errno; return t }
func (t Truth) local(errno syscall.Errno) Truth { t.LocalErrno = errno; return t }
