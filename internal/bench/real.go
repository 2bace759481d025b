package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"time"
)

// nginxConfig serves a short answer, and connections that end with a RST.
const nginxConfig = `daemon off;
worker_processes 1;
pid DIR/nginx.pid;
error_log DIR/error.log;
events { worker_connections 4096; }
http {
    access_log off;
    client_body_temp_path DIR/body; proxy_temp_path DIR/proxy; fastcgi_temp_path DIR/fastcgi;
    uwsgi_temp_path DIR/uwsgi; scgi_temp_path DIR/scgi;
    keepalive_requests 1000000;
    reset_timedout_connection on;
    server {
        listen SERVER:80 backlog=4096;
        location / { return 200 "TEXT"; }
        location /drop { return 444; }
    }
}
`

const bulkPort = "5001"

// servers are a web server and a sink for bulk data in one namespace.
type servers struct {
	b              *bench
	client, server *namespace
	nginx          *child
}

// serve starts both, on the given processor.
func (b *bench) serve(cpu int) (*servers, error) {
	v := &servers{b: b}
	var err error
	if v.client, v.server, err = b.pair(); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(b.dir, "nginx")
	if err != nil {
		return nil, fmt.Errorf("make a directory for nginx: %w", err)
	}
	config := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(config, []byte(expand(nginxConfig, dir)), 0o644); err != nil {
		return nil, fmt.Errorf("write configuration of nginx: %w", err)
	}
	if v.nginx, err = b.start(v.server, cpu, "nginx", "-p", dir, "-e", filepath.Join(dir, "error.log"), "-c", config); err != nil {
		return nil, err
	}
	b.defers(v.nginx.stop) // nginx itself ends its worker
	return v, errors.Join(v.listening(), v.sink())
}

func expand(config, dir string) string {
	text := make([]byte, 200)
	for i := range text {
		text[i] = 'x'
	}
	return os.Expand(regexp.MustCompile(`\b(DIR|SERVER|TEXT)\b`).ReplaceAllString(config, "$${$1}"), func(name string) string {
		return map[string]string{"DIR": dir, "SERVER": serverIP, "TEXT": string(text)}[name]
	})
}

// listening waits until nginx answers.
func (v *servers) listening() (err error) {
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		var c net.Conn
		err = v.client.on(anyCPU, func() (err error) { c, err = net.DialTimeout("tcp", serverIP+":80", time.Second); return err })
		if err == nil {
			return c.Close()
		}
		select {
		case <-v.nginx.done:
			return fmt.Errorf("nginx has ended: %s", v.nginx.text.String())
		default:
		}
	}
	return fmt.Errorf("wait for nginx: %w", err)
}

// sink takes bulk data until the end of the part.
func (v *servers) sink() error {
	return v.server.on(anyCPU, func() error {
		l, err := net.Listen("tcp", net.JoinHostPort(serverIP, bulkPort))
		if err != nil {
			return fmt.Errorf("listen for bulk data: %w", err)
		}
		v.b.defers(l.Close)
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					_, _ = io.Copy(io.Discard, c) // until the sender closes
					_ = c.Close()
				}()
			}
		}()
		return nil
	})
}

// bulk sends so many bytes over each of some connections.
func (v *servers) bulk(connections, bytes int) error {
	var group sync.WaitGroup
	errs := make([]error, connections)
	for i := range connections {
		group.Go(func() {
			var c net.Conn
			errs[i] = v.client.on(anyCPU, func() (err error) { c, err = net.Dial("tcp", net.JoinHostPort(serverIP, bulkPort)); return err })
			if errs[i] == nil {
				errs[i] = sendAll(c, bytes)
			}
		})
	}
	group.Wait()
	return errors.Join(errs...)
}

func sendAll(c net.Conn, bytes int) error {
	block := make([]byte, 64<<10)
	for sent := 0; sent < bytes; sent += len(block) {
		if _, err := c.Write(block); err != nil {
			return errors.Join(err, c.Close())
		}
	}
	return c.Close()
}

// wrk sends requests for some seconds and returns how many were answered.
func (v *servers) wrk(ctx context.Context, cpu int, seconds float64, args ...string) (requests float64, c *child, err error) {
	args = append([]string{"wrk", "-t1", "-c50", "-d", strconv.Itoa(int(seconds)) + "s"}, args...)
	if c, err = v.b.start(v.client, cpu, args...); err != nil {
		return 0, nil, err
	}
	select {
	case <-c.done:
	case <-ctx.Done():
		return 0, c, ctx.Err()
	}
	requests, err = parseWrk(c.text.String())
	return requests, c, err
}

var wrkRequests = regexp.MustCompile(`(\d+) requests in`)

func parseWrk(text string) (float64, error) {
	m := wrkRequests.FindStringSubmatch(text)
	if m == nil {
		return 0, fmt.Errorf("read result of wrk: no number of requests in %q", text)
	}
	return strconv.ParseFloat(m[1], 64)
}

const (
	page = "http://" + serverIP + "/"
	drop = "http://" + serverIP + "/drop"
)

// trace is one kind of real traffic.
type trace struct {
	name string
	// floor is how many times fewer bytes a packet than tcpdump's file; 0 is no
	// promise.
	floor float64
	run   func(context.Context, *servers, float64) error
}

// requests makes wrk alone a trace.
func requests(args ...string) func(context.Context, *servers, float64) error {
	return func(ctx context.Context, v *servers, seconds float64) error {
		_, _, err := v.wrk(ctx, anyCPU, seconds, args...)
		return err
	}
}

// bulkBytes keeps a trace of bulk data at a size that can be compared.
const bulkBytes = 100 << 20

func traces() []trace {
	return []trace{
		{"keep-alive", 20, requests(page)},
		{"short connections", 6, requests("-H", "Connection: close", page)},
		{"resets (nginx 444)", 6, requests(drop)},
		{"bulk", 0, func(_ context.Context, v *servers, _ float64) error { return v.bulk(4, bulkBytes/4) }},
		{"mixed", 20, mixed},
		{"mixed, 1 % loss", 20, lossy},
	}
}

// mixed is bulk data beside kept and short connections.
func mixed(ctx context.Context, v *servers, seconds float64) error {
	var group sync.WaitGroup
	jobs := []func() error{
		func() error { return v.bulk(4, bulkBytes/4) },
		func() error { return requests(page)(ctx, v, seconds) },
		func() error { return requests("-c5", "-H", "Connection: close", page)(ctx, v, seconds) },
	}
	errs := make([]error, len(jobs))
	for i, job := range jobs {
		group.Go(func() { errs[i] = job() })
	}
	group.Wait()
	return errors.Join(errs...)
}

// lossy drops every hundredth packet on arrival, at random, at both ends.
func lossy(ctx context.Context, v *servers, seconds float64) error {
	for _, n := range []*namespace{v.client, v.server} {
		rules := "add table ip bench; add chain ip bench in { type filter hook prerouting priority -300; }; " +
			"add rule ip bench in iifname " + device + " numgen random mod 100 == 0 drop"
		if err := command("ip", "netns", "exec", n.name, "nft", rules); err != nil {
			return err
		}
	}
	return mixed(ctx, v, seconds)
}
