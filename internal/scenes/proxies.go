package scenes

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// proxyScripts are resets between a proxy on the router and the server.
var proxyScripts = []script{
	{"nginx-502", "the server resets nginx, which answers 502", []string{"nginx"}, nginx502},
	{"haproxy-timeout-server", "haproxy gives up a slow server and answers 504", []string{"haproxy"}, haproxyTimeout},
}

func port(a netip.AddrPort) string { return strconv.Itoa(int(a.Port())) }

// proxyPort is where the proxies listen on the router.
const proxyPort = 8080

// maxAnswer is more than a proxy's error page.
const maxAnswer = 4096

const nginxConfig = `daemon off; master_process off; pid nginx.pid; error_log stderr crit;
events {}
http { access_log off; server { listen %v; location / { proxy_pass http://%v; } } }
`

func nginx502(p *play) []Truth {
	l := p.listen(p.actor(p.st.Server, "srv"), p.st.ServerIP(), backlog)
	_, proxy := p.proxy("nginx", fmt.Sprintf(nginxConfig, p.proxyAddress(), l.local), "-p", ".", "-e", "stderr", "-c", "config")
	c, s := p.ask(l, proxy)
	s.read(maxAnswer)
	s.linger(0)
	s.close()
	c.answers(" 502 ")
	return []Truth{{
		Client: s.peer, Server: s.local, RSTFrom: FromServer, Claimed: s.local, Reason: "TCP_STATE", State: "closed",
		GuiltyPID: l.a.PID, OwnerPID: l.a.PID, Errno: unix.ECONNRESET,
	}}
}

const haproxyConfig = `defaults
  mode http
  timeout connect 1s
  timeout client 5s
  timeout server 50ms
listen proxy
  bind %v
  server s %v
`

// haproxyTimeout: haproxy closes with SO_LINGER 0, without a FIN before.
func haproxyTimeout(p *play) []Truth {
	l := p.listen(p.actor(p.st.Server, "srv"), p.st.ServerIP(), backlog)
	pid, proxy := p.proxy("haproxy", fmt.Sprintf(haproxyConfig, p.proxyAddress(), l.local), "-db", "-q", "-f", "config")
	c, s := p.ask(l, proxy)
	c.answers(" 504 ")
	s.dies(unix.ECONNRESET)
	return []Truth{{
		Client: s.peer, Server: s.local, RSTFrom: FromRouter, Claimed: s.peer, Reason: "TCP_STATE", State: "closed",
		GuiltyPID: pid, OwnerPID: pid, Errno: unix.ECONNRESET,
	}}
}

func (p *play) proxyAddress() netip.AddrPort {
	return netip.AddrPortFrom(p.st.ip(routerIP4c, routerIP6c), proxyPort)
}

// ask sends a request to the proxy and accepts what it makes of it.
func (p *play) ask(l *sock, proxy netip.AddrPort) (c, s *sock) {
	c = p.dial(p.actor(p.st.Client, "cli"), proxy)
	c.say("GET / HTTP/1.1\r\nHost: scene\r\n\r\n")
	s = l.accept()
	s.awaitRequest()
	return c, s
}

func (s *sock) awaitRequest() {
	s.p.until("the request came", func() bool { return s.p.do(s.a, request{Op: "unread", FD: s.fd}).N > 0 })
}

func (s *sock) answers(status string) {
	if got := s.read(maxAnswer); s.p.err == nil && !strings.Contains(got, status) {
		s.p.err = fmt.Errorf("the proxy answers %.40q, want status%s", got, status)
	}
}

// proxy starts a program on the router, with its configuration in the file
// "config", and waits until it listens.
func (p *play) proxy(name, config string, args ...string) (pid int, at netip.AddrPort) {
	if p.err != nil {
		return 0, at
	}
	a, err := p.st.program(p.ctx, p.st.Router, name, config, args...)
	if err != nil {
		p.err = err
		return 0, at
	}
	at = p.proxyAddress()
	p.awaitState(p.st.Router, at, netip.AddrPortFrom(at.Addr(), 0), stateListen)
	return a.PID, at
}

// Program starts a program on a host, with its configuration in the file "config" of
// its working directory. It ends with the stage or the context.
func (st *Stage) Program(ctx context.Context, h *Host, name, config string, args ...string) error {
	if err := st.has([]string{name}); err != nil {
		return err
	}
	_, err := st.program(ctx, h, name, config, args...)
	return err
}

// program starts a program that is no actor of ours; it ends with the stage.
func (st *Stage) program(ctx context.Context, h *Host, name, config string, args ...string) (*actor, error) {
	dir, err := os.MkdirTemp("", "scenes-")
	if err != nil {
		return nil, fmt.Errorf("make directory for %s: %w", name, err)
	}
	st.dirs = append(st.dirs, dir)
	if err := os.WriteFile(filepath.Join(dir, "config"), []byte(config), 0o644); err != nil {
		return nil, fmt.Errorf("write configuration of %s: %w", name, err)
	}
	a := &actor{Name: name, cmd: exec.CommandContext(ctx, name, args...)}
	a.cmd.Dir, a.cmd.Stderr = dir, os.Stderr
	if err := h.Do(a.cmd.Start); err != nil {
		return nil, fmt.Errorf("start %s on %s: %w", name, h.Name, err)
	}
	a.PID = a.cmd.Process.Pid
	st.actors = append(st.actors, a)
	return a, nil
}

// removeDirs removes the programs' directories.
func (st *Stage) removeDirs() error {
	var errs []error
	for _, d := range st.dirs {
		errs = append(errs, os.RemoveAll(d))
	}
	st.dirs = nil
	return errors.Join(errs...)
}
