package verdict

import (
	"tcpcoroner/evidence"
)

// view is a tuple as one namespace shows it, during the second pass. What may be
// told of a connection is held back until its RST comes: the opening, further SYN
// and FIN, and of each side the latest packets and the one that reached highest.
type view struct {
	life
	slots   []slot
	opening int // used
	marks   int
	// next is where each side's ring of the latest packets goes on.
	next [2]int
	// ended tells that the RST came: excerpt is where it is told, -1 if nowhere.
	ended   bool
	excerpt int32
	after   int // that were stored
	// left and connections are what may still be kept.
	left, connections int
	tally             evidence.Excerpt
	// silent: the connection is told although no RST comes.
	silent bool
}

// slot holds a packet; its header has room of its own.
type slot struct {
	packet evidence.Packet
	end    uint32 // sequence number behind it
	used   bool
}

func (v *view) take(t *taking, p *evidence.Packet, l *glance, g *evidence.Segment) {
	if v.over(l) {
		if v.unfinished() {
			v.commit(t, nil)
		}
		v.settle(t)
		v.begin()
	}
	v.observe(l)
	v.count(p, g)
	switch {
	case v.ended && v.excerpt >= 0 && v.after < t.share.after && v.left > 0:
		v.after++
		v.left--
		t.store(p, v.excerpt)
	case v.ended:
	case g.Flags.Has(evidence.RST):
		v.ended = true
		v.commit(t, p)
	default:
		v.hold(t, p, g)
	}
}

// unfinished tells whether a connection that is told without a RST is still held back.
func (v *view) unfinished() bool {
	return v.silent && !v.ended && v.opening > 0 && v.slots[0].used
}

// begin forgets the connection that was before.
func (v *view) begin() {
	for i := range v.slots {
		v.slots[i].used = false
	}
	*v = view{slots: v.slots, excerpt: -1, left: v.left, connections: v.connections, silent: v.silent}
}

// count counts the whole connection, kept or not.
func (v *view) count(p *evidence.Packet, g *evidence.Segment) {
	e := &v.tally
	if e.First.IsZero() {
		e.Key, e.Namespace, e.First = g.Key(), p.Namespace, g.Time
	}
	e.Last = g.Time
	if g.Flags.Has(evidence.SYN) && !e.Client.IsValid() {
		e.Client = g.Src
		if g.Flags.Has(evidence.ACK) {
			e.Client = g.Dst
		}
	}
	if p.Sighting > 0 {
		return
	}
	e.Packets++
	if g.Flags.Has(evidence.RST) {
		e.Resets++
	}
	e.Bytes[sideOf(e, g)] += uint64(g.PayloadBytes)
}

// hold keeps a packet ahead of the RST.
func (v *view) hold(t *taking, p *evidence.Packet, g *evidence.Segment) {
	if v.connections == 0 || v.left <= 0 {
		return
	}
	if v.slots == nil {
		v.slots = make([]slot, t.share.slots())
	}
	s := t.share
	switch {
	case v.opening < s.opening:
		v.put(t, v.opening, p, g)
		v.opening++
	case g.Flags&(evidence.SYN|evidence.FIN) != 0 && v.marks < s.marks:
		v.put(t, s.opening+v.marks, p, g)
		v.marks++
	default:
		v.push(t, sideOf(&v.tally, g), p, g)
	}
}

// sideOf is 0 for a segment of the end A of an excerpt, 1 for one of B.
func sideOf(e *evidence.Excerpt, g *evidence.Segment) int {
	if g.Src == e.Key.A {
		return 0
	}
	return 1
}

// slots is the room that one story takes ahead of its RST.
func (s *share) slots() int { return s.opening + s.marks + 2 + 2*s.before }

// push puts a packet into the ring of its side. What falls out stays, beside the
// ring, if it reached higher than all that fell out before: the highest sequence
// number tells what was outstanding, and a retransmission does not show it.
func (v *view) push(t *taking, side int, p *evidence.Packet, g *evidence.Segment) {
	s := &t.share
	top := &v.slots[s.opening+s.marks+side]
	at := s.opening + s.marks + 2 + side*s.before + v.next[side]
	if old := &v.slots[at]; old.used && (!top.used || after(old.end, top.end)) {
		*old, *top = *top, *old
	}
	v.put(t, at, p, g)
	v.next[side] = (v.next[side] + 1) % s.before
}

func (v *view) put(t *taking, at int, p *evidence.Packet, g *evidence.Segment) {
	s := &v.slots[at]
	room := s.packet.Header
	s.used = t.copy(&room, p.Header)
	s.packet = *p
	s.packet.Header, s.end = room, g.Seq+g.Length()
}

// commit keeps for good what was held back, and the RST itself, if there is one.
func (v *view) commit(t *taking, rst *evidence.Packet) {
	if v.connections == 0 || v.left <= 0 || len(t.excerpts) == maxExcerpts {
		return
	}
	if rst != nil && !t.store(rst, int32(len(t.excerpts))) {
		return
	}
	v.connections--
	v.excerpt = int32(len(t.excerpts))
	t.excerpts = append(t.excerpts, evidence.Excerpt{})
	v.left--
	for i := range v.slots {
		if s := &v.slots[i]; s.used {
			t.stored = append(t.stored, stored{s.packet, v.excerpt})
			v.left--
			*s = slot{}
		}
	}
}

// settle writes the counts of a connection that was told.
func (v *view) settle(t *taking) {
	if v.excerpt >= 0 {
		kept := t.excerpts[v.excerpt].Kept
		t.excerpts[v.excerpt] = v.tally
		t.excerpts[v.excerpt].Kept = kept
	}
}
