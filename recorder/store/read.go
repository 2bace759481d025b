package store

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"iter"
	"strings"

	"github.com/dgraph-io/badger/v4"
	"github.com/oklog/ulid/v2"

	"tcpcoroner/evidence"
)

// errEnough ends a walk early.
var errEnough = errors.New("enough")

// Get reads an incident, without its packets. Damage is ErrDamaged, never a
// part of an incident.
func (s *Store) Get(id string) (*evidence.Incident, error) {
	pieces, err := s.jsonBlocks(id)
	if err != nil {
		return nil, fmt.Errorf("read incident %s: %w", id, err)
	}
	z, err := gzip.NewReader(bytes.NewReader(bytes.Join(pieces, nil)))
	if err != nil {
		return nil, fmt.Errorf("read incident %s: %w: %w", id, ErrDamaged, err)
	}
	inc := new(evidence.Incident)
	if err := json.NewDecoder(z).Decode(inc); err != nil {
		return nil, fmt.Errorf("read incident %s: %w: %w", id, ErrDamaged, err)
	}
	// Reading to the end checks gzip's own sum.
	if _, err := io.Copy(io.Discard, z); err != nil {
		return nil, fmt.Errorf("read incident %s: %w: %w", id, ErrDamaged, err)
	}
	return inc, nil
}

// Chunks reads the chunks that were put with an incident, in that order, one at
// a time: the bytes are valid until the next step. A chunk that is damaged is an
// error that wraps ErrDamaged, and the next chunk follows. If the incident is not
// there, or is deleted or put again meanwhile, an error that wraps ErrNotFound is
// the last step. Nothing is locked between two steps.
func (s *Store) Chunks(id string) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		defer s.dropPages()
		var buf []byte
		pages := pageBudget{store: s}
		m, want, err := s.index(id)
		for i := 0; err == nil && i < len(want); i++ {
			buf, err = s.chunk(buf, m, i, want[i])
			if errors.Is(err, ErrNotFound) {
				break
			}
			if err != nil {
				err = fmt.Errorf("read packets of incident %s: chunk %d of %d: %w", id, i+1, len(want), err)
			}
			if !yield(buf, err) {
				return
			}
			err = nil
			pages.spend(want[i].Bytes)
		}
		if err != nil {
			yield(nil, fmt.Errorf("read packets of incident %s: %w", id, err))
		}
	}
}

// index reads what the marker knows of an incident's chunks.
func (s *Store) index(id string) (m marker, chunks []block, err error) {
	err = s.view(func(txn *badger.Txn) (err error) {
		if m, err = getMarker(txn, id); err != nil || m.Index == nil {
			return err
		}
		pieces, err := getBlocks(txn, m, kindIndex, m.Index)
		if err != nil {
			return err
		}
		return parseIndex(bytes.Join(pieces, nil), &m.Chunks)
	})
	return m, m.Chunks, err
}

func parseIndex(b []byte, chunks *[]block) error {
	if err := json.Unmarshal(b, chunks); err != nil {
		return fmt.Errorf("list of chunks: %w: %w", ErrDamaged, err)
	}
	return nil
}

// chunk reads one chunk into buf. One that is not there any more because the
// incident is not, or is another one, is no damage.
func (s *Store) chunk(buf []byte, m marker, n int, want block) (out []byte, err error) {
	err = s.view(func(txn *badger.Txn) error {
		out, err = getBlock(txn, blockKey(m.Head.ID, m.Generation, kindChunk, n), want, buf)
		if !errors.Is(err, badger.ErrKeyNotFound) {
			return err
		}
		switch now, gone := getMarker(txn, m.Head.ID); {
		case gone != nil:
			return gone
		case now.Generation != m.Generation:
			return fmt.Errorf("%w any more: it was put again while it was read", ErrNotFound)
		}
		return err
	})
	return out, err
}

// jsonBlocks reads marker and blocks in one transaction and verifies each block.
func (s *Store) jsonBlocks(id string) (values [][]byte, err error) {
	err = s.view(func(txn *badger.Txn) error {
		m, err := getMarker(txn, id)
		if err != nil {
			return err
		}
		values, err = getBlocks(txn, m, kindJSON, m.JSON)
		return err
	})
	return values, err
}

func getBlocks(txn *badger.Txn, m marker, kind string, want []block) ([][]byte, error) {
	values := make([][]byte, len(want))
	for i := range want {
		var err error
		if values[i], err = getBlock(txn, blockKey(m.Head.ID, m.Generation, kind, i), want[i], nil); err != nil {
			return nil, fmt.Errorf("%s block %d of %d: %w", kind, i+1, len(want), err)
		}
	}
	return values, nil
}

// getBlock reads a block into buf, which it replaces if it is too small.
func getBlock(txn *badger.Txn, key []byte, want block, buf []byte) ([]byte, error) {
	item, err := txn.Get(key)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	v, err := item.ValueCopy(buf)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if sum := crc32.Checksum(v, castagnoli); len(v) != want.Bytes || sum != want.CRC {
		return nil, fmt.Errorf("%w: %d bytes with crc32c %08x, want %d with %08x", ErrDamaged, len(v), sum, want.Bytes, want.CRC)
	}
	return v, nil
}

func getMarker(txn *badger.Txn, id string) (m marker, err error) {
	item, err := txn.Get(markerKey(id))
	if errors.Is(err, badger.ErrKeyNotFound) {
		return m, ErrNotFound
	}
	if err != nil {
		return m, err
	}
	return m, item.Value(func(v []byte) error { return parseMarker(v, &m) })
}

func parseMarker(v []byte, m *marker) error {
	if err := json.Unmarshal(v, m); err != nil {
		return fmt.Errorf("marker: %w: %w", ErrDamaged, err)
	}
	if m.Head == nil {
		return fmt.Errorf("marker: %w: it names no incident", ErrDamaged)
	}
	return nil
}

func (s *Store) marker(id string) (m marker, err error) {
	err = s.view(func(txn *badger.Txn) error {
		m, err = getMarker(txn, id)
		return err
	})
	return m, err
}

// Bytes is what an incident takes. It reads nothing of the others.
func (s *Store) Bytes(id string) (uint64, error) {
	m, err := s.marker(id)
	if err != nil {
		return 0, fmt.Errorf("read size of incident %s: %w", id, err)
	}
	return m.bytes(), nil
}

// eachMarker walks the incidents, newest first.
func (s *Store) eachMarker(f func(marker) error) error {
	err := s.view(func(txn *badger.Txn) error {
		return eachValue(txn, markerPrefix, true, func(_, v []byte) error {
			var m marker
			if err := parseMarker(v, &m); err != nil {
				return err
			}
			return f(m)
		})
	})
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

// List returns the newest incidents first, at most limit, all if limit is 0.
// They are heads: without flows, snapshots and counters, which Get reads.
func (s *Store) List(limit int) ([]*evidence.Incident, error) {
	var heads []*evidence.Incident
	err := s.eachMarker(func(m marker) error {
		heads = append(heads, m.Head)
		if len(heads) == limit {
			return errEnough
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list incidents: %w", err)
	}
	return heads, nil
}

// maxCandidates bounds the ids that an ErrAmbiguous lists.
const maxCandidates = 8

// Find resolves what a person types: "last", an id, a unique prefix of one, or
// a trace id. The error is ErrNotFound, or ErrAmbiguous with the candidates.
func (s *Store) Find(ref string) (id string, err error) {
	err = s.view(func(txn *badger.Txn) error {
		id, err = find(txn, strings.TrimSpace(ref))
		return err
	})
	if err != nil {
		return "", fmt.Errorf("find incident %q: %w", ref, err)
	}
	return id, nil
}

func find(txn *badger.Txn, ref string) (string, error) {
	switch {
	case ref == "":
		return "", fmt.Errorf(`%w: name an id, the beginning of one, a trace id, or "last"`, ErrNotFound)
	case strings.EqualFold(ref, "last"):
		return findLast(txn)
	case isTraceID(strings.ToLower(ref)):
		return findTrace(txn, strings.ToLower(ref))
	case len(ref) > ulid.EncodedSize:
		return "", fmt.Errorf("%w: an id has %d characters, this has %d", ErrNotFound, ulid.EncodedSize, len(ref))
	}
	return findPrefix(txn, strings.ToUpper(ref))
}

func findLast(txn *badger.Txn) (id string, err error) {
	err = eachValue(txn, markerPrefix, true, func(key, _ []byte) error {
		id = strings.TrimPrefix(string(key), markerPrefix)
		return errEnough
	})
	if err == nil {
		return "", fmt.Errorf("%w: nothing was recorded yet", ErrNotFound)
	}
	if !errors.Is(err, errEnough) {
		return "", err
	}
	return id, nil
}

func findTrace(txn *badger.Txn, trace string) (id string, err error) {
	item, err := txn.Get(traceKey(trace))
	if errors.Is(err, badger.ErrKeyNotFound) {
		return "", fmt.Errorf("%w has this trace id", ErrNotFound)
	}
	if err != nil {
		return "", err
	}
	return id, item.Value(func(v []byte) error { id = string(v); return nil })
}

func findPrefix(txn *badger.Txn, prefix string) (string, error) {
	var ids []string
	err := eachKey(txn, markerPrefix+prefix, func(key []byte) error {
		ids = append(ids, strings.TrimPrefix(string(key), markerPrefix))
		return nil
	})
	switch {
	case err != nil:
		return "", err
	case len(ids) == 0:
		return "", ErrNotFound
	case len(ids) == 1:
		return ids[0], nil
	}
	shown := ids[max(0, len(ids)-maxCandidates):]
	return "", fmt.Errorf("%w: %d ids begin so, the newest are %s: type more of it", ErrAmbiguous, len(ids), strings.Join(shown, ", "))
}
