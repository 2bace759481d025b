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
func opened(g geometry, filter []bpf.RawInstruction) (*socket, error) {
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
	if err := s.setUp(g, filter); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *socket) setUp(g geometry, filter []bpf.RawInstruction) (err error) {
	if err := unix.SetsockoptInt(s.fd, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V3); err != nil {
		return fmt.Errorf("set TPACKET_V3: %w", err)
	}
	if err := attach(s.fd, filter); err != nil {
		return err
	}
	req := &unix.TpacketReq3{
		Block_size: uint32(g.blockBytes), Block_nr: uint32(g.blocks),
		Frame_size: uint32(g.blockBytes), Frame_nr: uint32(g.blocks),
		Retire_blk_tov: uint32(retire / time.Millisecond),
	}
	if err := unix.SetsockoptTpacketReq3(s.fd, unix.SOL_PACKET, unix.PACKET_RX_RING, req); err != nil {
		return fmt.Errorf("set ring: %w", err)
	}
	if s.ring, err = unix.Mmap(s.fd, 0, g.bytes(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return fmt.Errorf("map ring: %w", err)
	}
	return bind(s.fd, unix.ETH_P_ALL)
}
