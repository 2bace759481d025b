package recorder_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"tcpcoroner/evidence"
	"tcpcoroner/internal/netlab"
	"tcpcoroner/recorder"
	"tcpcoroner/recorder/afpacket"
)

// pair is a connection of the laboratory.
type pair struct{ client, server *net.TCPConn }

// connect opens a connection to a listener on the server.
func connect(t *testing.T, lab *netlab.Lab, l net.Listener) pair {
	t.Helper()
	c := lab.Client.Dial(t, l.Addr().String())
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return pair{c, s.(*net.TCPConn)}
}

// send writes n bytes at one end and reads them at the other.
func send(t *testing.T, from, to *net.TCPConn, n int) {
	t.Helper()
	if _, err := from.Write(make([]byte, n)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(to, make([]byte, n)); err != nil {
		t.Fatal(err)
	}
}

// ended waits until an end knows that the connection is reset.
func ended(t *testing.T, c *net.TCPConn) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.Copy(io.Discard, c); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the connection is not reset: %v", err)
	}
}

var kernelHarm = []struct {
	kind evidence.HarmKind
	do   func(t *testing.T, p pair)
}{
	{evidence.HarmHealthCheck, func(t *testing.T, p pair) { netlab.Reset(p.client) }},
	{evidence.HarmAbortAfterResponse, func(t *testing.T, p pair) {
		send(t, p.client, p.server, 200)
		send(t, p.server, p.client, 3000)
		netlab.Reset(p.client)
	}},
	{evidence.HarmUnanswered, func(t *testing.T, p pair) {
		send(t, p.client, p.server, 200)
		netlab.Reset(p.server)
		ended(t, p.client)
	}},
	{evidence.HarmUnanswered, func(t *testing.T, p pair) { // closed with the request unread
		if _, err := p.client.Write(make([]byte, 200)); err != nil {
			t.Fatal(err)
		}
		one := make([]byte, 1)
		if _, err := io.ReadFull(p.server, one); err != nil {
			t.Fatal(err)
		}
		p.server.Close()
		ended(t, p.client)
	}},
	{evidence.HarmMidstream, func(t *testing.T, p pair) {
		send(t, p.client, p.server, 200)
		send(t, p.server, p.client, 3000)
		send(t, p.client, p.server, 200)
		send(t, p.server, p.client, 10)
		// The answer is acknowledged by the next request or a little later.
		awaitAcked(t, p.server)
		netlab.Reset(p.server)
		ended(t, p.client)
	}},
	{evidence.HarmAbandoned, func(t *testing.T, p pair) { // closed before the answer
		send(t, p.client, p.server, 200)
		p.client.Close()
		if _, err := p.server.Read(make([]byte, 1)); err != io.EOF {
			t.Fatal(err)
		}
		if _, err := p.server.Write(make([]byte, 200)); err != nil {
			t.Fatal(err)
		}
	}},
	{evidence.HarmDataLost, func(t *testing.T, p pair) { // the server closed before the next request
		send(t, p.client, p.server, 200)
		send(t, p.server, p.client, 300)
		p.server.Close()
		if _, err := p.client.Read(make([]byte, 1)); err != io.EOF {
			t.Fatal(err)
		}
		if _, err := p.client.Write(make([]byte, 200)); err != nil {
			t.Fatal(err)
		}
		// An end that had the FIN reads on: the write tells, once the RST is in.
		for deadline := time.Now().Add(5 * time.Second); ; {
			if _, err := p.client.Write([]byte{1}); errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatal("the connection is not reset")
			}
		}
	}},
}

// awaitAcked waits until the peer has acknowledged all (SIOCOUTQ, tcp(7)).
func awaitAcked(t *testing.T, c *net.TCPConn) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); {
		left := -1
		if err := raw.Control(func(fd uintptr) {
			if n, err := unix.IoctlGetInt(int(fd), unix.SIOCOUTQ); err == nil {
				left = n
			}
		}); err != nil {
			t.Fatal(err)
		}
		if left == 0 {
			return
		}
	}
	t.Fatal("the peer acknowledges nothing")
}

// The kernel's own resets, seen on the host that serves, are what they are.
func TestHarmOfTheKernel(t *testing.T) {
	netlab.NeedRoot(t)
	for i, test := range kernelHarm {
		t.Run(fmt.Sprintf("%d %v", i, test.kind), func(t *testing.T) {
			lab := netlab.New(t)
			r := record(t, lab.Server)
			test.do(t, connect(t, lab, lab.Server.Listen(t, netlab.ServerIP4+":0")))
			sample := awaitResets(t, r, 1)
			var want evidence.HarmCounts
			want[test.kind] = 1
			sample.Kinds[evidence.HarmDuplicate] = 0 // each late segment may be answered
			if diff := cmp.Diff(want, sample.Kinds); diff != "" {
				t.Errorf("kinds (-want +got):\n%s", diff)
			}
		})
	}
}

// A port that served and serves no more refuses.
func TestHarmOfARefusal(t *testing.T) {
	netlab.NeedRoot(t)
	lab := netlab.New(t)
	r := record(t, lab.Client)
	l := lab.Server.Listen(t, "["+netlab.ServerIP6+"]:0")
	p := connect(t, lab, l)
	send(t, p.client, p.server, 10)
	send(t, p.server, p.client, 10)
	p.server.Close()
	l.Close()
	for range 2 {
		err := lab.Client.Do(func() error {
			c, err := net.DialTimeout("tcp", l.Addr().String(), 5*time.Second)
			if err == nil {
				c.Close()
			}
			return err
		})
		if !errors.Is(err, syscall.ECONNREFUSED) {
			t.Fatal(err)
		}
	}
	sample := awaitResets(t, r, 2)
	if sample.Kinds[evidence.HarmRefusedServing] != 2 || len(sample.Groups) != 1 || !sample.Groups[0].Outbound {
		t.Errorf("%+v", sample)
	}
}

// record records a namespace until the test ends.
func record(t *testing.T, ns *netlab.NS) *recorder.Recorder {
	t.Helper()
	r, err := recorder.New(recorder.Config{Memory: 16 << 20})
	if err != nil {
		t.Fatal(err)
	}
	var source *afpacket.Source
	if err := ns.Do(func() (err error) {
		source, err = afpacket.Open(afpacket.Config{RingBytes: 1 << 20})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := r.Run(ctx, source); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		stop()
		running.Wait()
		source.Close()
		r.Close()
	})
	return r
}

// awaitResets waits until so many resets, duplicates left out, are scored.
func awaitResets(t *testing.T, r *recorder.Recorder, n uint64) evidence.HarmSample {
	t.Helper()
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for deadline := time.Now().Add(5 * time.Second); ; <-look.C {
		s := r.Harm()
		sum := uint64(0)
		for k, n := range s.Kinds {
			if evidence.HarmKind(k) != evidence.HarmDuplicate {
				sum += n
			}
		}
		if sum >= n || time.Now().After(deadline) {
			return s
		}
	}
}
