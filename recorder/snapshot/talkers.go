package snapshot

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"tcpcoroner/evidence"
)

const (
	// topTalkers is how many are reported.
	topTalkers = 10
	// maxTalkers bounds the memory of a count, to about 5 MB. When so many are
	// held, new ones are left out: the table is walked in the order of a keyed
	// hash (hash_conntrack_raw), so whoever has many entries came long before.
	maxTalkers = 1 << 16
)

// TopTalkers counts up to limit entries of the connection-tracking table by source,
// destination and protocol, as of the first packet, before translation. It
// returns the largest ten and how many entries were counted; with an error, what
// was counted before. It needs CAP_NET_ADMIN.
func (t *Taker) TopTalkers(ctx context.Context, limit uint64) ([]evidence.Talker, uint64, error) {
	c, err := within(t, func() (tally, error) { return t.tally(ctx, limit) })
	return c.top(), c.sampled, err
}

func (t *Taker) tally(ctx context.Context, limit uint64) (tally, error) {
	c := tally{entries: make(map[talker]uint64)}
	err := t.dump(ctx, ctRequest(ctGet), func(b []byte) bool {
		if k, ok := parseEntry(b); ok {
			c.add(k)
		}
		return c.sampled < limit
	})
	if err != nil {
		err = fmt.Errorf("dump the conntrack table: %w", err)
	}
	return c, err
}

// talker is a compact evidence.Talker: IPv4 addresses are mapped into IPv6.
type talker struct {
	src, dst [16]byte
	port     uint16
	proto    uint8
	v6       bool
}

type tally struct {
	entries map[talker]uint64
	sampled uint64
}

func (c *tally) add(k talker) {
	c.sampled++
	if n := c.entries[k]; n > 0 || len(c.entries) < maxTalkers {
		c.entries[k] = n + 1
	}
}

func (c *tally) top() []evidence.Talker {
	var best []evidence.Talker
	for k, n := range c.entries {
		if len(best) == topTalkers && n < best[topTalkers-1].Entries {
			continue
		}
		best = append(best, k.talker(n))
		slices.SortFunc(best, func(a, b evidence.Talker) int {
			return cmp.Or(cmp.Compare(b.Entries, a.Entries), a.Source.Compare(b.Source),
				a.Destination.Compare(b.Destination), cmp.Compare(a.Protocol, b.Protocol))
		})
		best = best[:min(len(best), topTalkers)]
	}
	return best
}

func (k talker) talker(n uint64) evidence.Talker {
	src, dst := netip.AddrFrom16(k.src), netip.AddrFrom16(k.dst)
	if !k.v6 {
		src, dst = src.Unmap(), dst.Unmap()
	}
	return evidence.Talker{
		Source: src, Destination: netip.AddrPortFrom(dst, k.port),
		Protocol: protocolName(k.proto), Entries: n,
	}
}

// protocolName is the name in protocols(5), or the number.
func protocolName(p uint8) string {
	switch p {
	case unix.IPPROTO_TCP:
		return "tcp"
	case unix.IPPROTO_UDP:
		return "udp"
	case unix.IPPROTO_ICMP:
		return "icmp"
	case unix.IPPROTO_ICMPV6:
		return "ipv6-icmp"
	case unix.IPPROTO_SCTP:
		return "sctp"
	case unix.IPPROTO_GRE:
		return "gre"
	}
	return strconv.Itoa(int(p))
}

// parseEntry reads the original tuple of one entry: attributes in attributes
// (enum ctattr_type, ctattr_tuple, ctattr_ip, ctattr_l4proto).
func parseEntry(b []byte) (k talker, ok bool) {
	if len(b) < nfgenLen {
		return k, false
	}
	for typ, tuple := range attributes(b[nfgenLen:]) {
		if typ != 1 { // CTA_TUPLE_ORIG
			continue
		}
		for typ, part := range attributes(tuple) {
			switch typ {
			case 1: // CTA_TUPLE_IP
				ok = k.parseIP(part)
			case 2: // CTA_TUPLE_PROTO
				k.parseProto(part)
			}
		}
		return k, ok
	}
	return k, false
}

func (k *talker) parseIP(b []byte) bool {
	var src, dst bool
	for typ, value := range attributes(b) {
		a, ok := netip.AddrFromSlice(value)
		if !ok {
			return false
		}
		switch typ {
		case 1, 3: // CTA_IP_V4_SRC, CTA_IP_V6_SRC
			k.src, src, k.v6 = a.As16(), true, a.Is6()
		case 2, 4: // CTA_IP_V4_DST, CTA_IP_V6_DST
			k.dst, dst = a.As16(), true
		}
	}
	return src && dst
}

func (k *talker) parseProto(b []byte) {
	for typ, value := range attributes(b) {
		switch {
		case typ == 1 && len(value) >= 1: // CTA_PROTO_NUM
			k.proto = value[0]
		case typ == 3 && len(value) >= 2: // CTA_PROTO_DST_PORT
			k.port = binary.BigEndian.Uint16(value)
		}
	}
}
