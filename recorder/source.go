package recorder

import (
	"context"
	"unsafe"

	"tcpcoroner/evidence"
)

// Path is where and which way a packet was seen: the fields of evidence.Packet
// that many packets share. It is comparable.
type Path struct {
	Interface uint32
	// LinkType is an ARPHRD_ value.
	LinkType  uint16
	Namespace uint16
	VLAN      [2]uint16
	SrcMAC    [6]byte
	Direction evidence.Direction
}

// same is ==, without a call: the first 16 bytes have no holes.
func (p *Path) same(o *Path) bool {
	a, b := (*[unsafe.Offsetof(p.SrcMAC) + 4]byte)(unsafe.Pointer(p)), (*[unsafe.Offsetof(p.SrcMAC) + 4]byte)(unsafe.Pointer(o))
	return *a == *b && p.SrcMAC[4] == o.SrcMAC[4] && p.SrcMAC[5] == o.SrcMAC[5] && p.Direction == o.Direction
}

// Meta is what is known of a packet beside its header bytes.
type Meta struct {
	// Nanos is CLOCK_REALTIME in nanoseconds.
	Nanos int64
	// WireBytes counts from the network header on.
	WireBytes uint32
	// Trusted tells that the kernel calls the checksum valid (TP_STATUS_CSUM_VALID).
	Trusted bool
	Path    Path
}

// Level is how much the recorder does with a packet. It rises when the CPU
// budget is used up.
type Level uint32

// The levels. SYN, FIN, RST and ICMP errors are kept at each of them.
const (
	// LevelFull keeps every packet, and compresses sealed chunks.
	LevelFull Level = iota
	// LevelPlain keeps every packet; chunks stay uncompressed.
	LevelPlain
	// LevelHold leaves packets in the kernel's ring as long as there is room, and
	// keeps of older ones the control packets only.
	LevelHold
	// LevelControl has the kernel's filter pass control packets only.
	LevelControl
)

// Sink takes packets. Its methods are called by one goroutine only.
type Sink interface {
	// Add counts a packet and stores it. The header starts at the IP header; both
	// arguments are valid during the call only. What may not be kept is cut off
	// by the sink.
	Add(m *Meta, header []byte)
	// Count only counts, for a source that holds the packet at LevelHold; Store
	// only stores what was counted before. Add is both.
	Count(m *Meta, header []byte)
	Store(m *Meta, header []byte)
	// Skip tells that the source gave up packets that were counted: their number,
	// and the times of the first and last of them in nanoseconds.
	Skip(packets uint64, first, last int64)
	// Tick tells that a batch is complete. A source calls it after every batch, at
	// least once a second, and soon after Wake. The answer says how the source is
	// to go on.
	Tick() Order
}

// Order is what a sink asks of its source.
type Order struct {
	Level Level
	// Flush asks the source to Store all that it holds, and to Tick again: somebody
	// wants to read it.
	Flush bool
}

// Source delivers packets.
type Source interface {
	// Run calls the sink until the context ends, which is no error, or the source
	// fails or is exhausted.
	Run(ctx context.Context, sink Sink) error
	// Wake makes a waiting Run call Tick soon. It is safe for concurrent use, also
	// before and after Run.
	Wake()
	// Stats is safe for concurrent use.
	Stats() SourceStats
	// Interfaces lists the interfaces that packets came from, gone ones included.
	// It is safe for concurrent use.
	Interfaces() []evidence.Interface
	// Namespaces lists the network namespaces beside the recorder's own. It is safe
	// for concurrent use.
	Namespaces() []evidence.Namespace
}

// SourceStats counts since the source was opened.
type SourceStats struct {
	// Packets passed the kernel's filter, the dropped ones included.
	Packets uint64
	// Dropped packets passed the filter but found no room in the kernel's ring.
	Dropped uint64
	// Freezes is how often the ring was full.
	Freezes uint64
	// Skipped packets came before the filter was in place.
	Skipped uint64
	// Malformed blocks or packets were not as the kernel's header file says.
	Malformed uint64
	// Polls and PollErrors count the waits for packets.
	Polls      uint64
	PollErrors uint64
	// Backlog is the part of the fullest ring that is waiting to be read, from 0 to
	// 1, in quarters rounded down. Packets are dropped where it reaches 1.
	Backlog float64
	// Rings is the number of open rings, one for each network namespace, and Held
	// the number of blocks that are held back from the kernel.
	Rings uint64
	Held  uint64
	// FilterSwaps and FilterErrors count the changes of the kernel's filter, and
	// those that failed: the filter before is then still in place.
	FilterSwaps  uint64
	FilterErrors uint64
}
