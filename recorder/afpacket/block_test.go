package afpacket

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
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

// gatherer keeps what it gets.
type gatherer struct{ added, counted, stored []seen }

func (g *gatherer) Add(m *recorder.Meta, header []byte) {
	g.added = append(g.added, seen{*m, string(header)})
}
func (g *gatherer) Count(m *recorder.Meta, header []byte) {
	g.counted = append(g.counted, seen{*m, string(header)})
}
func (g *gatherer) Store(m *recorder.Meta, header []byte) {
	g.stored = append(g.stored, seen{*m, string(header)})
}
func (g *gatherer) Skip(uint64, int64, int64) {}
func (g *gatherer) Tick() recorder.Order      { return recorder.Order{} }

func newWalker(sink recorder.Sink) *walker {
	return &walker{sink: sink, known: map[uint32]struct{}{}}
}

func walk(b []byte) (all []seen, ok bool) {
	var g gatherer
	ok = newWalker(&g).walk(b, add)
	return g.added, ok
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
	meta := recorder.Meta{Nanos: 10e9 + 20, WireBytes: 40, Path: recorder.Path{Interface: 3, LinkType: 1,
		Direction: evidence.Received, SrcMAC: [6]byte([]byte("\x02mac\x00\x01"))}}
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
		{"sent", ringPacket{0x0800, 1, 4, 0, 0, 40, ip}, with(func(m *recorder.Meta) { m.Path.Direction = evidence.Sent })},
		{"elsewhere", ringPacket{0x0800, 1, 3, 0, 0, 40, ip}, with(func(m *recorder.Meta) { m.Path.Direction = evidence.Elsewhere })},
		{"tunnel", ringPacket{0x0800, unix.ARPHRD_NONE, 4, 0, 0, 40, ip}, with(func(m *recorder.Meta) {
			m.Path.Direction, m.Path.LinkType = evidence.DirectionUnknown, unix.ARPHRD_NONE
		})},
		{"loopback in", ringPacket{0x0800, unix.ARPHRD_LOOPBACK, 0, 0, 0, 40, ip}, with(func(m *recorder.Meta) {
			m.Path.Direction, m.Path.LinkType = evidence.Loopback, unix.ARPHRD_LOOPBACK
		})},
		{"loopback out", ringPacket{0x0800, unix.ARPHRD_LOOPBACK, 4, 0, 0, 40, ip}, nil},
		{"checksum valid", ringPacket{0x0800, 1, 0, 0, unix.TP_STATUS_CSUM_VALID, 40, ip}, with(func(m *recorder.Meta) { m.Trusted = true })},
		{"gre device", ringPacket{0x0800, unix.ARPHRD_IPGRE, 0, 0, 0, 40, ip}, with(func(m *recorder.Meta) {
			m.Path.Direction, m.Path.LinkType = evidence.DirectionUnknown, unix.ARPHRD_IPGRE
		})},
		{"vlan", ringPacket{0x0800, 1, 0, 0x2007, unix.TP_STATUS_VLAN_VALID, 40, ip}, with(func(m *recorder.Meta) {
			m.Path.VLAN[0] = 0x2007
		})},
		{"stale vlan field", ringPacket{0x0800, 1, 0, 0x2007, 0, 40, ip}, with(func(*recorder.Meta) {})},
		// Priority 2 and VLAN 1287: the tag's first nibble is 4, like IPv4's.
		{"qinq, protocol hidden", ringPacket{0x0800, 1, 0, 9, unix.TP_STATUS_VLAN_VALID, 44, tag(0x4507, 0x0800, ip)},
			with(func(m *recorder.Meta) { m.Path.VLAN = [2]uint16{9, 0x4507} })},
		{"qinq, protocol shown", ringPacket{0x8100, 1, 0, 9, unix.TP_STATUS_VLAN_VALID, 44, tag(7, 0x0800, ip)},
			with(func(m *recorder.Meta) { m.Path.VLAN = [2]uint16{9, 7} })},
		{"sent without offload", ringPacket{0x0800, 1, 4, 7, unix.TP_STATUS_VLAN_VALID, 44, tag(7, 0x0800, ip)},
			with(func(m *recorder.Meta) { m.Path.VLAN[0], m.Path.Direction = 7, evidence.Sent })},
		{"sent without offload, old kernel", ringPacket{0x8100, 1, 4, 0, 0, 44, tag(7, 0x0800, ip)},
			with(func(m *recorder.Meta) { m.Path.VLAN[0], m.Path.Direction = 7, evidence.Sent })},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, ok := walk(block(c.packet))
			if diff := cmp.Diff(c.want, got, cmpopts.IgnoreUnexported(recorder.Path{})); diff != "" || !ok {
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

// Nothing of one packet may be left in the next one's path.
func TestWalkLeavesNothingBehind(t *testing.T) {
	full := ringPacket{0x0800, 1, 0, 7, unix.TP_STATUS_VLAN_VALID | unix.TP_STATUS_CSUM_VALID, 40, ip4TCP("")}
	bare := ringPacket{0x0800, unix.ARPHRD_NONE, 0, 0, 0, 40, ip4TCP("")}
	b := block(full, bare)
	b[blockHeader+len(full.bytes())+packetHalen] = 0
	all, ok := walk(b)
	if !ok || len(all) != 2 {
		t.Fatalf("ok %v, %d packets", ok, len(all))
	}
	if m := all[1].Meta; m.Trusted || m.Path.SrcMAC != [6]byte{} || m.Path.VLAN != [2]uint16{} || m.Path.Direction != evidence.DirectionUnknown {
		t.Errorf("second packet %+v", m)
	}
}

// What a walk does with data and control packets, for each purpose.
func TestWalkPurposes(t *testing.T) {
	reset := ip4TCP("")
	reset[33] = byte(evidence.RST)
	b := block(ringPacket{0x0800, 1, 0, 0, 0, 40, ip4TCP("")}, ringPacket{0x0800, 1, 0, 0, 0, 40, reset})
	for _, c := range []struct {
		do                     purpose
		added, counted, stored int
		skipped, early         uint64
	}{
		{add, 2, 0, 0, 0, 0}, {count, 0, 2, 0, 0, 0}, {store, 0, 0, 2, 0, 0}, {evict, 0, 0, 1, 1, 0}, {addLate, 0, 0, 0, 0, 2},
	} {
		var g gatherer
		w := newWalker(&g)
		w.since = 11e9
		if ok := w.walk(b, c.do); !ok || len(g.added) != c.added || len(g.counted) != c.counted ||
			len(g.stored) != c.stored || w.skipped != c.skipped || w.early != c.early {
			t.Errorf("purpose %d: ok %v, added %d, counted %d, stored %d, skipped %d, early %d; want %+v", c.do, ok,
				len(g.added), len(g.counted), len(g.stored), w.skipped, w.early, c)
		}
	}
}

// An interface is noted once, whichever others share its place.
func TestInterfacesNotedOnce(t *testing.T) {
	w := newWalker(&gatherer{})
	var all []ringPacket
	for range 6 {
		all = append(all, ringPacket{0x0800, 1, 0, 0, 0, 40, ip4TCP("")})
	}
	b := block(all...)
	for i := range all {
		at := blockHeader + i*len(all[0].bytes())
		binary.NativeEndian.PutUint32(b[at+packetIndex:], uint32(3+i%3*len(w.seen)))
	}
	if !w.walk(b, add) || len(w.unknown) != 3 {
		t.Errorf("noted %+v", w.unknown)
	}
}

// nothing is a sink that does nothing.
type nothing struct{ packets int }

func (n *nothing) Add(*recorder.Meta, []byte)   { n.packets++ }
func (n *nothing) Count(*recorder.Meta, []byte) { n.packets++ }
func (n *nothing) Store(*recorder.Meta, []byte) { n.packets++ }
func (n *nothing) Skip(uint64, int64, int64)    {}
func (n *nothing) Tick() recorder.Order         { return recorder.Order{} }

func fullBlock() []byte {
	out, in := ringPacket{0x0800, 1, 4, 0, 0, 1500, ip4TCP("")}, ringPacket{0x0800, 1, 0, 0, unix.TP_STATUS_CSUM_VALID, 40, ip4TCP("")}
	var all []ringPacket
	tagged := ringPacket{0x0800, 1, 0, 7, unix.TP_STATUS_VLAN_VALID, 44, tag(7, 0x0800, ip4TCP(""))}
	for range 3000 {
		all = append(all, out, in)
	}
	return block(append(all, tagged)...)
}

func TestWalkAllocates0(t *testing.T) {
	b, w := fullBlock(), newWalker(&nothing{})
	for do := add; do <= evict; do++ {
		if n := testing.AllocsPerRun(10, func() { w.walk(b, do); w.skipped = 0 }); n != 0 {
			t.Errorf("purpose %d: %v allocations for a block", do, n)
		}
	}
}

func BenchmarkWalk(b *testing.B) {
	for name, do := range map[string]purpose{"add": add, "count": count, "evict": evict} {
		b.Run(name, func(b *testing.B) {
			block := fullBlock()
			packets := int(u32(block, blockPackets))
			w := newWalker(&nothing{})
			b.ReportAllocs()
			for b.Loop() {
				w.walk(block, do)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*packets), "ns/packet")
		})
	}
}

func memoryRing(since int64) *ring {
	g := newGeometry(1 << 20)
	return newRing(&socket{ring: make([]byte, g.bytes()), since: since}, g, 0)
}

// hand writes a block into the ring, as the kernel would.
func (r *ring) hand(at int, b []byte) {
	copy(r.block(at), b)
	*status(r.block(at)) = unix.TP_STATUS_USER
}

// Of a block that began before the filter was set, the packets from before are
// not delivered, and nothing is left of it.
func TestEarlyBlockIsWiped(t *testing.T) {
	g := &gatherer{}
	s, r := &Source{}, memoryRing(10e9+30)
	r.sink = g
	packet := ringPacket{0x0800, 1, 0, 0, 0, 40, ip4TCP("secret")}
	early := block(packet, packet)
	binary.NativeEndian.PutUint32(early[blockHeader+len(packet.bytes())+packetNsec:], 30)
	r.hand(0, early)
	s.take(r, true)
	if s.Stats().Skipped != 1 || len(g.added) != 1 || bytes.Contains(r.ring, []byte("secret")) || *status(r.block(0)) != 0 {
		t.Errorf("skipped %d and delivered %d of 2", s.Stats().Skipped, len(g.added))
	}
	r.lap = r.blocks // the clock was set back later
	r.hand(1, block(packet))
	s.take(r, false)
	if len(g.added) != 2 || s.Stats().Skipped != 1 {
		t.Errorf("a block after the first lap was skipped")
	}
	*status(r.block(2)) = unix.TP_STATUS_KERNEL
	if taken, _ := s.take(r, false); taken {
		t.Error("took a block that the kernel has not handed over")
	}
	r.hand(2, make([]byte, blockHeader))
	s.take(r, false)
	if s.Stats().Malformed != 1 {
		t.Errorf("malformed is %d, want 1", s.Stats().Malformed)
	}
}

// The sink is told how much is waiting, and soon enough to change something.
func TestBacklog(t *testing.T) {
	g := &gatherer{}
	s, r := &Source{sink: g}, memoryRing(0)
	r.sink, s.rings = g, []*ring{r}
	packet := block(ringPacket{0x0800, 1, 0, 0, 0, 40, ip4TCP("")})
	for at := range r.blocks - 1 {
		r.hand(at, packet)
	}
	for left := r.blocks - 2; left >= r.blocks/2; left-- {
		rounds, drained, _ := s.batch()
		if rounds != 1 || drained || s.Stats().Backlog < .5 {
			t.Fatalf("%d of %d blocks wait: read %d, drained %v, %+v", left, r.blocks, rounds, drained, s.Stats())
		}
	}
	if _, drained, _ := s.batch(); !drained || s.Stats().Backlog != 0 || len(g.added) != r.blocks-1 {
		t.Errorf("%d of %d blocks read, %+v", len(g.added), r.blocks-1, s.Stats())
	}
	// What is held back does not wait.
	for at := range 2 {
		r.hand((r.next+at)%r.blocks, packet)
	}
	s.hold = true
	s.batch()
	if s.Stats().Backlog != 0 {
		t.Errorf("%d blocks held: %+v", r.held, s.Stats())
	}
}

// However large a ring is, a quarter of it, what comes while the reader is late
// and two blocks stay with the kernel.
func TestHoldLeavesTheReserve(t *testing.T) {
	for _, c := range []struct{ ringBytes, blockBytes, blocks, hold int }{
		{0, minBlock, 8, 2}, {512 << 10, 64 << 10, 8, 2}, {2 << 20, 256 << 10, 8, 2}, {4 << 20, 512 << 10, 8, 2},
		{8 << 20, maxBlock, 8, 2}, {16 << 20, maxBlock, 16, 6}, {32 << 20, maxBlock, 32, 18}, {128 << 20, maxBlock, 128, 90},
	} {
		g := newGeometry(c.ringBytes)
		if g != (geometry{c.blockBytes, c.blocks}) || g.hold() != c.hold {
			t.Errorf("%d bytes: %+v holds %d, want %+v", c.ringBytes, g, g.hold(), c)
		}
		if reserve := g.blocks - g.hold(); 4*reserve < g.blocks+4*3 {
			t.Errorf("%d bytes: a reserve of %d of %d blocks", c.ringBytes, reserve, g.blocks)
		}
	}
}

func TestFilterAssembles(t *testing.T) {
	for _, c := range []struct{ overlay, control bool }{{}, {true, false}, {false, true}, {true, true}} {
		raw, err := filter(c.overlay, c.control)
		if err != nil {
			t.Fatal(err)
		}
		checkFilter(t, raw)
	}
	if _, err := newFilters(true); err != nil {
		t.Error(err)
	}
}

func checkFilter(t *testing.T, raw []bpf.RawInstruction) {
	if len(raw) == 0 { // which the kernel refuses
		t.Fatal("empty")
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
