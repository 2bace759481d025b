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
	for i := range t.groups[:t.used] {
		if t.groups[i].harmPeers == *p {
			return &t.groups[i]
		}
	}
	return nil
}

// open makes a group known, in the place of the one that was quiet longest.
func (t *harmTally) open(p *harmPeers, milli uint32) *harmGroup {
	g := &t.groups[0]
	if t.used < harmGroups {
		g = &t.groups[t.used]
		t.used++
	} else {
		for i := range t.groups {
			if int32(t.groups[i].last-g.last) < 0 {
				g = &t.groups[i]
			}
		}
		t.evicted++
	}
	*g = harmGroup{harmPeers: *p, last: milli}
	return g
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
