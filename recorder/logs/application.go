package logs

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"tcpcoroner/evidence"
)

// applicationPhrases are how programs tell of a connection's end: the names and
// numbers of errno(3), the words of strerror(3) and of common runtimes. They are
// found in the line in lower case.
var applicationPhrases = []phrase{
	{"econnreset", "", "", evidence.ReasonReset},
	{"reset by peer", "", "", evidence.ReasonReset},
	{"connection reset", "", "", evidence.ReasonReset},
	{"econnrefused", "", evidence.PhaseConnect, evidence.ReasonConnectRefused},
	{"connection refused", "", evidence.PhaseConnect, evidence.ReasonConnectRefused},
	{"eaddrnotavail", "", evidence.PhaseConnect, evidence.ReasonNoLocalPort},
	{"cannot assign requested address", "", evidence.PhaseConnect, evidence.ReasonNoLocalPort},
	{"ehostunreach", evidence.PartyNetwork, evidence.PhaseConnect, evidence.ReasonUnreachable},
	{"no route to host", evidence.PartyNetwork, evidence.PhaseConnect, evidence.ReasonUnreachable},
	{"enetunreach", evidence.PartyNetwork, evidence.PhaseConnect, evidence.ReasonUnreachable},
	{"network is unreachable", evidence.PartyNetwork, evidence.PhaseConnect, evidence.ReasonUnreachable},
	{"epipe", "", "", evidence.ReasonBrokenPipe},
	{"broken pipe", "", "", evidence.ReasonBrokenPipe},
	{"tls handshake error", "", evidence.PhaseTLS, evidence.ReasonTLSError},
	{"tls handshake timeout", "", evidence.PhaseTLS, evidence.ReasonTimeout},
	{"ssl handshake", "", evidence.PhaseTLS, evidence.ReasonTLSError},
	{"sslhandshakeexception", "", evidence.PhaseTLS, evidence.ReasonTLSError},
	{"etimedout", "", "", evidence.ReasonTimeout},
	{"connection timed out", "", "", evidence.ReasonTimeout},
	{"i/o timeout", "", "", evidence.ReasonTimeout},
	{"read timed out", "", "", evidence.ReasonTimeout},
	{"connect timed out", "", evidence.PhaseConnect, evidence.ReasonConnectTimeout},
	{"econnaborted", "", "", evidence.ReasonLocalReset},
	{"software caused connection abort", "", "", evidence.ReasonLocalReset},
	{"too many open files", "", "", evidence.ReasonLimit},
}

// managerPhrases are what systemd says of a unit (src/core/service.c, unit.c), in
// lower case. They count only where systemd itself writes.
var managerPhrases = []phrase{
	{"killed by the oom killer", "", "", evidence.ReasonOOMKill},
	{"result 'oom-kill'", "", "", evidence.ReasonOOMKill},
	{"main process exited", "", "", evidence.ReasonProcessDied},
	{"failed with result", "", "", evidence.ReasonProcessDied},
	{"stopping ", "", "", evidence.ReasonUnitStopped},
	{"stopped ", "", "", evidence.ReasonUnitStopped},
	{"deactivated successfully", "", "", evidence.ReasonUnitStopped},
	{"started ", "", "", evidence.ReasonUnitStarted},
}

// parseManager reads a message of systemd about a unit.
func parseManager(text string) evidence.LogLine {
	said, _ := first(managerPhrases, strings.ToLower(text))
	return evidence.LogLine{Source: evidence.LogJournal, Reason: said.reason}
}

// errnos are the numbers that a bare "errno=104" can have on Linux.
var errnos = map[int]phrase{
	32:  {"", "", "", evidence.ReasonBrokenPipe},
	99:  {"", "", evidence.PhaseConnect, evidence.ReasonNoLocalPort},
	103: {"", "", "", evidence.ReasonLocalReset},
	104: {"", "", "", evidence.ReasonReset},
	110: {"", "", "", evidence.ReasonTimeout},
	111: {"", "", evidence.PhaseConnect, evidence.ReasonConnectRefused},
	113: {"", evidence.PartyNetwork, evidence.PhaseConnect, evidence.ReasonUnreachable},
}

// operations tell the phase from the system call that a runtime names.
var operations = []phrase{
	{"dial tcp", "", evidence.PhaseConnect, ""},
	{"connect ", "", evidence.PhaseConnect, ""},
	{"connect()", "", evidence.PhaseConnect, ""},
	{"read tcp", "", evidence.PhaseData, ""},
	{"write tcp", "", evidence.PhaseData, ""},
	{"recv", "", evidence.PhaseData, ""},
	{"send", "", evidence.PhaseData, ""},
	{"read ", "", evidence.PhaseData, ""},
	{"write ", "", evidence.PhaseData, ""},
}

// parseApplication reads a line of no known format. It names no party: what a
// program calls its peer is only the next hop.
func parseApplication(text string) evidence.LogLine {
	l := evidence.LogLine{Source: evidence.LogFile}
	low := strings.ToLower(text)
	said, ok := first(applicationPhrases, low)
	if !ok {
		said, ok = errnos[errnoOf(low)]
	}
	if !ok {
		return l
	}
	l.Party, l.Phase, l.Reason = said.party, said.phase, said.reason
	if l.Phase == "" {
		doing, _ := first(operations, low)
		l.Phase = doing.phase
	}
	if l.Reason == evidence.ReasonTimeout && l.Phase == evidence.PhaseConnect {
		l.Reason = evidence.ReasonConnectTimeout
	}
	l.Local, l.Addresses = goEndpoints(text)
	return l
}

// errnoOf finds the number in "errno=104", "errno: -104" (libuv, Node.js), "Errno
// 104" (Python) and "os error 104" (Rust); 0 if there is none.
func errnoOf(low string) int {
	for _, key := range []string{"errno", "os error"} {
		_, rest, ok := strings.Cut(low, key)
		if !ok {
			continue
		}
		rest = strings.TrimLeft(rest, " =:\"'(-")
		end := 0
		for end < len(rest) && end < 4 && rest[end] >= '0' && rest[end] <= '9' {
			end++
		}
		n, _ := strconv.Atoi(rest[:end])
		return n
	}
	return 0
}

// goEndpoints finds the addresses of a line. Go's net package writes "local->remote";
// elsewhere the roles stay open.
func goEndpoints(text string) (local netip.AddrPort, others []netip.AddrPort) {
	all := findEndpoints(text)
	i := strings.Index(text, "->")
	if i < 0 || len(all) < 2 {
		return local, all
	}
	before := findEndpoints(text[:i])
	if n := len(before); n > 0 && before[n-1].Port() != 0 {
		return before[n-1], append(slices.Clone(before[:n-1]), findEndpoints(text[i:])...)
	}
	return local, all
}

// kernelPhrases are messages of the kernel that explain lost connections. They are
// found in the message in lower case. Sources: nf_conntrack_core.c, oom_kill.c,
// tcp_input.c, tcp.c, tcp_timer.c, inet_timewait_sock.c, neighbour.c, sch_generic.c
// and the network drivers.
var kernelPhrases = []phrase{
	{"table full, dropping packet", evidence.PartyNetwork, evidence.PhaseConnect, evidence.ReasonTableFull},
	{"out of memory: killed process", "", "", evidence.ReasonOOMKill},
	{"oom-kill:", "", "", evidence.ReasonOOMKill},
	{"invoked oom-killer", "", "", evidence.ReasonOOMKill},
	{"possible syn flooding", "", evidence.PhaseConnect, evidence.ReasonSYNFlood},
	{"out of memory -- consider tuning tcp_mem", "", "", evidence.ReasonTCPMemory},
	{"too many orphaned sockets", "", "", evidence.ReasonOrphans},
	{"time wait bucket table overflow", "", "", evidence.ReasonTimeWait},
	{"neighbor table overflow", evidence.PartyNetwork, "", evidence.ReasonNeighbours},
	{"neighbour table overflow", evidence.PartyNetwork, "", evidence.ReasonNeighbours},
	{"netdev watchdog", evidence.PartyNetwork, "", evidence.ReasonTransmitStuck},
	{"link is down", evidence.PartyNetwork, "", evidence.ReasonLinkDown},
	{"link down", evidence.PartyNetwork, "", evidence.ReasonLinkDown},
	{"lost carrier", evidence.PartyNetwork, "", evidence.ReasonLinkDown},
	{"link is up", evidence.PartyNetwork, "", evidence.ReasonLinkUp},
	{"link becomes ready", evidence.PartyNetwork, "", evidence.ReasonLinkUp},
	{"entered disabled state", evidence.PartyNetwork, "", evidence.ReasonLinkDown},
}

// parseKernel reads a message of the kernel.
func parseKernel(text string) evidence.LogLine {
	l := evidence.LogLine{Source: evidence.LogKernel}
	if said, ok := first(kernelPhrases, strings.ToLower(text)); ok {
		l.Party, l.Phase, l.Reason = said.party, said.phase, said.reason
		return l
	}
	readFirewall(text, &l)
	return l
}

// readFirewall reads what the LOG target and nftables' log statement write
// (net/netfilter/nf_log_syslog.c): "SRC=192.0.2.1 DST=192.0.2.2 ... PROTO=TCP
// SPT=4711 DPT=80".
func readFirewall(text string, l *evidence.LogLine) {
	if !strings.Contains(text, "PROTO=TCP ") {
		return
	}
	value := map[string]string{}
	for _, w := range strings.Fields(text) {
		if k, v, ok := strings.Cut(w, "="); ok && value[k] == "" {
			value[k] = v
		}
	}
	for _, end := range [][2]string{{"SRC", "SPT"}, {"DST", "DPT"}} {
		addr, err := netip.ParseAddr(value[end[0]])
		port, err2 := strconv.ParseUint(value[end[1]], 10, 16)
		if err != nil || err2 != nil {
			return
		}
		l.Addresses = append(l.Addresses, netip.AddrPortFrom(addr, uint16(port)))
	}
	l.Party, l.Reason = evidence.PartyNetwork, evidence.ReasonFirewall
}
