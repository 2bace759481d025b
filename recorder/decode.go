package recorder

import (
	"fmt"
	"math"
	"math/bits"
	"slices"

	"tcpcoroner/evidence"
)

// decoder reads a chunk's packets one by one. It trusts nothing that it reads.
type decoder struct {
	slots
	columns [columns]cursor
	spoiled bool // a column ended too early
	need    Need // nil: everything is needed
	fields  fields
	times   []int64 // of the chunk
	number  int     // of the next packet
	left    int     // packets behind it
	last    int64
	current *flow
	side    uint8
	skipped bool // there is no packet
	packet  evidence.Packet
	header  [maxHeader]byte
}

// wish is whether a packet is wanted, or only what later ones are predicted from; and
// if it is, whether it is visited now, behind all that were decoded before.
type wish uint8

const (
	wishNone wish = iota
	wishNow
	wishLater
)

// needAll bounds a flow's need: it is all.
const needAll = math.MaxUint8

// What is known of a flow's further sightings.
const (
	againUnknown = iota
	againNone
	againAll
)

// start begins with a chunk, which must stay as it is until its end.
func (d *decoder) start(c *unpacked) {
	d.slots.reset()
	d.columns, d.times, d.left = c.columns, c.times, int(c.packets)
	d.number, d.current, d.spoiled = 0, nil, false
	for i := range d.columns {
		d.columns[i].bad = &d.spoiled
	}
}

// next reads a packet into d.packet, valid until the next call, unless it is not
// wanted; false at the end, or with an error where the chunk makes no sense.
func (d *decoder) next(w wish) (bool, error) {
	if d.left == 0 {
		return false, nil
	}
	if d.left--; d.number == len(d.times) {
		return false, d.damaged()
	}
	d.last = d.times[d.number]
	d.number++
	mask, more, rare := d.columns[colMask].byte(), uint8(0), uint8(0)
	if mask&maskMore != 0 {
		more = d.columns[colMore].byte()
	}
	if more&moreRare != 0 {
		rare = d.columns[colMore].byte()
	}
	ok := false
	if more&moreRaw != 0 {
		ok, d.skipped = d.raw(), w == wishNone
	} else {
		ok = d.record(w, mask, more, rare)
	}
	if !ok || d.spoiled {
		return false, d.damaged()
	}
	return true, nil
}

func (d *decoder) damaged() error {
	left := d.left + 1
	d.left = 0
	return fmt.Errorf("%w: the last %d packets make no sense", ErrDamaged, left)
}

func (d *decoder) raw() bool {
	v := &d.columns[colValue]
	number := v.uvarint()
	d.packet = evidence.Packet{Nanos: d.last, WireBytes: uint32(v.uvarint())}
	trusted := v.byte() != 0
	n := v.uvarint()
	path := d.path(number)
	if path == nil || n > maxHeader {
		return false
	}
	d.packet.Header = d.header[:copy(d.header[:], d.columns[colRaw].take(int(n)))]
	d.put(path)
	d.current = nil
	d.sum(trusted)
	return true
}

// sum finds out the state of the checksum of a packet that was kept byte for byte.
func (d *decoder) sum(trusted bool) {
	m := Meta{WireBytes: d.packet.WireBytes, Trusted: trusted}
	switch {
	case d.fields.take(&m, d.packet.Header):
		d.packet.Checksum = evidence.ChecksumStatus(d.fields.sumKind)
	case trusted:
		d.packet.Checksum = evidence.ChecksumTrusted
	}
}

// record reads a packet of a flow.
func (d *decoder) record(w wish, mask, more, rare uint8) bool {
	f := d.flow(mask, more)
	if f == nil {
		return false
	}
	d.current, d.side = f, mask&maskSide>>1
	me := &f.sides[d.side]
	milli := uint32(d.last / 1e6)
	if more&moreAgain != 0 {
		return d.again(w, f, more)
	}
	path, ok := d.numbers(me, more)
	if !ok {
		return false
	}
	d.read(f, mask, more, rare, milli)
	if d.skipped = d.spares(w, f, path); !d.skipped {
		d.emit(f, path, 0)
	}
	d.learn(f, d.side, &d.fields, path, milli)
	return true
}

// spares tells whether nobody needs the packet, and keeps account of its run: packets
// of a side that come one after the other, the same way, with the same TTL.
func (d *decoder) spares(w wish, f *flow, path uint16) bool {
	if d.need == nil {
		return w == wishNone
	}
	p, me, run, need := &d.fields, &f.sides[d.side], &f.run[d.side], &f.need[d.side]
	if !me.seen || path != me.path || p.fixed != me.fixed {
		*run, f.again[d.side] = 0, againUnknown
	}
	switch {
	case w == wishNone || p.flags&flagRST != 0:
		return w == wishNone
	case *run == 0:
		d.emit(f, path, 0)
		*need = d.needs()
	}
	came := *run
	*run = min(came+1, needAll-1)
	return *need == 0 || w == wishNow && came >= *need
}

// sparesAgain is spares of a further sighting. The first one's run goes on.
func (d *decoder) sparesAgain(w wish, f *flow) bool {
	me, again := &f.sides[d.side], &f.again[d.side]
	if d.need == nil || w == wishNone || me.flags&flagRST != 0 {
		return w == wishNone
	}
	if *again == againUnknown {
		d.emit(f, me.again, me.sightings)
		if *again = againAll; d.needs() == 0 {
			*again = againNone
		}
	}
	return *again == againNone
}

// needs asks how many packets are needed that are like the one that was made.
func (d *decoder) needs() uint8 { return uint8(min(max(d.need(&d.packet), 0), needAll)) }

// flow finds out of which flow the next packet is.
func (d *decoder) flow(mask, more uint8) *flow {
	switch {
	case more&moreNew != 0:
		return d.open()
	case mask&maskSame != 0:
		return d.current
	}
	back := d.columns[colFlow].uvarint()
	if back >= uint64(len(d.flows)) {
		return nil
	}
	return &d.flows[uint64(len(d.flows))-1-back]
}

func (d *decoder) open() *flow {
	c := &d.columns[colNew]
	tag, index := c.byte(), c.byte()
	if len(d.flows) == maxFlows || index >= templates {
		return nil
	}
	last := &d.templates[index].key
	k := key{words: last.words, ports: last.ports}
	if tag&new6 != 0 {
		k.space = space6
	} else {
		k.words = [4]uint64{last.words[0]}
	}
	if tag&newTo != 0 {
		k.ports = uint32(c.u16())<<16 | k.ports&0xffff
		end(c, &k, 1)
	}
	if tag&newFrom != 0 {
		end(c, &k, 0)
	}
	if tag&newSpace != 0 {
		k.space |= uint32(c.u16())
	}
	port := sourcePort(last) + uint16(c.signed())
	k.ports = k.ports&^0xffff | uint32(bits.ReverseBytes16(port))
	if k.template() != index {
		return nil
	}
	d.flows = slices.Grow(d.flows, 1) // nobody holds one but current, which is to change
	return d.slots.open(&k)
}

// end reads the address of an end: 0 is the source.
func end(c *cursor, k *key, side int) {
	if k.space < space6 {
		shift := 32 * side
		k.words[0] = k.words[0]&^(0xffffffff<<shift) | uint64(c.u32())<<shift
		return
	}
	k.words[2*side] = c.u64()
	k.words[2*side+1] = c.u64()
}

// numbers reads path and layout, the numbers first and then what is new.
func (d *decoder) numbers(me *state, more uint8) (path uint16, ok bool) {
	v := &d.columns[colValue]
	number, layout := uint64(me.path), me.expect
	if more&morePath != 0 {
		number = v.uvarint()
	}
	if more&moreLayout != 0 {
		layout = v.byte()
	}
	if !d.layout(layout) || number >= uint64(len(d.paths)) && d.path(number) == nil {
		return 0, false
	}
	return uint16(number), true
}

// path returns a path by its number; the one behind the last is read. Nil if the
// number makes no sense.
func (d *decoder) path(n uint64) *Path {
	switch {
	case n < uint64(len(d.paths)):
		return &d.paths[n]
	case n > uint64(len(d.paths)) || len(d.paths) == maxPaths:
		return nil
	}
	c := &d.columns[colRaw]
	p := Path{Interface: c.u32(), LinkType: c.u16(), Namespace: c.u16()}
	p.VLAN = [2]uint16{c.u16(), c.u16()}
	copy(p.SrcMAC[:], c.take(len(p.SrcMAC)))
	p.Direction = evidence.Direction(c.byte())
	d.paths = append(d.paths, p)
	return &d.paths[n]
}

// layout makes the layout with the number the one of the packet.
func (d *decoder) layout(n uint8) bool {
	o := &d.fields.options
	d.fields.layout = n
	switch {
	case n == numberNone:
		o.plain = plainNone
		return true
	case n == numberStamp:
		o.plain = plainStamp
		return true
	case int(n) > len(d.layouts) || n == maxLayouts || int(n) == len(d.layouts) && !d.newLayout():
		return false
	}
	o.plain, o.layout = plainOther, d.layouts[n]
	return true
}

func (d *decoder) newLayout() bool {
	c := &d.columns[colRaw]
	l := layout{n: c.byte()}
	if l.n > maxOptions || l.n%4 != 0 {
		return false
	}
	copy(l.bytes[:], c.take(int(l.n)))
	d.layouts = append(d.layouts, l)
	return d.layouts[len(d.layouts)-1].find()
}

// again is a further sighting of the packet before of this side.
func (d *decoder) again(w wish, f *flow, more uint8) bool {
	p, me := &d.fields, &f.sides[d.side]
	number := uint64(me.again)
	if more&morePath != 0 {
		number = d.columns[colValue].uvarint()
	}
	if !me.seen || !d.layout(me.layout) || d.path(number) == nil {
		return false
	}
	if uint16(number) != me.again {
		f.again[d.side] = againUnknown
	}
	me.again = uint16(number)
	me.sightings++
	p.facts, p.badIPSum = me.facts, false
	p.payload = me.next - me.seq - uint32(me.flags>>1&1) - uint32(me.flags&1)
	d.edges()
	if d.skipped = d.sparesAgain(w, f); !d.skipped {
		d.emit(f, me.again, me.sightings)
	}
	return true
}

// read fills the fields from predictions and columns.
func (d *decoder) read(f *flow, mask, more, rare uint8, milli uint32) {
	p, me := &d.fields, &f.sides[d.side]
	values, seqs := &d.columns[colValue], &d.columns[colSeq]
	d.kind(me, mask&maskKind)
	p.seq, p.ack = f.nextSeq(d.side), f.nextAck(d.side)
	if mask&maskSeq != 0 {
		p.seq = difference(seqs, me.seen, p.seq)
	}
	if mask&maskAck != 0 {
		p.ack = difference(seqs, me.seen, me.ack)
	}
	if p.value, p.ech = me.value, me.ech; p.options.stamped() {
		d.stamps(f, mask, milli)
	}
	p.window, p.ipid = me.window, me.nextID()
	if more&moreWindow != 0 {
		p.window += uint16(values.signed())
	}
	if more&moreID != 0 {
		p.ipid += uint16(values.signed())
	}
	p.next = p.seq + p.payload + uint32(p.flags>>1&1) + uint32(p.flags&1)
	d.edges()
	p.facts.edges = p.options.digest()
	d.rare(f, rare)
}

func difference(c *cursor, seen bool, next uint32) uint32 {
	if seen {
		return next + uint32(c.signed())
	}
	return c.u32()
}

func (d *decoder) kind(me *state, kind uint8) {
	p, values := &d.fields, &d.columns[colValue]
	p.payload, p.flags = 0, me.bareFlags
	switch kind {
	case kindData:
		p.payload, p.flags = me.data, me.dataFlags
	case kindLength:
		p.payload, p.flags = uint32(values.uvarint()), me.dataFlags
	case kindLiteral:
		p.flags = values.byte()
		p.payload = uint32(values.uvarint())
	}
}

func (d *decoder) stamps(f *flow, mask uint8, milli uint32) {
	p, c := &d.fields, &d.columns[colStamp]
	p.value, p.ech = f.sides[d.side].nextValue(milli), f.nextEch(d.side)
	if mask&maskStamp == 0 {
		return
	}
	v := c.uvarint()
	z := v >> 1
	p.value += uint32(int64(z>>1) ^ -int64(z&1))
	if v&1 != 0 {
		p.ech += uint32(c.signed())
	}
}

func (d *decoder) edges() {
	o, last := &d.fields.options, d.fields.ack
	for i := range o.edges() {
		last += uint32(d.columns[colSeq].signed())
		o.edge[i] = last
	}
}

func (d *decoder) rare(f *flow, rare uint8) {
	p, me, values := &d.fields, &f.sides[d.side], &d.columns[colValue]
	at := ip4Head
	if f.key.space >= space6 {
		at = ip6Head
	}
	p.head = at + minTCP + p.options.bytes()
	ttl, tos, dontFragment := me.fixed.ttl(), me.fixed.tos(), me.fixed.dontFragment()
	p.label = me.label
	p.sumKind, p.badIPSum, p.wire = me.nextSum(p.payload), false, me.nextWire(p.total())
	if rare&rareTTL != 0 {
		ttl = values.byte()
	}
	if rare&rareTOS != 0 {
		tos = values.byte()
		p.label = values.u32()
	}
	if rare&rareDF != 0 {
		dontFragment = values.byte()
	}
	p.fixed = fixedOf(ttl, tos, dontFragment)
	if rare&rareIPSum != 0 {
		p.badIPSum, p.ipSum = true, values.u16()
	}
	if rare&rareSum != 0 {
		if p.sumKind = values.byte(); p.sumKind == sumLiteral {
			p.sum = values.u16()
		}
	}
	if rare&rareWire != 0 {
		p.wire = uint32(values.uvarint())
	}
}

// emit makes the packet of the fields.
func (d *decoder) emit(f *flow, path uint16, sighting uint8) {
	p, k := &d.fields, &d.packet
	if p.key = f.key; d.side == 1 {
		p.key = f.key.reverse()
	}
	k.Header = d.header[:p.rebuild(&d.header)]
	k.Nanos, k.WireBytes, k.Sighting, k.Checksum = d.last, p.wire, sighting, evidence.ChecksumStatus(p.sumKind)
	d.put(&d.paths[path])
}

func (d *decoder) put(p *Path) {
	k := &d.packet
	k.Interface, k.LinkType, k.Namespace = p.Interface, p.LinkType, p.Namespace
	k.VLAN, k.SrcMAC, k.Direction = p.VLAN, p.SrcMAC, p.Direction
}
