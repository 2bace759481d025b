package recorder

import (
	"math/bits"

	"golang.org/x/sys/unix"
)

// The masks of a record, and what is meant where a bit is set; an unset bit
// means "as predicted". docs/chunk-format.md describes them.
const (
	maskSame  = 1 << 0 // of the same flow as the packet before
	maskSide  = 1 << 1 // from the second end of the flow
	maskKind  = 3 << 2 // see kinds
	maskSeq   = 1 << 4
	maskAck   = 1 << 5
	maskStamp = 1 << 6
	maskMore  = 1 << 7 // the second mask follows

	moreWindow = 1 << 0
	moreID     = 1 << 1
	morePath   = 1 << 2
	moreLayout = 1 << 3
	moreRare   = 1 << 4 // the third mask follows
	moreAgain  = 1 << 5 // a further sighting of the packet before of this side
	moreNew    = 1 << 6 // the first packet of a flow
	moreRaw    = 1 << 7 // kept byte for byte

	rareTTL   = 1 << 0
	rareTOS   = 1 << 1
	rareDF    = 1 << 2
	rareIPSum = 1 << 3
	rareSum   = 1 << 4
	rareWire  = 1 << 5
)

// The kinds of segments, with regard to payload and flags.
const (
	kindBare    = 0 << 2 // no payload, expected flags
	kindData    = 1 << 2 // as much payload as before, expected flags
	kindLength  = 2 << 2 // payload follows, expected flags
	kindLiteral = 3 << 2 // flags and payload follow
)

// The tag of a new flow.
const (
	newTo    = 1 << 0 // receiver's address and port follow
	newFrom  = 1 << 1 // sender's address follows
	newSpace = 1 << 2 // namespace follows
	new6     = 1 << 3 // IPv6
)

// maxAgain is how long after the first sighting of a packet a further one may come.
const maxAgain = 10 // milliseconds

// maxPackets bounds a chunk, for the sake of its reader.
const maxPackets = 128 << 10

// encoder writes one chunk after another. It allocates nothing after its making.
type encoder struct {
	slots
	memory  []byte // of the columns
	columns [columns]column
	index   []uint32 // by hash: its highest bits, and flow number + 1, see placed
	seed    uint64
	known   map[Path]uint16
	fields  fields
	head    head
	last    int64 // time of the packet before
	current *flow // flow of the packet before, nil if it had none
	harm    *harm // scores resets; nil if nobody does
	// lookAt is the number of packets at which the columns are looked at again.
	lookAt uint32
	full   bool
	// reach is the part of the index in use, less one: small as long as there are
	// few flows, so that it stays in the processor's cache.
	reach uint64
	// place is where in the index find ended, and tag the bits that it looked for there.
	place uint64
	tag   uint32
	// side is that of the packet.
	side uint8
}

const (
	// indexSize leaves half of the index empty.
	indexSize  = 2 * maxFlows
	firstReach = 1<<10 - 1
	// placed are the bits of the index with the number: the others are of the hash.
	placed = 2*maxFlows - 1
)

// encoderBytes is the memory that an encoder takes, about, in bytes: the flows
// and their index, columns as far as they are used, the buffer of the compressor.
const encoderBytes = 6 << 20

// newEncoder makes an encoder. Its columns take memory as they are used: it is
// not of the Go heap, which would count all of it.
func newEncoder(seed uint64) (*encoder, error) {
	memory, err := anonymous(columns * columnBytes)
	if err != nil {
		return nil, err
	}
	e := &encoder{memory: memory, slots: newSlots(), index: make([]uint32, indexSize), reach: firstReach, seed: seed | 1, known: make(map[Path]uint16, 64)}
	for i := range e.columns {
		e.columns[i].b = memory[i*columnBytes : (i+1)*columnBytes : (i+1)*columnBytes]
	}
	e.reset()
	return e, nil
}

func (e *encoder) close() error { return unix.Munmap(e.memory) }

func (e *encoder) reset() {
	clear(e.index[:e.reach+1])
	// The next chunk is likely to have as many flows.
	for e.reach > firstReach && 4*uint64(len(e.flows)) <= e.reach {
		e.reach /= 2
	}
	e.slots.reset()
	clear(e.known)
	for i := range e.columns {
		e.columns[i].n = 0
	}
	e.head, e.last, e.current = head{}, 0, nil
	e.lookAt, e.full = checkEvery, false
}

// room tells whether a packet still fits into the chunk.
func (e *encoder) room() bool {
	if e.head.packets >= e.lookAt {
		e.look()
	}
	return !e.full
}

// size is that of the open chunk, uncompressed.
func (e *encoder) size() (sum int) {
	for i := range e.columns {
		sum += e.columns[i].n
	}
	return sum
}

func (e *encoder) look() {
	e.lookAt += checkEvery
	e.full = e.full || e.size() >= rawBytes || e.head.packets > maxPackets-checkEvery
}

// outcome is what became of a packet.
type outcome struct {
	kept, reset bool
	// again tells that it is a further sighting of one that was seen before.
	again bool
}

// add appends a packet; there must be room. What may not be kept of it, see Cut,
// is not: of a packet that is taken apart nothing but its fields is left.
func (e *encoder) add(m *Meta, b []byte) outcome {
	if e.quick(m, b) {
		return outcome{kept: true}
	}
	return e.general(m, b)
}

// general is add for all packets.
func (e *encoder) general(m *Meta, b []byte) (o outcome) {
	if e.fields.take(m, b) && e.layoutOf(&e.fields) {
		e.time(m)
		o = outcome{true, e.fields.flags&flagRST != 0, e.record(m)}
	} else if n, reset := Cut(b); n > 0 {
		if e.harm != nil && !e.harm.off {
			e.harm.bare(e, m, b, reset)
		}
		e.time(m)
		e.raw(m, b[:n])
		o = outcome{true, reset, false}
	} else {
		return o
	}
	e.head.count(m.Nanos, &o)
	return o
}

func (e *encoder) time(m *Meta) {
	e.columns[colTime].signed(m.Nanos - e.last)
	e.last = m.Nanos
}

// raw keeps a packet byte for byte.
func (e *encoder) raw(m *Meta, b []byte) {
	e.columns[colMask].byte(maskMore)
	e.columns[colMore].byte(moreRaw)
	v := &e.columns[colValue]
	v.uvarint(uint64(e.path(&m.Path)))
	v.uvarint(uint64(m.WireBytes))
	trusted := uint8(0)
	if m.Trusted {
		trusted = 1
	}
	v.byte(trusted)
	v.uvarint(uint64(len(b)))
	e.columns[colRaw].raw(b)
	e.current = nil
}

// record writes what of a packet is not as predicted.
func (e *encoder) record(m *Meta) (again bool) {
	p := &e.fields
	f, mask, more := e.flow()
	me := &f.sides[e.side]
	if !p.options.stamped() {
		p.value, p.ech = me.value, me.ech
	}
	milli := uint32(m.Nanos / 1e6)
	path := me.path
	// That of a new side is its template's: most connections to one port come one way.
	if int(path) >= len(e.paths) || !e.paths[path].same(&m.Path) {
		path = e.path(&m.Path)
		if me.seen && e.isAgain(me, m, milli) {
			e.again(f, mask, path)
			return true
		}
		if path != me.path {
			more |= morePath
			e.columns[colValue].uvarint(uint64(path))
		}
	}
	e.fill(f, mask, more, milli)
	if p.flags&flagsControl != 0 && e.harm != nil && !e.harm.off {
		e.harm.taken(e, f, m, milli)
	}
	e.learn(f, e.side, p, path, milli)
	return false
}

// flow finds the flow of the packet and its side, or opens it.
func (e *encoder) flow() (f *flow, mask, more uint8) {
	k := &e.fields.key
	if f = e.current; f == nil || !e.isOf(f, k) {
		if f = e.find(k); f == nil {
			f, more = e.open(k), moreNew
		}
		e.current = f
		return f, e.side << 1, more
	}
	return f, maskSame | e.side<<1, 0
}

// isOf tells whether a packet is of the flow, and sets its side.
func (e *encoder) isOf(f *flow, k *key) bool {
	switch {
	case f.key.same(k):
		e.side = 0
	case f.key.space != k.space || f.key.ports != bits.RotateLeft32(k.ports, 16):
		return false
	case k.space < space6:
		e.side = 1
		return f.key.words[0] == bits.RotateLeft64(k.words[0], 32)
	default:
		e.side = 1
		return f.key == k.reverse()
	}
	return true
}

// isAgain tells whether the packet is the one before of this side, seen on
// another interface or going the other way: bit for bit the same, at once.
func (e *encoder) isAgain(me *state, m *Meta, milli uint32) bool {
	p, was := &e.fields, &e.paths[me.path]
	moved := was.Interface != m.Path.Interface || was.Direction != m.Path.Direction || was.VLAN != m.Path.VLAN
	return moved && me.sightings < 255 && milli-me.milli <= maxAgain && !p.badIPSum && p.sumKind != sumLiteral &&
		p.facts == me.facts
}

// again writes a further sighting: nothing but where it was.
func (e *encoder) again(f *flow, mask uint8, path uint16) {
	me := &f.sides[e.side]
	more := uint8(moreAgain)
	if path != me.again {
		more |= morePath
		e.columns[colValue].uvarint(uint64(path))
		me.again = path
	}
	me.sightings++
	e.edges()
	e.masks(f, mask, more, 0)
}

// fill writes what of the packet is not as the flow's states predict. The order
// inside each column is the reader's.
func (e *encoder) fill(f *flow, mask, more uint8, milli uint32) {
	p, me := &e.fields, &f.sides[e.side]
	values, seqs := &e.columns[colValue], &e.columns[colSeq]
	if p.layout != me.expect {
		more |= moreLayout
		values.byte(p.layout)
	}
	if p.payload == 0 && p.flags == me.bareFlags {
		mask |= kindBare
	} else {
		mask |= e.kind(me)
	}
	if next := f.nextSeq(e.side); p.seq != next {
		mask |= maskSeq
		putDifference(seqs, me.seen, p.seq, next)
	}
	if p.ack != f.nextAck(e.side) {
		mask |= maskAck
		putDifference(seqs, me.seen, p.ack, me.ack)
	}
	if p.options.stamped() && (p.value != me.nextValue(milli) || p.ech != f.nextEch(e.side)) {
		e.stamps(p.value-me.nextValue(milli), p.ech-f.nextEch(e.side))
		mask |= maskStamp
	}
	if p.window != me.window {
		more |= moreWindow
		values.signed(int64(int16(p.window - me.window)))
	}
	if next := me.nextID(); p.ipid != next {
		more |= moreID
		values.signed(int64(int16(p.ipid - next)))
	}
	if p.options.plain == plainOther {
		e.edges()
	}
	rare := uint8(0)
	if p.fixed != me.fixed || p.label != me.label || p.badIPSum || p.sumKind == sumLiteral ||
		p.sumKind != me.nextSum(p.payload) || p.wire != me.nextWire(p.total()) {
		rare = e.rare(me)
	}
	e.masks(f, mask, more, rare)
}

// putDifference writes a sequence number: of a side that was seen before, the
// difference is short; of a new one it is as random as the number.
func putDifference(c *column, seen bool, v, next uint32) {
	if seen {
		c.signed(int64(int32(v - next)))
	} else {
		c.u32(v)
	}
}

func (e *encoder) kind(me *state) uint8 {
	p, values := &e.fields, &e.columns[colValue]
	switch {
	case p.payload == 0 || p.flags != me.dataFlags:
		values.byte(p.flags)
		values.uvarint(uint64(p.payload))
		return kindLiteral
	case p.payload == me.data:
		return kindData
	}
	values.uvarint(uint64(p.payload))
	return kindLength
}

// stamps writes how far the timestamps are from the expected ones. The lowest bit
// tells whether the echo follows.
func (e *encoder) stamps(value, ech uint32) {
	c, d := &e.columns[colStamp], int64(int32(value))
	v := (uint64(d)<<1 ^ uint64(d>>63)) << 1
	if ech == 0 {
		c.uvarint(v)
		return
	}
	c.uvarint(v | 1)
	c.signed(int64(int32(ech)))
}

// edges writes the SACK edges: the first from the acknowledgement, each other
// from the one before.
func (e *encoder) edges() {
	o, last := &e.fields.options, e.fields.ack
	for i := range o.edges() {
		e.columns[colSeq].signed(int64(int32(o.edge[i] - last)))
		last = o.edge[i]
	}
}

// rare writes what hardly ever changes inside a connection.
func (e *encoder) rare(me *state) (rare uint8) {
	p, values := &e.fields, &e.columns[colValue]
	if p.fixed.ttl() != me.fixed.ttl() {
		rare |= rareTTL
		values.byte(p.fixed.ttl())
	}
	if p.fixed.tos() != me.fixed.tos() || p.label != me.label {
		rare |= rareTOS
		values.byte(p.fixed.tos())
		values.u32(p.label)
	}
	if p.fixed.dontFragment() != me.fixed.dontFragment() {
		rare |= rareDF
		values.byte(p.fixed.dontFragment())
	}
	if p.badIPSum {
		rare |= rareIPSum
		values.u16(p.ipSum)
	}
	if p.sumKind != me.nextSum(p.payload) || p.sumKind == sumLiteral {
		rare |= rareSum
		values.byte(p.sumKind)
		if p.sumKind == sumLiteral {
			values.u16(p.sum)
		}
	}
	if p.wire != me.nextWire(p.total()) {
		rare |= rareWire
		values.uvarint(uint64(p.wire))
	}
	return rare
}

// masks writes a record's masks, and of which flow it is.
func (e *encoder) masks(f *flow, mask, more, rare uint8) {
	if mask&maskSame == 0 && more&moreNew == 0 {
		// Counted from the newest flow: what is new is what is busy.
		e.columns[colFlow].uvarint(uint64(uint32(len(e.flows)) - 1 - f.number))
	}
	if rare != 0 {
		more |= moreRare
	}
	if more != 0 {
		mask |= maskMore
		e.columns[colMore].byte(more)
	}
	if rare != 0 {
		e.columns[colMore].byte(rare)
	}
	e.columns[colMask].byte(mask)
}

// find finds a flow, nil if it is new.
func (e *encoder) find(k *key) *flow {
	h := e.hash(k)
	e.tag = indexTag(h)
	for i := h; ; i++ {
		e.place = i & e.reach
		switch n := e.index[e.place]; {
		case n == 0:
			return nil
		case n&^placed == e.tag:
			if f := &e.flows[n&placed-1]; e.isOf(f, k) {
				return f
			}
		}
	}
}

func indexTag(hash uint64) uint32 { return uint32(hash>>32) &^ placed }

// hash is the same for both ways of a flow. It is keyed with a random seed: who
// sends packets must not choose where their flows collide.
func (e *encoder) hash(k *key) uint64 {
	if k.space < space6 {
		return e.hash4(k.words[0], k.ports)
	}
	return e.hashEnds(e.mix(k.words[0])+k.words[1], e.mix(k.words[2])+k.words[3], k.ports)
}

func (e *encoder) hash4(ends uint64, ports uint32) uint64 {
	return e.hashEnds(ends&0xffffffff, ends>>32, ports)
}

func (e *encoder) hashEnds(a, b uint64, ports uint32) uint64 {
	h := e.mix(a^uint64(ports&0xffff)<<40) + e.mix(b^uint64(ports>>16)<<40)
	return h ^ h>>29
}

func (e *encoder) mix(v uint64) uint64 {
	v = (v ^ e.seed) * 0x9e3779b97f4a7c15
	return (v ^ v>>32) * (e.seed | 1)
}

// open adds a flow where find ended, and writes its ends: what of them is not as
// in the last connection to a port like this.
func (e *encoder) open(k *key) *flow {
	e.side = 0
	c, index := &e.columns[colNew], k.template()
	last := &e.templates[index].key
	tag := uint8(0)
	if !sameEnd(k, last, 1) || k.ports>>16 != last.ports>>16 {
		tag |= newTo
	}
	if !sameEnd(k, last, 0) {
		tag |= newFrom
	}
	if k.space&0xffff != 0 {
		tag |= newSpace
	}
	if k.space >= space6 {
		tag |= new6
	}
	c.byte(tag)
	c.byte(index)
	if tag&newTo != 0 {
		c.u16(uint16(k.ports >> 16))
		putEnd(c, k, 1)
	}
	if tag&newFrom != 0 {
		putEnd(c, k, 0)
	}
	if tag&newSpace != 0 {
		c.u16(uint16(k.space))
	}
	c.signed(int64(int16(sourcePort(k) - sourcePort(last))))
	f := e.slots.open(k)
	if 2*uint64(len(e.flows)) <= e.reach {
		e.index[e.place] = e.tag | uint32(len(e.flows))
	} else {
		e.widen()
	}
	e.full = e.full || len(e.flows) == maxFlows-checkEvery
	return f
}

// widen doubles the index, and puts all flows where they belong in it.
func (e *encoder) widen() {
	e.reach = 2*e.reach + 1
	clear(e.index[:e.reach+1])
	for n := range e.flows {
		h := e.hash(&e.flows[n].key)
		i := h & e.reach
		for e.index[i] != 0 {
			i = (i + 1) & e.reach
		}
		e.index[i] = indexTag(h) | uint32(n+1)
	}
}

// sameEnd compares the address of an end: 0 is the source.
func sameEnd(a, b *key, side int) bool {
	if a.space < space6 {
		return uint32(a.words[0]>>(32*side)) == uint32(b.words[0]>>(32*side))
	}
	return a.words[2*side] == b.words[2*side] && a.words[2*side+1] == b.words[2*side+1]
}

func putEnd(c *column, k *key, side int) {
	if k.space < space6 {
		c.u32(uint32(k.words[0] >> (32 * side)))
		return
	}
	c.u64(k.words[2*side])
	c.u64(k.words[2*side+1])
}

func sourcePort(k *key) uint16 { return bits.ReverseBytes16(uint16(k.ports)) }

// path returns the number of a path, and writes it where it is new.
func (e *encoder) path(p *Path) uint16 {
	if n, ok := e.known[*p]; ok {
		return n
	}
	n := uint16(len(e.paths))
	e.paths = append(e.paths, *p)
	e.known[*p] = n
	e.full = e.full || len(e.paths) >= maxPaths-checkEvery
	putPath(&e.columns[colRaw], p)
	return n
}

func putPath(c *column, p *Path) {
	c.u32(p.Interface)
	c.u16(p.LinkType)
	c.u16(p.Namespace)
	c.u16(p.VLAN[0])
	c.u16(p.VLAN[1])
	c.raw(p.SrcMAC[:])
	c.byte(uint8(p.Direction))
}

// layoutOf finds the number of the options' layout, and writes it where it is
// new; false if the table is full.
func (e *encoder) layoutOf(p *fields) bool {
	switch p.options.plain {
	case plainNone:
		p.layout = numberNone
		return true
	case plainStamp:
		p.layout = numberStamp
		return true
	}
	for i := range e.layouts {
		if e.layouts[i] == p.options.layout {
			p.layout = uint8(i)
			return true
		}
	}
	if len(e.layouts) == cap(e.layouts) {
		return false
	}
	p.layout = uint8(len(e.layouts))
	e.layouts = append(e.layouts, p.options.layout)
	c := &e.columns[colRaw]
	c.byte(p.options.layout.n)
	c.raw(p.options.layout.bytes[:p.options.layout.n])
	return true
}
