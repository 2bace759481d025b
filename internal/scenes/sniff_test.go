package scenes

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"tcpcoroner/evidence"
)

// sniff captures on all hosts from now on. The function that it returns counts
// the resets so far by source address, each segment once however many
// interfaces it passed.
func sniff(t testing.TB, st *Stage) func() map[netip.AddrPort]int {
	t.Helper()
	var fds []int
	for _, h := range []*Host{st.Client, st.Router, st.Server} {
		err := h.Do(func() error {
			fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(htons(unix.ETH_P_ALL)))
			fds = append(fds, fd)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	})
	return func() map[netip.AddrPort]int {
		seen := map[reset]bool{}
		for _, fd := range fds {
			readResets(fd, seen)
		}
		by := map[netip.AddrPort]int{}
		for r := range seen {
			by[r.src]++
		}
		return by
	}
}

// reset is what tells one RST segment of a scene from another.
type reset struct {
	src, dst netip.AddrPort
	seq      uint32
	flags    byte
}

func readResets(fd int, into map[reset]bool) {
	for b := make([]byte, 65536); ; {
		n, _, err := unix.Recvfrom(fd, b, 0)
		if err != nil {
			return // EAGAIN: all that came
		}
		ip, err := evidence.FirstIP(b[:n], n)
		if err != nil || ip.Proto != unix.IPPROTO_TCP {
			continue
		}
		if r, ok := parseReset(b[:n], ip); ok {
			into[r] = true
		}
	}
}

func parseReset(b []byte, ip evidence.IPHeader) (r reset, ok bool) {
	tcp := b[ip.Next:]
	if tcp[13]&flagRST == 0 {
		return r, false
	}
	size, at := 4, 12
	if ip.Version == 6 {
		size, at = 16, 8
	}
	src, _ := netip.AddrFromSlice(b[at : at+size])
	dst, _ := netip.AddrFromSlice(b[at+size : at+2*size])
	return reset{
		netip.AddrPortFrom(src, binary.BigEndian.Uint16(tcp)),
		netip.AddrPortFrom(dst, binary.BigEndian.Uint16(tcp[2:])),
		binary.BigEndian.Uint32(tcp[4:]),
		tcp[13],
	}, true
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }
