package recorder

import (
	"bytes"
	"encoding/binary"
	"testing"

	"tcpcoroner/evidence"
)

const marker = "\xde\xad\xbe\xefPAYLOAD\xde\xad\xbe\xef"

// tcp4 is an IPv4 TCP packet with 12 option bytes and the payload.
func tcp4(flags byte, payload []byte) []byte {
	b := make([]byte, 52, 52+len(payload))
	b[0], b[8], b[9] = 0x45, 64, protoTCP
	binary.BigEndian.PutUint16(b[2:], uint16(52+len(payload)))
	copy(b[12:], []byte{10, 0, 0, 1, 10, 0, 0, 2})
	tcpHeader(b[20:], flags)
	return append(b, payload...)
}

// tcp6 is the same over IPv6, with extension headers before it.
func tcp6(flags byte, payload []byte, next byte, extensions ...byte) []byte {
	b := make([]byte, 40)
	b[0], b[6], b[7] = 0x60, next, 64
	b = append(b, extensions...)
	head := make([]byte, 32)
	tcpHeader(head, flags)
	b = append(append(b, head...), payload...)
	binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40))
	return b
}

func tcpHeader(b []byte, flags byte) {
	binary.BigEndian.PutUint16(b, 40000)
	binary.BigEndian.PutUint16(b[2:], 80)
	b[12], b[13] = 8<<4, flags
	copy(b[20:], []byte{1, 1, 8, 10})
}

func icmp4(kind byte, quoted []byte) []byte {
	b := make([]byte, 28, 28+len(quoted))
	b[0], b[9], b[20], b[21] = 0x45, protoICMP, kind, 4
	binary.BigEndian.PutUint16(b[2:], uint16(28+len(quoted)))
	return append(b, quoted...)
}

func icmp6(kind byte, quoted []byte) []byte {
	b := make([]byte, 48, 48+len(quoted))
	b[0], b[6], b[40] = 0x60, protoICMPv6, kind
	binary.BigEndian.PutUint16(b[4:], uint16(8+len(quoted)))
	return append(b, quoted...)
}

func with(b []byte, at int, v ...byte) []byte {
	b = bytes.Clone(b)
	copy(b[at:], v)
	return b
}

func TestCut(t *testing.T) {
	payload := bytes.Repeat([]byte("x"), 100)
	hop := []byte{6, 0, 1, 4, 0, 0, 0, 0}
	for _, c := range []struct {
		name   string
		packet []byte
		keep   int
		reset  bool
	}{
		{"v4", tcp4(0x18, payload), 52, false},
		{"v4 without payload", tcp4(0x10, nil), 52, false},
		{"v4 reset", tcp4(0x14, payload), 52 + 64, true},
		{"v4 reset with short payload", tcp4(4, payload[:5]), 57, true},
		{"v4 reset, padded frame", append(tcp4(4, nil), payload...), 52, true},
		{"v4 with padding", append(tcp4(0x10, nil), payload...), 52, false},
		{"v4 big tcp", with(tcp4(0x10, payload), 2, 0, 0), 52, false},
		{"v4 later fragment", with(tcp4(4, payload), 6, 0, 1), 20, false},
		{"v4 first fragment", with(tcp4(0x10, payload), 6, 0x20, 0), 52, false},
		{"v4 data offset below the minimum", with(tcp4(0x10, payload), 32, 0x10), 40, false},
		{"v4 cut in the header", tcp4(4, nil)[:30], 30, false},
		{"v4 udp", with(tcp4(4, payload), 9, 17), 0, false},
		{"v6", tcp6(0x10, payload, 6), 72, false},
		{"v6 reset", tcp6(4, payload, 6), 72 + 64, true},
		{"v6 hop by hop", tcp6(0x10, payload, 0, hop...), 80, false},
		{"v6 hop by hop reset", tcp6(4, payload, 0, hop...), 80 + 64, true},
		{"v6 later fragment", tcp6(4, payload, 44, 6, 0, 0, 8, 0, 0, 0, 1), 48, false},
		{"v6 endless extension", tcp6(4, payload, 0, 6, 255, 1, 4, 0, 0, 0, 0), 0, false},
		{"icmp fragmentation needed", icmp4(3, tcp4(0x10, payload)), 28 + 52, false},
		{"icmp quotes a reset", icmp4(3, tcp4(4, payload)), 28 + 52, false},
		{"icmp quotes eight bytes", icmp4(11, tcp4(0x10, nil)[:28]), 28 + 28, false},
		{"icmp quotes udp", icmp4(3, with(tcp4(0, payload), 9, 17)), 0, false},
		{"icmp echo", icmp4(8, tcp4(0x10, payload)), 0, false},
		{"icmpv6 too big", icmp6(2, tcp6(0x10, payload, 6)), 48 + 72, false},
		{"icmpv6 neighbour", icmp6(135, tcp6(0x10, payload, 6)), 0, false},
		{"icmpv6 quotes v4", icmp6(1, tcp4(0x10, payload)), 0, false},
		{"arp", []byte{0, 1, 8, 0}, 0, false},
		{"nothing", nil, 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if keep, reset := Cut(c.packet); keep != c.keep || reset != c.reset {
				t.Errorf("keeps %d (reset %v), want %d (%v)", keep, reset, c.keep, c.reset)
			}
		})
	}
}

// Cut and the parser must agree on what is kept.
func FuzzCut(f *testing.F) {
	f.Add(tcp4(0x14, []byte("payload")))
	f.Add(tcp6(4, []byte("payload"), 0, 6, 0, 1, 4, 0, 0, 0, 0))
	f.Add(icmp4(3, tcp4(0x10, []byte("payload"))))
	f.Fuzz(func(t *testing.T, b []byte) {
		keep, reset := Cut(b)
		if keep < 0 || keep > len(b) || keep > maxHeader {
			t.Fatalf("keeps %d of %d bytes", keep, len(b))
		}
		var s evidence.Segment
		p := evidence.Packet{Header: b[:keep], WireBytes: uint32(len(b))}
		if evidence.ParseSegment(&p, &s) != nil {
			return
		}
		if s.Flags.Has(evidence.RST) != reset {
			t.Fatalf("reset %v, the parser says %v", reset, s.Flags)
		}
	})
}

// FuzzPrivacy puts a marker behind the headers of every kind of packet: it must
// never reach a chunk.
func FuzzPrivacy(f *testing.F) {
	for kind := range byte(8) {
		f.Add(kind, byte(0x18), uint8(20))
	}
	f.Fuzz(func(t *testing.T, kind, flags byte, repeat uint8) {
		payload := bytes.Repeat([]byte(marker), int(repeat)+1)
		flags &^= flagRST
		segment4, segment6 := tcp4(flags, payload), tcp6(flags, payload, 6)
		packets := [][]byte{
			segment4, segment6,
			tcp6(flags, payload, 0, 60, 0, 1, 4, 0, 0, 0, 0, 6, 0, 1, 4, 0, 0, 0, 0),
			with(segment4, 6, 0, 9),
			icmp4(3, segment4), icmp6(2, segment6),
			with(segment4, 9, 17), // UDP
			append(tcp4(flagRST, nil), payload...),
		}
		packet := packets[int(kind)%len(packets)]
		chunks := frozenChunks(t, packet)
		if bytes.Contains(bytes.Join(chunks, nil), []byte(marker)[:4]) {
			t.Fatalf("payload of packet kind %d is in a chunk", int(kind)%len(packets))
		}
	})
}
