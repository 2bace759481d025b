package verdict

import (
	"cmp"
	"math"
	"net/netip"
	"slices"
	"sync"

	"tcpcoroner/evidence"
)

// The bounds of what the second pass keeps.
const (
	// storyBudget is shared out evenly: a flow's story gets at least leastShare
	// packets, at most mostShare.
	storyBudget = 32 << 10
	leastShare  = 12
	mostShare   = 528
	// maxExcerpts bounds the connections that are judged, of which a reused tuple
	// can have many.
	maxExcerpts = 3072
	// maxSamples bounds the packets kept for the TTLs of addresses, maxHeaderBytes
	// the header bytes of all packets.
	maxSamples     = 8 << 10
	maxHeaderBytes = 12 << 20
)

// share is how many packets of each part of a story are kept.
type share struct {
	opening, marks, before, after int
	// left is for all connections on one tuple.
	left, connections int
}

func shareOf(views int) share {
	views = max(views, 1)
	n := min(max(storyBudget/views, leastShare), mostShare)
	return share{
		opening: min(max(n/8, 4), 64), marks: min(max(n/16, 4), 8), before: max(3*n/8, 4), after: min(max(n/16, 2), 16),
		left: max(storyBudget/views, 3*n/2), connections: max(maxExcerpts/views, 1),
	}
}

// taking is the second pass of a Selection.
type taking struct {
	share    share
	views    map[flowID]*view
	partners map[int]bool
	peers    map[peerID]*peer
	mu       sync.Mutex // of each peer: need is asked by who reads ahead
	samples  int
	// flows and senders have a bit set for each of views and peers: what has none
	// needs no look-up.
	flows, senders filter
	slab           slab
	stored         []stored
	excerpts       []evidence.Excerpt
	cut            bool
}

// stored is a packet that is kept for good; excerpt is -1 if it is of none.
type stored struct {
	packet  evidence.Packet
	excerpt int32
}

// peerID is an address as one namespace receives from it: on the way from one
// to the next, the TTL falls.
type peerID struct {
	addr      netip.Addr
	namespace uint16
}

// peer holds which TTLs of an address have been sampled.
type peer struct {
	ttls [maxTTLs]uint8
	n    int
	more int
}

// An address with many TTLs has no usual one; sampleMore packets are kept beside
// the first of each TTL.
const (
	maxTTLs    = 16
	sampleMore = 4
)

func newTaking(c *choice) *taking {
	t := &taking{
		share: shareOf(len(c.at)), views: make(map[flowID]*view, len(c.at)),
		partners: map[int]bool{}, peers: map[peerID]*peer{},
	}
	for id, f := range c.at {
		t.views[id] = &view{excerpt: -1, left: t.share.left, connections: t.share.connections, silent: f.silent}
		if f.partner != 0 {
			t.partners[f.partner] = true
		}
		t.flows.add(id.hash())
		for _, a := range id.addresses() {
			t.peers[peerID{a, id.namespace}] = &peer{}
			e := endpointOf(netip.AddrPortFrom(a, 0))
			t.senders.add(e.hash())
		}
	}
	return t
}

// filter is a set of hashes that may seem to hold more than it does.
type filter [2 << 10]uint64

func (f *filter) add(hash uint64)      { f[hash>>6%uint64(len(f))] |= 1 << (hash & 63) }
func (f *filter) has(hash uint64) bool { return f[hash>>6%uint64(len(f))]&(1<<(hash&63)) != 0 }

// hash is of the address only.
func (e *endpoint) hash() uint64 {
	x := (e.high ^ e.low) * 0x9e3779b97f4a7c15
	return x ^ x>>32
}

// matters is false for nearly all packets of a busy host.
func (t *taking) matters(p *evidence.Packet, l *glance) bool {
	return l.flags.Has(evidence.RST) || t.flows.has(l.id.hash()) ||
		p.Direction == evidence.Received && t.senders.has(l.src.hash())
}

// need is how many packets that are like p are of use.
func (t *taking) need(p *evidence.Packet, l *glance, g *evidence.Segment) int {
	switch {
	case !l.look(p, g):
		return math.MaxInt
	case !t.matters(p, l):
		return 0
	case t.views[l.id] != nil:
		return math.MaxInt
	case p.Direction != evidence.Received:
		return 0
	case evidence.ParseSegment(p, g) != nil:
		return math.MaxInt
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	from := t.peers[peerID{g.Src.Addr(), p.Namespace}]
	if from == nil || from.more == sampleMore && slices.Contains(from.ttls[:from.n], g.TTL) {
		return 0
	}
	return 1 + sampleMore // after them, sample has no use for more
}

func (t *taking) take(p *evidence.Packet, l *glance, g *evidence.Segment) {
	rst := l.flags.Has(evidence.RST)
	if v := t.views[l.id]; v != nil {
		v.take(t, p, l, g)
	}
	if rst && t.partners[p.Number] || !rst && p.Direction == evidence.Received && t.sample(p, g) {
		t.store(p, -1)
	}
}

// sample tells whether p is one of the packets that show the TTLs of an address:
// the first with each, and some more.
func (t *taking) sample(p *evidence.Packet, g *evidence.Segment) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	from := t.peers[peerID{g.Src.Addr(), p.Namespace}]
	if from == nil || from.n == maxTTLs {
		return false
	}
	fresh := !slices.Contains(from.ttls[:from.n], g.TTL)
	switch {
	case !fresh && from.more == sampleMore:
		return false
	case t.samples == maxSamples:
		t.cut = true
		return false
	case fresh:
		from.ttls[from.n] = g.TTL
		from.n++
	default:
		from.more++
	}
	t.samples++
	return true
}

func (t *taking) store(p *evidence.Packet, excerpt int32) bool {
	s := stored{*p, excerpt}
	s.packet.Header = nil
	if !t.copy(&s.packet.Header, p.Header) {
		return false
	}
	t.stored = append(t.stored, s)
	return true
}

// copy copies a header into room that it replaces if that is too small.
func (t *taking) copy(room *[]byte, header []byte) bool {
	if cap(*room) < len(header) {
		fresh, ok := t.slab.room(len(header))
		if !ok {
			t.cut = true
			return false
		}
		*room = fresh
	}
	*room = append((*room)[:0], header...)
	return true
}

// fill hands over what was kept.
func (t *taking) fill(w *evidence.Window) {
	t.commitSilent()
	for _, v := range t.views {
		v.settle(t)
	}
	slices.SortFunc(t.stored, func(a, b stored) int {
		return cmp.Or(a.packet.Number-b.packet.Number, int(b.excerpt)-int(a.excerpt))
	})
	t.stored = slices.CompactFunc(t.stored, func(a, b stored) bool { return a.packet.Number == b.packet.Number })
	w.Packets, w.Excerpts, w.Cut = make([]evidence.Packet, len(t.stored)), t.excerpts, t.cut
	for i := range t.stored {
		w.Packets[i] = t.stored[i].packet
		if e := t.stored[i].excerpt; e >= 0 {
			w.Excerpts[e].Kept = append(w.Excerpts[e].Kept, int32(i))
		}
	}
	slices.SortFunc(w.Excerpts, func(a, b evidence.Excerpt) int { return int(a.Kept[0] - b.Kept[0]) })
}

// commitSilent keeps the connections that never had a RST, in the order of time: the
// same packets give the same excerpts where there is not room for all.
func (t *taking) commitSilent() {
	var silent []*view
	for _, v := range t.views {
		if v.unfinished() {
			silent = append(silent, v)
		}
	}
	slices.SortFunc(silent, func(a, b *view) int { return a.slots[0].packet.Number - b.slots[0].packet.Number })
	for _, v := range silent {
		v.commit(t, nil)
	}
}

// slab hands out room for headers.
type slab struct {
	block []byte
	total int
}

const (
	slabBlock = 64 << 10
	slabStep  = 32
)

func (s *slab) room(n int) ([]byte, bool) {
	n = (n + slabStep - 1) / slabStep * slabStep
	if s.total+n > maxHeaderBytes {
		return nil, false
	}
	s.total += n
	if n > slabBlock/4 {
		return make([]byte, 0, n), true
	}
	if len(s.block) < n {
		s.block = make([]byte, slabBlock)
	}
	room := s.block[:0:n]
	s.block = s.block[n:]
	return room, true
}
