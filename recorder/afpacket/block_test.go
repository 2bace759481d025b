package afpacket

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"tcpcoroner/evidence"
	"tcpcoroner/recorder"
)

// ringPacket is a packet as the kernel lays it into a block.
type ringPacket struct {
	protocol, hatype uint16
	kind             uint8
	tci              uint32
	status           uint32
	wire             uint32
	data             []byte
}

const align = 16

func (p ringPacket) bytes() []byte {
	const data = 96
	b := make([]byte, (data+len(p.data)+align-1)/align*align)
	put := func(at int, v uint32) { binary.NativeEndian.PutUint32(b[at:], v) }
	put(packetNext, uint32(len(b)))
	put(packetSec, 10)
	put(packetNsec, 20)
	put(packetKept, uint32(len(p.data)))
	put(packetLength, p.wire)
	put(packetStatus, p.status)
	binary.NativeEndian.PutUint16(b[packetData:], data)
	put(packetTCI, p.tci)
	binary.BigEndian.PutUint16(b[packetProtocol:], p.protocol)
	put(packetIndex, 3)
	binary.NativeEndian.PutUint16(b[packetHatype:], p.hatype)
	b[packetType], b[packetHalen] = p.kind, 6
	copy(b[packetAddress:], "\x02mac\x00\x01")
	copy(b[data:], p.data)
	return b
}

func block(all ...ringPacket) []byte {
	b := make([]byte, blockHeader)
	binary.NativeEndian.PutUint32(b[blockPackets:], uint32(len(all)))
	binary.NativeEndian.PutUint32(b[blockFirst:], blockHeader)
	binary.NativeEndian.PutUint32(b[blockTime:], 10)
	for _, p := range all {
		b = append(b, p.bytes()...)
	}
	binary.NativeEndian.PutUint32(b[blockUsed:], uint32(len(b)))
	return b
}

type seen struct {
	Meta   recorder.Meta
	Header string
}

func walk(b []byte) (all []seen, ok bool) {
	var m recorder.Meta
	ok = parseBlock(b, &m, func(m *recorder.Meta, header []byte) {
		all = append(all, seen{*m, string(header)})
	})
	return all, ok
}

func ip4TCP(payload string) []byte {
	b := make([]byte, 40)
	b[0], b[8], b[9], b[32] = 0x45, 64, unix.IPPROTO_TCP, 5<<4
	binary.BigEndian.PutUint16(b[2:], uint16(40+len(payload)))
	return append(b, payload...)
}

func tag(tci, protocol uint16, b []byte) []byte {
	t := make([]byte, vlanTag)
	binary.BigEndian.PutUint16(t, tci)
	binary.BigEndian.PutUint16(t[2:], protocol)
	return append(t, b...)
}

func TestParseBlock(t *testing.T) {
	ip := ip4TCP("")
	meta := recorder.Meta{Nanos: 10e9 + 20, Interface: 3, WireBytes: 40, LinkType: 1,
		Direction: evidence.Received, SrcMAC: [6]byte([]byte("\x02mac\x00\x01"))}
	with := func(change func(*recorder.Meta)) []seen {
		m := meta
		change(&m)
		return []seen{{m, string(ip)}}
	}
	for _, c := range []struct {
		name   string
		packet ringPacket
		want   []seen
	}{
		{"received", ringPacket{0x0800, 1, 0, 0, 0, 40, ip}, with(func(*recorder.Meta) {})},
		{"sent", ringPacket{0x0800, 1, 4, 0, 0, 40, ip}, with(func(m *recorder.Meta) { m.Direction = evidence.Sent })},
		{"elsewhere", ringPacket{0x0800, 1, 3, 0, 0, 40, ip}, with(func(m *recorder.Meta) { m.Direction = evidence.Elsewhere })},
		{"tunnel", ringPacket{0x0800, unix.ARPHRD_NONE, 4, 0, 0, 40, ip}, with(func(m *recorder.Meta) {
			m.Direction, m.LinkType = evidence.DirectionUnknown, unix.ARPHRD_NONE
		})},
		{"loopback in", ringPacket{0x0800, unix.ARPHRD_LOOPBACK, 0, 0, 0, 40, ip}, with(func(m *recorder.Meta) {
			m.Direction, m.LinkType = evidence.Loopback, unix.ARPHRD_LOOPBACK
		})},
		{"loopback out", ringPacket{0x0800, unix.ARPHRD_LOOPBACK, 4, 0, 0, 40, ip}, nil},
		{"vlan", ringPacket{0x0800, 1, 0, 0x2007, unix.TP_STATUS_VLAN_VALID, 40, ip}, with(func(m *recorder.Meta) {
			m.VLAN[0] = 0x2007
		})},
		{"stale vlan field", ringPacket{0x0800, 1, 0, 0x2007, 0, 40, ip}, with(func(*recorder.Meta) {})},
		// Priority 2 and VLAN 1287: the tag's first nibble is 4, like IPv4's.
		{"qinq, protocol hidden", ringPacket{0x0800, 1, 0, 9, unix.TP_STATUS_VLAN_VALID, 44, tag(0x4507, 0x0800, ip)},
			with(func(m *recorder.Meta) { m.VLAN = [2]uint16{9, 0x4507} })},
		{"qinq, protocol shown", ringPacket{0x8100, 1, 0, 9, unix.TP_STATUS_VLAN_VALID, 44, tag(7, 0x0800, ip)},
			with(func(m *recorder.Meta) { m.VLAN = [2]uint16{9, 7} })},
		{"sent without offload", ringPacket{0x0800, 1, 4, 7, unix.TP_STATUS_VLAN_VALID, 44, tag(7, 0x0800, ip)},
			with(func(m *recorder.Meta) { m.VLAN[0], m.Direction = 7, evidence.Sent })},
		{"sent without offload, old kernel", ringPacket{0x8100, 1, 4, 0, 0, 44, tag(7, 0x0800, ip)},
			with(func(m *recorder.Meta) { m.VLAN[0], m.Direction = 7, evidence.Sent })},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, ok := walk(block(c.packet))
			if diff := cmp.Diff(c.want, got); diff != "" || !ok {
				t.Errorf("ok %v, (-want +got):\n%s", ok, diff)
			}
		})
	}
}

func TestParseBlockTrustsNothing(t *testing.T) {
	good := ringPacket{0x0800, 1, 0, 0, 0, 40, ip4TCP("")}
	for name, c := range map[string]struct {
		at    int
		value uint32
	}{
		"count":             {blockPackets, 3},
		"count beyond all":  {blockPackets, 1 << 31},
		"first":             {blockFirst, 1 << 31},
		"first is header":   {blockFirst, 8},
		"next":              {blockHeader + packetNext, 1 << 30},
		"next stands still": {blockHeader + packetNext, 0},
		"kept":              {blockHeader + packetKept, 1 << 31},
		"data":              {blockHeader + packetData, 0xffff},
	} {
		t.Run(name, func(t *testing.T) {
			b := block(good, good)
			binary.NativeEndian.PutUint32(b[c.at:], c.value)
			if all, ok := walk(b); ok || len(all) > 2 {
				t.Errorf("ok %v with %d packets", ok, len(all))
			}
		})
	}
}

func FuzzParseBlock(f *testing.F) {
	ip := ip4TCP("")
	f.Add(block(ringPacket{0x0800, 1, 0, 0, 0, 40, ip}, ringPacket{0x8100, 1, 4, 7, 16, 44, tag(7, 0x0800, ip)}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if all, _ := walk(b); len(all) > len(b)/packetHeader {
			t.Fatalf("%d packets in %d bytes", len(all), len(b))
		}
	})
}

// Of a block that began before the filter was set, the packets from before are
// not delivered, and nothing is left of it.
func TestEarlyBlockIsWiped(t *testing.T) {
	c := &collector{packets: make(chan evidence.Packet, 9)}
	s := &Source{socket: &socket{ring: make([]byte, minBlocks*blockBytes), since: 10e9 + 30}, known: map[uint32]bool{}, sink: c}
	packet := ringPacket{0x0800, 1, 0, 0, 0, 40, ip4TCP("secret")}
	early := block(packet, packet)
	second := blockHeader + len(packet.bytes())
	binary.NativeEndian.PutUint32(early[second+packetNsec:], 30)
	s.take(early)
	if s.Stats().Skipped != 1 || len(c.packets) != 1 || bytes.Contains(early, []byte("secret")) {
		t.Errorf("skipped %d and delivered %d of 2, block %q", s.Stats().Skipped, len(c.packets), early)
	}
	<-c.packets
	s.lap = minBlocks // the clock was set back later
	s.take(block(ringPacket{0x0800, 1, 0, 0, 0, 40, ip4TCP("")}))
	if len(c.packets) != 1 || s.Stats().Skipped != 1 {
		t.Errorf("a block after the first lap was skipped")
	}
	s.take(make([]byte, blockHeader))
	if s.Stats().Malformed != 1 {
		t.Errorf("malformed is %d, want 1", s.Stats().Malformed)
	}
}

func TestFilterAssembles(t *testing.T) {
	raw, err := filter()
	if err != nil {
		t.Fatal(err)
	}
	if len(raw) > 4096 { // BPF_MAXINSNS
		t.Errorf("%d instructions", len(raw))
	}
	program, all := bpf.Disassemble(raw)
	if !all {
		t.Fatal("does not disassemble")
	}
	for at, i := range program {
		if j, ok := i.(bpf.JumpIf); ok && at+1+int(max(j.SkipTrue, j.SkipFalse)) >= len(program) {
			t.Errorf("instruction %d jumps out", at)
		}
	}
}
