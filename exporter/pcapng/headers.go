package pcapng

import (
	"slices"

	"tcpcoroner/evidence"
)

// The IP protocol numbers that the recorder keeps.
const (
	protoICMP   = 1
	protoTCP    = 6
	protoICMPv6 = 58
)

const (
	minTCP  = 20
	minICMP = 8
)

// headers returns the part of a packet that may be kept: its headers, in a tunnel
// those of tunnel and segment, up to evidence.MaxResetPayload bytes of payload of a
// RST, and of an ICMP error the headers of the packet that it quotes. b begins at
// the IP header and may be cut short. recorded tells whether the recorder keeps
// such packets at all.
func headers(b []byte) (kept []byte, recorded bool) {
	l, err := evidence.InnermostIP(b, len(b))
	if err != nil {
		// Of a tunnel that carries something else the outer header is harmless.
		if l, err = evidence.FirstIP(b, len(b)); err != nil {
			return b[:0:0], false
		}
		return b[:l.Next:l.Next], false
	}
	b = b[:min(len(b), max(l.End, l.Next))] // short frames are padded
	n, recorded := l.Next, false
	switch {
	case l.Proto == protoTCP && l.Fragment:
		recorded = true // all that follows is payload
	case l.Proto == protoTCP:
		n, recorded = segmentEnd(b, l.Next), true
	case !l.Fragment:
		n, recorded = errorEnd(b, &l)
	}
	return b[:n:n], recorded
}

// segmentEnd is where that what may be kept of a TCP segment ends.
func segmentEnd(b []byte, at int) int {
	n := headerEnd(b, at)
	if len(b) > at+13 && evidence.Flags(b[at+13]).Has(evidence.RST) {
		n += evidence.MaxResetPayload
	}
	return min(n, len(b))
}

// headerEnd is where the TCP header ends, or b does.
func headerEnd(b []byte, at int) int {
	n := minTCP
	if len(b) > at+12 {
		n = max(n, int(b[at+12]>>4)*4)
	}
	return min(at+n, len(b))
}

// errorEnd is where an ICMP error ends, with the headers of the TCP segment that
// it quotes: unreachable and time exceeded of RFC 792, and too big of RFC 4443.
func errorEnd(b []byte, l *evidence.IPHeader) (n int, recorded bool) {
	var types []uint8
	switch {
	case l.Proto == protoICMP && l.Version == 4:
		types = []uint8{3, 11}
	case l.Proto == protoICMPv6 && l.Version == 6:
		types = []uint8{1, 2, 3}
	}
	at := l.Next + minICMP
	if len(b) < at || !slices.Contains(types, b[l.Next]) {
		return l.Next, false
	}
	quoted, err := evidence.FirstIP(b[at:], len(b)-at)
	switch {
	case err != nil || quoted.Proto != protoTCP || quoted.Version != l.Version:
		return at, false
	case quoted.Fragment:
		return at + quoted.Next, true
	}
	end := at + max(min(len(b)-at, quoted.End), quoted.Next)
	return headerEnd(b[:end], at+quoted.Next), true
}
