package report

import (
	"cmp"
	"slices"

	"tcpcoroner/evidence"
)

// account is the ledger of one network namespace over the window.
type account struct {
	evidence.LedgerSecond
	told     uint64
	residues map[string]uint64
}

// meanings are what the parts of a residue say, in the order they are told.
var meanings = []struct{ cause, text string }{
	{evidence.LedgerOtherSender, "not TCP's, but of a raw or packet socket, an XDP or tc program, a stack in user space, or a firewall that left no trace"},
	{evidence.LedgerFirewall, "made by a firewall rule, in answer to a segment that it threw away"},
	{evidence.LedgerUntold, "counted by TCP, but no event tells of them: the events of this window are not complete"},
	{evidence.LedgerUnrecorded, "sent by TCP, but not seen: missed by the recorder, or without a route"},
	{evidence.LedgerFiltered, "sent by TCP and thrown away before an interface"},
	{evidence.LedgerUndirected, "seen on a device that does not tell the direction"},
}

// ledger accounts for the resets on the wire: who is known to have sent them, and
// what became of those that came.
func ledger(p *page) {
	accounts := accountsOf(p.inc.Ledger)
	if len(accounts) == 0 {
		return
	}
	p.heading("LEDGER of resets")
	p.row("NAMESPACE", "LEFT", "TCP TOLD", "TCP COUNTED", "FIREWALL", "FORWARDED", "CAME", "TAKEN", "IGNORED", "MET NOBODY")
	for i := range accounts {
		a := &accounts[i]
		counted := "-"
		if a.HasOutRsts {
			counted = count(a.OutRsts)
		}
		p.row(p.space(a.NetNS), count(a.WireSent), count(a.told), counted, count(a.Rejects+a.residues[evidence.LedgerFirewall]),
			count(a.WireForwarded), count(a.WireReceived), count(a.Received+a.SuppressedReceived), count(a.Ignored), count(a.Unclaimed))
	}
	p.flush()
	for i := range accounts {
		for _, m := range meanings {
			if n := accounts[i].residues[m.cause]; n > 0 {
				p.text("  ", "%s in %s: %s", plural(n, "reset"), p.space(accounts[i].NetNS), m.text)
			}
		}
	}
}

// accountsOf sums the seconds of each namespace.
func accountsOf(seconds []evidence.LedgerSecond) (all []account) {
	for i := range seconds {
		s := &seconds[i]
		at := slices.IndexFunc(all, func(a account) bool { return a.NetNS == s.NetNS })
		if at < 0 {
			at = len(all)
			all = append(all, account{LedgerSecond: evidence.LedgerSecond{NetNS: s.NetNS}, residues: map[string]uint64{}})
		}
		all[at].add(s)
	}
	slices.SortFunc(all, func(a, b account) int { return cmp.Compare(a.NetNS, b.NetNS) })
	return all
}

func (a *account) add(s *evidence.LedgerSecond) {
	a.WireSent += s.WireSent
	a.WireForwarded += s.WireForwarded
	a.WireReceived += s.WireReceived
	a.OutRsts += s.OutRsts
	a.HasOutRsts = a.HasOutRsts || s.HasOutRsts
	a.Rejects += s.Rejects
	a.Received += s.Received
	a.SuppressedReceived += s.SuppressedReceived
	a.Ignored += s.Ignored
	a.Unclaimed += s.Unclaimed
	a.told += s.Suppressed
	for _, n := range s.Sent {
		a.told += n
	}
	for _, part := range s.Parts {
		a.residues[part.Cause] += part.Count
	}
}

// space names a network namespace; one without a label is the recorder's.
func (p *page) space(inode uint64) string {
	for _, n := range p.inc.Window.Namespaces {
		if n.Inode == inode {
			return p.inc.Window.NamespaceLabel(n.Index)
		}
	}
	return "the recorder's own"
}
