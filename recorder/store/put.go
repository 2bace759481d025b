package store

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"

	"github.com/dgraph-io/badger/v4"
	"github.com/oklog/ulid/v2"

	"tcpcoroner/evidence"
)

const (
	// jsonBlockBytes is the size of the pieces that an incident's JSON is cut to.
	jsonBlockBytes = 256 << 10
	// MaxChunkBytes bounds one chunk: it has to fit into a value log file.
	MaxChunkBytes = 4 << 20
	// transactionBytes bounds what is written between two syncs, and with it what
	// Badger holds in memory at a time.
	transactionBytes = 4 << 20
	// transactionKeys keeps a transaction of values below valueThreshold under
	// Badger's own limit, 15 % of a memtable.
	transactionKeys = 1000
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// marker makes an incident exist. It holds what the list shows, so that listing
// reads nothing else.
type marker struct {
	// Head is the incident without flows, snapshots and counters.
	Head       *evidence.Incident `json:"head"`
	Generation uint32             `json:"generation"`
	JSON       []block            `json:"json"`
	Chunks     []block            `json:"chunks"`
	Signals    []string           `json:"signals,omitempty"`
}

// block describes a stored value.
type block struct {
	Bytes int    `json:"bytes"`
	CRC   uint32 `json:"crc32c"`
}

func describe(values [][]byte) []block {
	out := make([]block, len(values))
	for i, v := range values {
		out[i] = block{len(v), crc32.Checksum(v, castagnoli)}
	}
	return out
}

func (m *marker) bytes() (n uint64) {
	for _, b := range append(slices.Clip(m.JSON), m.Chunks...) {
		n += uint64(b.Bytes)
	}
	return n
}

// Put makes the incident durable; after it returns nil a crash cannot take it.
// For each signal an outbox entry, due at once, is written with it. The chunks
// are only read, and only until Put returns. An id that exists is replaced as a
// whole: a crash leaves either the old or the new one.
func (s *Store) Put(inc *evidence.Incident, chunks [][]byte, signals ...string) error {
	if err := s.put(inc, chunks, signals); err != nil {
		return fmt.Errorf("write incident %s: %w", inc.ID, err)
	}
	return nil
}

func (s *Store) put(inc *evidence.Incident, chunks [][]byte, signals []string) error {
	if err := checkInput(inc, chunks); err != nil {
		return err
	}
	pieces, err := encode(inc)
	if err != nil {
		return err
	}
	m := marker{Head: head(inc), JSON: describe(pieces), Chunks: describe(chunks), Signals: signals}
	// A quarter more: keys, headers, and the memtable's own log.
	if err := needSpace(s.cfg.Dir, m.bytes()+m.bytes()/4+spaceForBadger); err != nil {
		return err
	}
	// One put at a time: generations must not be taken twice. Readers go on.
	s.putting.Lock()
	defer s.putting.Unlock()
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.write(m, pieces, chunks)
}

func (s *Store) write(m marker, pieces, chunks [][]byte) error {
	old, err := s.marker(m.Head.ID)
	switch {
	case err == nil:
		m.Generation = old.Generation + 1
	case !errors.Is(err, ErrNotFound):
		return err
	}
	if err := errors.Join(s.putBlocks(m, kindJSON, pieces), s.putBlocks(m, kindChunk, chunks)); err != nil {
		// What cannot be removed now is an orphan, which Open removes.
		return errors.Join(err, s.deletePrefix(generationPrefix(m.Head.ID, m.Generation)))
	}
	// A commit that failed may have happened: its blocks are left for Open.
	if err := s.commit(m, old); err != nil || old.Head == nil {
		return err
	}
	return s.deletePrefix(generationPrefix(old.Head.ID, old.Generation))
}

func checkInput(inc *evidence.Incident, chunks [][]byte) error {
	if _, err := ulid.ParseStrict(inc.ID); err != nil {
		return fmt.Errorf("id %q: %w", inc.ID, err)
	}
	if inc.TraceID != "" && !isTraceID(inc.TraceID) {
		return fmt.Errorf("trace id %q: not 32 lower-case hex digits", inc.TraceID)
	}
	for i, c := range chunks {
		if len(c) > MaxChunkBytes {
			return fmt.Errorf("chunk %d has %d bytes, at most %d are kept in one", i, len(c), MaxChunkBytes)
		}
	}
	return nil
}

// head is what the list needs of an incident.
func head(inc *evidence.Incident) *evidence.Incident {
	h := *inc
	h.Flows, h.At, h.After, h.Before = nil, nil, nil, evidence.Counters{}
	h.Window.Packets = nil
	return &h
}

func encode(inc *evidence.Incident) ([][]byte, error) {
	var buf bytes.Buffer
	z, _ := gzip.NewWriterLevel(&buf, gzip.BestSpeed) // fails for unknown levels only
	if err := errors.Join(json.NewEncoder(z).Encode(inc), z.Close()); err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	return slices.Collect(slices.Chunk(buf.Bytes(), jsonBlockBytes)), nil
}

// putBlocks writes values in transactions of bounded size.
func (s *Store) putBlocks(m marker, kind string, values [][]byte) error {
	for first := 0; first < len(values); {
		n := fitting(values[first:])
		err := s.update(func(txn *badger.Txn) error {
			for i := first; i < first+n; i++ {
				if err := txn.Set(blockKey(m.Head.ID, m.Generation, kind, i), values[i]); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("write %s blocks from %d: %w", kind, first, err)
		}
		first += n
	}
	return nil
}

// fitting is the number of values that go into one transaction, at least one.
func fitting(values [][]byte) int {
	size := 0
	for i, v := range values {
		size += len(v)
		if i == transactionKeys || i > 0 && size > transactionBytes {
			return i
		}
	}
	return len(values)
}

// commit is the transaction that makes the incident exist.
func (s *Store) commit(m, old marker) error {
	value, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode marker: %w", err)
	}
	return s.update(func(txn *badger.Txn) error {
		if old.Head != nil && old.Head.TraceID != m.Head.TraceID {
			if err := txn.Delete(traceKey(old.Head.TraceID)); err != nil {
				return err
			}
		}
		if m.Head.TraceID != "" {
			if err := txn.Set(traceKey(m.Head.TraceID), []byte(m.Head.ID)); err != nil {
				return err
			}
		}
		for _, signal := range m.Signals {
			e := evidence.OutboxEntry{Signal: signal, Incident: m.Head.ID, Next: s.cfg.Now()}
			if err := setEntry(txn, e); err != nil {
				return err
			}
		}
		return txn.Set(markerKey(m.Head.ID), value)
	})
}
