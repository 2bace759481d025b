package afpacket

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"tcpcoroner/evidence"
	"tcpcoroner/recorder"
)

// The layout of a TPACKET_V3 block and of a packet in it, from linux/if_packet.h:
// struct tpacket_block_desc with tpacket_hdr_v1; struct tpacket3_hdr, 48 bytes,
// and struct sockaddr_ll behind it. All but sll_protocol is in host order.
const (
	blockStatus  = 8
	blockPackets = 12
	blockFirst   = 16
	blockUsed    = 20
	blockTime    = 32
	blockHeader  = 48

	packetNext     = 0
	packetSec      = 4
	packetNsec     = 8
	packetKept     = 12
	packetLength   = 16
	packetStatus   = 20
	packetData     = 24
	packetTCI      = 32
	packetFamily   = 48
	packetProtocol = 50
	packetIndex    = 52
	packetHatype   = 56
	packetType     = 58
	packetHalen    = 59
	packetAddress  = 60
	packetHeader   = 68

	vlanTag = 4

	// statusLosing (TP_STATUS_LOSING) tells that packets were dropped which the
	// statistics have not told yet.
	statusLosing = 4
)

func u16(b []byte, at int) uint16 { return binary.NativeEndian.Uint16(b[at:]) }
func u32(b []byte, at int) uint32 { return binary.NativeEndian.Uint32(b[at:]) }

// purpose is what a walk does with the packets of a block.
type purpose uint8

const (
	// add gives all to the sink.
	add purpose = iota
	// addLate is add without the packets that came before the filter.
	addLate
	// count has the sink count them, store gives it what was counted before.
	count
	store
	// evict is store for control packets; the others are skipped.
	evict
)

// walker goes through the packets of a block. It is part of a ring, made once:
// nothing is allocated or cleared for a packet.
type walker struct {
	sink recorder.Sink
	meta recorder.Meta
	// since is CLOCK_REALTIME nanoseconds: earlier packets came past the filter.
	since int64
	// early counts the packets from before since.
	early uint64
	// seen remembers interfaces by the low bits of their index: that spares most
	// packets the look into known.
	seen    [64]uint32
	known   map[uint32]struct{}
	unknown []evidence.Interface
	// address is the sockaddr_ll that the path was read from, tagged whether more
	// than that is in it.
	address [3]uint64
	tagged  bool
	// skipped packets of the block at hand, with the times of the first and last.
	skipped     uint64
	first, last int64
}

// walk visits each packet of a block that the kernel has handed over. It trusts no
// number in it: what points out of the block ends the walk and is reported as
// false. The headers alias the block.
func (w *walker) walk(b []byte, do purpose) bool {
	if len(b) < blockHeader {
		return false
	}
	n, at := int(u32(b, blockPackets)), int(u32(b, blockFirst))
	if n < 0 || n > len(b)/packetHeader {
		return false
	}
	for ; n > 0; n-- {
		if at < blockHeader || at > len(b)-packetHeader || !w.packet(b[at:], do) {
			return false
		}
		next := int(u32(b, at+packetNext))
		if n > 1 && (next < packetHeader || next > len(b)) {
			return false
		}
		at += next
	}
	return true
}

func (w *walker) packet(b []byte, do purpose) bool {
	p := (*[packetHeader]byte)(b)
	kept, data := int(u32(p[:], packetKept)), int(u16(p[:], packetData))
	if kept < 0 || data < packetHeader || data > len(b) || kept > len(b)-data {
		return false
	}
	if u16(p[:], packetHatype) == unix.ARPHRD_LOOPBACK && p[packetType] == unix.PACKET_OUTGOING {
		return true // its other copy, coming in, is the one to keep
	}
	m, status := &w.meta, u32(p[:], packetStatus)
	m.Nanos = int64(u32(p[:], packetSec))*1e9 + int64(u32(p[:], packetNsec))
	m.WireBytes = u32(p[:], packetLength)
	m.Trusted = status&unix.TP_STATUS_CSUM_VALID != 0
	header := b[data : data+kept]
	if !w.samePath(p, status) {
		w.path(p, status)
	}
	if mayHaveTag(header) {
		header = stripTag(header, binary.BigEndian.Uint16(p[packetProtocol:]), p[packetType], m)
		w.tagged = true
	}
	if do == add {
		w.sink.Add(m, header)
	} else {
		w.give(do, header)
	}
	return true
}

// samePath tells whether a packet has the path of the one before: most have.
func (w *walker) samePath(p *[packetHeader]byte, status uint32) bool {
	return w.address[0] == binary.NativeEndian.Uint64(p[packetFamily:]) &&
		w.address[1] == binary.NativeEndian.Uint64(p[packetFamily+8:]) &&
		uint32(w.address[2]) == binary.NativeEndian.Uint32(p[packetFamily+16:]) &&
		!w.tagged && status&unix.TP_STATUS_VLAN_VALID == 0
}

// path sets all of the path but the namespace, which is the ring's.
func (w *walker) path(p *[packetHeader]byte, status uint32) {
	w.address[0] = binary.NativeEndian.Uint64(p[packetFamily:])
	w.address[1] = binary.NativeEndian.Uint64(p[packetFamily+8:])
	w.address[2] = uint64(binary.NativeEndian.Uint32(p[packetFamily+16:]))
	w.tagged = status&unix.TP_STATUS_VLAN_VALID != 0
	path := &w.meta.Path
	index, hatype := u32(p[:], packetIndex), u16(p[:], packetHatype)
	path.Interface, path.LinkType = index, hatype
	path.Direction = direction(hatype, p[packetType])
	path.VLAN = [2]uint16{}
	if status&unix.TP_STATUS_VLAN_VALID != 0 {
		path.VLAN[0] = uint16(u32(p[:], packetTCI))
	}
	if p[packetHalen] == 6 {
		path.SrcMAC = [6]byte(p[packetAddress:])
	} else {
		path.SrcMAC = [6]byte{}
	}
	if w.seen[index%uint32(len(w.seen))] != index {
		w.note(index, hatype)
	}
}

// note remembers an interface.
func (w *walker) note(index uint32, hatype uint16) {
	w.seen[index%uint32(len(w.seen))] = index
	if _, ok := w.known[index]; !ok {
		w.known[index] = struct{}{}
		w.unknown = append(w.unknown, evidence.Interface{Namespace: w.meta.Path.Namespace, Index: index, LinkType: hatype})
	}
}

func (w *walker) give(do purpose, header []byte) {
	m := &w.meta
	switch do {
	case addLate:
		if m.Nanos < w.since {
			w.early++
			return
		}
		w.sink.Add(m, header)
	case count:
		w.sink.Count(m, header)
	case evict:
		if !recorder.Control(header) {
			w.skip(m.Nanos)
			return
		}
		fallthrough
	case store:
		w.sink.Store(m, header)
	}
}

func (w *walker) skip(nanos int64) {
	if w.skipped == 0 {
		w.first, w.last = nanos, nanos
	}
	w.skipped++
	w.first, w.last = min(w.first, nanos), max(w.last, nanos)
}

// direction reads sll_pkttype. On devices without a link layer it says nothing
// that can be relied on.
func direction(hatype uint16, kind uint8) evidence.Direction {
	switch hatype {
	case unix.ARPHRD_ETHER:
	case unix.ARPHRD_LOOPBACK:
		return evidence.Loopback
	case unix.ARPHRD_NONE, unix.ARPHRD_PPP, unix.ARPHRD_RAWIP, unix.ARPHRD_TUNNEL, unix.ARPHRD_TUNNEL6,
		unix.ARPHRD_SIT, unix.ARPHRD_IPGRE, unix.ARPHRD_IP6GRE:
		return evidence.DirectionUnknown
	}
	switch kind {
	case unix.PACKET_HOST, unix.PACKET_BROADCAST, unix.PACKET_MULTICAST:
		return evidence.Received
	case unix.PACKET_OTHERHOST:
		return evidence.Elsewhere
	case unix.PACKET_OUTGOING:
		return evidence.Sent
	}
	return evidence.DirectionUnknown
}

// mayHaveTag spares most packets a closer look: a tag is followed by the protocol
// of an IP header.
func mayHaveTag(b []byte) bool {
	if len(b) < vlanTag+20 {
		return false
	}
	inner := binary.BigEndian.Uint16(b[2:])
	return inner == unix.ETH_P_IP || inner == unix.ETH_P_IPV6
}

// stripTag takes off the VLAN tag that the kernel may have left in front of the
// IP header: the inner of two coming in, or any going out of a device without
// VLAN offload. Kernels since 6.12 then write the protocol behind the tag into
// sll_protocol (net/packet/af_packet.c, vlan_get_protocol_dgram), so the
// protocol alone does not tell.
func stripTag(b []byte, protocol uint16, kind uint8, m *recorder.Meta) []byte {
	inner := binary.BigEndian.Uint16(b[2:])
	marked := protocol == unix.ETH_P_8021Q || protocol == unix.ETH_P_8021AD
	if !plausible(b[vlanTag:], inner, m.WireBytes) || !marked && plausible(b, protocol, m.WireBytes) {
		return b
	}
	m.WireBytes -= min(vlanTag, m.WireBytes)
	tag := binary.BigEndian.Uint16(b)
	vlan := &m.Path.VLAN
	switch {
	case vlan[0] == 0:
		vlan[0] = tag
	case kind == unix.PACKET_OUTGOING && vlan[0] == tag:
		// The kernel has read this very tag already.
	default:
		vlan[1] = tag
	}
	return b[vlanTag:]
}

// plausible tells whether an IP header that the filter lets pass begins here.
func plausible(b []byte, protocol uint16, wire uint32) bool {
	switch {
	case protocol == unix.ETH_P_IP && b[0]>>4 == 4:
		return b[0]&15 >= 5 && uint32(binary.BigEndian.Uint16(b[2:])) <= wire && passes(b[9])
	case protocol == unix.ETH_P_IPV6 && b[0]>>4 == 6:
		return uint32(binary.BigEndian.Uint16(b[4:])) <= wire && passes(b[6])
	}
	return false
}

// passes names the protocols and IPv6 extension headers that the filter knows.
func passes(proto uint8) bool {
	switch proto {
	case unix.IPPROTO_TCP, unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6,
		unix.IPPROTO_IPIP, unix.IPPROTO_IPV6, unix.IPPROTO_GRE, unix.IPPROTO_UDP,
		unix.IPPROTO_HOPOPTS, unix.IPPROTO_ROUTING, unix.IPPROTO_FRAGMENT, unix.IPPROTO_DSTOPTS:
		return true
	}
	return false
}
