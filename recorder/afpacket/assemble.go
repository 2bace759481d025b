package afpacket

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// assembler writes a classic BPF program with labels. Every jump goes forward, as
// the kernel wants it, and may be as far as it likes: a conditional one steps over
// an unconditional one, for its own distance is a byte.
type assembler struct {
	code   []bpf.Instruction
	labels map[string]int
	jumps  map[int]string
}

func newAssembler() *assembler {
	return &assembler{labels: map[string]int{}, jumps: map[int]string{}}
}

func (a *assembler) add(code ...bpf.Instruction) { a.code = append(a.code, code...) }

func (a *assembler) label(name string) { a.labels[name] = len(a.code) }

// to goes on at the label.
func (a *assembler) to(name string) {
	a.jumps[len(a.code)] = name
	a.add(bpf.Jump{})
}

// when goes on at the label if A is as asked for.
func (a *assembler) when(cond bpf.JumpTest, value uint32, name string) {
	a.add(bpf.JumpIf{Cond: cond, Val: value, SkipFalse: 1})
	a.to(name)
}

// equal goes on at the label if A has the value.
func (a *assembler) equal(value uint32, name string) { a.when(bpf.JumpEqual, value, name) }

func (a *assembler) assemble() ([]bpf.RawInstruction, error) {
	for at, name := range a.jumps {
		target, ok := a.labels[name]
		if !ok || target <= at {
			return nil, fmt.Errorf("assemble packet filter: no label %q behind instruction %d", name, at)
		}
		a.code[at] = bpf.Jump{Skip: uint32(target - at - 1)}
	}
	raw, err := bpf.Assemble(a.code)
	if err != nil {
		return nil, fmt.Errorf("assemble packet filter: %w", err)
	}
	return raw, nil
}

// attach gives the socket a filter. The kernel replaces one that is there
// between two packets (net/core/filter.c, __sk_attach_prog).
func attach(fd int, filter []bpf.RawInstruction) error {
	program := make([]unix.SockFilter, len(filter))
	for i, f := range filter {
		program[i] = unix.SockFilter{Code: f.Op, Jt: f.Jt, Jf: f.Jf, K: f.K}
	}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}); err != nil {
		return fmt.Errorf("attach packet filter of %d instructions: %w", len(program), err)
	}
	return nil
}

// bind has the socket take the packets of a protocol on all interfaces.
func bind(fd int, protocol uint16) error {
	wire := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, protocol))
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: wire}); err != nil {
		return fmt.Errorf("bind packet socket to protocol %#x: %w", protocol, err)
	}
	return nil
}
