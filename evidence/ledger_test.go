package evidence

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const ledgerNS = 4026531840

// ledgerStart is when the tests' second begins.
var (
	ledgerStart = time.Unix(1_700_000_000, 0)
	near        = netip.MustParseAddrPort("10.0.0.1:40000")
	far         = netip.MustParseAddrPort("10.0.0.2:443")
)

// resetPacket is a RST without options.
func resetPacket(d Direction, after time.Duration, src, dst netip.AddrPort, seq uint32) *Packet {
	b := make([]byte, 40)
	b[0], b[8], b[9] = 0x45, 64, protoTCP
	binary.BigEndian.PutUint16(b[2:], 40)
	copy(b[12:], src.Addr().AsSlice())
	copy(b[16:], dst.Addr().AsSlice())
	binary.BigEndian.PutUint16(b[20:], src.Port())
	binary.BigEndian.PutUint16(b[22:], dst.Port())
	binary.BigEndian.PutUint32(b[24:], seq)
	b[32], b[33] = 0x50, byte(RST)
	return &Packet{Direction: d, Nanos: ledgerStart.Add(after).UnixNano(), WireBytes: 40, Header: b}
}

func sentEvent(after time.Duration, reason string) KernelEvent {
	return KernelEvent{Kind: ResetSent, NetNS: ledgerNS, Time: ledgerStart.Add(after), Reason: reason}
}

func outRsts(values ...uint64) *Series {
	s := &Series{NetNS: ledgerNS, Lines: []Line{{"Tcp.OutRsts", values}}}
	for i := range values {
		s.Times = append(s.Times, ledgerStart.Add(time.Duration(i)*time.Second-500*time.Millisecond))
	}
	return s
}

func TestLedger(t *testing.T) {
	const half = 500 * time.Millisecond
	drop := func(local, remote netip.AddrPort, tr Trigger) KernelEvent {
		return KernelEvent{Kind: SegmentDropped, NetNS: ledgerNS, Time: ledgerStart.Add(half), Reason: "NETFILTER_DROP", Local: local, Remote: remote, Trigger: &tr}
	}
	for name, tt := range map[string]struct {
		packets    []*Packet
		events     []KernelEvent
		suppressed []KernelSuppressed
		series     *Series
		residue    int64
		parts      []LedgerPart
		unclaimed  uint64
		forwarded  uint64
	}{
		"an application aborts": {
			packets: []*Packet{resetPacket(Sent, half, near, far, 1)},
			events:  []KernelEvent{sentEvent(half, "TCP_ABORT_ON_CLOSE")},
			series:  outRsts(5, 5, 6),
		},
		"on loopback it is sent and received": {
			packets: []*Packet{resetPacket(Loopback, half, near, far, 1)},
			events:  []KernelEvent{sentEvent(half, "TCP_STATE"), {Kind: ResetReceived, NetNS: ledgerNS, Time: ledgerStart.Add(half)}},
		},
		"a rule rejects": {
			packets: []*Packet{resetPacket(Sent, half, near, far, 77)},
			events:  []KernelEvent{drop(near, far, Trigger{Flags: ACK, Ack: 77})},
			residue: 1, parts: []LedgerPart{{LedgerFirewall, 1}},
		},
		"a rule rejects what is sent": {
			packets: []*Packet{resetPacket(Loopback, half, far, near, 78)},
			events:  []KernelEvent{drop(near, far, Trigger{Flags: ACK, Ack: 78, Outgoing: true})},
			residue: 1, parts: []LedgerPart{{LedgerFirewall, 1}}, unclaimed: 1,
		},
		"a rule rejects and the kernel names it": {
			packets: []*Packet{resetPacket(Sent, half, near, far, 77)},
			events:  []KernelEvent{drop(near, far, Trigger{Flags: ACK, Ack: 77}), {Kind: FirewallReject, NetNS: ledgerNS, Time: ledgerStart.Add(half)}},
		},
		"somebody forges": {
			packets: []*Packet{resetPacket(Sent, half, far, near, 1)},
			series:  outRsts(5, 5, 5),
			residue: 1, parts: []LedgerPart{{LedgerOtherSender, 1}},
		},
		"it is forwarded": {
			packets:   []*Packet{resetPacket(Received, half, near, far, 9), resetPacket(Sent, half+1, near, far, 9)},
			forwarded: 1,
		},
		"it is translated and forwarded": {
			packets:   []*Packet{resetPacket(Received, half, near, far, 9), resetPacket(Sent, half+1, netip.MustParseAddrPort("192.0.2.1:7"), far, 9)},
			forwarded: 1,
		},
		"it is bridged": {packets: []*Packet{resetPacket(Elsewhere, half, near, far, 9)}, forwarded: 1},
		"it comes too late": {
			packets:   []*Packet{resetPacket(Received, half, far, near, 1)},
			unclaimed: 1,
		},
		"it is not believed": {
			packets: []*Packet{resetPacket(Received, half, far, near, 1)},
			events:  []KernelEvent{{Kind: SegmentDropped, NetNS: ledgerNS, Time: ledgerStart.Add(half), Reason: "TCP_RESET", Trigger: &Trigger{Flags: RST}}},
		},
		"events are lost": {
			packets: []*Packet{resetPacket(Sent, half, near, far, 1), resetPacket(Sent, half, near, far, 2)},
			events:  []KernelEvent{sentEvent(half, "")}, series: outRsts(5, 5, 7),
			residue: 1, parts: []LedgerPart{{LedgerUntold, 1}},
		},
		"only counted": {
			packets:    []*Packet{resetPacket(Sent, half, near, far, 1), resetPacket(Sent, half, near, far, 2)},
			suppressed: []KernelSuppressed{{Kind: ResetSent, NetNS: ledgerNS, From: ledgerStart, Count: 2}}, series: outRsts(5, 5, 7),
		},
		"packets are lost": {
			events: []KernelEvent{sentEvent(half, "NO_SOCKET")}, series: outRsts(5, 5, 6),
			residue: -1, parts: []LedgerPart{{LedgerUnrecorded, 1}},
		},
		"a firewall throws it away": {
			events:  []KernelEvent{sentEvent(half, "NO_SOCKET"), drop(near, far, Trigger{Flags: RST, Outgoing: true})},
			residue: -1, parts: []LedgerPart{{LedgerFiltered, 1}},
		},
		"the device tells no direction": {
			packets: []*Packet{resetPacket(DirectionUnknown, half, near, far, 1)},
			events:  []KernelEvent{sentEvent(half, "NO_SOCKET")},
			residue: -1, parts: []LedgerPart{{LedgerUndirected, 1}},
		},
		"packet and event are a second apart": {
			packets: []*Packet{resetPacket(Sent, time.Second, near, far, 1)},
			events:  []KernelEvent{sentEvent(time.Second-time.Microsecond, "TCP_STATE")},
		},
	} {
		t.Run(name, func(t *testing.T) {
			wire := &WireResets{}
			wire.Expect(tt.events)
			for _, p := range tt.packets {
				wire.Count(p)
			}
			rows := KernelLedger(tt.events, tt.suppressed, tt.series)
			netns := func(uint16) uint64 { return ledgerNS }
			rows = BalanceLedger(rows, wire, netns)
			again := BalanceLedger(append([]LedgerSecond(nil), rows...), wire, netns)
			if diff := cmp.Diff(rows, again); diff != "" {
				t.Errorf("balancing again changes it (-first +again):\n%s", diff)
			}
			var residue int64
			var parts []LedgerPart
			var unclaimed, forwarded uint64
			for _, r := range rows {
				residue += r.Residue
				parts = append(parts, r.Parts...)
				unclaimed += r.Unclaimed
				forwarded += r.WireForwarded
			}
			if residue != tt.residue || unclaimed != tt.unclaimed || forwarded != tt.forwarded {
				t.Errorf("residue %d, unclaimed %d, forwarded %d, want %d, %d, %d: %+v", residue, unclaimed, forwarded, tt.residue, tt.unclaimed, tt.forwarded, rows)
			}
			if diff := cmp.Diff(tt.parts, parts); diff != "" {
				t.Errorf("parts (-want +got):\n%s", diff)
			}
		})
	}
}

// What is no reset is not looked at closely, and memory is bounded.
func TestWireResetsAreCheap(t *testing.T) {
	w := &WireResets{}
	p := resetPacket(Received, 0, far, near, 1)
	for i := range 3 * maxTransit {
		binary.BigEndian.PutUint32(p.Header[24:], uint32(i))
		w.Count(p)
	}
	if len(w.arrived) > maxTransit || len(w.order) > maxTransit {
		t.Errorf("%d resets are remembered, want at most %d", len(w.arrived), maxTransit)
	}
	p.Header[33] = byte(ACK)
	if n := testing.AllocsPerRun(100, func() { w.Count(p) }); n != 0 {
		t.Errorf("%v allocations a packet", n)
	}
}
