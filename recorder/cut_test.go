package recorder

import (
	"bytes"
	"encoding/binary"
	"testing"

	"tcpcoroner/evidence"
)

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
	f.Add(tunnelled(4, 47, greTap, tcp4(0x14, []byte("payload"))))
	f.Add(tunnelled(6, 17, vxlan, tcp4(0x14, []byte("payload"))))
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
		if s.Flags&(evidence.SYN|evidence.FIN|evidence.RST) != 0 != Control(b) {
			t.Fatalf("control %v, the parser says %v", Control(b), s.Flags)
		}
	})
}

// tunnelled puts a packet into a tunnel: the protocol number, and what stands
// between the two IP headers.
func tunnelled(version, proto byte, between string, packet []byte) []byte {
	b := make([]byte, 20)
	b[0], b[8], b[9] = 0x45, 64, proto
	if version == 6 {
		b = make([]byte, 40)
		b[0], b[6], b[7] = 0x60, proto, 64
	}
	b = append(append(b, between...), packet...)
	if version == 6 {
		binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40))
		return b
	}
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	return b
}

// What stands between: GRE, GRE with all options and a frame in it, VXLAN, Geneve.
const (
	gre    = "\x00\x00\x08\x00"
	greTap = "\xb0\x00\x65\x58sum0key0seq0" + frame
	frame  = "\x02\x00\x00\x00\x00\x01\x02\x00\x00\x00\x00\x02\x08\x00"
	vxlan  = "\xc0\x00\x12\xb5\x00\x00\x00\x00\x08\x00\x00\x00\x00\x00\x07\x00" + frame
	geneve = "\xc0\x00\x17\xc1\x00\x00\x00\x00\x01\x00\x65\x58\x00\x00\x07\x00opt0" + frame
)

func TestCutTunnels(t *testing.T) {
	payload := bytes.Repeat([]byte("x"), 100)
	for name, c := range map[string]struct {
		version, proto byte
		between        string
		v6             bool
	}{
		"ipip": {version: 4, proto: 4}, "6in4": {version: 4, proto: 41, v6: true},
		"4in6": {version: 6, proto: 4}, "6in6": {version: 6, proto: 41, v6: true},
		"gre": {version: 4, proto: 47, between: gre}, "gre in v6": {version: 6, proto: 47, between: gre},
		"gre tap": {version: 4, proto: 47, between: greTap},
		"vxlan":   {version: 4, proto: 17, between: vxlan}, "geneve": {version: 4, proto: 17, between: geneve},
	} {
		inner := func(flags byte) []byte {
			if c.v6 {
				return tcp6(flags, payload, 6)
			}
			return tcp4(flags, payload)
		}
		head := len(inner(0)) - len(payload)
		for _, k := range []struct {
			what           string
			packet         []byte
			keep           int
			reset, control bool
		}{
			{"data", inner(0x18), head, false, false},
			{"SYN", inner(2), head, false, true},
			{"FIN", inner(0x11), head, false, true},
			{"RST", inner(4), head + evidence.MaxResetPayload, true, true},
			{"ICMP error", icmp4(3, tcp4(0x18, payload)), 28 + 52, false, true},
			{"UDP", with(tcp4(4, payload), 9, 17), 0, false, false},
			{"later fragment", with(tcp4(4, payload), 6, 0, 9), 20, false, false},
		} {
			packet := tunnelled(c.version, c.proto, c.between, k.packet)
			want := k.keep
			if want > 0 {
				want += len(packet) - len(k.packet)
			}
			if keep, reset := Cut(packet); keep != want || reset != k.reset {
				t.Errorf("%s, %s: keeps %d (reset %v), want %d (%v)", name, k.what, keep, reset, want, k.reset)
			}
			if Control(packet) != k.control {
				t.Errorf("%s, %s: control is %v", name, k.what, !k.control)
			}
		}
	}
}

func TestControl(t *testing.T) {
	hop := []byte{6, 0, 1, 4, 0, 0, 0, 0}
	for _, c := range []struct {
		name   string
		packet []byte
		want   bool
	}{
		{"SYN", tcp4(2, nil), true},
		{"SYN ACK", tcp4(0x12, nil), true},
		{"FIN", tcp4(0x11, nil), true},
		{"RST", tcp4(4, nil), true},
		{"ACK", tcp4(0x10, nil), false},
		{"data", tcp4(0x18, []byte("data")), false},
		{"v6 data", tcp6(0x18, []byte("data"), 6), false},
		{"v6 RST", tcp6(4, nil, 6), true},
		{"v6 hop by hop", tcp6(0x10, nil, 0, hop...), false},
		{"v6 hop by hop RST", tcp6(4, nil, 0, hop...), true},
		{"later fragment", with(tcp4(4, nil), 6, 0, 1), false},
		{"first fragment cut short", with(tcp4(0x10, nil)[:28], 3, 28), true},
		{"ICMP error", icmp4(3, tcp4(0x10, nil)), true},
		{"ICMP error about UDP", icmp4(3, with(tcp4(0x10, nil), 9, 17)), false},
		{"echo", icmp4(8, tcp4(4, nil)), false},
		{"ICMPv6 error", icmp6(2, tcp6(0x10, nil, 6)), true},
		{"nothing", nil, false},
	} {
		if got := Control(c.packet); got != c.want {
			t.Errorf("%s: control is %v", c.name, got)
		}
	}
}

// FuzzPrivacy puts payload behind the headers of every kind of packet: no byte of
// it may be kept.
func FuzzPrivacy(f *testing.F) {
	for kind := range byte(16) {
		f.Add(kind, byte(0x18), uint8(20))
	}
	f.Fuzz(func(t *testing.T, kind, flags byte, repeat uint8) {
		payload := bytes.Repeat([]byte("x"), int(repeat)+1)
		flags &^= flagRST
		segment4, segment6 := tcp4(flags, payload), tcp6(flags, payload, 6)
		packets := [][]byte{
			segment4, segment6,
			tcp6(flags, payload, 0, 60, 0, 1, 4, 0, 0, 0, 0, 6, 0, 1, 4, 0, 0, 0, 0),
			with(segment4, 6, 0, 9),
			icmp4(3, segment4), icmp6(2, segment6),
			with(segment4, 9, 17), // UDP
			append(tcp4(flagRST, nil), payload...),
			tunnelled(4, 4, "", segment4), tunnelled(6, 41, "", segment6), tunnelled(4, 47, gre, segment4),
			tunnelled(4, 47, greTap, with(segment4, 6, 0, 9)), tunnelled(4, 17, vxlan, icmp4(3, segment4)),
			tunnelled(4, 17, geneve, segment4), tunnelled(6, 17, vxlan, with(segment4, 9, 17)),
			append(tunnelled(4, 4, "", tcp4(flagRST, nil)), payload...),
		}
		packet := packets[int(kind)%len(packets)]
		if keep, _ := Cut(packet); keep > len(packet)-len(payload) {
			t.Fatalf("payload of packet kind %d is kept", int(kind)%len(packets))
		}
	})
}

func BenchmarkCut(b *testing.B) {
	for name, packet := range map[string][]byte{"plain": tcp4(0x18, nil), "v6": tcp6(0x18, nil, 6),
		"gre": tunnelled(4, 47, gre, tcp4(0x18, nil))} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				Cut(packet)
			}
		})
	}
}
