package recorder

import (
	"encoding/binary"
	"math/bits"
)

// A chunk keeps its packets by column: what is alike stands together, and
// compresses well.
const (
	colMask  = iota // one byte a packet
	colMore         // second and third mask
	colTime         // time since the packet before
	colFlow         // which flow
	colNew          // the ends of a new one
	colSeq          // seq, ack, SACK edges
	colValue        // small values: IP ID, window, payload, ...
	colStamp        // timestamps
	colRaw          // whole packets, paths and layouts
	columns
)

const (
	// rawBytes is the size of a chunk before compression; it is sealed soon after.
	rawBytes = 960 << 10
	// checkEvery is the number of packets between two looks at the sizes; slack is
	// what they may need: of a packet at most maxRecord bytes.
	checkEvery = 32
	maxRecord  = maxHeader + 128
	slack      = checkEvery * maxRecord
)

// column is an append-only buffer with room for a record that the caller made
// sure of.
type column struct {
	b []byte
	n int
}

// columnBytes is the room of each column.
const columnBytes = rawBytes + slack

func (c *column) bytes() []byte { return c.b[:c.n] }

func (c *column) byte(v uint8) {
	c.b[c.n] = v
	c.n++
}

func (c *column) uvarint(v uint64) {
	switch n := c.n; {
	case v < 1<<7:
		c.b[n] = uint8(v)
		c.n = n + 1
	case v < 1<<14:
		binary.LittleEndian.PutUint16(c.b[n:], uint16(v&0x7f|0x80|v<<1&0x7f00))
		c.n = n + 2
	default:
		c.longVarint(v)
	}
}

func (c *column) longVarint(v uint64) {
	for v >= 0x80 {
		c.b[c.n] = uint8(v) | 0x80
		v >>= 7
		c.n++
	}
	c.b[c.n] = uint8(v)
	c.n++
}

// signed writes a difference, small in either direction, with few bytes.
func (c *column) signed(v int64) { c.uvarint(uint64(v)<<1 ^ uint64(v>>63)) }

func (c *column) u16(v uint16) {
	binary.LittleEndian.PutUint16(c.b[c.n:], v)
	c.n += 2
}

func (c *column) u32(v uint32) {
	binary.LittleEndian.PutUint32(c.b[c.n:], v)
	c.n += 4
}

func (c *column) u64(v uint64) {
	binary.LittleEndian.PutUint64(c.b[c.n:], v)
	c.n += 8
}

func (c *column) raw(v []byte) { c.n += copy(c.b[c.n:], v) }

// cursor reads a column. Behind its end it reads zeros and sets bad.
type cursor struct {
	b []byte
	// at is how many bytes were read: an offset, for the bytes themselves are a
	// pointer, of which each change costs more.
	at int
	// bad is one for all columns of a chunk: a look at it tells of each.
	bad *bool
}

func (c *cursor) left() int { return len(c.b) - c.at }

func (c *cursor) spoil() { *c.bad = true }

func (c *cursor) take(n int) []byte {
	if n > c.left() {
		c.spoil()
		return make([]byte, n)
	}
	c.at += n
	return c.b[c.at-n : c.at]
}

func (c *cursor) byte() uint8 {
	at := c.at
	if at >= len(c.b) {
		c.spoil()
		return 0
	}
	c.at = at + 1
	return c.b[at]
}

// uvarint reads numbers of up to four bytes without a branch on their length, which
// nothing foretells.
func (c *cursor) uvarint() uint64 {
	if c.left() < 8 {
		return c.longUvarint()
	}
	w := binary.LittleEndian.Uint64(c.b[c.at:])
	last := bits.TrailingZeros64(^w & 0x8080808080808080) // the bit that ends it
	if last > 31 {
		return c.longUvarint()
	}
	c.at += last>>3 + 1
	w &= 1<<last - 1
	return w&0x7f | w>>1&(0x7f<<7) | w>>2&(0x7f<<14) | w>>3&(0x7f<<21)
}

func (c *cursor) longUvarint() uint64 {
	v, n := binary.Uvarint(c.b[c.at:])
	if n <= 0 {
		c.spoil()
		return 0
	}
	c.at += n
	return v
}

func (c *cursor) signed() int64 {
	v := c.uvarint()
	return int64(v>>1) ^ -int64(v&1)
}

func (c *cursor) u16() uint16 { return binary.LittleEndian.Uint16(c.take(2)) }
func (c *cursor) u32() uint32 { return binary.LittleEndian.Uint32(c.take(4)) }
func (c *cursor) u64() uint64 { return binary.LittleEndian.Uint64(c.take(8)) }
