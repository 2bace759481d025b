package store

import (
	"fmt"
	"iter"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"
)

// What one measurement is of: a window of 64 MiB in chunks of the largest size
// that the recorder makes.
const memoryChunks, memoryChunkBytes = 96, 700 << 10

// childMemory prints this process' memory: before the store is opened, at most
// while several incidents are put and read, and after retention has rewritten
// value log files.
func childMemory(dir string) error {
	before := memory()
	s, err := Open(Config{Dir: dir, MaxBytes: 200 << 20})
	if err != nil {
		return err
	}
	peak := before
	for n := range byte(4) {
		inc := incidentAt(noon.Add(time.Duration(n)*time.Minute), 1)
		if err := s.Put(inc, peak.watch(memoryWindow(uint64(n)))); err != nil {
			return err
		}
		for _, err := range peak.watch(s.Chunks(inc.ID)) {
			if err != nil {
				return err
			}
		}
		if _, err := s.Retain(noon); err != nil {
			return err
		}
	}
	after := memory()
	fmt.Println(before.anon, before.file, peak.anon, peak.file, after.anon, after.file)
	return nil
}

// usedMemory is in KiB: anonymous memory and mapped files.
type usedMemory struct{ anon, file int }

func memory() (m usedMemory) {
	status, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(status)) {
		_, _ = fmt.Sscanf(line, "RssAnon: %d kB", &m.anon)
		_, _ = fmt.Sscanf(line, "RssFile: %d kB", &m.file)
	}
	return m
}

// watch looks at the memory at each step.
func (m *usedMemory) watch(chunks iter.Seq2[[]byte, error]) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for c, err := range chunks {
			now := memory()
			m.anon, m.file = max(m.anon, now.anon), max(m.file, now.file)
			if !yield(c, err) {
				return
			}
		}
	}
}

// memoryWindow yields random chunks in one buffer.
func memoryWindow(seed uint64) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		src := rand.NewChaCha8([32]byte{byte(seed)})
		chunk := make([]byte, memoryChunkBytes)
		for range memoryChunks {
			_, _ = src.Read(chunk)
			if !yield(chunk, nil) {
				return
			}
		}
	}
}

// TestMemory bounds what the store needs, however large the window is.
func TestMemory(t *testing.T) {
	skipRace(t)
	out, err := child(t, "memory", t.TempDir()).Output()
	if err != nil {
		t.Fatal(err)
	}
	var before, peak, after usedMemory
	if _, err := fmt.Sscan(string(out), &before.anon, &before.file, &peak.anon, &peak.file, &after.anon, &after.file); err != nil {
		t.Fatal(err)
	}
	t.Logf("KiB of anonymous memory and mapped files: before %v, at most %v, in the end %v", before, peak, after)
	const mib = 1 << 10
	if grew := peak.anon - before.anon - memoryChunkBytes>>10; grew > 12*mib {
		t.Errorf("%d KiB of anonymous memory beside one chunk", grew)
	}
	if grew := peak.anon + peak.file - before.anon - before.file; grew > 20*mib {
		t.Errorf("resident memory grew by %d KiB for a while", grew)
	}
	if grew := after.anon + after.file - before.anon - before.file; grew > 12*mib {
		t.Errorf("resident memory grew by %d KiB", grew)
	}
}
