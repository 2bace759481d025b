package snapshot

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"tcpcoroner/evidence"
)

// State masks of inet_diag requests: bit n asks for state n.
const (
	stateTimeWait = 6
	stateListen   = 10
	listenOnly    = 1 << stateListen
	allStates     = 1<<12 - 1 // 1 to 11; half-open ones report as syn_received
)

// stateNames are the TCP_ states of include/net/tcp_states.h in the spelling of
// the semantic conventions (network.connection.state).
var stateNames = [...]string{
	1: "established", 2: "syn_sent", 3: "syn_received", 4: "fin_wait_1",
	5: "fin_wait_2", 6: "time_wait", 7: "closed", 8: "close_wait",
	9: "last_ack", 10: "listen", 11: "closing", 12: "syn_received",
}

// errTooMany ends a dump that has more sockets than a snapshot may hold.
var errTooMany = errors.New("more sockets than a snapshot holds")

// Listeners reads the listening TCP sockets, IPv4 and IPv6: RecvQueue is the
// length of the accept queue, SendQueue its limit. Owners are not looked up. It
// costs in proportion to the listeners, however many connections there are.
func (t *Taker) Listeners() ([]evidence.Socket, error) {
	ctx, cancel := context.WithTimeout(context.Background(), pollTimeout)
	defer cancel()
	return within(t, func() ([]evidence.Socket, error) { return t.sockets(ctx, listenOnly) })
}

// sockets dumps the sockets in the states of the mask. With an error it returns
// those that were read before.
func (t *Taker) sockets(ctx context.Context, states uint32) ([]evidence.Socket, error) {
	var all []evidence.Socket
	full := false
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		r := request{family: unix.NETLINK_SOCK_DIAG, typ: unix.SOCK_DIAG_BY_FAMILY, body: diagRequest(family, states)}
		err := t.dump(ctx, r, func(b []byte) bool {
			if full = len(all) >= t.cfg.MaxSockets; full {
				return false
			}
			if s, ok := parseDiag(b); ok {
				all = append(all, s)
			}
			return true
		})
		if err != nil {
			return all, fmt.Errorf("dump TCP sockets with sock_diag: %w", err)
		}
		if full {
			return all, fmt.Errorf("%w: %d", errTooMany, t.cfg.MaxSockets)
		}
	}
	return all, nil
}

const (
	inetDiagInfo   = 2 // INET_DIAG_INFO: struct tcp_info
	diagRequestLen = 56
	diagLen        = 72 // struct inet_diag_msg
)

// diagRequest is a struct inet_diag_req_v2 (linux/inet_diag.h) without a filter.
// Of each attribute that is asked for, the bit is one less than its number.
func diagRequest(family uint8, states uint32) []byte {
	b := make([]byte, diagRequestLen)
	b[0], b[1] = family, unix.IPPROTO_TCP
	b[2] = 1 << (inetDiagSKMemInfo - 1)
	if states != listenOnly {
		b[2] |= 1<<(inetDiagInfo-1) | 1<<(inetDiagCong-1) | 1<<(inetDiagTOS-1) | 1<<(inetDiagShutdown-1)
	}
	binary.NativeEndian.PutUint32(b[4:], states)
	return b
}

// parseDiag reads a struct inet_diag_msg and the attributes after it.
func parseDiag(b []byte) (evidence.Socket, bool) {
	if len(b) < diagLen || b[1] == 0 || int(b[1]) >= len(stateNames) {
		return evidence.Socket{}, false
	}
	s := evidence.Socket{
		State:     stateNames[b[1]],
		Local:     diagAddr(b[0], b[8:24], b[4:6]),
		Interface: binary.NativeEndian.Uint32(b[40:]),
		Cookie:    diagCookie(b[44:52]),
		RecvQueue: binary.NativeEndian.Uint32(b[56:]),
		SendQueue: binary.NativeEndian.Uint32(b[60:]),
		UID:       binary.NativeEndian.Uint32(b[64:]),
		Inode:     binary.NativeEndian.Uint32(b[68:]),
	}
	if b[1] != stateListen {
		s.Remote = diagAddr(b[0], b[24:40], b[6:8])
		s.Timer = diagTimer(b[2], b[3], binary.NativeEndian.Uint32(b[52:]))
	}
	if b[1] != stateTimeWait {
		parseDiagDetails(b[diagLen:], &s)
	}
	return s, true
}

// diagAddr reads an address and a port in network byte order. An IPv4 address of
// a dual-stack socket is given as what the wire shows.
func diagAddr(family uint8, addr, port []byte) netip.AddrPort {
	a := netip.AddrFrom16([16]byte(addr)).Unmap()
	if family == unix.AF_INET {
		a = netip.AddrFrom4([4]byte(addr[:4]))
	}
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(port))
}
