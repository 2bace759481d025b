package afpacket

import (
	"strconv"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"tcpcoroner/evidence"
)

const (
	ip6Header   = 40
	ip6Fragment = 8
	ethernet    = 14
	udpHeader   = 8
	tcpOffset   = 12
	tcpFlags    = 13
	// maxHeaders is room for an IPv4 and a TCP header with all options.
	maxHeaders = 60 + 60
	// maxError is room for an ICMP error: its own header, and those it quotes.
	maxError = 8 + ip6Header + 64 + 60
	// maxKept bounds what is taken of packets whose length takes a walk to know.
	maxKept = 320
	// levels is how deep the filter itself looks into tunnels: one in another goes
	// to the kernel's flow dissector.
	levels = 2

	control = uint32(evidence.SYN | evidence.FIN | evidence.RST)

	etherBridge = 0x6558 // GRE and Geneve: an Ethernet frame follows

	reject  = "reject"
	unknown = "unknown"
)

// filters are the programs of a source.
type filters struct{ full, control []bpf.RawInstruction }

func newFilters(overlay bool) (f filters, err error) {
	if f.full, err = filter(overlay, false); err == nil {
		f.control, err = filter(overlay, true)
	}
	return f, err
}

// filter is the classic BPF program of the socket. It takes TCP and the ICMP
// errors that stop TCP, also in IP and GRE tunnels and, if asked for, in VXLAN and
// Geneve, and lets the kernel copy only the headers: to the byte for most packets,
// generously for those that the sink has to look into. If only control packets are
// wanted, segments without SYN, FIN and RST stay out; what cannot be judged here,
// such as IPv6 extension headers, comes in.
//
// The offsets count from the network header, as on every SOCK_DGRAM socket. X is
// where the header begins that is looked at.
func filter(overlay, controlOnly bool) ([]bpf.RawInstruction, error) {
	p := &program{newAssembler(), overlay, controlOnly}
	p.link()
	for n := range levels {
		if n > 0 {
			p.frame(n)
		}
		p.network(n)
		p.tunnels(n)
	}
	p.tcp()
	p.icmp()
	p.rest()
	return p.assemble()
}

type program struct {
	*assembler
	overlay, controlOnly bool
}

// at names a label of a level of tunnels; those below the last are unknown.
func at(name string, n int) string {
	if n == levels {
		return unknown
	}
	return name + strconv.Itoa(n)
}

func load(off uint32, size int) bpf.Instruction { return bpf.LoadIndirect{Off: off, Size: size} }

// forward moves X by n bytes; A is lost.
func forward(n uint32) []bpf.Instruction {
	return []bpf.Instruction{bpf.TXA{}, bpf.ALUOpConstant{Op: bpf.ALUOpAdd, Val: n}, bpf.TAX{}}
}

// take returns X and n bytes.
func take(n uint32) []bpf.Instruction {
	return []bpf.Instruction{bpf.TXA{}, bpf.ALUOpConstant{Op: bpf.ALUOpAdd, Val: n}, bpf.RetA{}}
}

// overIP4 moves X behind the IPv4 header.
func overIP4() []bpf.Instruction {
	return []bpf.Instruction{
		load(0, 1),
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 15},
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftLeft, Val: 2},
		bpf.ALUOpX{Op: bpf.ALUOpAdd}, bpf.TAX{}}
}

// link finds the IP header. A packet on loopback passes twice; the copy on its way
// out is not needed. A frame may have kept its inner VLAN tag, 4 bytes before the
// IP header. A frame that a packet socket sent has no tag left there
// (net/packet/af_packet.c, packet_parse_headers): then the first nibble tells.
func (p *program) link() {
	p.add(bpf.LoadExtension{Num: bpf.ExtLinkLayerType})
	p.when(bpf.JumpNotEqual, unix.ARPHRD_LOOPBACK, "link")
	p.add(bpf.LoadExtension{Num: bpf.ExtType})
	p.equal(unix.PACKET_OUTGOING, reject)
	p.label("link")
	p.add(bpf.LoadConstant{Dst: bpf.RegX, Val: 0}, bpf.LoadExtension{Num: bpf.ExtProto})
	p.equal(unix.ETH_P_IP, "plain4")
	p.equal(unix.ETH_P_IPV6, "plain6")
	p.equal(unix.ETH_P_8021Q, "tagged")
	p.equal(unix.ETH_P_8021AD, "tagged")
	p.to(reject)
	p.plain()
	p.label("tagged")
	p.add(bpf.LoadAbsolute{Off: 2, Size: 2}, bpf.LoadConstant{Dst: bpf.RegX, Val: vlanTag})
	p.equal(unix.ETH_P_IP, at("ip4", 0))
	p.equal(unix.ETH_P_IPV6, at("ip6", 0))
	p.add(bpf.LoadConstant{Dst: bpf.RegX, Val: 0})
	p.to(at("version", 0))
}

// plain is for what most packets are, TCP right behind an IP header without
// options: the kernel compiles a load from a place that it knows into the program,
// and makes a call of any other (net/core/filter.c, convert_bpf_ld_abs).
func (p *program) plain() {
	p.label("plain4")
	p.add(bpf.LoadAbsolute{Off: 0, Size: 1})
	p.when(bpf.JumpNotEqual, 0x45, at("ip4", 0))
	// Fragment word, TTL and protocol at once.
	p.add(bpf.LoadAbsolute{Off: 6, Size: 4}, bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0x3fff00ff})
	p.when(bpf.JumpNotEqual, unix.IPPROTO_TCP, at("ip4", 0))
	p.plainTCP(20, at("ip4", 0))
	p.label("plain6")
	p.add(bpf.LoadAbsolute{Off: 6, Size: 1})
	p.when(bpf.JumpNotEqual, unix.IPPROTO_TCP, at("ip6", 0))
	p.plainTCP(ip6Header, at("ip6", 0))
}

// plainTCP returns the length with the TCP header; a RST, and a header that is too
// short, go the other way.
func (p *program) plainTCP(off uint32, other string) {
	p.add(bpf.LoadAbsolute{Off: off + 12, Size: 2}) // data offset and flags
	p.when(bpf.JumpBitsSet, uint32(evidence.RST), other)
	if p.controlOnly {
		p.when(bpf.JumpBitsNotSet, uint32(evidence.SYN|evidence.FIN), reject)
	}
	p.add(bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0xf000})
	p.when(bpf.JumpLessThan, 5<<12, other)
	p.add(bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 10}, bpf.ALUOpConstant{Op: bpf.ALUOpAdd, Val: off}, bpf.RetA{})
}

// frame is an Ethernet frame in a tunnel, with a VLAN tag or without.
func (p *program) frame(n int) {
	p.label(at("frame", n))
	p.add(load(ethernet-2, 2))
	p.equal(unix.ETH_P_8021Q, at("tag", n))
	p.equal(unix.ETH_P_8021AD, at("tag", n))
	p.add(bpf.StoreScratch{Src: bpf.RegA, N: 0})
	p.add(forward(ethernet)...)
	p.add(bpf.LoadScratch{Dst: bpf.RegA, N: 0})
	p.to(at("type", n))
	p.label(at("tag", n))
	p.add(load(ethernet+vlanTag-2, 2), bpf.StoreScratch{Src: bpf.RegA, N: 0})
	p.add(forward(ethernet + vlanTag)...)
	p.add(bpf.LoadScratch{Dst: bpf.RegA, N: 0})
	p.label(at("type", n)) // A is the protocol of what begins at X
	p.equal(unix.ETH_P_IP, at("ip4", n))
	p.equal(unix.ETH_P_IPV6, at("ip6", n))
	p.to(reject)
}

// network goes by the protocol of an IP header.
func (p *program) network(n int) {
	p.label(at("version", n))
	p.add(load(0, 1), bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 4})
	p.equal(4, at("ip4", n))
	p.equal(6, at("ip6", n))
	p.to(reject)
	p.label(at("ip4", n))
	p.add(load(9, 1))
	p.equal(unix.IPPROTO_TCP, "tcp4")
	p.equal(unix.IPPROTO_ICMP, "icmp4")
	p.tunnelled(at("carrier", n))
	p.to(reject)
	p.label(at("ip6", n))
	p.add(load(6, 1))
	p.equal(unix.IPPROTO_TCP, "tcp6")
	p.equal(unix.IPPROTO_ICMPV6, "icmp6")
	for _, next := range []uint32{unix.IPPROTO_HOPOPTS, unix.IPPROTO_ROUTING, unix.IPPROTO_DSTOPTS} {
		p.equal(next, "extended")
	}
	p.equal(unix.IPPROTO_FRAGMENT, "fragment6")
	p.add(bpf.StoreScratch{Src: bpf.RegA, N: 0})
	p.add(forward(ip6Header)...)
	p.add(bpf.LoadScratch{Dst: bpf.RegA, N: 0})
	p.to(at("inside", n))
}

// tunnelled goes to the label if A is the protocol number of a tunnel.
func (p *program) tunnelled(name string) {
	for _, proto := range []uint32{unix.IPPROTO_IPIP, unix.IPPROTO_IPV6, unix.IPPROTO_GRE} {
		p.equal(proto, name)
	}
	if p.overlay {
		p.equal(unix.IPPROTO_UDP, name)
	}
}

// tunnels goes to what is inside of one.
func (p *program) tunnels(n int) {
	p.label(at("carrier", n))
	p.add(bpf.StoreScratch{Src: bpf.RegA, N: 0}, load(6, 2))
	p.when(bpf.JumpBitsSet, 0x1fff, reject) // a later fragment
	p.add(overIP4()...)
	p.add(bpf.LoadScratch{Dst: bpf.RegA, N: 0})
	p.label(at("inside", n)) // X is behind the IP header, A its protocol
	p.equal(unix.IPPROTO_IPIP, at("version", n+1))
	p.equal(unix.IPPROTO_IPV6, at("version", n+1))
	p.equal(unix.IPPROTO_GRE, at("gre", n))
	if p.overlay {
		p.equal(unix.IPPROTO_UDP, at("udp", n))
	}
	p.to(reject)
	p.gre(n)
	if p.overlay {
		p.udp(n)
	}
}

// gre adds up the optional fields that the flags announce. Source routes and
// version 1 stay out.
func (p *program) gre(n int) {
	const flags, protocol = 0, 1
	field := func(shift uint32) []bpf.Instruction {
		return []bpf.Instruction{bpf.LoadScratch{Dst: bpf.RegA, N: flags},
			bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: shift}, bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 4},
			bpf.ALUOpX{Op: bpf.ALUOpAdd}, bpf.TAX{}}
	}
	p.label(at("gre", n))
	p.add(load(2, 2), bpf.StoreScratch{Src: bpf.RegA, N: protocol}, load(0, 2))
	p.when(bpf.JumpBitsSet, 0x4007, reject)
	p.add(bpf.StoreScratch{Src: bpf.RegA, N: flags})
	p.add(field(13)...) // checksum
	p.add(field(11)...) // key
	p.add(field(10)...) // sequence number
	p.add(forward(4)...)
	p.add(bpf.LoadScratch{Dst: bpf.RegA, N: protocol})
	p.equal(etherBridge, at("frame", n+1))
	p.to(at("type", n+1))
}

// udp is VXLAN or Geneve by the port. The sink looks closer.
func (p *program) udp(n int) {
	p.label(at("udp", n))
	p.add(load(2, 2))
	p.equal(4789, at("vxlan", n))
	p.equal(8472, at("vxlan", n))
	p.equal(6081, at("geneve", n))
	p.to(reject)
	p.label(at("vxlan", n))
	p.add(forward(udpHeader + 8)...)
	p.to(at("frame", n+1))
	p.label(at("geneve", n))
	p.add(load(udpHeader+2, 2), bpf.StoreScratch{Src: bpf.RegA, N: 0},
		load(udpHeader, 1),
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0x3f},
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftLeft, Val: 2},
		bpf.ALUOpX{Op: bpf.ALUOpAdd}, bpf.TAX{})
	p.add(forward(udpHeader + 8)...)
	p.add(bpf.LoadScratch{Dst: bpf.RegA, N: 0})
	p.equal(etherBridge, at("frame", n+1))
	p.to(at("type", n+1))
}

// tcp returns the length with the TCP header and, of a RST, the payload that may
// be kept.
func (p *program) tcp() {
	p.label("tcp4")
	p.add(load(6, 2))
	p.when(bpf.JumpBitsSet, 0x3fff, "fragment4")
	p.add(overIP4()...)
	p.to("tcp")
	p.label("tcp6")
	p.add(forward(ip6Header)...)
	p.label("tcp")
	p.add(load(tcpFlags, 1))
	p.when(bpf.JumpBitsSet, uint32(evidence.RST), "reset")
	if p.controlOnly {
		p.when(bpf.JumpBitsNotSet, control, reject)
	}
	length := []bpf.Instruction{
		load(tcpOffset, 1),
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0xf0},
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 2},
		bpf.ALUOpX{Op: bpf.ALUOpAdd}}
	p.add(length...)
	p.add(bpf.RetA{})
	p.label("reset")
	p.add(length...)
	p.add(bpf.ALUOpConstant{Op: bpf.ALUOpAdd, Val: evidence.MaxResetPayload}, bpf.RetA{})
	p.label("fragment4")
	p.when(bpf.JumpBitsSet, 0x1fff, "later4")
	p.add(take(maxHeaders + evidence.MaxResetPayload)...) // the first may end before the flags
	p.label("later4")
	if p.controlOnly {
		p.to(reject)
	}
	p.add(overIP4()...)
	p.add(take(0)...)
}

func (p *program) icmp() {
	p.label("icmp4")
	p.add(overIP4()...)
	p.add(load(0, 1))
	p.equal(3, "error")
	p.equal(11, "error")
	p.to(reject)
	p.label("icmp6")
	p.add(forward(ip6Header)...)
	p.add(load(0, 1))
	p.equal(1, "error")
	p.equal(2, "error")
	p.equal(3, "error")
	p.to(reject)
	p.label("error")
	p.add(take(maxError)...)
}

// rest is what takes a longer walk. The kernel's flow dissector finds the end of
// the TCP header; whether it is a RST is not known here, so room for its payload
// is taken. Neither datagrams in fragments nor multicast listener reports come in.
func (p *program) rest() {
	p.label("fragment6")
	p.add(load(ip6Header+2, 2))
	p.when(bpf.JumpBitsNotSet, 0xfff8, "extended")
	p.add(load(ip6Header, 1))
	p.when(bpf.JumpNotEqual, unix.IPPROTO_TCP, reject)
	if p.controlOnly {
		p.to(reject)
	}
	p.add(take(ip6Header + ip6Fragment)...)
	p.label("extended")
	p.add(load(ip6Header, 1))
	p.equal(unix.IPPROTO_ICMPV6, reject)
	p.equal(unix.IPPROTO_UDP, reject)
	p.label(unknown)
	p.add(bpf.LoadExtension{Num: bpf.ExtPayloadOffset},
		bpf.ALUOpConstant{Op: bpf.ALUOpAdd, Val: evidence.MaxResetPayload},
		bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: maxKept, SkipFalse: 1},
		bpf.RetConstant{Val: maxKept},
		bpf.RetA{})
	p.label(reject)
	p.add(bpf.RetConstant{Val: 0})
}
