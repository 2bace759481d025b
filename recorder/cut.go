package recorder

import (
	"encoding/binary"

	"tcpcoroner/evidence"
)

const (
	protoICMP   = 1
	protoTCP    = 6
	protoICMPv6 = 58

	flagRST = 4

	minTCP  = 20
	minICMP = 8
	// maxHeader bounds what is kept of one packet: IPv6 with extension headers as
	// long as any sane sender makes them, TCP with options, a RST's payload.
	maxHeader = 512
)

// Cut tells how many bytes from the IP header on may be kept of a packet, and
// whether it is a TCP segment with the RST bit. 0 bytes: neither TCP nor an ICMP
// error about TCP. Kept are network and TCP headers with options; of a RST also
// evidence.MaxResetPayload bytes of payload; of an ICMP error the quoted network
// and TCP headers. Cut does not rely on what a kernel filter has cut before.
func Cut(b []byte) (keep int, reset bool) {
	l := network(b)
	switch {
	case l.header == 0:
		return 0, false
	case l.proto == protoTCP && l.fragment:
		return l.header, false // all that follows is payload
	case l.proto == protoTCP:
		keep, reset = cutTCP(b[:l.end], l.header)
	case l.proto == protoICMP && l.version == 4 && !l.fragment:
		keep = cutICMP(b[:l.end], l, 3, 3, 11)
	case l.proto == protoICMPv6 && l.version == 6 && !l.fragment:
		keep = cutICMP(b[:l.end], l, 1, 2, 3)
	}
	if keep > maxHeader {
		return 0, false
	}
	return keep, reset
}

func cutTCP(b []byte, at int) (keep int, reset bool) {
	end := tcpEnd(b, at)
	if len(b) < at+14 || b[at+13]&flagRST == 0 {
		return end, false
	}
	return min(len(b), end+evidence.MaxResetPayload), true
}

// tcpEnd is where the TCP header at the offset ends, or b does. A header that
// claims less than the minimum has the minimum.
func tcpEnd(b []byte, at int) int {
	n := minTCP
	if len(b) > at+12 {
		n = max(n, int(b[at+12]>>4)*4)
	}
	return min(len(b), at+n)
}

// cutICMP keeps an ICMP error of one of the types if it quotes TCP. The layout
// is the same in RFC 792 and RFC 4443: 8 bytes, then the packet it is about.
func cutICMP(b []byte, outer layer, types ...uint8) int {
	at := outer.header + minICMP
	if len(b) < at || (b[outer.header] != types[0] && b[outer.header] != types[1] && b[outer.header] != types[2]) {
		return 0
	}
	quoted := network(b[at:])
	if quoted.header == 0 || quoted.proto != protoTCP || quoted.version != outer.version {
		return 0
	}
	if quoted.fragment {
		return at + quoted.header
	}
	return at + tcpEnd(b[at:at+quoted.end], quoted.header)
}

// layer is what Cut needs of a network header.
type layer struct {
	version, proto uint8
	// header is the header's length with extension headers, 0 if there is none.
	header int
	// end is where the packet ends: bytes behind it are padding of the frame.
	end int
	// fragment tells that this is not the first fragment: it has no TCP header.
	fragment bool
}

func network(b []byte) layer {
	if len(b) == 0 {
		return layer{}
	}
	switch b[0] >> 4 {
	case 4:
		return networkIPv4(b)
	case 6:
		return networkIPv6(b)
	}
	return layer{}
}

func networkIPv4(b []byte) layer {
	if len(b) < 20 {
		return layer{}
	}
	head := int(b[0]&15) * 4
	if head < 20 || len(b) < head {
		return layer{}
	}
	l := layer{version: 4, proto: b[9], header: head, end: len(b)}
	l.fragment = binary.BigEndian.Uint16(b[6:])&0x1fff != 0
	// 0 is BIG TCP: then the frame's length counts.
	if total := int(binary.BigEndian.Uint16(b[2:])); total != 0 {
		l.end = min(l.end, max(total, head))
	}
	return l
}

func networkIPv6(b []byte) layer {
	const head = 40
	if len(b) < head {
		return layer{}
	}
	l := layer{version: 6, proto: b[6], header: head, end: len(b)}
	if payload := int(binary.BigEndian.Uint16(b[4:])); payload != 0 {
		l.end = min(l.end, head+payload)
	}
	for !l.fragment && isExtension(l.proto) {
		rest := b[l.header:l.end]
		if len(rest) < 8 {
			return layer{}
		}
		n := extensionLength(l.proto, rest)
		if len(rest) < n {
			return layer{}
		}
		l.fragment = l.proto == 44 && binary.BigEndian.Uint16(rest[2:])&0xfff8 != 0
		l.proto, l.header = rest[0], l.header+n
	}
	return l
}

// isExtension names the extension headers of RFC 8200 and RFC 4302 that may
// stand before TCP: hop-by-hop, routing, fragment, authentication, destination.
func isExtension(next uint8) bool {
	return next == 0 || next == 43 || next == 44 || next == 51 || next == 60
}

func extensionLength(next uint8, b []byte) int {
	switch next {
	case 44:
		return 8
	case 51: // counts in 4-byte units
		return 8 + int(b[1])*4
	}
	return 8 + int(b[1])*8
}
