package main

import (
	"fmt"
	"net/netip"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"tcpcoroner/evidence"
	"tcpcoroner/internal/scenes"
)

// listenerTroubles are of ports: nobody there, full, guarded.
var listenerTroubles = []trouble{
	{row: "nothing listens", name: "a service is restarted", trigger: "resets", watched: scenes.FromServer, play: restarts, datum: restartDatum},
	{row: "nothing listens", name: "a port nobody listens on", trigger: "resets", watched: scenes.FromServer, play: closedPort, datum: closedDatum},
	{row: "listen queue overflow", name: "listen queue overflow", trigger: "listen", watched: scenes.FromServer, play: overflow, datum: overflowDatum},
	{row: "firewall reject", name: "reject over a rate", trigger: "resets", watched: scenes.FromServer, play: rateLimit, datum: rateDatum},
}

const servicePort = 8081

// restarts kills a server that serves, has clients come, and starts it again.
func restarts(l *caseLab) {
	addr := l.server(servicePort)
	block := fmt.Sprintf("server { listen %v; return 200 ok; }", addr)
	old := l.nginx(l.Server, addr, block)
	for range 3 {
		c := l.dial(l.Client, addr)
		l.ask(c)
		_, err := answer(c)
		l.must(err)
	}
	l.notes["old"] = fmt.Sprint(old.Process.Pid)
	end(old)
	l.refused(addr, 5)
	l.notes["new"] = fmt.Sprint(l.nginx(l.Server, addr, block).Process.Pid)
}

// refused tries a port where nobody is.
func (l *caseLab) refused(addr netip.AddrPort, n int) {
	l.Helper()
	for range n {
		if c, err := l.tryDial(l.Client, addr); err == nil {
			c.Close()
			l.Fatalf("%v takes connections", addr)
		}
	}
}

func restartDatum(l *caseLab, inc *evidence.Incident) string {
	c := inc.Verdict.Claim()
	l.want(c.Mechanism.Family() == evidence.MechanismRefused && c.Cause == evidence.CauseProcessDown, "refused, process down: %s/%s: %s", c.Mechanism, c.Cause, c.Sentence)
	if l.full(inc) {
		e := eventOf(inc, func(e *evidence.KernelEvent) bool { return e.Kind == evidence.ResetSent && e.LastListener != nil })
		l.want(e != nil && e.Reason == "NO_SOCKET" && fmt.Sprint(e.LastListener.PID) == l.notes["old"], "NO_SOCKET, last listened on by nginx[%s]: %+v", l.notes["old"], e)
	}
	k := listenerOn(inc.After, servicePort)
	if k == nil || k.Owner == nil {
		l.Errorf("no listener with owner in the last snapshot: %+v", k)
		return ""
	}
	l.want(fmt.Sprint(k.Owner.PID) == l.notes["new"] && k.Owner.Started.After(inc.Window.From), "the new nginx[%s] there: %+v", l.notes["new"], k.Owner)
	started := ""
	for _, ch := range inc.After.Implicated.Changes {
		if ch.Kind == evidence.ChangeStart && strings.Contains(ch.What, l.notes["new"]) {
			started = ch.What
		}
	}
	l.want(started != "", "the start of nginx[%s] among the changes: %+v", l.notes["new"], inc.After.Implicated.Changes)
	return fmt.Sprintf("NO_SOCKET, nginx[%s] listened before; %s started since", l.notes["old"], started)
}

func closedPort(l *caseLab) { l.refused(l.server(servicePort), 10) }

func closedDatum(l *caseLab, inc *evidence.Incident) string {
	c := inc.Verdict.Claim()
	l.want(c.Mechanism.Family() == evidence.MechanismRefused && c.Origin.Local(), "refused by this host: %s/%s: %s", c.Origin, c.Mechanism, c.Sentence)
	for _, s := range []*evidence.Snapshot{inc.At, inc.After} {
		l.want(listenerOn(s, servicePort) == nil, "nobody on port %d", servicePort)
	}
	l.want(strings.Contains(inc.Firings[0].Reason, "refused"), "refused connections: %s", inc.Firings[0].Reason)
	return fmt.Sprintf("%d RST answer SYNs; no listener on port %d", inc.Window.ResetCount, servicePort)
}

const queueBacklog = 4

// overflow fills an accept queue.
func overflow(l *caseLab) {
	var addr netip.AddrPort
	l.must(l.Server.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		l.Cleanup(func() { unix.Close(fd) })
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: l.ServerIP().As4(), Port: servicePort}); err != nil {
			return err
		}
		addr = l.server(servicePort)
		return unix.Listen(fd, queueBacklog)
	}))
	for range 20 {
		l.meanwhile(func() {
			if c, err := l.tryDial(l.Client, addr); err == nil {
				<-l.Context().Done()
				c.Close()
			}
		})
	}
}

func overflowDatum(l *caseLab, inc *evidence.Incident) string {
	k := listenerOn(inc.At, servicePort)
	if k == nil || k.Owner == nil || len(inc.Firings[0].Listeners) == 0 {
		l.Errorf("no listener with owner: %+v, firing %+v", k, inc.Firings[0])
		return ""
	}
	l.want(k.RecvQueue >= queueBacklog && k.SendQueue == queueBacklog && k.Owner.PID == syscall.Getpid(), "a full queue of %d: %+v %+v", queueBacklog, k, k.Owner)
	over, drops := inc.CounterDelta("TcpExt.ListenOverflows"), inc.CounterDelta("TcpExt.ListenDrops")
	l.want(over >= 5 && drops >= 5, "ListenOverflows and ListenDrops to grow by 5: %d, %d", over, drops)
	c := inc.Verdict.Claim()
	l.want(c.Mechanism == evidence.MechanismQueueOverflow && c.Confidence == evidence.Proven, "a proven overflow: %s %s", c.Confidence, c.Sentence)
	return fmt.Sprintf("ListenOverflows +%d; %v has %d of %d, %s[%d]", over, k.Local, k.RecvQueue, k.SendQueue, k.Owner.Comm, k.Owner.PID)
}

// rateRule rejects what comes too often.
const rateRule = `table inet guard { chain in { type filter hook input priority 0; policy accept;
	tcp dport 8081 tcp flags syn limit rate over 2/second burst 2 packets counter reject with tcp reset comment "too many"; }; }`

// rateLimit has a client that asks more often than a firewall allows, until the test
// ends.
func rateLimit(l *caseLab) {
	addr := l.serve(l.Server, l.server(servicePort), hang)
	l.nft(l.Server, rateRule)
	l.meanwhile(func() {
		for l.Context().Err() == nil {
			if c, err := l.tryDial(l.Client, addr); err == nil {
				c.Close()
			}
			pause(l.T, tick/20)
		}
	})
}

func rateDatum(l *caseLab, inc *evidence.Incident) string {
	c := inc.Verdict.Claim()
	l.want(c.Origin == evidence.OriginLocalNetfilter && (c.Mechanism == evidence.MechanismRefusedRateLimit || c.Mechanism == evidence.MechanismRefusedFilter),
		"refused by this host's filter: %s/%s: %s", c.Origin, c.Mechanism, c.Sentence)
	hits := inc.After.Implicated.Rules.Since(inc.At.Implicated.Rules)
	if len(hits) != 1 {
		l.Errorf("want one rule that matched between the snapshots: %+v of %+v", hits, inc.At.Implicated.Rules)
		return ""
	}
	r := hits[0].Rule
	l.want(r.Resets() && r.Comment == "too many" && strings.Contains(r.Text, "tcp flags syn limit rate over 2/second burst 2 packets"), "the rule: %+v", r)
	before := r.Packets - hits[0].Packets
	l.want(before > 0 && inc.CounterDelta("Tcp.OutRsts") < r.Packets, "RSTs that TCP did not count: counter %d, OutRsts +%d", before, inc.CounterDelta("Tcp.OutRsts"))
	return fmt.Sprintf("handle %d %q: counter %d, later %d; OutRsts +%d", r.Handle, r.Action, before, r.Packets, inc.CounterDelta("Tcp.OutRsts"))
}
