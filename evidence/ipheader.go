package evidence

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// Tunnel is what a segment was carried in.
type Tunnel uint8

// The tunnels that are looked into: IP in IP by the protocol number (RFC 2003,
// RFC 4213, RFC 2473), GRE (RFC 2784, RFC 2890), VXLAN (RFC 7348) and Geneve
// (RFC 8926).
const (
	NoTunnel Tunnel = iota
	TunnelIPv4
	TunnelIPv6
	TunnelGRE
	TunnelVXLAN
	TunnelGeneve
)

var tunnelNames = [...]string{"none", "ipip", "ip6", "gre", "vxlan", "geneve"}

func (t Tunnel) String() string {
	if int(t) < len(tunnelNames) {
		return tunnelNames[t]
	}
	return fmt.Sprintf("tunnel(%d)", t)
}

const (
	protoIPv4 = 4
	protoTCP  = 6
	protoUDP  = 17
	protoIPv6 = 41
	protoGRE  = 47

	etherIPv4   = 0x0800
	etherIPv6   = 0x86dd
	etherVLAN   = 0x8100
	etherQinQ   = 0x88a8
	etherBridge = 0x6558 // transparent Ethernet bridging

	portVXLAN      = 4789
	portVXLANLinux = 8472 // the kernel's default, older than the IANA number
	portGeneve     = 6081

	// maxTunnels bounds the nesting that is followed.
	maxTunnels = 4
)

// IPHeader is an IP header in a packet. All offsets count from the packet's
// beginning.
type IPHeader struct {
	// Version is 4 or 6, and Proto the protocol behind the extension headers.
	Version, Proto uint8
	// Tunnel is the outermost encapsulation that the header was found in.
	Tunnel Tunnel
	// Fragment tells that this is not the first fragment: what follows has no
	// transport header.
	Fragment bool
	// Start is where the header begins, Next where what it carries begins, behind
	// extension headers, and End where the packet ended on the wire, without the
	// frame's padding. End may be beyond the bytes that were kept.
	Start, Next, End int
}

// InnermostIP finds the innermost IP header that begins inside the packet: the
// first if there is no tunnel. The packet starts with an IP header; wire is its
// length on the wire. It does not allocate unless it fails.
func InnermostIP(b []byte, wire int) (IPHeader, error) {
	l, err := FirstIP(b, wire)
	for n := 0; err == nil && !l.Fragment && n < maxTunnels; n++ {
		at, kind := decapsulate(b, &l)
		if kind == NoTunnel {
			break
		}
		outer := l
		l, err = ipAt(b, at, outer.End)
		l.End = min(l.End, outer.End)
		if l.Tunnel = outer.Tunnel; l.Tunnel == NoTunnel {
			l.Tunnel = kind
		}
	}
	return l, err
}

// FirstIP reads the IP header that the packet starts with.
func FirstIP(b []byte, wire int) (IPHeader, error) { return ipAt(b, 0, wire) }

// ipAt reads an IP header. Limit is the end if the header does not tell it, as
// with BIG TCP, which writes a length of 0.
func ipAt(b []byte, at, limit int) (IPHeader, error) {
	if len(b) <= at {
		return IPHeader{}, ErrTruncated
	}
	switch b[at] >> 4 {
	case 4:
		return ip4At(b, at, limit)
	case 6:
		return ip6At(b, at, limit)
	}
	return IPHeader{}, fmt.Errorf("IP version %d: %w", b[at]>>4, ErrNotTCP)
}

func ip4At(b []byte, at, limit int) (IPHeader, error) {
	h := b[at:]
	if len(h) < 20 {
		return IPHeader{}, ErrTruncated
	}
	head := int(h[0]&15) * 4
	if head < 20 || len(h) < head {
		return IPHeader{}, ErrTruncated
	}
	l := IPHeader{Version: 4, Proto: h[9], Start: at, Next: at + head, End: limit}
	l.Fragment = binary.BigEndian.Uint16(h[6:])&0x1fff != 0
	if total := int(binary.BigEndian.Uint16(h[2:])); total != 0 {
		l.End = at + max(total, head)
	}
	return l, nil
}

func ip6At(b []byte, at, limit int) (IPHeader, error) {
	const head = 40
	if len(b)-at < head {
		return IPHeader{}, ErrTruncated
	}
	l := IPHeader{Version: 6, Proto: b[at+6], Start: at, Next: at + head, End: limit}
	if payload := int(binary.BigEndian.Uint16(b[at+4:])); payload != 0 {
		l.End = at + head + payload
	}
	return l, skipExtensions(b[:min(len(b), max(l.End, l.Next))], &l)
}

// skipExtensions walks to the transport header (RFC 8200 section 4).
func skipExtensions(b []byte, l *IPHeader) error {
	for !l.Fragment && isExtension(l.Proto) {
		rest := b[l.Next:]
		if len(rest) < 8 {
			return ErrTruncated
		}
		n := extensionLength(l.Proto, rest)
		if len(rest) < n {
			return ErrTruncated
		}
		l.Fragment = l.Proto == 44 && binary.BigEndian.Uint16(rest[2:])&0xfff8 != 0
		l.Proto, l.Next = rest[0], l.Next+n
	}
	return nil
}

// isExtension names the extension headers of RFC 8200 and RFC 4302 that may
// stand before TCP: hop-by-hop, routing, fragment, authentication, destination.
func isExtension(next uint8) bool {
	return next == 0 || next == 43 || next == 44 || next == 51 || next == 60
}

func extensionLength(next uint8, b []byte) int {
	switch next {
	case 44:
		return 8
	case 51: // counts in 4-byte units
		return 8 + int(b[1])*4
	}
	return 8 + int(b[1])*8
}

// decapsulate tells where the inner IP header begins, and in what it is carried.
// What is cut short or not IP is no tunnel.
func decapsulate(b []byte, l *IPHeader) (at int, kind Tunnel) {
	switch l.Proto {
	case protoIPv4:
		return l.Next, TunnelIPv4
	case protoIPv6:
		return l.Next, TunnelIPv6
	case protoGRE:
		return inGRE(b, l.Next)
	case protoUDP:
		return inUDP(b, l.Next)
	}
	return 0, NoTunnel
}

// inGRE reads a GRE header with its optional checksum, key and sequence number.
// Source routes and version 1 (PPTP) are left alone.
func inGRE(b []byte, at int) (int, Tunnel) {
	if len(b)-at < 4 {
		return 0, NoTunnel
	}
	flags := binary.BigEndian.Uint16(b[at:])
	if flags&0x4007 != 0 {
		return 0, NoTunnel
	}
	n := 4 + int(flags>>15&1+flags>>13&1+flags>>12&1)*4
	return carried(b, at+n, binary.BigEndian.Uint16(b[at+2:]), TunnelGRE)
}

// inUDP reads a VXLAN or Geneve header behind a UDP header of 8 bytes.
func inUDP(b []byte, at int) (int, Tunnel) {
	if len(b)-at < 16 {
		return 0, NoTunnel
	}
	h := b[at+8:]
	switch binary.BigEndian.Uint16(b[at+2:]) {
	case portVXLAN, portVXLANLinux:
		if h[0] == 8 && h[7] == 0 { // a network identifier, and nothing reserved
			return carried(b, at+16, etherBridge, TunnelVXLAN)
		}
	case portGeneve:
		if h[0]>>6 == 0 && h[7] == 0 {
			return carried(b, at+16+int(h[0]&0x3f)*4, binary.BigEndian.Uint16(h[2:]), TunnelGeneve)
		}
	}
	return 0, NoTunnel
}

// carried finds the IP header in what a tunnel says to carry.
func carried(b []byte, at int, protocol uint16, kind Tunnel) (int, Tunnel) {
	if protocol == etherBridge {
		at, protocol = inEthernet(b, at)
	}
	if protocol != etherIPv4 && protocol != etherIPv6 {
		return 0, NoTunnel
	}
	return at, kind
}

// inEthernet steps over an Ethernet header and up to two VLAN tags; the protocol
// is 0 if the frame is cut short.
func inEthernet(b []byte, at int) (int, uint16) {
	const header, tag = 14, 4
	at += header
	for range 3 {
		if len(b) < at {
			return 0, 0
		}
		protocol := binary.BigEndian.Uint16(b[at-2:])
		if protocol != etherVLAN && protocol != etherQinQ {
			return at, protocol
		}
		at += tag
	}
	return 0, 0
}

// addresses reads source and destination of the header.
func (l *IPHeader) addresses(b []byte) (src, dst netip.Addr) {
	h := b[l.Start:]
	if l.Version == 4 {
		return netip.AddrFrom4([4]byte(h[12:16])), netip.AddrFrom4([4]byte(h[16:20]))
	}
	return netip.AddrFrom16([16]byte(h[8:24])), netip.AddrFrom16([16]byte(h[24:40]))
}
