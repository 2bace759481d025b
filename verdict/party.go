package verdict

import (
	"fmt"
	"net/netip"
	"slices"

	"tcpcoroner/evidence"
)

// This file says whose an address is. A role that the operator gave decides; the
// shape of the connection is a weaker hint, for a proxy is a client and a server.

// role is what the operator says of an address; the longest prefix wins.
func (c *caseFile) role(a netip.Addr) (evidence.Party, bool) {
	best, party := -1, evidence.PartyUnknown
	for _, r := range c.inc.Roles {
		if r.Prefix.Contains(a.Unmap()) && r.Prefix.Bits() > best {
			best, party = r.Prefix.Bits(), r.Party
		}
	}
	return party, best >= 0
}

// party is whose the end of the story's flow is.
func (c *caseFile) party(s *story, end netip.AddrPort) (evidence.Party, evidence.Confidence) {
	if p, ok := c.role(end.Addr()); ok {
		return p, evidence.Proven
	}
	if end == s.flow.Local && c.relays(s) {
		return evidence.Proxy, evidence.Likely
	}
	confidence := evidence.Possible
	if s.flow.InitiatorSeen {
		confidence = evidence.Likely
	}
	if end == s.flow.Client {
		return evidence.Client, confidence
	}
	return evidence.Server, confidence
}

// relays tells whether the local end belongs to a proxy: its flow has a leg on the
// other side, or its process listens and connects.
func (c *caseFile) relays(s *story) bool {
	if s.leg != nil {
		return true
	}
	for _, o := range c.stories {
		if o.leg == s {
			return true
		}
	}
	if s.flow.Owner == nil || s.flow.Local != s.flow.Client {
		return false
	}
	for _, all := range c.listeners {
		for _, l := range all {
			if l.Owner != nil && l.Owner.PID == s.flow.Owner.PID {
				return true
			}
		}
	}
	return false
}

// partyName names an end for a sentence.
func (c *caseFile) partyName(s *story, end netip.AddrPort) string {
	p, _ := c.party(s, end)
	who := end.String()
	if end == s.flow.Local && s.flow.Owner != nil {
		who = processName(s.flow.Owner) + " on " + who
	}
	return fmt.Sprintf("the %s %s", p, who)
}

// hostParty is whose this host is.
func (c *caseFile) hostParty() (evidence.Party, evidence.Confidence) {
	accepted, opened, routed := 0, 0, 0
	for _, s := range c.stories {
		l := s.flow.Local
		if !l.IsValid() {
			routed++
			continue
		}
		if p, ok := c.role(l.Addr()); ok {
			return p, evidence.Proven
		}
		if l == s.flow.Server {
			accepted++
		} else {
			opened++
		}
	}
	switch {
	case routed > accepted+opened:
		return evidence.Network, evidence.Likely
	case accepted > 0 && opened > 0:
		return evidence.Proxy, evidence.Possible
	case accepted > 0:
		return evidence.Server, evidence.Possible
	case opened > 0:
		return evidence.Client, evidence.Possible
	}
	return c.idleHostParty()
}

// idleHostParty goes by the addresses that sockets of this host have.
func (c *caseFile) idleHostParty() (evidence.Party, evidence.Confidence) {
	if c.inc.At == nil {
		return evidence.PartyUnknown, evidence.Uncertain
	}
	own := map[netip.Addr]bool{}
	for i := range c.inc.At.Sockets {
		a := c.inc.At.Sockets[i].Local.Addr().Unmap()
		if own[a] = true; a.IsLoopback() {
			continue
		}
		if p, ok := c.role(a); ok {
			return p, evidence.Likely
		}
	}
	if ct := c.inc.At.Conntrack; ct != nil {
		for _, t := range ct.TopTalkers {
			if !own[t.Source] && !own[t.Destination.Addr()] && !t.Source.IsLoopback() {
				return evidence.Network, evidence.Likely // it tracks what it only routes
			}
		}
	}
	return evidence.PartyUnknown, evidence.Uncertain
}

// translates tells whether this host translates addresses of connections that it
// routes.
func (c *caseFile) translates() bool {
	for _, snap := range []*evidence.Snapshot{c.inc.After, c.inc.At} {
		if snap == nil || snap.Implicated == nil {
			continue
		}
		if slices.ContainsFunc(snap.Implicated.Tracked, func(f evidence.TrackedFlow) bool { return f.Translated() }) {
			return true
		}
	}
	return false
}

// translatesByRule tells whether this host has rules that translate what it routes:
// a mapping that is lost cannot be found among those that are tracked. Rules alone
// say little, for hosts of containers have them, too.
func (c *caseFile) translatesByRule(s *story) bool {
	if !s.here() {
		return false
	}
	for _, snap := range []*evidence.Snapshot{c.inc.After, c.inc.At} {
		if snap == nil || snap.Implicated == nil || snap.Implicated.Rules == nil {
			continue
		}
		routes := !slices.ContainsFunc(snap.Implicated.Sysctls, func(y evidence.Sysctl) bool {
			return y.Name == "net.ipv4.ip_forward" && y.Value == "0" && s.rst.Src.Addr().Is4()
		})
		if routes && slices.ContainsFunc(snap.Implicated.Rules.Chains, func(ch evidence.Chain) bool {
			return ch.Type == "nat" && (ch.Hook == "prerouting" || ch.Hook == "postrouting")
		}) {
			return true
		}
	}
	return false
}

// neverHere tells that the kernel, which remembers sockets that are gone, knows of
// none at the address that the RST claims to come from.
func (c *caseFile) neverHere(s *story) bool {
	e := s.event
	l, _ := c.listener(s.rst.Src)
	return e != nil && e.Grave == nil && e.LastListener == nil && e.Owner == nil && l == nil
}

// translated tells whether the RST's sender is the address of a translator, which
// answers what it has no mapping for itself.
func (c *caseFile) translated(s *story) bool {
	if !s.passive() || s.sender.fin != nil {
		return false
	}
	p, ok := c.role(s.rst.Src.Addr())
	return ok && p == evidence.Network
}
