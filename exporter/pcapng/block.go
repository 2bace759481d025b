package pcapng

import (
	"encoding/binary"
	"math"
)

// The blocks and options of a pcapng file that are written here
// (draft-ietf-opsawg-pcapng), in little endian.
const (
	blockSection    = 0x0a0d0d0a
	blockInterface  = 1
	blockStatistics = 5
	blockPacket     = 6

	byteOrderMagic = 0x1a2b3c4d
	linkTypeSLL2   = 276

	optEnd     = 0
	optComment = 1

	optHardware    = 2
	optOS          = 3
	optApplication = 4

	optName        = 2
	optDescription = 3
	optResolution  = 9

	optFlags     = 2
	optDropCount = 4

	optReceived = 4
	optDropped  = 5
)

// block is a block that is being made; its bytes are reused for the next one.
type block struct {
	b       []byte
	options bool
}

// begin begins a block of a type; its length is written by end.
func (k *block) begin(kind uint32) {
	k.b = binary.LittleEndian.AppendUint32(k.b[:0], kind)
	k.u32(0)
	k.options = false
}

func (k *block) u16(v uint16) { k.b = binary.LittleEndian.AppendUint16(k.b, v) }
func (k *block) u32(v uint32) { k.b = binary.LittleEndian.AppendUint32(k.b, v) }

// time writes nanoseconds since 1970 as the format splits them.
func (k *block) time(nanos int64) {
	k.u32(uint32(uint64(nanos) >> 32))
	k.u32(uint32(nanos))
}

func putU32(b []byte, v uint32) { binary.LittleEndian.PutUint32(b, v) }

// pad fills up to a multiple of 4 bytes.
func (k *block) pad() {
	for len(k.b)%4 != 0 {
		k.b = append(k.b, 0)
	}
}

func (k *block) option(code uint16, length int) {
	k.options = true
	k.u16(code)
	k.u16(uint16(min(length, math.MaxUint16)))
}

// text adds an option of UTF-8 text, nothing if it is empty.
func (k *block) text(code uint16, s string) {
	if s == "" {
		return
	}
	s = s[:min(len(s), math.MaxUint16)]
	k.option(code, len(s))
	k.b = append(k.b, s...)
	k.pad()
}

func (k *block) option32(code uint16, v uint32) {
	k.option(code, 4)
	k.u32(v)
}

func (k *block) option64(code uint16, v uint64) {
	k.option(code, 8)
	k.b = binary.LittleEndian.AppendUint64(k.b, v)
}

func (k *block) option8(code uint16, v uint8) {
	k.option(code, 1)
	k.b = append(k.b, v)
	k.pad()
}

// end completes the block and returns its bytes, valid until the next begin.
func (k *block) end() []byte {
	if k.options {
		k.u32(optEnd)
	}
	total := uint32(len(k.b) + 4)
	k.u32(total)
	binary.LittleEndian.PutUint32(k.b[4:], total)
	return k.b
}
