package verdict

import (
	"fmt"

	"tcpcoroner/evidence"
)

// This file weighs what the ledger leaves open: RSTs on the wire that the kernel
// does not tell of speak for another sender on this host, or for a recorder that is
// blind. It names nobody where headers, rules and events have.

// weighLedger looks at a RST that left this host and that no event is about.
func (c *caseFile) weighLedger(s *story) {
	if s.rst == nil || !s.local() || s.event != nil || !c.kernel.told {
		return
	}
	row := c.ledgerAt(s)
	if row == nil {
		return
	}
	if n := row.Part(evidence.LedgerUntold); n > 0 {
		c.weighUntold(s, n)
		return
	}
	if n := row.Part(evidence.LedgerOtherSender); n > 0 {
		c.weighOther(s, row, n)
	}
}

// ledgerAt is the ledger of the RST's second in its namespace.
func (c *caseFile) ledgerAt(s *story) *evidence.LedgerSecond {
	inode := c.inode(s)
	for i := range c.inc.Ledger {
		if r := &c.inc.Ledger[i]; r.NetNS == inode && r.Second.Unix() == s.rst.Time.Unix() {
			return r
		}
	}
	return nil
}

// weighUntold: events were lost, so that the lack of one tells nothing. Who was
// found by its address or its drop stays.
func (c *caseFile) weighUntold(s *story, n uint64) {
	o := &s.opinion
	if o.claim.Origin != evidence.OriginLocalNetfilter || c.foreign(s.rst.Src.Addr(), s.excerpt.Namespace) || c.dropped(s) != nil {
		return
	}
	o.add(evidence.Finding{Kind: evidence.KindCounter, Source: srcOutRsts, Against: true,
		Text: fmt.Sprintf("TCP counted %s in this second that no event tells of: this may be one of them", plural(int(n), "RST"))})
}

// weighOther: TCP counted and told all that it sent, a packet filter threw nothing
// away for the rest.
func (c *caseFile) weighOther(s *story, row *evidence.LedgerSecond, n uint64) {
	o := &s.opinion
	f := evidence.Finding{Kind: evidence.KindKernel, Source: "the ledger of resets",
		Text: fmt.Sprintf("%s left this host in this second; %d of them neither TCP nor a packet filter account for", plural(int(row.WireSent), "RST"), n)}
	switch {
	case o.claim.Origin == evidence.OriginLocalOther:
		o.add(f)
	case o.claim.Origin == evidence.OriginLocalNetfilter:
		if !c.foreign(s.rst.Src.Addr(), s.excerpt.Namespace) && c.rejectRule(s) == nil && c.noDrops(s) {
			f.Against = true
			o.add(f)
		}
	case o.doubted && o.claim.Origin == "" && c.silentAbout(s) && !s.filterLike() && c.complete(row):
		o.add(f)
		c.otherSender(s)
	}
}

// complete tells whether nothing is missing from what the ledger was made of.
func (c *caseFile) complete(row *evidence.LedgerSecond) bool {
	return c.window.Lost() == 0 && !c.window.Cut && row.Untold == 0 && row.Part(evidence.LedgerUnrecorded) == 0
}

// noDrops tells that the kernel shows every segment that a filter throws away, and
// shows none about the time of the RST. Whatever rejects also drops
// (net/netfilter/nft_reject_inet.c), under an address that NAT may have changed.
func (c *caseFile) noDrops(s *story) bool {
	watched := false
	for _, h := range c.inc.KernelLevel.Hooks {
		watched = watched || h.Name == "kfree_skb" && h.Attached
	}
	for _, x := range c.kernel.suppressed {
		if x.Kind == evidence.SegmentDropped {
			return false
		}
	}
	for i := range c.inc.Kernel {
		e := &c.inc.Kernel[i]
		if e.Kind == evidence.SegmentDropped && e.Reason == "NETFILTER_DROP" && e.Time.Sub(s.rst.Time).Abs() <= joinWithin {
			return false
		}
	}
	return watched
}

// otherSender concludes what is left, and is no surer than that.
func (c *caseFile) otherSender(s *story) {
	o := &s.opinion
	o.doubted = false
	o.claim.Origin, o.claim.Mechanism, o.claim.Layer = evidence.OriginLocalOther, evidence.MechanismInjected, evidence.LayerNetwork
	o.claim.Confidence = evidence.Possible
	o.claim.Sentence = fmt.Sprintf("a program on this host%s, not its TCP, sent the RST to %v", s.where, s.rst.Dst)
	o.claim.Settle = "which process holds a packet or raw socket, or a tc or XDP program, on this host"
	o.exclude("this host's TCP: it counts and describes every RST that it sends")
}
