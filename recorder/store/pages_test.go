package store

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// mapped maps a new file of random bytes, written through the mapping and not
// synced.
func mapped(t *testing.T, path string, flags int) (memory, want []byte) {
	t.Helper()
	want = randomChunks(7, 1, 1<<20)[0]
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := f.Truncate(int64(len(want))); err != nil {
		t.Fatal(err)
	}
	memory, err = unix.Mmap(int(f.Fd()), 0, len(want), unix.PROT_READ|unix.PROT_WRITE, flags)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(memory) })
	copy(memory, want)
	return memory, want
}

// resident is what of path is mapped in (proc_pid_smaps(5)), in KiB.
func resident(t *testing.T, path string) int {
	t.Helper()
	list, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	_, text, ok := strings.Cut(string(list), path+"\n")
	if !ok {
		t.Fatalf("%s is not mapped", path)
	}
	var kib int
	_, text, _ = strings.Cut(text, "\nRss:")
	if _, err := fmt.Sscan(text, &kib); err != nil {
		t.Fatal(err)
	}
	return kib
}

// What was written through a shared mapping and never synced survives, for this
// mapping, for other readers of the file, and on the way to the disk. Private
// memory would not: it is left alone.
func TestDropPagesKeepsData(t *testing.T) {
	dir := t.TempDir()
	shared, private, other := filepath.Join(dir, "000001.vlog"), filepath.Join(dir, "000002.vlog"), filepath.Join(dir, "00001.mem")
	memory, want := mapped(t, shared, unix.MAP_SHARED)
	ours, _ := mapped(t, private, unix.MAP_PRIVATE)
	_, _ = mapped(t, other, unix.MAP_SHARED)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	s := &Store{cfg: Config{Dir: link, Maps: "/proc/self/maps"}}
	s.dropPages()
	if n, m, o := resident(t, shared), resident(t, private), resident(t, other); n != 0 || m == 0 || o == 0 {
		t.Errorf("resident: %d KiB shared, %d private, %d of another file", n, m, o)
	}
	if !bytes.Equal(ours, want) {
		t.Error("private memory was erased")
	}
	check := func(when string) {
		t.Helper()
		text, err := os.ReadFile(shared)
		if err != nil || !bytes.Equal(text, want) {
			t.Errorf("%s the file differs: %v", when, err)
		}
		if !bytes.Equal(memory, want) {
			t.Errorf("%s the mapping differs", when)
		}
	}
	check("after the drop")
	s.dropPages()
	evict(t, shared)
	check("read from the disk")
	for _, maps := range []string{"", filepath.Join(dir, "none")} {
		(&Store{cfg: Config{Dir: dir, Maps: maps}}).dropPages() // costs nothing but memory
	}
}

// evict writes a file's dirty pages and takes it out of the page cache.
func evict(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		t.Fatal(err)
	}
}

func TestParseMaps(t *testing.T) {
	const dir = "/var/lib/our data/db"
	for line, want := range map[string][]mapping{
		"7f00-7f10 rw-s 00000000 fe:01 123   /var/lib/our data/db/000001.vlog\n":  {{0x7f00, 0x7f10}},
		"7f00-7f10 r--s 00000000 fe:01 123 /var/lib/our data/db/000001.vlog":      {{0x7f00, 0x7f10}},
		"7f00-7f10 rw-p 00000000 fe:01 123 /var/lib/our data/db/000001.vlog\n":    nil,
		"7f00-7f10 rw-s 00000000 fe:01 123 /var/lib/our data/db/00001.mem\n":      nil,
		"7f00-7f10 rw-s 00000000 fe:01 123 /var/lib/our data/db/000001.sst\n":     nil,
		"7f00-7f10 rw-s 00000000 fe:01 123 /var/lib/our data/db2/000001.vlog\n":   nil,
		"7f00-7f10 rw-s 00000000 fe:01 123 /var/lib/our data/db/a/000001.vlog\n":  nil,
		"7f00-7f10 rw-s 00000000 fe:01 123 /x/var/lib/our data/db/000001.vlog\n":  nil,
		"7f00-7f10 rw-s 0 fe:01 123 /var/lib/our data/db/000001.vlog (deleted)\n": nil,
		"7f10-7f00 rw-s 00000000 fe:01 123 /var/lib/our data/db/000001.vlog\n":    nil,
		"7f00 rw-s 00000000 fe:01 123 /var/lib/our data/db/000001.vlog\n":         nil,
		"rw-s /var/lib/our data/db/000001.vlog\n":                                 nil,
		"c000000000-c000400000 rw-p 00000000 00:00 0 \n":                          nil,
	} {
		got := parseMaps(line, dir)
		if d := cmp.Diff(want, got, cmp.AllowUnexported(mapping{})); d != "" {
			t.Errorf("%q: %s", line, d)
		}
	}
}

func FuzzMaps(f *testing.F) {
	f.Add("7f00-7f10 rw-s 00000000 fe:01 123   /db/000001.vlog\n", "/db")
	f.Add("7f00-7f10 rw-p 0 0:0 0\n", "/db")
	f.Fuzz(func(t *testing.T, list, dir string) {
		for _, m := range parseMaps(list, dir) {
			if m.start >= m.end || !strings.Contains(list, "s") {
				t.Error(m)
			}
		}
	})
}
