package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// The sources of scans: a scanner is known by its address.
const (
	fastScanner = "10.99.0.3"
	slowScanner = "10.99.0.4"
)

// The sizes of what the web servers serve, in bytes. An image fits into a receive
// buffer (tcp_rmem), the large file does not.
var siteFiles = map[string]int{"page": 200, "image": 40_000, "large": 8 << 20}

// siteConfig serves them: on one port keep-alive ends soon, on the other not.
const siteConfig = `daemon off;
user root;
worker_processes 1;
pid DIR/nginx.pid;
error_log DIR/error.log;
events { worker_connections 1024; }
http {
    access_log off;
    client_body_temp_path DIR/body; proxy_temp_path DIR/proxy; fastcgi_temp_path DIR/fastcgi;
    uwsgi_temp_path DIR/uwsgi; scgi_temp_path DIR/scgi;
    default_type application/octet-stream;
    root DIR;
    server { listen HOST:80; listen 127.0.0.1:80; keepalive_timeout 75s; keepalive_requests 1000000; }
    server { listen HOST:81; keepalive_timeout 1s; }
` + pagesConfig + "}\n"

// proxyConfig is in front of the other host's web server, in three ways to end
// connections and with three kinds of health checks.
const proxyConfig = `defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
    timeout http-keep-alive 2s
listen closing
    bind HOST:8081
    option httpclose
    server web PEER:80 check inter 500ms
listen server-closing
    bind HOST:8082
    option http-server-close
    option httpchk GET /page
    server web PEER:80 check inter 500ms
listen pooling
    bind HOST:8083
    http-reuse always
    option tcp-check
    tcp-check connect
    tcp-check send GET\ /page\ HTTP/1.0\r\n\r\n
    tcp-check expect string 200
    server web PEER:80 pool-purge-delay 5s check inter 500ms
`

var placeholders = regexp.MustCompile(`\b(DIR|HOST|PEER)\b`)

// benignHosts are two hosts, each with a web server, and a proxy on both.
type benignHosts struct {
	b              *bench
	client, server *namespace
	web            *child   // the server's
	services       []*child // in the order in which they can be stopped
	errors         atomic.Int64
	surfer         *surfer      // nil without a browser
	reloading      sync.RWMutex // is held while the web server reloads, and by who asks it
}

func (b *bench) benignHosts() (h *benignHosts, err error) {
	h = &benignHosts{b: b}
	if h.client, h.server, err = b.pair(); err != nil {
		return nil, err
	}
	for _, a := range []string{fastScanner, slowScanner} {
		if err := ip("-n", h.client.name, "addr", "add", a+"/24", "dev", device); err != nil {
			return nil, err
		}
	}
	if err := h.server.on(anyCPU, func() error { return set("/proc/sys/net/ipv4/tcp_fin_timeout", seconds(finTimeout)) }); err != nil {
		return nil, err
	}
	if err := h.server.slowLine(); err != nil {
		return nil, err
	}
	if _, err := h.site(h.client, clientIP); err != nil {
		return nil, err
	}
	if h.web, err = h.site(h.server, serverIP); err != nil {
		return nil, err
	}
	if browserInstalled() {
		dir, err := os.MkdirTemp(b.dir, "browser")
		if err != nil {
			return nil, fmt.Errorf("make a directory for the browser: %w", err)
		}
		h.surfer = &surfer{h: h, dir: dir}
	}
	return h, errors.Join(h.proxy(h.client, clientIP, serverIP), h.proxy(h.server, serverIP, clientIP), h.farewells())
}

func seconds(d time.Duration) string { return strconv.Itoa(int(d.Seconds())) }

// site starts a web server and waits until it answers.
func (h *benignHosts) site(n *namespace, host string) (*child, error) {
	dir, err := os.MkdirTemp(h.b.dir, "site")
	if err != nil {
		return nil, fmt.Errorf("make a directory for nginx: %w", err)
	}
	for name, size := range siteFiles {
		if err := os.WriteFile(filepath.Join(dir, name), make([]byte, size), 0o644); err != nil {
			return nil, fmt.Errorf("write what nginx serves: %w", err)
		}
	}
	if err := writePages(dir, host); err != nil {
		return nil, err
	}
	config := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(config, []byte(fill(siteConfig, dir, host, "")), 0o644); err != nil {
		return nil, fmt.Errorf("write configuration of nginx: %w", err)
	}
	c, err := h.b.start(n, anyCPU, "nginx", "-p", dir, "-e", filepath.Join(dir, "error.log"), "-c", config)
	if err != nil {
		return nil, err
	}
	h.b.defers(c.stop) // nginx itself ends its worker
	h.services = append(h.services, c)
	return c, n.answers(c, net.JoinHostPort(host, "80"))
}

func (h *benignHosts) proxy(n *namespace, host, peer string) error {
	dir, err := os.MkdirTemp(h.b.dir, "proxy")
	if err != nil {
		return fmt.Errorf("make a directory for haproxy: %w", err)
	}
	config := filepath.Join(dir, "haproxy.cfg")
	if err := os.WriteFile(config, []byte(fill(proxyConfig, dir, host, peer)), 0o644); err != nil {
		return fmt.Errorf("write configuration of haproxy: %w", err)
	}
	c, err := h.b.start(n, anyCPU, "haproxy", "-db", "-f", config)
	if err != nil {
		return err
	}
	h.services = append([]*child{c}, h.services...) // what it checks is to outlive it
	return n.answers(c, net.JoinHostPort(host, "8081"))
}

// fill puts a directory and addresses into a configuration.
func fill(config, dir, host, peer string) string {
	return os.Expand(placeholders.ReplaceAllString(config, "$${$1}"), func(name string) string {
		return map[string]string{"DIR": dir, "HOST": host, "PEER": peer}[name]
	})
}

// answers waits until a process accepts connections.
func (n *namespace) answers(c *child, address string) (err error) {
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		var conn net.Conn
		if err = n.on(anyCPU, func() (err error) { conn, err = net.DialTimeout("tcp", address, time.Second); return err }); err == nil {
			return conn.Close()
		}
		select {
		case <-c.done:
			return fmt.Errorf("%s has ended: %s", c.cmd.Path, c.text.String())
		default:
		}
	}
	return fmt.Errorf("wait for %s: %w", c.cmd.Path, err)
}

const farewellPort = "443"

// farewells answers over TLS and closes: the client's own farewell comes too late
// (RFC 8446, 6.1).
func (h *benignHosts) farewells() error {
	certificate, err := selfSigned()
	if err != nil {
		return err
	}
	return h.server.on(anyCPU, func() error {
		l, err := tls.Listen("tcp", net.JoinHostPort(serverIP, farewellPort), &tls.Config{Certificates: []tls.Certificate{certificate}})
		if err != nil {
			return fmt.Errorf("listen for TLS: %w", err)
		}
		h.b.defers(l.Close)
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
						_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
					}
					_ = c.Close()
				}()
			}
		}()
		return nil
	})
}

func selfSigned() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make a key: %w", err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make a certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// visitor is a client's connection.
type visitor struct {
	*net.TCPConn
	r *bufio.Reader
}

// visitAt connects from the namespace of the calling thread. from may be "".
func visitAt(from, address string) (*visitor, error) {
	d := net.Dialer{Timeout: 5 * time.Second}
	if from != "" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	c, err := d.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	return &visitor{c.(*net.TCPConn), bufio.NewReader(c)}, nil
}

// ask sends a request.
func (v *visitor) ask(path string) error {
	_, err := io.WriteString(v, "GET /"+path+" HTTP/1.1\r\nHost: bench\r\n\r\n")
	return err
}

// get asks, and reads the whole answer.
func (v *visitor) get(path string) error {
	return errors.Join(v.ask(path), v.take())
}

// take reads a whole answer.
func (v *visitor) take() error {
	answer, err := http.ReadResponse(v.r, nil)
	if err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, answer.Body); err != nil {
		return err
	}
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("the answer is %s", answer.Status)
	}
	return answer.Body.Close()
}

// reset ends the connection as SO_LINGER with 0 does (socket(7)).
func (v *visitor) reset() error { return errors.Join(v.SetLinger(0), v.Close()) }

// ended tells whether the other end has closed, without waiting.
func (v *visitor) ended() bool {
	n, err := v.look(func(fd int) (int, error) {
		n, _, err := unix.Recvfrom(fd, make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return n, err
	})
	return err == nil && n == 0 || err != nil && !errors.Is(err, unix.EAGAIN)
}

// waiting is how many bytes have arrived and are not read (tcp(7), SIOCINQ).
func (v *visitor) waiting() (int, error) {
	return v.look(func(fd int) (int, error) { return unix.IoctlGetInt(fd, unix.SIOCINQ) })
}

func (v *visitor) look(f func(fd int) (int, error)) (n int, err error) {
	raw, err := v.SyscallConn()
	if err != nil {
		return 0, err
	}
	if e := raw.Control(func(fd uintptr) { n, err = f(int(fd)) }); e != nil {
		return 0, e
	}
	return n, err
}

// arrived waits until an answer of so many bytes and its head are in the buffer.
func (v *visitor) arrived(ctx context.Context, size int) error {
	last := 0
	for ctx.Err() == nil {
		n, err := v.waiting()
		if err != nil {
			return err
		}
		if n > size && n == last {
			return nil
		}
		last = n
		sleep(ctx, 10*time.Millisecond)
	}
	return ctx.Err()
}
