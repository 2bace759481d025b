package recorder

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"

	"tcpcoroner/evidence"
)

func metaOf(p *evidence.Packet) *Meta {
	return &Meta{Nanos: p.Nanos, WireBytes: p.WireBytes, Trusted: p.Checksum == evidence.ChecksumTrusted, Path: Path{
		Interface: p.Interface, LinkType: p.LinkType, Namespace: p.Namespace,
		VLAN: p.VLAN, SrcMAC: p.SrcMAC, Direction: p.Direction,
	}}
}

// testEncoder is made once, for its tables are large.
var testEncoder = sync.OnceValue(mustEncoder)

func mustEncoder() *encoder {
	e, err := newEncoder(5)
	if err != nil {
		panic(err)
	}
	return e
}

// encodeAll makes one sealed chunk of the packets.
func encodeAll(t testing.TB, all []evidence.Packet, compress bool) []byte {
	t.Helper()
	e := testEncoder()
	for i := range all {
		if !e.room() {
			t.Fatalf("%d of %d packets fit into a chunk", i, len(all))
		}
		e.add(metaOf(&all[i]), all[i].Header)
	}
	defer e.reset()
	return e.seal(make([]byte, e.sealedSize()), compress)
}

var testDecoder = sync.OnceValue(func() *decoder { return &decoder{} })

func decodeAll(t testing.TB, chunk []byte) (all []evidence.Packet) {
	t.Helper()
	var c unpacked
	if err := c.read(chunk, math.MinInt64, math.MaxInt64); err != nil {
		t.Fatal(err)
	}
	d := testDecoder()
	d.start(&c)
	for {
		ok, err := d.next(wishNow)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			return all
		}
		k := d.packet
		k.Header = bytes.Clone(k.Header)
		all = append(all, k)
	}
}

// expected is what comes back of a packet: all of it, but that the checksum of a
// segment with payload is left out and its state told.
func expected(p, got evidence.Packet) evidence.Packet {
	n, _ := Cut(p.Header)
	p.Header = bytes.Clone(p.Header[:n])
	p.Sighting = got.Sighting
	var f fields
	if !f.take(metaOf(&p), p.Header) {
		return p
	}
	p.Checksum = evidence.ChecksumStatus(f.sumKind)
	if left := f.sumKind == sumUnknown || f.sumKind == sumTrusted; left && !bytes.Equal(p.Header, got.Header) {
		copy(p.Header[f.head-f.options.bytes()-4:], []byte{0, 0})
	}
	return p
}

func checkRoundTrip(t *testing.T, all []evidence.Packet, compress bool) (again int) {
	t.Helper()
	got := decodeAll(t, encodeAll(t, all, compress))
	all = slices.DeleteFunc(slices.Clone(all), func(p evidence.Packet) bool { n, _ := Cut(p.Header); return n == 0 })
	if len(got) != len(all) {
		t.Fatalf("%d packets of %d", len(got), len(all))
	}
	for i := range all {
		if want := expected(all[i], got[i]); !reflect.DeepEqual(want, got[i]) {
			t.Fatalf("packet %d differs (-want +got):\n%s", i, cmp.Diff(want, got[i]))
		}
		if got[i].Sighting > 0 {
			again++
		}
	}
	return again
}

// TestRoundTrip: whatever the connections do, every field of every header comes
// back bit for bit.
func TestRoundTrip(t *testing.T) {
	for seed := range uint64(20) {
		tr := newTraffic(seed)
		var all []evidence.Packet
		shown := 0
		for len(all) < 5000 {
			p := tr.next()
			shown += len(p) - 1
			all = append(all, p...)
		}
		again := checkRoundTrip(t, all, seed%2 == 0)
		// Those kept byte for byte are not compared with what came before.
		if again > shown || again < shown*3/5 {
			t.Errorf("seed %d: %d further sightings of %d", seed, again, shown)
		}
	}
}

// Bytes at random, and headers with bits turned: nothing is lost either.
// Path.same compares 16 bytes at once: there must be no hole in them.
func TestPathHasNoHoles(t *testing.T) {
	if at := unsafe.Offsetof(Path{}.SrcMAC); at != 4+2+2+2*2 {
		t.Errorf("SrcMAC is at %d", at)
	}
	a := Path{Interface: 1, LinkType: 2, Namespace: 3, VLAN: [2]uint16{4, 5}, SrcMAC: [6]byte{1, 2, 3, 4, 5, 6}, Direction: 1}
	for i := range int(unsafe.Offsetof(a.Direction)) + 1 {
		b := a
		if (*[20]byte)(unsafe.Pointer(&b))[i] ^= 0x80; a.same(&b) || !a.same(&a) {
			t.Errorf("a difference in byte %d does not show", i)
		}
	}
}

// The quick path writes what the general one would, byte for byte.
func TestQuickWritesTheSame(t *testing.T) {
	quick, general := mustEncoder(), mustEncoder()
	defer func() { _ = errors.Join(quick.close(), general.close()) }()
	tr, n := newTraffic(11), 0
	for range 60_000 {
		for _, p := range tr.next() {
			m := metaOf(&p)
			if quick.quick(m, p.Header) {
				n++
			} else {
				quick.general(m, p.Header)
			}
			general.general(m, p.Header)
		}
		if !quick.room() || !general.room() {
			break
		}
	}
	a := quick.seal(make([]byte, quick.sealedSize()), false)
	b := general.seal(make([]byte, general.sealedSize()), false)
	if n < 1000 || !bytes.Equal(a, b) {
		t.Errorf("%d packets went the quick way, and the chunks of %d and %d bytes are the same: %v", n, len(a), len(b), bytes.Equal(a, b))
	}
}

// What the quick path does not know it leaves alone, whatever else the header has.
func TestQuickLeavesTheRest(t *testing.T) {
	var b [quickHead]byte
	copy(b[:], []byte{0x45, 3: quickHead, 6: 0x40, 8: 64, 9: protoTCP, 12: 10, 15: 1, 16: 10, 19: 2, 20: 0x9c, 0x40, 0x1f, 0x90})
	copy(b[32:], []byte{0x80, flagACK, 1, 0, 8: 1, 1, 8, 10})
	sum := func(b []byte) []byte {
		clear(b[10:12])
		clear(b[36:38])
		binary.LittleEndian.PutUint16(b[10:], ^fold(sum64(b[:ip4Head])))
		binary.LittleEndian.PutUint16(b[36:], ^fold(sum64(b[12:])+pseudo(quickHead-ip4Head)))
		return b
	}
	e, m := mustEncoder(), &Meta{WireBytes: quickHead}
	defer func() { _ = e.close() }()
	e.general(m, sum(b[:]))
	if !e.quick(m, b[:]) {
		t.Fatal("an acknowledgement does not go the quick way")
	}
	for _, c := range []struct{ at, bits int }{{0, 0xff}, {6, 0xbf}, {7, 0xff}, {9, 0xff}, {32, 0xff},
		{33, flagFIN | flagSYN | flagRST | flagURG}, {38, 0xff}, {39, 0xff}, {40, 0xff}, {41, 0xff}, {42, 0xff}, {43, 0xff}} {
		for bit := 1; bit < 256; bit <<= 1 {
			if wrong := b; c.bits&bit != 0 {
				if wrong[c.at] ^= byte(bit); e.quick(m, sum(wrong[:])) {
					t.Errorf("byte %d with bit %#x changed went the quick way", c.at, bit)
				}
			}
		}
	}
}

func TestRoundTripOfNonsense(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	tr := newTraffic(99)
	var all []evidence.Packet
	for len(all) < 20000 {
		p := tr.next()[0]
		switch b := p.Header; r.IntN(3) {
		case 0:
			b[r.IntN(len(b))] ^= 1 << r.IntN(8)
		case 1:
			binary.BigEndian.PutUint32(b[r.IntN(len(b)-3):], r.Uint32())
		case 2:
			p.Header = b[:r.IntN(len(b))]
		}
		p.WireBytes, p.Nanos = r.Uint32()>>r.IntN(32), p.Nanos-int64(r.IntN(1000))
		all = append(all, p)
	}
	checkRoundTrip(t, all, true)
}

// FuzzRoundTrip: a stream of headers, each with its length before it.
func FuzzRoundTrip(f *testing.F) {
	tr := newTraffic(1)
	var seed []byte
	for range 20 {
		h := tr.next()[0].Header
		seed = append(append(seed, byte(len(h))), h...)
	}
	f.Add(seed, uint32(60), true)
	f.Fuzz(func(t *testing.T, b []byte, wire uint32, trusted bool) {
		var all []evidence.Packet
		for len(b) > 0 && len(all) < 1000 {
			n := min(int(b[0]), len(b)-1)
			p := evidence.Packet{Nanos: int64(len(all)) * int64(wire), Interface: wire % 3, WireBytes: wire, Header: b[1 : 1+n]}
			if n >= 4 && wire&1 == 0 {
				p.WireBytes = uint32(binary.BigEndian.Uint16(p.Header[2:]))
			}
			if trusted {
				p.Checksum = evidence.ChecksumTrusted
			}
			all = append(all, p)
			b = b[1+n:]
		}
		checkRoundTrip(t, all, wire%2 == 0)
	})
}

// The state of the checksum is told of each segment.
func TestChecksumStates(t *testing.T) {
	c := newTraffic(1).connect()
	c.v6, c.stamps = false, true
	build := func(payload uint32, change func(tcp []byte)) evidence.Packet {
		b := c.build(rand.New(rand.NewPCG(1, uint64(payload))), 0, 0x10, nil, payload)
		tcp := b[ip4Head:]
		tcp[12] = 5 << 4
		clear(tcp[16:18])
		change(tcp)
		return evidence.Packet{Nanos: 1, WireBytes: uint32(len(b)) + payload, Header: b}
	}
	sum := func(b []byte, payload uint32) uint64 {
		return sum64(b[12:ip4Head]) + pseudo(uint32(len(b)-ip4Head)+payload)
	}
	good := build(0, func([]byte) {})
	binary.LittleEndian.PutUint16(good.Header[36:], ^fold(sum(good.Header, 0)+sum64(good.Header[ip4Head:])))
	bad := build(0, func(t []byte) { t[16] = 0xee })
	partial := build(9, func([]byte) {})
	binary.LittleEndian.PutUint16(partial.Header[36:], fold(sum(partial.Header, 9)))
	unknown := build(9, func(t []byte) { t[17] = 9 })
	trusted := unknown
	trusted.Checksum = evidence.ChecksumTrusted
	got := decodeAll(t, encodeAll(t, []evidence.Packet{good, bad, partial, unknown, trusted}, true))
	want := []evidence.ChecksumStatus{evidence.ChecksumGood, evidence.ChecksumBad, evidence.ChecksumPartial,
		evidence.ChecksumUnknown, evidence.ChecksumTrusted}
	for i, p := range got {
		if p.Checksum != want[i] {
			t.Errorf("packet %d: checksum %v, want %v", i, p.Checksum, want[i])
		}
	}
	if !bytes.Equal(got[1].Header, bad.Header) || !bytes.Equal(got[2].Header, partial.Header) {
		t.Error("a wrong or partial checksum came back as another")
	}
}

// A packet that a bridge and its port show is one packet seen twice; a second
// acknowledgement of the same is not, nor is a retransmission.
func TestSightings(t *testing.T) {
	c := newTraffic(1).connect()
	c.v6, c.sent = false, 9
	r := rand.New(rand.NewPCG(1, 1))
	h := c.build(r, 0, 0x18, nil, 100)
	at := func(nanos int64, index uint32, d evidence.Direction) evidence.Packet {
		return evidence.Packet{Nanos: base.UnixNano() + nanos, Interface: index, Direction: d, WireBytes: 140, Header: h}
	}
	all := []evidence.Packet{
		at(0, 2, evidence.Received), at(10, 3, evidence.Received), at(20, 4, evidence.Sent), // eth0, br0, veth
		at(1e9, 2, evidence.Received), at(1e9+500, 2, evidence.Received), // sent again, and copied on the wire
		at(2e9, 3, evidence.Received), at(2e9+50e6, 2, evidence.Received), // too late to be the same
	}
	checkRoundTrip(t, all, true)
	var sightings []int
	for _, p := range decodeAll(t, encodeAll(t, all, true)) {
		sightings = append(sightings, int(p.Sighting))
	}
	if diff := cmp.Diff([]int{0, 1, 2, 0, 0, 0, 0}, sightings); diff != "" {
		t.Errorf("sightings differ (-want +got):\n%s", diff)
	}
}

func TestChunkLimitsAreKept(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 5))
	c := newTraffic(1).connect()
	c.v6 = false
	for name, vary := range map[string]func(*evidence.Packet){
		"flows":  func(p *evidence.Packet) { binary.BigEndian.PutUint32(p.Header[12:], r.Uint32()) },
		"paths":  func(p *evidence.Packet) { binary.BigEndian.PutUint32(p.SrcMAC[:], r.Uint32()) },
		"raw":    func(p *evidence.Packet) { p.Header = bytes.Repeat(p.Header, 12)[:maxHeader]; p.Header[0] = 0x46 },
		"layout": func(p *evidence.Packet) { binary.BigEndian.PutUint32(p.Header[40:], 0x1e040000|uint32(r.IntN(65536))) },
	} {
		t.Run(name, func(t *testing.T) {
			e := mustEncoder()
			var all []evidence.Packet
			for e.room() {
				p := evidence.Packet{Nanos: 1, WireBytes: 44, Header: c.build(r, 0, 0x10, []byte{1, 1, 1, 1}, 0)}
				vary(&p)
				all = append(all, p)
				e.add(metaOf(&p), p.Header)
			}
			chunk := e.seal(make([]byte, e.sealedSize()), true)
			if len(chunk) > MaxChunkBytes {
				t.Errorf("the chunk has %d bytes", len(chunk))
			}
			got := decodeAll(t, chunk)
			if len(got) != len(all) {
				t.Fatalf("%d packets of %d", len(got), len(all))
			}
			for i := range got {
				if want := expected(all[i], got[i]); !bytes.Equal(want.Header, got[i].Header) {
					t.Fatalf("packet %d differs", i)
				}
			}
			t.Logf("%d packets, %d bytes", len(all), len(chunk))
		})
	}
}

func FuzzDecode(f *testing.F) {
	tr := newTraffic(1)
	var all []evidence.Packet
	for range 60 {
		all = append(all, tr.next()...)
	}
	f.Add(encodeAll(f, all, true), true)
	f.Add(encodeAll(f, all, false), true)
	f.Add([]byte(chunkMagic), false)
	d := decoder{need: func(p *evidence.Packet) int { return int(p.WireBytes % 4) }}
	f.Fuzz(func(t *testing.T, b []byte, mend bool) {
		if mend && len(b) >= chunkHeader { // get past the checksum
			h := head{packets: binary.LittleEndian.Uint32(b[12:])}
			copy(b, chunkMagic)
			h.put(b)
		}
		var c unpacked
		if c.read(b, math.MinInt64, math.MaxInt64) != nil {
			return
		}
		d.start(&c)
		for i := range 1 << 14 {
			ok, _ := d.next(wish(i % 3))
			if !ok {
				return
			}
			if len(d.packet.Header) > maxHeader {
				t.Fatalf("a header of %d bytes", len(d.packet.Header))
			}
		}
	})
}

func BenchmarkEncode(b *testing.B) {
	tr := newTraffic(1)
	var all []evidence.Packet
	var metas []Meta
	for len(all) < 100_000 {
		all = append(all, tr.next()...)
	}
	for i := range all {
		metas = append(metas, *metaOf(&all[i]))
	}
	e := mustEncoder()
	out := make([]byte, 0)
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		i := n % len(all)
		if !e.room() || i == 0 {
			if size := e.sealedSize(); len(out) < size {
				out = make([]byte, size)
			}
			e.seal(out, true)
			e.reset()
		}
		e.add(&metas[i], all[i].Header)
		n++
	}
}

func BenchmarkDecode(b *testing.B) {
	tr := newTraffic(1)
	var all []evidence.Packet
	for len(all) < 60_000 {
		all = append(all, tr.next()...)
	}
	chunk := encodeAll(b, all, true)
	for b.Loop() {
		if err := Read(sequence(chunk), base.Add(-time.Hour), base.Add(time.Hour), func(*evidence.Packet) bool { return true }); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(all)), "ns/packet")
}
