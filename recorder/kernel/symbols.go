package kernel

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
)

// mostSymbols bounds the names that are remembered: segments are dropped in few
// places.
const mostSymbols = 1024

// symbols names the functions of the kernel that addresses lie in.
type symbols struct {
	path string

	walking sync.Mutex // one walk at a time; names are told meanwhile
	mu      sync.Mutex
	names   map[uint64]string
}

func newSymbols(proc string) *symbols {
	return &symbols{path: filepath.Join(proc, "kallsyms"), names: map[uint64]string{}}
}

// name is empty if the address was not looked up or lies in no function that is
// known.
func (s *symbols) name(addr uint64) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.names[addr]
}

// lookUp finds the names of addresses, those that are new in one walk over some
// 200,000 lines. Without CAP_SYSLOG all addresses there are 0 and there are no
// names (kernel.kptr_restrict, proc(5)).
func (s *symbols) lookUp(addrs []uint64) {
	s.walking.Lock()
	defer s.walking.Unlock()
	unknown := s.unknown(addrs)
	if len(unknown) == 0 {
		return
	}
	found := make([]string, len(unknown))
	if f, err := os.Open(s.path); err == nil {
		found = findSymbols(f, unknown)
		_ = f.Close()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, a := range unknown {
		s.names[a] = found[i]
	}
}

// unknown are the addresses that were not looked up, in order, each once.
func (s *symbols) unknown(addrs []uint64) []uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	addrs = slices.Clone(addrs)
	slices.Sort(addrs)
	addrs = slices.Compact(addrs)
	unknown := slices.DeleteFunc(slices.Clone(addrs), func(a uint64) bool { _, ok := s.names[a]; return ok })
	if len(unknown) > 0 && len(s.names)+len(unknown) > mostSymbols {
		clear(s.names)
		return addrs
	}
	return unknown
}

// symbol is a line of kallsyms: address, in digits, and name.
type symbol struct{ at, name []byte }

// findSymbols finds the functions that addresses, in ascending order, lie in: for
// each the last one that begins at or before it. Lines are
// "ffffffff81a00000 t name [module]", not in order. Addresses have 16 digits on
// 64-bit machines, so that they compare as text.
func findSymbols(r io.Reader, addrs []uint64) []string {
	const digits = 16
	want, best := make([][]byte, len(addrs)), make([]symbol, len(addrs))
	for i, a := range addrs {
		want[i], best[i].at = fmt.Appendf(nil, "%016x", a), bytes.Repeat([]byte{'0'}, digits)
	}
	for lines := bufio.NewScanner(r); lines.Scan(); {
		line := lines.Bytes()
		if len(line) < digits+4 || line[digits+1]|0x20 != 't' {
			continue
		}
		at := line[:digits]
		i, _ := slices.BinarySearchFunc(want, at, bytes.Compare) // the first address behind the symbol
		if i == len(want) || bytes.Compare(at, best[i].at) <= 0 {
			continue
		}
		name, _, _ := bytes.Cut(line[digits+3:], []byte{'\t'})
		best[i].at, best[i].name = append(best[i].at[:0], at...), append(best[i].name[:0], name...)
	}
	names := make([]string, len(addrs))
	for i := range best {
		if i > 0 && len(best[i].name) == 0 { // none between the two addresses
			best[i] = best[i-1]
		}
		names[i] = string(best[i].name)
	}
	return names
}
