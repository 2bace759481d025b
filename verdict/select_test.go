package verdict

import (
	"encoding/binary"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tcpcoroner/evidence"
)

// flood makes the packets of a SYN flood of distinct tuples, each answered by a
// RST, in a buffer of its own.
type flood struct {
	header [40]byte
	packet evidence.Packet
}

func newFlood() *flood {
	f := &flood{}
	copy(f.header[:], pkt{src: client, dst: server, ttl: 64, window: 1}.header())
	f.packet = evidence.Packet{Header: f.header[:], WireBytes: 40, Interface: 2, LinkType: 1}
	return f
}

// at is packet n: SYN n/2 or its RST.
func (f *flood) at(n int) *evidence.Packet {
	h, p, i := f.header[:], &f.packet, uint32(n/2)
	p.Number, p.Nanos = n+1, start.UnixNano()+int64(n)*1000
	source, own := h[12:16], h[16:20]
	sport, dport := h[20:22], h[22:24]
	seq, ack := uint32(0x1234), uint32(0)
	h[33], p.Direction = byte(evidence.SYN), evidence.Received
	if n%2 == 1 {
		source, own, sport, dport = own, source, dport, sport
		seq, ack = 0, 0x1235
		h[33], p.Direction = byte(rstAck), evidence.Sent
	}
	binary.BigEndian.PutUint32(source, 0x0b000000+i)
	copy(own, []byte{10, 0, 0, 1})
	binary.BigEndian.PutUint16(sport, uint16(1024+i%60000))
	binary.BigEndian.PutUint16(dport, 80)
	binary.BigEndian.PutUint32(h[24:], seq)
	binary.BigEndian.PutUint32(h[28:], ack)
	return p
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// floodPackets is several times what fills every table.
const floodPackets = 400_000

// drown is a pass over the flood, in which other packets come, too. It returns by how
// much the heap grew in its second half.
func drown(take func(*evidence.Packet), others []evidence.Packet) int64 {
	const othersAt = floodPackets / 5 * 3
	filled, all := uint64(0), newFlood()
	for n := range floodPackets {
		if n == floodPackets/2 {
			filled = heap()
		}
		p := all.at(n)
		p.Number = 2*n + 1 // leaves room
		take(p)
		if k := n - othersAt; k >= 0 && k < len(others) {
			p := others[k]
			p.Number, p.Nanos = 2*n+2, all.packet.Nanos
			take(&p)
		}
	}
	return int64(heap() - filled)
}

// TestFlood: any number of packets of a SYN flood from distinct tuples, in the
// middle of which a process aborts connections, take little memory, and hide
// neither their own number nor the other cause.
func TestFlood(t *testing.T) {
	const packets = floodPackets
	before := heap()
	aborted := window(served(true, pkt{ms: 9, src: server, dst: client, flags: rstAck, seq: 501, ack: 151, dir: evidence.Sent, id: 8})...)
	sel := NewSelection()
	for _, take := range []func(*evidence.Packet){sel.Survey, sel.Take} {
		if more := drown(take, aborted.Packets); more > 1<<20 { // the last flows and the aborts are in it
			t.Errorf("the second half of a pass took %d bytes", more)
		}
	}
	grown := heap() - before
	t.Logf("heap grew by %.1f MiB", float64(grown)/(1<<20))
	if grown > 24<<20 {
		t.Errorf("the selection holds %d bytes", grown)
	}
	inc := &evidence.Incident{}
	sel.Fill(&inc.Window)
	w := &inc.Window
	if w.PacketCount != packets+6 || w.ResetCount != packets/2+1 || w.SentResets != packets/2+1 {
		t.Errorf("%d packets, %d resets, %d sent", w.PacketCount, w.ResetCount, w.SentResets)
	}
	if !w.FlowsAtLeast || w.FlowCount < 10_000 || w.ResetFlowCount < 10_000 || w.Cut {
		t.Errorf("%d flows, %d with a RST, at least: %v, cut: %v", w.FlowCount, w.ResetFlowCount, w.FlowsAtLeast, w.Cut)
	}
	if len(w.Packets) > 48<<10 || len(w.Excerpts) > maxViews {
		t.Errorf("%d packets and %d excerpts were kept", len(w.Packets), len(w.Excerpts))
	}
	j := Judge(inc)
	judged := heap() - before
	t.Logf("with the judgement it is %.1f MiB", float64(judged)/(1<<20))
	if judged > 24<<20 {
		t.Errorf("packets and judgement hold %d bytes", judged)
	}
	mechanisms := map[evidence.Mechanism]int{}
	for _, f := range j.Flows {
		mechanisms[f.Verdict.Claim().Mechanism]++
	}
	if mechanisms[evidence.MechanismActiveAbort] != 1 || mechanisms[evidence.MechanismRefused] < 750 {
		t.Errorf("mechanisms %v: %v", mechanisms, j.Verdict)
	}
	// The last of the flood is there too.
	last := j.Flows[0].Reset.Packet
	for _, f := range j.Flows {
		last = max(last, f.Reset.Packet)
	}
	if last < 2*packets-10 {
		t.Errorf("the last RST judged is packet %d", last)
	}
	runtime.KeepAlive(w)
}

// TestUninterestingPacketsCostNothing: the packets of a busy host are not copied.
func TestUninterestingPacketsCostNothing(t *testing.T) {
	sel := NewSelection()
	all := plain()
	for i := range all {
		sel.Survey(&all[i])
	}
	n := 0
	if a := testing.AllocsPerRun(1000, func() { sel.Survey(&all[n%len(all)]); n++ }); a > 0 {
		t.Errorf("Survey allocates %v times a packet", a)
	}
	sel.Take(&all[0])
	if a := testing.AllocsPerRun(1000, func() { sel.Take(&all[n%len(all)]); n++ }); a > 0 {
		t.Errorf("Take allocates %v times a packet", a)
	}
}

// plain are packets of many flows without a RST.
func plain() []evidence.Packet {
	var all []evidence.Packet
	for i := range 4096 {
		h := pkt{
			src: netip.AddrPortFrom(client.Addr(), uint16(20000+i)), dst: server, flags: evidence.ACK,
			seq: 1, ack: 1, payload: 1000, ttl: 64, window: 5,
		}.header()
		all = append(all, evidence.Packet{
			Number: i + 1, Nanos: start.UnixNano() + int64(i), Header: h, WireBytes: 1040,
			Direction: evidence.Received, Interface: 2, LinkType: 1,
		})
	}
	return all
}

func BenchmarkSurvey(b *testing.B) {
	sel, all := NewSelection(), plain()
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		sel.Survey(&all[n%len(all)])
		n++
	}
}

func BenchmarkTake(b *testing.B) {
	sel, all, storm := NewSelection(), plain(), newFlood()
	for n := range 100_000 {
		sel.Survey(storm.at(n))
	}
	sel.Take(storm.at(0))
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		sel.Take(&all[n%len(all)])
		n++
	}
}

func BenchmarkSurveyFlood(b *testing.B) {
	sel, storm := NewSelection(), newFlood()
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		sel.Survey(storm.at(n))
		n++
	}
}

func BenchmarkTakeFlood(b *testing.B) {
	sel, storm := NewSelection(), newFlood()
	for n := range 1_000_000 {
		sel.Survey(storm.at(n))
	}
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		sel.Take(storm.at(n))
		n++
	}
}

// longFlow is a connection with n data segments before its abort.
func longFlow(n int, abort pkt) []pkt {
	all := served(true)
	seq := uint32(151)
	for i := range n {
		all = append(all, pkt{ms: 5 + float64(i)/100, src: client, dst: server, flags: evidence.ACK, seq: seq, ack: 501, payload: 10, dir: evidence.Received})
		seq += 10
	}
	abort.ms, abort.ack = 6+float64(n)/100, seq
	return append(all, abort)
}

// TestLongFlow: of a long flow the counts are those of the whole, and the story
// has its opening, its end, and each side's latest packets.
func TestLongFlow(t *testing.T) {
	abort := pkt{src: server, dst: client, flags: rstAck, seq: 501, dir: evidence.Sent, id: 8}
	w := window(longFlow(20_000, abort)...)
	if n := len(w.Packets); n > mostShare+200 {
		t.Errorf("%d packets kept", n)
	}
	f := one(t, &evidence.Incident{Window: w})
	if f.Packets != 20_006 || f.ClientBytes != 200_050 || f.Reset.Packet != 20_006 || !f.InitiatorSeen || f.Resets != 1 {
		t.Errorf("%d packets, %d bytes, reset %+v", f.Packets, f.ClientBytes, f.Reset)
	}
	if c := f.Verdict.Claim(); c.Mechanism != evidence.MechanismActiveAbort {
		t.Errorf("%s: %s", c.Mechanism, c.Sentence)
	}
}

// TestOutstandingDataOfALongFlow: retransmissions at the end do not hide that
// data was outstanding, so the RST after FIN is not called harmless.
func TestOutstandingDataOfALongFlow(t *testing.T) {
	fin := pkt{ms: 4.5, src: server, dst: client, flags: evidence.FIN | evidence.ACK, seq: 501, ack: 151, dir: evidence.Sent}
	all := append(served(true), fin)
	for i := range 3000 {
		all = append(all, pkt{ms: 5 + float64(i), src: client, dst: server, flags: evidence.ACK, seq: 151 + uint32(min(i, 900))%900*10, ack: 502, payload: 10, dir: evidence.Received})
	}
	all = append(all, pkt{ms: 4000, src: server, dst: client, flags: rstAck, seq: 502, ack: 151, dir: evidence.Sent})
	if c := one(t, &evidence.Incident{Window: window(all...)}).Verdict.Claim(); c.Benign {
		t.Errorf("called harmless: %s", c.Sentence)
	}
}

// TestUsualTTLComesFromOtherFlows: the RST's address is known from flows that are
// not implicated.
func TestUsualTTLComesFromOtherFlows(t *testing.T) {
	var all []pkt
	for i := range 500 {
		all = append(all, pkt{ms: float64(i) / 10, src: netip.AddrPortFrom(client.Addr(), uint16(2000+i)), dst: server, flags: evidence.ACK, seq: 1, ack: 1, dir: evidence.Received, ttl: 57})
	}
	rst := pkt{ms: 60, src: client, dst: server, flags: evidence.RST, seq: 7, dir: evidence.Received, ttl: 61}
	f := one(t, &evidence.Incident{Window: window(append(all, rst)...)})
	if c := f.Verdict.Claim(); c.Confidence != evidence.Uncertain || c.Settle != settlePeer || f.Packets != 1 {
		t.Errorf("%+v", c)
	}
	// One such packet anywhere is enough to know the TTL.
	all[400].ttl = 61
	f = one(t, &evidence.Incident{Window: window(append(all, rst)...)})
	for _, fact := range f.Verdict.Findings() {
		if fact.Source == "RFC 791 section 3.2: time to live" {
			t.Errorf("%s", fact.Text)
		}
	}
}

// TestSamplesOfOneFlow: of one other flow of the RST's address as many packets are
// kept as of many, whether or not those that nobody needs are left out.
func TestSamplesOfOneFlow(t *testing.T) {
	var all []pkt
	for i := range 60 {
		all = append(all, pkt{ms: float64(i), src: netip.AddrPortFrom(client.Addr(), 2000), dst: server, flags: evidence.ACK, seq: 1, ack: 1, dir: evidence.Received, ttl: uint8(57 + i/20%2)})
	}
	rst := pkt{ms: 90, src: client, dst: server, flags: evidence.RST, seq: 7, dir: evidence.Received, ttl: 61}
	w := window(append(all, rst)...)
	if n, most := len(w.Packets), 2+sampleMore+1; n != most {
		t.Errorf("%d packets kept, want one of each TTL, %d more, and the RST", n, sampleMore)
	}
}

// TestManyGenerations: a tuple that is refused over and over is as many flows.
func TestManyGenerations(t *testing.T) {
	var all []pkt
	for i := range 100 {
		all = append(all,
			pkt{ms: float64(i), src: client, dst: server, flags: evidence.SYN, seq: uint32(1000 * i), dir: evidence.Received},
			pkt{ms: float64(i) + .1, src: server, dst: client, flags: rstAck, ack: uint32(1000*i + 1), dir: evidence.Sent})
	}
	j := Judge(&evidence.Incident{Window: window(all...)})
	if j.FlowsTotal != 100 || j.FlowsImplicated != 100 || len(j.Flows) != 100 {
		t.Errorf("%d of %d flows, %d judged", j.FlowsImplicated, j.FlowsTotal, len(j.Flows))
	}
}

// TestSelectionIsDeterministic: the same packets give the same excerpts.
func TestSelectionIsDeterministic(t *testing.T) {
	run := func() (w evidence.Window) {
		sel, storm := NewSelection(), newFlood()
		for n := range 20_000 {
			sel.Survey(storm.at(n))
		}
		for n := range 20_000 {
			sel.Take(storm.at(n))
		}
		sel.Fill(&w)
		return w
	}
	type brief struct {
		Number int
		Kept   []int32
		Last   time.Time
	}
	short := func(w evidence.Window) (all []brief) {
		for _, e := range w.Excerpts {
			all = append(all, brief{w.Packets[e.Kept[0]].Number, e.Kept, e.Last})
		}
		return all
	}
	if diff := cmp.Diff(short(run()), short(run())); diff != "" {
		t.Error(diff)
	}
}

// FuzzGlance: the short look at a packet sees what the long one does.
func FuzzGlance(f *testing.F) {
	six, six2 := netip.MustParseAddrPort("[fd00::1]:40000"), netip.MustParseAddrPort("[fd00::2]:80")
	f.Add(pkt{src: client, dst: server, flags: rstAck, seq: 7, ack: 9, ttl: 64}.header())
	f.Add(pkt{src: six, dst: six2, flags: evidence.SYN, seq: 7, ttl: 64}.header())
	f.Fuzz(func(t *testing.T, header []byte) {
		p := &evidence.Packet{Header: header, WireBytes: uint32(len(header))}
		var short, long glance
		var g evidence.Segment
		if !short.plain(p) {
			return
		}
		if err := evidence.ParseSegment(p, &g); err != nil {
			t.Fatalf("% x: %v", header, err)
		}
		long = glance{src: endpointOf(g.Src), seq: g.Seq, ack: g.Ack, flags: g.Flags, size: g.PayloadBytes}
		long.id = flowIDOf(g.Src, g.Dst, 0)
		if short != long {
			t.Errorf("% x:\n%+v, want\n%+v", header, short, long)
		}
	})
}

// FuzzSelection: whatever the packets are, both passes and the judgement end well.
func FuzzSelection(f *testing.F) {
	f.Add([]byte{1, 2, 0, 3, 9, 0, 4, 7, 1, 4, 2, 3})
	f.Fuzz(func(t *testing.T, steps []byte) {
		var all []pkt
		for i := 0; i+2 < len(steps); i += 3 {
			a, b, c := steps[i], steps[i+1], steps[i+2]
			p := pkt{
				ms: float64(i), src: client, dst: server, flags: evidence.Flags(a & 0x1f), seq: uint32(b), ack: uint32(c),
				dir: evidence.Direction(b % 5), iface: 2 + uint32(c&1), netns: uint16(c >> 1 & 1), again: c >> 2 & 1, ttl: b,
			}
			if a&0x20 != 0 {
				p.src, p.dst = p.dst, p.src
			}
			all = append(all, p)
		}
		w := window(all...)
		for _, e := range w.Excerpts {
			if len(e.Kept) == 0 {
				t.Fatalf("an empty excerpt %+v", e)
			}
		}
		j := Judge(&evidence.Incident{Window: w})
		if len(j.Flows) > j.FlowsImplicated || j.FlowsImplicated > j.FlowsTotal {
			t.Errorf("%d flows, %d implicated of %d", len(j.Flows), j.FlowsImplicated, j.FlowsTotal)
		}
	})
}

// TestSelfTestIsNoDoubt: the reset that the recorder's self-test drew left the
// host, but no process had to close anything for it.
func TestSelfTestIsNoDoubt(t *testing.T) {
	probe, closed := netip.MustParseAddrPort("127.0.0.1:40000"), netip.MustParseAddrPort("127.0.0.1:80")
	w := window(served(true, pkt{ms: 9, src: server, dst: client, flags: rstAck, seq: 501, ack: 151, dir: evidence.Sent, id: 8})...)
	probes := window(
		pkt{src: probe, dst: closed, flags: evidence.SYN, seq: 100, dir: evidence.Loopback},
		pkt{ms: .1, src: closed, dst: probe, flags: rstAck, ack: 101, dir: evidence.Loopback})
	all := append(w.Packets, probes.Packets...)
	sel := NewSelection()
	sel.Ignore([]uint16{closed.Port()})
	for i := range all {
		all[i].Number = i + 1
		sel.Survey(&all[i])
	}
	for i := range all {
		sel.Take(&all[i])
	}
	sel.Fill(&w)
	inc := &evidence.Incident{Window: w}
	counters(inc, map[string]uint64{"Tcp.OutRsts": 2, "TcpExt.TCPAbortOnClose": 1})
	if c := one(t, inc).Verdict.Claim(); c.Confidence != evidence.Proven {
		t.Errorf("%s: %s, want it proven", c.Confidence, c.Sentence)
	}
}
