package logs

import (
	"testing"
	"time"

	"tcpcoroner/evidence"
)

// What nginx 1.22 wrote; TestRealNginx provokes these again.
func TestParseNginxError(t *testing.T) {
	line := func(level string, party evidence.LogParty, phase evidence.LogPhase, reason evidence.LogReason, upstream string) evidence.LogLine {
		return evidence.LogLine{
			Time: time.Date(2026, 11, 23, 1, 13, 0, 0, time.UTC), Precision: time.Second, Source: evidence.LogNginxError, Level: level,
			PID: 7, Connection: "1", Client: endpoint("192.0.2.9"), Upstream: endpoint(upstream), Party: party, Phase: phase, Reason: reason,
		}
	}
	const lead, tail = "2026/11/23 02:13:00 ", `, client: 192.0.2.9, server: shop, request: "GET /a HTTP/1.1"`
	const up = `, upstream: "http://192.0.2.2:80/a", host: "shop"`
	const server, client, proxy = evidence.PartyServer, evidence.PartyClient, evidence.PartyProxy
	check(t, []sample{
		{"upstream closed", lead + "[error] 7#7: *1 upstream prematurely closed connection while reading response header from upstream" + tail + up,
			line("error", server, evidence.PhaseResponse, evidence.ReasonUpstreamClosed, "192.0.2.2:80")},
		{"upstream reset", lead + "[error] 7#7: *1 recv() failed (104: Connection reset by peer) while reading response header from upstream" + tail + up,
			line("error", server, evidence.PhaseResponse, evidence.ReasonUpstreamReset, "192.0.2.2:80")},
		{"upstream reset in the body", lead + "[error] 7#7: *1 readv() failed (104: Connection reset by peer) while reading upstream" + tail + up,
			line("error", server, evidence.PhaseData, evidence.ReasonUpstreamReset, "192.0.2.2:80")},
		{"upstream timed out", lead + "[error] 7#7: *1 upstream timed out (110: Connection timed out) while reading response header from upstream" + tail + up,
			line("error", server, evidence.PhaseResponse, evidence.ReasonUpstreamTimeout, "192.0.2.2:80")},
		{"upstream never answered the SYN", lead + "[error] 7#7: *1 upstream timed out (110: Connection timed out) while connecting to upstream" + tail + up,
			line("error", server, evidence.PhaseConnect, evidence.ReasonConnectTimeout, "192.0.2.2:80")},
		{"upstream refused", lead + "[error] 7#7: *1 connect() failed (111: Connection refused) while connecting to upstream" + tail + `, upstream: "http://[2001:db8::2]:80/a"`,
			line("error", server, evidence.PhaseConnect, evidence.ReasonConnectRefused, "[2001:db8::2]:80")},
		{"no local port", lead + "[crit] 7#7: *1 connect() to 192.0.2.2:80 failed (99: Cannot assign requested address) while connecting to upstream" + tail + up,
			line("crit", proxy, evidence.PhaseConnect, evidence.ReasonNoLocalPort, "192.0.2.2:80")},
		{"no live upstreams", lead + "[error] 7#7: *1 no live upstreams while connecting to upstream" + tail + `, upstream: "http://shop/a"`,
			line("error", proxy, evidence.PhaseConnect, evidence.ReasonNoServer, "")},
		{"client closed", lead + "[info] 7#7: *1 epoll_wait() reported that client prematurely closed connection, so upstream connection is closed too while sending request to upstream" + tail + up,
			line("info", client, evidence.PhaseRequest, evidence.ReasonClientClosed, "192.0.2.2:80")},
		{"client reset", lead + "[info] 7#7: *1 recv() failed (104: Connection reset by peer) while waiting for request, client: 192.0.2.9, server: 0.0.0.0:80",
			line("info", client, evidence.PhaseIdle, evidence.ReasonClientReset, "")},
		{"client reset while sending", lead + "[info] 7#7: *1 writev() failed (104: Connection reset by peer) while sending to client" + tail,
			line("info", client, evidence.PhaseData, evidence.ReasonClientReset, "")},
		{"client timed out", lead + "[info] 7#7: *1 client timed out (110: Connection timed out) while reading client request headers" + tail,
			line("info", client, evidence.PhaseRequest, evidence.ReasonClientTimeout, "")},
		{"body too large", lead + "[error] 7#7: *1 client intended to send too large body: 1048577 bytes" + tail,
			line("error", proxy, evidence.PhaseRequest, evidence.ReasonBodyTooLarge, "")},
		{"tls of the client", lead + "[crit] 7#7: *1 SSL_do_handshake() failed (SSL: error:0A00006C:SSL routines::bad key share) while SSL handshaking, client: 192.0.2.9, server: 0.0.0.0:443",
			line("crit", client, evidence.PhaseTLS, evidence.ReasonTLSError, "")},
		{"tls of the upstream", lead + "[error] 7#7: *1 peer closed connection in SSL handshake (104: Connection reset by peer) while SSL handshaking to upstream" + tail + up,
			line("error", server, evidence.PhaseTLS, evidence.ReasonTLSError, "192.0.2.2:80")},
		{"plaintext", lead + "[info] 7#7: *1 client sent plain HTTP request to HTTPS port while reading client request headers" + tail,
			line("info", client, evidence.PhaseTLS, evidence.ReasonPlaintext, "")},
		{"the kernel's side of a stream stays open", lead + `[error] 7#7: *1 recv() failed (104: Connection reset by peer) while proxying connection, client: 192.0.2.9, server: 0.0.0.0:7715, upstream: "192.0.2.2:80", bytes from/to client:5/0, bytes from/to upstream:0/5`,
			line("error", "", evidence.PhaseData, evidence.ReasonReset, "192.0.2.2:80")},
		{"a request that pretends to be an upstream", lead + `[error] 7#7: *1 connect() failed (111: Connection refused) while connecting to upstream, client: 192.0.2.9, server: , request: "GET /", upstream: "http://203.0.113.1:1/" HTTP/1.1", upstream: "http://192.0.2.2:80/"`,
			line("error", server, evidence.PhaseConnect, evidence.ReasonConnectRefused, "")},
		{"by syslog", "Nov 23 02:13:00 web1 nginx: " + lead + "[error] 7#7: *1 no live upstreams while connecting to upstream" + tail,
			line("error", proxy, evidence.PhaseConnect, evidence.ReasonNoServer, "")},
		{"closed when idle, which is no end that came too early", lead + "[info] 7#7: *1 client 192.0.2.9 closed keepalive connection",
			evidence.LogLine{Time: time.Date(2026, 11, 23, 1, 13, 0, 0, time.UTC), Precision: time.Second, Source: evidence.LogNginxError,
				Level: "info", PID: 7, Connection: "1"}},
		{"reset when idle", lead + "[info] 7#7: *1 client 192.0.2.9 closed keepalive connection (104: Connection reset by peer)",
			evidence.LogLine{Time: time.Date(2026, 11, 23, 1, 13, 0, 0, time.UTC), Precision: time.Second, Source: evidence.LogNginxError,
				Level: "info", PID: 7, Connection: "1", Party: client, Phase: evidence.PhaseIdle, Reason: evidence.ReasonClientReset}},
		{"an ordinary line", lead + "[notice] 7#7: *1 a client request body is buffered to a temporary file" + tail,
			line("notice", "", "", "", "")},
	})
}

func TestParseCombined(t *testing.T) {
	at := time.Date(2026, 11, 23, 2, 13, 0, 0, time.UTC)
	line := func(status int, party evidence.LogParty, phase evidence.LogPhase, reason evidence.LogReason) evidence.LogLine {
		return evidence.LogLine{
			Time: at, Precision: time.Second, Source: evidence.LogNginxAccess, Client: endpoint("192.0.2.9"),
			Status: status, Party: party, Phase: phase, Reason: reason,
		}
	}
	const lead, tail = `192.0.2.9 - - [23/Nov/2026:03:13:00 +0100] "GET /a HTTP/1.1" `, ` 150 "-" "curl/8"`
	check(t, []sample{
		{"well", lead + "200" + tail, line(200, "", "", "")},
		{"499", lead + "499" + tail, line(499, evidence.PartyClient, evidence.PhaseResponse, evidence.ReasonClientClosed)},
		{"502", lead + "502" + tail, line(502, evidence.PartyServer, evidence.PhaseResponse, evidence.ReasonBadGateway)},
		{"504", lead + "504" + tail, line(504, evidence.PartyServer, evidence.PhaseResponse, evidence.ReasonUpstreamTimeout)},
		{"413", lead + "413" + tail, line(413, evidence.PartyProxy, evidence.PhaseRequest, evidence.ReasonBodyTooLarge)},
		{"400", lead + "400" + tail, line(400, evidence.PartyClient, evidence.PhaseRequest, evidence.ReasonProtocolError)},
		{"408 without a request", `192.0.2.9 - joe [23/Nov/2026:03:13:00 +0100] "" 408 0 "-" "-"`, line(408, evidence.PartyClient, evidence.PhaseRequest, evidence.ReasonClientTimeout)},
		{"by syslog", "<190>Nov 23 03:13:00 web1 nginx: " + lead + "499" + tail, line(499, evidence.PartyClient, evidence.PhaseResponse, evidence.ReasonClientClosed)},
	})
}

// The lines of HAProxy's configuration manual (8.2, 8.9), and such as HAProxy 2.6
// wrote; TestRealHAProxy provokes these again.
func TestParseHAProxy(t *testing.T) {
	const ms = time.Millisecond
	line := func(began time.Time, took time.Duration, client, backend, flags string, status int, party evidence.LogParty, phase evidence.LogPhase, reason evidence.LogReason) evidence.LogLine {
		return evidence.LogLine{
			Time: began.Add(took), Began: began, Precision: ms, Source: evidence.LogHAProxy, PID: 674, Client: endpoint(client),
			Backend: backend, Flags: flags, Status: status, Party: party, Phase: phase, Reason: reason,
		}
	}
	at := func(s string) time.Time {
		began, err := time.ParseInLocation(haproxyDate, s, here.loc)
		if err != nil {
			t.Fatal(err)
		}
		return began
	}
	timed := line(at("06/Feb/2009:12:14:14.655"), 109*ms, "10.0.1.2:33317", "static/srv1", "----", 200, "", "", "")
	timed.Timers = []evidence.LogTimer{{Name: "TR", Took: 10 * ms}, {Name: "Tw"}, {Name: "Tc", Took: 30 * ms}, {Name: "Tr", Took: 69 * ms}, {Name: "Ta", Took: 109 * ms}}
	nosrv := line(at("15/Oct/2003:15:18:55.798"), 8490*ms, "127.0.0.1:34548", "px-http/<NOSRV>", "CR--", 0, evidence.PartyClient, evidence.PhaseRequest, evidence.ReasonClientClosed)
	nosrv.Timers = []evidence.LogTimer{{Name: "Ta", Took: 8490 * ms}}
	failed := line(at("03/Dec/2012:17:35:10.380"), 0, "127.0.0.1:56059", "", "", 0, evidence.PartyClient, evidence.PhaseTLS, evidence.ReasonTLSError)
	old := evidence.LogLine{
		Time: time.Date(2026, 2, 6, 11, 12, 9, 0, time.UTC), Precision: time.Second, Source: evidence.LogHAProxy, PID: 674,
		Client: endpoint("10.0.1.2:33312"), Addresses: endpoints("10.0.3.31:8012"), Backend: "www/HTTP",
	}
	down := evidence.LogLine{
		Source: evidence.LogHAProxy, Backend: "shop/app1", Party: evidence.PartyServer, Phase: evidence.PhaseConnect, Reason: evidence.ReasonServerDown,
	}
	none := evidence.LogLine{
		Source: evidence.LogHAProxy, Backend: "shop", Party: evidence.PartyProxy, Phase: evidence.PhaseConnect, Reason: evidence.ReasonNoServer,
	}
	check(t, []sample{
		{"http", `Feb  6 12:14:14 localhost haproxy[674]: 10.0.1.2:33317 [06/Feb/2009:12:14:14.655] http-in static/srv1 10/0/30/69/109 200 2750 - - ---- 1/1/1/1/0 0/0 {1wt.eu} {} "GET /index.html HTTP/1.1"`, timed},
		{"client gave up", `haproxy[674]: 127.0.0.1:34548 [15/Oct/2003:15:18:55.798] px-http px-http/<NOSRV> -1/-1/-1/-1/8490 -1 0 - - CR-- 2/2/2/0/0 0/0 ""`, nosrv},
		{"timeout of the request", `haproxy[674]: 127.0.0.1:34549 [15/Oct/2003:15:19:06.103] px-http px-http/<NOSRV> -1/-1/-1/-1/50001 408 0 - - cR-- 2/2/2/0/0 0/0 ""`,
			line(at("15/Oct/2003:15:19:06.103"), 50001*ms, "127.0.0.1:34549", "px-http/<NOSRV>", "cR--", 408, evidence.PartyClient, evidence.PhaseRequest, evidence.ReasonClientTimeout)},
		{"tcp timeout of the client", `haproxy[674]: 127.0.0.1:34550 [15/Oct/2003:15:24:28.312] px-tcp px-tcp/srv1 0/0/5007 0 cD 0/0/0/0/0 0/0`,
			line(at("15/Oct/2003:15:24:28.312"), 5007*ms, "127.0.0.1:34550", "px-tcp/srv1", "cD", 0, evidence.PartyClient, evidence.PhaseData, evidence.ReasonClientTimeout)},
		{"refused", `haproxy[674]: 10.0.0.1:34552 [15/Oct/2003:15:26:31.462] px-http px-http/srv1 3183/-1/-1/-1/11215 503 0 - - SC-- 205/202/202/115/3 0/0 "HEAD / HTTP/1.0"`,
			line(at("15/Oct/2003:15:26:31.462"), 11215*ms, "10.0.0.1:34552", "px-http/srv1", "SC--", 503, evidence.PartyServer, evidence.PhaseConnect, evidence.ReasonConnectRefused)},
		{"response blocked", `haproxy[674]: 127.0.0.1:33320 [15/Oct/2003:08:32:17.925] px-http px-http/srv1 9/0/7/14/30 502 243 - - PH-- 3/2/2/0/0 0/0 "GET /cgi-bin/bug.cgi? HTTP/1.0"`,
			line(at("15/Oct/2003:08:32:17.925"), 30*ms, "127.0.0.1:33320", "px-http/srv1", "PH--", 502, evidence.PartyProxy, evidence.PhaseResponse, evidence.ReasonProtocolError)},
		{"logged before the end", `haproxy[674]: 127.0.0.1:33320 [15/Oct/2003:08:32:17.654] px-http px-http/srv1 9/0/7/14/+30 200 +243 - - ---- 3/3/3/1/0 0/0 "GET /image.iso HTTP/1.0"`,
			line(at("15/Oct/2003:08:32:17.654"), 30*ms, "127.0.0.1:33320", "px-http/srv1", "----", 200, "", "", "")},
		{"no brackets around IPv6", `haproxy[674]: 2001:db8::9:4711 [15/Oct/2003:08:32:17.654] px px/srv1 0/0/7 3 SD 0/0/0/0/0 0/0`,
			line(at("15/Oct/2003:08:32:17.654"), 7*ms, "[2001:db8::9]:4711", "px/srv1", "SD", 0, evidence.PartyServer, evidence.PhaseData, evidence.ReasonUpstreamReset)},
		{"error of an incoming connection", "Dec  3 18:27:14 localhost haproxy[674]: 127.0.0.1:56059 [03/Dec/2012:17:35:10.380] frt/f1: Connection error during SSL handshake", failed},
		{"old format", "Feb  6 12:12:09 localhost haproxy[674]: Connect from 10.0.1.2:33312 to 10.0.3.31:8012 (www/HTTP)", old},
		{"server down", `Server shop/app1 is DOWN, reason: Layer4 connection problem, info: "Connection refused", check duration: 0ms. 0 active and 0 backup servers left.`, down},
		{"no server", "backend shop has no server available!", none},
	})
}

// Every letter of the manual's table means something.
func TestHAProxyStates(t *testing.T) {
	for _, end := range "CSPRIDUKcs" {
		for _, phase := range "RQCHDLT" {
			state := string(end) + string(phase)
			var l evidence.LogLine
			if !isState(state, 2) {
				t.Errorf("%s is not taken for a termination state", state)
				continue
			}
			judgeHAProxy("b/s", state, &l)
			if l.Party == "" || l.Phase == "" || l.Reason == "" {
				t.Errorf("%s means %q %q %q", state, l.Party, l.Phase, l.Reason)
			}
		}
	}
	for _, state := range []string{"--", "LR", "L-"} {
		var l evidence.LogLine
		if judgeHAProxy("b/s", state, &l); l.Reason != "" {
			t.Errorf("%s is nobody's fault but has the reason %q", state, l.Reason)
		}
	}
	if isState("XX", 2) || isState("0/", 2) || isState("SD--", 2) {
		t.Error("other words are taken for a termination state")
	}
}

// The formats are those of Envoy's documentation ("Access logging", version 1.30
// and later, and Istio's default); no Envoy wrote these lines.
func TestParseEnvoy(t *testing.T) {
	began := time.Date(2026, 11, 23, 2, 13, 0, 31e7, time.UTC)
	line := func(took time.Duration, status int, flags string, party evidence.LogParty, phase evidence.LogPhase, reason evidence.LogReason) evidence.LogLine {
		return evidence.LogLine{
			Time: began.Add(took), Began: began, Precision: time.Millisecond, Source: evidence.LogEnvoyAccess, Status: status, Flags: flags,
			Party: party, Phase: phase, Reason: reason, Client: endpoint("192.0.2.9"), Upstream: endpoint("192.0.2.2:80"),
			RequestID: "cc21d9b0-cf5c-432b-8c7e-98aeb7988cd2",
		}
	}
	const lead = `[2026-11-23T02:13:00.310Z] "POST /api/v1/locations HTTP/2" `
	const tail = ` "192.0.2.9" "nsq2http" "cc21d9b0-cf5c-432b-8c7e-98aeb7988cd2" "locations" "tcp://192.0.2.2:80"`
	const ms = time.Millisecond
	mesh := line(4*ms, 503, "UF,URX", evidence.PartyServer, evidence.PhaseConnect, evidence.ReasonConnectRefused)
	mesh.Client, mesh.Local, mesh.Addresses = endpoint("192.0.2.9:4711"), endpoint("192.0.2.1:50123"), endpoints("198.51.100.1:443")
	mesh.Backend = "outbound|80||shop"
	remote := line(7*ms, 200, "", evidence.PartyClient, "", evidence.ReasonClientReset)
	remote.Client, remote.Connection, remote.RequestID = endpoint("192.0.2.9:4711"), "12", "a1b2c3d4"
	remote.TraceID, remote.SpanID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	termination := line(7*ms, 503, "UC", evidence.PartyServer, evidence.PhaseResponse, evidence.ReasonUpstreamReset)
	termination.Client, termination.RequestID = endpoint("192.0.2.9:4711"), ""
	check(t, []sample{
		{"well", lead + "204 - 154 0 226 100" + tail, line(226*ms, 204, "", "", "", "")},
		{"upstream closed", lead + "503 UC 154 95 226 -" + tail, line(226*ms, 503, "UC", evidence.PartyServer, evidence.PhaseResponse, evidence.ReasonUpstreamClosed)},
		{"upstream timed out", lead + "504 UT 154 24 15000 -" + tail, line(15*time.Second, 504, "UT", evidence.PartyServer, evidence.PhaseResponse, evidence.ReasonUpstreamTimeout)},
		{"client closed", lead + "0 DC 154 0 31 -" + tail, line(31*ms, 0, "DC", evidence.PartyClient, "", evidence.ReasonClientClosed)},
		{"local reset", lead + "503 LR 154 0 31 -" + tail, line(31*ms, 503, "LR", evidence.PartyProxy, evidence.PhaseResponse, evidence.ReasonLocalReset)},
		{"no healthy upstream", lead + "503 UH 0 19 0 -" + tail, line(0, 503, "UH", evidence.PartyProxy, evidence.PhaseConnect, evidence.ReasonNoServer)},
		{"mesh", lead + `503 UF,URX upstream_reset_before_response_started{remote_connection_failure,delayed_connect_error:_111} - "delayed_connect_error:_111" 0 152 4 -` + tail +
			` outbound|80||shop 192.0.2.1:50123 198.51.100.1:443 192.0.2.9:4711 - default`, mesh},
		{"json", `{"start_time":"2026-11-23T02:13:00.310Z","response_code":"200","response_flags":"-","duration":"7","upstream_host":"192.0.2.2:80","downstream_remote_address":"192.0.2.9:4711","connection_id":"12","x-request-id":"a1b2c3d4","downstream_detected_close_type":"RemoteReset","traceparent":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}`, remote},
		{"typed json", `{"start_time":"2026-11-23T02:13:00.310Z","response_code":503,"response_flags":"UC","duration":7,"upstream_host":"192.0.2.2:80","downstream_remote_address":"192.0.2.9:4711","upstream_transport_failure_reason":null,"response_code_details":"upstream_reset_before_response_started{connection_termination}","connection_termination_details":"remote reset"}`, termination},
	})
}

func TestEnvoyFlagsAreDistinct(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range envoyFlags {
		if seen[f.short] || seen[f.long] || f.reason == "" || f.party == "" {
			t.Errorf("the flag %s (%s) is there twice or means nothing", f.short, f.long)
		}
		seen[f.short], seen[f.long] = true, true
	}
}
