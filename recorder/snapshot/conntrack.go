package snapshot

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"tcpcoroner/evidence"
)

// ErrNoConntrack tells that the kernel does not track connections, which is no
// fault: many hosts need not.
var ErrNoConntrack = errors.New("no connection tracking: the kernel module nf_conntrack is not loaded")

// Conntrack reads the table's size and limit, which needs no privilege, and the
// counters of all CPUs, from netlink or, without CAP_NET_ADMIN, from
// /proc/net/stat. If only the counters could not be read, it returns both the
// table and an error. It does not list entries.
func (t *Taker) Conntrack() (*evidence.Conntrack, error) { return within(t, t.conntrack) }

func (t *Taker) conntrack() (*evidence.Conntrack, error) {
	count, err := t.number("sys/net/netfilter/nf_conntrack_count")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNoConntrack
	}
	if err != nil {
		return nil, fmt.Errorf("read conntrack count: %w", err)
	}
	limit, err := t.number("sys/net/netfilter/nf_conntrack_max")
	if err != nil {
		return nil, fmt.Errorf("read conntrack limit: %w", err)
	}
	ct := &evidence.Conntrack{Count: count, Max: limit}
	err = t.ctCounters(ct)
	if err == nil {
		return ct, nil
	}
	text, noFile := t.read("thread-self/net/stat/nf_conntrack")
	if noFile != nil || !parseCTStat(text, ct) {
		return ct, fmt.Errorf("read conntrack counters: %w", err)
	}
	return ct, nil
}

func (t *Taker) number(name string) (uint64, error) {
	text, err := t.read(name)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSpace(text), 10, 64)
}

// Requests of linux/netfilter/nfnetlink_conntrack.h.
const (
	ctGet         = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1 // IPCTNL_MSG_CT_GET
	ctGetStatsCPU = unix.NFNL_SUBSYS_CTNETLINK<<8 | 4 // IPCTNL_MSG_CT_GET_STATS_CPU
	nfgenLen      = 4                                 // struct nfgenmsg: family, version, resource
)

func ctRequest(typ uint16) request {
	return request{family: unix.NETLINK_NETFILTER, typ: typ, body: make([]byte, nfgenLen)}
}

// ctCounters sums the counters, one message for each CPU.
func (t *Taker) ctCounters(ct *evidence.Conntrack) error {
	ctx, cancel := context.WithTimeout(context.Background(), pollTimeout)
	defer cancel()
	var sum evidence.Conntrack
	err := t.dump(ctx, ctRequest(ctGetStatsCPU), func(b []byte) bool {
		parseCTCounters(b, &sum)
		return true
	})
	if err != nil {
		return err
	}
	ct.Invalid, ct.InsertFailed, ct.Drop, ct.EarlyDrop = sum.Invalid, sum.InsertFailed, sum.Drop, sum.EarlyDrop
	ct.Found, ct.Error, ct.SearchRestart = sum.Found, sum.Error, sum.SearchRestart
	return nil
}

// parseCTCounters adds one CPU's counters (enum ctattr_stats_cpu) to sum.
func parseCTCounters(b []byte, sum *evidence.Conntrack) {
	if len(b) < nfgenLen {
		return
	}
	for typ, value := range attributes(b[nfgenLen:]) {
		if len(value) < 4 {
			continue
		}
		n := uint64(binary.BigEndian.Uint32(value))
		switch typ {
		case 2: // CTA_STATS_FOUND
			sum.Found += n
		case 4: // CTA_STATS_INVALID
			sum.Invalid += n
		case 9: // CTA_STATS_INSERT_FAILED
			sum.InsertFailed += n
		case 10: // CTA_STATS_DROP
			sum.Drop += n
		case 11: // CTA_STATS_EARLY_DROP
			sum.EarlyDrop += n
		case 12: // CTA_STATS_ERROR
			sum.Error += n
		case 13: // CTA_STATS_SEARCH_RESTART
			sum.SearchRestart += n
		}
	}
}

// parseCTStat reads /proc/net/stat/nf_conntrack: a line of names, then a line of
// hexadecimal numbers for each CPU. It tells whether it found the counters.
func parseCTStat(text string, ct *evidence.Conntrack) bool {
	head, rows, _ := strings.Cut(text, "\n")
	names := strings.Fields(head)
	sum := map[string]uint64{}
	for row := range strings.Lines(rows) {
		for i, digits := range strings.Fields(row) {
			if i < len(names) {
				addNumber(sum, names[i], digits, 16)
			}
		}
	}
	ct.Invalid, ct.InsertFailed, ct.Drop, ct.EarlyDrop = sum["invalid"], sum["insert_failed"], sum["drop"], sum["early_drop"]
	ct.Found, ct.Error, ct.SearchRestart = sum["found"], sum["icmp_error"], sum["search_restart"]
	_, ok := sum["early_drop"]
	return ok
}
