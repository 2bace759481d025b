package store

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/oklog/ulid/v2"

	"tcpcoroner/evidence"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// incidentAt makes an incident whose id says t and n.
func incidentAt(t time.Time, n byte) *evidence.Incident {
	var id ulid.ULID
	_ = id.SetTime(uint64(t.UnixMilli()))
	id[15] = n
	v, _ := evidence.NewVerdict(evidence.Claim{
		Origin: evidence.OriginPeerHost, Mechanism: evidence.MechanismRefused,
		Layer: evidence.LayerTransport, Confidence: evidence.Likely, Sentence: "nothing listens",
	}, evidence.Finding{Kind: evidence.KindPacket, Text: "RST answers the SYN"})
	return &evidence.Incident{
		Schema: evidence.SchemaIncident, ID: id.String(), TraceID: fmt.Sprintf("%024x%08x", t.UnixMilli(), n+1),
		Time: t, Closed: t.Add(10 * time.Second), Firings: []evidence.Firing{{Trigger: "resets", Time: t, Value: 50}},
		Window:     evidence.Window{From: t, To: t.Add(time.Second), PacketCount: 7},
		At:         &evidence.Snapshot{Taken: t, Sockets: []evidence.Socket{{State: "listen", Local: netip.MustParseAddrPort("127.0.0.1:80")}}},
		Flows:      []evidence.Flow{{ID: "f1", Client: netip.MustParseAddrPort("10.0.0.1:4000"), Server: netip.MustParseAddrPort("10.0.0.2:80"), Verdict: v}},
		FlowsTotal: 1, FlowsImplicated: 1, Verdict: v,
	}
}

// randomChunks cannot be compressed or confused.
func randomChunks(seed uint64, n, size int) [][]byte {
	src := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), 7})
	chunks := make([][]byte, n)
	for i := range chunks {
		chunks[i] = make([]byte, size)
		_, _ = src.Read(chunks[i])
	}
	return chunks
}

// each yields chunks in a buffer that it uses again.
func each(chunks [][]byte) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		var buf []byte
		for _, c := range chunks {
			buf = append(buf[:0], c...)
			if !yield(buf, nil) {
				return
			}
		}
	}
}

// readAll keeps all chunks, and all errors.
func readAll(s *Store, id string) (chunks [][]byte, err error) {
	for c, e := range s.Chunks(id) {
		if err = errors.Join(err, e); e == nil {
			chunks = append(chunks, bytes.Clone(c))
		}
	}
	return chunks, err
}

func open(t *testing.T, cfg Config) *Store {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = filepath.Join(t.TempDir(), "db")
	}
	cfg.Now = func() time.Time { return noon }
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func put(t *testing.T, s *Store, inc *evidence.Incident, chunks [][]byte, signals ...string) {
	t.Helper()
	if err := s.Put(inc, each(chunks), signals...); err != nil {
		t.Fatal(err)
	}
}

var sameVerdict = cmp.AllowUnexported(evidence.Verdict{})

func TestRoundTrip(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made", "by-open")
	s := open(t, Config{Dir: dir})
	inc, chunks := incidentAt(noon, 1), append(randomChunks(1, 5, 200<<10), []byte("small"), nil)
	put(t, s, inc, chunks)
	check := func() {
		t.Helper()
		got, err := s.Get(inc.ID)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(inc, got, sameVerdict, cmpopts.EquateComparable(netip.AddrPort{})); d != "" {
			t.Error(d)
		}
		read, err := readAll(s, inc.ID)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.EqualFunc(chunks, read, bytes.Equal) {
			t.Error("chunks differ")
		}
	}
	check()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, Config{Dir: dir})
	check()
	if fi, err := os.Stat(dir); err != nil || fi.Mode().Perm() != 0o750 {
		t.Errorf("directory: %v %v, want mode 0750", fi.Mode(), err)
	}
}

func TestHuge(t *testing.T) {
	s := open(t, Config{})
	inc, chunks := incidentAt(noon, 1), randomChunks(3, 256, 256<<10)
	put(t, s, inc, chunks)
	read, err := readAll(s, inc.ID)
	if err != nil {
		t.Fatal(err)
	}
	for i := range chunks {
		if !bytes.Equal(chunks[i], read[i]) {
			t.Fatalf("chunk %d differs", i)
		}
	}
}

func TestManySmallChunks(t *testing.T) {
	s := open(t, Config{})
	inc := incidentAt(noon, 1)
	put(t, s, inc, randomChunks(3, 20000, 100))
	if read, err := readAll(s, inc.ID); err != nil || len(read) != 20000 {
		t.Fatal(len(read), err)
	}
}

func TestList(t *testing.T) {
	s := open(t, Config{})
	for i := range 5 {
		put(t, s, incidentAt(noon.Add(time.Duration(i)*time.Minute), 1), randomChunks(1, 1, 10))
	}
	all, err := s.List(0)
	if err != nil || len(all) != 5 {
		t.Fatal(len(all), err)
	}
	if !all[0].Time.Equal(noon.Add(4*time.Minute)) || !all[4].Time.Equal(noon) {
		t.Errorf("not newest first: %v ... %v", all[0].Time, all[4].Time)
	}
	h := all[0]
	if h.Trigger() != "resets" || h.Verdict.String() != "nothing listens" || h.Window.PacketCount != 7 || h.FlowsImplicated != 1 {
		t.Errorf("head lacks what a list shows: %+v", h)
	}
	if h.Flows != nil || h.At != nil {
		t.Error("head holds what a list does not show")
	}
	if two, err := s.List(2); err != nil || len(two) != 2 || two[0].ID != all[0].ID {
		t.Error(two, err)
	}
}

func TestFind(t *testing.T) {
	s := open(t, Config{})
	if _, err := s.Find("last"); !errors.Is(err, ErrNotFound) {
		t.Errorf("last of nothing: %v", err)
	}
	a, b := incidentAt(noon, 1), incidentAt(noon, 2)
	c := incidentAt(noon.Add(time.Hour), 1)
	for _, inc := range []*evidence.Incident{a, b, c} {
		put(t, s, inc, nil)
	}
	for _, tt := range []struct {
		ref, want string
		err       error
	}{
		{"last", c.ID, nil},
		{a.ID, a.ID, nil},
		{strings.ToLower(b.ID), b.ID, nil},
		{c.ID[:10], c.ID, nil},
		{b.TraceID, b.ID, nil},
		{a.ID[:10], "", ErrAmbiguous},
		{a.ID[:2], "", ErrAmbiguous},
		{"", "", ErrNotFound},
		{"7ZZ", "", ErrNotFound},
		{a.ID + "0", "", ErrNotFound},
		{strings.Repeat("ab", 16), "", ErrNotFound},
	} {
		got, err := s.Find(tt.ref)
		if got != tt.want || !errors.Is(err, tt.err) {
			t.Errorf("Find(%q) = %q, %v", tt.ref, got, err)
		}
		if errors.Is(err, ErrAmbiguous) && !(strings.Contains(err.Error(), a.ID) && strings.Contains(err.Error(), b.ID)) {
			t.Errorf("candidates are missing: %v", err)
		}
	}
}

func TestGetMissing(t *testing.T) {
	s := open(t, Config{})
	for _, err := range []error{second(s.Get("x")), second(readAll(s, "x")), s.Delete("x")} {
		if !errors.Is(err, ErrNotFound) {
			t.Error(err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func TestPutRefuses(t *testing.T) {
	s := open(t, Config{})
	bad := incidentAt(noon, 1)
	bad.ID = "no-ulid"
	badTrace := incidentAt(noon, 1)
	badTrace.TraceID = "XYZ"
	for _, err := range []error{
		s.Put(bad, nil), s.Put(badTrace, nil),
		s.Put(incidentAt(noon, 1), each([][]byte{make([]byte, MaxChunkBytes+1)})),
	} {
		if err == nil {
			t.Error("accepted")
		}
	}
	if l, _ := s.List(0); len(l) != 0 {
		t.Error("refused incidents are listed")
	}
}

// An incident that grew is put again: the new one is whole, the old blocks go.
func TestPutAgain(t *testing.T) {
	s := open(t, Config{})
	inc := incidentAt(noon, 1)
	put(t, s, inc, randomChunks(1, 9, 1000))
	oldTrace := inc.TraceID
	inc.TraceID, inc.Joined = strings.Repeat("ab", 16), 5
	chunks := randomChunks(2, 3, 1000)
	put(t, s, inc, chunks)
	got, err := s.Get(inc.ID)
	read, err2 := readAll(s, inc.ID)
	if err != nil || err2 != nil || got.Joined != 5 || !slices.EqualFunc(read, chunks, bytes.Equal) {
		t.Fatal(got, err, err2)
	}
	if _, err := s.Find(oldTrace); !errors.Is(err, ErrNotFound) {
		t.Errorf("old trace id still resolves: %v", err)
	}
	if n := countKeys(t, s, blocksPrefix); n != 5 {
		t.Errorf("%d blocks, want 3 chunks, their list and 1 json", n)
	}
}

func TestBytes(t *testing.T) {
	s := open(t, Config{})
	sum := uint64(0)
	for i := range 3 {
		inc := incidentAt(noon, byte(i))
		if n, err := s.Bytes(inc.ID); n != 0 || !errors.Is(err, ErrNotFound) {
			t.Errorf("before it is put: %d bytes, %v", n, err)
		}
		put(t, s, inc, randomChunks(1, i, 5000))
		n, err := s.Bytes(inc.ID)
		if err != nil || n <= uint64(i)*5000 {
			t.Errorf("%d chunks: %d bytes, %v", i, n, err)
		}
		sum += n
	}
	if st, err := s.Stats(); err != nil || st.Bytes != sum {
		t.Errorf("%d bytes in all, %d of each: %v", st.Bytes, sum, err)
	}
}

func countKeys(t *testing.T, s *Store, prefix string) (n int) {
	t.Helper()
	err := s.db.View(func(txn *badger.Txn) error {
		return eachKey(txn, prefix, func([]byte) error { n++; return nil })
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Blocks without a marker are what a crash leaves: Open removes these only.
func TestOrphans(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Config{Dir: dir})
	whole := incidentAt(noon, 1)
	put(t, s, whole, randomChunks(1, 3, 5000))
	for _, m := range []marker{
		{Head: incidentAt(noon, 2)},
		{Head: whole, Generation: 1}, // a second put that did not commit
	} {
		w := writer{store: s, id: m.Head.ID, generation: m.Generation}
		if _, err := w.chunks(m.Head, each(randomChunks(2, 4, 5000))); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, Config{Dir: dir})
	if st, err := s.Stats(); err != nil || st.Orphans != 8 || st.Incidents != 1 {
		t.Errorf("%+v %v", st, err)
	}
	if n := countKeys(t, s, blocksPrefix); n != 5 {
		t.Errorf("%d blocks left, want 5", n)
	}
	if _, err := readAll(s, whole.ID); err != nil {
		t.Error(err)
	}
}

// A log file that a crash left without a byte must not stop Open.
func TestEmptyLogs(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Config{Dir: dir})
	inc := incidentAt(noon, 1)
	put(t, s, inc, randomChunks(1, 3, 5000))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"000099.vlog", "00099.mem"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s = open(t, Config{Dir: dir})
	if _, err := readAll(s, inc.ID); err != nil {
		t.Error(err)
	}
}

func damage(t *testing.T, s *Store, key []byte) {
	t.Helper()
	if err := s.update(func(txn *badger.Txn) error { return txn.Set(key, []byte("flipped")) }); err != nil {
		t.Fatal(err)
	}
}

func TestDamageIsFound(t *testing.T) {
	for _, kind := range []string{kindJSON, kindIndex, kindChunk} {
		s := open(t, Config{})
		inc := incidentAt(noon, 1)
		put(t, s, inc, randomChunks(1, 2, 5000))
		damage(t, s, blockKey(inc.ID, 0, kind, 0))
		_, err := s.Get(inc.ID)
		if kind != kindJSON {
			_, err = readAll(s, inc.ID)
		}
		if !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", kind, err)
		}
	}
}

// A damaged chunk and a missing one cost themselves, not the others.
func TestReadingGoesOnAfterDamage(t *testing.T) {
	s := open(t, Config{})
	inc, chunks := incidentAt(noon, 1), randomChunks(1, 5, 5000)
	put(t, s, inc, chunks)
	damage(t, s, blockKey(inc.ID, 0, kindChunk, 1))
	missing := blockKey(inc.ID, 0, kindChunk, 3)
	if err := s.update(func(txn *badger.Txn) error { return txn.Delete(missing) }); err != nil {
		t.Fatal(err)
	}
	var got []string
	for c, err := range s.Chunks(inc.ID) {
		switch {
		case errors.Is(err, ErrDamaged) && c == nil:
			got = append(got, "damaged")
		case err != nil:
			t.Fatal(err)
		case bytes.Equal(c, chunks[len(got)]):
			got = append(got, "whole")
		}
	}
	if d := cmp.Diff([]string{"whole", "damaged", "whole", "damaged", "whole"}, got); d != "" {
		t.Error(d)
	}
}

// An incident that goes while it is read ends the reading, and a reader that
// leaves early or writes meanwhile is in nobody's way.
func TestReadWhileItGoes(t *testing.T) {
	for name, change := range map[string]func(*Store, *evidence.Incident) error{
		"deleted":   func(s *Store, inc *evidence.Incident) error { return s.Delete(inc.ID) },
		"put again": func(s *Store, inc *evidence.Incident) error { return s.Put(inc, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, Config{})
			inc := incidentAt(noon, 1)
			put(t, s, inc, randomChunks(1, 5, 5000))
			for range s.Chunks(inc.ID) {
				break
			}
			var last error
			steps := 0
			for _, last = range s.Chunks(inc.ID) {
				if steps++; steps == 1 {
					if err := errors.Join(change(s, inc), second(s.Retain(noon))); err != nil {
						t.Fatal(err)
					}
				}
			}
			if steps != 2 || !errors.Is(last, ErrNotFound) {
				t.Errorf("%d steps, then %v", steps, last)
			}
		})
	}
}

// What the flight buffer cannot give is said, and what it can is kept.
func TestPutWithErrors(t *testing.T) {
	s := open(t, Config{})
	inc, chunks := incidentAt(noon, 1), randomChunks(1, 4, 5000)
	seq := func(yield func([]byte, error) bool) {
		for i, c := range chunks {
			var err error
			if i%2 == 1 {
				c, err = nil, fmt.Errorf("chunk %d is torn", i)
			}
			if !yield(c, err) {
				return
			}
		}
	}
	for range 2 { // the second time the gap is known
		if err := s.Put(inc, seq); err != nil {
			t.Fatal(err)
		}
	}
	got, err := s.Get(inc.ID)
	if err != nil {
		t.Fatal(err)
	}
	want := []evidence.Gap{{
		From: inc.Window.From, To: inc.Window.To,
		Reason: "2 chunks of the flight buffer could not be read: chunk 1 is torn",
	}}
	if d := cmp.Diff(want, got.Window.Gaps); d != "" {
		t.Error(d)
	}
	read, err := readAll(s, inc.ID)
	if err != nil || !slices.EqualFunc(read, [][]byte{chunks[0], chunks[2]}, bytes.Equal) {
		t.Error(len(read), err)
	}
}

// Each start makes a table of level 0, and nothing compacts by itself.
func TestRetainCompacts(t *testing.T) {
	dir := t.TempDir()
	for i := range levelZeroTables + 1 {
		s := open(t, Config{Dir: dir})
		put(t, s, incidentAt(noon, byte(i)), nil)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	s := open(t, Config{Dir: dir})
	before := s.db.Levels()[0].NumTables
	if _, err := s.Retain(noon); err != nil {
		t.Fatal(err)
	}
	after := s.db.Levels()[0].NumTables
	if l, err := s.List(0); before < levelZeroTables || after != 0 || len(l) != levelZeroTables+1 {
		t.Error(before, after, len(l), err)
	}
}

func TestOpenErrors(t *testing.T) {
	dir := t.TempDir()
	open(t, Config{Dir: dir})
	_, err := Open(Config{Dir: dir})
	if want := "open database " + dir + ": another tcpcoroner holds it: stop that daemon or give --data another directory"; !errors.Is(err, ErrLocked) || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{file, filepath.Join(file, "below"), "/proc/none", ""} {
		_, err := Open(Config{Dir: d})
		if err == nil || !strings.Contains(err.Error(), d) || !strings.Contains(err.Error(), "--data") {
			t.Errorf("%q: %v", d, err)
		}
	}
}

func TestOutbox(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Config{Dir: dir})
	a, b := incidentAt(noon, 1), incidentAt(noon, 2)
	put(t, s, a, nil, "logs", "traces")
	put(t, s, b, nil)
	due, next, err := s.Pending(noon)
	if err != nil || len(due) != 2 || !next.IsZero() {
		t.Fatal(due, next, err)
	}
	e := due[0]
	e.Attempts, e.Next, e.LastError = 1, noon.Add(time.Minute), "refused"
	if err := errors.Join(s.Retry(e), s.Done(due[1].Signal, due[1].Incident), s.Close()); err != nil {
		t.Fatal(err)
	}
	s = open(t, Config{Dir: dir})
	due, next, err = s.Pending(noon)
	if err != nil || len(due) != 0 || !next.Equal(e.Next) {
		t.Error(due, next, err)
	}
	due, _, _ = s.Pending(e.Next)
	if d := cmp.Diff([]evidence.OutboxEntry{e}, due); d != "" {
		t.Error(d)
	}
	e.Rejected = true
	if err := s.Retry(e); err != nil {
		t.Fatal(err)
	}
	n, _ := s.PendingCount()
	rejected, _ := s.Rejected()
	if due, _, _ = s.Pending(e.Next); n != 0 || len(due) != 0 || len(rejected) != 1 {
		t.Error(n, due, rejected)
	}
	if err := s.Delete(a.ID); err != nil {
		t.Fatal(err)
	}
	if err := s.Retry(e); err != nil { // raced with the deletion: must not come back
		t.Fatal(err)
	}
	if rejected, _ = s.Rejected(); len(rejected) != 0 {
		t.Error("outbox entry of a deleted incident", rejected)
	}
	if st, _ := s.Stats(); st.Deleted != 1 || st.Undelivered != 1 {
		t.Errorf("%+v", st)
	}
}

func TestRetain(t *testing.T) {
	for _, tt := range []struct {
		name string
		cfg  Config
		now  time.Time
		want int // incidents that stay, of 5 with 100 KB each, a minute apart
	}{
		{"no bound", Config{}, noon.Add(time.Hour), 5},
		{"age", Config{MaxAge: 150 * time.Second}, noon.Add(4 * time.Minute), 3},
		{"all too old", Config{MaxAge: time.Second}, noon.Add(time.Hour), 1},
		{"bytes", Config{MaxBytes: 250_000}, noon, 2},
		{"newest alone is too big", Config{MaxBytes: 1}, noon, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := open(t, tt.cfg)
			for i := range 5 {
				put(t, s, incidentAt(noon.Add(time.Duration(i)*time.Minute), 1), randomChunks(1, 10, 10_000))
			}
			deleted, err := s.Retain(tt.now)
			if err != nil || deleted != 5-tt.want {
				t.Errorf("deleted %d: %v", deleted, err)
			}
			l, _ := s.List(0)
			if len(l) != tt.want || !l[0].Time.Equal(noon.Add(4*time.Minute)) {
				t.Errorf("%d stay, newest %v", len(l), l[0].Time)
			}
			for _, h := range l {
				if _, err := readAll(s, h.ID); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// The files shrink too, not only the list; and what stays survives a reopen.
func TestRetainGivesSpaceBack(t *testing.T) {
	dir := t.TempDir()
	cfg := Config{Dir: dir, MaxBytes: 40 << 20}
	s := open(t, cfg)
	for i := range 12 {
		put(t, s, incidentAt(noon.Add(time.Duration(i)*time.Minute), 1), randomChunks(uint64(i), 64, 256<<10))
		if _, err := s.Retain(noon); err != nil {
			t.Fatal(err)
		}
	}
	used := diskUsage(t, dir)
	t.Logf("12 x 16 MiB put, 2 kept: %d MiB on disk", used>>20)
	if used > 96<<20 {
		t.Errorf("%d MiB on disk for a budget of 40", used>>20)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, cfg)
	l, _ := s.List(0)
	if len(l) != 2 {
		t.Fatalf("%d incidents", len(l))
	}
	for i, h := range l {
		c, err := readAll(s, h.ID)
		if err != nil || !slices.EqualFunc(c, randomChunks(uint64(11-i), 64, 256<<10), bytes.Equal) {
			t.Error(h.ID, err)
		}
	}
}

// Reading and retention go on while incidents are put: a reader finds an
// incident whole, or not at all.
func TestConcurrent(t *testing.T) {
	s := open(t, Config{MaxBytes: 2 << 20})
	const incidents = 40
	done := make(chan struct{})
	var wg sync.WaitGroup
	loop := func(f func() error) {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if err := f(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	loop(func() error { return second(s.Retain(noon)) })
	loop(func() error {
		l, err := s.List(0)
		for _, h := range l {
			_, e1 := s.Get(h.ID)
			_, e2 := readAll(s, h.ID)
			for _, e := range []error{e1, e2} {
				if e != nil && !errors.Is(e, ErrNotFound) {
					return e
				}
			}
		}
		return err
	})
	for i := range incidents {
		put(t, s, incidentAt(noon.Add(time.Duration(i)*time.Second), 1), randomChunks(uint64(i), 4, 100_000), "traces")
	}
	close(done)
	wg.Wait()
	if l, err := s.List(1); err != nil || !l[0].Time.Equal(noon.Add((incidents-1)*time.Second)) {
		t.Error(l, err)
	}
}

func FuzzMarker(f *testing.F) {
	f.Add([]byte(`{"head":{"id":"x","verdict":{"confidence":"unknown"}},"generation":1,"json":[{"bytes":1,"crc32c":2}]}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var m marker
		if err := parseMarker(b, &m); err == nil && m.Head == nil {
			t.Error("a marker without an incident was accepted")
		}
	})
}
