package main

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"tcpcoroner/evidence"
	"tcpcoroner/internal/scenes"
)

// proxyTroubles have a real proxy on the router, where the daemon is.
var proxyTroubles = []trouble{
	{row: "proxy resets the client", name: "nginx resets uploads that stall", trigger: "resets", watched: scenes.FromRouter,
		play: stalledUploads, datum: uploadDatum},
	{row: "proxy resets the client", name: "nginx resets a client that does not read", trigger: "resets", watched: scenes.FromRouter,
		play: deafClients, datum: deafDatum},
	{row: "upstream resets the proxy", name: "the upstream resets nginx", trigger: "resets", watched: scenes.FromRouter,
		play: upstreamResets, datum: upstreamDatum},
	{row: "client aborts", name: "clients of HAProxy go away", trigger: "resets", watched: scenes.FromRouter,
		play: clientsGoAway, datum: awayDatum},
	{row: "stall behind a slow server", name: "HAProxy gives up while the CPUs are stalled", trigger: "resets", watched: scenes.FromRouter,
		prepare: stall, play: slowServer, datum: stallDatum},
}

const proxyPort = 8080

func (l *caseLab) proxyAddr() netip.AddrPort { return netip.AddrPortFrom(l.routerIP(), proxyPort) }

// stalledUploads begin an upload and say no more. The upstream waits for the rest.
func stalledUploads(l *caseLab) {
	upstream := l.serve(l.Server, l.server(0), hang)
	l.notes["upstream"] = upstream.String()
	l.nginx(l.Router, l.proxyAddr(), fmt.Sprintf(`reset_timedout_connection on; client_body_timeout 1s;
		log_format fields escape=json '{"time_iso8601":"$time_iso8601","remote_addr":"$remote_addr","remote_port":"$remote_port",'
			'"status":"$status","upstream_addr":"$upstream_addr"}';
		access_log DIR/fields.log fields;
		server { listen %v; location / { proxy_pass http://%v; proxy_request_buffering off; proxy_http_version 1.1; } }`, l.proxyAddr(), upstream))
	var all sync.WaitGroup
	for range 5 {
		c := l.dial(l.Client, l.proxyAddr())
		_, err := io.WriteString(c, "POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 1000\r\n\r\nbeginning")
		l.must(err)
		all.Go(func() {
			_, err := io.Copy(io.Discard, c)
			l.want(err != nil, "a reset connection")
		})
	}
	all.Wait()
}

func uploadDatum(l *caseLab, inc *evidence.Incident) string {
	n, known := 0, false
	for i := range inc.Flows {
		f := &inc.Flows[i]
		if f.Reset == nil {
			continue
		}
		l.want(f.Server == l.proxyAddr() && f.Reset.From == l.proxyAddr(), "RSTs on the client's side only: %v from %v", f, f.Reset.From)
		l.want(f.Verdict.Claim().Origin.Local(), "this host: %s", f.Verdict)
		known = l.owned(f, "nginx") || known
		n++
	}
	l.want(n >= 3 && (known || !l.full(inc)), "3 flows of nginx, not %d", n)
	line := lineOf(inc, func(k *evidence.LogLine) bool {
		return k.Source == evidence.LogNginxAccess && k.Reason == evidence.ReasonClientTimeout && flowOf(inc, k.Client) != nil && k.Upstream.String() == l.notes["upstream"]
	})
	if line == nil {
		l.Errorf("no line of nginx that tells of the timeout and names the upstream")
		return ""
	}
	up := l.captured(inc, "tcp.flags.reset==1 && ip.addr=="+l.ServerIP().String())
	l.want(up == 0, "no RST towards the upstream, not %d", up)
	return fmt.Sprintf("%d RST by nginx to the client, none to %v; log: %d, %s", n, line.Upstream, line.Status, line.Reason)
}

// deafClients ask for much and read nothing: nginx gives up while the kernel asks
// again and again whether their window has opened.
func deafClients(l *caseLab) {
	const size = 16 << 20
	upstream := l.serve(l.Server, l.server(0), func(c *net.TCPConn) {
		defer c.Close()
		if head(c) == nil {
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n", size)
			_, _ = c.Write(make([]byte, size))
		}
	})
	l.notes["upstream"] = upstream.String()
	l.nginx(l.Router, l.proxyAddr(), fmt.Sprintf(`reset_timedout_connection on; send_timeout 1s;
		server { listen %v; location / { proxy_pass http://%v; } }`, l.proxyAddr(), upstream))
	for range 5 {
		l.ask(l.dial(l.Client, l.proxyAddr()))
	}
}

func deafDatum(l *caseLab, inc *evidence.Incident) string {
	n := 0
	for i := range inc.Flows {
		if f := &inc.Flows[i]; f.Reset != nil && f.Reset.From == l.proxyAddr() {
			l.want(f.Owner != nil && f.Owner.Comm == "nginx" && f.Verdict.Claim().Origin.Local(), "nginx: %+v, %s", f.Owner, f.Verdict)
			n++
		}
	}
	l.want(n >= 3, "3 flows that nginx reset, not %d", n)
	line := lineOf(inc, func(k *evidence.LogLine) bool {
		return k.Source == evidence.LogNginxError && k.Reason == evidence.ReasonClientTimeout && k.Upstream.String() == l.notes["upstream"]
	})
	if line == nil {
		l.Errorf("no line of nginx that tells of the timeout and names the upstream")
		return ""
	}
	return fmt.Sprintf("%d RST by nginx to clients with a closed window; log: %s", n, line.Reason)
}

// upstreamResets has the server reset the proxy's requests.
func upstreamResets(l *caseLab) {
	upstream := l.serve(l.Server, l.server(0), func(c *net.TCPConn) {
		_ = head(c)
		_ = c.SetLinger(0)
		c.Close()
	})
	l.notes["upstream"] = upstream.String()
	l.nginx(l.Router, l.proxyAddr(), fmt.Sprintf("server { listen %v; location / { proxy_pass http://%v; } }", l.proxyAddr(), upstream))
	for range 5 {
		c := l.dial(l.Client, l.proxyAddr())
		l.ask(c)
		status, err := answer(c)
		l.want(status == 502 && err == nil, "502, not %d, %v", status, err)
	}
}

func upstreamDatum(l *caseLab, inc *evidence.Incident) string {
	c := inc.Verdict.Claim()
	l.want(c.Party == evidence.Server && !c.Origin.Local(), "the server to be told guilty: %s %s: %s", c.Party, c.Origin, c.Sentence)
	known := false
	for i := range inc.Flows {
		f := &inc.Flows[i]
		if f.Reset == nil {
			continue
		}
		l.want(f.Reset.From.String() == l.notes["upstream"] && f.Reset.Direction == evidence.Received, "RST received from %s: %+v", l.notes["upstream"], f.Reset)
		known = l.owned(f, "nginx") || known
	}
	l.want(known || !l.full(inc), "nginx as the receiver")
	line := lineOf(inc, func(k *evidence.LogLine) bool {
		return k.Reason == evidence.ReasonUpstreamReset && k.Upstream.String() == l.notes["upstream"]
	})
	if line == nil {
		l.Errorf("no line of nginx that tells of the upstream's reset")
		return ""
	}
	return fmt.Sprintf("RST received from %v by nginx, 502 to the client; log: %s", line.Upstream, line.Reason)
}

// clientsGoAway reset while they wait for an answer.
func clientsGoAway(l *caseLab) {
	asked := make(chan struct{}, 8)
	upstream := l.serve(l.Server, l.server(0), func(c *net.TCPConn) {
		if head(c) == nil {
			asked <- struct{}{}
		}
		hang(c)
	})
	l.haproxy(l.Router, l.proxyAddr(), fmt.Sprintf("listen web\n\tmode http\n\toption httplog\n\toption abortonclose\n\tbind %v\n\tserver s %v\n", l.proxyAddr(), upstream))
	for range 4 {
		c := l.dial(l.Client, l.proxyAddr())
		l.ask(c)
		<-asked
		l.reset(c)
	}
}

func awayDatum(l *caseLab, inc *evidence.Incident) string {
	c := inc.Verdict.Claim()
	l.want(c.Party == evidence.Client, "the client to be told guilty: %s: %s", c.Party, c.Sentence)
	for i := range inc.Flows {
		f := &inc.Flows[i]
		if f.Reset == nil || f.Server != l.proxyAddr() || f.Reset.From != f.Client {
			continue
		}
		line := lineOf(inc, func(k *evidence.LogLine) bool { return k.Client == f.Client && strings.HasPrefix(k.Flags, "C") })
		if line != nil {
			return fmt.Sprintf("RST from %v; HAProxy %s of the same port", f.Client, line.Flags)
		}
	}
	l.Errorf("no RST from a client that HAProxy tells of")
	return ""
}

// stall has more run than there are processors, in a class that takes only what is
// left over (sched(7), SCHED_IDLE).
func stall(l *caseLab) {
	for range 2 + numCPU() {
		cmd := exec.Command("sh", "-c", "while :; do :; done")
		l.must(cmd.Start())
		l.Cleanup(func() { end(cmd) })
		l.must(unix.SchedSetAttr(cmd.Process.Pid, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_IDLE}, 0))
	}
}

// slowServer does not answer before HAProxy has had enough.
func slowServer(l *caseLab) {
	upstream := l.serve(l.Server, l.server(0), hang)
	l.haproxy(l.Router, l.proxyAddr(), fmt.Sprintf("listen web\n\tmode http\n\toption httplog\n\ttimeout server 3s\n\tbind %v\n\tserver s %v\n", l.proxyAddr(), upstream))
	var all sync.WaitGroup
	for range 5 {
		c := l.dial(l.Client, l.proxyAddr())
		l.ask(c)
		all.Go(func() {
			status, err := answer(c)
			l.want(status == 504 && err == nil, "504, not %d, %v", status, err)
		})
	}
	all.Wait()
}

func stallDatum(l *caseLab, inc *evidence.Incident) string {
	load, later := inc.At.Implicated.Load, inc.After.Implicated.Load
	cpu := load.Pressure["cpu"].Some
	l.want(cpu.Avg10 >= 10 && later.Pressure["cpu"].Some.Total > cpu.Total, "stalls before the timeout, and since: %+v %+v", cpu, later.Pressure["cpu"])
	l.want(later.IOWait >= load.IOWait && len(load.Pressure) == 3, "the wait for disks, and the pressure of io and memory: %+v", load)
	line := lineOf(inc, func(k *evidence.LogLine) bool {
		return strings.HasPrefix(k.Flags, "sH") && k.Reason == evidence.ReasonServerTimeout
	})
	l.want(line != nil, "HAProxy's line sH--")
	c := inc.Verdict.Claim()
	l.want(c.Cause == evidence.CauseTimeout, "timeout, not %s: %s", c.Cause, c.Sentence)
	told := ""
	for _, f := range inc.Verdict.Findings() {
		if strings.HasSuffix(f.Source, "psi.rst") {
			told = f.Text
		}
	}
	l.want(told != "" || cpu.Avg10 < 20, "a finding that tells of the stall: %+v", inc.Verdict.Findings())
	return fmt.Sprintf("sH after 3 s; %s; PSI some +%v since", told, (later.Pressure["cpu"].Some.Total - cpu.Total).Round(tick/1000))
}

// numCPU counts the processors of this host.
func numCPU() int {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return 1
	}
	return set.Count()
}
