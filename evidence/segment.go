package evidence

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"strings"
	"time"
)

// Flags are the control bits of a TCP header (RFC 9293 section 3.1), with the
// ninth bit AE of AccECN (RFC 9768).
type Flags uint16

// The control bits.
const (
	FIN Flags = 1 << iota
	SYN
	RST
	PSH
	ACK
	URG
	ECE
	CWR
	AE
)

var flagNames = [...]string{"FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR", "AE"}

// Has tells whether all bits of f are set.
func (f Flags) Has(bits Flags) bool { return f&bits == bits }

// String lists the bits, "SYN_ACK" style, as flow tools write them.
func (f Flags) String() string {
	var names []string
	for i, n := range flagNames {
		if f&(1<<i) != 0 {
			names = append(names, n)
		}
	}
	if names == nil {
		return "none"
	}
	return strings.Join(names, "_")
}

// Segment is a decoded TCP segment, or the TCP header quoted by an ICMP error.
type Segment struct {
	Time     time.Time
	Src, Dst netip.AddrPort
	Seq, Ack uint32
	Flags    Flags
	// Window is the unscaled window field.
	Window uint16
	// PayloadBytes is the length of the TCP payload on the wire.
	PayloadBytes uint32
	// TTL is the IPv4 time to live or the IPv6 hop limit.
	TTL uint8
	// TOS is the IPv4 type of service or the IPv6 traffic class.
	TOS uint8
	// IPID is the IPv4 identification field; 0 for IPv6.
	IPID uint16
	// DontFragment is the IPv4 DF bit.
	DontFragment bool
	// FlowLabel is the IPv6 flow label; 0 for IPv4.
	FlowLabel uint32
	// HasTimestamps tells whether the TCP timestamp option (RFC 7323) is present.
	HasTimestamps bool
	TSVal, TSEcr  uint32
	// MSS is the maximum segment size option of a SYN; 0 where absent.
	MSS uint16
	// WindowScale is the shift of the window scale option of a SYN (RFC 7323).
	WindowScale uint8
	// OptionBytes is the length of the TCP options.
	OptionBytes uint8
	// Tunnel is what the segment was carried in, the outermost if there are many,
	// and OuterSrc and OuterDst are the addresses of the packet's first IP header;
	// the zero values if there is no tunnel.
	Tunnel             Tunnel
	OuterSrc, OuterDst netip.Addr
	// Payload is the kept payload, of a RST only. It aliases Packet.Header.
	Payload []byte
}

// Length is the sequence space that the segment takes: payload, SYN and FIN.
func (s *Segment) Length() uint32 {
	n := s.PayloadBytes
	if s.Flags.Has(SYN) {
		n++
	}
	if s.Flags.Has(FIN) {
		n++
	}
	return n
}

// Key is the flow that the segment belongs to.
func (s *Segment) Key() FlowKey { return NewFlowKey(s.Src, s.Dst) }

// Errors of ParseSegment. ErrNotTCP is no fault: ICMP errors are kept too.
var (
	ErrNotTCP    = errors.New("not a TCP segment")
	ErrTruncated = errors.New("header is truncated")
)

// ParseSegment decodes a packet's headers into s: the segment that is innermost if
// there is a tunnel. Fragments other than the first are ErrNotTCP. It does not
// allocate on the good path.
func ParseSegment(p *Packet, s *Segment) error {
	*s = Segment{Time: p.Time()}
	l, err := InnermostIP(p.Header, int(p.WireBytes))
	if err != nil {
		return err
	}
	if l.Fragment || l.Proto != protoTCP {
		return ErrNotTCP
	}
	parseNetwork(p.Header, &l, s)
	return parseTCP(p.Header[l.Next:], l.End-l.Next, s)
}

// parseNetwork reads the fields of the network header.
func parseNetwork(b []byte, l *IPHeader, s *Segment) {
	src, dst := l.addresses(b)
	s.Src, s.Dst = netip.AddrPortFrom(src, 0), netip.AddrPortFrom(dst, 0)
	if s.Tunnel = l.Tunnel; l.Tunnel != NoTunnel {
		outer := IPHeader{Version: b[0] >> 4}
		s.OuterSrc, s.OuterDst = outer.addresses(b)
	}
	h := b[l.Start:]
	if l.Version == 4 {
		s.TOS, s.TTL, s.IPID = h[1], h[8], binary.BigEndian.Uint16(h[4:])
		s.DontFragment = h[6]&0x40 != 0
		return
	}
	s.TOS, s.TTL = h[0]<<4|h[1]>>4, h[7]
	s.FlowLabel = binary.BigEndian.Uint32(h) & 0xfffff
}

func parseTCP(b []byte, wire int, s *Segment) error {
	if len(b) < 20 {
		return ErrTruncated
	}
	head := int(b[12]>>4) * 4
	if head < 20 || len(b) < head {
		return ErrTruncated
	}
	s.Src = netip.AddrPortFrom(s.Src.Addr(), binary.BigEndian.Uint16(b))
	s.Dst = netip.AddrPortFrom(s.Dst.Addr(), binary.BigEndian.Uint16(b[2:]))
	s.Seq, s.Ack = binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint32(b[8:])
	s.Flags = Flags(b[13]) | Flags(b[12]&1)<<8
	s.Window = binary.BigEndian.Uint16(b[14:])
	s.PayloadBytes = uint32(max(wire-head, 0))
	s.OptionBytes = uint8(head - 20)
	if s.Flags.Has(RST) {
		s.Payload = b[head:min(len(b), head+int(s.PayloadBytes))]
	}
	parseOptions(b[20:head], s)
	return nil
}

// parseOptions reads the options that the rules use. A malformed list ends the
// walk: what was read before it stays.
func parseOptions(b []byte, s *Segment) {
	for len(b) > 0 && b[0] != 0 {
		if b[0] == 1 { // no-operation
			b = b[1:]
			continue
		}
		if len(b) < 2 || b[1] < 2 || int(b[1]) > len(b) {
			return
		}
		parseOption(b[0], b[2:b[1]], s)
		b = b[b[1]:]
	}
}

func parseOption(kind uint8, v []byte, s *Segment) {
	switch {
	case kind == 2 && len(v) == 2:
		s.MSS = binary.BigEndian.Uint16(v)
	case kind == 3 && len(v) == 1:
		s.WindowScale = min(v[0], 14) // RFC 7323 section 2.3
	case kind == 8 && len(v) == 8:
		s.HasTimestamps = true
		s.TSVal, s.TSEcr = binary.BigEndian.Uint32(v), binary.BigEndian.Uint32(v[4:])
	}
}
