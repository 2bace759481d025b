package recorder

import "math/bits"

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
	newTo    = 1 << 0 // receiver follows
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
	columns [columns]column
	index   []uint32 // flow number + 1, by hash
	seed    uint64
	known   map[Path]uint16
	fields  fields
	head    head
	last    int64 // time of the packet before
	current *flow // flow of the packet before, nil if it had none
	// lookAt is the number of packets at which the columns are looked at again.
	lookAt uint32
	full   bool
	// place is where in the index find ended.
	place uint32
}

// encoderBytes is the memory that an encoder takes, about, in bytes: the flows
// and their index, columns as far as they are used, the buffer of the compressor.
const encoderBytes = 6 << 20

func newEncoder(seed uint64) *encoder {
	e := &encoder{slots: newSlots(), index: make([]uint32, 2*maxFlows), seed: seed | 1, known: make(map[Path]uint16, 64)}
	for i := range e.columns {
		e.columns[i] = newColumn()
	}
	e.reset()
	return e
}

func (e *encoder) reset() {
	e.slots.reset()
	clear(e.index)
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

// add appends a packet of which b is what may be kept; there must be room. It
// tells whether the packet is a further sighting of one that was seen before.
func (e *encoder) add(m *Meta, b []byte) (again bool) {
	e.columns[colTime].signed(m.Nanos - e.last)
	e.last = m.Nanos
	if !e.fields.take(m, b) {
		e.raw(m, b)
		return false
	}
	layout, ok := e.layoutOf(&e.fields.options)
	if !ok {
		e.raw(m, b)
		return false
	}
	return e.record(m, layout)
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
func (e *encoder) record(m *Meta, layout uint16) (again bool) {
	p := &e.fields
	mask, more := p.side<<1, uint8(0)
	f := e.current
	switch {
	case f != nil && f.key == p.key:
		mask |= maskSame
	default:
		if f = e.find(&p.key); f == nil {
			f = e.open()
			more |= moreNew
		}
		e.current = f
	}
	milli := uint32(m.Nanos / 1e6)
	me := &f.sides[p.side]
	path, isPath := me.path, me.seen && e.paths[me.path] == m.Path
	if !isPath {
		path = e.path(&m.Path)
		if me.seen && e.isAgain(f, m, layout, milli) {
			e.again(f, mask, path)
			return true
		}
		if path != me.path {
			more |= morePath
			e.columns[colValue].uvarint(uint64(path))
		}
	}
	e.fill(f, mask, more, layout, milli)
	e.learn(f, p, layout, path, milli)
	return false
}

// isAgain tells whether the packet is the one before of this side, seen on
// another interface or going the other way: bit for bit the same, at once.
func (e *encoder) isAgain(f *flow, m *Meta, layout uint16, milli uint32) bool {
	p := &e.fields
	me := &f.sides[p.side]
	was := &e.paths[me.path]
	moved := was.Interface != m.Path.Interface || was.Direction != m.Path.Direction || was.VLAN != m.Path.VLAN
	return moved && me.sightings < 255 && milli-me.milli <= maxAgain && !p.badIPSum && p.sumKind != sumLiteral &&
		p.seq == me.seq && p.ack == me.ack && p.flags == me.flags && p.next() == me.next && p.wire == me.wire &&
		p.window == me.window && p.ipid == me.ipid && p.ttl == me.ttl && p.tos == me.tos && p.label == me.label &&
		p.dontFragment == me.dontFragment && p.sumKind == me.sum && layout == me.layout &&
		(!p.options.stamped() || p.options.value == me.value && p.options.ech == me.ech) &&
		p.options.digest() == me.edges
}

// again writes a further sighting: nothing but where it was.
func (e *encoder) again(f *flow, mask uint8, path uint16) {
	me := &f.sides[e.fields.side]
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
func (e *encoder) fill(f *flow, mask, more uint8, layout uint16, milli uint32) {
	p := &e.fields
	me := &f.sides[p.side]
	values, seqs := &e.columns[colValue], &e.columns[colSeq]
	if layout != me.expect {
		more |= moreLayout
		values.uvarint(uint64(layout))
	}
	mask |= e.kind(me)
	if next := f.nextSeq(p.side); p.seq != next {
		mask |= maskSeq
		putDifference(seqs, me.seen, p.seq, next)
	}
	if p.ack != f.nextAck(p.side) {
		mask |= maskAck
		putDifference(seqs, me.seen, p.ack, me.ack)
	}
	if p.options.stamped() {
		mask |= e.stamps(f, milli)
	}
	if p.window != me.window {
		more |= moreWindow
		values.signed(int64(int16(p.window - me.window)))
	}
	if next := me.nextID(); p.ipid != next {
		more |= moreID
		values.signed(int64(int16(p.ipid - next)))
	}
	e.edges()
	e.masks(f, mask, more, e.rare(me))
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
	case p.payload == 0 && p.flags == me.bareFlags:
		return kindBare
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

// stamps writes the timestamps if one of them is not as predicted. The lowest
// bit tells whether the echo follows.
func (e *encoder) stamps(f *flow, milli uint32) uint8 {
	p, c := &e.fields, &e.columns[colStamp]
	value, ech := f.sides[p.side].nextValue(milli), f.nextEch(p.side)
	if p.options.value == value && p.options.ech == ech {
		return 0
	}
	d := int64(int32(p.options.value - value))
	v := (uint64(d)<<1 ^ uint64(d>>63)) << 1
	if p.options.ech == ech {
		c.uvarint(v)
		return maskStamp
	}
	c.uvarint(v | 1)
	c.signed(int64(int32(p.options.ech - ech)))
	return maskStamp
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
	if p.ttl != me.ttl {
		rare |= rareTTL
		values.byte(p.ttl)
	}
	if p.tos != me.tos || p.label != me.label {
		rare |= rareTOS
		values.byte(p.tos)
		values.u32(p.label)
	}
	if p.dontFragment != me.dontFragment {
		rare |= rareDF
		values.byte(p.dontFragment)
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
	for i := e.hash(k); ; i++ {
		e.place = i % uint32(len(e.index))
		n := e.index[e.place]
		if n == 0 {
			return nil
		}
		if f := &e.flows[n-1]; f.key == *k {
			return f
		}
	}
}

// hash is keyed with a random seed: who sends packets must not choose where
// their flows collide.
func (e *encoder) hash(k *key) uint32 {
	h := (k.a[0] ^ e.seed) * 0x9e3779b97f4a7c15
	h ^= bits.RotateLeft64((k.b[0]^uint64(k.ports)<<32)*(e.seed|1), 29)
	if k.space&space6 != 0 {
		h ^= bits.RotateLeft64(k.a[1]*0xc2b2ae3d27d4eb4f, 17) ^ k.b[1]*0x165667b19e3779f9
	}
	h = (h ^ h>>32) * (e.seed ^ 0xd6e8feb86659fd93 | 1)
	return uint32((h ^ h>>29) % uint64(len(e.index)))
}

// open adds a flow where find ended, and writes its ends: what of them is not as
// in the last connection to a port like this.
func (e *encoder) open() *flow {
	p, c := &e.fields, &e.columns[colNew]
	from, to := p.key.ends(p.side)
	index := uint8(to.port % templates)
	t := &e.templates[index]
	tag := uint8(0)
	if to != t.to {
		tag |= newTo
	}
	if from.address != t.from.address {
		tag |= newFrom
	}
	if p.key.space&0xffff != 0 {
		tag |= newSpace
	}
	if p.key.space&space6 != 0 {
		tag |= new6
	}
	c.byte(tag)
	c.byte(index)
	if tag&newTo != 0 {
		c.u16(to.port)
		putAddress(c, to.address, tag&new6 != 0)
	}
	if tag&newFrom != 0 {
		putAddress(c, from.address, tag&new6 != 0)
	}
	if tag&newSpace != 0 {
		c.u16(uint16(p.key.space))
	}
	c.signed(int64(int16(from.port - t.from.port)))
	f := e.slots.open(&p.key, p.side)
	e.index[e.place] = uint32(len(e.flows))
	e.full = e.full || len(e.flows) == maxFlows-checkEvery
	return f
}

func putAddress(c *column, a [2]uint64, v6 bool) {
	if !v6 {
		c.u32(uint32(a[0]))
		return
	}
	c.u64(a[0])
	c.u64(a[1])
}

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

// layoutOf returns the number of the options' layout, and writes it where it is
// new; false if the table is full.
func (e *encoder) layoutOf(o *options) (uint16, bool) {
	switch o.plain {
	case plainNone:
		return numberNone, true
	case plainStamp:
		return numberStamp, true
	}
	for i := range e.layouts {
		if e.layouts[i] == o.layout {
			return uint16(i), true
		}
	}
	if len(e.layouts) == cap(e.layouts) {
		return 0, false
	}
	e.layouts = append(e.layouts, o.layout)
	c := &e.columns[colRaw]
	c.byte(o.layout.n)
	c.raw(o.layout.bytes[:o.layout.n])
	return uint16(len(e.layouts) - 1), true
}
