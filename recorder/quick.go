package recorder

import (
	"encoding/binary"
	"math/bits"
)

// quickHead is the length of the headers that quick knows: IPv4 and TCP without
// options but timestamps.
const quickHead = ip4Head + minTCP + 12

// quick is add for what nearly all packets are: an acknowledgement or data of an
// IPv4 connection with timestamps, on the path of the packet before. It writes
// what add would write, without taking the packet apart into memory first. It
// returns false, and has done nothing, if the packet is anything else.
func (e *encoder) quick(m *Meta, b []byte) bool {
	if len(b) < quickHead || b[0] != 0x45 {
		return false
	}
	w0, w1, w2 := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:]), binary.LittleEndian.Uint32(b[16:])
	t0, t1, t2 := binary.LittleEndian.Uint64(b[20:]), binary.LittleEndian.Uint64(b[28:]), binary.LittleEndian.Uint32(b[36:])
	o0, o1 := binary.LittleEndian.Uint32(b[40:]), binary.LittleEndian.Uint64(b[44:])
	total, flags := uint32(bits.ReverseBytes16(uint16(w0>>16))), uint8(t1>>40)
	// TCP, no fragment, a header of 32 bytes without reserved bits, no urgent data.
	if uint8(w1>>8) != protoTCP || w0>>48&0xff3f != 0 || uint8(t1>>32) != 0x80 || t2>>16 != 0 || o0 != stampOnlyLE ||
		total < quickHead || total != m.WireBytes || flags&(flagURG|flagRST|flagSYN|flagFIN) != 0 {
		return false
	}
	k := key{ports: uint32(t0), space: uint32(m.Path.Namespace)}
	k.words[0] = w1>>32 | uint64(w2)<<32
	f, mask := e.current, uint8(maskSame)
	if f == nil || !e.isOf(f, &k) {
		if f, mask = e.find(&k), 0; f == nil {
			return false
		}
	}
	me, addresses := &f.sides[e.side], w1>>32+uint64(w2)
	tcp := t0>>32 + t0&0xffffffff + t1>>32 + t1&0xffffffff + uint64(o0) + o1>>32 + o1&0xffffffff
	sum := sumOf(addresses+pseudo(total-ip4Head), tcp, uint16(t2), total != quickHead, m.Trusted)
	if !me.seen || me.expect != numberStamp || !e.paths[me.path].same(&m.Path) ||
		me.fixed != fixedOf(uint8(w1), uint8(w0>>8), uint8(w0>>54&3)) ||
		!rightSum(w0>>32+w0&0xffffffff+w1&0xffffffff+addresses, uint16(w1>>16)) ||
		sum == sumLiteral || sum != me.nextSum(total-quickHead) {
		return false
	}
	e.columns[colTime].signed(m.Nanos - e.last)
	e.last, e.current = m.Nanos, f
	var now facts
	now.seq, now.ack = bits.ReverseBytes32(uint32(t0>>32)), bits.ReverseBytes32(uint32(t1))
	now.value, now.ech = bits.ReverseBytes32(uint32(o1)), bits.ReverseBytes32(uint32(o1>>32))
	now.ipid, now.window = bits.ReverseBytes16(uint16(w0>>32)), bits.ReverseBytes16(uint16(t1>>48))
	now.wire, now.flags, now.sumKind = total, flags, sum
	e.quickFill(f, me, &now, mask|e.side<<1, total-quickHead, uint32(m.Nanos/1e6))
	return true
}

// sumOf is the state of a checksum field, as takeTCP finds it; sumLiteral means
// that it is wrong.
func sumOf(pseudo, tcp uint64, field uint16, payload, trusted bool) uint8 {
	switch {
	case field == fold(pseudo):
		return sumPartial
	case !payload && rightSum(pseudo+tcp+uint64(field), field):
		return sumGood
	case !payload:
		return sumLiteral
	case trusted:
		return sumTrusted
	}
	return sumUnknown
}

// quickFill writes the packet and takes it over, as fill and learn do.
func (e *encoder) quickFill(f *flow, me *state, now *facts, mask uint8, payload, milli uint32) {
	more, values, seqs := uint8(0), &e.columns[colValue], &e.columns[colSeq]
	switch {
	case payload == 0 && now.flags == me.bareFlags:
	case payload == 0 || now.flags != me.dataFlags:
		mask |= kindLiteral
		values.byte(now.flags)
		values.uvarint(uint64(payload))
	case payload == me.data:
		mask |= kindData
	default:
		mask |= kindLength
		values.uvarint(uint64(payload))
	}
	if now.seq != me.next {
		mask |= maskSeq
		seqs.signed(int64(int32(now.seq - me.next)))
	}
	if now.ack != f.nextAck(e.side) {
		mask |= maskAck
		seqs.signed(int64(int32(now.ack - me.ack)))
	}
	if now.value != me.nextValue(milli) || now.ech != f.nextEch(e.side) {
		mask |= maskStamp
		e.stamps(f, now, milli)
	}
	if now.window != me.window {
		more |= moreWindow
		values.signed(int64(int16(now.window - me.window)))
	}
	if next := me.nextID(); now.ipid != next {
		more |= moreID
		values.signed(int64(int16(now.ipid - next)))
	}
	e.masks(f, mask, more, 0)
	// One by one: a copy would wait for the stores that made now.
	me.seq, me.ack, me.next, me.value, me.ech, me.wire = now.seq, now.ack, now.seq+payload, now.value, now.ech, now.wire
	me.ipid, me.window, me.edges, me.layout, me.flags, me.sumKind = now.ipid, now.window, 0, numberStamp, now.flags, now.sumKind
	me.milli, me.sightings = milli, 0
	if payload == 0 {
		me.bareFlags = now.flags
	} else {
		me.data, me.dataFlags = payload, now.flags
	}
}
