package recorder

import (
	"encoding/binary"
	"math/bits"

	"tcpcoroner/evidence"
)

// key names a flow, whichever way a packet goes: a is the lower end. IPv4
// addresses are in the first word.
type key struct {
	a, b  [2]uint64
	ports uint32 // of a, then of b
	// space is the namespace, and in bit 16 whether it is IPv6.
	space uint32
}

const space6 = 1 << 16

// fields is a packet taken apart into what is predicted one by one. Only a
// packet that rebuild makes again, bit for bit, is taken apart.
type fields struct {
	key  key
	side uint8 // 0 if a sent it

	ttl, tos, flags uint8
	ipid, window    uint16
	// dontFragment is the upper part of the IPv4 fragment word: reserved bit and DF.
	dontFragment uint8
	// label is the first word of an IPv6 header: traffic class and flow label.
	label     uint32
	seq, ack  uint32
	payload   uint32
	wire      uint32
	options   options
	ipSum     uint16 // valid if badIPSum
	badIPSum  bool
	sum       uint16 // valid if sumKind is sumLiteral
	sumKind   uint8
	headBytes int
}

// The states of a TCP checksum field in a chunk. The first four are those of
// evidence.ChecksumStatus; of the last the field itself follows.
const (
	sumUnknown = uint8(evidence.ChecksumUnknown)
	sumTrusted = uint8(evidence.ChecksumTrusted)
	sumGood    = uint8(evidence.ChecksumGood)
	sumPartial = uint8(evidence.ChecksumPartial)
	sumLiteral = uint8(evidence.ChecksumBad)
)

const (
	ip4Head = 20
	ip6Head = 40

	flagFIN = 1
	flagSYN = 2
	flagPSH = 8
	flagACK = 16
	flagURG = 32
)

// take takes a packet apart. It returns false for what is kept byte for byte
// instead: IP options, extension headers, fragments, tunnels, ICMP, the rare bits
// of TCP, and a RST with payload.
func (f *fields) take(m *Meta, b []byte) bool {
	if len(b) < ip4Head+minTCP {
		return false
	}
	switch b[0] {
	case 0x45:
		return f.take4(m, b)
	case 0x60, 0x61, 0x62, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6a, 0x6b, 0x6c, 0x6d, 0x6e, 0x6f:
		return f.take6(m, b)
	}
	return false
}

func (f *fields) take4(m *Meta, b []byte) bool {
	fragment := binary.BigEndian.Uint16(b[6:])
	total := uint32(binary.BigEndian.Uint16(b[2:]))
	if b[9] != protoTCP || fragment&0x3fff != 0 {
		return false
	}
	f.tos, f.ttl, f.label = b[1], b[8], 0
	f.ipid, f.dontFragment = binary.BigEndian.Uint16(b[4:]), uint8(fragment>>14)
	f.ipSum = binary.BigEndian.Uint16(b[10:])
	f.badIPSum = f.ipSum != ip4Sum(b)
	src, dst := uint64(binary.BigEndian.Uint32(b[12:])), uint64(binary.BigEndian.Uint32(b[16:]))
	ports := binary.BigEndian.Uint32(b[20:])
	f.key.space = uint32(m.Path.Namespace)
	if src < dst || src == dst && ports>>16 <= ports&0xffff {
		f.side, f.key.ports = 0, ports
		f.key.a[0], f.key.b[0] = src, dst
	} else {
		f.side, f.key.ports = 1, bits.RotateLeft32(ports, 16)
		f.key.a[0], f.key.b[0] = dst, src
	}
	f.key.a[1], f.key.b[1] = 0, 0
	addresses := binary.LittleEndian.Uint64(b[12:])
	return f.takeTCP(m, b, ip4Head, total, addresses>>32+addresses&0xffffffff)
}

func (f *fields) take6(m *Meta, b []byte) bool {
	if len(b) < ip6Head+minTCP || b[6] != protoTCP {
		return false
	}
	total := ip6Head + uint32(binary.BigEndian.Uint16(b[4:]))
	f.label, f.ttl = binary.BigEndian.Uint32(b), b[7]
	f.tos, f.ipid, f.dontFragment, f.badIPSum = 0, 0, 0, false
	src := [2]uint64{binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint64(b[16:])}
	dst := [2]uint64{binary.BigEndian.Uint64(b[24:]), binary.BigEndian.Uint64(b[32:])}
	ports := binary.BigEndian.Uint32(b[40:])
	f.key.space = uint32(m.Path.Namespace) | space6
	if src[0] < dst[0] || src[0] == dst[0] && (src[1] < dst[1] || src[1] == dst[1] && ports>>16 <= ports&0xffff) {
		f.side, f.key.ports, f.key.a, f.key.b = 0, ports, src, dst
	} else {
		f.side, f.key.ports, f.key.a, f.key.b = 1, bits.RotateLeft32(ports, 16), dst, src
	}
	return f.takeTCP(m, b, ip6Head, total, sum64(b[8:ip6Head]))
}

// takeTCP reads the TCP header at the offset. Addresses is their sum, for the
// pseudo-header (RFC 9293, 3.1).
func (f *fields) takeTCP(m *Meta, b []byte, at int, total uint32, addresses uint64) bool {
	t := b[at:]
	head := int(t[12]>>4) * 4
	f.flags = t[13]
	if head < minTCP || t[12]&15 != 0 || f.flags&flagURG != 0 || t[18]|t[19] != 0 ||
		len(t) != head || total < uint32(at+head) {
		return false
	}
	f.headBytes, f.payload, f.wire = at+head, total-uint32(at+head), m.WireBytes
	if f.flags&flagRST != 0 && f.payload != 0 {
		return false
	}
	f.seq, f.ack = binary.BigEndian.Uint32(t[4:]), binary.BigEndian.Uint32(t[8:])
	f.window = binary.BigEndian.Uint16(t[14:])
	f.takeSum(m, t[:head], pseudo(addresses, total-uint32(at)))
	return f.options.take(t[minTCP:head])
}

// takeSum finds out what the checksum field is, pseudo being the sum of the
// pseudo-header. Without payload it can be verified here and made again there.
func (f *fields) takeSum(m *Meta, t []byte, pseudo uint64) {
	field := binary.LittleEndian.Uint16(t[16:])
	switch {
	case field == fold(pseudo):
		f.sumKind = sumPartial
	case f.payload != 0 && m.Trusted:
		f.sumKind = sumTrusted
	case f.payload != 0:
		f.sumKind = sumUnknown
	case field == ^fold(pseudo+sum64(t)-uint64(field)):
		f.sumKind = sumGood
	default:
		f.sumKind, f.sum = sumLiteral, field
	}
}

// next is the sequence number behind the segment.
func (f *fields) next() uint32 {
	return f.seq + f.payload + uint32(f.flags>>1&1) + uint32(f.flags&1)
}

// total is the length that the IP header tells.
func (f *fields) total() uint32 { return uint32(f.headBytes) + f.payload }

// rebuild is the inverse of take: it writes the header into b and returns its
// length. The checksum of a segment with payload reads 0.
func (f *fields) rebuild(b *[maxHeader]byte) int {
	at := ip4Head
	src, dst, ports := f.key.a, f.key.b, f.key.ports
	if f.side == 1 {
		src, dst, ports = dst, src, bits.RotateLeft32(ports, 16)
	}
	n := minTCP + f.options.bytes()
	var addresses uint64
	if f.key.space&space6 != 0 {
		at = ip6Head
		f.rebuild6(b, src, dst, n)
		addresses = sum64(b[8:ip6Head])
	} else {
		f.rebuild4(b, src[0], dst[0], n)
		addresses = sum64(b[12:ip4Head])
	}
	t := b[at : at+n]
	binary.BigEndian.PutUint32(t, ports)
	binary.BigEndian.PutUint32(t[4:], f.seq)
	binary.BigEndian.PutUint32(t[8:], f.ack)
	t[12], t[13] = uint8(n/4)<<4, f.flags
	binary.BigEndian.PutUint16(t[14:], f.window)
	binary.LittleEndian.PutUint32(t[16:], 0)
	f.options.put(t[minTCP:])
	binary.LittleEndian.PutUint16(t[16:], f.rebuildSum(t, pseudo(addresses, uint32(n)+f.payload)))
	return at + n
}

func (f *fields) rebuild4(b *[maxHeader]byte, src, dst uint64, n int) {
	b[0], b[1] = 0x45, f.tos
	binary.BigEndian.PutUint16(b[2:], uint16(uint32(ip4Head+n)+f.payload))
	binary.BigEndian.PutUint16(b[4:], f.ipid)
	binary.BigEndian.PutUint16(b[6:], uint16(f.dontFragment)<<14)
	b[8], b[9] = f.ttl, protoTCP
	binary.BigEndian.PutUint32(b[12:], uint32(src))
	binary.BigEndian.PutUint32(b[16:], uint32(dst))
	if !f.badIPSum {
		f.ipSum = ip4Sum(b[:])
	}
	binary.BigEndian.PutUint16(b[10:], f.ipSum)
}

func (f *fields) rebuild6(b *[maxHeader]byte, src, dst [2]uint64, n int) {
	binary.BigEndian.PutUint32(b[0:], f.label)
	binary.BigEndian.PutUint16(b[4:], uint16(uint32(n)+f.payload))
	b[6], b[7] = protoTCP, f.ttl
	for i, v := range [...]uint64{src[0], src[1], dst[0], dst[1]} {
		binary.BigEndian.PutUint64(b[8+8*i:], v)
	}
}

func (f *fields) rebuildSum(t []byte, pseudo uint64) uint16 {
	switch f.sumKind {
	case sumGood:
		return ^fold(pseudo + sum64(t))
	case sumPartial:
		return fold(pseudo)
	case sumLiteral:
		return f.sum
	}
	return 0
}

// The one's complement sum does not depend on the byte order in which it is
// taken (RFC 1071, 2B): all sums here are of little-endian words.

// sum64 sums a header, of which the length is a multiple of 4.
func sum64(b []byte) (s uint64) {
	for ; len(b) >= 8; b = b[8:] {
		v := binary.LittleEndian.Uint64(b)
		s += v>>32 + v&0xffffffff
	}
	if len(b) >= 4 {
		s += uint64(binary.LittleEndian.Uint32(b))
	}
	return s
}

func fold(s uint64) uint16 {
	s = s>>32 + s&0xffffffff
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	return uint16(s>>16 + s)
}

func pseudo(addresses uint64, length uint32) uint64 {
	return addresses + uint64(bits.ReverseBytes16(protoTCP)) +
		uint64(bits.ReverseBytes16(uint16(length>>16))) + uint64(bits.ReverseBytes16(uint16(length)))
}

// ip4Sum is the checksum of a header without options, its own field left out.
func ip4Sum(b []byte) uint16 {
	x, y := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])&^(0xffff<<16)
	s := x>>32 + x&0xffffffff + y>>32 + y&0xffffffff + uint64(binary.LittleEndian.Uint32(b[16:]))
	return bits.ReverseBytes16(^fold(s))
}
