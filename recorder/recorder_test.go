package recorder

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"iter"
	"math/rand/v2"
	"slices"
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
		Direction: evidence.Received, LinkType: 1, SrcMAC: [6]byte{2, 0, 0, 0, 0, 1},
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

// bulky are packets that are kept byte for byte, all different: memory runs out soon.
func bulky(n int) []evidence.Packet {
	r := rand.New(rand.NewPCG(1, 1))
	all := make([]evidence.Packet, n)
	for i := range all {
		h := slices.Concat(tcp4(0x10, nil), make([]byte, 40))
		h[0], h[3] = 0x4f, byte(len(h))
		for j := 20; j < 60; j += 8 {
			binary.LittleEndian.PutUint64(h[j:], r.Uint64())
		}
		h[72] = 0x50
		all[i] = packet(i, h)
	}
	return all
}

// small is the least memory, all of it for the history but what is fixed.
const small = MinMemory

func newRecorder(t testing.TB, cfg Config) *Recorder {
	t.Helper()
	if cfg.Clock == nil {
		cfg.Clock = atBase
	}
	r, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

func replay(t testing.TB, r *Recorder, all []evidence.Packet) {
	t.Helper()
	known := []evidence.Interface{{Index: 2, Name: "eth0", LinkType: 1}}
	if err := r.Run(t.Context(), &Replay{Packets: all, Known: known}); err != nil {
		t.Fatal(err)
	}
}

func record(t testing.TB, cfg Config, all []evidence.Packet) *Recorder {
	t.Helper()
	r := newRecorder(t, cfg)
	replay(t, r, all)
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

// read copies what a reader visits.
func read(t testing.TB, f *Frozen) (all []evidence.Packet) {
	t.Helper()
	if err := f.Read(func(p *evidence.Packet) bool {
		k := *p
		k.Header = bytes.Clone(p.Header)
		all = append(all, k)
		return true
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

func TestRecordAndFreeze(t *testing.T) {
	all := packets(3000)
	all[7].Header = tcp4(0x14, []byte("why it was reset"))
	all[9].Nanos = all[8].Nanos - 5 // CPUs do not agree on the order
	f := freeze(t, record(t, Config{}, all), base, base.Add(time.Hour))
	all[8], all[9] = all[9], all[8]
	got := read(t, f)
	for i := range all {
		all[i].Number = i + 1
		all[i].Checksum = got[i].Checksum
	}
	if diff := cmp.Diff(all, got); diff != "" {
		t.Errorf("packets differ (-want +got):\n%.2000s", diff)
	}
	want := evidence.Window{
		From: base, To: base.Add(time.Hour), Interfaces: []evidence.Interface{{Index: 2, Name: "eth0", LinkType: 1}},
	}
	if diff := cmp.Diff(want, f.Window()); diff != "" {
		t.Errorf("window differs (-want +got):\n%s", diff)
	}
	if s := f.recorder.Stats(); s.Resets != 1 || s.LastResets[0] != [2]uint16{80, 5} && s.LastResets[0] == [2]uint16{} {
		t.Errorf("%d resets, ports %v", s.Resets, s.LastResets[0])
	}
}

func TestFreezeTakesOnlyWhatTouches(t *testing.T) {
	r := newRecorder(t, Config{})
	for i := range 5 { // five chunks: each freeze seals the open one
		replay(t, r, packets(5000)[i*1000:(i+1)*1000])
		freeze(t, r, base, base.Add(time.Hour))
	}
	at := func(i int) time.Time { return base.Add(time.Duration(i) * time.Microsecond) }
	f := freeze(t, r, at(2000), at(2009))
	if len(f.pinned) != 1 {
		t.Errorf("%d chunks, want 1", len(f.pinned))
	}
	if got := read(t, f); len(got) != 10 || got[0].Number != 1 || got[9].Nanos != at(2009).UnixNano() {
		t.Errorf("%d packets, want 10", len(got))
	}
}

// Packets of two rings come a block after the other, also across chunks.
func TestReadOrdersByTime(t *testing.T) {
	r := newRecorder(t, Config{})
	all := packets(4000)
	for _, part := range [][2]int{{0, 1000}, {2000, 3000}, {1000, 2000}, {3000, 4000}} {
		replay(t, r, all[part[0]:part[1]])
		if part[0] == 2000 {
			freeze(t, r, base, base.Add(time.Hour)).Release()
		}
	}
	got := read(t, freeze(t, r, base, base.Add(time.Hour)))
	for i := range got {
		if got[i].Nanos != all[i].Nanos || got[i].Number != i+1 {
			t.Fatalf("packet %d has number %d and time %d, want %d", i, got[i].Number, got[i].Nanos, all[i].Nanos)
		}
	}
	if len(got) != len(all) {
		t.Errorf("%d packets of %d", len(got), len(all))
	}
}

func TestEvictionIsTold(t *testing.T) {
	r := record(t, Config{Memory: small}, bulky(200_000))
	f := freeze(t, r, base, base.Add(time.Hour))
	w, got := f.Window(), read(t, f)
	replay(t, r, nil) // Stats is as of the last tick
	s := r.Stats()
	if s.Evicted == 0 || s.Seen != s.Kept || s.Kept != s.Evicted+uint64(len(got)) {
		t.Errorf("seen %d, kept %d, evicted %d, held %d", s.Seen, s.Kept, s.Evicted, len(got))
	}
	if !w.HeldFrom.Equal(got[0].Time()) || !s.Oldest.Equal(w.HeldFrom) {
		t.Errorf("held from %v, oldest %v, first packet %v", w.HeldFrom, s.Oldest, got[0].Time())
	}
	if s.Memory > small || s.HeldBytes > small-encoderBytes {
		t.Errorf("%d bytes, more than the budget", s.Memory)
	}
	if got := freeze(t, r, w.HeldFrom.Add(time.Millisecond), base.Add(time.Hour)).Window().HeldFrom; !got.IsZero() {
		t.Errorf("nothing was evicted after the beginning, yet held from %v", got)
	}
}

// However much freezes want, the budget holds: the oldest of what they want makes
// room for what comes in, which is never lost, and the reader is told.
func TestStormOfFreezesKeepsTheBudget(t *testing.T) {
	r := newRecorder(t, Config{Memory: small})
	var all []*Frozen
	for range 30 {
		replay(t, r, bulky(10_000))
		all = append(all, freeze(t, r, base, base.Add(time.Hour)))
	}
	s := r.Stats()
	if s.Memory > small || s.Revoked == 0 || s.Seen != s.Kept {
		t.Errorf("memory %d of %d, revoked %d, seen %d, kept %d", s.Memory, small, s.Revoked, s.Seen, s.Kept)
	}
	if err := all[0].Read(func(*evidence.Packet) bool { return true }); !errors.Is(err, errRevoked) || !all[0].Revoked() {
		t.Errorf("the oldest freeze says %v", err)
	}
	newest := all[len(all)-1]
	if got := read(t, newest); len(got) == 0 || !newest.Window().HeldFrom.Equal(got[0].Time()) {
		t.Errorf("the newest freeze holds %d packets from %v", len(got), newest.Window().HeldFrom)
	}
	for _, f := range all {
		f.Release()
		f.Release() // does nothing
	}
	replay(t, r, bulky(10))
	if s := r.Stats(); s.Pinned != 0 {
		t.Errorf("%d bytes are pinned after the releases", s.Pinned)
	}
}

// While one freeze wants less than half of the memory, all that it wants stays.
func TestPinnedStays(t *testing.T) {
	r := record(t, Config{Memory: small + 4<<20}, bulky(15_000))
	f := freeze(t, r, base, base.Add(time.Hour))
	before := chunksOf(t, f)
	for range 20 {
		replay(t, r, bulky(15_000))
	}
	if !bytes.Equal(before, chunksOf(t, f)) {
		t.Error("frozen chunks were written")
	}
	if s := r.Stats(); s.Revoked != 0 || s.Pinned == 0 || s.Evicted == 0 {
		t.Errorf("revoked %d, pinned %d, evicted %d", s.Revoked, s.Pinned, s.Evicted)
	}
}

// What made room while older packets were frozen is a gap of the window.
func TestHoleBehindFrozenIsAGap(t *testing.T) {
	r := newRecorder(t, Config{Memory: small + 4<<20})
	all := bulky(400_000)
	replay(t, r, all[:30_000])
	f, err := r.Hold(t.Context(), base)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Release()
	replay(t, r, all[30_000:])
	if err := f.Until(t.Context(), base.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	w, got := f.Window(), read(t, f)
	if len(got) == len(all) || w.HeldFrom.IsZero() && len(got)+int(w.Lost()) != len(all) {
		t.Errorf("%d packets of %d, %d told as lost, held from %v: %v", len(got), len(all), w.Lost(), w.HeldFrom, w.Gaps)
	}
	if w.Lost() == 0 {
		t.Error("the hole is not told")
	}
	later := freeze(t, r, base.Add(time.Millisecond), base.Add(time.Hour)).Window()
	if !later.HeldFrom.IsZero() || later.Lost() == 0 {
		t.Errorf("a window that begins inside the oldest chunk is said to begin at %v, %d lost", later.HeldFrom, later.Lost())
	}
}

func chunksOf(t *testing.T, f *Frozen) (all []byte) {
	t.Helper()
	for c, err := range f.Chunks() {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, c...)
	}
	return all
}

// Hold keeps what is there; Until adds what came since.
func TestHoldThenUntil(t *testing.T) {
	r := record(t, Config{Memory: small}, bulky(10_000))
	freeze(t, r, base, base).Release() // seals
	f, err := r.Hold(t.Context(), base)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Release()
	later := bulky(60_000)
	replay(t, r, later[10_000:11_000])
	if err := f.Until(t.Context(), base.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if got := read(t, f); len(got) != 11_000 {
		t.Errorf("%d packets, want 11000", len(got))
	}
}

func TestAgeGoesByTheMonotonicClock(t *testing.T) {
	var now Clock
	r := newRecorder(t, Config{Memory: small, Age: 8 * time.Second, Clock: func() Clock { return now }})
	b := r.w.buffer
	add := func() { b.append(&Meta{Nanos: 1}, tcp4(0x10, nil), true) }
	add()
	now.Realtime = int64(time.Hour) // a step of the wall clock
	b.expire(now.Monotonic, true)
	if b.evicted != 0 {
		t.Error("a step of the wall clock evicted packets")
	}
	for range 12 {
		now.Monotonic += int64(time.Second) + 1
		b.expire(now.Monotonic, true)
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
	r := newRecorder(t, Config{})
	if err := r.Run(t.Context(), &dropping{}); err == nil || err.Error() != "record packets: link is gone" {
		t.Errorf("error is %v", err)
	}
	r.Note(evidence.Gap{From: base, To: base, Lost: 3, Reason: "eth0 lost packets"})
	f := freeze(t, r, base.Add(-time.Second), base)
	want := []evidence.Gap{
		{From: base.Add(-time.Second), To: base, Reason: "the recorder had not started"},
		{From: base, To: base, Lost: 7, Reason: "the kernel's packet ring was full"},
		{From: base, To: base, Lost: 3, Reason: "eth0 lost packets"},
	}
	if diff := cmp.Diff(want, f.Window().Gaps); diff != "" {
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
	m := Meta{Path: Path{Interface: 1, Direction: evidence.Sent}}
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
	r := newRecorder(t, Config{Memory: small, Clock: readClock})
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := r.Run(ctx, &flood{}); err != nil {
			t.Error(err)
		}
	})
	for !r.running.Load() {
	}
	var freezers sync.WaitGroup
	for range 3 {
		freezers.Go(func() {
			for range 5 {
				f, err := r.Freeze(ctx, time.Now().Add(-time.Minute), time.Now())
				if err != nil {
					t.Error(err)
					return
				}
				if err := f.Read(func(*evidence.Packet) bool { return true }); err != nil && !errors.Is(err, errRevoked) {
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
	if s.Seen == 0 || s.Seen != s.Kept || s.Resets != s.Seen/2 || s.ResetsSent != s.Resets || s.HoldTime == 0 {
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
	r := newRecorder(t, Config{})
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = r.Run(ctx, &stuck{}) })
	for !r.running.Load() { // until Run has begun
	}
	_, err := r.Freeze(t.Context(), base, time.Now())
	if err == nil || err.Error() != "freeze the buffer: the packet source did not answer within 2s" {
		t.Errorf("error is %v", err)
	}
	stop()
	running.Wait()
}

func TestTooLittleMemory(t *testing.T) {
	if _, err := New(Config{Memory: 20 << 20, Ring: 16 << 20}); err == nil {
		t.Error("a budget that the ring takes whole is accepted")
	}
}

func TestAddDoesNotAllocate(t *testing.T) {
	r := newRecorder(t, Config{Memory: small})
	w := &r.w
	w.start(&Replay{})
	tr := newTraffic(8)
	var all []evidence.Packet
	for len(all) < 3000 {
		all = append(all, tr.next()...)
	}
	i := 0
	add := func() {
		m := Meta{Nanos: all[i].Nanos, WireBytes: all[i].WireBytes, Path: Path{Interface: all[i].Interface}}
		w.Add(&m, all[i].Header)
		i = (i + 1) % len(all)
	}
	for range all {
		add()
	}
	if n := testing.AllocsPerRun(10*len(all), add); n != 0 {
		t.Errorf("%v allocations a packet", n)
	}
	if n := testing.AllocsPerRun(1000, func() { w.Tick() }); n != 0 {
		t.Errorf("%v allocations a tick", n)
	}
}

func TestDamage(t *testing.T) {
	r := newRecorder(t, Config{})
	var chunks [][]byte
	for i := range 3 {
		replay(t, r, packets(3000)[i*1000:(i+1)*1000])
		freeze(t, r, base, base.Add(time.Hour))
	}
	for c := range freeze(t, r, base, base.Add(time.Hour)).Chunks() {
		chunks = append(chunks, bytes.Clone(c))
	}
	for name, damage := range map[string]func([]byte) []byte{
		"magic":   func(b []byte) []byte { b[0]++; return b },
		"version": func(b []byte) []byte { b[4]++; return b },
		"bit":     func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		"cut":     func(b []byte) []byte { return b[:len(b)-1] },
		"empty":   func([]byte) []byte { return nil },
		"packets": func(b []byte) []byte { h := head{packets: maxPackets + 1}; h.put(b); return b },
	} {
		t.Run(name, func(t *testing.T) {
			n := 0
			err := Read(sequence(chunks[0], damage(bytes.Clone(chunks[1])), chunks[2]), base, base.Add(time.Hour),
				func(*evidence.Packet) bool { n++; return true })
			if !errors.Is(err, ErrDamaged) || n != 2000 {
				t.Errorf("%d packets of 2000, error %v", n, err)
			}
		})
	}
	if c, err := ChunkClock(chunks[0]); err != nil || c != atBase() {
		t.Errorf("clock %v, %v", c, err)
	}
}

func sequence(chunks ...[]byte) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for _, c := range chunks {
			if !yield(c, nil) {
				return
			}
		}
	}
}

func BenchmarkAdd(b *testing.B) {
	w := &newRecorder(b, Config{}).w
	w.start(&Replay{})
	m, header := Meta{Nanos: 1}, tcp4(0x10, nil)
	b.ReportAllocs()
	for b.Loop() {
		m.Nanos++
		w.Add(&m, header)
	}
}

// BenchmarkFreeze freezes a buffer of a million packets.
func BenchmarkFreeze(b *testing.B) {
	r := record(b, Config{}, packets(1_000_000))
	for b.Loop() {
		f, err := r.Freeze(b.Context(), base, base.Add(time.Hour))
		if err != nil {
			b.Fatal(err)
		}
		f.Release()
	}
}

// BenchmarkRead reads a million packets in order.
func BenchmarkRead(b *testing.B) {
	f := freeze(b, record(b, Config{}, packets(1_000_000)), base, base.Add(time.Hour))
	for b.Loop() {
		if err := f.Read(func(*evidence.Packet) bool { return true }); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/1e6, "ns/packet")
}
