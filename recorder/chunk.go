package recorder

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"sync/atomic"
	"time"

	"tcpcoroner/evidence"
)

// The chunk format, version 1; docs/chunk-format.md describes it.
const (
	// ChunkBytes is the size of a chunk's memory; a sealed chunk is not longer.
	ChunkBytes   = 256 << 10
	chunkMagic   = "TCPC"
	chunkVersion = 1
	chunkHeader  = 64
	recordHeader = 32
	sumFrom      = 12
)

// ErrDamaged is returned for a chunk that does not decode.
var ErrDamaged = errors.New("chunk is damaged")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Clock is one look at three clocks, in nanoseconds: with it, times from the
// kernel's other clocks can be laid beside the packets, and steps of the
// wall clock show.
type Clock struct{ Realtime, Monotonic, Boottime int64 }

// chunk is a piece of the buffer. Its writer appends to it until it is sealed.
type chunk struct {
	bytes []byte // len is what is used, cap is ChunkBytes
	head  head
	// opened and sealed are monotonic nanoseconds.
	opened, sealed int64
	// pins counts the freezes that need the bytes. Only the writer adds one, and
	// only while it holds the chunk; anybody may take one away.
	pins atomic.Int32
}

// head is the decoded header of a chunk.
type head struct {
	packets, resets uint32
	clock           Clock
	first, last     int64 // nanoseconds of the earliest and latest packet
}

func (c *chunk) reset(mono int64) {
	c.bytes, c.head, c.opened, c.sealed = c.bytes[:chunkHeader], head{}, mono, 0
}

// append adds a record; false if it does not fit.
func (c *chunk) append(m *Meta, header []byte, reset bool) bool {
	at, n := len(c.bytes), recordHeader+len(header)
	if at+n > cap(c.bytes) {
		return false
	}
	c.bytes = c.bytes[:at+n]
	putRecord(c.bytes[at:], m, header)
	c.head.count(m.Nanos, reset)
	return true
}

func (h *head) count(nanos int64, reset bool) {
	if h.packets == 0 {
		h.first, h.last = nanos, nanos
	}
	h.first, h.last = min(h.first, nanos), max(h.last, nanos)
	h.packets++
	if reset {
		h.resets++
	}
}

func putRecord(b []byte, m *Meta, header []byte) {
	_ = b[recordHeader-1]
	binary.LittleEndian.PutUint16(b, uint16(len(header)))
	b[2], b[3] = byte(m.Direction), 0
	binary.LittleEndian.PutUint32(b[4:], m.Interface)
	binary.LittleEndian.PutUint64(b[8:], uint64(m.Nanos))
	binary.LittleEndian.PutUint32(b[16:], m.WireBytes)
	binary.LittleEndian.PutUint16(b[20:], m.LinkType)
	copy(b[22:28], m.SrcMAC[:])
	binary.LittleEndian.PutUint16(b[28:], m.VLAN[0])
	binary.LittleEndian.PutUint16(b[30:], m.VLAN[1])
	copy(b[recordHeader:], header)
}

// seal writes the header and the checksum over all records in b.
func (h *head) seal(b []byte) {
	copy(b, chunkMagic)
	binary.LittleEndian.PutUint16(b[4:], chunkVersion)
	binary.LittleEndian.PutUint16(b[6:], chunkHeader)
	binary.LittleEndian.PutUint32(b[12:], h.packets)
	binary.LittleEndian.PutUint32(b[16:], uint32(len(b)))
	binary.LittleEndian.PutUint32(b[20:], h.resets)
	for i, v := range [...]int64{h.clock.Realtime, h.clock.Monotonic, h.clock.Boottime, h.first, h.last} {
		binary.LittleEndian.PutUint64(b[24+8*i:], uint64(v))
	}
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b[sumFrom:], castagnoli))
}

// parseHead checks a chunk as a whole and reads its header.
func parseHead(b []byte) (h head, err error) {
	if len(b) < chunkHeader || string(b[:4]) != chunkMagic {
		return h, fmt.Errorf("%w: no chunk header in %d bytes", ErrDamaged, len(b))
	}
	if v := binary.LittleEndian.Uint16(b[4:]); v != chunkVersion {
		return h, fmt.Errorf("%w: version %d, want %d", ErrDamaged, v, chunkVersion)
	}
	if n := binary.LittleEndian.Uint32(b[16:]); int64(n) != int64(len(b)) {
		return h, fmt.Errorf("%w: %d bytes of %d", ErrDamaged, len(b), n)
	}
	if crc32.Checksum(b[sumFrom:], castagnoli) != binary.LittleEndian.Uint32(b[8:]) {
		return h, fmt.Errorf("%w: wrong checksum", ErrDamaged)
	}
	at := func(i int) int64 { return int64(binary.LittleEndian.Uint64(b[i:])) }
	h.packets, h.resets = binary.LittleEndian.Uint32(b[12:]), binary.LittleEndian.Uint32(b[20:])
	h.clock = Clock{at(24), at(32), at(40)}
	h.first, h.last = at(48), at(56)
	return h, nil
}

// Decode calls visit for each packet of a sealed chunk in the order of arrival,
// until visit returns false. The packets' headers alias the chunk.
func Decode(chunk []byte, visit func(evidence.Packet) bool) error {
	h, err := parseHead(chunk)
	if err != nil {
		return err
	}
	b := chunk[chunkHeader:]
	for i := range h.packets {
		if len(b) < recordHeader || len(b) < recordHeader+int(binary.LittleEndian.Uint16(b)) {
			return fmt.Errorf("%w: packet %d of %d is cut off", ErrDamaged, i+1, h.packets)
		}
		n := recordHeader + int(binary.LittleEndian.Uint16(b))
		if !visit(parseRecord(b[:n:n])) {
			return nil
		}
		b = b[n:]
	}
	return nil
}

func parseRecord(b []byte) evidence.Packet {
	_ = b[recordHeader-1]
	return evidence.Packet{
		Nanos:     int64(binary.LittleEndian.Uint64(b[8:])),
		Interface: binary.LittleEndian.Uint32(b[4:]),
		WireBytes: binary.LittleEndian.Uint32(b[16:]),
		Direction: evidence.Direction(b[2]),
		LinkType:  binary.LittleEndian.Uint16(b[20:]),
		SrcMAC:    [6]byte(b[22:28]),
		VLAN:      [2]uint16{binary.LittleEndian.Uint16(b[28:]), binary.LittleEndian.Uint16(b[30:])},
		Header:    b[recordHeader:],
	}
}

// ChunkClock reads the clocks of the moment a chunk was sealed.
func ChunkClock(chunk []byte) (Clock, error) {
	h, err := parseHead(chunk)
	return h.clock, err
}

// Packets decodes the packets with from <= time <= to, ordered by time, and
// counts the RST segments among them. A damaged chunk costs only its own
// packets: the others come back together with the error. The packets' headers
// alias the chunks.
func Packets(chunks [][]byte, from, to time.Time) (packets []evidence.Packet, resets int, err error) {
	var damage []error
	packets = make([]evidence.Packet, 0, room(chunks))
	lo, hi := from.UnixNano(), to.UnixNano()
	for i, c := range chunks {
		err := Decode(c, func(p evidence.Packet) bool {
			if p.Nanos >= lo && p.Nanos <= hi {
				packets = append(packets, p)
				if _, reset := Cut(p.Header); reset {
					resets++
				}
			}
			return true
		})
		if err != nil {
			damage = append(damage, fmt.Errorf("decode chunk %d of %d: %w", i+1, len(chunks), err))
		}
	}
	byTime := func(a, b evidence.Packet) int { return int(min(max(a.Nanos-b.Nanos, -1), 1)) }
	if !slices.IsSortedFunc(packets, byTime) {
		slices.SortStableFunc(packets, byTime)
	}
	return packets, resets, errors.Join(damage...)
}

// room is the number of packets that the chunks can hold at most. A window is
// large: growing a slice to it would take its memory two and a half times.
func room(chunks [][]byte) (n int) {
	for _, c := range chunks {
		if len(c) >= chunkHeader {
			n += min(int(binary.LittleEndian.Uint32(c[12:])), len(c)/recordHeader)
		}
	}
	return n
}
