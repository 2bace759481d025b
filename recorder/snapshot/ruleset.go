package snapshot

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"strings"

	"golang.org/x/sys/unix"

	"tcpcoroner/evidence"
)

// Bounds of what is kept of a ruleset.
const (
	// maxKept bounds the rules that are kept, of up to Config.MaxRules read.
	maxKept = 1000
	// maxVia bounds the rules that are named as the way into a chain.
	maxVia = 4
)

var errRules = errors.New("more rules than are read")

func nftRequest(typ uint16) request {
	return request{family: unix.NETLINK_NETFILTER, typ: unix.NFNL_SUBSYS_NFTABLES<<8 | typ, body: make([]byte, nfgenLen)}
}

// ruleset reads the chains and rules of nftables in this thread's network
// namespace, and keeps the rules that may end a connection. It needs
// CAP_NET_ADMIN. With an error it returns what was read before.
func (t *Taker) ruleset(ctx context.Context) (*evidence.Ruleset, error) {
	r := reader{sum: sha256.New(), via: map[chainName][]string{}, base: map[chainName]bool{}}
	err := t.dump(ctx, nftRequest(unix.NFT_MSG_GETCHAIN), func(b []byte) bool { r.chain(b); return true })
	if err != nil {
		return nil, fmt.Errorf("dump the chains of nftables: %w", err)
	}
	full := false
	err = t.dump(ctx, nftRequest(unix.NFT_MSG_GETRULE), func(b []byte) bool {
		if full = r.set.Total >= t.cfg.MaxRules; full {
			return false
		}
		r.rule(b)
		return true
	})
	if err == nil && full {
		err = fmt.Errorf("%w: %d", errRules, t.cfg.MaxRules)
	}
	if err != nil {
		err = fmt.Errorf("dump the rules of nftables: %w", err)
	}
	for i := range r.kept {
		t.fillSets(ctx, &r.kept[i])
	}
	set := r.ruleset()
	if err != nil {
		set.Hash = ""
	}
	return set, err
}

// chainName names a chain for rules that jump to it.
type chainName struct{ family, table, chain string }

// reader gathers a ruleset from netlink messages.
type reader struct {
	set  evidence.Ruleset
	sum  hash.Hash
	kept []decoder
	via  map[chainName][]string
	base map[chainName]bool
}

// families are by NFPROTO_ (linux/netfilter.h).
var families = map[uint8]string{
	unix.NFPROTO_INET: "inet", unix.NFPROTO_IPV4: "ip", unix.NFPROTO_ARP: "arp",
	unix.NFPROTO_NETDEV: "netdev", unix.NFPROTO_BRIDGE: "bridge", unix.NFPROTO_IPV6: "ip6",
}

func (r *reader) chain(b []byte) {
	c, ok := parseChain(b)
	if !ok {
		return
	}
	counted := c
	counted.Packets, counted.Bytes = 0, 0
	fmt.Fprintf(r.sum, "%+v\n", counted)
	if c.Hook == "" {
		return
	}
	r.set.Chains = append(r.set.Chains, c)
	r.base[chainName{c.Family, c.Table, c.Name}] = true
}

func (r *reader) rule(b []byte) {
	r.set.Total++
	d, ok := parseRule(b, r.sum)
	if !ok {
		return
	}
	if d.jump != "" {
		to := chainName{d.rule.Family, d.rule.Table, d.jump}
		if len(r.via[to]) < maxVia {
			r.via[to] = append(r.via[to], d.rule.Chain+": "+d.text())
		}
	}
	if (d.rule.Action != "" || d.mapped) && len(r.kept) < maxKept {
		r.kept = append(r.kept, d)
	}
}

// ruleset puts the pieces together. A rule that only looks up a verdict is kept
// if the map has one that drops.
func (r *reader) ruleset() *evidence.Ruleset {
	for i := range r.kept {
		d := &r.kept[i]
		if d.rule.Action == "" {
			continue
		}
		d.rule.Text = d.text()
		if at := (chainName{d.rule.Family, d.rule.Table, d.rule.Chain}); !r.base[at] {
			d.rule.Via = r.via[at]
		}
		r.set.Rules = append(r.set.Rules, d.rule)
	}
	r.set.Hash = hex.EncodeToString(r.sum.Sum(nil)[:16])
	return &r.set
}

// hookName is by family and hook number: NF_INET_, NF_NETDEV_ (linux/netfilter.h),
// NF_ARP_ (linux/netfilter_arp.h).
func hookName(family uint8, n uint32) string {
	names := []string{"prerouting", "input", "forward", "output", "postrouting", "ingress"}
	switch family {
	case unix.NFPROTO_NETDEV:
		names = []string{"ingress", "egress"}
	case unix.NFPROTO_ARP:
		names = []string{"input", "output", "forward"}
	}
	if int(n) >= len(names) {
		return fmt.Sprintf("hook %d", n)
	}
	return names[n]
}

// parseChain reads a struct nfgenmsg and NFTA_CHAIN_ attributes. Hook stays empty
// for a chain that is only jumped to.
func parseChain(b []byte) (c evidence.Chain, ok bool) {
	if len(b) < nfgenLen {
		return c, false
	}
	c.Family = families[b[0]]
	for typ, value := range attributes(b[nfgenLen:]) {
		switch typ {
		case unix.NFTA_CHAIN_TABLE:
			c.Table = unix.ByteSliceToString(value)
		case unix.NFTA_CHAIN_NAME:
			c.Name = unix.ByteSliceToString(value)
		case unix.NFTA_CHAIN_TYPE:
			c.Type = unix.ByteSliceToString(value)
		case unix.NFTA_CHAIN_POLICY:
			c.Policy = verdictName(big32(value))
		case unix.NFTA_CHAIN_COUNTERS:
			c.Packets, c.Bytes = parseRuleCounter(value)
		case unix.NFTA_CHAIN_HOOK:
			for typ, value := range attributes(value) {
				switch typ {
				case unix.NFTA_HOOK_HOOKNUM:
					c.Hook = hookName(b[0], big32(value))
				case unix.NFTA_HOOK_PRIORITY:
					c.Priority = int32(big32(value))
				}
			}
		}
	}
	return c, c.Family != "" && c.Name != ""
}

// parseRuleCounter reads NFTA_COUNTER_ attributes.
func parseRuleCounter(b []byte) (packets, bytes uint64) {
	for typ, value := range attributes(b) {
		switch typ {
		case unix.NFTA_COUNTER_PACKETS:
			packets = big64(value)
		case unix.NFTA_COUNTER_BYTES:
			bytes = big64(value)
		}
	}
	return packets, bytes
}

// verdictName spells a verdict code (NF_ of linux/netfilter.h, NFT_ of
// linux/netfilter/nf_tables.h) as nft(8) does.
func verdictName(code uint32) string {
	switch int32(code) & 0xff {
	case 0: // NF_DROP, with an errno in the upper half
		return "drop"
	case 1: // NF_ACCEPT
		return "accept"
	case 3: // NF_QUEUE, with its number in the upper half
		return "queue"
	}
	switch int32(code) {
	case unix.NFT_CONTINUE:
		return "continue"
	case unix.NFT_BREAK:
		return "break"
	case unix.NFT_JUMP:
		return "jump"
	case unix.NFT_GOTO:
		return "goto"
	case unix.NFT_RETURN:
		return "return"
	}
	return fmt.Sprintf("verdict %d", int32(code))
}

// takeRules puts the ruleset into s. The older iptables keeps its rules where
// netlink does not show them; that they exist is told.
func (t *Taker) takeRules(ctx context.Context, s *evidence.Snapshot) {
	rules, err := t.ruleset(ctx)
	s.Implicated.Rules = rules
	switch {
	case errors.Is(err, errRules):
		miss(s, fmt.Sprintf("firewall rules other than the first %d", rules.Total), err, "")
	case errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EINVAL) && rules == nil:
		miss(s, "firewall rules", fmt.Errorf("the kernel has no nftables: %w", err), "")
	case err != nil:
		miss(s, "firewall rules", err, "grant CAP_NET_ADMIN")
	}
	for _, name := range []string{"ip_tables_names", "ip6_tables_names"} {
		if text, err := t.read("thread-self/net/" + name); err == nil && strings.TrimSpace(text) != "" {
			miss(s, "rules of legacy iptables ("+name+")", errLegacy, "use iptables-nft; iptables-legacy-save shows the rules until then")
		}
	}
}

var errLegacy = errors.New("they are not readable over netlink")
