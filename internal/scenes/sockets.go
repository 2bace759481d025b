package scenes

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Sizes of what is sent, different so that they can be told apart.
const (
	request1000 = 1000
	late100     = 100
)

// socketScripts are resets of an accepted connection by the system calls, or by
// the death, of one end.
var socketScripts = []script{
	{"close-unread", "the server closes with 1000 bytes unread", nil, closeUnread},
	{"linger0", "the server closes with SO_LINGER 0", nil, linger0},
	{"linger0-client", "the client closes with SO_LINGER 0", nil, linger0Client},
	{"linger2", "the server closes in FIN_WAIT2 with TCP_LINGER2 below 0", nil, linger2},
	{"shutdown-late-data", "the server shuts down both ways, then the client sends", nil, shutdownLateData},
	{"close-late-data", "the server closes, then the client sends", nil, closeLateData},
	{"sigkill-unread", "SIGKILL ends the server with 1000 bytes unread", nil, func(p *play) []Truth { return killed(p, unix.SIGKILL) }},
	{"sigsegv-unread", "SIGSEGV ends the server with 1000 bytes unread", nil, func(p *play) []Truth { return killed(p, unix.SIGSEGV) }},
	{"half-open-listener", "the server's socket vanished, its port still listens, the client sends", nil, halfOpenListener},
	{"half-open", "the server's socket and listener vanished, the client sends", nil, halfOpen},
	{"sock-destroy", "another process destroys the server's socket, as ss -K does", nil, sockDestroy},
	{"connect-unspec", "the client dissolves the connection by connect to AF_UNSPEC", nil, connectUnspec},
	{"prefork", "a worker closes with 1000 bytes unread what its master accepted", nil, prefork},
}

func closeUnread(p *play) []Truth {
	c := p.connect()
	return []Truth{c.closeUnread()}
}

func (c *conn) closeUnread() Truth {
	c.c.write(request1000)
	c.s.awaitUnread(request1000)
	c.s.close()
	c.c.dies(unix.ECONNRESET)
	t := c.truth(FromServer, "TCP_ABORT_ON_CLOSE", "closed").by(c.srv).seen(unix.ECONNRESET)
	t.Unread = request1000
	return t
}

func linger0(p *play) []Truth { return []Truth{p.connect().linger0()} }

// linger0 is TCP_STATE, not TCP_ABORT_ON_LINGER: __tcp_close goes by
// tcp_disconnect.
func (c *conn) linger0() Truth {
	c.s.linger(0)
	c.s.close()
	c.c.dies(unix.ECONNRESET)
	return c.truth(FromServer, "TCP_STATE", "closed").by(c.srv).seen(unix.ECONNRESET)
}

func linger0Client(p *play) []Truth { return []Truth{p.connect().linger0Client()} }

func (c *conn) linger0Client() Truth {
	c.c.linger(0)
	c.c.close()
	c.s.dies(unix.ECONNRESET)
	return c.truth(FromClient, "TCP_STATE", "closed").by(c.cli).seen(unix.ECONNRESET)
}

func linger2(p *play) []Truth { return []Truth{p.connect().linger2()} }

func (c *conn) linger2() Truth {
	c.s.set(unix.TCP_LINGER2, -1)
	c.s.shutdown(unix.SHUT_WR)
	c.heard()
	c.s.awaitState(stateFinWait2)
	c.s.close()
	c.c.dies(unix.EPIPE) // the client is in CLOSE_WAIT: net/ipv4/tcp_input.c tcp_reset
	return c.truth(FromServer, "TCP_ABORT_ON_LINGER", "closed").by(c.srv).seen(unix.EPIPE)
}

func shutdownLateData(p *play) []Truth { return []Truth{p.connect().shutdownLateData()} }

// heard waits until the client has the server's FIN and makes it acknowledge
// now, not some milliseconds later.
func (c *conn) heard() {
	if got := c.c.read(1); got != "" {
		c.p.check(fmt.Errorf("read %d bytes where the end should be", len(got)))
	}
	c.c.set(unix.TCP_QUICKACK, 1)
}

// shutdownLateData resets by the late segment; the kernel also resets the
// server's own socket as if a RST had come.
func (c *conn) shutdownLateData() Truth {
	c.s.shutdown(unix.SHUT_RDWR)
	c.heard()
	c.s.awaitState(stateFinWait2)
	c.c.write(late100)
	c.c.dies(unix.EPIPE)
	c.s.dies(unix.ECONNRESET)
	return c.truth(FromServer, "TCP_ABORT_ON_DATA", "closed").seen(unix.EPIPE).local(unix.ECONNRESET)
}

func closeLateData(p *play) []Truth { return []Truth{p.connect().closeLateData()} }

// closeLateData waits for FIN_WAIT2, which a closed socket nearly always spends as
// a TIME_WAIT one (net/ipv4/tcp.c __tcp_close). If the FIN's acknowledgment comes
// while close(2) still owns the socket, it stays whole, under the keepalive timer
// (net/ipv4/tcp_input.c tcp_rcv_state_process), and resets as after shutdown(2).
func (c *conn) closeLateData() Truth {
	c.s.close()
	c.heard()
	timer := 0
	c.p.until("the closed socket waits", func() bool {
		var err error
		_, timer, err = c.p.st.Server.socket(c.s.local, c.s.peer)
		c.p.check(err)
		return timer == timerTimeWait || timer == timerKeepalive
	})
	c.c.write(late100)
	c.c.dies(unix.EPIPE)
	if timer == timerKeepalive {
		return c.truth(FromServer, "TCP_ABORT_ON_DATA", "closed").seen(unix.EPIPE)
	}
	return c.truth(FromServer, "TCP_TIMEWAIT_SOCKET", "time_wait").seen(unix.EPIPE)
}

func killed(p *play, sig unix.Signal) []Truth {
	c := p.connect()
	c.c.write(request1000)
	c.s.awaitUnread(request1000)
	p.kill(c.srv, sig)
	c.c.dies(unix.ECONNRESET)
	t := c.truth(FromServer, "TCP_ABORT_ON_CLOSE", "closed").by(c.srv).seen(unix.ECONNRESET)
	t.Signal, t.Unread = sig, request1000
	return []Truth{t}
}

func halfOpenListener(p *play) []Truth { return []Truth{p.connect().halfOpenListener()} }

func (c *conn) halfOpenListener() Truth {
	c.s.vanish()
	c.c.write(late100)
	c.c.dies(unix.ECONNRESET)
	return c.truth(FromServer, "TCP_FLAGS", "listen").seen(unix.ECONNRESET)
}

func halfOpen(p *play) []Truth {
	c := p.connect()
	c.l.close()
	c.s.vanish()
	c.c.write(late100)
	c.c.dies(unix.ECONNRESET)
	return []Truth{c.truth(FromServer, "NO_SOCKET", "").seen(unix.ECONNRESET)}
}

// sockDestroy resets before the state changes (net/ipv4/tcp.c tcp_abort).
func sockDestroy(p *play) []Truth {
	c := p.connect()
	killer := p.actor(p.st.Server, "killer")
	p.do(killer, request{Op: "destroy", Local: c.s.local, Peer: c.s.peer})
	c.c.dies(unix.ECONNRESET)
	c.s.dies(unix.ECONNABORTED)
	return []Truth{c.truth(FromServer, "TCP_STATE", "established").by(killer).seen(unix.ECONNRESET).local(unix.ECONNABORTED)}
}

func connectUnspec(p *play) []Truth { return []Truth{p.connect().connectUnspec()} }

func (c *conn) connectUnspec() Truth {
	c.p.do(c.cli, request{Op: "unspec", FD: c.c.fd})
	c.s.dies(unix.ECONNRESET)
	return c.truth(FromClient, "TCP_STATE", "closed").by(c.cli).seen(unix.ECONNRESET)
}

func prefork(p *play) []Truth {
	c := p.connect()
	worker := p.actor(p.st.Server, "srv-worker")
	c.c.write(request1000)
	c.s.awaitUnread(request1000)
	taken := p.do(worker, request{Op: "take", PID: c.srv.PID, FD: c.s.fd})
	c.s.close()
	p.do(worker, request{Op: "close", FD: taken.FD})
	c.c.dies(unix.ECONNRESET)
	t := c.truth(FromServer, "TCP_ABORT_ON_CLOSE", "closed").by(worker).seen(unix.ECONNRESET)
	t.Unread = request1000
	return []Truth{t}
}
