package afpacket

import (
	"fmt"
	"slices"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"tcpcoroner/evidence"
)

// The header fields the filter reads, as offsets from the network header.
const (
	ip4Fragment = 6
	ip4Proto    = 9
	ip6Next     = 6
	ip6Header   = 40
	tcpOffset   = 12
	tcpFlags    = 13
	icmpHeader  = 8
	maxIP4      = 60
	maxTCP      = 60
	// maxKept bounds what is taken of packets whose length takes a walk to know.
	maxKept = 320
	// maxExtensions is the room for extension headers in a quoted IPv6 packet.
	maxExtensions = 64
)

var reject = bpf.RetConstant{Val: 0}

// filter is the classic BPF program of the socket. It takes TCP and the ICMP
// errors that stop TCP, and lets the kernel copy only the headers: to the byte
// for plain packets, generously for those with IPv6 extension headers. The
// offsets count from the network header, as on every SOCK_DGRAM socket.
func filter() ([]bpf.RawInstruction, error) {
	var p []bpf.Instruction
	p = append(p, bpf.LoadExtension{Num: bpf.ExtLinkLayerType})
	// A packet on loopback passes twice; the copy on its way out is not needed.
	p = append(p, when(unix.ARPHRD_LOOPBACK, append([]bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtType}},
		when(unix.PACKET_OUTGOING, []bpf.Instruction{reject})...))...)
	p = append(p, bpf.LoadExtension{Num: bpf.ExtProto})
	p = append(p, when(unix.ETH_P_IP, ip4(0))...)
	p = append(p, when(unix.ETH_P_IPV6, ip6(0))...)
	p = append(p,
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.ETH_P_8021Q, SkipTrue: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.ETH_P_8021AD, SkipTrue: 1},
		reject)
	raw, err := bpf.Assemble(append(p, tagged()...))
	if err != nil {
		return nil, fmt.Errorf("assemble packet filter: %w", err)
	}
	return raw, nil
}

// when runs the block if A has the value. A block need not return; A is as the
// block left it.
func when(value uint32, block []bpf.Instruction) []bpf.Instruction {
	return slices.Concat([]bpf.Instruction{
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: value, SkipFalse: uint8(len(block))}}, block)
}

// tagged is a frame whose inner VLAN tag the kernel left in: 4 bytes, then IP. A
// frame that a packet socket sent has no tag left there (net/packet/af_packet.c,
// packet_parse_headers): then the first nibble tells.
func tagged() []bpf.Instruction {
	return slices.Concat(
		[]bpf.Instruction{bpf.LoadAbsolute{Off: 2, Size: 2}},
		when(unix.ETH_P_IP, ip4(vlanTag)),
		when(unix.ETH_P_IPV6, ip6(vlanTag)),
		[]bpf.Instruction{
			bpf.LoadAbsolute{Off: 0, Size: 1},
			bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 4}},
		when(4, ip4(0)),
		when(6, ip6(0)),
		[]bpf.Instruction{reject})
}

func ip4(base uint32) []bpf.Instruction {
	return slices.Concat(
		[]bpf.Instruction{
			bpf.LoadMemShift{Off: base}, // X is the header length
			bpf.LoadAbsolute{Off: base + ip4Proto, Size: 1}},
		when(unix.IPPROTO_TCP, slices.Concat(
			[]bpf.Instruction{
				bpf.LoadAbsolute{Off: base + ip4Fragment, Size: 2},
				bpf.JumpIf{Cond: bpf.JumpBitsNotSet, Val: 0x1fff, SkipTrue: 3},
				// A later fragment: the rest is payload.
				bpf.TXA{}, bpf.ALUOpConstant{Op: bpf.ALUOpAdd, Val: base}, bpf.RetA{}},
			tcp(func(at uint32) bpf.Instruction { return bpf.LoadIndirect{Off: base + at, Size: 1} }, base, true))),
		when(unix.IPPROTO_ICMP, slices.Concat(
			[]bpf.Instruction{bpf.LoadIndirect{Off: base, Size: 1}},
			when(3, take(base+2*maxIP4+icmpHeader+maxTCP)),
			when(11, take(base+2*maxIP4+icmpHeader+maxTCP)),
			[]bpf.Instruction{reject})),
		[]bpf.Instruction{reject})
}

func ip6(base uint32) []bpf.Instruction {
	at := base + ip6Header
	icmp := take(base + 2*ip6Header + icmpHeader + maxExtensions + maxTCP)
	block := slices.Concat(
		[]bpf.Instruction{bpf.LoadAbsolute{Off: base + ip6Next, Size: 1}},
		when(unix.IPPROTO_TCP, tcp(func(off uint32) bpf.Instruction {
			return bpf.LoadAbsolute{Off: at + off, Size: 1}
		}, at, false)),
		when(unix.IPPROTO_ICMPV6, slices.Concat(
			[]bpf.Instruction{bpf.LoadAbsolute{Off: at, Size: 1}},
			when(1, icmp), when(2, icmp), when(3, icmp),
			[]bpf.Instruction{reject})))
	for _, next := range []uint32{unix.IPPROTO_HOPOPTS, unix.IPPROTO_ROUTING, unix.IPPROTO_FRAGMENT, unix.IPPROTO_DSTOPTS} {
		block = append(block, when(next, extended(at))...)
	}
	return append(block, reject)
}

// tcp returns the length with the TCP header and, of a RST, the payload that may
// be kept. Load reads a byte of the TCP header; base, and X if asked for, are
// added to reach it.
func tcp(load func(at uint32) bpf.Instruction, base uint32, addX bool) []bpf.Instruction {
	length := []bpf.Instruction{
		load(tcpOffset),
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0xf0},
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 2},
	}
	if addX {
		length = append(length, bpf.ALUOpX{Op: bpf.ALUOpAdd})
	}
	with := func(n uint32) []bpf.Instruction {
		return slices.Concat(length, []bpf.Instruction{
			bpf.ALUOpConstant{Op: bpf.ALUOpAdd, Val: n}, bpf.RetA{}})
	}
	reset := with(base + evidence.MaxResetPayload)
	return slices.Concat([]bpf.Instruction{
		load(tcpFlags),
		bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: uint32(evidence.RST), SkipFalse: uint8(len(reset))}},
		reset, with(base))
}

// extended is an IPv6 packet with extension headers. The kernel's flow dissector
// finds the end of the TCP header; whether it is a RST is not known here, so room
// for its payload is taken and the sink cuts.
func extended(at uint32) []bpf.Instruction {
	return []bpf.Instruction{
		bpf.LoadAbsolute{Off: at, Size: 1},
		// Neither datagrams in fragments nor multicast listener reports.
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.IPPROTO_UDP, SkipTrue: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.IPPROTO_ICMPV6, SkipFalse: 1},
		reject,
		bpf.LoadExtension{Num: bpf.ExtPayloadOffset},
		bpf.ALUOpConstant{Op: bpf.ALUOpAdd, Val: evidence.MaxResetPayload},
		bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: maxKept, SkipFalse: 1},
		bpf.RetConstant{Val: maxKept},
		bpf.RetA{},
	}
}

func take(n uint32) []bpf.Instruction { return []bpf.Instruction{bpf.RetConstant{Val: n}} }
