package evidence

import "strings"

// Ruleset is the part of nftables, iptables-nft included, that may refuse, drop
// or slow down packets.
type Ruleset struct {
	// Hash is over all chains and rules with the names of their sets, but neither
	// over counters nor over what is in named sets; empty if not all was read.
	Hash   string  `json:"hash"`
	Chains []Chain `json:"chains,omitempty"`
	// Rules are those with a verdict that may end a connection, in the order of
	// the kernel.
	Rules []Rule `json:"rules,omitempty"`
	// Total counts all rules that were read.
	Total int `json:"total"`
}

// Chain is a base chain, which packets enter by a hook.
type Chain struct {
	// Family is "ip", "ip6", "inet", "arp", "bridge" or "netdev".
	Family string `json:"family"`
	Table  string `json:"table"`
	Name   string `json:"name"`
	// Type is "filter", "nat" or "route", Hook "input", "forward" and so on.
	Type     string `json:"type,omitempty"`
	Hook     string `json:"hook"`
	Priority int32  `json:"priority"`
	// Policy is "accept" or "drop", for what no rule decides.
	Policy string `json:"policy,omitempty"`
	// Packets and Bytes the policy was applied to; 0 unless the chain counts.
	Packets uint64 `json:"packets,omitempty"`
	Bytes   uint64 `json:"bytes,omitempty"`
}

// Rule is one rule that may end a connection.
type Rule struct {
	Family string `json:"family"`
	Table  string `json:"table"`
	Chain  string `json:"chain"`
	// Handle names the rule in its table: nft delete rule FAMILY TABLE CHAIN handle N.
	Handle uint64 `json:"handle"`
	// Action is "drop", "reject with tcp reset", "reject with icmp port-unreachable",
	// "queue", or "limit" for a rule that only picks what is above or below a rate.
	Action string `json:"action"`
	// Text is the whole rule in the manner of nft(8). What it cannot spell stands
	// in brackets.
	Text    string `json:"text"`
	Comment string `json:"comment,omitempty"`
	// Via are rules that send packets into Chain, if it is not a base chain.
	Via []string `json:"via,omitempty"`
	// Counted tells whether the rule has a counter, Packets and Bytes its value.
	Counted bool   `json:"counted,omitempty"`
	Packets uint64 `json:"packets,omitempty"`
	Bytes   uint64 `json:"bytes,omitempty"`
}

// Resets tells whether the rule answers with a RST.
func (r *Rule) Resets() bool { return strings.HasSuffix(r.Action, "tcp reset") }

// RuleHits is a rule that matched packets between two snapshots.
type RuleHits struct {
	Rule Rule `json:"rule"`
	// Packets and Bytes are the growth of its counter.
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// Since lists the rules whose counters grew since earlier. A rule that was not
// there counts from 0; one whose counter was reset counts from 0 as well.
func (s *Ruleset) Since(earlier *Ruleset) []RuleHits {
	if s == nil || earlier == nil {
		return nil
	}
	type name struct {
		family, table, chain string
		handle               uint64
	}
	before := make(map[name]Rule, len(earlier.Rules))
	for _, r := range earlier.Rules {
		before[name{r.Family, r.Table, r.Chain, r.Handle}] = r
	}
	var all []RuleHits
	for _, r := range s.Rules {
		old := before[name{r.Family, r.Table, r.Chain, r.Handle}]
		if r.Packets < old.Packets || r.Bytes < old.Bytes {
			old = Rule{}
		}
		if r.Packets > old.Packets {
			all = append(all, RuleHits{r, r.Packets - old.Packets, r.Bytes - old.Bytes})
		}
	}
	return all
}
