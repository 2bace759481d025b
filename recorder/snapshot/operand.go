package snapshot

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/bits"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// fieldKind says how the bytes of a field read.
type fieldKind uint8

const (
	hexField    fieldKind = iota
	addrField             // in network byte order, perhaps only the first bytes
	portField             // a number in network byte order
	hostField             // a number in the host's byte order
	nameField             // an interface; without final NUL it is a prefix
	protoField            // a transport protocol
	familyField           // NFPROTO_
	etherField            // ETH_P_
	stateField            // bits of ct state
	statusField           // bits of ct status
	tcpField              // bits of TCP flags
)

// operand is a part of a packet, or of what is known about it.
type operand struct {
	name string
	kind fieldKind
	size int // bytes
}

// metaFields are by NFT_META_, ctFields by NFT_CT_ (linux/netfilter/nf_tables.h).
var metaFields = map[uint32]operand{
	unix.NFT_META_LEN:      {"meta length", hostField, 4},
	unix.NFT_META_PROTOCOL: {"meta protocol", etherField, 2},
	unix.NFT_META_MARK:     {"meta mark", hexField, 4},
	unix.NFT_META_IIF:      {"iif", hostField, 4},
	unix.NFT_META_OIF:      {"oif", hostField, 4},
	unix.NFT_META_IIFNAME:  {"iifname", nameField, unix.IFNAMSIZ},
	unix.NFT_META_OIFNAME:  {"oifname", nameField, unix.IFNAMSIZ},
	unix.NFT_META_SKUID:    {"meta skuid", hostField, 4},
	unix.NFT_META_SKGID:    {"meta skgid", hostField, 4},
	unix.NFT_META_NFPROTO:  {"meta nfproto", familyField, 1},
	unix.NFT_META_L4PROTO:  {"meta l4proto", protoField, 1},
	unix.NFT_META_CGROUP:   {"meta cgroup", hostField, 4},
}

var ctFields = map[uint32]operand{
	unix.NFT_CT_STATE:     {"ct state", stateField, 4},
	unix.NFT_CT_DIRECTION: {"ct direction", hexField, 1},
	unix.NFT_CT_STATUS:    {"ct status", statusField, 4},
	unix.NFT_CT_MARK:      {"ct mark", hexField, 4},
	unix.NFT_CT_PROTO_SRC: {"ct proto-src", portField, 2},
	unix.NFT_CT_PROTO_DST: {"ct proto-dst", portField, 2},
	unix.NFT_CT_ZONE:      {"ct zone", hostField, 2},
}

// payloadField is a field of a header and where it lies.
type payloadField struct {
	at int
	operand
}

// The fields of each header that rules usually ask for, by offset.
var (
	ip4Fields = []payloadField{
		{1, operand{"ip tos", hexField, 1}}, {2, operand{"ip length", portField, 2}}, {8, operand{"ip ttl", portField, 1}},
		{9, operand{"ip protocol", protoField, 1}}, {12, operand{"ip saddr", addrField, 4}}, {16, operand{"ip daddr", addrField, 4}},
	}
	ip6Fields = []payloadField{
		{6, operand{"ip6 nexthdr", protoField, 1}}, {7, operand{"ip6 hoplimit", portField, 1}},
		{8, operand{"ip6 saddr", addrField, 16}}, {24, operand{"ip6 daddr", addrField, 16}},
	}
	portFields = []payloadField{
		{0, operand{"sport", portField, 2}}, {2, operand{"dport", portField, 2}},
	}
	tcpFields = append(portFields[:2:2],
		payloadField{4, operand{"sequence", portField, 4}}, payloadField{8, operand{"ackseq", portField, 4}},
		payloadField{13, operand{"flags", tcpField, 1}}, payloadField{14, operand{"window", portField, 2}})
	icmpFields = []payloadField{{0, operand{"type", portField, 1}}, {1, operand{"code", portField, 1}}}
)

// header chooses the fields of a payload base and what they are led by.
func (d *decoder) header(base uint32) (fields []payloadField, lead string) {
	switch {
	case base == unix.NFT_PAYLOAD_NETWORK_HEADER && d.l3 == unix.NFPROTO_IPV6:
		return ip6Fields, ""
	case base == unix.NFT_PAYLOAD_NETWORK_HEADER && d.l3 == unix.NFPROTO_IPV4:
		return ip4Fields, ""
	case base != unix.NFT_PAYLOAD_TRANSPORT_HEADER:
		return nil, ""
	}
	switch d.l4 {
	case unix.IPPROTO_TCP:
		return tcpFields, "tcp "
	case unix.IPPROTO_UDP:
		return portFields, "udp "
	case unix.IPPROTO_ICMP:
		return icmpFields, "icmp "
	case unix.IPPROTO_ICMPV6:
		return icmpFields, "icmpv6 "
	}
	return portFields, "th "
}

// payloadFields names the fields that a load takes. nft(8) joins neighbours in one
// load, and loads only the bytes of an address that its prefix covers.
func (d *decoder) payloadFields(base uint32, at, size int) []operand {
	known, lead := d.header(base)
	var all []operand
	end := at + size
	for _, f := range known {
		if f.at != at || at == end {
			continue
		}
		n := min(f.size, end-at)
		if n < f.size && f.kind != addrField {
			break
		}
		all = append(all, operand{lead + f.name, f.kind, n})
		at += n
	}
	if at != end || len(all) == 0 {
		base := [...]string{"ll", "nh", "th", "ih"}[min(base, 3)]
		return []operand{{fmt.Sprintf("@%s,%d,%d", base, (end-size)*8, size*8), hexField, size}}
	}
	return all
}

// compare is the text of a comparison. An address may be cut short to the bytes
// that its prefix covers.
func (f operand) compare(op string, value, mask []byte) string {
	v6 := strings.HasPrefix(f.name, "ip6")
	switch {
	case mask == nil && f.kind == addrField && (len(value) < 4 || v6 && len(value) < 16):
		return f.name + " " + op + prefixText(value, len(value)*8, v6)
	case mask == nil:
		return f.name + " " + op + f.format(value)
	case f.kind == addrField:
		if n, ok := maskBits(mask); ok {
			return f.name + " " + op + prefixText(value, n, v6)
		}
	case f.kind == stateField || f.kind == statusField || f.kind == tcpField:
		// "ct state new", "tcp flags syn": is what the mask leaves not 0?
		if op == operators[unix.NFT_CMP_NEQ] && allZero(value) {
			return f.name + " " + f.format(mask)
		}
		if op == operators[unix.NFT_CMP_EQ] && allZero(value) && f.kind != tcpField {
			return f.name + " != " + f.format(mask)
		}
	}
	if op == operators[unix.NFT_CMP_EQ] {
		op = "== "
	}
	bits := f.format(mask)
	if all := strings.Split(bits, ","); len(all) > 1 {
		bits = "(" + strings.Join(all, " | ") + ")"
	}
	return f.name + " & " + bits + " " + op + f.format(value)
}

func allZero(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }

// maskBits counts the bits of a mask; not ok if they have a gap.
func maskBits(mask []byte) (n int, ok bool) {
	for i, b := range mask {
		ones := bits.LeadingZeros8(^b)
		n += ones
		if ones < 8 {
			return n, b<<ones == 0 && allZero(mask[i+1:])
		}
	}
	return n, true
}

// prefixText writes an address, perhaps cut short, with its prefix length.
func prefixText(value []byte, bits int, v6 bool) string {
	full := make([]byte, 4, 16)
	if v6 {
		full = full[:16]
	}
	copy(full, value)
	addr, _ := netip.AddrFromSlice(full)
	return addr.String() + "/" + strconv.Itoa(bits)
}

// The names of bits, from the lowest: NF_CT_STATE_ of
// linux/netfilter/nf_conntrack_common.h, and the flags of TCP.
var (
	ctStateNames = []string{"invalid", "established", "related", "new", "", "", "untracked"}
	tcpFlagNames = []string{"fin", "syn", "rst", "psh", "ack", "urg", "ecn", "cwr"}
)

func bitNames(n uint32, names []string) string {
	var all []string
	for i, name := range names {
		if name != "" && n&(1<<i) != 0 {
			all = append(all, name)
			n &^= 1 << i
		}
	}
	if n != 0 || len(all) == 0 {
		all = append(all, fmt.Sprintf("0x%x", n))
	}
	return strings.Join(all, ",")
}

// format writes a value as nft(8) does.
func (f operand) format(value []byte) string {
	switch {
	case f.kind == nameField:
		return nameText(value)
	case f.kind == addrField:
		if a, ok := netip.AddrFromSlice(value); ok {
			return a.String()
		}
	case len(value) > 8 || len(value) == 0 || f.kind == hexField && len(value) != 4:
	case f.kind == portField:
		return strconv.FormatUint(bigEndian(value), 10)
	case f.kind == etherField:
		return etherName(bigEndian(value))
	case f.kind == protoField:
		return protocolName(value[0])
	case f.kind == familyField:
		return map[uint8]string{unix.NFPROTO_IPV4: "ipv4", unix.NFPROTO_IPV6: "ipv6"}[value[0]]
	case f.kind == tcpField:
		return bitNames(uint32(value[0]), tcpFlagNames)
	case f.kind == stateField:
		return bitNames(host32(value), ctStateNames)
	case f.kind == statusField:
		return bitNames(host32(value), trackedFlags[:])
	case f.kind == hexField:
		return fmt.Sprintf("0x%x", host32(value))
	case f.kind == hostField:
		return strconv.FormatUint(hostEndian(value), 10)
	}
	return "0x" + hex.EncodeToString(value[:min(len(value), 32)])
}

// nameText is an interface's name. A name without its final NUL is a prefix.
func nameText(value []byte) string {
	name := clean(unix.ByteSliceToString(value))
	if bytes.IndexByte(value, 0) < 0 {
		name += "*"
	}
	return strconv.Quote(name)
}

func etherName(n uint64) string {
	switch n {
	case unix.ETH_P_IP:
		return "ip"
	case unix.ETH_P_IPV6:
		return "ip6"
	case unix.ETH_P_ARP:
		return "arp"
	}
	return fmt.Sprintf("0x%04x", n)
}

// bigEndian reads up to 8 bytes.
func bigEndian(b []byte) (n uint64) {
	for _, x := range b {
		n = n<<8 | uint64(x)
	}
	return n
}

// hostEndian reads 1, 2, 4 or 8 bytes; others read as 0.
func hostEndian(b []byte) uint64 {
	switch len(b) {
	case 1:
		return uint64(b[0])
	case 2:
		return uint64(binary.NativeEndian.Uint16(b))
	case 4:
		return uint64(binary.NativeEndian.Uint32(b))
	case 8:
		return binary.NativeEndian.Uint64(b)
	}
	return 0
}
