package recorder

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// pageBytes is the piece of memory that sealed chunks are cut into: no hole is
// ever too small for the next chunk.
const pageBytes = 8 << 10

// pages is the memory of the history, taken from the kernel once and outside of
// the Go heap, which would otherwise let garbage grow in proportion to it. The
// kernel gives a page of it when it is first written.
type pages struct {
	memory []byte
	free   []uint32
}

func newPages(size int) (*pages, error) {
	n := size / pageBytes
	memory, err := anonymous(n * pageBytes)
	if err != nil {
		return nil, err
	}
	p := &pages{memory: memory, free: make([]uint32, 0, n)}
	for i := n - 1; i >= 0; i-- { // the first page is taken first
		p.free = append(p.free, uint32(i))
	}
	return p, nil
}

// anonymous is memory outside of the Go heap.
func anonymous(n int) ([]byte, error) {
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("take %d bytes of memory for packets: %w", n, err)
	}
	return b, nil
}

func (p *pages) total() int { return len(p.memory) / pageBytes }

func (p *pages) page(n uint32) []byte {
	return p.memory[int(n)*pageBytes : (int(n)+1)*pageBytes]
}

// put copies b into free pages; there must be enough of them.
func (p *pages) put(b []byte) []uint32 {
	n := (len(b) + pageBytes - 1) / pageBytes
	taken := append([]uint32(nil), p.free[len(p.free)-n:]...)
	p.free = p.free[:len(p.free)-n]
	for i, page := range taken {
		copy(p.page(page), b[i*pageBytes:])
	}
	return taken
}

func (p *pages) giveBack(taken []uint32) { p.free = append(p.free, taken...) }

func (p *pages) close() error { return unix.Munmap(p.memory) }

// room tells whether n bytes fit.
func (p *pages) room(n int) bool { return len(p.free)*pageBytes >= n }
