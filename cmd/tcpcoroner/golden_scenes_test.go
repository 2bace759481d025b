package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"tcpcoroner/internal/netlab"
	"tcpcoroner/internal/scenes"
)

// These scenes are about why a connection was reset: shapes in time, and what many
// connections have in common. How resets are made is what internal/scenes is about.

var goldenScenes = []struct {
	name, hosts string
	play        func(*scenes.Stage) error
}{
	{"benign-after-answer", "server client", benignAfterAnswer},
	{"benign-after-fin", "server client", benignAfterFIN},
	{"benign-health-check", "server", healthChecks},
	{"benign-scan", "server router", scan},
	{"early-answer", "client server/packets", earlyAnswers},
	{"turned-away", "client", turnAway},
	{"tls-first-flight", "client", firstFlights},
	{"timer-of-server", "client server/packets", timersOfServer},
	{"slow-but-no-timer", "client", noTimer},
	{"stale-reuse", "client", staleReuses},
	{"client-gives-up", "server", clientGivesUp},
	{"half-close-then-abort", "client", halfCloses},
	{"rate-limit-reject", "server server/packets client router", rateLimitReject},
	{"rate-limit-drop", "server server/packets client", rateLimitDrop},
	{"redeployed", "server server/packets client", redeployed},
	{"crash", "server server/packets client router", crash},
	{"crash-nothing-unread", "server client", crashRead},
	{"purge", "server client", purge},
	{"tunnel", "server server/packets client router", tunnel},
	{"mtu-blackhole", "client router", mtuBlackhole},
	{"mtu-blackhole-upload", "server client", mtuUpload},
	{"stalled-upload", "server", stalledUpload},
	{"path-cut", "client", pathCut},
	{"no-local-port", "client", noLocalPort},
	{"ports-half-used", "client", portsHalfUsed},
	{"blind-reset", "client client/packets", blindResets},
	{"forged-from-afar", "client client/packets", forgedFromAfar},
	{"longer-route", "client", longerRoute},
	{"published-port", "client", publishedPort},
	{"snat-lost-goes-on", "server server/packets", goesOnUntranslated},
	{"timer-and-abort", "server/packets", timerAndAbort},
	{"conntrack-full", "router client", conntrackFull},
	{"conntrack-makes-room", "router router/packets", conntrackMakesRoom},
	{"plain-to-tls", "server", plainToTLS},
	{"tls-to-plain", "server", tlsToPlain},
}

// pair is a connection of a stage, both ends in this process.
type pair struct{ client, server *net.TCPConn }

// pairs opens n connections to one listener on the port, 0 for any.
func pairs(st *scenes.Stage, n, port int) (all []pair, err error) {
	l, err := serve(st, netip.AddrPortFrom(st.ServerIP(), uint16(port)))
	if err != nil {
		return nil, err
	}
	defer l.Close()
	for range n {
		p, err := join(st, l)
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	return all, nil
}

// serve listens on the server.
func serve(st *scenes.Stage, at netip.AddrPort) (l *net.TCPListener, err error) {
	err = st.Server.Do(func() (err error) { l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at)); return err })
	return l, err
}

// dial connects from the client.
func dial(st *scenes.Stage, to net.Addr) (c *net.TCPConn, err error) {
	err = st.Client.Do(func() (err error) { c, err = net.DialTCP("tcp", nil, to.(*net.TCPAddr)); return err })
	return c, err
}

// join makes a connection to a listener.
func join(st *scenes.Stage, l *net.TCPListener) (p pair, err error) {
	if p.client, err = dial(st, l.Addr()); err != nil {
		return p, err
	}
	p.server, err = l.AcceptTCP()
	return p, err
}

// each opens n connections one after the other and plays with each.
func each(st *scenes.Stage, n, port int, play func(pair) error) error {
	all, err := pairs(st, n, port)
	for _, p := range all {
		err = errors.Join(err, play(p), closed(p.client), closed(p.server))
	}
	return err
}

func closed(c net.Conn) error {
	if err := c.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// say writes n bytes on one end and reads them on the other.
func say(from, to net.Conn, n int) error {
	if _, err := from.Write(make([]byte, n)); err != nil {
		return err
	}
	_, err := io.ReadFull(to, make([]byte, n))
	return err
}

// gone waits until the connection is dead at this end.
func gone(c net.Conn) error {
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, c); err == nil || errors.Is(err, io.ErrClosedPipe) {
		return fmt.Errorf("a connection that was to be reset ended with %w", io.EOF)
	}
	return nil
}

func (p pair) exchange() error {
	return errors.Join(say(p.client, p.server, 100), say(p.server, p.client, 300))
}

func benignAfterAnswer(st *scenes.Stage) error {
	return each(st, 3, 0, func(p pair) error {
		return errors.Join(p.exchange(), netlab.Reset(p.client), gone(p.server))
	})
}

// benignAfterFIN: the server has closed, and the client, which has read everything,
// closes with SO_LINGER 0.
func benignAfterFIN(st *scenes.Stage) error {
	return each(st, 2, 0, func(p pair) error {
		err := errors.Join(p.exchange(), p.server.CloseWrite())
		_, read := io.Copy(io.Discard, p.client)
		return errors.Join(err, read, netlab.Reset(p.client), gone(p.server))
	})
}

func healthChecks(st *scenes.Stage) error {
	return each(st, 6, 0, func(p pair) error { return errors.Join(netlab.Reset(p.client), gone(p.server)) })
}

func scan(st *scenes.Stage) error {
	return st.Client.Do(func() error {
		for port := uint16(2001); port < 2013; port++ {
			c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(netip.AddrPortFrom(st.ServerIP(), port)))
			if err == nil {
				return errors.Join(fmt.Errorf("port %d took a connection", port), c.Close())
			}
		}
		return nil
	})
}

// earlyAnswers: the server answers in the middle of an upload and closes with the
// rest of it unread.
func earlyAnswers(st *scenes.Stage) error {
	return each(st, 2, 0, func(p pair) error {
		if _, err := p.client.Write(make([]byte, 64<<10)); err != nil {
			return err
		}
		if _, err := io.ReadFull(p.server, make([]byte, 1000)); err != nil {
			return err
		}
		_, err := p.server.Write(make([]byte, 200))
		return errors.Join(err, p.server.Close(), gone(p.client))
	})
}

// turnAway: the server drops the connection before a word was said.
func turnAway(st *scenes.Stage) error {
	return each(st, 2, 0, func(p pair) error { return errors.Join(netlab.Reset(p.server), gone(p.client)) })
}

// firstFlights: on the port of TLS, the server drops who said hello.
func firstFlights(st *scenes.Stage) error {
	return each(st, 2, 443, func(p pair) error {
		_, err := p.client.Write(make([]byte, 517))
		_, read := io.ReadFull(p.server, make([]byte, 5))
		<-time.After(20 * time.Millisecond)
		return errors.Join(err, read, p.server.Close(), gone(p.client))
	})
}

// timersOfServer: three requests wait for exactly a second, then the server aborts.
func timersOfServer(st *scenes.Stage) error {
	return waits(st, []time.Duration{time.Second, time.Second, time.Second}, func(p pair) error {
		return errors.Join(netlab.Reset(p.server), gone(p.client))
	})
}

// noTimer: the server aborts after times that have nothing in common.
func noTimer(st *scenes.Stage) error {
	return waits(st, []time.Duration{430 * time.Millisecond, 610 * time.Millisecond, 790 * time.Millisecond}, func(p pair) error {
		return errors.Join(netlab.Reset(p.server), gone(p.client))
	})
}

// clientGivesUp: the client closes with FIN after half a second without an answer,
// which then comes too late.
func clientGivesUp(st *scenes.Stage) error {
	half := 500 * time.Millisecond
	return waits(st, []time.Duration{half, half, half}, func(p pair) error {
		err := p.client.Close()
		_, read := io.Copy(io.Discard, p.server)
		_, write := p.server.Write(make([]byte, 300))
		return errors.Join(err, read, write)
	})
}

// waits opens a connection for each time, says a request on it, and ends it when
// the time since is over.
func waits(st *scenes.Stage, times []time.Duration, end func(pair) error) error {
	all, err := pairs(st, len(times), 0)
	if err != nil {
		return err
	}
	for i, p := range all {
		if err := say(p.client, p.server, 100); err != nil {
			return err
		}
		<-time.After(times[i])
		if err := end(p); err != nil {
			return err
		}
	}
	return nil
}

// staleReuses: the server closes an idle connection just when the next request
// comes.
func staleReuses(st *scenes.Stage) error {
	return each(st, 2, 0, func(p pair) error {
		if err := p.exchange(); err != nil {
			return err
		}
		<-time.After(600 * time.Millisecond)
		if _, err := p.client.Write(make([]byte, 100)); err != nil {
			return err
		}
		return errors.Join(readable(p.server), p.server.Close(), gone(p.client))
	})
}

// readable waits until there is something to read, and reads one byte of it.
func readable(c net.Conn) error {
	_, err := io.ReadFull(c, make([]byte, 1))
	return err
}

// halfCloses: the client ends its side, and the server aborts with the last of it
// unread: the client did not close the connection.
func halfCloses(st *scenes.Stage) error {
	return each(st, 2, 0, func(p pair) error {
		_, err := p.client.Write(make([]byte, 2000))
		return errors.Join(err, p.client.CloseWrite(), readable(p.server), p.server.Close(), gone(p.client))
	})
}
