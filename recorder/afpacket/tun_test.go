package afpacket

import (
	"context"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tcpcoroner/evidence"
	"tcpcoroner/internal/netlab"
	"tcpcoroner/recorder"
)

// tun makes a device without link layer in the namespace, and returns what writes
// packets to it as if they came in.
func tun(t *testing.T, ns *netlab.NS) (write func(packet []byte)) {
	t.Helper()
	fd := -1
	ns.Run(t, func() {
		var err error
		if fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
			t.Fatalf("open /dev/net/tun: %v", err)
		}
		r, _ := unix.NewIfreq("tun0")
		r.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		if err = unix.IoctlIfreq(fd, unix.TUNSETIFF, r); err != nil {
			t.Fatalf("make tun device: %v", err)
		}
	})
	t.Cleanup(func() { unix.Close(fd) })
	ns.IP(t, "link", "set", "tun0", "up")
	return func(packet []byte) {
		if _, err := unix.Write(fd, packet); err != nil {
			t.Fatalf("write to tun0: %v", err)
		}
	}
}

// metas passes on what is known of each packet.
type metas struct {
	nothing
	all chan seen
}

func (c *metas) Add(m *recorder.Meta, header []byte) { c.all <- seen{*m, string(header)} }

func (c *metas) next(t *testing.T) seen {
	t.Helper()
	select {
	case s := <-c.all:
		return s
	case <-time.After(patience):
		t.Fatal("the packet did not come")
		panic("unreachable")
	}
}

// On a device without link layer the packets are the same, with and without a
// tunnel in it, and the direction is not known.
func TestDeviceWithoutLinkLayer(t *testing.T) {
	ns := netlab.NewNS(t)
	s, c := open(t, ns, Config{RingBytes: 1 << 20}), &metas{all: make(chan seen, 100)}
	start(t, func(ctx context.Context) error { return s.Run(ctx, c) })
	write := tun(t, ns)
	inner := v4(6, 0, 0, tcpAt(2, caseNumber, 0))
	for _, packet := range [][]byte{inner, v6(6, tcpAt(2, caseNumber, 0)), v4(41, 0, 0, v6(6, tcpAt(2, caseNumber, 0))),
		v4(47, 0, 0, append(greBytes(0x2000, ethIP4), inner...))} {
		write(packet)
		got := c.next(t)
		if got.Header != string(packet) || got.Meta.Path.LinkType != unix.ARPHRD_NONE ||
			got.Meta.Path.Direction != evidence.DirectionUnknown || got.Meta.Path.SrcMAC != [6]byte{} {
			t.Errorf("got %x with %+v, want %x", got.Header, got.Meta, packet)
		}
		if s := segment(&evidence.Packet{Header: []byte(got.Header)}); s.Seq != caseNumber || !s.Flags.Has(evidence.SYN) {
			t.Errorf("parsed as %+v", s)
		}
	}
}
