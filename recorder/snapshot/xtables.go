package snapshot

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// iptables-nft puts matches and targets of the older iptables into nftables where
// these have no expression of their own. What they are set to is a C structure of
// linux/netfilter/xt_*.h in the host's byte order.

// target notes what a target does to a packet.
func (d *decoder) target(name string, info []byte) {
	switch name {
	case "REJECT":
		d.act("reject with " + xtRejectName(host32(info), d.family))
	case "DROP", "TARPIT":
		d.act(strings.ToLower(name))
	case "DELUDE": // of xtables-addons: answers a SYN, and resets what follows
		d.act("delude with tcp reset")
	case "NFQUEUE":
		d.act("queue")
	default:
		d.word("[target " + clean(name) + "]")
	}
}

// xtRejectName spells enum ipt_reject_with and ip6t_reject_with.
func xtRejectName(n uint32, family uint8) string {
	names := []string{
		"icmp net-unreachable", "icmp host-unreachable", "icmp prot-unreachable", "icmp port-unreachable",
		"icmp echo-reply", "icmp net-prohibited", "icmp host-prohibited", "tcp reset", "icmp admin-prohibited",
	}
	if family == unix.NFPROTO_IPV6 {
		names = []string{
			"icmpv6 no-route", "icmpv6 admin-prohibited", "icmpv6 not-neighbour", "icmpv6 addr-unreachable",
			"icmpv6 port-unreachable", "icmpv6 echo-reply", "tcp reset", "icmpv6 policy-fail", "icmpv6 reject-route",
		}
	}
	if int(n) >= len(names) {
		return strconv.Itoa(int(n))
	}
	return names[n]
}

// match notes what a match asks for.
func (d *decoder) match(name string, info []byte) {
	switch name {
	case "comment":
		d.rule.Comment = clean(unix.ByteSliceToString(info))
		return
	case "limit", "hashlimit", "connlimit", "recent":
		d.limited = true
	}
	d.say(matchText(name, info))
}

// matchText spells the matches that say which connections are meant; others
// leave their name.
func matchText(name string, info []byte) string {
	text := ""
	switch name {
	case "tcp", "udp":
		text = xtPorts(name, info)
	case "multiport":
		text = xtMultiport(info)
	case "conntrack":
		text = xtConntrack(info)
	case "connlimit":
		text = xtConnlimit(info)
	}
	if text == "" {
		return "[match " + clean(name) + "]"
	}
	return text
}

// xtPorts reads struct xt_tcp and xt_udp, which begin with the same: ranges of
// source and destination ports. Bits 0 and 1 of the last byte invert them.
func xtPorts(name string, info []byte) string {
	size := map[string]int{"tcp": 12, "udp": 9}[name]
	if len(info) < size {
		return ""
	}
	words := []string{name}
	for i, what := range [...]string{"sport", "dport"} {
		from, to := binary.NativeEndian.Uint16(info[4*i:]), binary.NativeEndian.Uint16(info[4*i+2:])
		if from == 0 && to == 0xffff {
			continue
		}
		not := ""
		if info[size-1]&(1<<i) != 0 {
			not = "!= "
		}
		words = append(words, what+" "+not+portsText(from, to))
	}
	if name == "tcp" && info[9] != 0 { // flg_mask, flg_cmp; inverted by bit 2
		op := map[bool]string{false: "==", true: "!="}[info[11]&4 != 0]
		words = append(words, fmt.Sprintf("flags & %s %s %s", bitNames(uint32(info[9]), tcpFlagNames), op, bitNames(uint32(info[10]), tcpFlagNames)))
	}
	return strings.Join(words, " ")
}

func portsText(from, to uint16) string {
	if from == to {
		return strconv.Itoa(int(from))
	}
	return fmt.Sprintf("%d-%d", from, to)
}

// xtMultiport reads struct xt_multiport_v1: whose ports, how many, 15 ports, 15
// flags that say that a port begins a range, and whether it is inverted.
func xtMultiport(info []byte) string {
	const most, invert = 15, 2 + 15*2 + 15
	if len(info) <= invert || info[1] == 0 || info[1] > most || int(info[0]) > 2 {
		return ""
	}
	var ports []string
	for i := 0; i < int(info[1]); i++ {
		from := binary.NativeEndian.Uint16(info[2+2*i:])
		to := from
		if info[2+2*most+i] != 0 && i+1 < int(info[1]) {
			i++
			to = binary.NativeEndian.Uint16(info[2+2*i:])
		}
		ports = append(ports, portsText(from, to))
	}
	not := ""
	if info[invert] != 0 {
		not = "!= "
	}
	what := [...]string{"sport", "dport", "port"}[info[0]]
	return "th " + what + " " + not + "{ " + strings.Join(ports, ", ") + " }"
}

// xtConntrack reads what struct xt_conntrack_mtinfo3 says about the state. Bit 0
// of match_flags, at byte 146, says that it does, that of invert_flags that it
// is inverted; state_mask is at 150.
func xtConntrack(info []byte) string {
	const alias = 1 << 13 // XT_CONNTRACK_STATE_ALIAS: the rule says "-m state"
	if len(info) < 152 || binary.NativeEndian.Uint16(info[146:])&^alias != 1 {
		return ""
	}
	not := ""
	if binary.NativeEndian.Uint16(info[148:])&1 != 0 {
		not = "!= "
	}
	return "ct state " + not + bitNames(uint32(binary.NativeEndian.Uint16(info[150:])), ctStateNames)
}

// xtConnlimit reads struct xt_connlimit_info: a mask of 16 bytes, the limit and
// flags, of which the lowest inverts.
func xtConnlimit(info []byte) string {
	if len(info) < 24 {
		return ""
	}
	return fmt.Sprintf("ct count %s%d", over(host32(info[20:])&1 == 0), host32(info[16:]))
}
