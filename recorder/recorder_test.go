package recorder

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tcpcoroner/evidence"
)

// base is the time of packet 0; packets follow each microsecond.
var base = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// atBase stands still at the time of packet 0.
func atBase() Clock { return Clock{base.UnixNano(), 1, 2} }

func packet(i int, header []byte) evidence.Packet {
	return evidence.Packet{
		Nanos: base.UnixNano() + int64(i)*1000, Interface: 2, WireBytes: uint32(len(header)),
		Direction: evidence.Received, LinkType: 1, SrcMAC: [6]byte{2, 0, 0, 0, 0, byte(i)},
		VLAN: [2]uint16{7, 8}, Header: header,
	}
}

func packets(n int) []evidence.Packet {
	all := make([]evidence.Packet, n)
	for i := range all {
		all[i] = packet(i, tcp4(0x10, nil))
	}
	return all
}

// perChunk is how many of those packets a chunk holds.
const perChunk = (ChunkBytes - chunkHeader) / (recordHeader + 52)

func record(t testing.TB, cfg Config, all []evidence.Packet) *Recorder {
	t.Helper()
	if cfg.Clock == nil {
		cfg.Clock = atBase
	}
	r := New(cfg)
	known := []evidence.Interface{{Index: 2, Name: "eth0", LinkType: 1}}
	if err := r.Run(t.Context(), &Replay{Packets: all, Known: known}); err != nil {
		t.Fatal(err)
	}
	return r
}

func freeze(t testing.TB, r *Recorder, from, to time.Time) *Frozen {
	t.Helper()
	f, err := r.Freeze(t.Context(), from, to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Release)
	return f
}

func frozenChunks(t testing.TB, headers ...[]byte) [][]byte {
	var all []evidence.Packet
	for i, h := range headers {
		all = append(all, packet(i, h))
	}
	return freeze(t, record(t, Config{}, all), base, base.Add(time.Hour)).Chunks
}

func TestRoundTrip(t *testing.T) {
	all := packets(3 * perChunk)
	all[7].Header = tcp4(0x14, []byte("why it was reset"))
	all[9].Nanos = all[8].Nanos - 5 // CPUs do not agree on the order
	f := freeze(t, record(t, Config{}, all), base, base.Add(time.Hour))
	w, err := f.Window()
	if err != nil {
		t.Fatal(err)
	}
	all[8], all[9] = all[9], all[8]
	if diff := cmp.Diff(all, w.Packets); diff != "" {
		t.Errorf("packets differ (-want +got):\n%.2000s", diff)
	}
	w.Packets = nil
	want := evidence.Window{
		From: base, To: base.Add(time.Hour), PacketCount: len(all), ResetCount: 1,
		Interfaces: []evidence.Interface{{Index: 2, Name: "eth0", LinkType: 1}},
	}
	if diff := cmp.Diff(want, w); diff != "" {
		t.Errorf("window differs (-want +got):\n%s", diff)
	}
}

func TestFreezeTakesOnlyWhatTouches(t *testing.T) {
	r := record(t, Config{}, packets(5*perChunk))
	at := func(i int) time.Time { return base.Add(time.Duration(i) * time.Microsecond) }
	f := freeze(t, r, at(perChunk), at(perChunk+9))
	if len(f.Chunks) != 1 {
		t.Errorf("%d chunks, want 1", len(f.Chunks))
	}
	if w, err := f.Window(); err != nil || w.PacketCount != 10 {
		t.Errorf("%d packets (%v), want 10", w.PacketCount, err)
	}
}

func TestEvictionIsTold(t *testing.T) {
	r := record(t, Config{Memory: 8 * ChunkBytes}, packets(20*perChunk))
	w, err := freeze(t, r, base, base.Add(time.Hour)).Window()
	if err != nil {
		t.Fatal(err)
	}
	s := r.Stats()
	if s.Evicted == 0 || s.Seen != s.Kept || s.Kept != s.Evicted+uint64(w.PacketCount) {
		t.Errorf("seen %d, kept %d, evicted %d, held %d", s.Seen, s.Kept, s.Evicted, w.PacketCount)
	}
	if !w.HeldFrom.Equal(w.Packets[0].Time()) || !s.Oldest.Equal(w.HeldFrom) {
		t.Errorf("held from %v, oldest %v, first packet %v", w.HeldFrom, s.Oldest, w.Packets[0].Time())
	}
	if s.Memory > 8*ChunkBytes {
		t.Errorf("%d bytes, more than the budget", s.Memory)
	}
	if got := freeze(t, r, w.HeldFrom.Add(time.Millisecond), base.Add(time.Hour)).HeldFrom; !got.IsZero() {
		t.Errorf("nothing was evicted after the beginning, yet held from %v", got)
	}
}

func TestPinnedMemoryStaysAndCounts(t *testing.T) {
	cfg := Config{Memory: 8 * ChunkBytes, Clock: atBase}
	r := record(t, cfg, packets(6*perChunk))
	f := freeze(t, r, base, base.Add(time.Hour))
	before := bytes.Clone(bytes.Join(f.Chunks, nil))
	if err := r.Run(t.Context(), &Replay{Packets: packets(20 * perChunk)}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(before, bytes.Join(f.Chunks, nil)) {
		t.Error("frozen chunks were written")
	}
	s := r.Stats()
	if s.Memory > cfg.Memory || s.Pinned == 0 || s.Seen != s.Kept+s.Lost {
		t.Errorf("memory %d, pinned %d, seen %d, kept %d, lost %d", s.Memory, s.Pinned, s.Seen, s.Kept, s.Lost)
	}
	f.Release()
	f.Release() // does nothing
	if err := r.Run(t.Context(), &Replay{Packets: packets(perChunk)}); err != nil {
		t.Fatal(err)
	}
	if after := r.Stats(); after.Lost != s.Lost || after.Pinned != 0 {
		t.Errorf("after the release: lost %d more, pinned %d", after.Lost-s.Lost, after.Pinned)
	}
}

// A freeze that copies the open chunk pins it for a moment. When by then all
// else is pinned too, packets are lost, and that is told.
func TestAllPinnedIsAGap(t *testing.T) {
	r := record(t, Config{Memory: 4 * ChunkBytes}, packets(9*perChunk))
	r.w.buffer.free, r.w.buffer.made = nil, r.w.buffer.limit // as if a freeze held the rest
	for _, c := range append(r.w.buffer.sealed, r.w.buffer.open) {
		c.pins.Add(1)
	}
	if err := r.Run(t.Context(), &Replay{Packets: packets(3 * perChunk)}); err != nil {
		t.Fatal(err)
	}
	w, err := freeze(t, r, base, base.Add(time.Hour)).Window()
	if err != nil {
		t.Fatal(err)
	}
	if lost := r.Stats().Lost; lost == 0 || w.Lost() != lost {
		t.Errorf("lost %d, the window says %d: %v", lost, w.Lost(), w.Gaps)
	}
}

func TestAgeGoesByTheMonotonicClock(t *testing.T) {
	var now Clock
	b := newBuffer(16*ChunkBytes, 8*time.Second, func() Clock { return now })
	add := func() { b.append(&Meta{Nanos: 1}, tcp4(0x10, nil), false) }
	add()
	now.Realtime = int64(time.Hour) // a step of the wall clock
	b.expire(now.Monotonic)
	if b.evicted != 0 {
		t.Error("a step of the wall clock evicted packets")
	}
	for range 12 {
		now.Monotonic += int64(time.Second) + 1
		b.expire(now.Monotonic)
		add()
	}
	if b.evicted == 0 || b.evicted > 5 {
		t.Errorf("evicted %d of 13 packets, one a second, with 8 s wished for", b.evicted)
	}
}

// dropping is a source whose kernel drops.
type dropping struct {
	Replay
	drops atomic.Uint64
}

func (d *dropping) Stats() SourceStats { return SourceStats{Dropped: d.drops.Load()} }

func (d *dropping) Run(_ context.Context, sink Sink) error {
	sink.Tick()
	d.drops.Store(5)
	sink.Tick()
	sink.Tick()
	d.drops.Store(7)
	return errors.New("link is gone")
}

func TestKernelDropsAreGaps(t *testing.T) {
	r := New(Config{Clock: atBase})
	if err := r.Run(t.Context(), &dropping{}); err == nil || err.Error() != "record packets: link is gone" {
		t.Errorf("error is %v", err)
	}
	f := freeze(t, r, base.Add(-time.Second), base)
	want := []evidence.Gap{
		{From: base.Add(-time.Second), To: base, Reason: "the recorder had not started"},
		{From: base, To: base, Lost: 7, Reason: "the kernel's packet ring was full"},
	}
	if diff := cmp.Diff(want, f.Gaps); diff != "" {
		t.Errorf("gaps differ (-want +got):\n%s", diff)
	}
}

func TestGapsAreBounded(t *testing.T) {
	var g gaps
	for i := range 2 * maxGaps {
		at := base.Add(time.Duration(2*i) * time.Second)
		g.add(evidence.Gap{From: at, To: at.Add(time.Second), Lost: 1, Reason: "r"})
	}
	w := evidence.Window{Gaps: g.within(base, base.Add(time.Hour))}
	if len(g) != maxGaps || w.Lost() != 2*maxGaps || !g[0].From.Equal(base) {
		t.Errorf("%d gaps from %v, lost %d", len(g), g[0].From, w.Lost())
	}
}

// flood is a source that never stops by itself.
type flood struct{ Replay }

func (f *flood) Run(ctx context.Context, sink Sink) error {
	m := Meta{Interface: 1, Direction: evidence.Sent}
	headers := [][]byte{tcp4(0x10, nil), tcp4(4, []byte("because"))}
	for ctx.Err() == nil {
		for i := range 200 {
			m.Nanos = time.Now().UnixNano()
			sink.Add(&m, headers[i%2])
		}
		sink.Tick()
	}
	return nil
}

func TestFreezeWhileWriting(t *testing.T) {
	r := New(Config{Memory: 16 * ChunkBytes})
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := r.Run(ctx, &flood{}); err != nil {
			t.Error(err)
		}
	})
	var freezers sync.WaitGroup
	for range 3 {
		freezers.Go(func() {
			for range 5 {
				f, err := r.Freeze(ctx, time.Now().Add(-time.Minute), time.Now())
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := f.Window(); err != nil {
					t.Error(err)
				}
				r.Stats()
				f.Release()
			}
		})
	}
	freezers.Wait()
	if err := r.Run(ctx, &flood{}); !errors.Is(err, ErrRunning) {
		t.Errorf("a second Run says %v", err)
	}
	stop()
	running.Wait()
	s := r.Stats()
	if s.Seen == 0 || s.Seen != s.Kept+s.Lost || s.Resets != s.Seen/2 || s.ResetsSent != s.Resets {
		t.Errorf("counters do not add up: %+v", s)
	}
	if r.Held() <= 0 {
		t.Error("holds nothing")
	}
}

// stuck never ticks.
type stuck struct{ Replay }

func (s *stuck) Run(ctx context.Context, _ Sink) error { <-ctx.Done(); return nil }

func TestFreezeGivesUp(t *testing.T) {
	r := New(Config{})
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { r.Run(ctx, &stuck{}) })
	for r.source.Load() == nil { // until Run has begun
	}
	_, err := r.Freeze(t.Context(), base, time.Now())
	if err == nil || err.Error() != "freeze the buffer: the packet source did not answer within 2s" {
		t.Errorf("error is %v", err)
	}
	stop()
	running.Wait()
}

func TestAddDoesNotAllocate(t *testing.T) {
	w := &New(Config{Memory: 8 * ChunkBytes}).w
	w.start(&Replay{})
	m, header := Meta{Nanos: 1}, tcp4(0x14, []byte("reason"))
	for range 20 * perChunk { // all chunks are made
		w.Add(&m, header)
	}
	w.Tick()
	if n := testing.AllocsPerRun(20*perChunk, func() { w.Add(&m, header) }); n != 0 {
		t.Errorf("%v allocations a packet", n)
	}
	if n := testing.AllocsPerRun(1000, w.Tick); n != 0 {
		t.Errorf("%v allocations a tick", n)
	}
}

func TestDamage(t *testing.T) {
	f := freeze(t, record(t, Config{}, packets(3*perChunk)), base, base.Add(time.Hour))
	for name, damage := range map[string]func([]byte) []byte{
		"magic":   func(b []byte) []byte { b[0]++; return b },
		"version": func(b []byte) []byte { b[4]++; return b },
		"bit":     func(b []byte) []byte { b[5000] ^= 1; return b },
		"cut":     func(b []byte) []byte { return b[:len(b)-1] },
		"empty":   func([]byte) []byte { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			chunks := [][]byte{f.Chunks[0], damage(bytes.Clone(f.Chunks[1])), f.Chunks[2]}
			got, _, err := Packets(chunks, base, base.Add(time.Hour))
			if !errors.Is(err, ErrDamaged) || len(got) != 2*perChunk {
				t.Errorf("%d packets of %d, error %v", len(got), 2*perChunk, err)
			}
		})
	}
	if c, err := ChunkClock(f.Chunks[0]); err != nil || c != atBase() {
		t.Errorf("clock %v, %v", c, err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(frozenChunks(f, tcp4(0x10, nil))[0], true)
	f.Add([]byte(chunkMagic), false)
	f.Fuzz(func(t *testing.T, b []byte, mend bool) {
		if mend && len(b) >= chunkHeader { // get past the checksum
			h := head{packets: binary.LittleEndian.Uint32(b[12:])}
			h.seal(b)
		}
		n := 0
		Decode(b, func(p evidence.Packet) bool { n += len(p.Header); return true })
		if n > len(b) {
			t.Fatalf("%d bytes of headers in %d", n, len(b))
		}
	})
}

func BenchmarkAdd(b *testing.B) {
	w := &New(Config{}).w
	w.start(&Replay{})
	m, header := Meta{Nanos: 1}, tcp4(0x10, nil)
	b.ReportAllocs()
	for b.Loop() {
		m.Nanos++
		w.Add(&m, header)
	}
}

func BenchmarkFreeze(b *testing.B) {
	r := record(b, Config{}, packets(700_000))
	for b.Loop() {
		f, err := r.Freeze(b.Context(), base, base.Add(time.Hour))
		if err != nil {
			b.Fatal(err)
		}
		f.Release()
	}
}

func BenchmarkDecode(b *testing.B) {
	chunk := freeze(b, record(b, Config{}, packets(perChunk)), base, base.Add(time.Hour)).Chunks[0]
	n := 0
	for b.Loop() {
		if err := Decode(chunk, func(p evidence.Packet) bool { n += len(p.Header); return true }); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/perChunk, "ns/packet")
}
