package snapshot

import (
	"encoding/binary"
	"time"

	"golang.org/x/sys/unix"

	"tcpcoroner/evidence"
)

// Attributes of inet_diag (linux/inet_diag.h) beside inetDiagInfo. The kernel
// gives the mark and the cgroup unasked.
const (
	inetDiagCong      = 4  // INET_DIAG_CONG: name of the congestion control
	inetDiagTOS       = 5  // INET_DIAG_TOS
	inetDiagSKMemInfo = 7  // INET_DIAG_SKMEMINFO: see SK_MEMINFO_ of linux/sock_diag.h
	inetDiagShutdown  = 8  // INET_DIAG_SHUTDOWN: 1 for reading, 2 for writing
	inetDiagMark      = 15 // INET_DIAG_MARK
	inetDiagCgroupID  = 21 // INET_DIAG_CGROUP_ID
)

// timerNames are by idiag_timer (inet_csk_diag_fill and inet_twsk_diag_fill in
// net/ipv4/inet_diag.c).
var timerNames = [...]string{
	1: evidence.TimerRetransmit, 2: evidence.TimerKeepalive,
	3: evidence.TimerTimeWait, 4: evidence.TimerProbe,
}

// diagTimer is nil if no timer runs; expires is in milliseconds.
func diagTimer(kind, tries uint8, expires uint32) *evidence.Timer {
	if kind == 0 || int(kind) >= len(timerNames) {
		return nil
	}
	return &evidence.Timer{Kind: timerNames[kind], Expires: time.Duration(expires) * time.Millisecond, Tries: tries}
}

// diagCookie reads two 32-bit halves, the lower first (sock_diag_save_cookie).
func diagCookie(b []byte) uint64 {
	return uint64(binary.NativeEndian.Uint32(b)) | uint64(binary.NativeEndian.Uint32(b[4:]))<<32
}

// parseDiagDetails reads the attributes of a socket. A listener has no tcp_info
// that tells more than its queues.
func parseDiagDetails(b []byte, s *evidence.Socket) {
	for typ, value := range attributes(b) {
		switch {
		case typ == inetDiagInfo && s.State != stateNames[stateListen]:
			s.Info = parseTCPInfo(value)
		case typ == inetDiagCong:
			s.Congestion = congestionName(value)
		case typ == inetDiagTOS && len(value) > 0:
			s.TOS = value[0]
		case typ == inetDiagShutdown && len(value) > 0:
			s.ShutdownRead, s.ShutdownWrite = value[0]&1 != 0, value[0]&2 != 0
		case typ == inetDiagMark:
			s.Mark = host32(value)
		case typ == inetDiagCgroupID && len(value) >= 8:
			s.CgroupID = binary.NativeEndian.Uint64(value)
		case typ == inetDiagSKMemInfo:
			parseSKMemInfo(value, s)
		}
	}
}

// parseSKMemInfo reads 32-bit numbers: 1 SK_MEMINFO_RCVBUF, 3 SK_MEMINFO_SNDBUF,
// 8 SK_MEMINFO_DROPS (of Linux 4.6).
func parseSKMemInfo(value []byte, s *evidence.Socket) {
	at := func(i int) uint32 { return host32(value[min(4*i, len(value)):]) }
	s.RecvBuffer, s.SendBuffer, s.Drops = at(1), at(3), at(8)
}

// congestionName makes no string of its own for what nearly all sockets have.
func congestionName(value []byte) string {
	name := unix.ByteSliceToString(value)
	for _, usual := range [...]string{"cubic", "bbr", "reno", "dctcp"} {
		if name == usual {
			return usual
		}
	}
	return name
}

// tcpInfoLen reaches to tcpi_snd_wnd, of kernel 5.4.
const tcpInfoLen = 232

// parseTCPInfo reads struct tcp_info (linux/tcp.h). It only ever grew: what an
// older kernel does not have reads as 0.
func parseTCPInfo(value []byte) *evidence.TCPInfo {
	var b [tcpInfoLen]byte
	copy(b[:], value)
	u32 := func(at int) uint32 { return binary.NativeEndian.Uint32(b[at:]) }
	return &evidence.TCPInfo{
		CAState:       caState(b[1]),
		Retransmits:   b[2],
		Probes:        b[3],
		Backoff:       b[4],
		Options:       tcpOptions(b[5]),
		RTO:           time.Duration(u32(8)) * time.Microsecond,
		SndMSS:        u32(16),
		Unacked:       u32(24),
		Lost:          u32(32),
		LastSent:      time.Duration(u32(44)) * time.Millisecond,
		LastReceived:  time.Duration(u32(52)) * time.Millisecond,
		PMTU:          u32(60),
		RTT:           time.Duration(u32(68)) * time.Microsecond,
		CongestionWnd: u32(80),
		TotalRetrans:  u32(100),
		BytesAcked:    binary.NativeEndian.Uint64(b[120:]),
		BytesRecv:     binary.NativeEndian.Uint64(b[128:]),
		NotSentBytes:  u32(144),
		SndWnd:        u32(228),
	}
}

// caState is a TCP_CA_ state (linux/tcp.h); the usual one, open, is left out.
func caState(n uint8) string {
	names := [...]string{"", "disorder", "cwr", "recovery", "loss"}
	if int(n) >= len(names) {
		return ""
	}
	return names[n]
}

// optionNames are the TCPI_OPT_ bits (linux/tcp.h), from the lowest.
var optionNames = [...]string{"timestamps", "sack", "wscale", "ecn", "ecn_seen", "syn_data"}

// optionSets holds each combination of optionNames once, for all sockets.
var optionSets = func() (sets [1 << len(optionNames)][]string) {
	for bits := range sets {
		for i, name := range optionNames {
			if bits&(1<<i) != 0 {
				sets[bits] = append(sets[bits], name)
			}
		}
	}
	return sets
}()

// tcpOptions shares its result; callers only read it.
func tcpOptions(bits uint8) []string { return optionSets[int(bits)%len(optionSets)] }
