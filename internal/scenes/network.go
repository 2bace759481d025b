package scenes

import (
	"net/netip"

	"golang.org/x/sys/unix"
)

// networkScripts are resets by firewalls, forgers and lost state on the way, and
// answers to segments that belong to no connection.
var networkScripts = []script{
	{"reject-input", "the server's firewall rejects the client's SYN", []string{"nft"}, rejectInput},
	{"reject-forward", "the router's firewall rejects the client's data", []string{"nft"}, rejectForward},
	{"reject-output", "the server's firewall rejects the server's own data", []string{"nft"}, rejectOutput},
	{"inject-exact", "the router forges a RST with the exact sequence number to the client; then the server sends", nil, injectExact},
	{"inject-in-window", "the router forges a RST in the window, which the client challenges", nil, injectInWindow},
	{"inject-out-of-window", "the router forges a RST out of the window, which the client drops", nil, injectOutOfWindow},
	{"syn-into-established", "the router forges a SYN into the connection, which the client challenges", nil, synIntoEstablished},
	{"time-wait-late-data", "old data meet the server's TIME_WAIT; the client's kernel resets what it answers", nil, timeWaitLateData},
	{"rst-into-time-wait", "a forged RST ends the server's TIME_WAIT", nil, rstIntoTimeWait},
	{"bare-ack", "an ACK without a connection meets a listener", nil, bareAck},
	{"stray-syn-ack", "a SYN-ACK comes to a client that sent no SYN", nil, straySynAck},
	{"conntrack-snat", "the router forgets a source-translated connection, then the server sends", []string{"nft"}, conntrackSNAT},
	{"conntrack-dnat", "the router forgets a destination-translated connection, then the client sends", []string{"nft"}, conntrackDNAT},
}

// rejectRules reject what matches at a hook with a TCP reset.
const rejectRules = `table inet scenes { chain c { type filter hook %s priority 0; %s reject with tcp reset; }; }`

// unmarked is the truth of a reset without an event in the sender's TCP.
func (c *conn) unmarked(from string, claimed netip.AddrPort) Truth {
	return Truth{Client: c.c.local, Server: c.s.local, RSTFrom: from, Claimed: claimed}
}

func rejectInput(p *play) []Truth {
	l := p.listen(p.actor(p.st.Server, "srv"), p.st.ServerIP(), backlog)
	p.nft(p.st.Server, rejectRules, "input", "tcp dport "+port(l.local))
	c := p.refused(p.actor(p.st.Client, "cli"), p.st.ClientIP(), l.local, unix.ECONNREFUSED)
	return []Truth{answered(c.local, l.local, "", "").seen(unix.ECONNREFUSED)}
}

func rejectForward(p *play) []Truth {
	c := p.connect()
	p.nft(p.st.Router, rejectRules, "forward", "tcp dport "+port(c.l.local))
	c.c.write(late100)
	c.c.dies(unix.ECONNRESET)
	return []Truth{c.unmarked(FromRouter, c.s.local).seen(unix.ECONNRESET)}
}

// rejectOutput resets the server's own socket: the RST goes by loopback and says
// that it is the client's.
func rejectOutput(p *play) []Truth {
	c := p.connect()
	p.nft(p.st.Server, rejectRules, "output", "tcp sport "+port(c.l.local))
	c.s.write(late100)
	c.s.dies(unix.ECONNRESET)
	return []Truth{c.unmarked(FromServer, c.c.local).seen(unix.ECONNRESET)}
}

// toClient is a segment that says to come from the server; offset counts from
// the sequence number that the client expects.
func (c *conn) toClient(flags uint8, offset int) segment {
	seq := c.p.do(c.cli, request{Op: "sequence", FD: c.c.fd})
	return segment{src: c.s.local, dst: c.c.local, seq: seq.Rcv + uint32(offset), ack: seq.Snd, flags: flags}
}

func injectExact(p *play) []Truth { return p.connect().injectExact() }

func (c *conn) injectExact() []Truth {
	c.p.inject(c.p.st.Router, c.toClient(flagRST|flagACK, 0))
	c.c.dies(unix.ECONNRESET)
	c.s.write(late100)
	c.s.dies(unix.ECONNRESET)
	return []Truth{
		c.unmarked(FromRouter, c.s.local).seen(unix.ECONNRESET),
		c.truth(FromClient, "NO_SOCKET", "").seen(unix.ECONNRESET),
	}
}

func injectInWindow(p *play) []Truth {
	c := p.connect()
	p.after(p.st.Client, "TcpExt.TCPChallengeACK", func() { p.inject(p.st.Router, c.toClient(flagRST, 10)) })
	return c.ignored()
}

func injectOutOfWindow(p *play) []Truth {
	c := p.connect()
	p.inject(p.st.Router, c.toClient(flagRST, -100_000))
	return c.ignored()
}

func (c *conn) ignored() []Truth {
	c.works()
	t := c.unmarked(FromRouter, c.s.local)
	t.Ignored = true
	return []Truth{t}
}

func synIntoEstablished(p *play) []Truth {
	c := p.connect()
	p.after(p.st.Client, "TcpExt.TCPSYNChallenge", func() { p.inject(p.st.Router, c.toClient(flagSYN, 0)) })
	t := c.ignored()[0]
	t.RSTFrom, t.Claimed = FromNone, netip.AddrPort{}
	return []Truth{t}
}

// timeWait ends the connection in the usual way, the server first, and returns
// the client's sequence number before its FIN, and the server's.
func (c *conn) timeWait() (cli, srv uint32) {
	c.c.write(late100)
	c.s.read(late100)
	seq := c.p.do(c.cli, request{Op: "sequence", FD: c.c.fd})
	c.s.close()
	c.heard()
	c.p.awaitState(c.p.st.Server, c.s.local, c.s.peer, stateFinWait2, stateTimeWait)
	c.c.close()
	c.p.awaitState(c.p.st.Client, c.c.local, c.c.peer, 0)
	c.p.awaitState(c.p.st.Server, c.s.local, c.s.peer, stateTimeWait)
	return seq.Snd, seq.Rcv
}

// timeWaitLateData ends the TIME_WAIT too early: RFC 1337.
func timeWaitLateData(p *play) []Truth {
	c := p.connect()
	cli, srv := c.timeWait()
	p.after(p.st.Client, "Tcp.OutRsts", func() {
		p.inject(p.st.Router, segment{
			src: c.c.local, dst: c.s.local, seq: cli - late100, ack: srv, flags: flagACK, payload: late100,
		})
	})
	p.awaitState(p.st.Server, c.s.local, c.s.peer, 0)
	return []Truth{c.truth(FromClient, "NO_SOCKET", "")}
}

func rstIntoTimeWait(p *play) []Truth {
	c := p.connect()
	cli, _ := c.timeWait()
	p.inject(p.st.Router, segment{src: c.c.local, dst: c.s.local, seq: cli + 1, flags: flagRST}) // its FIN counts 1
	p.awaitState(p.st.Server, c.s.local, c.s.peer, 0)
	return []Truth{c.unmarked(FromRouter, c.c.local)}
}

// strayPort is a port of the client where no socket is.
const strayPort = 33333

func bareAck(p *play) []Truth {
	l := p.listen(p.actor(p.st.Server, "srv"), p.st.ServerIP(), backlog)
	client := netip.AddrPortFrom(p.st.ClientIP(), strayPort)
	p.after(p.st.Server, "Tcp.OutRsts", func() {
		p.inject(p.st.Router, segment{src: client, dst: l.local, seq: 1000, ack: 2000, flags: flagACK})
	})
	t := answered(client, l.local, "TCP_FLAGS", "listen")
	t.OwnerPID = l.a.PID
	return []Truth{t}
}

func straySynAck(p *play) []Truth {
	client := netip.AddrPortFrom(p.st.ClientIP(), strayPort)
	server := netip.AddrPortFrom(p.st.ServerIP(), 443)
	p.after(p.st.Client, "Tcp.OutRsts", func() {
		p.inject(p.st.Router, segment{src: server, dst: client, seq: 1000, ack: 2000, flags: flagSYN | flagACK})
	})
	return []Truth{{Client: client, Server: server, RSTFrom: FromClient, Claimed: client, Reason: "NO_SOCKET"}}
}

// conntrackSNAT: the server's next segment finds no translation and is the
// router's own, which has no such socket.
func conntrackSNAT(p *play) []Truth {
	l := p.listen(p.actor(p.st.Server, "srv"), p.st.ServerIP(), backlog)
	router := p.st.ip(routerIP4s, routerIP6s)
	p.nft(p.st.Router, `table inet scenes { chain c { type nat hook postrouting priority 100; tcp dport %s snat %s to %v; }; }`,
		port(l.local), p.ipName(), router)
	c := p.join(l, p.actor(p.st.Client, "cli"))
	c.works()
	p.forget()
	c.s.write(late100)
	c.s.dies(unix.ECONNRESET)
	return []Truth{{
		Client: c.s.peer, Server: c.s.local, RSTFrom: FromRouter, Claimed: c.s.peer,
		Reason: "NO_SOCKET", Errno: unix.ECONNRESET,
	}}
}

func conntrackDNAT(p *play) []Truth {
	l := p.listen(p.actor(p.st.Server, "srv"), p.st.ServerIP(), backlog)
	service := netip.AddrPortFrom(p.st.ip(routerIP4c, routerIP6c), l.local.Port())
	p.nft(p.st.Router, `table inet scenes { chain c { type nat hook prerouting priority -100; %s daddr %v tcp dport %s dnat %s to %v; }; }`,
		p.ipName(), service.Addr(), port(service), p.ipName(), l.local.Addr())
	c := p.dial(p.actor(p.st.Client, "cli"), service)
	l.accept()
	p.forget()
	c.write(late100)
	c.dies(unix.ECONNRESET)
	return []Truth{{
		Client: c.local, Server: service, RSTFrom: FromRouter, Claimed: service,
		Reason: "NO_SOCKET", Errno: unix.ECONNRESET,
	}}
}

// forget takes away the rules, which would translate what comes next anew
// (nf_conntrack_tcp_loose), and the state.
func (p *play) forget() {
	p.nft(p.st.Router, "delete table inet scenes")
	if p.err == nil {
		p.err = p.st.Router.flushConntrack()
	}
}

// ipName is what nft calls the stage's family.
func (p *play) ipName() string {
	if p.st.IPv6 {
		return "ip6"
	}
	return "ip"
}
