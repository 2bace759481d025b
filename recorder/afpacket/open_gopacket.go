//go:build cgo

package afpacket

import (
	"errors"
	"fmt"
	"reflect"
	"time"

	"github.com/google/gopacket/afpacket"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// opened makes socket, ring and filter with gopacket.
func opened(g geometry, filter []bpf.RawInstruction) (*socket, error) {
	tp, err := afpacket.NewTPacket(
		afpacket.OptInterface(""), // all interfaces
		afpacket.OptSocketType(afpacket.SocketDgram),
		afpacket.OptTPacketVersion(afpacket.TPacketVersion3),
		afpacket.OptBlockSize(g.blockBytes),
		afpacket.OptNumBlocks(g.blocks),
		afpacket.OptBlockTimeout(retire))
	if err != nil {
		return nil, err
	}
	s, err := adopt(tp, g)
	if err == nil {
		err = s.filterBound(filter)
	}
	if err != nil {
		tp.Close()
		return nil, err
	}
	return s, nil
}

// filterBound gives a filter to a socket that is bound already, as gopacket's is:
// what came in until then is unfiltered and must not be used. The time stamp alone
// does not tell it: a packet may meet no filter and be stamped later (tpacket_rcv
// in net/packet/af_packet.c). So the socket is first bound to a protocol that
// nobody speaks, which waits for the packets under way (packet_do_bind).
func (s *socket) filterBound(filter []bpf.RawInstruction) error {
	if err := bind(s.fd, unix.ETH_P_802_EX1); err != nil {
		return err
	}
	s.since = time.Now().UnixNano()
	if err := attach(s.fd, filter); err != nil {
		return err
	}
	return bind(s.fd, unix.ETH_P_ALL)
}

// adopt reads gopacket's socket and ring, which it does not show. The owner is
// kept, for its finalizer would close them.
func adopt(tp *afpacket.TPacket, g geometry) (*socket, error) {
	v := reflect.ValueOf(tp).Elem()
	fd, ring := v.FieldByName("fd"), v.FieldByName("ring")
	if !fd.IsValid() || fd.Kind() != reflect.Int {
		return nil, errors.New("gopacket's TPacket has no field fd of type int: use gopacket v1.1.19")
	}
	if !ring.IsValid() || ring.Type() != reflect.TypeFor[[]byte]() || ring.Len() != g.bytes() {
		return nil, fmt.Errorf("gopacket's TPacket has no field ring of %d bytes: use gopacket v1.1.19", g.bytes())
	}
	s := &socket{fd: int(fd.Int()), ring: ring.Bytes(), close: tp.Close}
	version, err := unix.GetsockoptInt(s.fd, unix.SOL_PACKET, unix.PACKET_VERSION)
	if err != nil || version != unix.TPACKET_V3 {
		return nil, fmt.Errorf("packet socket has version %d (%v), want TPACKET_V3: needs Linux 3.2", version, err)
	}
	return s, nil
}
