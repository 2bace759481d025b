package recorder

import (
	"context"

	"tcpcoroner/evidence"
)

// Meta is what is known of a packet beside its header bytes. The fields are
// those of evidence.Packet.
type Meta struct {
	// Nanos is CLOCK_REALTIME in nanoseconds.
	Nanos     int64
	Interface uint32
	// WireBytes counts from the network header on.
	WireBytes uint32
	Direction evidence.Direction
	// LinkType is an ARPHRD_ value.
	LinkType uint16
	SrcMAC   [6]byte
	VLAN     [2]uint16
}

// Sink takes packets. Its methods are called by one goroutine only.
type Sink interface {
	// Add takes a packet. The header starts at the IP header; both arguments are
	// valid during the call only. What may not be kept is cut off by the sink.
	Add(m *Meta, header []byte)
	// Tick tells that a batch is complete. A source calls it after every batch
	// and at least every 100 ms, also when there is no packet.
	Tick()
}

// Source delivers packets.
type Source interface {
	// Run calls the sink until the context ends, which is no error, or the source
	// fails or is exhausted.
	Run(ctx context.Context, sink Sink) error
	// Stats is safe for concurrent use.
	Stats() SourceStats
	// Interfaces lists the interfaces that packets came from, gone ones included.
	// It is safe for concurrent use.
	Interfaces() []evidence.Interface
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
}
