package recorder

import (
	"encoding/binary"
	"slices"

	"tcpcoroner/evidence"
)

const (
	protoICMP   = 1
	protoTCP    = 6
	protoICMPv6 = 58

	flagRST = 4
	// flagsControl are the bits of the segments that open and end a connection.
	flagsControl = 1 | 2 | flagRST

	minTCP  = 20
	minICMP = 8
	// maxHeader bounds what is kept of one packet: IPv6 with extension headers as
	// long as any sane sender makes them, TCP with options, a RST's payload.
	maxHeader = 512
)

// Cut tells how many bytes from the IP header on may be kept of a packet, and
// whether it is a TCP segment with the RST bit. 0 bytes: neither TCP nor an ICMP
// error about TCP. Kept are network and TCP headers with options, in a tunnel
// those of tunnel and segment; of a RST also evidence.MaxResetPayload bytes of
// payload; of an ICMP error the quoted network and TCP headers. Cut does not rely
// on what a kernel filter has cut before.
func Cut(b []byte) (keep int, reset bool) {
	if at, end := plain(b); at > 0 {
		return cutTCP(b[:end], at)
	}
	l, err := evidence.InnermostIP(b, len(b))
	if err != nil {
		return 0, false
	}
	b = b[:min(len(b), l.End)]
	switch {
	case l.Proto == protoTCP && l.Fragment:
		keep = l.Next // all that follows is payload
	case l.Proto == protoTCP:
		keep, reset = cutTCP(b, l.Next)
	default:
		keep = cutError(b, &l)
	}
	if keep > maxHeader {
		return 0, false
	}
	return keep, reset
}

// Control tells whether a packet is kept at every level: a TCP segment with SYN,
// FIN or RST, or an ICMP error about TCP. A segment that is cut short before its
// flags may be one.
func Control(b []byte) bool {
	if at, _ := plain(b); at > 0 {
		return b[at+13]&flagsControl != 0
	}
	l, err := evidence.InnermostIP(b, len(b))
	switch {
	case err != nil || l.Proto == protoTCP && l.Fragment:
		return false
	case l.Proto == protoTCP:
		return len(b) < l.Next+14 || b[l.Next+13]&flagsControl != 0
	}
	return cutError(b[:min(len(b), l.End)], &l) > 0
}

// plain finds the TCP header and the end of a packet that is what most are: TCP
// right behind an IPv4 header without options or an IPv6 header, no later
// fragment, the fixed part of the TCP header there. Otherwise at is 0.
func plain(b []byte) (at, end int) {
	switch {
	case len(b) < 20+minTCP:
		return 0, 0
	case b[0] == 0x45 && b[9] == protoTCP && b[6]&0x1f|b[7] == 0:
		at, end = 20, int(binary.BigEndian.Uint16(b[2:]))
	case b[0]>>4 == 6 && b[6] == protoTCP:
		at, end = 40, 40+int(binary.BigEndian.Uint16(b[4:]))
	}
	if end = min(len(b), end); end < at+minTCP {
		return 0, 0
	}
	return at, end
}

// cutError keeps ICMP errors about TCP: unreachable and time exceeded, and too big
// of RFC 4443.
func cutError(b []byte, l *evidence.IPHeader) int {
	switch {
	case l.Fragment:
	case l.Proto == protoICMP && l.Version == 4:
		return cutICMP(b, l, 3, 11)
	case l.Proto == protoICMPv6 && l.Version == 6:
		return cutICMP(b, l, 1, 2, 3)
	}
	return 0
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
func cutICMP(b []byte, outer *evidence.IPHeader, types ...uint8) int {
	at := outer.Next + minICMP
	if len(b) < at || !slices.Contains(types, b[outer.Next]) {
		return 0
	}
	quoted, err := evidence.FirstIP(b[at:], len(b)-at)
	if err != nil || quoted.Proto != protoTCP || quoted.Version != outer.Version {
		return 0
	}
	if quoted.Fragment {
		return at + quoted.Next
	}
	return at + tcpEnd(b[at:at+min(len(b)-at, quoted.End)], quoted.Next)
}
