package main

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"tcpcoroner/evidence"
	"tcpcoroner/internal/scenes"
)

// pathTroubles are made between the hosts.
var pathTroubles = []trouble{
	{row: "NAT or conntrack state lost", name: "a translator forgets its connections", trigger: "resets", watched: scenes.FromRouter,
		play: forgetNAT, datum: natDatum},
	{row: "middlebox injection", name: "forged RSTs", trigger: "resets", watched: scenes.FromClient,
		play: func(l *caseLab) { l.scene("inject-exact", 3) }, datum: forgedDatum},
	{row: "MTU black hole", name: "a smaller MTU without ICMP", trigger: "timeouts", watched: scenes.FromClient,
		play: func(l *caseLab) { l.narrow(true); l.bulk(true) }, datum: blackHoleDatum},
	{row: "MTU black hole", name: "a smaller MTU with ICMP", trigger: "resets", watched: scenes.FromClient,
		play: func(l *caseLab) { l.narrow(false); l.bulk(false); asksReset(l) }, datum: pathMTUDatum},
	{row: "loss", name: "an interface drops", trigger: "drops", watched: scenes.FromRouter, play: deviceDrops, datum: dropsDatum},
}

// forgetNAT loses the state of translated connections in use. What is not known is
// not picked up again (nf_conntrack_tcp_loose), as with a translator that restarts.
func forgetNAT(l *caseLab) {
	inside := l.serve(l.Server, l.server(servicePort), hang)
	service := netip.AddrPortFrom(l.routerIP(), servicePort)
	l.nft(l.Router, fmt.Sprintf("table ip shop { chain pre { type nat hook prerouting priority -100; ip daddr %v tcp dport %d dnat to %v; }; }",
		service.Addr(), service.Port(), inside.Addr()))
	l.must(l.Router.Sysctl("net.netfilter.nf_conntrack_tcp_loose", "0"))
	var all []*net.TCPConn
	for range 5 {
		c := l.dial(l.Client, service)
		l.ask(c)
		all = append(all, c)
	}
	l.tool(l.Router, "conntrack", "-F")
	for _, c := range all {
		l.ask(c)
		_, err := io.Copy(io.Discard, c)
		l.want(err != nil, "a reset connection")
	}
}

func natDatum(l *caseLab, inc *evidence.Incident) string {
	c := inc.Verdict.Claim()
	l.want(c.Mechanism.Family() == evidence.MechanismNoSocket && c.Origin == evidence.OriginLocalKernel, "no socket: %s/%s: %s", c.Origin, c.Mechanism, c.Sentence)
	l.want(slices.ContainsFunc(inc.At.Implicated.Rules.Chains, func(k evidence.Chain) bool { return k.Type == "nat" }), "a chain that translates: %+v", inc.At.Implicated.Rules)
	ct := inc.At.Conntrack
	if ct == nil {
		l.Errorf("no look at connection tracking: %+v", inc.Missing())
		return ""
	}
	l.want(ct.Invalid > 0 && ct.Max > 0, "segments that tracking calls invalid: %+v", ct)
	n := 0
	for i := range inc.Flows {
		f := &inc.Flows[i]
		if f.Reset == nil || f.Server.Addr() != l.routerIP() {
			continue
		}
		n++
		l.want(!slices.ContainsFunc(f.Timeline, func(s evidence.Step) bool { return strings.Contains(s.Flags, "F") && s.Time.Before(f.Reset.Time) }), "no FIN before the RST of %v", f)
		l.want(!slices.ContainsFunc(inc.At.Implicated.Tracked, func(k evidence.TrackedFlow) bool {
			return k.Original == evidence.Tuple{Source: f.Client, Destination: f.Server} && k.Translated()
		}), "no entry of %v", f)
	}
	l.want(n == 5, "5 flows, not %d", n)
	return fmt.Sprintf("%d RST mid-flow without FIN, no conntrack entry left of %d, invalid %d", n, ct.Count, ct.Invalid)
}

// forgedDatum wants the odd header, and that this host's own answer is no accusation.
func forgedDatum(l *caseLab, inc *evidence.Incident) string {
	text := ""
	for _, tr := range l.truths {
		f := flowOf(inc, tr.Client)
		if f == nil || f.Reset == nil {
			l.Errorf("no flow of %v", tr.Client)
			continue
		}
		c := f.Verdict.Claim()
		l.want(c.Mechanism == evidence.MechanismInjected && c.Origin.Middlebox() && c.Party == evidence.Network, "a forged RST: %s/%s: %s", c.Origin, c.Mechanism, c.Sentence)
		l.want(f.Resets > 1, "the end's own RST as well, not %d", f.Resets)
		for _, k := range f.Verdict.Findings() {
			if strings.Contains(k.Text, "TTL") {
				text = k.Text
			}
		}
	}
	l.want(text != "", "a finding about the TTL")
	return text
}

const narrowMTU = "1280"

// narrow makes the way to the server narrower than both ends think; silent is the
// router that does not say so.
func (l *caseLab) narrow(silent bool) {
	l.Helper()
	l.tool(l.Router, "ip", "link", "set", "server", "mtu", narrowMTU)
	if silent {
		l.nft(l.Router, "table inet quiet { chain out { type filter hook output priority 0; icmp type destination-unreachable drop; }; }")
	}
}

// bulk sends little, which arrives, and then much. If it does not arrive, the
// sender gives up soon.
func (l *caseLab) bulk(lost bool) {
	l.Helper()
	done := make(chan struct{}, 4)
	addr := l.serve(l.Server, l.server(0), func(c *net.TCPConn) {
		defer c.Close()
		n, _ := io.Copy(io.Discard, c)
		if n > 8<<10 {
			done <- struct{}{}
		}
	})
	for range cap(done) {
		c := l.dial(l.Client, addr)
		l.option(c, unix.TCP_USER_TIMEOUT, 3000)
		l.ask(c)
		_, err := c.Write(make([]byte, 20<<10))
		l.must(err)
		if !lost {
			l.must(c.Close())
			<-done
		}
	}
}

func blackHoleDatum(l *caseLab, inc *evidence.Incident) string {
	c := inc.Verdict.Claim()
	l.want(c.Mechanism == evidence.MechanismMTUBlackhole, "%s: %s: %s", evidence.MechanismMTUBlackhole, c.Mechanism, c.Sentence)
	r := l.routeToServer(inc)
	l.want(r.MTU == 1500 && r.PMTU == 0, "a route of 1500 bytes and nothing learned: %+v", r)
	icmp, again := l.captured(inc, "icmp.type==3 && icmp.code==4"), l.captured(inc, "tcp.analysis.retransmission && tcp.len>=1200")
	l.want(icmp == 0 && again >= 9, "no ICMP (%d), and full segments again and again (%d)", icmp, again)
	return fmt.Sprintf("%d full segments sent again, no ICMP; route MTU %d, no PMTU; RetransSegs +%d", again, r.MTU, inc.CounterDelta("Tcp.RetransSegs"))
}

func pathMTUDatum(l *caseLab, inc *evidence.Incident) string {
	r := l.routeToServer(inc)
	l.want(fmt.Sprint(r.PMTU) == narrowMTU && r.PMTUExpires > 0 && r.MTU == 1500, "a learned MTU of %s: %+v", narrowMTU, r)
	icmp := l.captured(inc, "icmp.type==3 && icmp.code==4")
	l.want(icmp > 0, "ICMP fragmentation needed among the packets")
	c := inc.Verdict.Claim()
	l.want(c.Mechanism != evidence.MechanismMTUBlackhole, "no black hole: %s", c.Sentence)
	return fmt.Sprintf("%d ICMP frag-needed in the capture; route MTU %d, PMTU %d for %v", icmp, r.MTU, r.PMTU, r.PMTUExpires.Round(tick))
}

func (l *caseLab) routeToServer(inc *evidence.Incident) (r evidence.Route) {
	l.Helper()
	for _, s := range []*evidence.Snapshot{inc.At, inc.After} {
		for _, r = range s.Implicated.Routes {
			if r.Peer == l.ServerIP() {
				return r
			}
		}
	}
	l.Errorf("no route to %v", l.ServerIP())
	return evidence.Route{}
}

// deviceDrops passes segments on that the server's end of the wire has no room for:
// the router's device drops them (drivers/net/veth.c veth_xmit, __dev_forward_skb).
// Each write is a segment of its own, for the device takes longer ones to cut them
// itself. The connections are older than the narrow end, which would have told them.
func deviceDrops(l *caseLab) {
	addr := l.serve(l.Server, l.server(0), hang)
	var all []*net.TCPConn
	for range 30 {
		c := l.dial(l.Client, addr)
		l.must(c.SetNoDelay(true))
		l.option(c, unix.TCP_USER_TIMEOUT, 5000)
		all = append(all, c)
	}
	l.tool(l.Server, "ip", "link", "set", "eth0", "mtu", "1000")
	for _, c := range all {
		for range 4 {
			_, err := c.Write(make([]byte, 1400))
			l.must(err)
		}
	}
}

func dropsDatum(l *caseLab, inc *evidence.Incident) string {
	_, f := l.fired("drops")
	l.want(strings.Contains(f.Reason, "server tx_dropped"), "the device and the counter: %s", f.Reason)
	dropped := uint64(0)
	for _, s := range inc.At.Interfaces {
		if s.Name == "server" {
			dropped = s.TxDropped
		}
	}
	again := l.captured(inc, "tcp.analysis.retransmission")
	l.want(dropped >= 50 && again >= 50, "50 dropped packets and retransmissions at least: %d, %d", dropped, again)
	_, softnet := inc.At.Counters.Values["Softnet.dropped"]
	l.want(softnet, "the backlog's drops among the counters")
	return fmt.Sprintf("server tx_dropped %d, %d retransmissions in the capture", dropped, again)
}
