package recorder

import (
	"encoding/binary"
	"net/netip"

	"tcpcoroner/evidence"
)

// harmGroups bounds the groups of a sample.
const harmGroups = 128

// harmTally is what all resets did: fixed memory, so that a copy is a snapshot.
type harmTally struct {
	kinds            evidence.HarmCounts
	score            uint64
	closes, unscored uint64
	evicted          uint64
	used             int
	groups           [harmGroups]harmGroup
	// chains find a group by its hash: the number of the first one, and in the group
	// that of the next one, both plus 1.
	chains [2 * harmGroups]uint8
}

// harmPeers names a group: evidence.HarmGroup in fixed bytes.
type harmPeers struct {
	net      [8]byte // of IPv4 the first 3 bytes, of IPv6 the first 7
	port     uint16
	outbound bool
	v6       bool
}

type harmGroup struct {
	harmPeers
	next  uint8
	last  uint32 // milliseconds
	kinds [evidence.HarmKinds]uint32
}

// add counts a reset. Only harmful ones make a group known.
func (t *harmTally) add(kind evidence.HarmKind, score uint8, p *harmPeers, milli uint32) {
	t.kinds[kind]++
	t.score += uint64(score)
	g := t.find(p)
	if g == nil && kind.Harmful() {
		g = t.open(p, milli)
	}
	if g != nil {
		g.kinds[kind]++
		g.last = milli
	}
}

func (t *harmTally) find(p *harmPeers) *harmGroup {
	for n := *t.chain(p); n != 0; n = t.groups[n-1].next {
		if g := &t.groups[n-1]; g.harmPeers == *p {
			return g
		}
	}
	return nil
}

// chain is where the groups of a hash begin.
func (t *harmTally) chain(p *harmPeers) *uint8 {
	v := (binary.LittleEndian.Uint64(p.net[:]) ^ uint64(p.port)<<40) * 0x9e3779b97f4a7c15
	return &t.chains[v>>48%uint64(len(t.chains))]
}

// open makes a group known, in the place of the one that was quiet longest.
func (t *harmTally) open(p *harmPeers, milli uint32) *harmGroup {
	n := t.used
	if n < harmGroups {
		t.used++
	} else {
		n = t.quietest()
		t.unchain(n)
		t.evicted++
	}
	g, first := &t.groups[n], t.chain(p)
	*g = harmGroup{harmPeers: *p, next: *first, last: milli}
	*first = uint8(n + 1)
	return g
}

func (t *harmTally) quietest() (n int) {
	for i := range t.groups {
		if int32(t.groups[i].last-t.groups[n].last) < 0 {
			n = i
		}
	}
	return n
}

func (t *harmTally) unchain(n int) {
	g := &t.groups[n]
	at := t.chain(&g.harmPeers)
	for *at != uint8(n+1) {
		at = &t.groups[*at-1].next
	}
	*at = g.next
}

// sample is the tally in the words of evidence.
func (t *harmTally) sample() evidence.HarmSample {
	s := evidence.HarmSample{
		Kinds: t.kinds, Score: t.score, Closes: t.closes, Unscored: t.unscored, Evicted: t.evicted,
		Groups: make([]evidence.GroupHarm, t.used),
	}
	for i := range s.Groups {
		g := &t.groups[i]
		s.Groups[i].HarmGroup = evidence.HarmGroup{Port: g.port, Outbound: g.outbound, Peers: g.prefix()}
		for k, n := range g.kinds {
			s.Groups[i].Kinds[k] = uint64(n)
		}
	}
	return s
}

// The neighbourhoods: what one operator, or one customer, is likely to have.
const (
	peerBits4 = 24
	peerBits6 = 56
)

func (p *harmPeers) prefix() netip.Prefix {
	if p.v6 {
		return netip.PrefixFrom(netip.AddrFrom16([16]byte(append(p.net[:7:7], make([]byte, 9)...))), peerBits6)
	}
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{p.net[0], p.net[1], p.net[2], 0}), peerBits4)
}

// peersOf names the group of a connection as one of its ends sends it. server
// tells which end serves, 0 for the source, and peer which is not on this host.
func peersOf(k *key, server, peer uint8) harmPeers {
	p := harmPeers{port: portOf(k, server), outbound: server == peer, v6: k.space >= space6}
	if p.v6 {
		binary.LittleEndian.PutUint64(p.net[:], k.words[2*peer])
		p.net[7] = 0
		return p
	}
	binary.LittleEndian.PutUint32(p.net[:], uint32(k.words[0]>>(32*peer)))
	p.net[3] = 0
	return p
}

// portOf is the port of an end: 0 is the source.
func portOf(k *key, end uint8) uint16 {
	v := uint16(k.ports >> (16 * end))
	return v<<8 | v>>8
}
