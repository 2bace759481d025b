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

// parseBlock calls visit for each packet of a block that the kernel has handed
// over. It trusts no number in it: what points out of the block ends the walk and
// is reported as false. The header aliases the block.
func parseBlock(b []byte, m *recorder.Meta, visit func(m *recorder.Meta, header []byte)) bool {
	if len(b) < blockHeader {
		return false
	}
	count, at := int(u32(b, blockPackets)), int(u32(b, blockFirst))
	if count > len(b)/packetHeader {
		return false
	}
	for i := range count {
		if at < blockHeader || at > len(b)-packetHeader {
			return false
		}
		if !parsePacket(b[at:], m, visit) {
			return false
		}
		next := int(u32(b, at+packetNext))
		if i < count-1 && (next < packetHeader || next > len(b)) {
			return false
		}
		at += next
	}
	return true
}

func parsePacket(p []byte, m *recorder.Meta, visit func(m *recorder.Meta, header []byte)) bool {
	kept, data := int(u32(p, packetKept)), int(u16(p, packetData))
	if kept < 0 || data < packetHeader || data > len(p) || kept > len(p)-data {
		return false
	}
	*m = recorder.Meta{
		Nanos:     int64(u32(p, packetSec))*1e9 + int64(u32(p, packetNsec)),
		Interface: u32(p, packetIndex),
		WireBytes: u32(p, packetLength),
		LinkType:  u16(p, packetHatype),
	}
	m.Direction = direction(m.LinkType, p[packetType])
	if m.LinkType == unix.ARPHRD_LOOPBACK && p[packetType] == unix.PACKET_OUTGOING {
		return true // its other copy, coming in, is the one to keep
	}
	if p[packetHalen] == 6 {
		m.SrcMAC = [6]byte(p[packetAddress:])
	}
	if u32(p, packetStatus)&unix.TP_STATUS_VLAN_VALID != 0 {
		m.VLAN[0] = uint16(u32(p, packetTCI))
	}
	header := stripTag(p[data:data+kept], binary.BigEndian.Uint16(p[packetProtocol:]), p[packetType], m)
	visit(m, header)
	return true
}

// direction reads sll_pkttype. On devices without a link layer it says nothing
// that can be relied on.
func direction(hatype uint16, kind uint8) evidence.Direction {
	switch hatype {
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

// stripTag takes off the VLAN tag that the kernel may have left in front of the
// IP header: the inner of two coming in, or any going out of a device without
// VLAN offload. Kernels since 6.12 then write the protocol behind the tag into
// sll_protocol (net/packet/af_packet.c, vlan_get_protocol_dgram), so the
// protocol alone does not tell.
func stripTag(b []byte, protocol uint16, kind uint8, m *recorder.Meta) []byte {
	if len(b) < vlanTag+20 {
		return b
	}
	marked := protocol == unix.ETH_P_8021Q || protocol == unix.ETH_P_8021AD
	inner := binary.BigEndian.Uint16(b[2:])
	if !plausible(b[vlanTag:], inner, m.WireBytes) || !marked && plausible(b, protocol, m.WireBytes) {
		return b
	}
	m.WireBytes -= min(vlanTag, m.WireBytes)
	tag := binary.BigEndian.Uint16(b)
	switch {
	case m.VLAN[0] == 0:
		m.VLAN[0] = tag
	case kind == unix.PACKET_OUTGOING && m.VLAN[0] == tag:
		// The kernel has read this very tag already.
	default:
		m.VLAN[1] = tag
	}
	return b[vlanTag:]
}

// plausible tells whether an IP header that the filter lets pass begins here.
func plausible(b []byte, protocol uint16, wire uint32) bool {
	switch {
	case protocol == unix.ETH_P_IP && b[0]>>4 == 4:
		return b[0]&15 >= 5 && uint32(binary.BigEndian.Uint16(b[2:])) <= wire &&
			(b[9] == unix.IPPROTO_TCP || b[9] == unix.IPPROTO_ICMP)
	case protocol == unix.ETH_P_IPV6 && b[0]>>4 == 6:
		switch b[6] {
		case unix.IPPROTO_TCP, unix.IPPROTO_ICMPV6, unix.IPPROTO_HOPOPTS, unix.IPPROTO_ROUTING,
			unix.IPPROTO_FRAGMENT, unix.IPPROTO_DSTOPTS:
			return uint32(binary.BigEndian.Uint16(b[4:])) <= wire
		}
	}
	return false
}
