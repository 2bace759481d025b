package store

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"golang.org/x/sys/unix"

	"tcpcoroner/evidence"
)

// Errors that callers tell apart.
var (
	ErrLocked    = errors.New("another tcpcoroner holds it")
	ErrNoSpace   = errors.New("no space left")
	ErrNotFound  = evidence.ErrNoIncident
	ErrAmbiguous = errors.New("more than one incident")
	ErrDamaged   = errors.New("stored data is damaged")
)

// Config says where incidents are kept and for how long.
type Config struct {
	// Dir is the database's own directory; created with mode 0750 if missing.
	Dir string
	// MaxAge and MaxBytes bound what Retain leaves; 0 means no bound. Bytes are
	// those of the incidents; the files may be larger (see the package comment).
	MaxAge   time.Duration
	MaxBytes uint64
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Logf receives what Badger has to say; nil drops it.
	Logf func(format string, args ...any)
	// Maps is where the kernel lists this process' mappings, "/proc/self/maps" if
	// empty (proc_pid_maps(5)).
	Maps string
}

// Store keeps incidents. It is safe for concurrent use. Unlike other packages'
// constructors Open does work: it takes the directory's lock.
type Store struct {
	cfg Config
	db  *badger.DB
	// mu is held for reading by view and update, one transaction at a time, and for
	// writing by what bears no transaction beside it: reclaim and dropPages.
	mu sync.RWMutex
	// putting is held by the one Put or Delete at a time: two must not take the
	// same generation. It is taken before mu.
	putting sync.Mutex
	dirty   atomic.Bool // something was deleted since the last reclaim

	deleted, undelivered, orphans atomic.Uint64
}

// What Badger may use: an agent beside the application keeps a few incidents,
// not a working set. A memtable of 1 MiB holds the keys of ten or more incidents
// and a transaction of transactionKeys values that are just too small for the
// value log. Values of 1 KiB and more go to the value log, whose small files let
// retention drop whole files instead of rewriting.
const (
	memTableBytes   = 1 << 20
	tableBytes      = 1 << 20
	valueLogBytes   = 16 << 20
	valueThreshold  = 1 << 10
	spaceForUpdate  = 4 << 20
	spaceForReclaim = valueLogBytes/2 + spaceForUpdate
	// spaceForPut is more than removing what a Put leaves that ran out of space needs.
	spaceForPut     = spaceForReclaim + spaceForUpdate
	directoryAccess = unix.R_OK | unix.W_OK | unix.X_OK
)

// badgerOptions: no compactor runs by itself. Badger's look for work every 50 ms,
// for ever (runCompactor in its levels.go); Retain compacts instead. Nothing but
// a compactor takes tables from level 0, so a full level 0 must not stop writes.
func badgerOptions(cfg Config, memTable int64) badger.Options {
	return badger.DefaultOptions(cfg.Dir).
		WithSyncWrites(true).
		WithMemTableSize(memTable).
		WithNumMemtables(2).
		WithBaseTableSize(tableBytes).
		WithNumCompactors(0).
		WithNumLevelZeroTablesStall(math.MaxInt32).
		WithCompression(options.None). // chunks are dense already; without it no block cache is needed
		WithBlockCacheSize(0).
		WithIndexCacheSize(0). // indices stay in memory: they are small here
		WithValueLogFileSize(valueLogBytes).
		WithValueThreshold(valueThreshold).
		WithNumGoroutines(1).
		WithMetricsEnabled(false).
		WithLogger(logger{cfg.Logf})
}

// Open takes the database's directory and removes blocks of unfinished puts.
func Open(cfg Config) (*Store, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Maps == "" {
		cfg.Maps = "/proc/self/maps"
	}
	if err := prepareDir(cfg.Dir); err != nil {
		return nil, err
	}
	if err := needSpace(cfg.Dir, spaceForPut); err != nil {
		return nil, fmt.Errorf("open database %s: %w", cfg.Dir, err)
	}
	left, err := repair(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("open database %s: %w", cfg.Dir, err)
	}
	db, err := openBadger(cfg, left)
	if err != nil {
		return nil, openError(cfg.Dir, err)
	}
	s := &Store{cfg: cfg, db: db}
	if err := s.removeOrphans(); err != nil {
		return nil, errors.Join(fmt.Errorf("remove unfinished incidents from %s: %w", cfg.Dir, err), db.Close())
	}
	s.dropPages()
	return s, nil
}

// openBadger opens the database. Badger replays the memtable's log that a crash
// left into a memtable of the configured size, and ends the process if that is
// too small ("Arena too small"). A log whose size is not the one that this
// release makes is replayed into a large memtable, which Close writes out.
func openBadger(cfg Config, left int64) (*badger.DB, error) {
	if left > 0 && left != 2*memTableBytes { // openMemTable makes it twice as large
		db, err := badger.Open(badgerOptions(cfg, max(left, largestMemTable)))
		if err == nil {
			err = db.Close()
		}
		if err != nil {
			return nil, err
		}
	}
	return badger.Open(badgerOptions(cfg, memTableBytes))
}

// largestMemTable is what release 0.1.0 used.
const largestMemTable = 8 << 20

// Close writes what is in memory and gives the directory back. On a full disk
// it leaves the files as a crash would, for the process to end: everything is in
// the synced logs, and flushing would be the SIGBUS of the package comment.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := needSpace(s.cfg.Dir, memTableBytes+spaceForUpdate)
	if err == nil {
		err = s.db.Close()
	}
	if err != nil {
		return fmt.Errorf("close database %s: %w", s.cfg.Dir, err)
	}
	return nil
}

func prepareDir(dir string) error {
	if dir == "" {
		return errors.New("open database: no directory given: name one with --data")
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return fmt.Errorf("create database directory %s: %w: create it for this user, or give --data another directory", dir, err)
	}
	if err := unix.Access(dir, directoryAccess); err != nil {
		return fmt.Errorf("open database directory %s: %w: make it readable and writable for this user, or give --data another directory", dir, err)
	}
	return nil
}

// repair removes empty log files, and returns the size of the largest memtable's
// log that is left, 0 if there is none. Badger makes a log by creating it and then
// setting its size (ristretto z.OpenMmapFile), and deletes it by truncating
// first; killed between the two it leaves a file without a byte, which its next
// Open refuses ("Create a new file"). Badger's own lock, flock(2) on the
// directory, is held meanwhile: a live database has such files for an instant.
func repair(dir string) (left int64, err error) {
	d, err := os.Open(dir)
	if err != nil {
		return 0, err
	}
	defer func() { _ = d.Close() }() // gives the lock back
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return 0, fmt.Errorf("%w: stop that daemon or give --data another directory", ErrLocked)
	}
	entries, err := d.ReadDir(-1)
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		ext := filepath.Ext(e.Name())
		fi, err := e.Info()
		if err != nil || ext != ".vlog" && ext != ".mem" {
			continue
		}
		if fi.Size() == 0 {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return 0, err
			}
		}
		if ext == ".mem" {
			left = max(left, fi.Size())
		}
	}
	return left, nil
}

// openError: Badger's errors are text only. repair found the directory free an
// instant ago.
func openError(dir string, err error) error {
	if strings.Contains(err.Error(), "Cannot acquire directory lock") {
		return fmt.Errorf("open database %s: %w: stop that daemon or give --data another directory", dir, ErrLocked)
	}
	return fmt.Errorf("open database %s: %w: move the directory away to start with an empty one", dir, err)
}

// needSpace refuses if dir's file system has less than want bytes for us.
func needSpace(dir string, want uint64) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("read free space of %s: %w", dir, err)
	}
	if free := fs.Bavail * uint64(fs.Bsize); free < want {
		return fmt.Errorf("%w: %s has %d MiB free and this needs %d MiB: free some, lower store.max_bytes, or give --data another directory",
			ErrNoSpace, dir, free>>20, (want+1<<20-1)>>20)
	}
	return nil
}

// update is the one door to writing. Others may fill the disk at any time, and
// writing to a mapped page that cannot be allocated is a SIGBUS, not an error.
func (s *Store) update(f func(*badger.Txn) error) error {
	if err := needSpace(s.cfg.Dir, spaceForUpdate); err != nil {
		return err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.db.Update(f)
}

// view is the one door to reading. Neither may be used within the other.
func (s *Store) view(f func(*badger.Txn) error) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.db.View(f)
}

// Stats count what the store holds and what it removed since Open.
type Stats struct {
	Incidents int
	Bytes     uint64
	// Deleted counts removed incidents, Undelivered the outbox entries that went
	// with them, Orphans the blocks of unfinished puts that Open removed.
	Deleted, Undelivered, Orphans uint64
}

// Stats reads the markers; it does not read incidents.
func (s *Store) Stats() (Stats, error) {
	st := Stats{Deleted: s.deleted.Load(), Undelivered: s.undelivered.Load(), Orphans: s.orphans.Load()}
	err := s.eachMarker(func(m marker) error {
		st.Incidents++
		st.Bytes += m.bytes()
		return nil
	})
	return st, err
}

// logger hands Badger's messages on.
type logger struct {
	logf func(string, ...any)
}

func (l logger) print(level, format string, args []any) {
	if l.logf != nil {
		l.logf("badger "+level+": "+strings.TrimSuffix(format, "\n"), args...)
	}
}

func (l logger) Errorf(f string, a ...any)   { l.print("error", f, a) }
func (l logger) Warningf(f string, a ...any) { l.print("warning", f, a) }
func (l logger) Infof(f string, a ...any)    { l.print("info", f, a) }
func (l logger) Debugf(string, ...any)       {}
