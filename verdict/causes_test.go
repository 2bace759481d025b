package verdict

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"tcpcoroner/evidence"
)

var roles = []evidence.Role{
	{Prefix: netip.MustParsePrefix("10.0.0.0/24"), Party: evidence.Client},
	{Prefix: netip.MustParsePrefix("10.0.0.1/32"), Party: evidence.Proxy},
	{Prefix: netip.MustParsePrefix("10.9.0.0/24"), Party: evidence.Server},
}

// backend and pooled are the ends of the proxy's own connection.
var (
	backend = netip.MustParseAddrPort("10.9.0.5:9000")
	pooled  = netip.MustParseAddrPort("10.0.0.1:50000")
)

// upstream is a request of the proxy to its backend, seen at the proxy, from ms on.
func upstream(ms float64, more ...pkt) []pkt {
	in, out := evidence.Received, evidence.Sent
	return append([]pkt{
		{ms: ms, src: pooled, dst: backend, flags: evidence.SYN, seq: 100, dir: out, id: 1},
		{ms: ms + .5, src: backend, dst: pooled, flags: evidence.SYN | evidence.ACK, seq: 500, ack: 101, dir: in},
		{ms: ms + .6, src: pooled, dst: backend, flags: evidence.ACK, seq: 101, ack: 501, dir: out, id: 2},
		{ms: ms + .7, src: pooled, dst: backend, flags: evidence.ACK | evidence.PSH, seq: 101, ack: 501, payload: 50, dir: out, id: 3},
		{ms: ms + 1.2, src: backend, dst: pooled, flags: evidence.ACK, seq: 501, ack: 151, dir: in, id: 7},
	}, more...)
}

// TestLegs: the leg that broke first is the cause of the other's end.
func TestLegs(t *testing.T) {
	in, out := evidence.Received, evidence.Sent
	clientAborts := pkt{ms: 300, src: client, dst: server, flags: rstAck, seq: 151, ack: 501, dir: in, id: 4}
	givesUp := func(ms float64) []pkt {
		return []pkt{{ms: ms, src: pooled, dst: backend, flags: evidence.FIN | evidence.ACK, seq: 151, ack: 501, dir: out, id: 4},
			{ms: 900, src: backend, dst: pooled, flags: evidence.ACK | evidence.PSH, seq: 501, ack: 152, payload: 90, dir: in, id: 8},
			{ms: 900.1, src: pooled, dst: backend, flags: evidence.RST, seq: 152, dir: out}}
	}
	serverAborts := pkt{ms: 60, src: backend, dst: pooled, flags: rstAck, seq: 501, ack: 151, dir: in, id: 8}
	passedOn := pkt{ms: 60.7, src: server, dst: client, flags: rstAck, seq: 501, ack: 151, dir: out, id: 8}
	tests := []struct {
		name    string
		packets []pkt
		// of the flow that ended last
		party    evidence.Party
		cause    evidence.Cause
		related  bool
		decision string
	}{
		{"the client aborts, the proxy gives the backend up, the answer comes late",
			append(served(true, clientAborts), upstream(4, givesUp(300.2)...)...), evidence.Client, evidence.CauseAppAbort, true, ""},
		{"the backend aborts, the proxy passes it on",
			append(served(true, passedOn), upstream(4, serverAborts)...), evidence.Server, evidence.CauseAppAbort, true, ""},
		{"the proxy gives the backend up a second after the client went: another reason",
			append(served(true, clientAborts), upstream(4, givesUp(800)...)...), evidence.Proxy, evidence.CauseAppAbort, false, "proxy"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			j := Judge(&evidence.Incident{Window: window(tt.packets...), Roles: roles})
			if len(j.Flows) != 2 {
				t.Fatalf("%d flows", len(j.Flows))
			}
			f := j.Flows[1]
			c := f.Verdict.Claim()
			if c.Party != tt.party || c.Cause != tt.cause || (f.Related != "") != tt.related {
				t.Errorf("party %s, cause %s, related %q, want %s, %s: %s", c.Party, c.Cause, f.Related, tt.party, tt.cause, c.Sentence)
			}
			if tt.related && f.Related != "f1" {
				t.Errorf("related to %q", f.Related)
			}
			if c := j.Verdict.Claim(); tt.related && c.Party != tt.party {
				t.Errorf("the incident is the %s's: %s", c.Party, c.Sentence)
			}
		})
	}
}

// TestStalledUpload: a proxy that gives up a client which fell silent in the middle of
// its request gives up the upstream, too, which waits for the rest.
func TestStalledUpload(t *testing.T) {
	out := evidence.Sent
	gone := pkt{ms: 1004.8, src: pooled, dst: backend, flags: evidence.FIN | evidence.ACK, seq: 151, ack: 501, dir: out, id: 4}
	upload := func(ms float64) []pkt {
		return append(served(true, pkt{ms: ms, src: server, dst: client, flags: rstAck, seq: 501, ack: 151, dir: out, id: 8}), upstream(4, gone)...)
	}
	answered := append(upload(1005), pkt{ms: 1004.9, src: server, dst: client, flags: evidence.ACK | evidence.PSH, seq: 501, ack: 151, payload: 90, dir: out, id: 8})
	line := evidence.LogLine{Time: atMS(1005), Source: evidence.LogNginxError, Reason: evidence.ReasonClientTimeout, Phase: evidence.PhaseRequest, Client: client, Text: "client timed out"}
	tests := []struct {
		name    string
		packets []pkt
		logs    []evidence.LogLine
		related bool
		sure    evidence.Confidence
	}{
		{"both at once", upload(1005), nil, true, evidence.Possible},
		{"both at once, and the log says why", upload(1005), []evidence.LogLine{line}, true, evidence.Likely},
		{"the client is reset long after", upload(3000), nil, false, ""},
		{"the client was told", answered, nil, false, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			j := Judge(&evidence.Incident{Window: window(tt.packets...), Roles: roles, Logs: tt.logs})
			for _, f := range j.Flows {
				c := f.Verdict.Claim()
				if f.Server != backend {
					continue
				}
				if (f.Related != "") != tt.related || tt.related && (c.Party != evidence.Proxy || c.CauseConfidence != tt.sure || strings.Contains(c.Sentence, "did not answer")) {
					t.Errorf("related %q, party %s, cause %s %s: %s", f.Related, c.Party, c.Cause, c.CauseConfidence, c.Sentence)
				}
			}
			if c := j.Verdict.Claim(); len(j.Flows) != 2 || tt.related && (c.Party != evidence.Proxy || strings.Contains(c.Sentence, "did not answer")) {
				t.Errorf("%d flows, party %s: %s", len(j.Flows), c.Party, c.Sentence)
			}
		})
	}
}

// TestLegsAcrossNamespaces: the proxy's two connections belong together also if the
// backend's own namespace tells the end of one of them.
func TestLegsAcrossNamespaces(t *testing.T) {
	serverAborts := pkt{ms: 60, src: backend, dst: pooled, flags: rstAck, seq: 501, ack: 151, dir: evidence.Received, id: 8}
	passedOn := pkt{ms: 60.7, src: server, dst: client, flags: rstAck, seq: 501, ack: 151, dir: evidence.Sent, id: 8}
	all := append(served(true, passedOn), upstream(4, serverAborts)...)
	for i := range all {
		all[i].netns = 1
	}
	for _, p := range upstream(4, serverAborts) {
		p.netns, p.ms = 2, p.ms-0.05
		if p.dir == evidence.Received {
			p.dir = evidence.Sent
		} else {
			p.dir, p.ms = evidence.Received, p.ms+0.1
		}
		all = append(all, p)
	}
	j := Judge(&evidence.Incident{Window: window(all...), Roles: roles})
	if len(j.Flows) != 2 {
		t.Fatalf("%d flows", len(j.Flows))
	}
	up, down := j.Flows[0], j.Flows[1]
	if up.Namespace != 2 || up.Verdict.Claim().Origin != evidence.OriginLocalProcess {
		t.Errorf("the backend's end is told from namespace %d: %s", up.Namespace, up.Verdict)
	}
	if c := down.Verdict.Claim(); c.Party != evidence.Server || down.Related != up.ID {
		t.Errorf("party %s, related %q: %s", c.Party, down.Related, c.Sentence)
	}
}

// TestLegsOfWorkers: workers that share a listener are one proxy; two processes that
// are known to hold the flows are two.
func TestLegsOfWorkers(t *testing.T) {
	worker, other := &evidence.Owner{PID: 8, Comm: "app"}, &evidence.Owner{PID: 9, Comm: "app"}
	packets := append(served(true, pkt{ms: 60.7, src: server, dst: client, flags: rstAck, seq: 501, ack: 151, dir: evidence.Sent, id: 8}),
		upstream(4, pkt{ms: 60, src: backend, dst: pooled, flags: rstAck, seq: 501, ack: 151, dir: evidence.Received, id: 8})...)
	passed := sentEvent(func(e *evidence.KernelEvent) { e.Time, e.Owner, e.Actor, e.Linger = atMS(60.7), worker, worker, true })
	took := evidence.KernelEvent{Kind: evidence.ResetReceived, Time: atMS(60), Local: pooled, Remote: backend, RcvNxt: 501, HasNumbers: true, State: "established"}
	listener := &evidence.Snapshot{Sockets: []evidence.Socket{{State: "listen", Local: server, Owner: app}}}
	for _, tt := range []struct {
		name  string
		owner *evidence.Owner
		event bool
		legs  bool
	}{{"the same worker", worker, true, true}, {"another process", other, true, false}, {"only the listener is known", worker, false, true}} {
		took.Owner = tt.owner
		events := []evidence.KernelEvent{took}
		if tt.event {
			events = append(events, passed)
		}
		inc := told(packets, events...)
		inc.KernelLevel.Name, inc.Roles, inc.At = evidence.LevelTuples, roles, listener
		j := Judge(inc)
		if related := j.Flows[1].Related != ""; related != tt.legs {
			t.Errorf("%s: related %v, want %v: %s", tt.name, related, tt.legs, j.Flows[1].Verdict)
		}
	}
}

// waits is a flow of the proxy that ends n after its request, by FIN or RST.
func waits(port uint16, ms float64, after time.Duration) []pkt {
	from := netip.AddrPortFrom(pooled.Addr(), port)
	end := ms + .7 + float64(after.Microseconds())/1000
	all := upstream(ms, pkt{ms: end, src: pooled, dst: backend, flags: rstAck, seq: 151, ack: 501, dir: evidence.Sent, id: 4})
	for i := range all {
		if all[i].src == pooled {
			all[i].src = from
		} else {
			all[i].dst = from
		}
	}
	return all
}

func TestTimers(t *testing.T) {
	many := func(all ...time.Duration) (p []pkt) {
		for i, d := range all {
			p = append(p, waits(uint16(50000+i), float64(137*i), d)...)
		}
		return p
	}
	const ms = time.Millisecond
	tests := []struct {
		name       string
		packets    []pkt
		cause      evidence.Cause
		confidence evidence.Confidence
	}{
		{"three times a second", many(1003*ms, 1001*ms, 1010*ms), evidence.CauseTimeout, evidence.Likely},
		{"once a second", many(1003 * ms), evidence.CauseTimeout, evidence.Possible},
		{"a minute, known by its knob", many(60020*ms, 60001*ms, 60005*ms), evidence.CauseTimeout, evidence.Likely},
		{"never the same", many(1300*ms, 790*ms, 1790*ms), evidence.CauseAppAbort, evidence.Likely},
		{"the same, but quick", many(300*ms, 301*ms, 302*ms), evidence.CauseAppAbort, evidence.Likely},
		{"just before the second", many(980 * ms), evidence.CauseAppAbort, evidence.Likely},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, f := range Judge(&evidence.Incident{Window: window(tt.packets...), Roles: roles}).Flows {
				c := f.Verdict.Claim()
				if c.Cause != tt.cause || c.CauseConfidence != tt.confidence || c.Party != evidence.Proxy {
					t.Errorf("%s %s, party %s: %s", c.Cause, c.CauseConfidence, c.Party, c.Sentence)
				}
			}
		})
	}
}

// TestShapes: causes that the course of a flow tells, at the server's host.
func TestShapes(t *testing.T) {
	in, out := evidence.Received, evidence.Sent
	psh := evidence.ACK | evidence.PSH
	answer := []pkt{
		{ms: 5, src: server, dst: client, flags: psh, seq: 501, ack: 151, payload: 90, dir: out, id: 8},
		{ms: 6, src: client, dst: server, flags: evidence.ACK, seq: 151, ack: 591, dir: in, id: 4}}
	with := func(more ...pkt) []pkt { return append(served(true, answer...), more...) }
	again := pkt{ms: 1040, src: client, dst: server, flags: psh, seq: 151, ack: 591, payload: 40, dir: in, id: 5}
	tests := []struct {
		name    string
		packets []pkt
		cause   evidence.Cause
		party   evidence.Party
		benign  bool
	}{
		{"the client has its answer", with(pkt{ms: 50, src: client, dst: server, flags: rstAck, seq: 151, ack: 591, dir: in, id: 5}),
			evidence.CauseNormalClose, evidence.Client, true},
		{"the client has part of its answer", with(pkt{ms: 50, src: client, dst: server, flags: rstAck, seq: 151, ack: 591, dir: in, id: 5},
			pkt{ms: 51, src: server, dst: client, flags: psh, seq: 591, ack: 151, payload: 90, dir: out}), evidence.CauseAppAbort, evidence.Client, false},
		{"the server resets after its answer", with(pkt{ms: 50, src: server, dst: client, flags: rstAck, seq: 591, ack: 151, dir: out, id: 9}),
			evidence.CauseAppAbort, evidence.Server, false},
		{"a request crosses the server's idle close", with(again, pkt{ms: 1045, src: server, dst: client, flags: rstAck, seq: 591, ack: 191, dir: out, id: 9}),
			evidence.CauseStaleReuse, evidence.Server, false},
		{"the server thinks about the second request", with(again, pkt{ms: 1240, src: server, dst: client, flags: rstAck, seq: 591, ack: 191, dir: out, id: 9}),
			evidence.CauseAppAbort, evidence.Server, false},
		{"a FIN that the next request did not see", with(pkt{ms: 1039, src: server, dst: client, flags: evidence.FIN | evidence.ACK, seq: 591, ack: 151, dir: out, id: 9},
			again, pkt{ms: 1040.1, src: server, dst: client, flags: evidence.RST, seq: 591, dir: out}), evidence.CauseStaleReuse, evidence.Server, false},
		{"connected and gone", handshake(pkt{ms: 3, src: client, dst: server, flags: rstAck, seq: 101, ack: 501, dir: in, id: 3}),
			evidence.CauseHealthCheck, evidence.Client, true},
		{"turned away", handshake(pkt{ms: 3, src: server, dst: client, flags: rstAck, seq: 501, ack: 101, dir: out, id: 3}),
			evidence.CausePolicy, evidence.Server, false},
		{"answered in the middle of a body", served(true,
			pkt{ms: 5, src: client, dst: server, flags: psh, seq: 151, ack: 501, payload: 8000, dir: in, id: 4},
			pkt{ms: 5.1, src: server, dst: client, flags: psh, seq: 501, ack: 8151, payload: 300, dir: out, id: 8},
			pkt{ms: 5.2, src: server, dst: client, flags: rstAck, seq: 801, ack: 8151, dir: out, id: 9}), evidence.CausePolicy, evidence.Server, false},
		{"data that nobody acknowledged", served(true,
			pkt{ms: 5, src: server, dst: client, flags: psh, seq: 501, ack: 151, payload: 1400, dir: out, id: 8},
			pkt{ms: 210, src: server, dst: client, flags: psh, seq: 501, ack: 151, payload: 1400, dir: out, id: 9},
			pkt{ms: 620, src: server, dst: client, flags: psh, seq: 501, ack: 151, payload: 1400, dir: out, id: 10},
			pkt{ms: 1440, src: server, dst: client, flags: psh, seq: 501, ack: 151, payload: 1400, dir: out, id: 11},
			pkt{ms: 2005, src: server, dst: client, flags: rstAck, seq: 1901, ack: 151, dir: out, id: 12}), evidence.CausePathDrop, evidence.Network, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := one(t, &evidence.Incident{Window: window(tt.packets...)}).Verdict.Claim()
			if c.Cause != tt.cause || c.Party != tt.party || c.Benign != tt.benign {
				t.Errorf("%s, party %s, benign %v, want %s, %s: %s", c.Cause, c.Party, c.Benign, tt.cause, tt.party, c.Sentence)
			}
		})
	}
}

// TestTurnedAway: what is said of a request depends on whether it had arrived.
func TestTurnedAway(t *testing.T) {
	psh := evidence.ACK | evidence.PSH
	asks := pkt{ms: 2.1, src: client, dst: server, flags: psh, seq: 101, ack: 501, payload: 50, dir: evidence.Received, id: 3}
	resets := func(ack uint32) pkt {
		return pkt{ms: 2.9, src: server, dst: client, flags: rstAck, seq: 501, ack: ack, dir: evidence.Sent, id: 8}
	}
	unread := sentEvent(func(e *evidence.KernelEvent) { e.Time, e.Unread, e.Reason = atMS(2.9), 50, "TCP_ABORT_ON_CLOSE" })
	tests := []struct {
		name string
		inc  *evidence.Incident
		want string
	}{
		{"no request", &evidence.Incident{Window: window(handshake(resets(101))...)}, "before it read a request"},
		{"the request crossed the RST", &evidence.Incident{Window: window(handshake(asks, resets(101))...)}, "before it read a request"},
		{"the request was acknowledged", &evidence.Incident{Window: window(handshake(asks, resets(151))...)}, "0.8 ms after the client's first data"},
		{"the request was acknowledged and not read", told(handshake(asks, resets(151)), unread), "before it read a request"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := one(t, tt.inc).Verdict.Claim()
			if c.Cause != evidence.CausePolicy || !strings.Contains(c.Sentence, tt.want) {
				t.Errorf("%s: %s, want %q", c.Cause, c.Sentence, tt.want)
			}
		})
	}
}

// TestFirstFlight: on a port of TLS, and only there.
func TestFirstFlight(t *testing.T) {
	hello := func(port uint16) []pkt {
		all := served(true, pkt{ms: 4.2, src: server, dst: client, flags: rstAck, seq: 501, ack: 151, dir: evidence.Sent, id: 8})
		for i := range all {
			if all[i].src == server {
				all[i].src = netip.AddrPortFrom(server.Addr(), port)
			} else {
				all[i].dst = netip.AddrPortFrom(server.Addr(), port)
			}
		}
		return all
	}
	for port, want := range map[uint16]evidence.Cause{443: evidence.CausePolicy, 8080: evidence.CauseAppAbort} {
		if c := one(t, &evidence.Incident{Window: window(hello(port)...)}).Verdict.Claim(); c.Cause != want {
			t.Errorf("port %d: %s, want %s: %s", port, c.Cause, want, c.Sentence)
		}
	}
}

// TestScan: one source, many closed ports; a few are no scan.
func TestScan(t *testing.T) {
	for ports, benign := range map[int]bool{scanPorts: true, scanPorts - 1: false} {
		var all []pkt
		for i := range ports {
			to := netip.AddrPortFrom(server.Addr(), uint16(2000+i))
			all = append(all, pkt{ms: float64(i), src: client, dst: to, flags: evidence.SYN, seq: 100, dir: evidence.Received},
				pkt{ms: float64(i) + .1, src: to, dst: client, flags: rstAck, ack: 101, dir: evidence.Sent})
		}
		for _, f := range Judge(&evidence.Incident{Window: window(all...)}).Flows {
			if c := f.Verdict.Claim(); c.Benign != benign || (c.Cause == evidence.CauseScan) != benign {
				t.Fatalf("%d ports: benign %v, %s", ports, c.Benign, c.Cause)
			}
		}
	}
}

// TestCrash: all connections at once, and then nothing listens.
func TestCrash(t *testing.T) {
	crash := func(refused bool) *evidence.Incident {
		var all []pkt
		for i := range 3 {
			for _, p := range served(true, pkt{ms: 900 - float64(10*i), src: server, dst: client, flags: rstAck, seq: 501, ack: 151, dir: evidence.Sent, id: 8}) {
				other := netip.AddrPortFrom(client.Addr(), uint16(43000+i))
				if p.ms += float64(10 * i); p.src == client {
					p.src = other
				} else {
					p.dst = other
				}
				all = append(all, p)
			}
		}
		if refused {
			all = append(all, pkt{ms: 990, src: client, dst: server, flags: evidence.SYN, seq: 1, dir: evidence.Received},
				pkt{ms: 991, src: server, dst: client, flags: rstAck, ack: 2, dir: evidence.Sent})
		}
		return &evidence.Incident{Window: window(all...)}
	}
	for _, refused := range []bool{true, false} {
		for _, f := range Judge(crash(refused)).Flows {
			if c := f.Verdict.Claim(); (c.Cause == evidence.CauseProcessDown) != refused {
				t.Errorf("refused %v: %s: %s", refused, c.Cause, c.Sentence)
			}
		}
	}
}

// TestLogs: a line that fits names the reason; one of another flow, time or side does not.
func TestLogs(t *testing.T) {
	line := evidence.LogLine{Time: atMS(9), Source: evidence.LogNginxError, Reason: evidence.ReasonBodyTooLarge, Client: client, Text: "client intended to send too large body"}
	tests := []struct {
		name   string
		change func(*evidence.LogLine)
		want   evidence.Cause
	}{
		{"it fits", func(*evidence.LogLine) {}, evidence.CausePolicy},
		{"another client", func(l *evidence.LogLine) { l.Client = pooled }, evidence.CauseAppAbort},
		{"another time", func(l *evidence.LogLine) { l.Time = atMS(900) }, evidence.CauseAppAbort},
		{"the client closed, it says, but the server did", func(l *evidence.LogLine) { l.Reason = evidence.ReasonClientClosed }, evidence.CauseAppAbort},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := line
			tt.change(&l)
			inc := told(served(true, activeRST), sentEvent(nil))
			inc.Logs, inc.Roles = []evidence.LogLine{l}, roles
			f := one(t, inc)
			c := f.Verdict.Claim()
			if c.Cause != tt.want {
				t.Errorf("%s: %s", c.Cause, c.Sentence)
			}
			logged := strings.Contains(c.Sentence, "nginx")
			if logged != (tt.want == evidence.CausePolicy) {
				t.Errorf("sentence %q", c.Sentence)
			}
		})
	}
}

// TestAdviceShowsValues: a knob is shown with what it is on this host.
func TestAdviceShowsValues(t *testing.T) {
	e := sentEvent(func(e *evidence.KernelEvent) {
		e.Reason, e.State, e.Trigger, e.AcceptQueue, e.Backlog = "INVALID_SYN", "listen", strayACK, 5, 4
	})
	inc := told(handshake(request, passiveRST), e)
	inc.At = &evidence.Snapshot{Implicated: &evidence.Implicated{Sysctls: []evidence.Sysctl{{Name: "net.core.somaxconn", Value: "4096"}}}}
	for _, a := range one(t, inc).Verdict.Claim().Advice {
		if a.Knob == "net.core.somaxconn" && a.Value == "4096" {
			return
		}
	}
	t.Error("net.core.somaxconn is not shown with its value")
}

// TestAnswerOnItsWay: who aborts its connection after FIN throws away what it had sent
// itself and nobody had confirmed.
func TestAnswerOnItsWay(t *testing.T) {
	in, out := evidence.Received, evidence.Sent
	ended := func(size int, more ...pkt) []pkt {
		next := 501 + uint32(size)
		return served(true, append(more,
			pkt{ms: 5, src: server, dst: client, flags: evidence.ACK | evidence.PSH, seq: 501, ack: 151, payload: size, dir: out, id: 8},
			pkt{ms: 6, src: server, dst: client, flags: evidence.FIN | evidence.ACK, seq: next, ack: 151, dir: out, id: 9},
			pkt{ms: 9, src: server, dst: client, flags: rstAck, seq: next + 1, ack: 151, dir: out, id: 10})...)
	}
	for name, tt := range map[string]struct {
		packets []pkt
		benign  bool
	}{
		"nobody has confirmed it": {ended(900), false},
		"confirmed":               {ended(900, pkt{ms: 7, src: client, dst: server, flags: evidence.ACK, seq: 151, ack: 1402, dir: in, id: 4}), true},
		"all but the FIN":         {ended(900, pkt{ms: 7, src: client, dst: server, flags: evidence.ACK, seq: 151, ack: 1401, dir: in, id: 4}), true},
		"the farewell of TLS":     {ended(24), true},
	} {
		t.Run(name, func(t *testing.T) {
			c := one(t, &evidence.Incident{Window: window(tt.packets...)}).Verdict.Claim()
			if c.Benign != tt.benign || (c.Cause == evidence.CauseNormalClose) != tt.benign {
				t.Errorf("benign %v, %s, cause %s: %s", c.Benign, c.Mechanism, c.Cause, c.Sentence)
			}
		})
	}
}

// TestOutOfMemoryCounted: without the kernel's reason the counter tells it, if it
// accounts for all that left.
func TestOutOfMemoryCounted(t *testing.T) {
	abort := pkt{ms: 9, src: server, dst: client, flags: rstAck, seq: 501, ack: 151, dir: evidence.Sent, id: 8}
	for name, tt := range map[string]struct {
		grown     map[string]uint64
		origin    evidence.Origin
		mechanism evidence.Mechanism
		cause     evidence.Cause
	}{
		"all":    {map[string]uint64{"Tcp.OutRsts": 1, "TcpExt.TCPAbortOnMemory": 1}, evidence.OriginLocalKernel, evidence.MechanismMemory, evidence.CauseMemory},
		"others": {map[string]uint64{"Tcp.OutRsts": 2, "TcpExt.TCPAbortOnMemory": 1, "TcpExt.TCPAbortOnData": 1}, evidence.OriginLocalHost, evidence.MechanismActiveAbort, evidence.CauseAppAbort},
	} {
		t.Run(name, func(t *testing.T) {
			all := served(true, abort)
			if name == "others" {
				other := abort
				other.src, other.dst = netip.MustParseAddrPort("10.0.0.1:9"), netip.MustParseAddrPort("10.0.0.9:9")
				all = append(all, other)
			}
			inc := &evidence.Incident{Window: window(all...)}
			counters(inc, tt.grown)
			for _, f := range Judge(inc).Flows {
				if c := f.Verdict.Claim(); f.Server == server && (c.Origin != tt.origin || c.Mechanism != tt.mechanism || c.Cause != tt.cause || c.Confidence != evidence.Likely) {
					t.Errorf("%s %s, %s, cause %s: %s", c.Origin, c.Confidence, c.Mechanism, c.Cause, c.Sentence)
				}
			}
		})
	}
}
