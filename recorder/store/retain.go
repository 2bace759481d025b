package store

import (
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/dgraph-io/badger/v4"
)

// Delete removes an incident and what its outbox still held for it. The space
// is given back by the next Retain.
func (s *Store) Delete(id string) error {
	s.putting.Lock()
	defer s.putting.Unlock()
	if err := s.delete(id); err != nil {
		return fmt.Errorf("delete incident %s: %w", id, err)
	}
	return nil
}

// delete takes the marker first: from then on the blocks are orphans, and a
// crash before they are removed only leaves work for Open.
func (s *Store) delete(id string) error {
	var m marker
	undelivered := uint64(0)
	err := s.update(func(txn *badger.Txn) (err error) {
		if m, err = getMarker(txn, id); err != nil {
			return err
		}
		for _, signal := range m.Signals {
			undelivered += count(txn, outboxKey(signal, id))
		}
		return deleteKeys(txn, m.indexKeys())
	})
	if err != nil {
		return err
	}
	s.deleted.Add(1)
	s.undelivered.Add(undelivered)
	return s.deletePrefix(generationPrefix(id, m.Generation))
}

// indexKeys are the keys of the commit transaction.
func (m *marker) indexKeys() [][]byte {
	keys := [][]byte{markerKey(m.Head.ID)}
	if m.Head.TraceID != "" {
		keys = append(keys, traceKey(m.Head.TraceID))
	}
	for _, signal := range m.Signals {
		keys = append(keys, outboxKey(signal, m.Head.ID))
	}
	return keys
}

func count(txn *badger.Txn, key []byte) uint64 {
	if _, err := txn.Get(key); err != nil {
		return 0
	}
	return 1
}

func deleteKeys(txn *badger.Txn, keys [][]byte) error {
	for _, k := range keys {
		if err := txn.Delete(k); err != nil {
			return err
		}
	}
	return nil
}

// deletePrefix deletes the blocks under prefix, a bounded number at a time.
func (s *Store) deletePrefix(prefix []byte) error {
	var keys [][]byte
	err := s.view(func(txn *badger.Txn) error {
		return eachKey(txn, string(prefix), func(k []byte) error { keys = append(keys, k); return nil })
	})
	if err != nil {
		return err
	}
	return s.deleteBlocks(keys)
}

func (s *Store) deleteBlocks(keys [][]byte) error {
	for len(keys) > 0 {
		n := min(len(keys), transactionKeys)
		if err := s.update(func(txn *badger.Txn) error { return deleteKeys(txn, keys[:n]) }); err != nil {
			return err
		}
		s.dirty.Store(true)
		keys = keys[n:]
	}
	return nil
}

// removeOrphans deletes the blocks that no marker names.
func (s *Store) removeOrphans() error {
	var orphans [][]byte
	err := s.view(func(txn *badger.Txn) error {
		prefix, named := "", false // keys of a generation are neighbours: one look at the marker for each
		return eachKey(txn, blocksPrefix, func(key []byte) error {
			id, generation, ok := parseBlockKey(string(key))
			if !ok {
				return nil
			}
			if p := id + "/" + generation; p != prefix {
				m, err := getMarker(txn, id)
				if err != nil && !errors.Is(err, ErrNotFound) {
					return err
				}
				prefix, named = p, err == nil && strings.HasPrefix(string(key), string(generationPrefix(id, m.Generation)))
			}
			if !named {
				orphans = append(orphans, key)
			}
			return nil
		})
	})
	if err != nil {
		return err
	}
	s.orphans.Store(uint64(len(orphans)))
	return s.deleteBlocks(orphans)
}

// Retain deletes incidents that are older than MaxAge, then the oldest until
// all fit into MaxBytes, and gives the space back to the file system. The
// newest incident always stays.
func (s *Store) Retain(now time.Time) (deleted int, err error) {
	ids, err := s.expired(now)
	if err != nil {
		return 0, fmt.Errorf("retain incidents: %w", err)
	}
	for _, id := range ids {
		if err := s.Delete(id); err != nil && !errors.Is(err, ErrNotFound) {
			return deleted, err
		}
		deleted++
	}
	return deleted, s.reclaim()
}

// expired lists what has to go, oldest first. Walking from the newest, everything goes from
// the first one on that is too old or does not fit: always the oldest.
func (s *Store) expired(now time.Time) (ids []string, err error) {
	total, full, newest := uint64(0), false, true
	err = s.eachMarker(func(m marker) error {
		total += m.bytes()
		full = full || s.cfg.MaxBytes > 0 && total > s.cfg.MaxBytes
		old := s.cfg.MaxAge > 0 && now.Sub(m.Head.Time) > s.cfg.MaxAge
		if !newest && (full || old) {
			ids = append(ids, m.Head.ID)
		}
		newest = false
		return nil
	})
	slices.Reverse(ids)
	return ids, err
}

// reclaim compacts if it is worth it and gives the space of deleted blocks back.
// Badger learns how much of a value log file is garbage when a compaction drops
// the keys. DropPrefix of a key that exists for this purpose only is its one
// public way to push the memtable out and compact level 0 at once.
func (s *Store) reclaim() error {
	if !s.dirty.Load() && s.db.Levels()[0].NumTables < levelZeroTables {
		return nil
	}
	defer s.dropPages()
	s.mu.Lock()
	defer s.mu.Unlock()
	err := needSpace(s.cfg.Dir, spaceForUpdate)
	if err == nil {
		err = s.db.Update(func(txn *badger.Txn) error { return txn.Set([]byte(flushPrefix+"now"), nil) })
	}
	if err == nil {
		err = s.db.DropPrefix([]byte(flushPrefix))
	}
	rewrote := false
	for err == nil {
		err = s.collect()
		s.dropPagesLocked() // of the file that was rewritten, and of the one it went to
		rewrote = rewrote || err == nil
	}
	if rewrote {
		// Badger reads each value of a file into memory of its own. It is garbage by
		// now, of which Go would keep some 20 MiB for minutes.
		debug.FreeOSMemory()
	}
	if !errors.Is(err, badger.ErrNoRewrite) {
		return fmt.Errorf("give space of deleted incidents back in %s: %w", s.cfg.Dir, err)
	}
	s.dirty.Store(false)
	return nil
}

// levelZeroTables is when reading begins to suffer: each table of level 0 is
// looked into for each key. A start adds one, and so does each full memtable.
const levelZeroTables = 8

// collect rewrites the one value log file with most garbage and removes it. At
// most half of it, what is no garbage, is written anew.
func (s *Store) collect() error {
	if err := needSpace(s.cfg.Dir, spaceForReclaim); err != nil {
		return err
	}
	return s.db.RunValueLogGC(0.5)
}
