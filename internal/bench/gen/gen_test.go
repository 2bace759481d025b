package gen

import (
	"encoding/binary"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tcpcoroner/internal/netlab"
)

func TestDue(t *testing.T) {
	for _, tt := range []struct {
		rate        float64
		elapsed     time.Duration
		done, total int
		want        int
	}{
		{0, 0, 0, 100, 100},
		{0, 0, 40, 100, 60},
		{0, 0, 0, 10 * most, most},
		{1000, 10 * time.Millisecond, 0, 100, 10},
		{1000, 10 * time.Millisecond, 10, 100, 0},
		{1000, time.Hour, 90, 100, 10},
	} {
		if got := due(tt.rate, tt.elapsed, tt.done, tt.total); got != tt.want {
			t.Errorf("due(%v, %v, %d, %d) = %d, want %d", tt.rate, tt.elapsed, tt.done, tt.total, got, tt.want)
		}
	}
}

func TestOpenRefusesFlows(t *testing.T) {
	for _, flows := range []int{0, 3, 2 * MaxFlows} {
		if _, err := Open(Config{Flows: flows}); err == nil {
			t.Errorf("Open takes %d flows", flows)
		}
	}
}

// tap counts what a packet socket sees, in the caller's namespace.
type tap struct {
	fd              int
	packets, resets int
	wrong           int
	sources         map[[4]byte]bool
	next            map[[4]byte]uint32
	jumps           int
}

func newTap(t *testing.T, ifindex int) *tap {
	t.Helper()
	ip := binary.NativeEndian.Uint16([]byte{0x08, 0x00})
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, int(ip))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 256<<20); err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: ip, Ifindex: ifindex}); err != nil {
		t.Fatal(err)
	}
	return &tap{fd: fd, sources: map[[4]byte]bool{}, next: map[[4]byte]uint32{}}
}

// drain reads all that has come: a live frame is in the socket's queue before
// the call that sends it returns.
func (r *tap) drain(t *testing.T) {
	t.Helper()
	b := make([]byte, 2048)
	for {
		n, _, err := unix.Recvfrom(r.fd, b, unix.MSG_DONTWAIT)
		if err == unix.EAGAIN {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		r.see(b[:n])
	}
}

func (r *tap) see(b []byte) {
	r.packets++
	ip := b[14 : 14+binary.BigEndian.Uint16(b[offLength:])]
	pseudo := append([]byte{0, 6, 0, byte(len(ip) - 20)}, ip[12:]...)
	if fold(ip[:20]) != 0xffff || fold(pseudo) != 0xffff || len(ip)+14 != len(b) {
		r.wrong++
	}
	src := [4]byte(ip[12:16])
	r.sources[src] = true
	flags, seq := b[offFlags], binary.BigEndian.Uint32(b[offSeq:])
	if flags&0x04 != 0 {
		r.resets++
	}
	if src[1] == 1 { // a client has one flow
		if want, known := r.next[src]; known && want != seq {
			r.jumps++
		}
		r.next[src] = seq + PayloadBytes
	}
}

func fold(b []byte) int32 {
	sum := sum16(b)
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return sum
}

// inLab runs f in a namespace with a veth, on a thread of its own.
func inLab(t *testing.T, f func(ifindex int)) {
	t.Helper()
	lab := netlab.New(t)
	lab.Server.Run(t, func() {
		dev, err := net.InterfaceByName(netlab.Device)
		if err != nil {
			t.Fatal(err)
		}
		f(dev.Index)
	})
}

func TestCountsAreExact(t *testing.T) {
	for _, tt := range []struct {
		name    string
		config  Config
		sources int
	}{
		{"flows", Config{Flows: 64}, 65},
		{"one flow", Config{Flows: 1}, 2},
		{"flood", Config{Flows: 1, Flood: true}, 40_000},
		{"scan", Config{Flows: 1, Scan: true}, 40_000},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inLab(t, func(ifindex int) {
				tt.config.Interface = ifindex
				g, err := Open(tt.config)
				if err != nil {
					t.Fatal(err)
				}
				defer g.Close()
				tap := newTap(t, ifindex)
				if err := g.Burst(10_000); err != nil {
					t.Fatal(err)
				}
				if err := g.Pace(t.Context(), 0, 30_000); err != nil {
					t.Fatal(err)
				}
				tap.drain(t)
				check(t, g.Sent(), tap, tt.sources)
			})
		})
	}
}

func check(t *testing.T, sent Count, tap *tap, sources int) {
	t.Helper()
	if sent.Packets != 40_000 || tap.packets != 40_000 {
		t.Errorf("sent %d, saw %d, want 40000", sent.Packets, tap.packets)
	}
	if sent.Resets != uint64(tap.resets) {
		t.Errorf("sent %d RST, saw %d", sent.Resets, tap.resets)
	}
	if len(tap.sources) != sources {
		t.Errorf("%d source addresses, want %d", len(tap.sources), sources)
	}
	if tap.wrong != 0 || tap.jumps != 0 {
		t.Errorf("%d packets with a wrong length or checksum, %d sequence numbers that jump", tap.wrong, tap.jumps)
	}
}
