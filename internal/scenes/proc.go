package scenes

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// parseCounters reads the text of /proc/net/snmp or /proc/net/netstat: pairs of
// lines, names and values, that begin with the same group.
func parseCounters(text string, into map[string]uint64) {
	lines := strings.Split(text, "\n")
	for i := 0; i+1 < len(lines); i += 2 {
		names, values := strings.Fields(lines[i]), strings.Fields(lines[i+1])
		if len(names) == 0 || len(names) != len(values) {
			continue
		}
		for k := 1; k < len(names); k++ {
			// Tcp.MaxConn is -1; what is no number is left out.
			if v, err := strconv.ParseUint(values[k], 10, 64); err == nil {
				into[names[0][:len(names[0])-1]+"."+names[k]] = v
			}
		}
	}
}

// parsePairs reads counters of the form "Ip6InReceives 12".
func parsePairs(text string, into map[string]uint64) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) != 2 {
			continue
		}
		if v, err := strconv.ParseUint(f[1], 10, 64); err == nil {
			into[f[0]] = v
		}
	}
}

// state is the state of a connection in the namespace, 0 if there is none. It
// shows TIME_WAIT and FIN_WAIT2 where no descriptor is left.
func (h *Host) state(local, remote netip.AddrPort) (int, error) {
	state, _, err := h.socket(local, remote)
	return state, err
}

// socket is the state of a connection and the kind of timer that it waits for.
func (h *Host) socket(local, remote netip.AddrPort) (state, timer int, err error) {
	file := "tcp"
	if local.Addr().Is6() {
		file = "tcp6"
	}
	text, err := h.proc(file)
	if err != nil {
		return 0, 0, err
	}
	return parseSocket(text, local.Port(), remote.Port())
}

// parseSocket finds a connection in the text of /proc/net/tcp or tcp6 by its
// ports, which are enough on a stage; state 0 means that there is none. Lines are
// "0: 0202620A:1F90 0201620A:8F1C 01 tx:rx 02:when ..." (net/ipv4/tcp_ipv4.c
// get_tcp4_sock), where 02 is the kind of timer.
func parseSocket(text string, local, remote uint16) (state, timer int, err error) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 6 || f[0] == "sl" {
			continue
		}
		if !strings.HasSuffix(f[1], fmt.Sprintf(":%04X", local)) || !strings.HasSuffix(f[2], fmt.Sprintf(":%04X", remote)) {
			continue
		}
		kind, _, _ := strings.Cut(f[5], ":")
		s, err := strconv.ParseUint(f[3], 16, 8)
		t, terr := strconv.ParseUint(kind, 16, 8)
		if err := errors.Join(err, terr); err != nil {
			return 0, 0, fmt.Errorf("parse socket state in %q: %w", line, err)
		}
		return int(s), int(t), nil
	}
	return 0, 0, nil
}
