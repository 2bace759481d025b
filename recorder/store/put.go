package store

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"iter"

	"github.com/dgraph-io/badger/v4"
	"github.com/oklog/ulid/v2"

	"tcpcoroner/evidence"
)

const (
	// blockBytes is the size of the pieces that an incident's JSON is cut to.
	blockBytes = 256 << 10
	// MaxChunkBytes bounds one chunk, and with it the memory of Put.
	MaxChunkBytes = 1 << 20
	// transactionBytes bounds what is written between two syncs, and with it what
	// is held in memory at a time.
	transactionBytes = MaxChunkBytes
	// transactionKeys keeps a transaction of values below valueThreshold under
	// Badger's own limit, 15 % of a memtable.
	transactionKeys = 100
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// marker makes an incident exist. It holds what the list shows, so that listing
// reads nothing else.
type marker struct {
	// Head is the incident without flows, snapshots and counters.
	Head       *evidence.Incident `json:"head"`
	Generation uint32             `json:"generation"`
	JSON       []block            `json:"json"`
	// Index describes the blocks of the list of chunks, which would make the
	// marker long, and ChunkBytes is what the chunks have. Release 0.1.0 kept the
	// list here, in Chunks, and no Index.
	Index      []block  `json:"index,omitempty"`
	ChunkBytes uint64   `json:"chunk_bytes,omitempty"`
	Chunks     []block  `json:"chunks,omitempty"`
	Signals    []string `json:"signals,omitempty"`
}

// block describes a stored value.
type block struct {
	Bytes int    `json:"bytes"`
	CRC   uint32 `json:"crc32c"`
}

func (m *marker) bytes() uint64 { return m.ChunkBytes + sum(m.JSON) + sum(m.Index) + sum(m.Chunks) }

func sum(blocks []block) (n uint64) {
	for _, b := range blocks {
		n += uint64(b.Bytes)
	}
	return n
}

// Put makes the incident durable; after it returns nil a crash cannot take it.
// For each signal an outbox entry, due at once, is written with it. An id that
// exists is replaced as a whole: a crash leaves either the old or the new one.
//
// The chunks are taken one after the other, each before the next is asked for,
// and nil means none. An error among them costs only what it stands for: the
// incident is kept with the chunks that are left, and a gap that says so is
// appended to inc.Window.Gaps. This is why chunks are written first.
func (s *Store) Put(inc *evidence.Incident, chunks iter.Seq2[[]byte, error], signals ...string) error {
	// One put at a time: generations must not be taken twice. Readers go on.
	s.putting.Lock()
	defer s.putting.Unlock()
	defer s.dropPages()
	if err := s.put(inc, chunks, signals); err != nil {
		return fmt.Errorf("write incident %s: %w", inc.ID, err)
	}
	return nil
}

func (s *Store) put(inc *evidence.Incident, chunks iter.Seq2[[]byte, error], signals []string) error {
	if err := checkInput(inc); err != nil {
		return err
	}
	old, err := s.marker(inc.ID)
	m := marker{Signals: signals}
	switch {
	case err == nil:
		m.Generation = old.Generation + 1
	case !errors.Is(err, ErrNotFound):
		return err
	}
	if err := s.putBlocks(&m, inc, chunks); err != nil {
		// What cannot be removed now is an orphan, which Open removes.
		return errors.Join(err, s.deletePrefix(generationPrefix(inc.ID, m.Generation)))
	}
	// A commit that failed may have happened: its blocks are left for Open.
	if err := s.commit(m, old); err != nil || old.Head == nil {
		return err
	}
	return s.deletePrefix(generationPrefix(inc.ID, old.Generation))
}

func checkInput(inc *evidence.Incident) error {
	if _, err := ulid.ParseStrict(inc.ID); err != nil {
		return fmt.Errorf("id %q: %w", inc.ID, err)
	}
	if inc.TraceID != "" && !isTraceID(inc.TraceID) {
		return fmt.Errorf("trace id %q: not 32 lower-case hex digits", inc.TraceID)
	}
	return nil
}

// putBlocks writes all blocks, the chunks first, and fills the marker in.
func (s *Store) putBlocks(m *marker, inc *evidence.Incident, chunks iter.Seq2[[]byte, error]) error {
	w := writer{store: s, id: inc.ID, generation: m.Generation, pages: pageBudget{store: s}}
	list, err := w.chunks(inc, chunks)
	if err != nil {
		return err
	}
	m.ChunkBytes = sum(list)
	index, err := json.Marshal(list)
	if err != nil {
		return fmt.Errorf("encode list of chunks: %w", err)
	}
	if m.Index, err = w.pieces(kindIndex, index); err != nil {
		return err
	}
	text, err := encode(inc)
	if err != nil {
		return err
	}
	m.Head = head(inc)
	m.JSON, err = w.pieces(kindJSON, text)
	return err
}

// head is what the list needs of an incident.
func head(inc *evidence.Incident) *evidence.Incident {
	h := *inc
	h.Flows, h.At, h.After, h.Before = nil, nil, nil, evidence.Counters{}
	h.Window.Packets = nil
	return &h
}

func encode(inc *evidence.Incident) ([]byte, error) {
	var buf bytes.Buffer
	z, _ := gzip.NewWriterLevel(&buf, gzip.BestSpeed) // fails for unknown levels only
	if err := errors.Join(json.NewEncoder(z).Encode(inc), z.Close()); err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	return buf.Bytes(), nil
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
