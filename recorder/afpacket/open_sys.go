//go:build !cgo

package afpacket

import (
	"fmt"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// opened makes socket, ring and filter by hand. The socket takes no packet until
// it is bound, so nothing unfiltered can come in.
func opened(blocks int, filter []bpf.RawInstruction) (*socket, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	s := &socket{fd: fd}
	s.close = func() {
		if s.ring != nil {
			_ = unix.Munmap(s.ring)
		}
		_ = unix.Close(fd)
	}
	if err := s.setUp(blocks, filter); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *socket) setUp(blocks int, filter []bpf.RawInstruction) (err error) {
	if err := unix.SetsockoptInt(s.fd, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V3); err != nil {
		return fmt.Errorf("set TPACKET_V3: %w", err)
	}
	program := make([]unix.SockFilter, len(filter))
	for i, f := range filter {
		program[i] = unix.SockFilter{Code: f.Op, Jt: f.Jt, Jf: f.Jf, K: f.K}
	}
	if err := unix.SetsockoptSockFprog(s.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}); err != nil {
		return fmt.Errorf("attach filter: %w", err)
	}
	req := &unix.TpacketReq3{
		Block_size: blockBytes, Block_nr: uint32(blocks), Frame_size: blockBytes, Frame_nr: uint32(blocks),
		Retire_blk_tov: uint32(retire / time.Millisecond),
	}
	if err := unix.SetsockoptTpacketReq3(s.fd, unix.SOL_PACKET, unix.PACKET_RX_RING, req); err != nil {
		return fmt.Errorf("set ring: %w", err)
	}
	if s.ring, err = unix.Mmap(s.fd, 0, blocks*blockBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return fmt.Errorf("map ring: %w", err)
	}
	return unix.Bind(s.fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL)})
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }
