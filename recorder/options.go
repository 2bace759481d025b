package recorder

import "encoding/binary"

const (
	maxOptions = 40
	// maxSACK is the number of edges that fit: four blocks (RFC 2018).
	maxSACK = 8

	optionEnd       = 0
	optionNOP       = 1
	optionSACK      = 5
	optionTimestamp = 8
)

// layout is a segment's TCP options with their changing parts zeroed: timestamps
// and SACK edges. A connection has few layouts, and all connections share them.
type layout struct {
	bytes [maxOptions]byte
	n     uint8
	// stamp is where the timestamps are, 0 if there are none; edges where the
	// SACK edges are, and how many.
	stamp, sack, edges uint8
}

// options is a layout with what belongs into it; the timestamps (RFC 7323) are
// among the facts.
type options struct {
	layout layout
	edge   [maxSACK]uint32
	// plain tells without a look at the layout that it is that of a segment with
	// nothing (plainNone) or only aligned timestamps (plainStamp).
	plain uint8
}

const (
	plainOther = iota
	plainNone
	plainStamp
)

// stampOnly is what nearly every segment has: NOP, NOP, timestamps.
const (
	stampOnly   = 0x0101080a
	stampOnlyLE = 0x0a080101
)

var (
	layoutNone  = layout{}
	layoutStamp = layout{bytes: [maxOptions]byte{1, 1, 8, 10}, n: 12, stamp: 4}
)

// take takes options apart that are not plain; false if they are malformed.
func (o *options) take(b []byte, to *facts) bool {
	o.plain = plainOther
	o.layout = layout{n: uint8(len(b))}
	copy(o.layout.bytes[:], b)
	if !o.layout.find() {
		return false
	}
	o.empty(to)
	return true
}

// find finds the changing parts.
func (l *layout) find() bool {
	b := l.bytes[:l.n]
	for at := 0; at < len(b); {
		switch b[at] {
		case optionEnd:
			return true
		case optionNOP:
			at++
			continue
		}
		if at+1 >= len(b) || b[at+1] < 2 || at+int(b[at+1]) > len(b) {
			return false
		}
		n := int(b[at+1])
		switch {
		case b[at] == optionTimestamp && n == 10 && l.stamp == 0:
			l.stamp = uint8(at + 2)
		case b[at] == optionSACK && n >= 10 && (n-2)%8 == 0 && l.sack == 0:
			l.sack, l.edges = uint8(at+2), uint8((n-2)/4)
		}
		at += n
	}
	return true
}

// empty moves the changing parts out of the layout.
func (o *options) empty(to *facts) {
	l := &o.layout
	if l.stamp != 0 {
		b := l.bytes[l.stamp:]
		to.value, to.ech = binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])
		clear(b[:8])
	}
	for i := range int(l.edges) {
		b := l.bytes[int(l.sack)+4*i:]
		o.edge[i] = binary.BigEndian.Uint32(b)
		clear(b[:4])
	}
}

func (o *options) bytes() int {
	switch o.plain {
	case plainNone:
		return 0
	case plainStamp:
		return 12
	}
	return int(o.layout.n)
}

// put writes the options; b is as long as they are.
func (o *options) put(b []byte, from *facts) {
	switch o.plain {
	case plainNone:
		return
	case plainStamp:
		binary.BigEndian.PutUint32(b, stampOnly)
		binary.BigEndian.PutUint32(b[4:], from.value)
		binary.BigEndian.PutUint32(b[8:], from.ech)
		return
	}
	l := &o.layout
	copy(b, l.bytes[:l.n])
	if l.stamp != 0 {
		binary.BigEndian.PutUint32(b[l.stamp:], from.value)
		binary.BigEndian.PutUint32(b[l.stamp+4:], from.ech)
	}
	for i := range int(l.edges) {
		binary.BigEndian.PutUint32(b[int(l.sack)+4*i:], o.edge[i])
	}
}

// stamped tells whether there are timestamps.
func (o *options) stamped() bool {
	return o.plain == plainStamp || o.plain == plainOther && o.layout.stamp != 0
}

// edges is the number of SACK edges.
func (o *options) edges() int {
	if o.plain != plainOther {
		return 0
	}
	return int(o.layout.edges)
}

// digest makes two segments with different SACK edges differ.
func (o *options) digest() uint16 {
	d := uint32(0)
	for i := range o.edges() {
		d = d*0x9e3779b1 + o.edge[i]
	}
	return uint16(d>>16 ^ d)
}
