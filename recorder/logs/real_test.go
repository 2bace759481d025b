package logs

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tcpcoroner/evidence"
	"tcpcoroner/internal/netlab"
)

// run starts a process that ends with the test.
func run(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // or it ended by itself
		_ = cmd.Wait()
	})
}

// eventually tries until f succeeds.
func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(15 * time.Second)
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: %v", what, err)
		}
	}
}

// serve answers every connection of a listener with f, after the request's head.
func serve(t *testing.T, ns *netlab.NS, f func(net.Conn)) (addr string) {
	t.Helper()
	l := ns.Listen(t, "127.0.0.1:0")
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				in := bufio.NewReader(c)
				for line := "x"; strings.TrimSpace(line) != ""; {
					var err error
					if line, err = in.ReadString('\n'); err != nil {
						break
					}
				}
				f(c)
			}()
		}
	}()
	return l.Addr().String()
}

// The upstreams of these tests.
func reset(c net.Conn) { _ = netlab.Reset(c) }
func shut(c net.Conn)  { _ = c.Close() }
func hang(c net.Conn)  { _, _ = io.Copy(io.Discard, c); _ = c.Close() }

// resetInBody resets when the proxy has had time to pass the beginning on: the
// client reads it and then speaks.
func resetInBody(begun <-chan struct{}) func(net.Conn) {
	return func(c net.Conn) {
		_, _ = c.Write([]byte("HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\nbeginning"))
		<-begun
		_ = netlab.Reset(c)
	}
}

// get sends a request and reads until the proxy closes. It returns its own address.
func get(t *testing.T, ns *netlab.NS, addr, request string) netip.AddrPort {
	t.Helper()
	c := ns.Dial(t, addr)
	own := c.LocalAddr().(*net.TCPAddr).AddrPort()
	_, _ = c.Write([]byte(request)) // an answer may come before all is sent
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	_, _ = io.Copy(io.Discard, c)
	_ = c.Close()
	return own
}

func request(p string) string {
	return "GET " + p + " HTTP/1.1\r\nHost: shop\r\nConnection: close\r\nX-Request-ID: id-of" + strings.ReplaceAll(p, "/", "-") + "\r\n\r\n"
}

// told is what a test expects one line to say.
type told struct {
	name     string
	source   evidence.LogSource
	client   netip.AddrPort // port 0 matches any
	upstream string
	flags    string
	status   int
	party    evidence.LogParty
	phase    evidence.LogPhase
	reason   evidence.LogReason
}

func (w told) by(l *evidence.LogLine) bool {
	return l.Source == w.source && (w.client.Port() == 0 || l.Client == w.client) &&
		(w.upstream == "" || l.Upstream.String() == w.upstream) && (w.flags == "" || strings.HasPrefix(l.Flags, w.flags)) &&
		l.Status == w.status && l.Party == w.party && l.Phase == w.phase && l.Reason == w.reason
}

// expectTold asks the reader until every expected line is there.
func expectTold(t *testing.T, r *Reader, q Query, all []told) {
	t.Helper()
	q.To = time.Now().Add(time.Minute)
	for _, want := range all {
		var lines []evidence.LogLine
		ok := t.Run(want.name, func(t *testing.T) {
			eventually(t, "find the line", func() error {
				var missing []evidence.Missing
				lines, missing = r.Around(t.Context(), q)
				for _, l := range lines {
					if want.by(&l) {
						return nil
					}
				}
				return fmt.Errorf("%d lines, missing %+v", len(lines), missing)
			})
		})
		if !ok {
			for _, l := range lines {
				t.Logf("%s %s %q %q %q %d: %s", l.Source, l.Client, l.Party, l.Phase, l.Reason, l.Status, l.Text)
			}
			return
		}
	}
}

// abandon asks for /hang and goes away when the upstream has the request.
func abandon(t *testing.T, ns *netlab.NS, addr, upstream string) netip.AddrPort {
	t.Helper()
	c := ns.Dial(t, addr)
	own := c.LocalAddr().(*net.TCPAddr).AddrPort()
	_, _ = c.Write([]byte(request("/hang")))
	waitUpstream(t, ns, upstream)
	_ = c.Close()
	return own
}

// cutBody asks for /body, reads the answer's beginning, and lets the upstream reset.
func cutBody(t *testing.T, ns *netlab.NS, addr string, begun chan struct{}) netip.AddrPort {
	t.Helper()
	c := ns.Dial(t, addr)
	_, _ = c.Write([]byte(request("/body")))
	_, _ = io.ReadAtLeast(c, make([]byte, 10), 10)
	close(begun)
	_, _ = io.Copy(io.Discard, c)
	return c.LocalAddr().(*net.TCPAddr).AddrPort()
}

// listening waits for a proxy to accept connections.
func listening(t *testing.T, ns *netlab.NS, addr string) {
	t.Helper()
	eventually(t, "a proxy at "+addr, func() error {
		c, err := ns.TryDial(addr)
		if err == nil {
			err = c.Close()
		}
		return err
	})
}

const nginxConfig = `
daemon off; master_process off; pid DIR/pid; error_log DIR/error.log info;
events {}
http {
	access_log DIR/access.log;
	log_format fields escape=json '{"time_iso8601":"$time_iso8601","remote_addr":"$remote_addr","remote_port":"$remote_port",'
		'"status":"$status","upstream_addr":"$upstream_addr","request_id":"$http_x_request_id"}';
	access_log DIR/fields.log fields;
	client_body_temp_path DIR/body; proxy_temp_path DIR/proxy; fastcgi_temp_path DIR/f; uwsgi_temp_path DIR/u; scgi_temp_path DIR/s;
	proxy_read_timeout 10s; client_header_timeout 1s; keepalive_timeout 5s;
	server {
		listen 127.0.0.1:8080;
		location /reset { proxy_pass http://RESET; }
		location /shut { proxy_pass http://SHUT; }
		location /refused { proxy_pass http://127.0.0.1:1; }
		location /slow { proxy_pass http://HANG; proxy_read_timeout 200ms; }
		location /hang { proxy_pass http://HANG; }
		location /body { proxy_pass http://BODY; proxy_buffering off; }
		location /small { client_max_body_size 10; proxy_pass http://SHUT; }
	}
	server { listen 127.0.0.1:8443 ssl; ssl_reject_handshake on; }
}
`

func TestRealNginx(t *testing.T) {
	ns := netlab.NewNS(t)
	if _, err := exec.LookPath("nginx"); err != nil {
		t.Skip("needs nginx")
	}
	begun := make(chan struct{})
	resets, shuts, hangs, bodies := serve(t, ns, reset), serve(t, ns, shut), serve(t, ns, hang), serve(t, ns, resetInBody(begun))
	dir := t.TempDir()
	conf := strings.NewReplacer("DIR", dir, "RESET", resets, "SHUT", shuts, "HANG", hangs, "BODY", bodies).Replace(nginxConfig)
	write(t, filepath.Join(dir, "conf"), conf)
	from := time.Now().Add(-2 * time.Second)
	cmd := ns.Command(t.Context(), "nginx", "-p", dir, "-e", filepath.Join(dir, "error.log"), "-c", filepath.Join(dir, "conf"))
	run(t, cmd)
	listening(t, ns, "127.0.0.1:8080")

	const addr = "127.0.0.1:8080"
	client := map[string]netip.AddrPort{}
	for _, p := range []string{"/reset", "/shut", "/refused", "/slow"} {
		client[p] = get(t, ns, addr, request(p))
	}
	client["/small"] = get(t, ns, addr, "POST /small HTTP/1.1\r\nHost: shop\r\nConnection: close\r\nContent-Length: 20\r\n\r\n01234567890123456789")
	get(t, ns, addr, "GET /never HTTP/1.1\r\nHost: ") // its head never ends
	get(t, ns, "127.0.0.1:8443", request("/plain"))
	c := ns.Dial(t, "127.0.0.1:8443")
	_ = tls.Client(c, &tls.Config{ServerName: "shop", MinVersion: tls.VersionTLS12}).Handshake()
	get(t, ns, "127.0.0.1:8443", "\x16\x03\x01\x00\x05no hello at all")

	client["/hang"] = abandon(t, ns, addr, hangs)
	client["/body"] = cutBody(t, ns, addr, begun)

	const errs, access = evidence.LogNginxError, evidence.LogNginxAccess
	const server, cl, proxy = evidence.PartyServer, evidence.PartyClient, evidence.PartyProxy
	r := New(Config{Journalctl: script(t, "exit 0"), MaxTime: 10 * time.Second})
	expectTold(t, r, Query{From: from, PIDs: []int{cmd.Process.Pid}}, []told{
		{"upstream reset", errs, netip.AddrPort{}, resets, "", 0, server, evidence.PhaseResponse, evidence.ReasonUpstreamReset},
		{"upstream reset in the body", errs, netip.AddrPort{}, bodies, "", 0, server, evidence.PhaseData, evidence.ReasonUpstreamReset},
		{"upstream closed", errs, netip.AddrPort{}, shuts, "", 0, server, evidence.PhaseResponse, evidence.ReasonUpstreamClosed},
		{"refused", errs, netip.AddrPort{}, "127.0.0.1:1", "", 0, server, evidence.PhaseConnect, evidence.ReasonConnectRefused},
		{"upstream timed out", errs, netip.AddrPort{}, hangs, "", 0, server, evidence.PhaseResponse, evidence.ReasonUpstreamTimeout},
		{"body too large", errs, netip.AddrPort{}, "", "", 0, proxy, evidence.PhaseRequest, evidence.ReasonBodyTooLarge},
		{"client closed", errs, netip.AddrPort{}, hangs, "", 0, cl, evidence.PhaseRequest, evidence.ReasonClientClosed},
		{"client timed out", errs, netip.AddrPort{}, "", "", 0, cl, evidence.PhaseRequest, evidence.ReasonClientTimeout},
		{"plaintext", errs, netip.AddrPort{}, "", "", 0, cl, evidence.PhaseTLS, evidence.ReasonPlaintext},
		{"tls by policy", errs, netip.AddrPort{}, "", "", 0, proxy, evidence.PhaseTLS, evidence.ReasonReject},
		{"tls", errs, netip.AddrPort{}, "", "", 0, cl, evidence.PhaseTLS, evidence.ReasonTLSError},
		{"499 of combined", access, netip.AddrPort{}, "", "", 499, cl, evidence.PhaseResponse, evidence.ReasonClientClosed},
		{"499", access, client["/hang"], hangs, "", 499, cl, evidence.PhaseResponse, evidence.ReasonClientClosed},
		{"502", access, client["/reset"], resets, "", 502, server, evidence.PhaseResponse, evidence.ReasonBadGateway},
		{"504", access, client["/slow"], hangs, "", 504, server, evidence.PhaseResponse, evidence.ReasonUpstreamTimeout},
		{"413", access, client["/small"], "", "", 413, proxy, evidence.PhaseRequest, evidence.ReasonBodyTooLarge},
	})
}

// waitUpstream waits until somebody is connected to addr.
func waitUpstream(t *testing.T, ns *netlab.NS, addr string) {
	t.Helper()
	_, port, _ := net.SplitHostPort(addr)
	eventually(t, "a connection to "+addr, func() error {
		out, err := ns.Command(t.Context(), "ss", "-Htn", "state", "established", "dport", "=", ":"+port).CombinedOutput()
		if err != nil {
			return fmt.Errorf("ss: %w: %s", err, out)
		}
		if len(out) == 0 {
			return fmt.Errorf("none")
		}
		return nil
	})
}

const haproxyConfig = `
global
	log stdout format raw local0 info
	maxconn 100
defaults
	log global
	retries 0
	option abortonclose
	timeout connect 1s
	timeout client 5s
	timeout server 5s
	timeout http-request 300ms
frontend web
	mode http
	option httplog
	bind 127.0.0.1:8080
	http-request deny if { path /deny }
	use_backend %[path,regsub(/,,g)]
backend reset
	mode http
	server s RESET
backend shut
	mode http
	server s SHUT
backend refused
	mode http
	server s 127.0.0.1:1
backend slow
	mode http
	timeout server 200ms
	server s HANG
backend hang
	mode http
	server s HANG
backend body
	mode http
	server s BODY
backend empty
	mode http
listen tcpclient
	mode tcp
	option tcplog
	timeout client 200ms
	bind 127.0.0.1:8081
	server s HANG
listen tcpserver
	mode tcp
	option tcplog
	timeout server 200ms
	bind 127.0.0.1:8082
	server s HANG
`

func TestRealHAProxy(t *testing.T) {
	ns := netlab.NewNS(t)
	if _, err := exec.LookPath("haproxy"); err != nil {
		t.Skip("needs haproxy")
	}
	begun := make(chan struct{})
	resets, shuts, hangs, bodies := serve(t, ns, reset), serve(t, ns, shut), serve(t, ns, hang), serve(t, ns, resetInBody(begun))
	dir := t.TempDir()
	write(t, filepath.Join(dir, "conf"), strings.NewReplacer("RESET", resets, "SHUT", shuts, "HANG", hangs, "BODY", bodies).Replace(haproxyConfig))
	log, err := os.OpenFile(filepath.Join(dir, "haproxy.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	from := time.Now().Add(-2 * time.Second)
	cmd := ns.Command(t.Context(), "haproxy", "-db", "-f", filepath.Join(dir, "conf"))
	cmd.Stdout, cmd.Stderr = log, log
	run(t, cmd)
	const addr = "127.0.0.1:8080"
	listening(t, ns, addr)

	client := map[string]netip.AddrPort{}
	for _, p := range []string{"/reset", "/shut", "/refused", "/slow", "/empty", "/deny"} {
		client[p] = get(t, ns, addr, request(p))
	}
	client["never"] = get(t, ns, addr, "GET /never HTTP/1.1\r\nHost: ")
	client["tcp client"] = get(t, ns, "127.0.0.1:8081", "x")
	client["tcp server"] = get(t, ns, "127.0.0.1:8082", "x")
	client["/hang"] = abandon(t, ns, addr, hangs)
	client["/body"] = cutBody(t, ns, addr, begun)

	const hap = evidence.LogHAProxy
	const server, cl, proxy = evidence.PartyServer, evidence.PartyClient, evidence.PartyProxy
	r := New(Config{Journalctl: script(t, "exit 0"), MaxTime: 10 * time.Second})
	expectTold(t, r, Query{From: from, PIDs: []int{cmd.Process.Pid}}, []told{
		{"reset before the answer", hap, client["/reset"], "", "SH", 502, server, evidence.PhaseResponse, evidence.ReasonUpstreamClosed},
		{"closed before the answer", hap, client["/shut"], "", "SH", 502, server, evidence.PhaseResponse, evidence.ReasonUpstreamClosed},
		{"reset in the body", hap, client["/body"], "", "SD", 200, server, evidence.PhaseData, evidence.ReasonUpstreamReset},
		{"refused", hap, client["/refused"], "", "SC", 503, server, evidence.PhaseConnect, evidence.ReasonConnectRefused},
		{"timeout of the server", hap, client["/slow"], "", "sH", 504, server, evidence.PhaseResponse, evidence.ReasonServerTimeout},
		{"no server", hap, client["/empty"], "", "SC", 503, proxy, evidence.PhaseConnect, evidence.ReasonNoServer},
		{"denied", hap, client["/deny"], "", "PR", 403, proxy, evidence.PhaseRequest, evidence.ReasonReject},
		{"timeout of the request", hap, client["never"], "", "cR", 408, cl, evidence.PhaseRequest, evidence.ReasonClientTimeout},
		{"client closed", hap, client["/hang"], "", "CH", 400, cl, evidence.PhaseResponse, evidence.ReasonClientClosed},
		{"tcp timeout of the client", hap, client["tcp client"], "", "cD", 0, cl, evidence.PhaseData, evidence.ReasonClientTimeout},
		{"tcp timeout of the server", hap, client["tcp server"], "", "sD", 0, server, evidence.PhaseData, evidence.ReasonServerTimeout},
	})
}
