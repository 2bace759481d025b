package verdict

import (
	"net/netip"
	"time"

	"tcpcoroner/evidence"
)

// sameSegmentWithin is how long a packet may take through this host, which may
// be busy, to still be one segment. TCP retransmits later (the least RTO of
// Linux is 200 ms) and with another IP ID or time stamp.
const sameSegmentWithin = 50 * time.Millisecond

// resetID is what NAT leaves alone of a RST.
type resetID struct {
	seq, ack uint32
	flags    evidence.Flags
}

// resetSight is one RST as one interface showed it.
type resetSight struct {
	resetID
	src, dst  netip.AddrPort
	nanos     int64
	number    int
	iface     uint32
	namespace uint16
	direction evidence.Direction
	// root is the namespace that showed the RST first.
	root uint16
}

func sightOf(p *evidence.Packet, g *evidence.Segment) resetSight {
	return resetSight{
		resetID: resetID{g.Seq, g.Ack, g.Flags}, src: g.Src, dst: g.Dst, nanos: p.Nanos, number: p.Number,
		iface: p.Interface, namespace: p.Namespace, direction: p.Direction, root: p.Namespace,
	}
}

// again tells whether r is o, seen once more elsewhere on its way: on another
// interface or in another namespace.
func (r *resetSight) again(o *resetSight) bool {
	elsewhere := o.namespace != r.namespace || o.iface != r.iface || o.direction != r.direction
	return elsewhere && o.src == r.src && o.dst == r.dst && r.soonAfter(o)
}

// relays tells whether r, which was sent, is o, which had come in: same numbers,
// and at least one address in common, for NAT rewrites one end at a time. Equal
// numbers alone could be chance.
func (r *resetSight) relays(o *resetSight) bool {
	return o.direction == evidence.Received && r.direction == evidence.Sent && o.namespace == r.namespace && r.soonAfter(o) &&
		(o.src == r.src || o.dst == r.dst || o.src.Addr() == r.src.Addr() || o.dst.Addr() == r.dst.Addr())
}

func (r *resetSight) soonAfter(o *resetSight) bool {
	d := time.Duration(r.nanos - o.nanos)
	return r.resetID == o.resetID && d >= 0 && d <= sameSegmentWithin
}

// The shape of the memory for the latest RSTs: 16,384 of them, which is those of
// 50 ms at 300,000 a second. What falls out of it was not relayed, it seems: then
// more resets count as sent than TCP has counted, which is doubt, not blame.
const (
	recentSets = 2 << 10
	recentWays = 8
)

// recentResets finds earlier sightings of a RST.
type recentResets struct {
	sights []*[recentWays]resetSight // nil where there was none
	next   []uint8
}

func newRecentResets() recentResets {
	return recentResets{make([]*[recentWays]resetSight, recentSets), make([]uint8, recentSets)}
}

// meet returns the earlier sighting of r itself and the RST that r relays, nil
// where there is none. They are valid until remember is called.
func (m *recentResets) meet(r *resetSight) (earlier, relayed *resetSight) {
	set := m.sights[r.set()]
	if set == nil {
		return nil, nil
	}
	for i := range set {
		o := &set[i]
		if o.number == 0 {
			continue
		}
		if earlier == nil && r.again(o) {
			earlier = o
		}
		if relayed == nil && r.relays(o) {
			relayed = o
		}
	}
	return earlier, relayed
}

func (m *recentResets) remember(r *resetSight) {
	h := r.set()
	if m.sights[h] == nil {
		m.sights[h] = new([recentWays]resetSight)
	}
	m.sights[h][m.next[h]] = *r
	m.next[h] = (m.next[h] + 1) % recentWays
}

func (r *resetSight) set() uint64 {
	return (uint64(r.seq)<<32 | uint64(r.ack)) * 0x9e3779b97f4a7c15 >> 32 % recentSets
}
