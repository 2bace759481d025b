package store

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/dgraph-io/badger/v4"
)

// What release 0.1.0 wrote is read: the list of chunks was in the marker.
func TestOldMarker(t *testing.T) {
	s := open(t, Config{})
	inc, chunks := incidentAt(noon, 1), randomChunks(1, 3, 5000)
	put(t, s, inc, chunks)
	m, list, err := s.index(inc.ID)
	if err != nil {
		t.Fatal(err)
	}
	m.Index, m.ChunkBytes, m.Chunks = nil, 0, list
	if err := s.commit(m, marker{}); err != nil {
		t.Fatal(err)
	}
	read, err := readAll(s, inc.ID)
	if err != nil || !slices.EqualFunc(read, chunks, bytes.Equal) || m.bytes() < 15000 {
		t.Error(len(read), err)
	}
}

// A memtable's log that a release with larger memtables left is replayed.
func TestOldMemtable(t *testing.T) {
	old, dir := t.TempDir(), t.TempDir()
	db, err := badger.Open(badgerOptions(Config{Dir: old}, largestMemTable))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	const batches = 60
	for n := range batches {
		err := db.Update(func(txn *badger.Txn) error {
			for i := range 1000 {
				if err := txn.Set(traceKey(fmt.Sprintf("%016x%016x", n, i)), []byte("01JN8VQZZZZZZZZZZZZZZZZZZZ")); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	// As kill -9 leaves it.
	if err := os.CopyFS(dir, os.DirFS(old)); err != nil {
		t.Fatal(err)
	}
	s := open(t, Config{Dir: dir})
	if n := countKeys(t, s, tracePrefix); n != batches*1000 {
		t.Errorf("%d keys", n)
	}
}
