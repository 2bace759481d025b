package store

import (
	"fmt"
	"hash/crc32"
	"iter"
	"slices"

	"github.com/dgraph-io/badger/v4"

	"tcpcoroner/evidence"
)

// writer writes the blocks of one Put. It gathers blocks of one kind until they
// fill a transaction, so that few bytes are held and few syncs are made.
type writer struct {
	store      *Store
	id         string
	generation uint32
	pages      pageBudget

	values []byte  // of the blocks that wait, one behind the other
	blocks []block // of this kind, written and waiting
	wait   int     // the first block that waits
}

// chunks writes what can be had of the chunks. What cannot becomes a gap.
func (w *writer) chunks(inc *evidence.Incident, chunks iter.Seq2[[]byte, error]) ([]block, error) {
	if chunks == nil {
		return nil, nil
	}
	unreadable, first := 0, error(nil)
	for chunk, err := range chunks {
		if err != nil {
			if unreadable++; first == nil {
				first = err
			}
			continue
		}
		if len(chunk) > MaxChunkBytes {
			return nil, fmt.Errorf("chunk %d has %d bytes, at most %d are kept in one", len(w.blocks), len(chunk), MaxChunkBytes)
		}
		if err := w.add(kindChunk, chunk); err != nil {
			return nil, err
		}
	}
	if unreadable > 0 {
		addGap(&inc.Window, unreadable, first)
	}
	return w.end(kindChunk)
}

// addGap says that chunks are missing. What they held is unknown, and so is when.
// An incident that is put again says it once.
func addGap(w *evidence.Window, chunks int, first error) {
	gap := evidence.Gap{
		From: w.From, To: w.To,
		Reason: fmt.Sprintf("%d chunks of the flight buffer could not be read: %v", chunks, first),
	}
	if !slices.Contains(w.Gaps, gap) {
		w.Gaps = append(slices.Clip(w.Gaps), gap)
	}
}

// pieces writes one long value.
func (w *writer) pieces(kind string, value []byte) ([]block, error) {
	for piece := range slices.Chunk(value, blockBytes) {
		if err := w.add(kind, piece); err != nil {
			return nil, err
		}
	}
	return w.end(kind)
}

// add takes a copy of value.
func (w *writer) add(kind string, value []byte) error {
	if len(w.values)+len(value) > transactionBytes || len(w.blocks)-w.wait == transactionKeys {
		if err := w.flush(kind); err != nil {
			return err
		}
	}
	if w.values == nil {
		w.values = make([]byte, 0, transactionBytes)
	}
	w.values = append(w.values, value...)
	w.blocks = append(w.blocks, block{len(value), crc32.Checksum(value, castagnoli)})
	return nil
}

// end writes what waits and returns the blocks of this kind.
func (w *writer) end(kind string) ([]block, error) {
	err := w.flush(kind)
	blocks := w.blocks
	w.blocks, w.wait = nil, 0
	return blocks, err
}

// flush writes what waits. It leaves room for removing it all again: what a full
// disk refuses must not stay there.
func (w *writer) flush(kind string) error {
	if w.wait == len(w.blocks) {
		return nil
	}
	if err := needSpace(w.store.cfg.Dir, spaceForPut); err != nil {
		return err
	}
	err := w.store.update(func(txn *badger.Txn) error {
		values := w.values
		for i := w.wait; i < len(w.blocks); i++ {
			n := w.blocks[i].Bytes
			if err := txn.Set(blockKey(w.id, w.generation, kind, i), values[:n:n]); err != nil {
				return err
			}
			values = values[n:]
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("write %s blocks from %d: %w", kind, w.wait, err)
	}
	w.pages.spend(len(w.values))
	w.values, w.wait = w.values[:0], len(w.blocks)
	return nil
}
