package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// How long things take on these hosts. What an end that has closed still knows of
// its connection is forgotten after finTimeout (tcp(7), tcp_fin_timeout): later is
// late.
const (
	finTimeout = 10 * time.Second
	late       = finTimeout + 2*time.Second
	unused     = time.Second
	trimmed    = 6 * time.Second
	// idleFor is longer than what makes a service an idle one (restarts.recent).
	idleFor  = 150 * time.Second
	comeBack = 5 * time.Second
)

// habit is something harmless that hosts and people do again and again.
type habit struct {
	what  string
	every time.Duration
	act   func(context.Context) error
	done  atomic.Int64
}

// habits are those of the client's host, but for the last, which is of the server's.
func (h *benignHosts) habits() (client, server []*habit) {
	client = []*habit{
		{what: "load generator: three answers, then SO_LINGER 0", every: 200 * time.Millisecond, act: h.between(generate)},
		{what: "prefetch that nobody reads", every: 300 * time.Millisecond, act: h.between(prefetch)},
		{what: "connection opened in advance and not used", every: 300 * time.Millisecond, act: h.later(unused, preconnect)},
		{what: "scan: 50 closed ports in a row, and an open one", every: 10 * time.Second, act: h.fastScan()},
		{what: "scan: a closed port now and then", every: 3 * time.Second, act: h.slowScan()},
		{what: "request through a proxy (option httpclose)", every: 250 * time.Millisecond, act: h.between(through("8081", "page"))},
		{what: "request through a proxy (option http-server-close)", every: 250 * time.Millisecond, act: h.between(through("8082", "page", "image"))},
		{what: "request through a proxy (pooled connections)", every: 250 * time.Millisecond, act: h.between(through("8083", "page", "image"))},
		{what: "pooled connection given up when idle, SO_LINGER 0", every: 300 * time.Millisecond, act: h.later(trimmed, pooled)},
		{what: "keep-alive that the server ends, closed late", every: 300 * time.Millisecond, act: h.later(0, closesAfter(late, "81"))},
		{what: "TLS: the server says farewell first", every: 300 * time.Millisecond, act: farewell},
		{what: "request on kept connections, over reloads", every: 50 * time.Millisecond, act: h.between(keptAlive(4))},
		{what: "reload of the web server", every: 20 * time.Second, act: h.reload},
		{what: "deployment of a service with 60 idle connections", every: idleFor, act: h.deploy(60)},
	}
	if h.surfer != nil {
		client = append(client, &habit{what: "Chromium: a page or download left in the middle, or the browser closed", every: leaveEvery, act: h.surfer.leave})
	}
	return client, []*habit{
		{what: "localhost: refused over IPv6, served over IPv4", every: 500 * time.Millisecond, act: localhost},
	}
}

// live does what is due until the context ends, in the calling thread.
func (x *habit) live(ctx context.Context, h *benignHosts) {
	tick := time.NewTicker(x.every)
	defer tick.Stop()
	for ctx.Err() == nil {
		err := x.act(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			if h.errors.Add(1) <= 20 {
				h.b.say("%s: %v", x.what, err)
			}
		default:
			x.done.Add(1)
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

// lead has both hosts live until the context ends.
func (h *benignHosts) lead(ctx context.Context, client, server []*habit) error {
	var group sync.WaitGroup
	errs := make(chan error, len(client)+len(server))
	for n, list := range map[*namespace][]*habit{h.client: client, h.server: server} {
		for _, x := range list {
			group.Go(func() { errs <- n.on(anyCPU, func() error { x.live(ctx, h); return nil }) })
		}
	}
	group.Wait()
	close(errs)
	var all []error
	for err := range errs {
		all = append(all, err)
	}
	return errors.Join(all...)
}

// between has an act done while the web server does not reload: a request that meets
// the end of its connection is not answered, and that is harm.
func (h *benignHosts) between(act func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		h.reloading.RLock()
		defer h.reloading.RUnlock()
		return act(ctx)
	}
}

// settled is more than a worker that is about to end needs to close what is idle.
const settled = 100 * time.Millisecond

// reload returns when the old worker has closed its idle connections.
func (h *benignHosts) reload(ctx context.Context) error {
	h.reloading.Lock()
	defer h.reloading.Unlock()
	v, err := visitAt("", net.JoinHostPort(serverIP, "80"))
	if err != nil {
		return err
	}
	defer v.Close()
	if err := errors.Join(v.get("page"), v.SetReadDeadline(time.Now().Add(patience)), h.web.cmd.Process.Signal(unix.SIGHUP)); err != nil {
		return err
	}
	if _, err := v.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		return fmt.Errorf("wait for the reloaded web server: %w", err)
	}
	sleep(ctx, settled)
	return nil
}

func generate(context.Context) error {
	v, err := visitAt("", net.JoinHostPort(serverIP, "80"))
	if err != nil {
		return err
	}
	for _, path := range []string{"page", "page", "image"} {
		if err := v.get(path); err != nil {
			return errors.Join(err, v.Close())
		}
	}
	return v.reset()
}

// prefetch closes with an answer that has arrived and was not read: the kernel
// resets (RFC 1122, 4.2.2.13).
func prefetch(ctx context.Context) error {
	v, err := visitAt("", net.JoinHostPort(serverIP, "80"))
	if err != nil {
		return err
	}
	err = v.ask("image")
	if err == nil {
		err = v.arrived(ctx, siteFiles["image"])
	}
	return errors.Join(err, v.Close())
}

// later has the second half of an act, which it returns, done after a while and
// elsewhere.
func (h *benignHosts) later(d time.Duration, begin func() (end func(context.Context) error, err error)) func(context.Context) error {
	return func(ctx context.Context) error {
		end, err := begin()
		if err != nil {
			return err
		}
		go func() {
			sleep(ctx, d)
			if err := end(ctx); err != nil && ctx.Err() == nil {
				h.errors.Add(1)
			}
		}()
		return nil
	}
}

func preconnect() (func(context.Context) error, error) {
	v, err := visitAt("", net.JoinHostPort(serverIP, "80"))
	if err != nil {
		return nil, err
	}
	return func(context.Context) error { return v.reset() }, nil
}

func pooled() (func(context.Context) error, error) {
	v, err := visitAt("", net.JoinHostPort(serverIP, "80"))
	if err != nil {
		return nil, err
	}
	if err := v.get("page"); err != nil {
		return nil, errors.Join(err, v.Close())
	}
	return func(context.Context) error { return v.reset() }, nil
}

// The closed ports that scans find.
const (
	firstClosed = 20_000
	closedPorts = 10_000
)

// closed connects to the nth closed port.
func closed(from string, n int) error {
	v, err := visitAt(from, (&net.TCPAddr{IP: net.ParseIP(serverIP), Port: firstClosed + n%closedPorts}).String())
	if errors.Is(err, syscall.ECONNREFUSED) {
		return nil
	}
	if err == nil {
		err = errors.Join(errors.New("a port that should be closed is open"), v.Close())
	}
	return err
}

func (h *benignHosts) fastScan() func(context.Context) error {
	n := 0
	return func(context.Context) error {
		for range 50 {
			if err := closed(fastScanner, n); err != nil {
				return err
			}
			n++
		}
		v, err := visitAt(fastScanner, net.JoinHostPort(serverIP, "80"))
		if err != nil {
			return err
		}
		return v.reset()
	}
}

func (h *benignHosts) slowScan() func(context.Context) error {
	n := 0
	return func(context.Context) error {
		n++
		return closed(slowScanner, -n&(closedPorts/2-1)+closedPorts/2)
	}
}

func through(port string, paths ...string) func(context.Context) error {
	return func(context.Context) error {
		v, err := visitAt("", net.JoinHostPort(serverIP, port))
		if err != nil {
			return err
		}
		for _, path := range paths {
			err = errors.Join(err, v.get(path))
		}
		return errors.Join(err, v.Close())
	}
}

// closesAfter gets one answer, waits for the server to close, and closes so much later.
func closesAfter(d time.Duration, port string) func() (func(context.Context) error, error) {
	return func() (func(context.Context) error, error) {
		v, err := visitAt("", net.JoinHostPort(serverIP, port))
		if err != nil {
			return nil, err
		}
		if err := v.get("page"); err != nil {
			return nil, errors.Join(err, v.Close())
		}
		return func(ctx context.Context) error {
			stop := context.AfterFunc(ctx, func() { _ = v.SetReadDeadline(time.Now()) })
			defer stop()
			_, err := v.Read(make([]byte, 1))
			if errors.Is(err, io.EOF) {
				err = nil
				sleep(ctx, d)
			}
			return errors.Join(err, v.Close())
		}, nil
	}
}

func farewell(context.Context) error {
	v, err := visitAt("", net.JoinHostPort(serverIP, farewellPort))
	if err != nil {
		return err
	}
	c := tls.Client(v, &tls.Config{InsecureSkipVerify: true}) // of a certificate that we made
	_, err = io.WriteString(c, "GET / HTTP/1.1\r\nHost: bench\r\n\r\n")
	if err == nil {
		_, err = io.Copy(io.Discard, c)
	}
	return errors.Join(err, c.Close())
}

// keptAlive asks on one of n connections in turn, and connects anew where the server has
// ended one.
func keptAlive(n int) func(context.Context) error {
	all, next := make([]*visitor, n), 0
	return func(ctx context.Context) (err error) {
		v := &all[next]
		next = (next + 1) % n
		if *v != nil && (*v).ended() {
			err = (*v).Close()
			*v = nil
		}
		if err == nil && *v == nil {
			*v, err = visitAt("", net.JoinHostPort(serverIP, "80"))
		}
		if err != nil {
			return err
		}
		if err := (*v).get("page"); err != nil {
			err = errors.Join(err, (*v).Close())
			*v = nil
			return err
		}
		return nil
	}
}

// idlePort is that of the service that is deployed again and again.
const idlePort = "82"

// deploy replaces a service to which some idle connections lead. Half of the clients
// see its end at once, the others when the host has forgotten it; new ones come later.
func (h *benignHosts) deploy(connections int) func(context.Context) error {
	var service *child
	kinds := []func(context.Context) error{h.later(0, closesAfter(0, idlePort)), h.later(0, closesAfter(late, idlePort))}
	return func(ctx context.Context) (err error) {
		if service != nil {
			if err := service.stop(); err != nil {
				return err
			}
		}
		if service, err = h.idleService(); err != nil {
			return err
		}
		sleep(ctx, comeBack)
		for i := range connections {
			if err := kinds[i%len(kinds)](ctx); err != nil {
				return err
			}
		}
		return nil
	}
}

// serveVerb is what this program is called with to be a service.
const serveVerb = "serve"

// serve answers requests until it is killed.
func serve(address string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	fmt.Println("serving")
	return http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }))
}

func (h *benignHosts) idleService() (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	c, err := h.b.start(h.server, anyCPU, self, serveVerb, net.JoinHostPort(serverIP, idlePort))
	if err != nil {
		return nil, err
	}
	return c, c.says(context.Background(), "serving")
}

// localhost is a name with two addresses (RFC 6761, 6.3), of which the service
// listens on one.
func localhost(context.Context) error {
	if v, err := visitAt("", "[::1]:80"); !errors.Is(err, syscall.ECONNREFUSED) {
		if err == nil {
			err = v.Close()
		}
		return errors.Join(errors.New("nobody should listen on ::1"), err)
	}
	v, err := visitAt("", "127.0.0.1:80")
	if err != nil {
		return err
	}
	return errors.Join(v.get("page"), v.Close())
}
