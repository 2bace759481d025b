package recorder

// state is what a chunk remembers of one direction of a flow: the next packet is
// predicted from it. Writer and reader of a chunk keep the same states.
type state struct {
	facts        // of the last packet
	data  uint32 // payload of the last segment that had any
	milli uint32 // time of the last packet, milliseconds
	// path is that of the packet, again that of its last further sighting.
	path, again uint16
	sightings   uint8
	expect      uint8 // layout of the next packet
	bareFlags   uint8 // expected of a segment without payload
	dataFlags   uint8 // expected of one with payload
	bareSum     uint8
	dataSum     uint8
	padded      bool // short packets come with the padding of Ethernet
	seen        bool
}

// flow is a connection inside one chunk: three lines of cache. Its side 0 is the
// sender of its first packet.
type flow struct {
	key     key
	number  uint32
	tracked uint32 // where harm has it, if it is still there; or a state, see flowOpening
	// isn and opened, in milliseconds, are of the SYN that it began with, if tracked is
	// flowOpening.
	isn, opened uint32
	template    uint8
	// need and run are the reader's, by side: how many packets of the current run are
	// needed, and how many came; again is whether its further sightings are.
	need, run, again [2]uint8
	sides            [2]state
}

// template is how connections to one service begin: the first packet of each side.
type template struct {
	sides [2]state
	key   key // of the last of them
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
		for side := range t.sides {
			t.sides[side].path, t.sides[side].again = noPath, noPath
		}
	}
}

// open adds a flow with the key of its first packet.
func (s *slots) open(k *key) *flow {
	n := len(s.flows)
	s.flows = s.flows[:n+1]
	f := &s.flows[n]
	f.key, f.number, f.tracked, f.template = *k, uint32(n), 0, k.template()
	f.sides = s.templates[f.template].sides
	f.sides[0].seen, f.sides[1].seen = false, false
	return f
}

// template goes by the port that the first packet went to.
func (k *key) template() uint8 { return uint8(k.ports>>24) % templates }

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
func (s *slots) learn(f *flow, side uint8, p *fields, path uint16, milli uint32) {
	me := &f.sides[side]
	first := !me.seen
	me.facts = p.facts
	me.path, me.expect, me.milli = path, p.layout, milli
	me.seen, me.sightings = true, 0
	if total := p.total(); total < wirePadding {
		me.padded = p.wire == wirePadding
	}
	if p.payload != 0 {
		me.data, me.dataFlags, me.dataSum = p.payload, p.flags, p.sumKind
	} else {
		me.bareSum = p.sumKind
		if p.flags&(flagFIN|flagRST) == 0 {
			me.bareFlags = p.flags
		}
	}
	if first {
		s.templates[f.template].learn(f, side, p)
	}
	if p.flags&flagSYN != 0 {
		me.opened(p.options.stamped())
	}
}

// opened is what follows a SYN: acknowledgements and data, with timestamps or
// without options.
func (me *state) opened(stamped bool) {
	me.bareFlags, me.dataFlags = flagACK, flagACK|flagPSH
	me.expect = numberNone
	if stamped {
		me.expect = numberStamp
	}
}

func (t *template) learn(f *flow, side uint8, p *fields) {
	t.sides[side] = f.sides[side]
	if side == 0 {
		t.key = f.key
	}
	if p.payload == 0 {
		t.sides[side].bareFlags = p.flags
	}
}
