package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"tcpcoroner/evidence"
	"tcpcoroner/internal/netlab"
	"tcpcoroner/internal/scenes"
)

// limitTroubles run into the kernel's limits.
var limitTroubles = []trouble{
	{row: "conntrack table full", name: "conntrack table full", trigger: "conntrack", watched: scenes.FromServer,
		config: "triggers: {conntrack: {full_within: 0s}}\n", play: fillTable, datum: tableDatum},
	{row: "ephemeral ports exhausted", name: "TIME_WAIT takes the ports", trigger: "ports", watched: scenes.FromClient,
		config: "triggers: {ports: {usage: 0.97}}\n", prepare: fewPorts, play: usePorts, datum: portsDatum},
	{row: "memory pressure", name: "orphans near their limit", trigger: "memory", watched: scenes.FromClient,
		prepare: fewOrphans, play: orphans, datum: orphansDatum},
}

// fillTable fills the table to the last entry while clients connect.
func fillTable(l *caseLab) {
	addr := l.serve(l.Server, l.server(servicePort), hang)
	// Without a rule that asks for it, nothing is tracked.
	l.nft(l.Server, "table inet track { chain in { type filter hook input priority 0; ct state new counter accept; }; }")
	l.meanwhile(func() {
		for l.Context().Err() == nil {
			l.meanwhile(func() {
				if c, err := l.tryDial(l.Client, addr); err == nil {
					c.Close()
				}
			})
			pause(l.T, tick/20)
		}
	})
	// The last of them find the table full, or evict others.
	if err := netlab.NewTracker(l.T, l.Server.Do).Track(talks(0, conntrackMax(l.T)+1000)...); err != nil {
		l.Fatal(err)
	}
}

func tableDatum(l *caseLab, inc *evidence.Incident) string {
	at, after := inc.At.Conntrack, inc.After.Conntrack
	if at == nil || after == nil {
		l.Errorf("no look at connection tracking: %+v", inc.Missing())
		return ""
	}
	l.want(at.Max == uint64(conntrackMax(l.T)) && max(at.Usage(), after.Usage()) >= 0.95, "a full table: %+v %+v", at, after)
	lost := after.Drop + after.EarlyDrop
	l.want(lost > 0, "drop or early_drop to have grown: %+v", after)
	top := append(at.TopTalkers, after.TopTalkers...)
	l.want(len(top) > 0 && top[0].Source == talker, "%v as top talker: %+v", talker, top)
	c := inc.Verdict.Claim()
	l.want(c.Mechanism == evidence.MechanismConntrackFull, "%s: %s", evidence.MechanismConntrackFull, c.Sentence)
	return fmt.Sprintf("%d of %d; drop %d, early_drop %d, insert_failed %d; %v holds most", after.Count, after.Max, after.Drop, after.EarlyDrop, after.InsertFailed, top[0].Source)
}

// The ports of a small range, and how many of them are used.
const (
	fewPortsRange = "20000 20199"
	usedPorts     = 196
)

func fewPorts(l *caseLab) {
	l.must(l.Client.Sysctl("net.ipv4.ip_local_port_range", fewPortsRange))
	l.must(l.Client.Sysctl("net.ipv4.tcp_tw_reuse", "0"))
}

// usePorts closes connections, which wait in TIME_WAIT on the side that closed first.
func usePorts(l *caseLab) {
	addr := l.serve(l.Server, l.server(servicePort), hang)
	l.must(l.Client.Do(func() error {
		for range usedPorts {
			c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(addr))
			if err != nil {
				return err
			}
			if err := c.Close(); err != nil {
				return err
			}
		}
		return nil
	}))
}

func portsDatum(l *caseLab, inc *evidence.Incident) string {
	p := inc.At.Implicated.Ports
	if p == nil || len(p.Uses) == 0 {
		l.Errorf("no use of ports: %+v", p)
		return ""
	}
	u := p.Uses[0]
	l.want(p.Available() == 200 && u.Used >= usedPorts*9/10 && u.TimeWait > usedPorts*8/10 && u.Source == l.ClientIP() && u.Destination == l.server(servicePort),
		"%d ports to %v in use: %+v", usedPorts, l.server(servicePort), u)
	c := inc.Verdict.Claim()
	l.want(c.Mechanism == evidence.MechanismPortExhaustion, "%s: %s: %s", evidence.MechanismPortExhaustion, c.Mechanism, c.Sentence)
	tw := inc.At.Counters.Values["Sockstat.TCP.tw"]
	return fmt.Sprintf("%d of %d ports to %v, %d in TIME_WAIT; sockstat tw %d", u.Used, p.Available(), u.Destination, u.TimeWait, tw)
}

// orphanLimit is what the daemon is told; the real one is of the whole machine.
const orphanLimit = 20

// fewOrphans starts the daemon where it finds a lower limit: in the host's first
// network namespace, for the kernel shows the limits there alone, and with a file
// mounted over the setting. The kernel's own limit stays, so it aborts nothing.
func fewOrphans(l *caseLab) {
	limit := l.file("tcp_max_orphans", strconv.Itoa(orphanLimit)+"\n")
	p := &process{socket: filepath.Join(l.dir, "control.sock"), data: filepath.Join(l.dir, "data"), log: newWatched()}
	config := l.file("tcpcoroner.yaml", caseConfig)
	const script = `mount --bind "$1" /proc/sys/net/ipv4/tcp_max_orphans && shift && exec "$@"`
	p.Cmd = exec.Command("unshare", "-m", "sh", "-c", script, "sh", limit,
		self(l), "run", "--socket", p.socket, "--data", p.data, "--config", config)
	p.Env = append(os.Environ(), asProgram+"=1")
	p.Stderr = p.log
	l.must(p.Start())
	l.Cleanup(p.kill)
	l.recording(p)
	l.p = p
}

// orphans closes connections with data that nobody takes.
func orphans(l *caseLab) {
	ln := l.listen(l.Server, l.server(servicePort))
	for range orphanLimit {
		c := l.dial(l.Client, addrOf(ln.Addr()))
		l.must(c.SetWriteBuffer(1 << 20))
		for range 3 { // more than the other host has room for
			if _, err := c.Write(make([]byte, 64<<10)); err != nil {
				l.Fatal(err)
			}
		}
		l.must(c.Close())
	}
}

func orphansDatum(l *caseLab, inc *evidence.Incident) string {
	n := inc.At.Counters.Values["Sockstat.TCP.orphan"]
	l.want(n >= orphanLimit/2, "%d orphans: %d", orphanLimit/2, n)
	_, known := inc.At.Counters.Values["TcpExt.TCPAbortOnMemory"]
	l.want(known, "TCPAbortOnMemory among the counters")
	limit := ""
	for _, s := range inc.At.Implicated.Sysctls {
		if s.Name == "net.ipv4.tcp_max_orphans" {
			limit = s.Value
		}
	}
	l.want(limit == strconv.Itoa(orphanLimit), "the limit among the settings: %q", limit)
	l.want(strings.Contains(inc.Firings[0].Reason, "orphaned sockets"), "orphans in the reason: %s", inc.Firings[0].Reason)
	l.Log("that the kernel aborts over the limit is not shown here: the limit is of the whole machine; scene orphan-limit does in a guest")
	return fmt.Sprintf("%d orphans of %s; TCPAbortOnMemory +%d (the kernel's own limit is the machine's)", n, limit, inc.CounterDelta("TcpExt.TCPAbortOnMemory"))
}
