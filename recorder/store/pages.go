package store

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// pageBudget bounds the pages of the value log that are mapped at a time.
type pageBudget struct {
	store *Store
	bytes int
}

// mappedBytes is how much of the value log is touched before it is let go.
const mappedBytes = 2 << 20

func (p *pageBudget) spend(n int) {
	if p.bytes += n; p.bytes >= mappedBytes {
		p.bytes = 0
		p.store.dropPages()
	}
}

// dropPages takes the value log's pages out of this process' resident memory,
// to which they count as long as they are mapped. On a shared mapping of a file
// MADV_DONTNEED only forgets where the pages are: dirty ones are marked so in the
// page cache first and are written as before (zap_present_folio_ptes in
// mm/memory.c; madvise(2)), clean ones stay cached.
//
// On private memory the same call would erase it. So it matters that no address
// in the list has a new owner by the time of the call: Badger unmaps a value log
// file in a transaction or a collection only, and mu excludes both. It unmaps a
// memtable's log and tables at any time in the background; these are small, and
// are left alone.
//
// What cannot be read costs nothing but memory.
func (s *Store) dropPages() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dropPagesLocked()
}

func (s *Store) dropPagesLocked() {
	dir, err := filepath.EvalSymlinks(s.cfg.Dir)
	if err != nil {
		return
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return
	}
	list, err := os.ReadFile(s.cfg.Maps)
	if err != nil {
		return
	}
	for _, m := range parseMaps(string(list), dir) {
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, m.start, m.end-m.start, unix.MADV_DONTNEED)
	}
}

// mapping is a stretch of this process' address space.
type mapping struct{ start, end uintptr }

// parseMaps lists the shared mappings of value log files in dir from the lines of
// proc_pid_maps(5): "start-end perms offset device inode path".
func parseMaps(list, dir string) (all []mapping) {
	for line := range strings.Lines(list) {
		line = strings.TrimSuffix(line, "\n")
		at := strings.Index(line, dir+"/")
		if at < 0 || filepath.Ext(line) != ".vlog" || filepath.Dir(line[at:]) != dir {
			continue
		}
		fields := strings.Fields(line[:at])
		if len(fields) != 5 || len(fields[1]) != 4 || fields[1][3] != 's' {
			continue
		}
		from, to, _ := strings.Cut(fields[0], "-")
		start, err1 := strconv.ParseUint(from, 16, strconv.IntSize)
		end, err2 := strconv.ParseUint(to, 16, strconv.IntSize)
		if err1 == nil && err2 == nil && start < end {
			all = append(all, mapping{uintptr(start), uintptr(end)})
		}
	}
	return all
}
