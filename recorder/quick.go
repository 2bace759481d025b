package recorder

import (
	"encoding/binary"
	"math/bits"
)

// quickHead is the length of the headers that quick knows: IPv4 and TCP without
// options but timestamps.
const quickHead = ip4Head + minTCP + 12

// What quick demands of a header, as little-endian words from the bytes 0, 8, 28
// and 36 on: version and length 0x45, no fragment; TCP; a header of 32 bytes without
// reserved bits, no URG, RST, SYN or FIN; no urgent pointer, timestamps only.
const (
	quickMask0, quickWant0   = 0xff3f_0000_0000_00ff, 0x45
	quickMask8, quickWant8   = 0xff00, protoTCP << 8
	quickMask28, quickWant28 = (0xff | uint64(flagURG|flagRST|flagSYN|flagFIN)<<8) << 32, 0x80 << 32
)

// quick is add for what nearly all packets are: an acknowledgement or data of an
// IPv4 connection with timestamps, on the path of the packet before. It writes
// what add would write, without taking the packet apart into memory first. It
// returns false, and has done nothing, if the packet is anything else.
func (e *encoder) quick(m *Meta, header []byte) bool {
	if len(header) < quickHead {
		return false
	}
	b := (*[quickHead]byte)(header)
	w0, w8 := binary.LittleEndian.Uint64(b[0:]), binary.LittleEndian.Uint64(b[8:])
	w28, w36 := binary.LittleEndian.Uint64(b[28:]), binary.LittleEndian.Uint64(b[36:])
	total := uint32(bits.ReverseBytes16(uint16(w0 >> 16)))
	// The parentheses matter: | binds no stronger than ^, and what one word has too
	// much would make up for another's.
	if (w0&quickMask0^quickWant0)|(w8&quickMask8^quickWant8)|(w28&quickMask28^quickWant28)|(w36>>16^stampOnlyLE<<16) != 0 ||
		total < quickHead || total != m.WireBytes {
		return false
	}
	ends, w20 := binary.LittleEndian.Uint64(b[12:]), binary.LittleEndian.Uint64(b[20:])
	f, mask, side := e.current, uint8(maskSame), uint8(neither)
	if f != nil {
		side = f.side4(ends, uint32(w20), uint32(m.Path.Namespace))
	}
	if side == neither {
		if f, side = e.find4(ends, uint32(w20), uint32(m.Path.Namespace)); f == nil {
			return false
		}
		mask = 0
	}
	me, w44 := &f.sides[side&1], binary.LittleEndian.Uint64(b[44:])
	sum := quickSum(ends, w20, w28, w36, w44, total-ip4Head, m.Trusted)
	if !me.seen || me.expect != numberStamp || !e.paths[me.path].same(&m.Path) ||
		me.fixed != fixedOf(uint8(w8), uint8(w0>>8), uint8(w0>>54&3)) ||
		!right4(w0, w8, ends>>32) || sum == sumLiteral || sum != me.nextSum(total-quickHead) {
		return false
	}
	e.side = side
	if mask == 0 {
		e.current = f
		e.columns[colFlow].uvarint(uint64(uint32(len(e.flows)) - 1 - f.number))
	}
	e.columns[colTime].signed(m.Nanos - e.last)
	e.last = m.Nanos
	if e.head.last < m.Nanos {
		e.head.last = m.Nanos
	} else {
		e.head.first = min(e.head.first, m.Nanos)
	}
	e.head.packets++
	me.wire, me.edges, me.layout, me.sumKind, me.sightings = total, 0, numberStamp, sum, 0
	e.quickFill(f, me, w0, w20, w28, w44, total-quickHead, mask|side<<1, uint32(uint64(m.Nanos)/1e6))
	return true
}

// quickFill writes the packet and takes it over, as fill and learn do.
func (e *encoder) quickFill(f *flow, me *state, w0, w20, w28, w44 uint64, payload uint32, mask uint8, milli uint32) {
	more, flags, peer := uint8(0), uint8(w28>>40), &f.sides[mask>>1&1^1]
	values, seqs := &e.columns[colValue], &e.columns[colSeq]
	mask |= e.quickKind(me, payload, flags)
	me.flags = flags
	ack, ech := me.ack, me.ech
	if peer.seen {
		ack, ech = peer.next, peer.value
	}
	seq := bits.ReverseBytes32(uint32(w20 >> 32))
	if d := seq - me.next; d != 0 {
		mask |= maskSeq
		seqs.signed(int64(int32(d)))
	}
	me.seq, me.next = seq, seq+payload
	if now := bits.ReverseBytes32(uint32(w28)); now != ack {
		mask |= maskAck
		seqs.signed(int64(int32(now - me.ack)))
		ack = now
	}
	me.ack = ack
	value, nowEch := bits.ReverseBytes32(uint32(w44)), bits.ReverseBytes32(uint32(w44>>32))
	if d := value - me.nextValue(milli); d != 0 || nowEch != ech {
		mask |= maskStamp
		e.stamps(d, nowEch-ech)
	}
	me.value, me.ech, me.milli = value, nowEch, milli
	if window := bits.ReverseBytes16(uint16(w28 >> 48)); window != me.window {
		more |= moreWindow
		values.signed(int64(int16(window - me.window)))
		me.window = window
	}
	ipid := bits.ReverseBytes16(uint16(w0 >> 32))
	if next := me.nextID(); ipid != next {
		more |= moreID
		values.signed(int64(int16(ipid - next)))
	}
	me.ipid = ipid
	if more != 0 {
		mask |= maskMore
		e.columns[colMore].byte(more)
	}
	e.columns[colMask].byte(mask)
}

// quickKind writes payload and flags, and takes them over.
func (e *encoder) quickKind(me *state, payload uint32, flags uint8) (kind uint8) {
	values := &e.columns[colValue]
	switch {
	case payload == 0 && flags == me.bareFlags:
		return kindBare
	case payload != 0 && flags == me.dataFlags && payload == me.data:
		return kindData
	case payload != 0 && flags == me.dataFlags:
		kind = kindLength
	default:
		kind = kindLiteral
		values.byte(flags)
	}
	values.uvarint(uint64(payload))
	if payload == 0 {
		me.bareFlags = flags
	} else {
		me.data, me.dataFlags = payload, flags
	}
	return kind
}

// neither is no side of a flow.
const neither = 2

// side4 tells which end of the flow sent an IPv4 packet with such ends.
func (f *flow) side4(ends uint64, ports, space uint32) uint8 {
	switch {
	case f.key.space != space:
	case f.key.words[0] == ends && f.key.ports == ports:
		return 0
	case f.key.words[0] == bits.RotateLeft64(ends, 32) && f.key.ports == bits.RotateLeft32(ports, 16):
		return 1
	}
	return neither
}

// find4 finds the flow of an IPv4 packet and its side, nil if it is new.
func (e *encoder) find4(ends uint64, ports, space uint32) (f *flow, side uint8) {
	h := e.hash4(ends, ports)
	for i := h & e.reach; e.index[i] != 0; i = (i + 1) & e.reach {
		if n := e.index[i]; n&^placed == indexTag(h) {
			f = &e.flows[n&placed-1]
			if side = f.side4(ends, ports, space); side != neither {
				return f, side
			}
		}
	}
	return nil, neither
}

// quickSum is the state of the TCP checksum, as takeTCP finds it; sumLiteral means
// that it is wrong. A sum is divided by 2^16-1 instead of folded: what is left is
// the same (RFC 1071), and the division is one multiplication.
func quickSum(ends, w20, w28, w36, w44 uint64, length uint32, trusted bool) uint8 {
	field := w36 & 0xffff
	pseudo := ends>>32 + ends&0xffffffff + protoTCP<<8 + uint64(bits.ReverseBytes16(uint16(length)))
	if (pseudo+0xffff-field)%0xffff == 0 && field != 0 {
		return sumPartial
	}
	if length != quickHead-ip4Head {
		if trusted {
			return sumTrusted
		}
		return sumUnknown
	}
	s, c := bits.Add64(w20, w28, 0)
	s, c = bits.Add64(s, w36, c)
	s, c = bits.Add64(s, w44, c)
	s, c = bits.Add64(s, pseudo, c)
	if s, c = bits.Add64(s, 0, c); (s+c)%0xffff == 0 && field != 0xffff {
		return sumGood
	}
	return sumLiteral
}

// right4 is rightSum of an IPv4 header without options.
func right4(w0, w8, to uint64) bool {
	s, c := bits.Add64(w0, w8, 0)
	s, c = bits.Add64(s, to, c)
	s, c = bits.Add64(s, 0, c)
	return (s+c)%0xffff == 0 && uint16(w8>>16) != 0xffff
}
