package recorder

import (
	"context"

	"tcpcoroner/evidence"
)

// Replay is a Source that delivers given packets once, as fast as they are
// taken. With it, everything behind the recorder works without a network.
type Replay struct {
	// Packets are delivered in this order; their headers are read only.
	Packets []evidence.Packet
	// Known is what Interfaces returns.
	Known []evidence.Interface
}

// replayBatch is the number of packets between two Ticks.
const replayBatch = 1024

// Run implements Source; it returns after the last packet.
func (r *Replay) Run(ctx context.Context, sink Sink) error {
	var m Meta
	for i := range r.Packets {
		if i%replayBatch == 0 {
			sink.Tick()
			if ctx.Err() != nil {
				return nil
			}
		}
		m = metaFrom(&r.Packets[i])
		sink.Add(&m, r.Packets[i].Header)
	}
	sink.Tick()
	return nil
}

// metaFrom is the inverse of what a reader makes of a Meta.
func metaFrom(p *evidence.Packet) Meta {
	return Meta{Nanos: p.Nanos, WireBytes: p.WireBytes, Trusted: p.Checksum == evidence.ChecksumTrusted, Path: Path{
		Interface: p.Interface, LinkType: p.LinkType, Namespace: p.Namespace,
		VLAN: p.VLAN, SrcMAC: p.SrcMAC, Direction: p.Direction,
	}}
}

// Stats implements Source.
func (r *Replay) Stats() SourceStats { return SourceStats{Packets: uint64(len(r.Packets))} }

// Wake implements Source: a replay does not wait.
func (r *Replay) Wake() {}

// Namespaces implements Source.
func (r *Replay) Namespaces() []evidence.Namespace { return nil }

// Interfaces implements Source.
func (r *Replay) Interfaces() []evidence.Interface { return r.Known }
