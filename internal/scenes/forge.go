package scenes

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// TCP flags as in the header's 14th byte (RFC 9293 section 3.1).
const (
	flagSYN = 0x02
	flagRST = 0x04
	flagACK = 0x10
)

// forgedTTL tells forged segments from those of the hosts' own stacks.
const forgedTTL = 200

// segment is a TCP segment that no TCP made: no options, window 0, zero bytes of
// payload.
type segment struct {
	src, dst netip.AddrPort
	seq, ack uint32
	flags    uint8
	payload  int
	// ttl is forgedTTL if 0.
	ttl uint8
}

// ForgeReset sends a RST from the host that says to be of src. Its TTL counts down
// from ttl.
func (h *Host) ForgeReset(src, dst netip.AddrPort, seq, ack uint32, ttl uint8) error {
	return h.inject(segment{src: src, dst: dst, seq: seq, ack: ack, flags: flagRST | flagACK, ttl: ttl})
}

// marshal writes the IP packet.
func (s segment) marshal() []byte {
	const header = 20
	tcp := make([]byte, header+s.payload)
	binary.BigEndian.PutUint16(tcp[0:], s.src.Port())
	binary.BigEndian.PutUint16(tcp[2:], s.dst.Port())
	binary.BigEndian.PutUint32(tcp[4:], s.seq)
	binary.BigEndian.PutUint32(tcp[8:], s.ack)
	tcp[12], tcp[13] = header/4<<4, s.flags
	src, dst := s.src.Addr().AsSlice(), s.dst.Addr().AsSlice()
	// The pseudo header (RFC 9293 section 3.1, RFC 8200 section 8.1) sums up
	// alike for both families.
	pseudo := append(append([]byte{}, src...), dst...)
	pseudo = append(pseudo, 0, unix.IPPROTO_TCP, byte(len(tcp)>>8), byte(len(tcp)))
	binary.BigEndian.PutUint16(tcp[16:], checksum(pseudo, tcp))
	return append(ipHeader(src, dst, len(tcp), cmp.Or(s.ttl, forgedTTL)), tcp...)
}

func ipHeader(src, dst []byte, payload int, ttl uint8) []byte {
	if len(src) == 4 {
		ip := make([]byte, 20)
		ip[0], ip[8], ip[9] = 0x45, ttl, unix.IPPROTO_TCP
		binary.BigEndian.PutUint16(ip[2:], uint16(20+payload))
		copy(ip[12:], src)
		copy(ip[16:], dst)
		binary.BigEndian.PutUint16(ip[10:], checksum(ip))
		return ip
	}
	ip := make([]byte, 40)
	ip[0], ip[6], ip[7] = 0x60, unix.IPPROTO_TCP, ttl
	binary.BigEndian.PutUint16(ip[4:], uint16(payload))
	copy(ip[8:], src)
	copy(ip[24:], dst)
	return ip
}

// checksum is the Internet checksum (RFC 1071); all parts but the last have an
// even length.
func checksum(parts ...[]byte) uint16 {
	var sum uint32
	for _, b := range parts {
		for i := 0; i < len(b); i += 2 {
			sum += uint32(b[i]) << 8
			if i+1 < len(b) {
				sum += uint32(b[i+1])
			}
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// inject sends the segment from the host, whatever its source says (raw(7),
// IPPROTO_RAW).
func (h *Host) inject(s segment) error {
	err := h.Do(func() error {
		fd, err := unix.Socket(int(family(s.dst.Addr())), unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, s.marshal(), 0, sockaddr(netip.AddrPortFrom(s.dst.Addr(), 0)))
	})
	if err != nil {
		return fmt.Errorf("send forged segment %v > %v from %s: %w", s.src, s.dst, h.Name, err)
	}
	return nil
}
