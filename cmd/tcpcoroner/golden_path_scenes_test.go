package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"tcpcoroner/internal/netlab"
	"tcpcoroner/internal/scenes"
)

// These scenes are about who answers in whose name: forgers near and far, hosts
// behind an address, translators that forget, tables that are full; and about ends
// that do not speak the same protocol.

func local(c net.Conn) netip.AddrPort  { return c.LocalAddr().(*net.TCPAddr).AddrPort() }
func remote(c net.Conn) netip.AddrPort { return c.RemoteAddr().(*net.TCPAddr).AddrPort() }

// blindResets: the router guesses at the sequence numbers of connections, in the
// window and outside of it. The client challenges or drops the RST, and all goes on.
func blindResets(st *scenes.Stage) error {
	miss := []uint32{5000, 1 << 30}
	return each(st, len(miss), 0, func(p pair) error {
		_, next, err := scenes.Sequence(p.client)
		if err := errors.Join(err, p.exchange()); err != nil {
			return err
		}
		err = st.Router.ForgeReset(remote(p.client), local(p.client), next+miss[0], 0, 255)
		miss = miss[1:]
		<-time.After(50 * time.Millisecond)
		return errors.Join(err, p.exchange(), p.client.Close(), finished(p.server))
	})
}

// forgedFromAfar: a host two hops behind the router resets connections between
// others. What it sends has come further than what the server sends.
func forgedFromAfar(st *scenes.Stage) error {
	hop, err := st.AddHost(st.Router, "hop", 3)
	if err != nil {
		return err
	}
	far, err := st.AddHost(hop, "far", 4)
	if err := errors.Join(err, anySource(st.Router, "hop"), anySource(hop, "far")); err != nil {
		return err
	}
	return each(st, 2, 0, func(p pair) error {
		err := p.exchange()
		sent, next, serr := scenes.Sequence(p.client)
		return errors.Join(err, serr, far.ForgeReset(remote(p.client), local(p.client), next, sent, 64), gone(p.client))
	})
}

// anySource has a host take packets from a device whoever they say to be of.
func anySource(h *scenes.Host, device string) error {
	return errors.Join(h.Sysctl("net.ipv4.conf.all.rp_filter", "0"), h.Sysctl("net.ipv4.conf."+device+".rp_filter", "0"))
}

// longerRoute: the way back from the server has become a hop longer when it aborts
// its connections.
func longerRoute(st *scenes.Stage) error {
	all, err := pairs(st, 2, 0)
	for _, p := range all {
		err = errors.Join(err, p.exchange())
	}
	const rules = "table inet route { chain c { type filter hook postrouting priority 0; ip saddr %v ip ttl set 62; }; }"
	err = errors.Join(err, on(st.Router, fmt.Sprintf(rules, st.ServerIP()), "nft", "-f", "-"))
	for _, p := range all {
		err = errors.Join(err, netlab.Reset(p.server), gone(p.client), p.client.Close())
	}
	return err
}

// publishedPort: the server answers on one port itself and passes another on to a
// host behind it, as hosts of containers do; nobody listens there.
func publishedPort(st *scenes.Stage) error {
	_, err := st.AddHost(st.Server, "box", 3)
	const rules = "table inet publish { chain c { type nat hook prerouting priority -100; tcp dport 8080 dnat ip to 10.98.3.2; }; }"
	if err := errors.Join(err, on(st.Server, rules, "nft", "-f", "-")); err != nil {
		return err
	}
	if err := each(st, 1, 0, pair.exchange); err != nil {
		return err
	}
	return refusedAt(st, net.TCPAddrFromAddrPort(netip.AddrPortFrom(st.ServerIP(), 8080)))
}

// goesOnUntranslated: the router forgets a source translation in the middle of a
// connection, and with the rule for it. Its kernel resets the server, and what the
// client sends next arrives under its own address.
func goesOnUntranslated(st *scenes.Stage) error {
	const rules = "table ip hiding { chain c { type nat hook postrouting priority 100; oifname server masquerade; }; }"
	if err := on(st.Router, rules, "nft", "-f", "-"); err != nil {
		return err
	}
	all, err := pairs(st, 2, 0)
	for _, p := range all {
		err = errors.Join(err, p.exchange())
	}
	err = errors.Join(err, on(st.Router, "", "nft", "delete", "table", "ip", "hiding"), on(st.Router, "", "conntrack", "-F"))
	for _, p := range all {
		_, werr := p.server.Write(make([]byte, 100))
		err = errors.Join(err, werr, gone(p.server))
		_, werr = p.client.Write(make([]byte, 100))
		err = errors.Join(err, werr, gone(p.client), p.server.Close(), p.client.Close())
	}
	return err
}

// timerAndAbort: a timer of the server's kernel ends one connection, and its process
// another. The counters do not tell which was which.
func timerAndAbort(st *scenes.Stage) error {
	all, err := pairs(st, 2, 0)
	for _, p := range all {
		err = errors.Join(err, p.exchange())
	}
	if err != nil {
		return err
	}
	stuck, other := all[0], all[1]
	raw, err := stuck.server.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = raw.Control(func(fd uintptr) { serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 1) })
	err = errors.Join(err, serr, netlab.Reset(other.server), gone(other.client), other.client.Close(),
		st.Router.Sysctl("net.ipv4.ip_forward", "0"))
	_, werr := stuck.server.Write(make([]byte, 100))
	return errors.Join(err, werr, gone(stuck.server), stuck.server.Close(), stuck.client.Close())
}

// conntrackFull: the router tracks connections, and its table is full of those that
// do not make room. Nobody gets through.
func conntrackFull(st *scenes.Stage) error {
	return errors.Join(fillTracking(st.Router, true), unheard(st))
}

// conntrackMakesRoom: the table is full of those that make room for others; what does
// not get through is dropped by a rule.
func conntrackMakesRoom(st *scenes.Stage) error {
	const rules = "table inet closed { chain c { type filter hook forward priority 0; ip daddr %v drop; }; }"
	return errors.Join(fillTracking(st.Router, false), on(st.Router, fmt.Sprintf(rules, st.ServerIP()), "nft", "-f", "-"), unheard(st))
}

// unheard wants three clients to get no answer from a server that listens.
func unheard(st *scenes.Stage) error {
	l, err := serve(st, netip.AddrPortFrom(st.ServerIP(), 0))
	if err != nil {
		return err
	}
	defer l.Close()
	ends := make(chan error)
	for range 3 {
		go func() {
			ends <- st.Client.Do(func() error {
				c, err := net.DialTimeout("tcp", l.Addr().String(), 1500*time.Millisecond)
				if !os.IsTimeout(err) {
					return fmt.Errorf("the router let %v through (%w)", c, err)
				}
				return nil
			})
		}()
	}
	return errors.Join(<-ends, <-ends, <-ends)
}

// fillTracking has a host track connections and fills its table.
func fillTracking(h *scenes.Host, assured bool) error {
	text, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_max")
	if err != nil {
		return err
	}
	limit, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return err
	}
	const rules = "table inet tracks { chain c { type filter hook prerouting priority 0; ct state established counter accept; }; }"
	if err := on(h, rules, "nft", "-f", "-"); err != nil {
		return err
	}
	tracker, err := netlab.OpenTracker(h.Do)
	if err != nil {
		return err
	}
	defer tracker.Close()
	all := talks(0, limit+100)
	for i := range all {
		all[i].Assured = assured
	}
	return tracker.Track(all...)
}

// plainToTLS: clients speak HTTP to a port of TLS, and nginx drops them (its own
// status 444).
func plainToTLS(st *scenes.Stage) error {
	dir, err := os.MkdirTemp("", "golden-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	text, err := newCertificate()
	cert := filepath.Join(dir, "cert.pem")
	if err := errors.Join(err, os.WriteFile(cert, []byte(text), 0o600)); err != nil {
		return err
	}
	return atNginx(st, fmt.Sprintf(`ssl; ssl_certificate %s; ssl_certificate_key %s;
		error_page 497 =444 @drop; location @drop { return 444; }`, cert, cert), func(c net.Conn) error {
		_, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: shop\r\n\r\n")
		return errors.Join(err, gone(c), c.Close())
	})
}

// tlsToPlain: clients say TLS's hello to a port of HTTP. nginx answers 400 and closes,
// and the client drops what does not begin as TLS does.
func tlsToPlain(st *scenes.Stage) error {
	return atNginx(st, ";", func(c net.Conn) error {
		err := tls.Client(&byRecord{Conn: c}, &tls.Config{ServerName: "shop"}).HandshakeContext(context.Background())
		if !errors.As(err, new(tls.RecordHeaderError)) {
			return fmt.Errorf("TLS with a port of HTTP: %w", err)
		}
		return c.Close()
	})
}

// byRecord reads no more than the head of a record of TLS.
type byRecord struct{ net.Conn }

func (r *byRecord) Read(b []byte) (int, error) { return r.Conn.Read(b[:min(len(b), 5)]) }

// atNginx plays with two connections to an nginx on the server, one after the other.
// nginx ends with the stage, for its log is read later.
func atNginx(st *scenes.Stage, listen string, play func(net.Conn) error) error {
	at := net.TCPAddrFromAddrPort(netip.AddrPortFrom(st.ServerIP(), 8443))
	config := fmt.Sprintf(`daemon off; master_process off; pid pid; error_log error.log info;
events {}
http { access_log off; reset_timedout_connection on; server { listen %v %s } }
`, at, listen)
	if err := st.Program(context.Background(), st.Server, "nginx", config, "-p", ".", "-e", "error.log", "-c", "config"); err != nil {
		return err
	}
	err := listens(st.Server, at.String())
	for range 2 {
		if err != nil {
			return err
		}
		var c net.Conn
		if c, err = dial(st, at); err == nil {
			err = play(c)
		}
	}
	return err
}

// listens waits until a program listens, without knocking.
func listens(h *scenes.Host, at string) error {
	return h.Do(func() error {
		for end := time.Now().Add(10 * time.Second); time.Now().Before(end); <-time.After(10 * time.Millisecond) {
			if out, err := exec.Command("ss", "-Hltn", "src", at).Output(); err != nil || len(out) > 0 {
				return err
			}
		}
		return fmt.Errorf("nothing listens on %s", at)
	})
}
