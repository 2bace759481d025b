package snapshot

import (
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"tcpcoroner/evidence"
)

// maxRuleText bounds the text of one rule in bytes.
const maxRuleText = 1024

// decoder turns the program of one rule (linux/netfilter/nf_tables.h) back into
// what somebody wrote. The rule is a row of expressions: some load fields of the
// packet into registers, later ones compare them.
type decoder struct {
	rule   evidence.Rule
	family uint8
	words  []string
	// loaded are the fields in registers, one group for each load. used tells that
	// they were compared, so that the next load begins anew.
	loaded [][]operand
	used   bool
	// mask is of a bitwise expression on the last load.
	mask []byte
	// l3 is NFPROTO_IPV4 or NFPROTO_IPV6 if known, l4 the transport protocol.
	l3, l4 uint8
	sets   []setUse
	// jump is the chain that the rule sends packets to. mapped tells that a map
	// holds the verdict, limited that the rule asks for a rate or a number.
	jump    string
	mapped  bool
	limited bool
}

// parseRule reads a struct nfgenmsg and NFTA_RULE_ attributes, and hashes what
// does not count packets into sum.
func parseRule(b []byte, sum io.Writer) (d decoder, ok bool) {
	if len(b) < nfgenLen {
		return d, false
	}
	d.family = b[0]
	d.rule.Family = families[b[0]]
	switch b[0] {
	case unix.NFPROTO_IPV4, unix.NFPROTO_IPV6:
		d.l3 = b[0]
	}
	for typ, value := range attributes(b[nfgenLen:]) {
		switch typ {
		case unix.NFTA_RULE_TABLE:
			d.rule.Table = unix.ByteSliceToString(value)
		case unix.NFTA_RULE_CHAIN:
			d.rule.Chain = unix.ByteSliceToString(value)
		case unix.NFTA_RULE_HANDLE:
			d.rule.Handle = big64(value)
		case unix.NFTA_RULE_EXPRESSIONS:
			d.expressions(value, sum)
		case unix.NFTA_RULE_USERDATA:
			d.rule.Comment = parseComment(value)
		}
	}
	if d.limited && d.rule.Action == "" && d.jump == "" {
		d.rule.Action = "limit"
	}
	fmt.Fprintf(sum, "%s %s %s %d\n", d.rule.Family, d.rule.Table, d.rule.Chain, d.rule.Handle)
	return d, d.rule.Family != "" && d.rule.Chain != ""
}

// parseComment reads type-length-value records; type 0 is the comment
// (NFTNL_UDATA_RULE_COMMENT of libnftnl's udata.h).
func parseComment(b []byte) string {
	for len(b) >= 2 && len(b) >= 2+int(b[1]) {
		if b[0] == 0 {
			return clean(unix.ByteSliceToString(b[2 : 2+int(b[1])]))
		}
		b = b[2+int(b[1]):]
	}
	return ""
}

// clean leaves out what a terminal could be harmed by.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if !strconv.IsPrint(r) {
			return -1
		}
		return r
	}, s)
}

func (d *decoder) expressions(b []byte, sum io.Writer) {
	for _, elem := range attributes(b) {
		var name string
		var data []byte
		for typ, value := range attributes(elem) {
			switch typ {
			case unix.NFTA_EXPR_NAME:
				name = unix.ByteSliceToString(value)
			case unix.NFTA_EXPR_DATA:
				data = value
			}
		}
		switch name {
		case "counter", "last", "quota": // they change with the traffic
			fmt.Fprintln(sum, name)
		default:
			_, _ = sum.Write(elem)
		}
		d.expression(name, data)
	}
}

func (d *decoder) expression(name string, b []byte) {
	switch a := exprAttrs(b); name {
	case "payload":
		d.payload(a)
	case "meta":
		d.loadKey(a[unix.NFTA_META_KEY], a[unix.NFTA_META_DREG], metaFields, "meta")
	case "ct":
		d.loadKey(a[unix.NFTA_CT_KEY], a[unix.NFTA_CT_DREG], ctFields, "ct")
	case "bitwise":
		d.mask = dataValue(a[unix.NFTA_BITWISE_MASK])
	case "cmp":
		d.compare(a)
	case "range":
		d.compareRange(a)
	case "lookup":
		d.lookup(a)
	case "immediate":
		d.immediate(a)
	case "reject":
		d.act("reject with " + rejectName(big32(a[unix.NFTA_REJECT_TYPE]), a[unix.NFTA_REJECT_ICMP_CODE], d.family))
	case "counter":
		d.rule.Counted = true
		d.rule.Packets, d.rule.Bytes = parseRuleCounter(b)
	case "queue":
		d.act("queue")
	default:
		d.other(name, a)
	}
}

// other are expressions that are not about fields of the packet.
func (d *decoder) other(name string, a [maxAttr][]byte) {
	switch name {
	case "limit":
		d.limited = true
		d.word(limitText(a))
	case "connlimit":
		d.limited = true
		d.word(fmt.Sprintf("ct count %s%d", over(big32(a[2])&1 != 0), big32(a[1]))) // NFTA_CONNLIMIT_FLAGS, _COUNT
	case "quota":
		d.limited = true
		d.word(fmt.Sprintf("quota %s%d bytes", over(big32(a[2])&1 != 0), big64(a[1]))) // NFTA_QUOTA_FLAGS, _BYTES
	case "match":
		d.match(unix.ByteSliceToString(a[unix.NFTA_MATCH_NAME]), a[unix.NFTA_MATCH_INFO])
	case "target":
		d.target(unix.ByteSliceToString(a[unix.NFTA_TARGET_NAME]), a[unix.NFTA_TARGET_INFO])
	case "dynset":
		d.word("[update @" + clean(unix.ByteSliceToString(a[1])) + "]") // NFTA_DYNSET_SET_NAME
		d.used = true
	case "log", "notrack", "nat", "masq", "redir":
		d.word(name)
	default:
		d.word("[" + clean(name) + "]")
	}
}

func over(inverted bool) string {
	if inverted {
		return "over "
	}
	return ""
}

// maxAttr is above all attribute numbers that are looked at.
const maxAttr = 16

// exprAttrs is the attributes of one expression by their number.
func exprAttrs(b []byte) (a [maxAttr][]byte) {
	for typ, value := range attributes(b) {
		if typ < maxAttr {
			a[typ] = value
		}
	}
	return a
}

// dataValue reads NFTA_DATA_VALUE.
func dataValue(b []byte) []byte {
	return exprAttrs(b)[unix.NFTA_DATA_VALUE]
}

func (d *decoder) word(s string) { d.words = append(d.words, s) }

// act notes what the rule does to a packet.
func (d *decoder) act(action string) {
	d.rule.Action = action
	d.word(action)
}

// text is the whole rule.
func (d *decoder) text() string {
	s := strings.Join(d.words, " ")
	if len(s) > maxRuleText {
		s = strings.ToValidUTF8(s[:maxRuleText], "") + " ..."
	}
	return s
}

// load puts fields into a register.
func (d *decoder) load(f ...operand) {
	if d.used {
		d.loaded, d.used = nil, false
	}
	d.mask = nil
	d.loaded = append(d.loaded, f)
}

// loadKey is an expression that loads what a key stands for. Without destination
// register it sets instead, a mark for example.
func (d *decoder) loadKey(key, dreg []byte, fields map[uint32]operand, what string) {
	f, ok := fields[big32(key)]
	if !ok {
		f = operand{name: fmt.Sprintf("%s key %d", what, big32(key)), kind: hexField}
	}
	if dreg == nil {
		d.word("[set " + f.name + "]")
		return
	}
	d.load(f)
}

func (d *decoder) payload(a [maxAttr][]byte) {
	if a[unix.NFTA_PAYLOAD_DREG] == nil {
		d.word("[set payload]")
		return
	}
	d.load(d.payloadFields(big32(a[unix.NFTA_PAYLOAD_BASE]),
		int(big32(a[unix.NFTA_PAYLOAD_OFFSET])&0xffff), int(big32(a[unix.NFTA_PAYLOAD_LEN])&0xffff))...)
}

// operators are by NFT_CMP_.
var operators = [...]string{"", "!= ", "< ", "<= ", "> ", ">= "}

func (d *decoder) compare(a [maxAttr][]byte) {
	op, value := big32(a[unix.NFTA_CMP_OP]), dataValue(a[unix.NFTA_CMP_DATA])
	if len(d.loaded) == 0 || int(op) >= len(operators) {
		d.word("[cmp]")
		return
	}
	group := d.loaded[len(d.loaded)-1]
	d.used = true
	mask := d.mask
	if len(group) == 1 {
		d.learn(group[0], op, value)
		d.say(group[0].compare(operators[op], value, mask))
		return
	}
	for _, f := range group { // adjacent fields, loaded at once
		n := min(f.size, len(value))
		d.say(f.compare(operators[op], value[:n], nil))
		value = value[n:]
	}
}

// learn notes the protocols, which later fields depend on.
func (d *decoder) learn(f operand, op uint32, value []byte) {
	if op != unix.NFT_CMP_EQ || len(value) == 0 {
		return
	}
	switch f.kind {
	case familyField:
		d.l3 = value[0]
	case etherField:
		switch binary.BigEndian.Uint16(append(value[:min(2, len(value)):2], 0, 0)) {
		case unix.ETH_P_IP:
			d.l3 = unix.NFPROTO_IPV4
		case unix.ETH_P_IPV6:
			d.l3 = unix.NFPROTO_IPV6
		}
	case protoField:
		d.l4 = value[0]
	}
}

// say adds a comparison. nft(8) compiles "tcp dport 80-90" into three: with the
// protocol, which is plain from the fields, and with each end of the range.
func (d *decoder) say(s string) {
	d.words = slices.DeleteFunc(d.words, func(w string) bool { return implies(s, w) })
	if n := len(d.words); n > 0 {
		if r, ok := joinRange(d.words[n-1], s); ok {
			d.words[n-1] = r
			return
		}
	}
	d.word(s)
}

// implies tells whether a comparison says all that one before it did.
func implies(s, before string) bool {
	lead := map[string]string{
		"meta l4proto tcp": " tcp ", "meta l4proto udp": " udp ", "meta l4proto icmp": " icmp ",
		"meta l4proto ipv6-icmp": " icmpv6 ", "meta nfproto ipv4": " ip ", "meta nfproto ipv6": " ip6 ",
	}[before]
	return lead != "" && strings.Contains(" "+s, lead)
}

// joinRange makes "a 1-2" of "a >= 1" and "a <= 2".
func joinRange(from, to string) (string, bool) {
	name, low, ok := strings.Cut(from, " >= ")
	high, same := strings.CutPrefix(to, name+" <= ")
	return name + " " + low + "-" + high, ok && same
}

func (d *decoder) compareRange(a [maxAttr][]byte) {
	if len(d.loaded) == 0 {
		d.word("[range]")
		return
	}
	d.used = true
	f := d.loaded[len(d.loaded)-1][0]
	not := operators[min(big32(a[unix.NFTA_RANGE_OP]), 1)]
	d.say(f.name + " " + not + f.format(dataValue(a[unix.NFTA_RANGE_FROM_DATA])) + "-" + f.format(dataValue(a[unix.NFTA_RANGE_TO_DATA])))
}

// lookup is a comparison with a set, or with a map of verdicts.
func (d *decoder) lookup(a [maxAttr][]byte) {
	var fields []operand
	var names []string
	for _, group := range d.loaded {
		for _, f := range group {
			fields, names = append(fields, f), append(names, f.name)
		}
	}
	d.used = true
	use := setUse{name: clean(unix.ByteSliceToString(a[unix.NFTA_LOOKUP_SET])), fields: fields}
	not := ""
	if big32(a[unix.NFTA_LOOKUP_FLAGS])&unix.NFT_LOOKUP_F_INV != 0 {
		not = "!= "
	}
	switch dreg := a[unix.NFTA_LOOKUP_DREG]; {
	case dreg == nil:
	case big32(dreg) == unix.NFT_REG_VERDICT:
		use.verdicts, d.mapped, not = true, true, "vmap "
	default:
		not = "map "
	}
	d.say(strings.Join(names, " . ") + " " + not + "@" + use.name)
	d.sets = append(d.sets, use)
}

// immediate loads a constant, and a verdict if into that register.
func (d *decoder) immediate(a [maxAttr][]byte) {
	code, chain, ok := parseVerdict(a[unix.NFTA_IMMEDIATE_DATA])
	if !ok {
		return
	}
	switch name := verdictName(code); name {
	case "drop", "queue":
		d.act(name)
	case "jump", "goto":
		d.jump = chain
		d.word(name + " " + clean(chain))
	default:
		d.word(name)
	}
}

// parseVerdict reads NFTA_DATA_VERDICT; not ok if the data is another.
func parseVerdict(data []byte) (code uint32, chain string, ok bool) {
	b := exprAttrs(data)[unix.NFTA_DATA_VERDICT]
	if b == nil {
		return 0, "", false
	}
	a := exprAttrs(b)
	return big32(a[unix.NFTA_VERDICT_CODE]), unix.ByteSliceToString(a[unix.NFTA_VERDICT_CHAIN]), true
}

// limitText spells a rate as nft(8) does: "2/second burst 5 packets", but
// "2 bytes/second burst 5 bytes".
func limitText(a [maxAttr][]byte) string {
	per, unit := " bytes", "bytes"
	if big32(a[unix.NFTA_LIMIT_TYPE]) == unix.NFT_LIMIT_PKTS {
		per, unit = "", "packets"
	}
	inverted := big32(a[unix.NFTA_LIMIT_FLAGS])&unix.NFT_LIMIT_F_INV != 0
	return fmt.Sprintf("limit rate %s%d%s/%s burst %d %s", over(inverted), big64(a[unix.NFTA_LIMIT_RATE]), per,
		perUnit(big64(a[unix.NFTA_LIMIT_UNIT])), big32(a[unix.NFTA_LIMIT_BURST]), unit)
}

// perUnit names the usual numbers of seconds.
func perUnit(seconds uint64) string {
	switch seconds {
	case 1:
		return "second"
	case 60:
		return "minute"
	case 3600:
		return "hour"
	case 86400:
		return "day"
	case 604800:
		return "week"
	}
	return (time.Duration(seconds) * time.Second).String()
}

// rejectName spells NFT_REJECT_ types and codes; icmpx codes are NFT_REJECT_ICMPX_.
func rejectName(typ uint32, code []byte, family uint8) string {
	if typ == unix.NFT_REJECT_TCP_RST {
		return "tcp reset"
	}
	n := uint8(0)
	if len(code) > 0 {
		n = code[0]
	}
	icmpx := [...]string{"no-route", "port-unreachable", "host-unreachable", "admin-prohibited"}
	switch {
	case typ == unix.NFT_REJECT_ICMPX_UNREACH && int(n) < len(icmpx):
		return "icmpx " + icmpx[n]
	case family == unix.NFPROTO_IPV6:
		return "icmpv6 code " + strconv.Itoa(int(n))
	case n == 3: // ICMP_PORT_UNREACH
		return "icmp port-unreachable"
	}
	return "icmp code " + strconv.Itoa(int(n))
}
