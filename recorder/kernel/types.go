package kernel

import (
	"strings"

	"github.com/cilium/ebpf/btf"
)

// bpfStatsRunTime is BPF_STATS_RUN_TIME of enum bpf_stats_type (bpf(2)).
const bpfStatsRunTime = 0

// enumNames maps the numbers of a kernel's enum to its names without prefix.
// Numbers shift from version to version. Names without the prefix are left out.
func enumNames(types *btf.Spec, enum, prefix string) map[uint32]string {
	var e *btf.Enum
	if types.TypeByName(enum, &e) != nil {
		return nil
	}
	names := make(map[uint32]string, len(e.Values))
	for _, v := range e.Values {
		if name, ok := strings.CutPrefix(v.Name, prefix); ok && name != "MAX" && v.Value <= 0xffff {
			names[uint32(v.Value)] = name
		}
	}
	return names
}

// tracepointArgs is the number of arguments of a tracepoint, 0 if there is none
// of that name. The kernel declares btf_trace_NAME with a context pointer ahead
// (include/trace/bpf_probe.h).
func tracepointArgs(types *btf.Spec, name string) int {
	var t *btf.Typedef
	if types.TypeByName("btf_trace_"+name, &t) != nil {
		return 0
	}
	p, ok := t.Type.(*btf.Pointer)
	if !ok {
		return 0
	}
	f, ok := p.Target.(*btf.FuncProto)
	if !ok || len(f.Params) == 0 {
		return 0
	}
	return len(f.Params) - 1
}

// What the drop program is told to do with a reason, as in bpf/kernel.c.
const (
	wantRST = 1 << iota
	wantTCP
	wantListen
	wantStray
)

const dropReasons = 256

// dropWants are the reasons of drops that explain a reset or the lack of one,
// beside those of a RST.
var dropWants = map[string]uint8{
	// A SYN in a connection is answered by a challenge ACK (RFC 5961 section 4.2).
	"TCP_INVALID_SYN": wantTCP,
	// An accept queue is full; with SYN cookies the handshake's last ACK is dropped
	// as if there was no socket (cookie_v4_check).
	"TCP_LISTEN_OVERFLOW": wantTCP,
	"NO_SOCKET":           wantListen,
	// A firewall rule, or a connection-tracking table that is full.
	"NETFILTER_DROP": wantTCP,
}

// dropsWanted is the table for the program. stray makes the drop of a segment for
// nobody stand for the reset that answers it.
func dropsWanted(names map[uint32]string, stray bool) (want [dropReasons]uint8) {
	for n, name := range names {
		if n >= dropReasons {
			continue
		}
		want[n] = dropWants[name]
		// A RST that TCP does not believe: out of the window, too old, or in need of
		// a challenge (RFC 5961 section 3.2, tcp_validate_incoming).
		if strings.HasPrefix(name, "TCP_") {
			want[n] |= wantRST
		}
		if stray && name == "NO_SOCKET" {
			want[n] |= wantStray
		}
	}
	return want
}
