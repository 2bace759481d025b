package pcapng

import (
	"encoding/binary"

	"tcpcoroner/evidence"
)

// The IP protocol numbers that the recorder keeps.
const (
	protoICMP   = 1
	protoIPIP   = 4
	protoTCP    = 6
	protoUDP    = 17
	protoIPv6   = 41
	protoGRE    = 47
	protoICMPv6 = 58
)

// maxDepth bounds tunnels in tunnels and quotes in quotes.
const maxDepth = 3

// headers returns the part of a packet that may be kept: its headers, up to
// evidence.MaxResetPayload bytes of payload of a RST, and of an ICMP error the
// headers of the packet that it quotes. b begins at the IP header and may be cut
// short. recorded tells whether the recorder keeps such packets at all.
func headers(b []byte) (kept []byte, recorded bool) {
	n, recorded := measure(b, 0)
	return b[:n:n], recorded
}

func measure(b []byte, depth int) (n int, recorded bool) {
	if len(b) == 0 || depth > maxDepth {
		return 0, false
	}
	switch b[0] >> 4 {
	case 4:
		return measureIPv4(b, depth)
	case 6:
		return measureIPv6(b, depth)
	}
	return 0, false
}

func measureIPv4(b []byte, depth int) (int, bool) {
	if len(b) < 20 {
		return len(b), false
	}
	head := max(int(b[0]&15)*4, 20)
	if len(b) < head {
		return len(b), false
	}
	proto := b[9]
	if binary.BigEndian.Uint16(b[6:])&0x1fff != 0 { // a later fragment is all payload
		return head, wanted(proto)
	}
	b = trim(b, int(binary.BigEndian.Uint16(b[2:])), head)
	n, recorded := measureTransport(proto, b[head:], depth)
	return head + n, recorded
}

func measureIPv6(b []byte, depth int) (int, bool) {
	const head = 40
	if len(b) < head {
		return len(b), false
	}
	proto := b[6]
	if plen := int(binary.BigEndian.Uint16(b[4:])); plen != 0 {
		b = trim(b, head+plen, head)
	}
	n := head
	for {
		ext, fragment := extension(proto, b[n:])
		if ext == 0 {
			break
		}
		if len(b) < n+ext {
			return len(b), false
		}
		proto, n = b[n], n+ext
		if fragment {
			return n, wanted(proto)
		}
	}
	t, recorded := measureTransport(proto, b[n:], depth)
	return n + t, recorded
}

// trim cuts link-layer padding off, which short frames have behind the packet.
func trim(b []byte, total, head int) []byte {
	if total >= head && total < len(b) {
		return b[:total]
	}
	return b
}

// extension is the length of an IPv6 extension header (RFC 8200 section 4), 0 if
// proto is none. fragment tells that payload follows, not a header.
func extension(proto uint8, b []byte) (n int, fragment bool) {
	if len(b) < 8 {
		return 0, false
	}
	switch proto {
	case 0, 43, 60: // hop-by-hop, routing, destination options
		return 8 + int(b[1])*8, false
	case 44:
		return 8, binary.BigEndian.Uint16(b[2:])&0xfff8 != 0
	case 51: // authentication header (RFC 4302) counts in 4-byte units
		return 8 + int(b[1])*4, false
	}
	return 0, false
}

// wanted tells whether the recorder keeps packets of a protocol.
func wanted(proto uint8) bool {
	switch proto {
	case protoTCP, protoIPIP, protoIPv6, protoGRE:
		return true
	}
	return false
}

func measureTransport(proto uint8, b []byte, depth int) (int, bool) {
	switch proto {
	case protoTCP:
		return measureTCP(b), true
	case protoICMP:
		return measureICMP(b, depth, func(t uint8) bool { return t >= 3 && t <= 5 || t == 11 || t == 12 })
	case protoICMPv6:
		return measureICMP(b, depth, func(t uint8) bool { return t >= 1 && t <= 4 })
	case protoIPIP, protoIPv6:
		n, _ := measure(b, depth+1)
		return n, true
	case protoGRE:
		return min(len(b), 4), true
	case protoUDP:
		return min(len(b), 8), false
	}
	return 0, false
}

func measureTCP(b []byte) int {
	if len(b) < 20 {
		return len(b)
	}
	n := max(int(b[12]>>4)*4, 20)
	if evidence.Flags(b[13]).Has(evidence.RST) {
		n += evidence.MaxResetPayload
	}
	return min(n, len(b))
}

// measureICMP keeps an error with the headers of the packet that it quotes.
func measureICMP(b []byte, depth int, isError func(uint8) bool) (int, bool) {
	if len(b) < 8 || !isError(b[0]) {
		return min(len(b), 8), false
	}
	n, _ := measure(b[8:], depth+1)
	return 8 + n, true
}
