package pcapng

import (
	"encoding/binary"
	"fmt"

	"github.com/gopacket/gopacket/layers"

	"tcpcoroner/evidence"
)

// Link types that package layers does not name (https://www.tcpdump.org/linktypes.html).
const (
	linkRawBSD     layers.LinkType = 12
	linkRawOpenBSD layers.LinkType = 14
)

// ARPHRD_ values (linux/if_arp.h).
const (
	arphrdEther    = 1
	arphrdLoopback = 772
	arphrdNone     = 0xfffe
)

// EtherTypes.
const (
	etherIPv4 = 0x0800
	etherVLAN = 0x8100
	etherQinQ = 0x88a8
	etherIPv6 = 0x86dd
)

// The packet types of packet(7), as the cooked headers carry them.
const (
	packetHost      = 0
	packetOtherHost = 3
	packetOutgoing  = 4
)

const (
	sllHeader  = 16
	sll2Header = 20
)

// frame is a link-layer header, taken apart.
type frame struct {
	// ip is where the IP header begins.
	ip        int
	direction evidence.Direction
	linkType  uint16
	// index is the ifindex, 0 where the header has none.
	index uint32
	mac   [6]byte
	vlan  [2]uint16
	// marks are the bytes behind an address of 6 bytes.
	marks [2]uint8
	// skip tells that it holds no IP, or is a copy that the recorder does not keep.
	skip bool
}

// appendFrame appends a packet in the frame of LINKTYPE_LINUX_SLL2: of all link
// types the one that holds direction, ifindex and sender's address. VLAN tags
// stand behind it, as an Ethernet frame has them; their length is returned. The
// address has 8 bytes of which Ethernet uses 6: the last two say the Sighting and
// the state of the checksum, without a comment on every packet.
func appendFrame(b []byte, p *evidence.Packet, header []byte) (framed []byte, tags int) {
	ether := uint16(etherIPv4)
	if len(header) > 0 && header[0]>>4 == 6 {
		ether = etherIPv6
	}
	var types [3]uint16
	n := copy(types[:], tagTypes(p.VLAN))
	types[n] = ether
	b = binary.BigEndian.AppendUint16(b, types[0])
	b = append(b, 0, 0)
	b = binary.BigEndian.AppendUint32(b, p.Interface)
	b = binary.BigEndian.AppendUint16(b, p.LinkType)
	b = append(b, packetType(p.Direction), addressBytes(p))
	b = append(b, p.SrcMAC[:]...)
	b = append(b, p.Sighting, byte(p.Checksum))
	for i, inner := range types[1 : n+1] {
		b = binary.BigEndian.AppendUint16(b, p.VLAN[i])
		b = binary.BigEndian.AppendUint16(b, inner)
	}
	return append(b, header...), 4 * n
}

// tagTypes are the EtherTypes of the tags. The recorder does not keep them: the
// outer of two is the provider's (IEEE 802.1ad), a single one the customer's.
func tagTypes(tci [2]uint16) []uint16 {
	switch {
	case tci[1] != 0:
		return twoTags[:]
	case tci[0] != 0:
		return twoTags[1:]
	}
	return nil
}

var twoTags = [...]uint16{etherQinQ, etherVLAN}

func packetType(d evidence.Direction) byte {
	switch d {
	case evidence.Sent:
		return packetOutgoing
	case evidence.Elsewhere:
		return packetOtherHost
	}
	return packetHost
}

// addressBytes is the length of the link-layer address, 0 where the link has none.
func addressBytes(p *evidence.Packet) byte {
	if p.SrcMAC == [6]byte{} && p.LinkType != arphrdEther && p.LinkType != arphrdLoopback {
		return 0
	}
	return 6
}

// parseFrame takes the link-layer header of a captured packet apart.
func parseFrame(link layers.LinkType, b []byte) (frame, error) {
	switch link {
	case layers.LinkTypeEthernet:
		return parseEthernet(b)
	case layers.LinkTypeLinuxSLL:
		return parseSLL(b)
	case layers.LinkTypeLinuxSLL2:
		return parseSLL2(b)
	case layers.LinkTypeRaw, linkRawBSD, linkRawOpenBSD, layers.LinkTypeIPv4, layers.LinkTypeIPv6:
		return frame{linkType: arphrdNone}, nil
	case layers.LinkTypeNull, layers.LinkTypeLoop:
		// The family before the packet is in the byte order of the host that
		// captured, and numbered by its system: the IP version tells the same.
		f := frame{ip: 4, linkType: arphrdLoopback, direction: evidence.Loopback}
		return f, needBytes("loopback", b, f.ip)
	}
	return frame{}, fmt.Errorf("link type %d is not supported: capture with an Ethernet, raw IP, Linux cooked or loopback link type", link)
}

func needBytes(what string, b []byte, n int) error {
	if len(b) < n {
		return fmt.Errorf("%s header is cut to %d of %d bytes", what, len(b), n)
	}
	return nil
}

func parseEthernet(b []byte) (f frame, err error) {
	if err := needBytes("ethernet", b, 14); err != nil {
		return f, err
	}
	f = frame{ip: 14, linkType: arphrdEther, mac: [6]byte(b[6:12])}
	if [12]byte(b[:12]) == [12]byte{} { // the loopback device has no addresses
		f.linkType, f.direction = arphrdLoopback, evidence.Loopback
	}
	return f, f.tags(b, binary.BigEndian.Uint16(b[12:]))
}

// parseSLL reads LINKTYPE_LINUX_SLL.
func parseSLL(b []byte) (f frame, err error) {
	if err := needBytes("linux cooked", b, sllHeader); err != nil {
		return f, err
	}
	f = frame{ip: sllHeader, linkType: binary.BigEndian.Uint16(b[2:])}
	f.cooked(binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[4:]), b[6:12])
	return f, f.tags(b, binary.BigEndian.Uint16(b[14:]))
}

// parseSLL2 reads LINKTYPE_LINUX_SLL2.
func parseSLL2(b []byte) (f frame, err error) {
	if err := needBytes("linux cooked v2", b, sll2Header); err != nil {
		return f, err
	}
	f = frame{ip: sll2Header, index: binary.BigEndian.Uint32(b[4:]), linkType: binary.BigEndian.Uint16(b[8:]), marks: [2]uint8(b[18:20])}
	f.cooked(uint16(b[10]), uint16(b[11]), b[12:18])
	return f, f.tags(b, binary.BigEndian.Uint16(b))
}

// cooked reads what both cooked headers hold. Of a packet on loopback, which is
// sent and received at once, the recorder keeps the receiving copy.
func (f *frame) cooked(packet, addressBytes uint16, address []byte) {
	if addressBytes == 6 {
		f.mac = [6]byte(address)
	}
	switch {
	case f.linkType == arphrdLoopback:
		f.direction, f.skip = evidence.Loopback, packet == packetOutgoing
	case packet == packetOutgoing:
		f.direction = evidence.Sent
	case packet == packetOtherHost:
		f.direction = evidence.Elsewhere
	default:
		f.direction = evidence.Received
	}
}

// tags reads the VLAN tags from f.ip on; ether is the type of what stands there.
func (f *frame) tags(b []byte, ether uint16) error {
	for n := 0; ether == etherVLAN || ether == etherQinQ; n++ {
		if err := needBytes("vlan", b, f.ip+4); err != nil {
			return err
		}
		if n < len(f.vlan) {
			f.vlan[n] = binary.BigEndian.Uint16(b[f.ip:])
		}
		ether = binary.BigEndian.Uint16(b[f.ip+2:])
		f.ip += 4
	}
	if ether != etherIPv4 && ether != etherIPv6 {
		f.skip = true
	}
	return nil
}
