package store

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tcpcoroner/evidence"
)

// childEnv makes the test binary play a daemon that a test kills or measures.
const childEnv, childDirEnv = "STORE_TEST_CHILD", "STORE_TEST_DIR"

func TestMain(m *testing.M) {
	switch os.Getenv(childEnv) {
	case "":
		os.Exit(m.Run())
	case "put":
		fail(childPuts(os.Getenv(childDirEnv)))
	case "idle":
		fail(childIdle(os.Getenv(childDirEnv)))
	case "memory":
		fail(childMemory(os.Getenv(childDirEnv)))
	}
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func child(t *testing.T, mode, dir string) *exec.Cmd {
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+mode, childDirEnv+"="+dir)
	cmd.Stderr = os.Stderr
	return cmd
}

// childPuts puts incidents for ever, new ones and old ones again, deletes some
// and says on standard output what is durable.
func childPuts(dir string) error {
	s, err := Open(Config{Dir: dir, MaxBytes: 24 << 20})
	if err != nil {
		return err
	}
	for n := 0; ; n++ {
		inc := incidentAt(time.Now(), byte(n))
		if err := s.Put(inc, each(seededChunks(inc, 0)), "traces", "logs"); err != nil {
			return err
		}
		fmt.Printf("put %s\n", inc.ID)
		if n%3 == 0 {
			inc.Joined = 1
			if err := s.Put(inc, each(seededChunks(inc, 1)), "traces"); err != nil {
				return err
			}
			fmt.Printf("again %s\n", inc.ID)
		}
		if n%7 == 6 {
			if _, err := s.Retain(time.Now()); err != nil {
				return err
			}
		}
	}
}

// seededChunks can be made again from the incident's id alone; sizes from
// nothing to 256 KiB, up to 3 MiB in all.
func seededChunks(inc *evidence.Incident, round uint64) [][]byte {
	var seed [32]byte
	copy(seed[:], inc.ID)
	seed[31] = byte(round)
	src := rand.NewChaCha8(seed)
	r := rand.New(src)
	chunks := make([][]byte, 1+r.IntN(24))
	for i := range chunks {
		chunks[i] = make([]byte, r.IntN(256<<10))
		_, _ = src.Read(chunks[i])
	}
	return chunks
}

// TestCrash kills the writer at random instants. Afterwards everything that it
// called durable is whole, and everything that is listed is whole.
func TestCrash(t *testing.T) {
	const kills = 30
	dir := t.TempDir()
	promised := map[string]bool{} // id: put again
	var orphans uint64
	for n := range kills {
		killWriter(t, dir, promised, n%3 == 0)
		orphans += checkAfterCrash(t, dir, promised)
	}
	t.Logf("%d kills, %d incidents promised, %d blocks of unfinished puts removed", kills, len(promised), orphans)
	if len(promised) < kills/2 || orphans == 0 {
		t.Error("the kills did not hit: nothing was proved")
	}
}

// killWriter kills the writer at a random instant, soon after its start or
// after its first incident.
func killWriter(t *testing.T, dir string, promised map[string]bool, soon bool) {
	t.Helper()
	cmd := child(t, "put", dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill := func(within time.Duration) {
		time.AfterFunc(rand.N(within), func() { _ = cmd.Process.Kill() })
	}
	if soon {
		kill(100 * time.Millisecond)
	}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		what, id, _ := strings.Cut(lines.Text(), " ")
		promised[id] = what == "again"
		if !soon {
			soon = true
			kill(400 * time.Millisecond)
		}
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("the writer ended by itself: %v", err)
	}
}

func checkAfterCrash(t *testing.T, dir string, promised map[string]bool) (orphans uint64) {
	t.Helper()
	s := open(t, Config{Dir: dir})
	defer func() { _ = s.Close() }()
	list, err := s.List(0)
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]bool{}
	for _, h := range list {
		listed[h.ID] = true
		checkWhole(t, s, h)
		if promised[h.ID] && h.Joined != 1 {
			t.Errorf("incident %s: the second put was promised, the first is there", h.ID)
		}
	}
	oldest := ""
	if len(list) > 0 {
		oldest = list[len(list)-1].ID
	}
	for id := range promised {
		// What is older than all that is left went by retention, oldest first.
		if !listed[id] && id > oldest {
			t.Errorf("incident %s was promised and is gone", id)
		}
	}
	st, err := s.Stats()
	if err != nil {
		t.Fatal(err)
	}
	return st.Orphans
}

func checkWhole(t *testing.T, s *Store, h *evidence.Incident) {
	t.Helper()
	inc, err := s.Get(h.ID)
	if err != nil {
		t.Error(err)
		return
	}
	chunks, err := readAll(s, h.ID)
	if err != nil {
		t.Error(err)
		return
	}
	want := seededChunks(inc, uint64(inc.Joined))
	if h.Joined != inc.Joined || len(chunks) != len(want) {
		t.Errorf("incident %s: head %d, incident %d, %d chunks, want %d", h.ID, h.Joined, inc.Joined, len(chunks), len(want))
		return
	}
	for i := range want {
		if !bytes.Equal(chunks[i], want[i]) {
			t.Errorf("incident %s: chunk %d differs", h.ID, i)
		}
	}
	for _, signal := range []string{"traces", "logs"} {
		if countKeys(t, s, string(outboxKey(signal, h.ID))) != 1 {
			t.Errorf("incident %s without its outbox entry for %s", h.ID, signal)
		}
	}
}

func diskUsage(t *testing.T, dir string) (n int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		n += st.Blocks * 512
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// smallDisk mounts a file system of its own.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root to mount a tmpfs")
		}
		t.Skip("needs root to mount a tmpfs")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatalf("mount tmpfs on %s: %v", dir, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// A full disk refuses incidents with a sentence; it does not kill the daemon,
// and what is stored stays readable.
func TestFullDisk(t *testing.T) {
	disk := smallDisk(t, "160m")
	cfg := Config{Dir: filepath.Join(disk, "db"), MaxBytes: 20 << 20}
	s := open(t, cfg)
	var last *evidence.Incident
	var err error
	for i := 0; err == nil; i++ {
		last = incidentAt(noon.Add(time.Duration(i)*time.Minute), 1)
		err = s.Put(last, each(randomChunks(1, 32, 256<<10)), "traces")
	}
	if !errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), disk) {
		t.Fatal(err)
	}
	t.Log(err)
	if _, err := s.Get(last.ID); !errors.Is(err, ErrNotFound) {
		t.Errorf("the refused incident: %v", err)
	}
	// Retention makes room again.
	if n, err := s.Retain(noon); err != nil || n == 0 {
		t.Fatal(n, err)
	}
	if err := s.Put(last, each(randomChunks(1, 32, 256<<10)), "traces"); err != nil {
		t.Fatal(err)
	}
	fillDisk(t, disk)
	for _, err := range []error{
		s.Put(incidentAt(noon.Add(time.Hour), 1), nil), s.Done("traces", last.ID), s.Delete(last.ID),
	} {
		if !errors.Is(err, ErrNoSpace) {
			t.Errorf("on a disk that others filled: %v", err)
		}
	}
	if c, err := readAll(s, last.ID); err != nil || len(c) != 32 {
		t.Error(err)
	}
	if err := s.Close(); !errors.Is(err, ErrNoSpace) {
		t.Errorf("close on a full disk: %v", err)
	}
	if err := os.Remove(filepath.Join(disk, "others")); err != nil {
		t.Fatal(err)
	}
}

// fillDisk is what other programs do.
func fillDisk(t *testing.T, disk string) {
	t.Helper()
	f, err := os.Create(filepath.Join(disk, "others"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for err == nil {
		_, err = f.Write(make([]byte, 1<<20))
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
}
