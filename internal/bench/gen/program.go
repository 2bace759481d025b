package gen

import (
	"encoding/binary"
	"math/bits"

	"github.com/cilium/ebpf/asm"
)

// Verdicts of an XDP program (linux/bpf.h).
const (
	xdpDrop = 1
	xdpPass = 2
)

// Layout of the state that program and user space share.
const (
	offSent    = 0
	offLimit   = 8
	offResets  = 16
	stateBytes = 24
)

// Where the fields stand in a frame.
const (
	offLength = 16
	offID     = 18
	offIPSum  = 24
	offSrc    = 26
	offDst    = 30
	offSPort  = 34
	offDPort  = 36
	offSeq    = 38
	offAck    = 42
	offFlags  = 47
	offTCPSum = 50
	offTSVal  = 58
	offTSEcr  = 62
)

// The two ends of every flow; a client's address and port have the flow's number
// added.
const (
	clientAddr = 0x0a010000
	serverAddr = 0x0a020001
	floodAddr  = 0x0a000000
	clientPort = 32768
	serverPort = 443
	window     = 501
)

const (
	flagSYN    = 0x02
	flagRSTACK = 0x14
	flagPSHACK = 0x18
)

const tcpBytes = HeaderBytes - 34

// template is a frame with everything set that is the same in all of them.
func template(flood bool) []byte {
	b := make([]byte, FrameBytes)
	if flood {
		b = b[:HeaderBytes]
	}
	copy(b, []byte{0x02, 0, 0, 0, 0xfe, 0x01, 0x02, 0, 0, 0, 0xfe, 0x02, 0x08, 0x00})
	copy(b[14:], []byte{0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6})
	b[46] = tcpBytes / 4 << 4
	binary.BigEndian.PutUint16(b[48:], window)
	copy(b[54:], []byte{1, 1, 8, 10}) // NOP, NOP, time stamps (RFC 7323)
	for i := HeaderBytes; i < len(b); i++ {
		b[i] = 'a' + byte(i%16)
	}
	if flood {
		binary.BigEndian.PutUint16(b[offLength:], HeaderBytes-14)
		binary.BigEndian.PutUint16(b[offDPort:], serverPort)
		binary.BigEndian.PutUint32(b[offDst:], serverAddr)
		b[offFlags] = flagSYN
	}
	return b
}

// sum16 adds big-endian 16-bit words, as the Internet checksum does (RFC 1071).
func sum16(b []byte) (sum int32) {
	for i := 0; i+1 < len(b); i += 2 {
		sum += int32(binary.BigEndian.Uint16(b[i:]))
	}
	return sum
}

// ipConst and tcpConst are the parts of the two checksums that never change, of
// a segment with so many bytes of payload and these flags. Addresses and ports
// of clients count with flow 0.
func ipConst(payload int32, client int32) int32 {
	return 0x4500 + 0x4000 + 0x4006 + 52 + payload + client>>16 + client&0xffff + serverAddr>>16 + serverAddr&0xffff
}

func tcpConst(b []byte, flags, client int32) int32 {
	return 6 + tcpBytes + int32(len(b)) + client>>16 + client&0xffff + serverAddr>>16 + serverAddr&0xffff +
		clientPort + serverPort + (tcpBytes/4<<12 | flags) + window + 0x0101 + 0x080a + sum16(b)
}

// begin checks the limit, counts, and leaves the frame in R7, the packet's
// number in R9 and the time in milliseconds in R0.
func begin(state int, frameBytes int32) asm.Instructions {
	return asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R7, asm.R6, 0, asm.Word),
		asm.LoadMem(asm.R2, asm.R6, 4, asm.Word),
		asm.Mov.Reg(asm.R3, asm.R7),
		asm.Add.Imm(asm.R3, frameBytes),
		asm.JGT.Reg(asm.R3, asm.R2, "drop"),
		asm.LoadMapValue(asm.R8, state, 0),
		asm.LoadMem(asm.R9, asm.R8, offSent, asm.DWord),
		asm.LoadMem(asm.R1, asm.R8, offLimit, asm.DWord),
		asm.JGE.Reg(asm.R9, asm.R1, "drop"),
		asm.Mov.Reg(asm.R1, asm.R9),
		asm.Add.Imm(asm.R1, 1),
		asm.StoreMem(asm.R8, offSent, asm.R1, asm.DWord),
		asm.FnKtimeGetCoarseNs.Call(),
		asm.Div.Imm(asm.R0, 1_000_000),
		asm.Mov.Reg32(asm.R0, asm.R0),
	}
}

func end() asm.Instructions {
	return asm.Instructions{
		asm.Mov.Imm(asm.R0, xdpPass),
		asm.Return(),
		asm.Mov.Imm(asm.R0, xdpDrop).WithSymbol("drop"),
		asm.Return(),
	}
}

// store32 and store16 write a register in network byte order; scratch is lost.
func store32(off int16, value, scratch asm.Register) asm.Instructions {
	return asm.Instructions{
		asm.Mov.Reg(scratch, value),
		asm.HostTo(asm.BE, scratch, asm.Word),
		asm.StoreMem(asm.R7, off, scratch, asm.Word),
	}
}

func store16(off int16, value, scratch asm.Register) asm.Instructions {
	return asm.Instructions{
		asm.Mov.Reg(scratch, value),
		asm.HostTo(asm.BE, scratch, asm.Half),
		asm.StoreMem(asm.R7, off, scratch, asm.Half),
	}
}

// storeSum folds a sum of up to 36 bits and stores its complement.
func storeSum(off int16, sum, scratch asm.Register) (list asm.Instructions) {
	for range 3 {
		list = append(list,
			asm.Mov.Reg(scratch, sum),
			asm.RSh.Imm(scratch, 16),
			asm.And.Imm(sum, 0xffff),
			asm.Add.Reg(sum, scratch),
		)
	}
	list = append(list, asm.Xor.Imm(sum, 0xffff))
	return append(list, store16(off, sum, scratch)...)
}

// constant16 writes a number that is known now.
func constant16(off int16, value uint16) asm.Instruction {
	return asm.StoreImm(asm.R7, off, int64(bits.ReverseBytes16(value)), asm.Half)
}

func concat(parts ...asm.Instructions) (all asm.Instructions) {
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

// flowProgram gives packet n to flow n mod flows; the rounds go to and fro.
// Registers from numbers to sums: R0 time stamp, R1 flow, R4 echoed time stamp,
// R5 acknowledgement, R9 sequence number.
func flowProgram(state, flows, count int) asm.Instructions {
	return concat(
		begin(state, FrameBytes),
		numbers(count),
		asm.Instructions{
			asm.LoadMapValue(asm.R8, flows, 0),
			asm.Mov.Reg(asm.R4, asm.R1),
			asm.LSh.Imm(asm.R4, 3),
			asm.Add.Reg(asm.R8, asm.R4),
			asm.And.Imm(asm.R2, 1),
			asm.JNE.Imm(asm.R2, 0, "server"),
		},
		fromClient(), fromServer(), flowSums(),
		asm.Instructions{
			asm.JEq.Imm(asm.R8, 0, "pass"),
			asm.LoadMapValue(asm.R8, state, 0),
			asm.LoadMem(asm.R1, asm.R8, offResets, asm.DWord),
			asm.Add.Imm(asm.R1, 1),
			asm.StoreMem(asm.R8, offResets, asm.R1, asm.DWord),
			asm.Mov.Reg(asm.R1, asm.R6),
			asm.Mov.Imm(asm.R2, -PayloadBytes),
			asm.FnXdpAdjustTail.Call(),
			asm.Ja.Label("pass"),
			asm.Mov.Imm(asm.R0, 0).WithSymbol("pass"),
		},
		end(),
	)
}

// numbers computes the flow (R1), the round (R2), the numbers of client (R9) and
// server (R5), and leaves the IP id at -16 and the number that tells a RST at -8
// of the stack.
func numbers(count int) asm.Instructions {
	return concat(asm.Instructions{
		asm.Mov.Reg(asm.R1, asm.R9),
		asm.And.Imm(asm.R1, int32(count-1)),
		asm.Mov.Reg(asm.R2, asm.R9),
		asm.RSh.Imm(asm.R2, int32(bits.TrailingZeros(uint(count)))),
		asm.Mov.Reg(asm.R3, asm.R9), // with the round added, so that each flow has its turn
		asm.Add.Reg(asm.R3, asm.R2),
		asm.And.Imm(asm.R3, ResetEvery-1),
		asm.StoreMem(asm.RFP, -8, asm.R3, asm.DWord),
		asm.Mov.Reg(asm.R4, asm.R2),
		asm.RSh.Imm(asm.R4, 1),
		asm.Mov.Reg(asm.R5, asm.R1),
		asm.Mul.Imm32(asm.R5, -1640531535), // 2^32 / golden ratio: initial numbers far apart
		asm.Mov.Reg(asm.R3, asm.R5),
		asm.RSh.Imm(asm.R3, 16),
		asm.Add.Reg(asm.R3, asm.R4),
		asm.And.Imm(asm.R3, 0xffff),
		asm.StoreMem(asm.RFP, -16, asm.R3, asm.DWord),
	},
		store16(offID, asm.R3, asm.R3),
		asm.Instructions{
			asm.Mul.Imm32(asm.R4, PayloadBytes),
			asm.Mov.Reg(asm.R9, asm.R5),
			asm.Add.Reg32(asm.R9, asm.R4),
			asm.Xor.Imm32(asm.R5, 0x5bd1e995),
			asm.Add.Reg32(asm.R5, asm.R4),
		})
}

// ends writes addresses and ports; R2 is lost.
func ends(client, server, cport, sport int16) asm.Instructions {
	return concat(
		asm.Instructions{asm.Mov.Imm(asm.R2, clientAddr), asm.Or.Reg(asm.R2, asm.R1)},
		store32(client, asm.R2, asm.R2),
		asm.Instructions{asm.Mov.Imm(asm.R2, clientPort), asm.Add.Reg(asm.R2, asm.R1)},
		store16(cport, asm.R2, asm.R2),
		asm.Instructions{asm.Mov.Imm(asm.R2, serverAddr)},
		store32(server, asm.R2, asm.R2),
		asm.Instructions{constant16(sport, serverPort)},
	)
}

func fromClient() asm.Instructions {
	return concat(asm.Instructions{
		asm.LoadMem(asm.R4, asm.R8, 4, asm.Word),
		asm.StoreMem(asm.R8, 0, asm.R0, asm.Word),
	},
		ends(offSrc, offDst, offSPort, offDPort),
		asm.Instructions{asm.Ja.Label("sums")})
}

// The server has the client's bytes of this round already.
func fromServer() asm.Instructions {
	list := concat(asm.Instructions{
		asm.LoadMem(asm.R4, asm.R8, 0, asm.Word),
		asm.StoreMem(asm.R8, 4, asm.R0, asm.Word),
	},
		ends(offDst, offSrc, offDPort, offSPort),
		asm.Instructions{
			asm.Mov.Reg(asm.R2, asm.R9),
			asm.Mov.Reg(asm.R9, asm.R5),
			asm.Mov.Reg(asm.R5, asm.R2),
			asm.Add.Imm32(asm.R5, PayloadBytes),
		})
	list[0] = list[0].WithSymbol("server")
	return list
}

// flowSums writes what is left, and both checksums. R8 is 1 for a RST.
func flowSums() asm.Instructions {
	numbers := concat(
		store32(offSeq, asm.R9, asm.R2),
		store32(offAck, asm.R5, asm.R2),
		store32(offTSVal, asm.R0, asm.R2),
		store32(offTSEcr, asm.R4, asm.R2),
		asm.Instructions{
			asm.Mov.Reg(asm.R2, asm.R1), // of the address ...
			asm.Add.Reg(asm.R2, asm.R1), // ... and of the port
			asm.Add.Reg(asm.R2, asm.R9),
			asm.Add.Reg(asm.R2, asm.R5),
			asm.Add.Reg(asm.R2, asm.R0),
			asm.Add.Reg(asm.R2, asm.R4),
			asm.LoadMem(asm.R3, asm.RFP, -8, asm.DWord),
			asm.Mov.Imm(asm.R8, 1),
			asm.JEq.Imm(asm.R3, ResetEvery-1, "reset"),
			asm.Mov.Imm(asm.R8, 0),
		})
	numbers[0] = numbers[0].WithSymbol("sums")
	payload := template(false)[HeaderBytes:]
	return concat(numbers,
		kind(payload, flagPSHACK, ""),
		asm.Instructions{asm.Ja.Label("fold")},
		kind(nil, flagRSTACK, "reset"),
		asm.Instructions{
			asm.LoadMem(asm.R4, asm.RFP, -16, asm.DWord).WithSymbol("fold"),
			asm.Add.Reg(asm.R3, asm.R4),
			asm.Add.Reg(asm.R3, asm.R1),
		},
		storeSum(offTCPSum, asm.R2, asm.R4),
		storeSum(offIPSum, asm.R3, asm.R4))
}

// kind writes length and flags, and adds them to the sums: TCP's in R2, IP's in
// R3.
func kind(payload []byte, flags int32, label string) asm.Instructions {
	list := asm.Instructions{
		constant16(offLength, uint16(HeaderBytes-14+len(payload))),
		asm.StoreImm(asm.R7, offFlags, int64(flags), asm.Byte),
		asm.Add.Imm(asm.R2, tcpConst(payload, flags, clientAddr)),
		asm.Mov.Imm(asm.R3, ipConst(int32(len(payload)), clientAddr)),
	}
	if label != "" {
		list[0] = list[0].WithSymbol(label)
	}
	return list
}

// floodProgram sends SYN number n from the n-th address of a walk through 2^24:
// the factor is odd, so none comes twice before all have come. A scan goes from
// port to port.
func floodProgram(state int, scan bool) asm.Instructions {
	ports := int32(1)
	if scan {
		ports = 1024
	}
	return concat(
		begin(state, HeaderBytes),
		asm.Instructions{
			asm.Mov.Reg(asm.R1, asm.R9),
			asm.Mul.Imm32(asm.R1, 0x61c88647),
			asm.Mov.Reg(asm.R5, asm.R1), // also the initial sequence number
			asm.And.Imm(asm.R1, 0xffffff),
			asm.Mov.Imm(asm.R2, floodAddr),
			asm.Or.Reg(asm.R2, asm.R1),
			asm.Mov.Reg(asm.R3, asm.R1),
			asm.And.Imm(asm.R3, 0x7fff), // the port
			asm.Add.Imm(asm.R3, clientPort),
			asm.Mov.Reg(asm.R1, asm.R9),
			asm.And.Imm(asm.R1, ports-1), // the port scanned
			asm.And.Imm(asm.R9, 0xffff),  // the IP id
			asm.Add.Imm(asm.R1, serverPort),
		},
		store16(offDPort, asm.R1, asm.R4),
		store32(offSrc, asm.R2, asm.R4),
		store16(offSPort, asm.R3, asm.R4),
		store32(offSeq, asm.R5, asm.R4),
		store32(offTSVal, asm.R0, asm.R4),
		store16(offID, asm.R9, asm.R4),
		asm.Instructions{
			asm.Sub.Imm(asm.R2, floodAddr), // the constants hold it
			asm.Add.Reg(asm.R5, asm.R2),
			asm.Add.Reg(asm.R5, asm.R3),
			asm.Sub.Imm(asm.R5, clientPort),
			asm.Add.Reg(asm.R5, asm.R1),
			asm.Sub.Imm(asm.R5, serverPort),
			asm.Add.Reg(asm.R5, asm.R0),
			asm.Add.Imm(asm.R5, tcpConst(nil, flagSYN, floodAddr)),
			asm.Add.Reg(asm.R9, asm.R2),
			asm.Add.Imm(asm.R9, ipConst(0, floodAddr)),
		},
		storeSum(offTCPSum, asm.R5, asm.R4),
		storeSum(offIPSum, asm.R9, asm.R4),
		end(),
	)
}
