package recorder

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/klauspost/compress/s2"
)

// The chunk format, version 2; docs/chunk-format.md describes it.
const (
	chunkMagic   = "TCPC"
	chunkVersion = 2
	chunkHeader  = 80 + 8*columns
	sumFrom      = 12
	// maxColumn bounds what a reader makes room for.
	maxColumn = rawBytes + slack
	// MaxChunkBytes bounds a sealed chunk.
	MaxChunkBytes = 1 << 20
)

// ErrDamaged is returned for a chunk that does not decode.
var ErrDamaged = errors.New("chunk is damaged")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Clock is one look at three clocks, in nanoseconds: with it, times from the
// kernel's other clocks can be laid beside the packets, and steps of the
// wall clock show.
type Clock struct{ Realtime, Monotonic, Boottime int64 }

// head is the decoded header of a chunk.
type head struct {
	packets, resets, sightings uint32
	clock                      Clock
	first, last                int64 // nanoseconds of the earliest and latest packet
}

func (h *head) count(nanos int64, o *outcome) {
	if h.packets == 0 {
		h.first, h.last = nanos, nanos
	}
	h.first, h.last = min(h.first, nanos), max(h.last, nanos)
	h.packets++
	if o.again {
		h.sightings++
	} else if o.reset {
		h.resets++
	}
}

// sealedSize bounds the size of a sealed chunk.
func (e *encoder) sealedSize() int {
	n := chunkHeader
	for i := range e.columns {
		n += max(e.columns[i].n, s2.MaxEncodedLen(e.columns[i].n))
	}
	return n
}

// seal writes the chunk into b, which has the size for it, and returns it. Each
// column is compressed by itself, or stored as it is where that is no shorter.
func (e *encoder) seal(b []byte, compress bool) []byte {
	at := chunkHeader
	for i := range e.columns {
		c := e.columns[i].bytes()
		n := 0
		if compress && len(c) > 0 && i != colTime { // times are noise
			n = len(s2.Encode(b[at:], c))
		}
		if n == 0 || n >= len(c) {
			n = copy(b[at:], c)
		}
		binary.LittleEndian.PutUint32(b[80+8*i:], uint32(len(c)))
		binary.LittleEndian.PutUint32(b[84+8*i:], uint32(n))
		at += n
	}
	e.head.put(b[:at])
	return b[:at]
}

func (h *head) put(b []byte) {
	copy(b, chunkMagic)
	binary.LittleEndian.PutUint16(b[4:], chunkVersion)
	binary.LittleEndian.PutUint16(b[6:], chunkHeader)
	for i, v := range [...]uint32{h.packets, uint32(len(b)), h.resets, h.sightings} {
		binary.LittleEndian.PutUint32(b[12+4*i:], v)
	}
	binary.LittleEndian.PutUint32(b[28:], 0)
	for i, v := range [...]int64{h.clock.Realtime, h.clock.Monotonic, h.clock.Boottime, h.first, h.last, 0} {
		binary.LittleEndian.PutUint64(b[32+8*i:], uint64(v))
	}
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b[sumFrom:], castagnoli))
}

// parseHead checks a chunk as a whole and reads its header.
func parseHead(b []byte) (h head, err error) {
	if len(b) < chunkHeader || string(b[:4]) != chunkMagic {
		return h, fmt.Errorf("%w: no chunk header in %d bytes", ErrDamaged, len(b))
	}
	if v := binary.LittleEndian.Uint16(b[4:]); v != chunkVersion {
		return h, fmt.Errorf("%w: version %d, want %d: it was written by another release", ErrDamaged, v, chunkVersion)
	}
	if n := binary.LittleEndian.Uint32(b[16:]); int64(n) != int64(len(b)) {
		return h, fmt.Errorf("%w: %d bytes of %d", ErrDamaged, len(b), n)
	}
	if crc32.Checksum(b[sumFrom:], castagnoli) != binary.LittleEndian.Uint32(b[8:]) {
		return h, fmt.Errorf("%w: wrong checksum", ErrDamaged)
	}
	u := func(i int) uint32 { return binary.LittleEndian.Uint32(b[i:]) }
	at := func(i int) int64 { return int64(binary.LittleEndian.Uint64(b[i:])) }
	h.packets, h.resets, h.sightings = u(12), u(20), u(24)
	if h.packets > maxPackets {
		return h, fmt.Errorf("%w: %d packets, more than a chunk can hold", ErrDamaged, h.packets)
	}
	h.clock = Clock{at(32), at(40), at(48)}
	h.first, h.last = at(56), at(64)
	return h, nil
}

// columnsOf decompresses the columns of a chunk with a good header into buf,
// which grows as needed and is returned.
func columnsOf(b, buf []byte) (c [columns]cursor, _ []byte, err error) {
	total := 0
	for i := range columns {
		n := binary.LittleEndian.Uint32(b[80+8*i:])
		if n > maxColumn {
			return c, buf, fmt.Errorf("%w: column %d of %d bytes", ErrDamaged, i, n)
		}
		total += int(n)
	}
	if cap(buf) < total {
		buf = make([]byte, total)
	}
	rest, out := b[chunkHeader:], buf[:total]
	for i := range columns {
		raw, n := int(binary.LittleEndian.Uint32(b[80+8*i:])), int(binary.LittleEndian.Uint32(b[84+8*i:]))
		if n > len(rest) || n > raw {
			return c, buf, fmt.Errorf("%w: column %d is cut off", ErrDamaged, i)
		}
		if err := expand(out[:raw], rest[:n]); err != nil {
			return c, buf, fmt.Errorf("%w: column %d: %w", ErrDamaged, i, err)
		}
		c[i].b = out[:raw]
		rest, out = rest[n:], out[raw:]
	}
	return c, buf, nil
}

func expand(to, from []byte) error {
	if len(from) == len(to) {
		copy(to, from)
		return nil
	}
	n, err := s2.DecodedLen(from)
	if err != nil || n != len(to) {
		return fmt.Errorf("not %d bytes long (%v)", len(to), err)
	}
	_, err = s2.Decode(to, from)
	return err
}

// ChunkClock reads the clocks of the moment a chunk was sealed.
func ChunkClock(chunk []byte) (Clock, error) {
	h, err := parseHead(chunk)
	return h.clock, err
}
