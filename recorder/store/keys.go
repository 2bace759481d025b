package store

import (
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/dgraph-io/badger/v4"
)

const (
	markerPrefix = "incident/"
	blocksPrefix = "block/"
	tracePrefix  = "trace/"
	outboxPrefix = "outbox/"
	flushPrefix  = "flush/"

	kindJSON  = "json"
	kindChunk = "chunk"
	kindIndex = "index"
)

func markerKey(id string) []byte   { return []byte(markerPrefix + id) }
func traceKey(trace string) []byte { return []byte(tracePrefix + trace) }

func outboxKey(signal, id string) []byte { return []byte(outboxPrefix + signal + "/" + id) }

func generationPrefix(id string, generation uint32) []byte {
	return fmt.Appendf(nil, "%s%s/%08x/", blocksPrefix, id, generation)
}

// blockKey numbers blocks in hex of fixed width: keys sort as they count.
func blockKey(id string, generation uint32, kind string, n int) []byte {
	return fmt.Appendf(generationPrefix(id, generation), "%s/%08x", kind, n)
}

// parseBlockKey returns the part of a block's key that names its generation.
func parseBlockKey(key string) (id, generation string, ok bool) {
	parts := strings.Split(strings.TrimPrefix(key, blocksPrefix), "/")
	if !strings.HasPrefix(key, blocksPrefix) || len(parts) != 4 {
		return "", "", false
	}
	return parts[0], parts[1], true
}

// isTraceID tells whether s is 32 lower-case hex digits (W3C Trace Context).
func isTraceID(s string) bool {
	_, err := hex.DecodeString(s)
	return err == nil && len(s) == 32 && s == strings.ToLower(s)
}

// eachKey calls f with every key under prefix, without reading values.
func eachKey(txn *badger.Txn, prefix string, f func(key []byte) error) error {
	opt := badger.IteratorOptions{Prefix: []byte(prefix)}
	it := txn.NewIterator(opt)
	defer it.Close()
	for it.Rewind(); it.Valid(); it.Next() {
		if err := f(it.Item().KeyCopy(nil)); err != nil {
			return err
		}
	}
	return nil
}

// eachValue calls f with every key and value under prefix; f must not keep
// them. Reverse begins with the last key.
func eachValue(txn *badger.Txn, prefix string, reverse bool, f func(key, value []byte) error) error {
	it := txn.NewIterator(badger.IteratorOptions{Prefix: []byte(prefix), Reverse: reverse})
	defer it.Close()
	start := []byte(prefix)
	if reverse {
		start = append(start, 0xff)
	}
	for it.Seek(start); it.ValidForPrefix([]byte(prefix)); it.Next() {
		item := it.Item()
		if err := item.Value(func(v []byte) error { return f(item.Key(), v) }); err != nil {
			return err
		}
	}
	return nil
}
