package snapshot

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"tcpcoroner/evidence"
)

// tracked asks for the connection-tracking entry of each flow. An entry is found
// by either of its tuples (__nf_conntrack_find_get), so the flow may be given as
// it is before or after translation, in either direction. Only the default zone
// is asked: who else uses zones knows which.
func (t *Taker) tracked(ctx context.Context, flows []evidence.FlowKey) ([]evidence.TrackedFlow, error) {
	var all []evidence.TrackedFlow
	seen := map[evidence.Tuple]bool{}
	for _, f := range flows {
		for _, way := range [2]evidence.Tuple{{Source: f.A, Destination: f.B}, {Source: f.B, Destination: f.A}} {
			found, ok, err := t.trackedBy(ctx, way)
			if err != nil {
				return all, fmt.Errorf("ask for the conntrack entry of %v > %v: %w", way.Source, way.Destination, err)
			}
			if ok && !seen[found.Original] {
				seen[found.Original] = true
				all = append(all, found)
			}
		}
	}
	return all, nil
}

// trackedBy asks for one entry; ok is false if there is none.
func (t *Taker) trackedBy(ctx context.Context, way evidence.Tuple) (f evidence.TrackedFlow, ok bool, err error) {
	body, valid := trackedRequest(way)
	if !valid {
		return f, false, nil
	}
	r := request{family: unix.NETLINK_NETFILTER, typ: ctGet, body: body, single: true}
	err = t.dump(ctx, r, func(b []byte) bool {
		f, ok = parseTracked(b)
		return true
	})
	if errors.Is(err, unix.ENOENT) {
		return f, false, nil
	}
	return f, ok, err
}

// trackedRequest is a struct nfgenmsg and the tuple to look for; not valid if the
// addresses are not of one family.
func trackedRequest(way evidence.Tuple) ([]byte, bool) {
	src, dst := way.Source.Addr().Unmap(), way.Destination.Addr().Unmap()
	if !src.IsValid() || src.BitLen() != dst.BitLen() {
		return nil, false
	}
	family, first := byte(unix.AF_INET), uint16(1) // CTA_IP_V4_SRC
	if src.Is6() {
		family, first = unix.AF_INET6, 3 // CTA_IP_V6_SRC
	}
	const nested = unix.NLA_F_NESTED
	ip := appendAttr(appendAttr(nil, first, src.AsSlice()...), first+1, dst.AsSlice()...)
	proto := appendAttr(nil, 1, unix.IPPROTO_TCP) // CTA_PROTO_NUM
	for i, port := range [2]uint16{way.Source.Port(), way.Destination.Port()} {
		proto = appendAttr(proto, uint16(2+i), byte(port>>8), byte(port)) // CTA_PROTO_SRC_PORT, _DST_PORT
	}
	tuple := appendAttr(appendAttr(nil, 1|nested, ip...), 2|nested, proto...) // CTA_TUPLE_IP, _PROTO
	return appendAttr([]byte{family, 0, 0, 0}, 1|nested, tuple...), true      // CTA_TUPLE_ORIG
}

// trackedStates are enum tcp_conntrack, spelled as sockets' states.
var trackedStates = [...]string{
	1: "syn_sent", 2: "syn_received", 3: "established", 4: "fin_wait", 5: "close_wait",
	6: "last_ack", 7: "time_wait", 8: "close", 9: "syn_sent2",
}

// trackedFlags are the bits of enum ip_conntrack_status that tell something,
// from the lowest.
var trackedFlags = [...]string{
	0: "expected", 1: "seen_reply", 2: "assured", 3: "confirmed", 4: "src_nat", 5: "dst_nat",
	6: "seq_adjust", 9: "dying", 10: "fixed_timeout", 13: "helper", 14: "offload", 15: "hw_offload",
}

// parseTracked reads an entry (enum ctattr_type in
// linux/netfilter/nfnetlink_conntrack.h). It wants a TCP connection.
func parseTracked(b []byte) (f evidence.TrackedFlow, ok bool) {
	if len(b) < nfgenLen {
		return f, false
	}
	var original, reply bool
	for typ, value := range attributes(b[nfgenLen:]) {
		switch typ {
		case 1: // CTA_TUPLE_ORIG
			f.Original, original = parseTuple(value)
		case 2: // CTA_TUPLE_REPLY
			f.Reply, reply = parseTuple(value)
		case 3: // CTA_STATUS
			f.Status = flagNames(big32(value))
		case 4: // CTA_PROTOINFO
			f.State = parseTrackedState(value)
		case 7: // CTA_TIMEOUT
			f.Timeout = time.Duration(big32(value)) * time.Second
		case 8: // CTA_MARK
			f.Mark = big32(value)
		case 9, 10: // CTA_COUNTERS_ORIG, CTA_COUNTERS_REPLY
			f.Packets[typ-9], f.Bytes[typ-9] = parseTrackedCounters(value)
		case 18: // CTA_ZONE
			if len(value) >= 2 {
				f.Zone = binary.BigEndian.Uint16(value)
			}
		}
	}
	return f, original && reply
}

func flagNames(bits uint32) (names []string) {
	for i, name := range trackedFlags {
		if name != "" && bits&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return names
}

// parseTuple reads addresses and ports (enum ctattr_tuple, ctattr_ip,
// ctattr_l4proto).
func parseTuple(b []byte) (evidence.Tuple, bool) {
	var addr [2]netip.Addr
	var port [2]uint16
	for typ, part := range attributes(b) {
		for number, value := range attributes(part) {
			switch {
			case typ == 1 && number >= 1 && number <= 4: // CTA_TUPLE_IP: V4_SRC, V4_DST, V6_SRC, V6_DST
				addr[(number-1)%2], _ = netip.AddrFromSlice(value)
			case typ == 2 && number == 1 && (len(value) < 1 || value[0] != unix.IPPROTO_TCP): // CTA_PROTO_NUM
				return evidence.Tuple{}, false
			case typ == 2 && (number == 2 || number == 3) && len(value) >= 2: // CTA_PROTO_SRC_PORT, _DST_PORT
				port[number-2] = binary.BigEndian.Uint16(value)
			}
		}
	}
	return evidence.Tuple{
		Source:      netip.AddrPortFrom(addr[0], port[0]),
		Destination: netip.AddrPortFrom(addr[1], port[1]),
	}, addr[0].IsValid() && addr[1].IsValid()
}

// parseTrackedState reads CTA_PROTOINFO_TCP_STATE in CTA_PROTOINFO_TCP.
func parseTrackedState(b []byte) string {
	for typ, tcp := range attributes(b) {
		if typ != 1 {
			continue
		}
		for typ, value := range attributes(tcp) {
			if typ == 1 && len(value) > 0 && int(value[0]) < len(trackedStates) {
				return trackedStates[value[0]]
			}
		}
	}
	return ""
}

// parseTrackedCounters reads CTA_COUNTERS_PACKETS and CTA_COUNTERS_BYTES.
func parseTrackedCounters(b []byte) (packets, bytes uint64) {
	for typ, value := range attributes(b) {
		switch typ {
		case 1:
			packets = big64(value)
		case 2:
			bytes = big64(value)
		}
	}
	return packets, bytes
}
