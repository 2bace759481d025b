package snapshot

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"tcpcoroner/evidence"
)

// wanted are the groups of /proc/net/snmp and netstat that are kept: nil for all
// names, otherwise the names. The rest counts traffic, not trouble.
var wanted = map[string][]string{
	"Tcp":    nil,
	"TcpExt": nil,
	"Ip":     {"InHdrErrors", "InAddrErrors", "ForwDatagrams", "InDiscards", "OutDiscards", "OutNoRoutes", "ReasmFails", "FragFails"},
	"IpExt":  {"InNoRoutes", "InTruncatedPkts", "InCsumErrors"},
	"Icmp":   {"InDestUnreachs", "OutDestUnreachs"},
}

// Counters reads the TCP counters of this thread's network namespace, named
// "Tcp.OutRsts", "TcpExt.ListenOverflows" and so on. Gauges of /proc/net/sockstat
// are "Sockstat.TCP.inuse"; of those, orphan, alloc and mem count the whole host.
// "Softnet.dropped" and "Softnet.time_squeeze" are sums over the host's CPUs. A
// counter that the kernel does not have is absent. The error tells that TCP's
// own could not be read; Counters then holds what could.
func (t *Taker) Counters() (evidence.Counters, error) { return within(t, t.counters) }

func (t *Taker) counters() (evidence.Counters, error) { return t.countersOf(true) }

// countersOf leaves out what is the whole host's and no namespace's, unless it is
// wanted.
func (t *Taker) countersOf(host bool) (evidence.Counters, error) {
	c := evidence.Counters{Time: t.cfg.Now(), Values: make(map[string]uint64, 256)}
	buf := t.buffer()
	defer t.buffers.Put(buf)
	t.files.mu.Lock()
	defer t.files.mu.Unlock()
	t.files.enter(t.cfg.ProcRoot)
	var errs []error
	for _, source := range []struct {
		file  string
		parse func(string, map[string]uint64)
		must  bool
	}{
		{"snmp", parsePairs, true},
		{"netstat", parsePairs, true},
		{"sockstat", parseSockstat, false},
		{"sockstat6", parseSockstat, false}, // absent without IPv6
		{"softnet_stat", parseSoftnet, false},
	} {
		if source.file == "softnet_stat" && !host {
			continue
		}
		text, err := t.files.read(t.cfg.ProcRoot, source.file, buf)
		if err != nil {
			if source.must || !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, fmt.Errorf("read counters: %w", err))
			}
			continue
		}
		source.parse(text, c.Values)
	}
	return c, errors.Join(errs...)
}

// parsePairs reads /proc/net/snmp and netstat: a line of names, then a line of
// values, both led by the group. Negative values (Tcp.MaxConn) mean "none" and
// are left out.
func parsePairs(text string, into map[string]uint64) {
	var group, names string
	for line := range strings.Lines(text) {
		first, rest := field(line)
		switch first {
		case "":
		case group:
			addPairs(strings.TrimSuffix(group, ":"), names, rest, into)
			group = ""
		default:
			group, names = first, rest
		}
	}
}

// field splits the first word off a line.
func field(line string) (first, rest string) {
	first, rest, _ = strings.Cut(strings.TrimSpace(line), " ")
	return first, rest
}

func addPairs(group, names, values string, into map[string]uint64) {
	only, ok := wanted[group]
	if !ok {
		return
	}
	for names != "" && values != "" {
		var name, value string
		name, names = field(names)
		value, values = field(values)
		if only == nil || slices.Contains(only, name) {
			addNumber(into, group+"."+name, value, 10)
		}
	}
}

func addNumber(into map[string]uint64, name, digits string, base int) {
	if n, err := strconv.ParseUint(digits, base, 64); err == nil {
		into[name] += n
	}
}

// parseSockstat reads "TCP: inuse 1 orphan 0 tw 1 alloc 1 mem 73".
func parseSockstat(text string, into map[string]uint64) {
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		group := "Sockstat." + strings.TrimSuffix(fields[0], ":") + "."
		for i := 1; i+1 < len(fields); i += 2 {
			addNumber(into, group+fields[i], fields[i+1], 10)
		}
	}
}

// parseSoftnet reads one line of hexadecimal numbers for each CPU: processed,
// dropped, time_squeeze, ... (softnet_seq_show in net/core/net-procfs.c).
func parseSoftnet(text string, into map[string]uint64) {
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 3 {
			continue
		}
		addNumber(into, "Softnet.dropped", fields[1], 16)
		addNumber(into, "Softnet.time_squeeze", fields[2], 16)
	}
}
