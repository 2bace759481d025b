package afpacket

import (
	"bytes"
	"encoding/binary"
	"net"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"tcpcoroner/evidence"
	"tcpcoroner/internal/netlab"
	"tcpcoroner/recorder"
)

const secret = "SECRET-PAYLOAD-"

// tcpAt is a TCP header with timestamps; the number in seq names the test case,
// and the wrong checksum keeps the receiving kernel from answering.
func tcpAt(flags byte, number int, payload int) []byte {
	b := make([]byte, 32)
	binary.BigEndian.PutUint16(b, 40000)
	binary.BigEndian.PutUint16(b[2:], 81)
	binary.BigEndian.PutUint32(b[4:], uint32(number))
	b[12], b[13], b[16], b[17] = 8<<4, flags, 0xba, 0xad
	copy(b[20:], []byte{1, 1, 8, 10})
	return append(b, strings.Repeat(secret, 200)[:payload]...)
}

func v4(proto byte, fragment uint16, options int, rest []byte) []byte {
	b := make([]byte, 20+options)
	b[0], b[8], b[9] = 0x40|byte(len(b)/4), 64, proto
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)+len(rest)))
	binary.BigEndian.PutUint16(b[6:], fragment)
	copy(b[12:], net.ParseIP(netlab.ServerIP4).To4())
	copy(b[16:], net.ParseIP(netlab.ClientIP4).To4())
	for i := range options {
		b[20+i] = 1
	}
	return append(b, rest...)
}

func v6(next byte, rest ...[]byte) []byte {
	b := make([]byte, 40)
	body := bytes.Join(rest, nil)
	b[0], b[6], b[7] = 0x60, next, 64
	binary.BigEndian.PutUint16(b[4:], uint16(len(body)))
	copy(b[8:], net.ParseIP(netlab.ServerIP6))
	copy(b[24:], net.ParseIP(netlab.ClientIP6))
	return append(b, body...)
}

func icmp(kind byte, quoted []byte) []byte {
	return append([]byte{kind, 4, 0, 0, 0, 0, 0, 0}, quoted...)
}

// greBytes is a GRE header with the flags' optional fields.
func greBytes(flags, protocol uint16) []byte {
	b := binary.BigEndian.AppendUint16(nil, flags)
	b = binary.BigEndian.AppendUint16(b, protocol)
	for _, bit := range []uint16{0x8000, 0x2000, 0x1000} {
		if flags&bit != 0 {
			b = append(b, 1, 2, 3, 4)
		}
	}
	return b
}

// inFrame is an Ethernet header.
func inFrame(protocol uint16) []byte {
	return binary.BigEndian.AppendUint16([]byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2}, protocol)
}

// udpTo is a UDP header with a tunnel header of 8 bytes.
func udpTo(port uint16, head ...byte) []byte {
	b := binary.BigEndian.AppendUint16([]byte{0xc0, 0}, port)
	return append(append(b, 0, 0, 0, 0), head...)
}

const (
	// caseNumber is the sequence number of the segments sent.
	caseNumber                  = 0xaaaa
	ethIP4, ethIP6, ethQ, ethAD = unix.ETH_P_IP, unix.ETH_P_IPV6, unix.ETH_P_8021Q, unix.ETH_P_8021AD
)

// kind is a frame, what the filter lets through of it, and what Cut keeps; 0 is
// nothing.
type kind struct {
	name         string
	protocol     uint16
	packet       []byte
	kernel, keep int
	vlan         [2]uint16
}

func plainKinds() []kind {
	hop := []byte{6, 0, 1, 4, 0, 0, 0, 0}
	const ip4, ip6, q, ad = ethIP4, ethIP6, ethQ, ethAD
	return []kind{
		{"v4", ip4, v4(6, 0, 0, tcpAt(0x18, caseNumber, 500)), 52, 52, [2]uint16{}},
		{"v4 options", ip4, v4(6, 0, 8, tcpAt(0x18, caseNumber, 500)), 60, 60, [2]uint16{}},
		{"v4 reset", ip4, v4(6, 0, 0, tcpAt(0x14, caseNumber, 100)), 116, 116, [2]uint16{}},
		{"v4 udp", ip4, v4(17, 0, 0, tcpAt(0x18, caseNumber, 500)), 0, 0, [2]uint16{}},
		{"v4 fragment", ip4, v4(6, 9, 0, tcpAt(0x18, caseNumber, 500)), 20, 20, [2]uint16{}},
		{"v6", ip6, v6(6, tcpAt(0x18, caseNumber, 500)), 72, 72, [2]uint16{}},
		{"v6 reset", ip6, v6(6, tcpAt(4, caseNumber, 100)), 136, 136, [2]uint16{}},
		{"v6 extension", ip6, v6(0, hop, tcpAt(0x18, caseNumber, 500)), 80 + 64, 80, [2]uint16{}},
		{"v6 extension, reset", ip6, v6(0, hop, tcpAt(4, caseNumber, 100)),
			80 + 64, 80 + 64, [2]uint16{}},
		{"fragmentation needed", ip4, v4(1, 0, 0, icmp(3, v4(6, 0, 0, tcpAt(0x18, caseNumber, 500)))),
			20 + maxError, 28 + 52, [2]uint16{}},
		{"time exceeded", ip4, v4(1, 0, 0, icmp(11, v4(6, 0, 0, tcpAt(0x18, caseNumber, 500)))),
			20 + maxError, 28 + 52, [2]uint16{}},
		{"echo", ip4, v4(1, 0, 0, icmp(8, v4(6, 0, 0, tcpAt(0x18, caseNumber, 500)))), 0, 0, [2]uint16{}},
		{"too big", ip6, v6(58, icmp(2, v6(6, tcpAt(0x18, caseNumber, 500)))),
			40 + maxError, 48 + 72, [2]uint16{}},
		{"vlan", q, tag(0x6007, ip4, v4(6, 0, 0, tcpAt(0x18, caseNumber, 500))),
			52, 52, [2]uint16{0x6007, 0}},
		{"vlan v6 reset", q, tag(7, ip6, v6(6, tcpAt(4, caseNumber, 100))), 136, 136, [2]uint16{7, 0}},
		{"qinq", ad, tag(9, q, tag(0x4507, ip4, v4(6, 0, 0, tcpAt(0x18, caseNumber, 500)))),
			52, 52, [2]uint16{9, 0x4507}},
		{"qinq v6", ad, tag(9, q, tag(7, ip6, v6(6, tcpAt(0x18, caseNumber, 500)))),
			72, 72, [2]uint16{9, 7}},
		{"v4 first fragment", ip4, v4(6, 0x2000, 0, tcpAt(0x18, caseNumber, 500)), maxHeaders + 64, 52, [2]uint16{}},
		{"v6 fragment", ip6, v6(44, []byte{6, 0, 0, 9, 0, 0, 0, 1}, tcpAt(0x18, caseNumber, 500)), 48, 48, [2]uint16{}},
		{"v6 first fragment", ip6, v6(44, []byte{6, 0, 0, 1, 0, 0, 0, 1}, tcpAt(0x18, caseNumber, 500)), 80 + 64, 80, [2]uint16{}},
		{"v6 datagram in fragments", ip6, v6(44, []byte{17, 0, 0, 1, 0, 0, 0, 1}, tcpAt(0x18, caseNumber, 500)), 0, 0, [2]uint16{}},
		{"arp", unix.ETH_P_ARP, make([]byte, 46), 0, 0, [2]uint16{}},
	}
}

// tunnelKinds are segments, a datagram and an ICMP error in every tunnel.
func tunnelKinds() (all []kind) {
	type tunnel struct {
		name     string
		protocol uint16
		wrap     func(inner []byte) []byte
		v6       bool
		roomy    int // what the kernel gives beyond the headers
		vlan     [2]uint16
	}
	in4 := func(proto byte, between ...[]byte) func([]byte) []byte {
		return func(inner []byte) []byte { return v4(proto, 0, 0, append(bytes.Join(between, nil), inner...)) }
	}
	in6 := func(proto byte, between ...[]byte) func([]byte) []byte {
		return func(inner []byte) []byte { return v6(proto, bytes.Join(between, nil), inner) }
	}
	vni, option := []byte{8, 0, 0, 0, 0, 0, 7, 0}, []byte{1, 2, 3, 4}
	for _, tn := range []tunnel{
		{name: "ipip", protocol: ethIP4, wrap: in4(4)},
		{name: "6in4", protocol: ethIP4, wrap: in4(41), v6: true},
		{name: "4in6", protocol: ethIP6, wrap: in6(4)},
		{name: "6in6", protocol: ethIP6, wrap: in6(41), v6: true},
		{name: "gre", protocol: ethIP4, wrap: in4(47, greBytes(0, ethIP4))},
		{name: "gre, checksum", protocol: ethIP4, wrap: in4(47, greBytes(0x8000, ethIP4))},
		{name: "gre, key", protocol: ethIP4, wrap: in4(47, greBytes(0x2000, ethIP4))},
		{name: "gre, sequence", protocol: ethIP4, wrap: in4(47, greBytes(0x1000, ethIP4))},
		{name: "gre, all", protocol: ethIP4, wrap: in4(47, greBytes(0xb000, ethIP6)), v6: true},
		{name: "gre over v6", protocol: ethIP6, wrap: in6(47, greBytes(0x2000, ethIP4))},
		{name: "gre, ethernet", protocol: ethIP4, wrap: in4(47, greBytes(0x2000, etherBridge), inFrame(ethIP4))},
		{name: "gre, ethernet, vlan", protocol: ethIP4,
			wrap: in4(47, greBytes(0, etherBridge), inFrame(ethQ), []byte{0, 7, 8, 0})},
		{name: "ipip in gre", protocol: ethIP4, roomy: 64, wrap: func(inner []byte) []byte {
			return in4(47, greBytes(0, ethIP4))(in4(4)(inner))
		}},
		{name: "vxlan", protocol: ethIP4, wrap: in4(17, udpTo(4789, vni...), inFrame(ethIP4))},
		{name: "vxlan, old port, v6", protocol: ethIP6, wrap: in6(17, udpTo(8472, vni...), inFrame(ethIP6)), v6: true},
		{name: "geneve", protocol: ethIP4,
			wrap: in4(17, udpTo(6081, 1, 0, 0x65, 0x58, 0, 0, 7, 0), option, inFrame(ethIP4))},
		{name: "geneve, v6", protocol: ethIP4, wrap: in4(17, udpTo(6081, 0, 0, 0x86, 0xdd, 0, 0, 7, 0)), v6: true},
		{name: "ipip, vlan", protocol: ethQ, vlan: [2]uint16{7, 0},
			wrap: func(inner []byte) []byte { return tag(7, ethIP4, in4(4)(inner)) }},
		{name: "gre, qinq", protocol: ethAD, vlan: [2]uint16{9, 7}, wrap: func(inner []byte) []byte {
			return tag(9, ethQ, tag(7, ethIP4, in4(47, greBytes(0x2000, ethIP4))(inner)))
		}},
	} {
		ip, head := func(rest []byte) []byte { return v4(6, 0, 0, rest) }, 52
		if tn.v6 {
			ip, head = func(rest []byte) []byte { return v6(6, rest) }, 72
		}
		outer := len(tn.wrap(nil)) - 4*tags(tn.vlan)
		data, reset := tn.wrap(ip(tcpAt(0x18, caseNumber, 500))), tn.wrap(ip(tcpAt(4, caseNumber, 100)))
		failed := v4(1, 0, 0, icmp(3, v4(6, 0, 0, tcpAt(0x18, caseNumber, 500))))
		datagram := v4(17, 0, 0, tcpAt(0x18, caseNumber, 500))
		all = append(all,
			kind{tn.name, tn.protocol, data, outer + head + tn.roomy, outer + head, tn.vlan},
			kind{tn.name + ", reset", tn.protocol, reset, outer + head + 64, outer + head + 64, tn.vlan})
		if !tn.v6 && tn.roomy == 0 {
			all = append(all,
				kind{tn.name + ", error", tn.protocol, tn.wrap(failed), outer + 20 + maxError, outer + 28 + 52, tn.vlan},
				kind{tn.name + ", datagram", tn.protocol, tn.wrap(datagram), 0, 0, tn.vlan})
		}
	}
	return all
}

func tags(vlan [2]uint16) (n int) {
	for _, v := range vlan {
		if v != 0 {
			n++
		}
	}
	return n
}

// TestKinds sends one frame of each kind through the real kernel and filter.
func TestKinds(t *testing.T) {
	lab := netlab.New(t)
	_, received := collect(t, lab.Client, Config{RingBytes: 1 << 20, Overlay: true})
	_, sent := collect(t, lab.Server, Config{RingBytes: 1 << 20, Overlay: true})
	to, from := newWire(t, lab.Client), newWire(t, lab.Server)
	kinds := append(plainKinds(), tunnelKinds()...)
	from.sendKinds(t, to, kinds)
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			k.check(t, received, evidence.Received, from.mac)
			k.check(t, sent, evidence.Sent, from.mac)
		})
	}
}

// endOfKind follows each kind.
var endOfKind = v4(6, 0, 0, tcpAt(4, 0xeeee, 0))

func (w *wire) sendKinds(t *testing.T, to *wire, kinds []kind) {
	t.Helper()
	for _, k := range kinds {
		w.send(t, to.mac, k.protocol, k.packet)
		w.send(t, to.mac, ethIP4, endOfKind)
	}
}

// untilEnd are the packets of the direction that come before it.
func untilEnd(t *testing.T, c *collector, direction evidence.Direction) (all []evidence.Packet) {
	t.Helper()
	c.next(t, func(p *evidence.Packet) bool {
		ended := bytes.Equal(p.Header, endOfKind)
		if p.Direction == direction && !ended {
			all = append(all, *p)
		}
		return ended
	})
	return all
}

func (k *kind) check(t *testing.T, c *collector, direction evidence.Direction, sender net.HardwareAddr) {
	t.Helper()
	all := untilEnd(t, c, direction)
	if (len(all) != 1) == (k.kernel != 0) {
		t.Errorf("%v: got %d packets, want %d bytes: %+v", direction, len(all), k.kernel, all)
	}
	if k.kernel == 0 || len(all) == 0 {
		return
	}
	p := all[0]
	keep, reset := recorder.Cut(p.Header)
	if len(p.Header) != min(k.kernel, len(k.packet)) || keep != k.keep || reset != strings.HasSuffix(k.name, "reset") {
		t.Errorf("%v: kernel gives %d, recorder keeps %d (reset %v); want %d and %d",
			direction, len(p.Header), keep, reset, k.kernel, k.keep)
	}
	ip := k.packet[4*tags(k.vlan):]
	if !bytes.HasPrefix(ip, p.Header) || int(p.WireBytes) != len(ip) {
		t.Errorf("%v: %d bytes on the wire, want %d; header %x", direction, p.WireBytes, len(ip), p.Header)
	}
	if p.VLAN != k.vlan && direction == evidence.Received {
		t.Errorf("VLAN tags %x, want %x", p.VLAN, k.vlan)
	}
	if !bytes.Equal(p.SrcMAC[:], sender) || p.LinkType != unix.ARPHRD_ETHER {
		t.Errorf("%v: sender %x on link type %d", direction, p.SrcMAC, p.LinkType)
	}
	p.Header = p.Header[:keep]
	if s := segment(&p); s.Flags != 0 && s.Seq != caseNumber {
		t.Errorf("%v: parsed as %+v", direction, s)
	}
}

// What the filter decides, also when it passes control packets only.
func TestKindsAtControl(t *testing.T) {
	lab := netlab.New(t)
	s, c := collect(t, lab.Client, Config{RingBytes: 1 << 20, Overlay: true})
	c.tell(t, s, recorder.Order{Level: recorder.LevelControl})
	to, from := newWire(t, lab.Client), newWire(t, lab.Server)
	kinds := append(plainKinds(), tunnelKinds()...)
	from.sendKinds(t, to, kinds)
	for _, k := range kinds {
		all := untilEnd(t, c, evidence.Received)
		want := k.kernel > 0 && recorder.Control(k.packet[4*tags(k.vlan):])
		// Extension headers, first fragments and tunnels in tunnels are not judged.
		judged := !strings.Contains(k.name, "extension") && !strings.Contains(k.name, "first") &&
			!strings.Contains(k.name, "ipip in gre")
		if want && len(all) == 0 || !want && len(all) > 0 && judged {
			t.Errorf("%s: is a control packet: %v, comes through: %d", k.name, want, len(all))
		}
	}
}

// Without the option, no datagram is looked into.
func TestOverlayIsAnOption(t *testing.T) {
	lab := netlab.New(t)
	_, c := collect(t, lab.Client, Config{RingBytes: 1 << 20})
	to, from := newWire(t, lab.Client), newWire(t, lab.Server)
	for _, k := range tunnelKinds() {
		if strings.HasPrefix(k.name, "vxlan") || strings.HasPrefix(k.name, "geneve") {
			from.send(t, to.mac, k.protocol, k.packet)
		}
	}
	from.send(t, to.mac, ethIP4, endOfKind)
	if p := c.next(t, func(p *evidence.Packet) bool { return p.Direction == evidence.Received }); !bytes.Equal(p.Header, endOfKind) {
		t.Errorf("got %x", p.Header)
	}
}
