package recorder

// state is what a chunk remembers of one direction of a flow: the next packet is
// predicted from it. Writer and reader of a chunk keep the same states.
type state struct {
	seq, next, ack uint32
	value, ech     uint32 // timestamps
	data           uint32 // payload of the last segment that had any
	label          uint32
	edges          uint32 // a digest of the SACK edges
	milli          uint32 // time of the packet, milliseconds
	wire           uint32
	ipid, window   uint16
	path, again    uint16 // of the first sighting, and of the last further one
	layout, expect uint16 // of the packet, and of the next
	ttl, tos       uint8
	flags          uint8
	bareFlags      uint8 // expected of a segment without payload
	dataFlags      uint8 // expected of one with payload
	dontFragment   uint8
	bareSum        uint8
	dataSum        uint8
	sum            uint8
	padded         bool // short packets come with the padding of Ethernet
	seen           bool
	sightings      uint8
}

// flow is a connection inside one chunk.
type flow struct {
	key   key
	sides [2]state
	// opener is the side of the first packet, template that of its beginnings.
	opener, template uint8
	number           uint32
}

// template is how connections to one service begin: the first packet of each side.
type template struct {
	opener, other state
	// from and to are the ends of the last of them.
	from, to end
}

type end struct {
	address [2]uint64
	port    uint16
}

const templates = 64

// slots is a chunk's memory of flows. The reader needs no index.
type slots struct {
	flows     []flow // by number
	paths     []Path
	layouts   []layout
	templates [templates]template
}

const (
	// maxFlows bounds the flows of a chunk: it is sealed when they are used up.
	maxFlows = 16 << 10
	// maxPaths and maxLayouts bound the tables; what does not fit is kept byte for
	// byte, or for paths, ends the chunk.
	maxPaths   = 4096
	maxLayouts = 64
	// noPath is no path's number.
	noPath = 0xffff
	// The layouts that each chunk knows from its beginning.
	numberNone  = 0
	numberStamp = 1
)

func newSlots() slots {
	return slots{
		flows: make([]flow, 0, maxFlows), paths: make([]Path, 0, maxPaths),
		layouts: make([]layout, 0, maxLayouts),
	}
}

func (s *slots) reset() {
	s.flows, s.paths = s.flows[:0], s.paths[:0]
	s.layouts = append(s.layouts[:0], layoutNone, layoutStamp)
	s.templates = [templates]template{}
	for i := range s.templates {
		t := &s.templates[i]
		t.opener.path, t.opener.again, t.other.path, t.other.again = noPath, noPath, noPath, noPath
	}
}

// open adds a flow, of which the first packet comes from the side.
func (s *slots) open(k *key, side uint8) *flow {
	s.flows = append(s.flows, flow{})
	f := &s.flows[len(s.flows)-1]
	f.key, f.opener, f.number = *k, side, uint32(len(s.flows)-1)
	_, to := k.ends(side)
	f.template = uint8(to.port % templates)
	t := &s.templates[f.template]
	f.sides[side], f.sides[1-side] = t.opener, t.other
	f.sides[0].seen, f.sides[1].seen = false, false
	return f
}

// ends are sender and receiver of a packet from the side.
func (k *key) ends(side uint8) (from, to end) {
	a, b := end{k.a, uint16(k.ports >> 16)}, end{k.b, uint16(k.ports)}
	if side == 1 {
		return b, a
	}
	return a, b
}

// keyOf is the inverse of ends.
func keyOf(from, to end, side uint8, space uint32) key {
	if side == 1 {
		from, to = to, from
	}
	return key{a: from.address, b: to.address, ports: uint32(from.port)<<16 | uint32(to.port), space: space}
}

// The predictions: each is a function of both sides' states, the same for writer
// and reader.

func (f *flow) nextSeq(side uint8) uint32 {
	me, peer := &f.sides[side], &f.sides[1-side]
	if !me.seen && peer.seen {
		return peer.ack
	}
	return me.next
}

func (f *flow) nextAck(side uint8) uint32 {
	me, peer := &f.sides[side], &f.sides[1-side]
	switch {
	case peer.seen:
		return peer.next
	case me.seen:
		return me.ack
	}
	return 0
}

// nextValue expects the sender's timestamp clock to tick each millisecond, which
// is what most stacks do (RFC 7323, 5.4 asks for 1 ms to 1 s).
func (s *state) nextValue(milli uint32) uint32 { return s.value + milli - s.milli }

func (f *flow) nextEch(side uint8) uint32 {
	me, peer := &f.sides[side], &f.sides[1-side]
	switch {
	case peer.seen:
		return peer.value
	case me.seen:
		return me.ech
	}
	return 0
}

// nextID: the kernel numbers the packets of a connection one by one, or not at all.
func (s *state) nextID() uint16 {
	if s.ipid == 0 {
		return 0
	}
	return s.ipid + 1
}

// wirePadding is the shortest payload of an Ethernet frame (IEEE 802.3, 60 bytes
// with the header).
const wirePadding = 46

func (s *state) nextSum(payload uint32) uint8 {
	if payload != 0 {
		return s.dataSum
	}
	return s.bareSum
}

func (s *state) nextWire(total uint32) uint32 {
	if s.padded && total < wirePadding {
		return wirePadding
	}
	return total
}

// learn takes over a packet, and remembers how a connection begins.
func (s *slots) learn(f *flow, p *fields, layout, path uint16, milli uint32) {
	me := &f.sides[p.side]
	first := !me.seen
	me.seq, me.ack = p.seq, p.ack
	me.next = p.next()
	if p.options.stamped() {
		me.value, me.ech = p.options.value, p.options.ech
	}
	me.edges = p.options.digest()
	me.ipid, me.window, me.ttl, me.tos = p.ipid, p.window, p.ttl, p.tos
	me.label, me.dontFragment = p.label, p.dontFragment
	me.path, me.layout, me.expect, me.milli = path, layout, layout, milli
	me.sum, me.wire = p.sumKind, p.wire
	if p.total() < wirePadding {
		me.padded = p.wire == wirePadding
	}
	me.flags, me.seen, me.sightings = p.flags, true, 0
	me.learn(p)
	if first {
		s.templates[f.template].learn(f, p)
	}
	if p.flags&flagSYN != 0 {
		me.opened()
	}
}

func (me *state) learn(p *fields) {
	if p.payload != 0 {
		me.data, me.dataFlags, me.dataSum = p.payload, p.flags, p.sumKind
	} else {
		me.bareSum = p.sumKind
		if p.flags&(flagFIN|flagRST) == 0 {
			me.bareFlags = p.flags
		}
	}
}

// opened is what follows a SYN: acknowledgements and data, with timestamps or
// without options.
func (me *state) opened() {
	me.bareFlags, me.dataFlags = flagACK, flagACK|flagPSH
	if me.value|me.ech != 0 {
		me.expect = numberStamp
	} else {
		me.expect = numberNone
	}
}

func (t *template) learn(f *flow, p *fields) {
	s := &t.other
	if p.side == f.opener {
		s = &t.opener
		t.from, t.to = p.key.ends(p.side)
	}
	*s = f.sides[p.side]
	if p.payload == 0 {
		s.bareFlags = p.flags
	}
}

// digest makes two segments with different SACK edges differ.
func (o *options) digest() (d uint32) {
	for i := range o.edges() {
		d = d*0x9e3779b1 + o.edge[i]
	}
	return d
}
