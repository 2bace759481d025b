package recorder

import (
	"encoding/binary"
	"math/bits"

	"tcpcoroner/evidence"
)

// key names a flow as one of its ends sends it: addresses and ports as they stand
// in the header, source first. IPv4 addresses are both in the first word.
type key struct {
	words [4]uint64
	ports uint32
	// space is the namespace, and in bit 16 whether it is IPv6.
	space uint32
}

const space6 = 1 << 16

func (k *key) same(o *key) bool {
	return k.words[0] == o.words[0] && k.ports == o.ports && k.space == o.space &&
		(k.space < space6 || k.words == o.words)
}

// reverse is the key as the other end sends it.
func (k *key) reverse() key {
	r := key{ports: bits.RotateLeft32(k.ports, 16), space: k.space}
	if k.space < space6 {
		r.words[0] = bits.RotateLeft64(k.words[0], 32)
	} else {
		r.words = [4]uint64{k.words[2], k.words[3], k.words[0], k.words[1]}
	}
	return r
}

// facts are what two sightings of one packet have in common.
type facts struct {
	seq, ack uint32
	// next is the sequence number behind the segment.
	next       uint32
	value, ech uint32 // timestamps
	wire       uint32
	// label is the first word of an IPv6 header: traffic class and flow label.
	label        uint32
	ipid, window uint16
	edges        uint16 // a digest of the SACK edges
	layout       uint8
	flags        uint8
	sumKind      uint8
	fixed        fixed
}

// fixed is what the IP headers of a connection hardly ever change: TTL, TOS, and
// the upper part of the IPv4 fragment word, which is the reserved bit and DF.
type fixed uint32

func fixedOf(ttl, tos, dontFragment uint8) fixed {
	return fixed(ttl) | fixed(tos)<<8 | fixed(dontFragment)<<16
}

func (f fixed) ttl() uint8          { return uint8(f) }
func (f fixed) tos() uint8          { return uint8(f >> 8) }
func (f fixed) dontFragment() uint8 { return uint8(f >> 16) }

// fields is a packet taken apart into what is predicted one by one. Only a
// packet that rebuild makes again, bit for bit, is taken apart.
type fields struct {
	facts
	key      key // as the packet has it
	payload  uint32
	head     int // length of the headers
	options  options
	ipSum    uint16 // valid if badIPSum
	badIPSum bool
	sum      uint16 // valid if sumKind is sumLiteral
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

// take takes a packet apart, and no byte behind its headers. It returns false for
// what is kept byte for byte instead: IP options, extension headers, fragments,
// tunnels, ICMP, the rare bits of TCP, and a RST with payload.
func (f *fields) take(m *Meta, b []byte) bool {
	switch {
	case len(b) < ip4Head+minTCP:
		return false
	case b[0] == 0x45:
		return f.take4(m, b)
	case b[0]>>4 == 6:
		return f.take6(m, b)
	}
	return false
}

// The one's complement sum does not depend on the byte order in which it is
// taken (RFC 1071, 2B): all sums here are of little-endian words.

func (f *fields) take4(m *Meta, b []byte) bool {
	w0, w1, w2 := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:]), binary.LittleEndian.Uint32(b[16:])
	fragment := bits.ReverseBytes16(uint16(w0 >> 48))
	if uint8(w1>>8) != protoTCP || fragment&0x3fff != 0 {
		return false
	}
	addresses := w1>>32 + uint64(w2)
	f.fixed, f.label = fixedOf(uint8(w1), uint8(w0>>8), uint8(fragment>>14)), 0
	f.ipid = bits.ReverseBytes16(uint16(w0 >> 32))
	f.ipSum = uint16(w1 >> 16)
	f.badIPSum = !rightSum(w0>>32+w0&0xffffffff+w1&0xffffffff+addresses, f.ipSum)
	f.key = key{ports: binary.LittleEndian.Uint32(b[20:]), space: uint32(m.Path.Namespace)}
	f.key.words[0] = w1>>32 | uint64(w2)<<32
	return f.takeTCP(m, b, ip4Head, uint32(bits.ReverseBytes16(uint16(w0>>16))), addresses)
}

func (f *fields) take6(m *Meta, b []byte) bool {
	if len(b) < ip6Head+minTCP || b[6] != protoTCP {
		return false
	}
	f.label, f.fixed = binary.BigEndian.Uint32(b), fixedOf(b[7], 0, 0)
	f.ipid, f.badIPSum = 0, false
	f.key = key{ports: binary.LittleEndian.Uint32(b[40:]), space: uint32(m.Path.Namespace) | space6}
	for i := range f.key.words {
		f.key.words[i] = binary.LittleEndian.Uint64(b[8+8*i:])
	}
	return f.takeTCP(m, b, ip6Head, ip6Head+uint32(binary.BigEndian.Uint16(b[4:])), sum64(b[8:ip6Head]))
}

// takeTCP reads the TCP header at the offset. Addresses is their sum, for the
// pseudo-header (RFC 9293, 3.1).
func (f *fields) takeTCP(m *Meta, b []byte, at int, total uint32, addresses uint64) bool {
	t := b[at:]
	t0, t1, t2 := binary.LittleEndian.Uint64(t), binary.LittleEndian.Uint64(t[8:]), binary.LittleEndian.Uint32(t[16:])
	head := int(uint8(t1>>36)&15) * 4
	f.flags = uint8(t1 >> 40)
	if head < minTCP || t1>>32&15 != 0 || f.flags&flagURG != 0 || t2>>16 != 0 || len(t) < head || total < uint32(at+head) {
		return false
	}
	f.head, f.payload, f.wire = at+head, total-uint32(at+head), m.WireBytes
	if f.flags&flagRST != 0 && f.payload != 0 || !f.takeOptions(t[minTCP:head]) {
		return false
	}
	f.seq, f.ack = bits.ReverseBytes32(uint32(t0>>32)), bits.ReverseBytes32(uint32(t1))
	f.window = bits.ReverseBytes16(uint16(t1 >> 48))
	f.next = f.seq + f.payload + uint32(f.flags>>1&1) + uint32(f.flags&1)
	pseudo := addresses + pseudo(total-uint32(at))
	switch {
	case uint16(t2) == fold(pseudo):
		f.sumKind = sumPartial
	case f.payload == 0:
		// It can be verified here, and made again by the reader.
		sum := pseudo + t0>>32 + t0&0xffffffff + t1>>32 + t1&0xffffffff + uint64(t2) + sum64(t[minTCP:head])
		if f.sumKind = sumGood; !rightSum(sum, uint16(t2)) {
			f.sumKind, f.sum = sumLiteral, uint16(t2)
		}
	case m.Trusted:
		f.sumKind = sumTrusted
	default:
		f.sumKind = sumUnknown
	}
	return true
}

func (f *fields) takeOptions(b []byte) bool {
	if len(b) == 12 && binary.LittleEndian.Uint32(b) == stampOnlyLE {
		v := binary.LittleEndian.Uint64(b[4:])
		f.options.plain = plainStamp
		f.value, f.ech = bits.ReverseBytes32(uint32(v)), bits.ReverseBytes32(uint32(v>>32))
		f.edges = 0
		return true
	}
	if len(b) == 0 {
		f.options.plain = plainNone
	} else if !f.options.take(b, &f.facts) {
		return false
	}
	if !f.options.stamped() {
		f.value, f.ech = 0, 0
	}
	f.edges = f.options.digest()
	return true
}

// rebuild is the inverse of take: it writes the header into b and returns its
// length. The checksum of a segment with payload reads 0.
func (f *fields) rebuild(b *[maxHeader]byte) int {
	at, n := ip4Head, minTCP+f.options.bytes()
	var addresses uint64
	if f.key.space >= space6 {
		at = ip6Head
		f.rebuild6(b, n)
		addresses = sum64(b[8:ip6Head])
	} else {
		f.rebuild4(b, n)
		addresses = sum64(b[12:ip4Head])
	}
	t := b[at : at+n]
	binary.LittleEndian.PutUint32(t, f.key.ports)
	binary.BigEndian.PutUint32(t[4:], f.seq)
	binary.BigEndian.PutUint32(t[8:], f.ack)
	t[12], t[13] = uint8(n/4)<<4, f.flags
	binary.BigEndian.PutUint16(t[14:], f.window)
	binary.LittleEndian.PutUint32(t[16:], 0)
	f.options.put(t[minTCP:], &f.facts)
	binary.LittleEndian.PutUint16(t[16:], f.rebuildSum(t, addresses+pseudo(uint32(n)+f.payload)))
	return at + n
}

func (f *fields) rebuild4(b *[maxHeader]byte, n int) {
	b[0], b[1] = 0x45, f.fixed.tos()
	binary.BigEndian.PutUint16(b[2:], uint16(uint32(ip4Head+n)+f.payload))
	binary.BigEndian.PutUint16(b[4:], f.ipid)
	binary.BigEndian.PutUint16(b[6:], uint16(f.fixed.dontFragment())<<14)
	b[8], b[9], b[10], b[11] = f.fixed.ttl(), protoTCP, 0, 0
	binary.LittleEndian.PutUint64(b[12:], f.key.words[0])
	if !f.badIPSum {
		f.ipSum = ^fold(sum64(b[:ip4Head]))
	}
	binary.LittleEndian.PutUint16(b[10:], f.ipSum)
}

func (f *fields) rebuild6(b *[maxHeader]byte, n int) {
	binary.BigEndian.PutUint32(b[0:], f.label)
	binary.BigEndian.PutUint16(b[4:], uint16(uint32(n)+f.payload))
	b[6], b[7] = protoTCP, f.fixed.ttl()
	for i, v := range f.key.words {
		binary.LittleEndian.PutUint64(b[8+8*i:], v)
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

// total is the length that the IP header tells.
func (f *fields) total() uint32 { return uint32(f.head) + f.payload }

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

// rightSum tells whether a sum over all with its checksum field is that of the
// checksum that everybody computes: the other zero would do as well.
func rightSum(s uint64, field uint16) bool { return fold(s) == 0xffff && field != 0xffff }

// pseudo is the sum of the pseudo-header but the addresses.
func pseudo(length uint32) uint64 {
	return protoTCP<<8 + uint64(bits.ReverseBytes16(uint16(length>>16))) + uint64(bits.ReverseBytes16(uint16(length)))
}
