package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/dgraph-io/badger/v4"

	"tcpcoroner/evidence"
)

func setEntry(txn *badger.Txn, e evidence.OutboxEntry) error {
	v, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("encode outbox entry: %w", err)
	}
	return txn.Set(outboxKey(e.Signal, e.Incident), v)
}

// Pending returns the deliveries that are due at now, the longest due first,
// and when the next one of the others is due; zero if there is none.
func (s *Store) Pending(now time.Time) (due []evidence.OutboxEntry, next time.Time, err error) {
	err = s.eachEntry(func(e evidence.OutboxEntry) {
		switch {
		case e.Rejected:
		case !e.Next.After(now):
			due = append(due, e)
		case next.IsZero() || e.Next.Before(next):
			next = e.Next
		}
	})
	slices.SortStableFunc(due, func(a, b evidence.OutboxEntry) int { return a.Next.Compare(b.Next) })
	return due, next, err
}

// PendingCount counts the deliveries that are still to be made.
func (s *Store) PendingCount() (n int, err error) {
	err = s.eachEntry(func(e evidence.OutboxEntry) {
		if !e.Rejected {
			n++
		}
	})
	return n, err
}

// Rejected lists the deliveries that were given up.
func (s *Store) Rejected() (all []evidence.OutboxEntry, err error) {
	err = s.eachEntry(func(e evidence.OutboxEntry) {
		if e.Rejected {
			all = append(all, e)
		}
	})
	return all, err
}

func (s *Store) eachEntry(f func(evidence.OutboxEntry)) error {
	err := s.view(func(txn *badger.Txn) error {
		return eachValue(txn, outboxPrefix, false, func(_, v []byte) error {
			var e evidence.OutboxEntry
			if err := json.Unmarshal(v, &e); err != nil {
				return fmt.Errorf("%w: %w", ErrDamaged, err)
			}
			f(e)
			return nil
		})
	})
	if err != nil {
		return fmt.Errorf("read outbox: %w", err)
	}
	return nil
}

// Done removes a delivery that was made.
func (s *Store) Done(signal, id string) error {
	err := s.update(func(txn *badger.Txn) error { return txn.Delete(outboxKey(signal, id)) })
	if err != nil {
		return fmt.Errorf("remove %s of incident %s from the outbox: %w", signal, id, err)
	}
	return nil
}

// Retry replaces the delivery's entry: attempts, next time, last error. If the
// incident was deleted meanwhile there is none, and none is made.
func (s *Store) Retry(e evidence.OutboxEntry) error {
	err := s.update(func(txn *badger.Txn) error {
		_, err := txn.Get(outboxKey(e.Signal, e.Incident))
		if errors.Is(err, badger.ErrKeyNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		return setEntry(txn, e)
	})
	if err != nil {
		return fmt.Errorf("write %s of incident %s to the outbox: %w", e.Signal, e.Incident, err)
	}
	return nil
}
