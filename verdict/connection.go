package verdict

import (
	"encoding/binary"
	"math/bits"
	"net/netip"

	"tcpcoroner/evidence"
)

// flowID is a flow's tuple, the same for both directions, without pointers.
type flowID struct {
	aHigh, aLow, bHigh, bLow uint64
	ports                    uint32
	namespace                uint16
}

// endpoint is an address and a port; an IPv4 address is as IPv6 maps it.
type endpoint struct {
	high, low uint64
	port      uint32
}

func endpointOf(a netip.AddrPort) endpoint {
	b := a.Addr().As16()
	return endpoint{binary.BigEndian.Uint64(b[:]), binary.BigEndian.Uint64(b[8:]), uint32(a.Port())}
}

func (e *endpoint) addrPort() netip.AddrPort {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], e.high)
	binary.BigEndian.PutUint64(b[8:], e.low)
	return netip.AddrPortFrom(netip.AddrFrom16(b).Unmap(), uint16(e.port))
}

func flowIDOf(src, dst netip.AddrPort, namespace uint16) flowID {
	return newFlowID(endpointOf(src), endpointOf(dst), namespace)
}

func newFlowID(a, b endpoint, namespace uint16) flowID {
	if a.high > b.high || a.high == b.high && (a.low > b.low || a.low == b.low && a.port > b.port) {
		a, b = b, a
	}
	return flowID{a.high, a.low, b.high, b.low, a.port<<16 | b.port, namespace}
}

// bothPorts are those of both ends.
func (f *flowID) bothPorts() (a, b uint16) { return uint16(f.ports >> 16), uint16(f.ports) }

// glance is what both passes need of every packet; only those that matter are
// decoded as a whole.
type glance struct {
	id       flowID
	src      endpoint
	seq, ack uint32
	flags    evidence.Flags
	// size is the payload's length.
	size uint32
}

// look glances at a packet; s is for those that are not as most are. It returns
// false if the packet is no TCP segment.
func (l *glance) look(p *evidence.Packet, s *evidence.Segment) bool {
	if l.plain(p) {
		return true
	}
	if evidence.ParseSegment(p, s) != nil {
		return false
	}
	l.src, l.seq, l.ack, l.flags, l.size = endpointOf(s.Src), s.Seq, s.Ack, s.Flags, s.PayloadBytes
	l.id = newFlowID(l.src, endpointOf(s.Dst), p.Namespace)
	return true
}

// plain reads TCP right behind an IPv4 header without options, or behind an IPv6
// header. No more than that is here: ParseSegment reads everything.
func (l *glance) plain(p *evidence.Packet) bool {
	b, at := p.Header, 20
	wire := int(p.WireBytes)
	var dst endpoint
	switch {
	case len(b) >= 40 && b[0] == 0x45 && b[9] == 6 && b[6]&0x1f|b[7] == 0:
		if total := int(binary.BigEndian.Uint16(b[2:])); total != 0 {
			wire = max(total, at)
		}
		l.src = endpoint{low: 0xffff<<32 | uint64(binary.BigEndian.Uint32(b[12:]))}
		dst = endpoint{low: 0xffff<<32 | uint64(binary.BigEndian.Uint32(b[16:]))}
	case len(b) >= 60 && b[0]>>4 == 6 && b[6] == 6:
		at = 40
		if payload := int(binary.BigEndian.Uint16(b[4:])); payload != 0 {
			wire = at + payload
		}
		l.src = endpoint{high: binary.BigEndian.Uint64(b[8:]), low: binary.BigEndian.Uint64(b[16:])}
		dst = endpoint{high: binary.BigEndian.Uint64(b[24:]), low: binary.BigEndian.Uint64(b[32:])}
	default:
		return false
	}
	t := b[at:]
	head := int(t[12]>>4) * 4
	if head < 20 || head > len(t) {
		return false
	}
	l.size = uint32(max(wire-at-head, 0))
	l.src.port, dst.port = uint32(binary.BigEndian.Uint16(t)), uint32(binary.BigEndian.Uint16(t[2:]))
	l.seq, l.ack = binary.BigEndian.Uint32(t[4:]), binary.BigEndian.Uint32(t[8:])
	l.flags = evidence.Flags(t[13]) | evidence.Flags(t[12]&1)<<8
	l.id = newFlowID(l.src, dst, p.Namespace)
	return true
}

// addresses are those of both ends.
func (f *flowID) addresses() [2]netip.Addr {
	var a, b [16]byte
	binary.BigEndian.PutUint64(a[:], f.aHigh)
	binary.BigEndian.PutUint64(a[8:], f.aLow)
	binary.BigEndian.PutUint64(b[:], f.bHigh)
	binary.BigEndian.PutUint64(b[8:], f.bLow)
	return [2]netip.Addr{netip.AddrFrom16(a).Unmap(), netip.AddrFrom16(b).Unmap()}
}

// counted is the flow as it is counted: a connection that several namespaces show
// is one, but the loopback addresses of each namespace are its own.
func (f flowID) counted(d evidence.Direction) flowID {
	if d != evidence.Loopback {
		f.namespace = 0
	}
	return f
}

// hash mixes the fields with odd constants; it decides on speed only.
func (f *flowID) hash() uint64 {
	x := f.aHigh ^ bits.RotateLeft64(f.bHigh, 32)
	x = (x ^ f.aLow) * 0x9e3779b97f4a7c15
	x = (bits.RotateLeft64(x, 29) ^ f.bLow) * 0xbf58476d1ce4e5b9
	x = (bits.RotateLeft64(x, 31) ^ uint64(f.ports) ^ uint64(f.namespace)<<32) * 0x94d049bb133111eb
	return x ^ x>>29
}

// life tells one connection from the next on the same tuple.
type life struct {
	isn           uint32 // of the initiator, if known
	known, closed bool
}

// over tells whether a segment opens a new connection on a tuple whose last was closed.
func (l *life) over(g *glance) bool {
	opens := g.flags.Has(evidence.SYN) && !g.flags.Has(evidence.ACK)
	return opens && l.closed && (!l.known || g.seq != l.isn)
}

func (l *life) observe(g *glance) {
	if g.flags.Has(evidence.SYN) && !l.known {
		l.known, l.isn = true, g.seq
		if g.flags.Has(evidence.ACK) {
			l.isn = g.ack - 1
		}
	}
	l.closed = l.closed || g.flags&(evidence.RST|evidence.FIN) != 0
}

// The bounds of what is counted: beyond them the numbers are lower bounds. A flow
// with a RST finds room where others do not.
const (
	maxCounted      = 24 << 10
	maxCountedReset = maxCounted + 12<<10
)

// The sizes of the index, powers of two. Most windows fit into the small one; the
// other is well above maxCountedReset, so that probes stay short.
const (
	fewTallySlots = 1 << 10
	tallySlots    = 64 << 10
)

// tallies counts connections: the index is an open-addressing table of numbers of
// slots, one more each, so that the free half of it takes little memory.
type tallies struct {
	index         []uint16
	slots         []tallySlot // the first used ones
	used          int
	flows, resets int
	atLeast       bool
}

type tallySlot struct {
	id      flowID
	life    life
	reset   bool
	silence silence
}

// place is where in the index id stands, or where it would.
func (t *tallies) place(id *flowID) uint64 {
	last := uint64(len(t.index) - 1)
	i := id.hash() & last
	for t.index[i] != 0 && t.slots[t.index[i]-1].id != *id {
		i = (i + 1) & last
	}
	return i
}

// open gives id a slot, and all a large index once the small one is half full.
func (t *tallies) open(id *flowID) *tallySlot {
	if t.used == fewTallySlots/2 {
		t.index = make([]uint16, tallySlots)
		for i := range t.slots[:t.used] {
			t.index[t.place(&t.slots[i].id)] = uint16(i + 1)
		}
	}
	if t.used == len(t.slots) {
		t.slots = append(t.slots, make([]tallySlot, len(t.slots)/2)...)
	}
	s := &t.slots[t.used]
	t.used++
	t.flows++
	t.index[t.place(id)] = uint16(t.used)
	s.id = *id
	return s
}

// each goes over the slots in the order of the index: with many of them, the first few
// are of any time.
func (t *tallies) each(visit func(*tallySlot) bool) {
	for _, n := range t.index {
		if n != 0 && !visit(&t.slots[n-1]) {
			return
		}
	}
}

func (t *tallies) count(g *glance, d evidence.Direction, nanos int64) {
	id, rst := g.id.counted(d), g.flags.Has(evidence.RST)
	if t.index == nil {
		t.index = make([]uint16, fewTallySlots)
	}
	var s *tallySlot
	switch n := t.index[t.place(&id)]; {
	case n == 0 && (t.used >= maxCountedReset || t.used >= maxCounted && !rst):
		t.atLeast = true
		return
	case n == 0:
		s = t.open(&id)
	default:
		if s = &t.slots[n-1]; s.life.over(g) {
			t.flows++
			s.life, s.reset, s.silence = life{}, false, silence{}
		}
	}
	s.life.observe(g)
	s.silence.observe(g, nanos)
	if rst && !s.reset {
		s.reset = true
		t.resets++
	}
}

// ends returns client and server; without a SYN the lower port is the server.
func ends(key evidence.FlowKey, client netip.AddrPort) (c, server netip.AddrPort, seen bool) {
	switch {
	case client == key.A:
		return key.A, key.B, true
	case client == key.B:
		return key.B, key.A, true
	case key.A.Port() < key.B.Port():
		return key.B, key.A, false
	}
	return key.A, key.B, false
}
