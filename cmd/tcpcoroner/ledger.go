package main

import (
	"slices"
	"time"

	"tcpcoroner/evidence"
)

// kernelLedger is the kernel's side of a window's ledger: of all its events, of
// which the incident keeps some.
func (d *daemon) kernelLedger(inc *evidence.Incident, from, to time.Time) []evidence.LedgerSecond {
	all := slices.DeleteFunc(d.kernel.Events(from, to), func(e evidence.KernelEvent) bool { return !d.recorded(e.NetNS) })
	return evidence.KernelLedger(all, inc.Suppressed, inc.Series)
}

// balance adds the packets' side. Packets carry the index of their namespace.
func balance(inc *evidence.Incident, wire *evidence.WireResets) []evidence.LedgerSecond {
	return evidence.BalanceLedger(inc.Ledger, wire, func(index uint16) uint64 {
		for _, n := range inc.Window.Namespaces {
			if n.Index == index {
				return n.Inode
			}
		}
		return inc.Host.NetNS
	})
}
