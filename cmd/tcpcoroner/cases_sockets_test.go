package main

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"tcpcoroner/evidence"
	"tcpcoroner/internal/scenes"
)

// socketTroubles are resets by what applications do, and by the kernel's timers.
var socketTroubles = []trouble{
	{row: "application aborts", name: "close with unread data", trigger: "resets", watched: scenes.FromServer,
		play: func(l *caseLab) { l.scene("close-unread", 3) }, datum: abortDatum("TCP_ABORT_ON_CLOSE")},
	{row: "application aborts", name: "SO_LINGER 0", trigger: "resets", watched: scenes.FromServer,
		play: asksReset, datum: lingerDatum},
	{row: "application aborts", name: "killed with unread data", trigger: "resets", watched: scenes.FromServer,
		play: func(l *caseLab) { l.scene("sigkill-unread", 3) }, datum: abortDatum("TCP_ABORT_ON_CLOSE")},
	{row: "keepalive or user timeout", name: "keepalive", trigger: "timeouts", watched: scenes.FromServer,
		play: keepalives, datum: keepaliveDatum},
	{row: "keepalive or user timeout", name: "TCP_USER_TIMEOUT", trigger: "timeouts", watched: scenes.FromServer,
		play: userTimeouts, datum: userTimeoutDatum},
	{row: "benign", name: "benign", watched: scenes.FromServer, play: benignResets, datum: benignDatum},
}

// abortDatum wants of each scene's reset the process that caused it, dead or alive,
// and a RST that goes on where the flow was.
func abortDatum(reason string) func(*caseLab, *evidence.Incident) string {
	return func(l *caseLab, inc *evidence.Incident) string {
		found := ""
		for _, tr := range l.truths {
			f := flowOf(inc, tr.Client)
			if f == nil || f.Reset == nil {
				l.Errorf("no flow of %v", tr.Client)
				continue
			}
			c := f.Verdict.Claim()
			l.want(c.Mechanism.Family() == evidence.MechanismActiveAbort && f.Reset.From == tr.Server && f.Reset.Flags == "RST_ACK",
				"an active abort by %v: %s, RST %+v", tr.Server, c.Sentence, f.Reset)
			e := eventOf(inc, func(e *evidence.KernelEvent) bool { return e.Kind == evidence.ResetSent && e.Remote == tr.Client })
			if e == nil || e.Actor == nil || !l.owned(f, tr.OwnerComm) {
				continue
			}
			l.want(e.Reason == reason && e.Actor.PID == tr.GuiltyPID && f.Owner.PID == tr.OwnerPID,
				"%s by %d, owner %d: %+v %+v", reason, tr.GuiltyPID, tr.OwnerPID, e.Actor, f.Owner)
			found = fmt.Sprintf("%s by %s[%d], %d bytes unread", e.Reason, f.Owner.Comm, f.Owner.PID, e.Unread)
		}
		l.want(found != "" || !l.full(inc), "the kernel's word on a reset")
		return found
	}
}

// asksReset has a server reset in the place of an answer.
func asksReset(l *caseLab) {
	addr := l.serve(l.Server, l.server(0), func(c *net.TCPConn) {
		_ = head(c)
		_ = c.SetLinger(0)
		c.Close()
	})
	for range 5 {
		c := l.dial(l.Client, addr)
		l.ask(c)
		_, err := io.Copy(io.Discard, c)
		l.want(err != nil, "a reset connection")
	}
}

func lingerDatum(l *caseLab, inc *evidence.Incident) string {
	c := inc.Verdict.Claim()
	l.want(len(inc.Flows) == 5 && c.Origin == evidence.OriginLocalProcess && c.Mechanism == evidence.MechanismLinger,
		"5 flows ended by linger time 0: %d, %s/%s", len(inc.Flows), c.Origin, c.Mechanism)
	for i := range inc.Flows {
		if f := &inc.Flows[i]; f.Owner != nil {
			l.want(f.Owner.PID == syscall.Getpid(), "this process, not %+v", f.Owner)
			return fmt.Sprintf("%s by %s[%d], %s", c.Mechanism, f.Owner.Comm, f.Owner.PID, f.Reset.Flags)
		}
	}
	l.want(!l.full(inc), "an owner")
	return string(c.Mechanism)
}

// idle opens n connections that say nothing; the server's ends are given.
func (l *caseLab) idle(n int) (ends []*net.TCPConn) {
	l.Helper()
	ln := l.listen(l.Server, l.server(0))
	for range n {
		l.dial(l.Client, addrOf(ln.Addr()))
		s, err := ln.AcceptTCP()
		l.must(err)
		l.Cleanup(func() { s.Close() })
		ends = append(ends, s)
	}
	return ends
}

// cut stops the router from forwarding; nobody is told.
func (l *caseLab) cut() {
	l.Helper()
	l.must(l.Router.Sysctl("net.ipv4.ip_forward", "0"))
}

// keepalives cuts the path of connections that probe each second. The last of them
// goes on probing.
func keepalives(l *caseLab) {
	ends := l.idle(5)
	l.cut()
	for i, c := range ends {
		probes := 1
		if i == len(ends)-1 {
			probes = 100
		}
		// Go would spread the probes; the socket takes what it is told.
		l.must(c.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second, Count: probes}))
	}
}

func keepaliveDatum(l *caseLab, inc *evidence.Incident) string {
	var timer *evidence.Timer
	for _, s := range inc.At.Sockets {
		if s.Timer != nil && s.Timer.Kind == evidence.TimerKeepalive && s.Info != nil && s.Info.Probes > 0 {
			timer = s.Timer
			l.want(s.Owner != nil && s.Owner.PID == syscall.Getpid(), "its owner, not %+v", s.Owner)
		}
	}
	l.want(timer != nil, "a socket whose keepalive probes are unanswered")
	n := inc.CounterDelta("TcpExt.TCPAbortOnTimeout")
	l.want(n >= 3, "TCPAbortOnTimeout to grow by 3, not %d", n)
	e := eventOf(inc, func(e *evidence.KernelEvent) bool {
		return e.Kind == evidence.ResetSent && e.Reason == "TCP_KEEPALIVE_TIMEOUT"
	})
	c := inc.Verdict.Claim()
	if l.full(inc) {
		l.want(e != nil, "the kernel's reason TCP_KEEPALIVE_TIMEOUT")
		l.want(e == nil || c.Mechanism == evidence.MechanismKeepalive, "%s, not %s: %s", evidence.MechanismKeepalive, c.Mechanism, c.Sentence)
	}
	return fmt.Sprintf("TCPAbortOnTimeout +%d, TCP_KEEPALIVE_TIMEOUT, a socket that still probes", n)
}

// userTimeouts cuts the path and writes what nobody acknowledges.
func userTimeouts(l *caseLab) {
	ends := l.idle(4)
	l.cut()
	var all sync.WaitGroup
	for _, c := range ends {
		l.option(c, unix.TCP_USER_TIMEOUT, 1500)
		all.Go(func() {
			_, _ = c.Write(make([]byte, 100)) // it goes into the send queue
			_, err := c.Read(make([]byte, 1))
			l.want(err != nil, "a connection that gives up")
		})
	}
	all.Wait()
}

// option sets a number of the protocol TCP.
func (l *caseLab) option(c *net.TCPConn, option, value int) {
	l.Helper()
	raw, err := c.SyscallConn()
	l.must(err)
	l.must(raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, option, value)
	}))
	l.must(err)
}

func userTimeoutDatum(l *caseLab, inc *evidence.Incident) string {
	e := eventOf(inc, func(e *evidence.KernelEvent) bool {
		return e.Kind == evidence.SocketError && e.Errno == int(unix.ETIMEDOUT)
	})
	if e == nil || e.Owner == nil {
		l.want(!l.full(inc), "the kernel's word of ETIMEDOUT with its owner: %+v", e)
		return ""
	}
	l.want(e.Owner.PID == syscall.Getpid(), "this process, not %+v", e.Owner)
	f := flowOf(inc, e.Remote)
	if f == nil {
		l.Errorf("no flow of %v", e.Remote)
		return ""
	}
	c := f.Verdict.Claim()
	l.want(f.Reset == nil && c.Mechanism == evidence.MechanismSilent, "a silent end: %+v %s", f.Reset, c.Sentence)
	return fmt.Sprintf("ETIMEDOUT of %s[%d], no RST, %d packets", e.Owner.Comm, e.Owner.PID, f.Packets)
}

// benignResets makes resets that nobody misses.
func benignResets(l *caseLab) {
	addr := l.serve(l.Server, l.server(0), func(c *net.TCPConn) {
		if head(c) == nil {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
		hang(c)
	})
	for range 10 { // health checks
		l.reset(l.dial(l.Client, addr))
	}
	for range 10 { // browsers
		c := l.dial(l.Client, addr)
		l.ask(c)
		status, err := answer(c)
		l.want(status == 200 && err == nil, "an answer, not %d %v", status, err)
		l.reset(c)
	}
	closedAfterFIN(l)
	for port := range uint16(30) { // a scan
		if c, err := l.tryDial(l.Client, netip.AddrPortFrom(addr.Addr(), 1+port)); err == nil {
			c.Close()
			l.Errorf("port %d is open", 1+port)
		}
	}
	l.seen(60)
}

// closedAfterFIN has clients that have their answer, close, and reset what is left.
func closedAfterFIN(l *caseLab) {
	addr := l.serve(l.Server, l.server(0), func(c *net.TCPConn) {
		defer c.Close()
		if head(c) == nil {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
		<-l.Context().Done() // it is slow to close
	})
	for range 10 {
		c := l.dial(l.Client, addr)
		l.ask(c)
		_, err := answer(c)
		l.must(err)
		l.must(c.CloseWrite())
		l.reset(c)
	}
}

// seen waits until the daemon has seen that many resets, and for its triggers' next
// look at them, which comes each second and tells nothing.
func (l *caseLab) seen(n uint64) {
	l.Helper()
	await(l, firingTime, fmt.Sprintf("%d resets", n), func() bool {
		s, err := l.p.client().Status(l.Context())
		l.must(err)
		return s.Recorder.Resets >= n
	})
	pause(l.T, 2*tick)
}

// benignDatum wants each kind counted as what it is.
func benignDatum(l *caseLab, inc *evidence.Incident) string {
	kinds, text := l.harm(inc)
	for kind, least := range map[evidence.HarmKind]uint64{
		evidence.HarmAbortAfterResponse: 10, evidence.HarmAfterFIN: 10, evidence.HarmScan: 10,
	} {
		l.want(kinds[kind] >= least, "%d of %v: %s", least, kind, text)
	}
	// A check that takes long is one that did not check.
	l.want(kinds[evidence.HarmHealthCheck]+kinds[evidence.HarmPreconnect] >= 10, "10 health checks: %s", text)
	l.want(kinds.Harmful() == 0, "no harm: %s", text)
	for i := range inc.Flows {
		c := inc.Flows[i].Verdict.Claim()
		l.want(c.Benign, "a benign verdict of %v: %s", &inc.Flows[i], c.Sentence)
	}
	return text + "; no trigger"
}
