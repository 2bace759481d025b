package kernel

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
)

// mostSymbols bounds the addresses that are looked up: each costs a walk over
// some 200,000 lines, and segments are dropped in few places.
const mostSymbols = 64

// symbols names the functions of the kernel that addresses lie in.
type symbols struct {
	path string

	mu    sync.Mutex
	names map[uint64]string
}

func newSymbols(proc string) *symbols {
	return &symbols{path: filepath.Join(proc, "kallsyms"), names: map[uint64]string{}}
}

// name is empty if the function is not known: addresses are shown to who has
// CAP_SYSLOG only (kernel.kptr_restrict, proc(5)).
func (s *symbols) name(addr uint64) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	name, ok := s.names[addr]
	if ok || len(s.names) >= mostSymbols {
		return name
	}
	if f, err := os.Open(s.path); err == nil {
		name = findSymbol(f, addr)
		_ = f.Close()
	}
	s.names[addr] = name
	return name
}

// findSymbol finds the function that addr lies in: the last one that begins at or
// before it. Lines are "ffffffff81a00000 t name [module]", not in order. Addresses
// have 16 digits on 64-bit machines, so that they compare as text.
func findSymbol(r io.Reader, addr uint64) (name string) {
	const digits = 16
	want, best := fmt.Appendf(nil, "%016x", addr), bytes.Repeat([]byte{'0'}, digits)
	for lines := bufio.NewScanner(r); lines.Scan(); {
		line := lines.Bytes()
		if len(line) < digits+4 || line[digits+1]|0x20 != 't' {
			continue
		}
		at := line[:digits]
		if bytes.Compare(at, want) > 0 || bytes.Compare(at, best) <= 0 {
			continue
		}
		copy(best, at)
		symbol, _, _ := bytes.Cut(line[digits+3:], []byte{'\t'})
		name = string(symbol)
	}
	return name
}
