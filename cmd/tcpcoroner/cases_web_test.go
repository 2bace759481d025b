package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"tcpcoroner/evidence"
	"tcpcoroner/internal/scenes"
)

// webTroubles are of protocols above TCP.
var webTroubles = []trouble{
	{row: "keepalive mismatch", name: "a request on a connection that nginx has closed", trigger: "resets", watched: scenes.FromServer,
		play: staleReuse, datum: staleDatum},
	{row: "TLS policy or plaintext", name: "plaintext on a port of TLS", trigger: "resets", watched: scenes.FromServer,
		play: plaintext, datum: plaintextDatum},
	{row: "HTTP/2", name: "one reset ends many streams", trigger: "resets", watched: scenes.FromRouter, play: manyStreams, datum: streamsDatum},
}

// staleReuse has clients that write after nginx' keepalive_timeout.
func staleReuse(l *caseLab) {
	addr := l.server(servicePort)
	l.nginx(l.Server, addr, fmt.Sprintf("keepalive_timeout 2s; server { listen %v; return 200 ok; }", addr))
	var all sync.WaitGroup
	for range 5 {
		c := l.dial(l.Client, addr)
		all.Go(func() {
			l.ask(c)
			if _, err := answer(c); err != nil {
				l.Errorf("ask nginx: %v", err)
			}
			_, err := io.Copy(io.Discard, c) // until the server's FIN
			l.want(err == nil, "nginx to close with FIN: %v", err)
			l.ask(c)
		})
	}
	all.Wait()
}

func staleDatum(l *caseLab, inc *evidence.Incident) string {
	c := inc.Verdict.Claim()
	l.want(c.Cause == evidence.CauseStaleReuse, "%s, not %s: %s", evidence.CauseStaleReuse, c.Cause, c.Sentence)
	for i := range inc.Flows {
		f := &inc.Flows[i]
		fin, write, silence := -1, -1, false
		for k, s := range f.Timeline {
			switch {
			case strings.Contains(s.Flags, "FIN") && fin < 0:
				fin = k
				silence = k > 0 && s.Time.Sub(f.Timeline[k-1].Time) > tick
			case fin >= 0 && write < 0 && s.Flags == "PSH_ACK":
				write = k
			}
		}
		if fin >= 0 && write > fin && silence && f.Reset != nil {
			return fmt.Sprintf("FIN at %.2f s, request at %.2f s, RST; %s", f.Timeline[fin].Time.Sub(f.First).Seconds(),
				f.Timeline[write].Time.Sub(f.First).Seconds(), c.Cause)
		}
		l.Errorf("the timeline of %v does not show silence, FIN, request, RST: %+v", f, f.Timeline)
	}
	return ""
}

const tlsPort = 443

// plaintext asks without TLS where nginx drops who does (status 444 is its own).
func plaintext(l *caseLab) {
	addr, cert := l.server(tlsPort), l.certificate()
	l.nginx(l.Server, addr, fmt.Sprintf(`reset_timedout_connection on;
		server { listen %v ssl; ssl_certificate %s; ssl_certificate_key %s; error_page 497 =444 @drop; location @drop { return 444; } }`, addr, cert, cert))
	for range 5 {
		c := l.dial(l.Client, addr)
		l.ask(c)
		_, err := io.Copy(io.Discard, c)
		l.want(err != nil, "a reset connection")
	}
}

func plaintextDatum(l *caseLab, inc *evidence.Incident) string {
	c := inc.Verdict.Claim()
	l.want(c.Cause == evidence.CausePolicy || c.Cause == evidence.CauseProtocolMismatch, "a policy: %s: %s", c.Cause, c.Sentence)
	line := lineOf(inc, func(k *evidence.LogLine) bool {
		return k.Source == evidence.LogNginxError && k.Reason == evidence.ReasonPlaintext
	})
	if line == nil {
		l.Errorf("no line of nginx about plaintext")
		return ""
	}
	after := time.Duration(0)
	for i := range inc.Flows {
		f := &inc.Flows[i]
		l.want(f.ServerBytes == 0 && f.ClientBytes > 0 && f.Server.Port() == tlsPort && f.Reset != nil && f.Reset.From == f.Server,
			"RST after the client's first words: %+v", f)
		after = f.Last.Sub(f.First)
	}
	l.want(len(inc.Flows) == 5, "5 flows, not %d", len(inc.Flows))
	return fmt.Sprintf("RST %v after the SYN to port %d, nothing said back; log: %s", after.Round(time.Millisecond), tlsPort, line.Reason)
}

// How many requests wait on each connection.
const (
	streams = 20
	webPort = 8443
)

// manyStreams has clients of HTTP/2 reset their connections to HAProxy with many
// requests on them.
func manyStreams(l *caseLab) {
	var waiting atomic.Int32
	upstream := l.serve(l.Server, l.server(0), func(c *net.TCPConn) {
		if head(c) == nil {
			waiting.Add(1)
		}
		hang(c)
	})
	addr := netip.AddrPortFrom(l.routerIP(), webPort)
	l.haproxy(l.Router, addr, fmt.Sprintf("listen web\n\tmode http\n\toption httplog\n\toption abortonclose\n\tbind %v ssl crt %s alpn h2\n"+
		"\thttp-request return status 200 if { path /quick }\n\tserver s %v\n", addr, l.certificate(), upstream))
	for n := range int32(3) {
		c := l.dial(l.Client, addr)
		web := http2Client(c)
		l.get(web, addr, "/quick")
		for range streams {
			go func() { _, _ = get(l.Context(), web, addr, "/slow") }()
		}
		await(l, firingTime, "requests at the upstream", func() bool { return waiting.Load() >= streams*(n+1) })
		l.reset(c)
	}
}

// http2Client speaks HTTP/2 on one connection.
func http2Client(c net.Conn) *http.Client {
	return &http.Client{Transport: &http.Transport{
		ForceAttemptHTTP2: true, MaxConnsPerHost: 1, TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		DialContext: func(context.Context, string, string) (net.Conn, error) { return c, nil },
	}}
}

func get(ctx context.Context, c *http.Client, addr netip.AddrPort, path string) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+addr.String()+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.Do(r)
	if err == nil {
		err = resp.Body.Close()
	}
	return resp, err
}

func (l *caseLab) get(c *http.Client, addr netip.AddrPort, path string) {
	l.Helper()
	resp, err := get(l.Context(), c, addr, path)
	l.must(err)
	l.want(resp.ProtoMajor == 2 && resp.StatusCode == 200, "200 by HTTP/2: %v", resp)
}

// streamsDatum wants of each flow, with one RST, many lines of the proxy about the
// client's one port.
func streamsDatum(l *caseLab, inc *evidence.Incident) string {
	lines := map[netip.AddrPort]int{}
	for _, k := range inc.Logs {
		if k.Source == evidence.LogHAProxy && k.Reason == evidence.ReasonClientClosed {
			lines[k.Client]++
		}
	}
	flows, least := 0, streams
	for i := range inc.Flows {
		f := &inc.Flows[i]
		if f.Server.Port() != webPort || f.Reset == nil {
			continue
		}
		flows++
		least = min(least, lines[f.Client])
		l.want(f.Reset.From == f.Client, "RST from the client: %+v", f.Reset)
		l.owned(f, "haproxy")
	}
	l.want(flows == 3 && least == streams, "3 flows with %d lines each: %d, %v", streams, flows, lines)
	return fmt.Sprintf("%d flows with RST; HAProxy tells of %d requests on each", flows, least)
}
