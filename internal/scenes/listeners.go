package scenes

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// listenerScripts are resets around a listening port: nobody there, gone, full.
var listenerScripts = []script{
	{"closed-port", "the client connects to a port where nobody listens", nil, closedPort},
	{"restarted", "the client connects to a port whose owner was killed", nil, restarted},
	{"listener-closed", "the server closes its listener with two connections in the accept queue", nil, listenerClosed},
	{"listener-killed", "SIGKILL ends the server with two connections in the accept queue", nil, listenerKilled},
	{"reset-in-queue", "the client resets while it waits in the accept queue", nil, resetInQueue},
	{"overflow-abort", "the accept queue is full and tcp_abort_on_overflow is 1", nil, overflowAbort},
	{"overflow-drop", "the accept queue is full and SYNs are dropped in silence", nil, overflowDrop},
}

// unlistened binds a port and does not listen, so that it stays free of others.
func (p *play) unlistened(a *actor) netip.AddrPort {
	return p.do(a, request{Op: "bind", Local: netip.AddrPortFrom(p.st.ServerIP(), 0)}).Local
}

// answered is the truth of a reset that no connection's own socket sent.
func answered(client, server netip.AddrPort, reason, state string) Truth {
	return Truth{Client: client, Server: server, RSTFrom: FromServer, Claimed: server, Reason: reason, State: state}
}

func closedPort(p *play) []Truth {
	port := p.unlistened(p.actor(p.st.Server, "srv"))
	c := p.refused(p.actor(p.st.Client, "cli"), p.st.ClientIP(), port, unix.ECONNREFUSED)
	return []Truth{answered(c.local, port, "NO_SOCKET", "").seen(unix.ECONNREFUSED)}
}

func restarted(p *play) []Truth {
	srv := p.actor(p.st.Server, "srv")
	l := p.listen(srv, p.st.ServerIP(), backlog)
	p.kill(srv, unix.SIGKILL)
	c := p.refused(p.actor(p.st.Client, "cli"), p.st.ClientIP(), l.local, unix.ECONNREFUSED)
	t := answered(c.local, l.local, "NO_SOCKET", "").seen(unix.ECONNREFUSED)
	t.OwnerPID = srv.PID
	return []Truth{t}
}

// queued fills a listener's accept queue with two connections.
func (p *play) queued() (l *sock, waiting []*sock) {
	l = p.listen(p.actor(p.st.Server, "srv"), p.st.ServerIP(), backlog)
	cli := p.actor(p.st.Client, "cli")
	waiting = []*sock{p.dial(cli, l.local), p.dial(cli, l.local)}
	l.awaitQueue(len(waiting))
	return l, waiting
}

// purged is the truth of connections that die with their listener
// (net/ipv4/inet_connection_sock.c inet_csk_listen_stop).
func purged(l *sock, waiting []*sock, sig unix.Signal) (all []Truth) {
	for _, c := range waiting {
		c.dies(unix.ECONNRESET)
		t := answered(c.local, l.local, "TCP_STATE", "closed").by(l.a).seen(unix.ECONNRESET)
		t.OwnerPID, t.Signal = l.a.PID, sig
		all = append(all, t)
	}
	return all
}

func listenerClosed(p *play) []Truth {
	l, waiting := p.queued()
	l.close()
	return purged(l, waiting, 0)
}

func listenerKilled(p *play) []Truth {
	l, waiting := p.queued()
	p.kill(l.a, unix.SIGKILL)
	return purged(l, waiting, unix.SIGKILL)
}

func resetInQueue(p *play) []Truth {
	srv, cli := p.actor(p.st.Server, "srv"), p.actor(p.st.Client, "cli")
	return []Truth{p.resetInQueue(p.listen(srv, p.st.ServerIP(), backlog), cli)}
}

func (p *play) resetInQueue(l *sock, cli *actor) Truth {
	c := p.dial(cli, l.local)
	l.awaitQueue(1)
	c.linger(0)
	c.close()
	s := l.accept() // it works: the connection is in the queue, though dead
	s.dies(unix.ECONNRESET)
	s.close()
	return (&conn{p, l.a, cli, l, s, c}).truth(FromClient, "TCP_STATE", "closed").by(cli).seen(unix.ECONNRESET)
}

// overflowAbort needs a handshake that was let in before the queue was full and
// ends after: TCP_DEFER_ACCEPT keeps handshakes open until data come. SYN
// cookies are off, for their handshakes are dropped in silence.
func overflowAbort(p *play) []Truth {
	p.sysctl(p.st.Server, "net.ipv4.tcp_abort_on_overflow", "1")
	p.sysctl(p.st.Server, "net.ipv4.tcp_syncookies", "0")
	const room = 2 // the kernel lets in one more than the backlog: sk_acceptq_is_full
	l := p.listen(p.actor(p.st.Server, "srv"), p.st.ServerIP(), room)
	l.set(unix.TCP_DEFER_ACCEPT, 30)
	cli := p.actor(p.st.Client, "cli")
	for n := range room {
		p.dial(cli, l.local).write(1)
		l.awaitQueue(n + 1)
	}
	third, fourth := p.dial(cli, l.local), p.dial(cli, l.local)
	third.write(1)
	l.awaitQueue(room + 1)
	fourth.write(1)
	fourth.dies(unix.ECONNRESET)
	t := answered(fourth.local, l.local, "INVALID_SYN", "listen").seen(unix.ECONNRESET)
	t.OwnerPID = l.a.PID
	return []Truth{t}
}

// overflowDrop leaves the client alone with its SYN; TCP_USER_TIMEOUT makes it
// give up at the first retransmission.
func overflowDrop(p *play) []Truth {
	p.sysctl(p.st.Server, "net.ipv4.tcp_syncookies", "0")
	l := p.listen(p.actor(p.st.Server, "srv"), p.st.ServerIP(), 1)
	cli := p.actor(p.st.Client, "cli")
	for n := range 2 {
		p.dial(cli, l.local)
		l.awaitQueue(n + 1)
	}
	overflows := p.counter(p.st.Server, "TcpExt.ListenOverflows")
	b := p.do(cli, request{Op: "bind", Local: netip.AddrPortFrom(p.st.ClientIP(), 0)})
	c := &sock{p, cli, b.FD, b.Local, l.local}
	c.set(unix.TCP_USER_TIMEOUT, 1)
	if d := p.try(cli, request{Op: "connect", FD: c.fd, Peer: l.local}); d.Errno != unix.ETIMEDOUT {
		p.check(fmt.Errorf("connect to a full queue says %q, want %q", errnoName(d.Errno), errnoName(unix.ETIMEDOUT)))
	}
	if p.counter(p.st.Server, "TcpExt.ListenOverflows") == overflows {
		p.check(fmt.Errorf("the accept queue did not overflow"))
	}
	return []Truth{{Client: c.local, Server: l.local, RSTFrom: FromNone, OwnerPID: cli.PID, LocalErrno: unix.ETIMEDOUT}}
}
