package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"tcpcoroner/evidence"
	"tcpcoroner/internal/scenes"
)

// What cases are made of: connections, programs and rules on the hosts of a stage.

// server is an address of the server's.
func (l *caseLab) server(port uint16) netip.AddrPort {
	return netip.AddrPortFrom(l.ServerIP(), port)
}

// routerIP is the router's address on its leg to the client.
func (l *caseLab) routerIP() netip.Addr {
	return l.ClientIP().Prev() // the leg's addresses are its first two
}

// scene plays a scene n times.
func (l *caseLab) scene(name string, n int) {
	l.Helper()
	all := scenes.All()
	i := slices.IndexFunc(all, func(s scenes.Scene) bool { return s.Name == name })
	if i < 0 {
		l.Fatalf("there is no scene %q", name)
	}
	for range n {
		truths, err := all[i].Play(l.Context(), l.Stage)
		l.must(err)
		l.truths = append(l.truths, truths...)
	}
}

// listen opens a listener that is closed when the test ends.
func (l *caseLab) listen(h *scenes.Host, addr netip.AddrPort) (ln *net.TCPListener) {
	l.Helper()
	l.must(h.Do(func() (err error) { ln, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(addr)); return err }))
	l.Cleanup(func() { ln.Close() })
	return ln
}

// serve has f answer each connection to a host, which it must close.
func (l *caseLab) serve(h *scenes.Host, addr netip.AddrPort, f func(*net.TCPConn)) netip.AddrPort {
	l.Helper()
	ln := l.listen(h, addr)
	go func() {
		for {
			c, err := ln.AcceptTCP()
			if err != nil {
				return
			}
			go f(c)
		}
	}()
	return addrOf(ln.Addr())
}

func addrOf(a net.Addr) netip.AddrPort { return a.(*net.TCPAddr).AddrPort() }

// dial connects from a host; the connection is closed when the test ends.
func (l *caseLab) dial(h *scenes.Host, to netip.AddrPort) *net.TCPConn {
	l.Helper()
	c, err := l.tryDial(h, to)
	l.must(err)
	l.Cleanup(func() { c.Close() })
	return c
}

// dialTime is how long a connection may take to open.
const dialTime = 10 * time.Second

func (l *caseLab) tryDial(h *scenes.Host, to netip.AddrPort) (*net.TCPConn, error) {
	var c net.Conn
	err := h.Do(func() (err error) {
		d := net.Dialer{Timeout: dialTime}
		c, err = d.DialContext(l.Context(), "tcp", to.String())
		return err
	})
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// ask sends a request, which head reads.
func (l *caseLab) ask(c *net.TCPConn) {
	l.Helper()
	_, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: shop\r\n\r\n")
	l.must(err)
}

// head reads the head of a request.
func head(c net.Conn) error {
	in := bufio.NewReader(c)
	for {
		line, err := in.ReadString('\n')
		if err != nil || strings.TrimSpace(line) == "" {
			return err
		}
	}
}

// answer reads a response whole, within a time.
func answer(c *net.TCPConn) (status int, err error) {
	if err := c.SetReadDeadline(time.Now().Add(firingTime)); err != nil {
		return 0, err
	}
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return 0, err
	}
	defer r.Body.Close()
	_, err = io.Copy(io.Discard, r.Body)
	return r.StatusCode, err
}

// hang reads until the other side ends the connection.
func hang(c *net.TCPConn) {
	_, _ = io.Copy(io.Discard, c) // its end is what is waited for
	c.Close()
}

// reset ends a connection with RST.
func (l *caseLab) reset(c *net.TCPConn) {
	l.Helper()
	l.must(errors.Join(c.SetLinger(0), c.Close()))
}

// start starts a program on a host, its output in a log of its name; it is killed
// when the test ends. Its files are in the case's directory.
func (l *caseLab) start(h *scenes.Host, name string, args ...string) *exec.Cmd {
	l.Helper()
	log, err := os.OpenFile(filepath.Join(l.dir, name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	l.must(err)
	defer log.Close()
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = l.dir, log, log
	l.must(h.Do(cmd.Start))
	l.Cleanup(func() { end(cmd) })
	return cmd
}

// end kills a program, if it is not dead.
func end(cmd *exec.Cmd) {
	if cmd.ProcessState == nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
}

// file writes a file of the case.
func (l *caseLab) file(name, text string) string {
	l.Helper()
	path := filepath.Join(l.dir, name)
	l.must(os.WriteFile(path, []byte(text), 0o600))
	return path
}

// tool runs a program on a host to its end.
func (l *caseLab) tool(h *scenes.Host, name string, args ...string) {
	l.Helper()
	l.must(h.Do(func() error {
		out, err := exec.Command(name, args...).CombinedOutput()
		if err != nil {
			return errors.New(name + " " + strings.Join(args, " ") + ": " + err.Error() + ": " + string(out))
		}
		return nil
	}))
}

// nft loads a ruleset on a host.
func (l *caseLab) nft(h *scenes.Host, rules string) {
	l.Helper()
	l.tool(h, "nft", "-f", l.file("rules.nft", rules))
}

// listening waits until a program listens. It does not knock: a refused connection
// would be another trouble. Lines are "0: 0201620A:1F90 00000000:0000 0A ..."
// (proc_net_tcp in proc(5)).
func (l *caseLab) listening(h *scenes.Host, addr netip.AddrPort) {
	l.Helper()
	port := fmt.Sprintf(":%04X", addr.Port())
	await(l, firingTime, "listener on "+addr.String(), func() bool {
		var table []byte
		l.must(h.Do(func() (err error) { table, err = os.ReadFile("/proc/thread-self/net/tcp"); return err }))
		for line := range strings.Lines(string(table)) {
			if f := strings.Fields(line); len(f) > 3 && strings.HasSuffix(f[1], port) && f[3] == "0A" {
				return true
			}
		}
		return false
	})
}

// nginx starts a real nginx on a host, which listens on addr. In the text of its
// http block, DIR is the case's directory.
func (l *caseLab) nginx(h *scenes.Host, addr netip.AddrPort, block string) *exec.Cmd {
	l.Helper()
	text := `daemon off; master_process off; pid DIR/pid; error_log DIR/error.log info;
events {}
http {
	access_log DIR/access.log;
	client_body_temp_path DIR/b; proxy_temp_path DIR/p; fastcgi_temp_path DIR/f; uwsgi_temp_path DIR/u; scgi_temp_path DIR/s;
	` + block + "\n}\n"
	file := l.file("nginx.conf", strings.ReplaceAll(text, "DIR", l.dir))
	cmd := l.start(h, "nginx", "-p", l.dir, "-e", filepath.Join(l.dir, "error.log"), "-c", file)
	l.listening(h, addr)
	return cmd
}

// haproxy starts a real HAProxy, which writes its log to a file.
func (l *caseLab) haproxy(h *scenes.Host, addr netip.AddrPort, config string) *exec.Cmd {
	l.Helper()
	const global = "global\n\tlog stdout format raw local0 info\ndefaults\n\tlog global\n\tretries 0\n\ttimeout connect 5s\n\ttimeout client 60s\n\ttimeout server 60s\n"
	file := l.file("haproxy.conf", global+strings.ReplaceAll(config, "DIR", l.dir))
	cmd := l.start(h, "haproxy", "-db", "-f", file)
	l.listening(h, addr)
	return cmd
}

// certificate writes a key and a certificate of its own for proxies.
func (l *caseLab) certificate() (file string) {
	l.Helper()
	text, err := newCertificate()
	l.must(err)
	return l.file("cert.pem", text)
}

// newCertificate makes a certificate that nobody signed, and its key.
func newCertificate() (string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", err
	}
	tmpl := x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"shop"}, NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, &tmpl, &tmpl, &key.PublicKey, key)
	private, kerr := x509.MarshalECPrivateKey(key)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})) +
		string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: private})), errors.Join(err, kerr)
}

// flowOf finds a flow by its client.
func flowOf(inc *evidence.Incident, client netip.AddrPort) *evidence.Flow {
	for i := range inc.Flows {
		if inc.Flows[i].Client == client {
			return &inc.Flows[i]
		}
	}
	return nil
}

// owned tells whether the owner of a flow is known, and wants it to be right. The
// kernel tells of the whole machine: of a reset amid a storm elsewhere it may tell
// only that there was one.
func (l *caseLab) owned(f *evidence.Flow, comm string) bool {
	l.Helper()
	if f.Owner == nil {
		return false
	}
	l.want(f.Owner.Comm == comm, "%v to be of %s: %+v", f, comm, f.Owner)
	return true
}

// eventOf finds a kernel event.
func eventOf(inc *evidence.Incident, match func(*evidence.KernelEvent) bool) *evidence.KernelEvent {
	for i := range inc.Kernel {
		if match(&inc.Kernel[i]) {
			return &inc.Kernel[i]
		}
	}
	return nil
}

// lineOf finds a log line.
func lineOf(inc *evidence.Incident, match func(*evidence.LogLine) bool) *evidence.LogLine {
	for i := range inc.Logs {
		if match(&inc.Logs[i]) {
			return &inc.Logs[i]
		}
	}
	return nil
}

// listenerOn finds a listener in a snapshot.
func listenerOn(s *evidence.Snapshot, port uint16) *evidence.Socket {
	for i := range s.Sockets {
		if k := &s.Sockets[i]; k.Listening() && k.Local.Port() == port {
			return k
		}
	}
	return nil
}

// captured counts the packets of the incident's capture that tshark's filter lets
// through.
func (l *caseLab) captured(inc *evidence.Incident, filter string) int {
	l.Helper()
	file := filepath.Join(l.dir, inc.ID+".pcapng")
	if _, err := os.Stat(file); err != nil {
		f, err := os.Create(file)
		l.must(err)
		l.must(errors.Join(l.p.client().Capture(context.Background(), inc.ID, f), f.Close()))
	}
	return strings.Count(tool(l.T, "tshark", "-r", file, "-Y", filter, "-T", "fields", "-e", "frame.number"), "\n")
}

// harm has the capture scored again, as an operator would.
func (l *caseLab) harm(inc *evidence.Incident) (kinds evidence.HarmCounts, text string) {
	l.Helper()
	l.captured(inc, "tcp.flags.reset==1")
	var out struct{ Harm evidence.HarmSample }
	cliJSON(l, &out, "triggers", "replay", filepath.Join(l.dir, inc.ID+".pcapng"))
	var parts []string
	for kind, n := range out.Harm.Kinds {
		if n > 0 {
			parts = append(parts, fmt.Sprintf("%v %d", evidence.HarmKind(kind), n))
		}
	}
	return out.Harm.Kinds, strings.Join(parts, ", ")
}
