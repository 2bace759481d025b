package kernel

import (
	"slices"
	"testing"
	"time"

	"tcpcoroner/evidence"
	"tcpcoroner/internal/netlab"
)

func TestBitsOf(t *testing.T) {
	one, two := bitsOf([]uint64{4026532001}), bitsOf([]uint64{4026532001, 4026532099})
	if one == (watched{1}) || one[0]&1 == 0 || two == one {
		t.Errorf("a namespace and none are two bits: %x, %x", one, two)
	}
	all := everywhere()
	if !two.adds(&one) || one.adds(&two) || two.adds(&all) {
		t.Errorf("a set adds to another what that has not: %x, %x", one, two)
	}
}

// What happens where nobody watches is not told, takes nobody's tokens and has no
// owners; once somebody does, what is there already has its owners.
func TestWatch(t *testing.T) {
	k := open(t, config())
	here, there := netlab.NewNS(t), netlab.NewNS(t)
	watch := func(all ...*netlab.NS) {
		t.Helper()
		var inodes []uint64
		for _, ns := range all {
			inodes = append(inodes, inode(t, "/run/netns/"+ns.Name))
		}
		if err := k.Watch(inodes); err != nil {
			t.Fatal(err)
		}
	}
	refused := func(ns *netlab.NS) { _, _ = ns.TryDial("127.0.0.1:9") }
	events := func(ns *netlab.NS) (n int) {
		for _, e := range k.Events(time.Now().Add(-time.Minute), time.Now()) {
			if e.Kind == evidence.ResetSent && e.NetNS == inode(t, "/run/netns/"+ns.Name) {
				n++
			}
		}
		return n
	}
	watch(here)
	before := k.Stats()
	p := connect(t, there)
	for range 3 {
		refused(there)
	}
	if _, _, ok := k.OwnerByCookie(cookie(t, p.client)); ok {
		t.Error("an owner is noted where nobody watches")
	}
	wantVia(t, k, connect(t, here).client, evidence.ViaConnect)
	refused(here)
	until(t, "the reset is told", func() bool { return events(here) == 1 })
	after := k.Stats()
	if n := events(there); n != 0 || after.Events[evidence.ResetSent]-before.Events[evidence.ResetSent] != 1 {
		t.Errorf("%d resets are told where nobody watches", n)
	}
	watch(here, there)
	wantVia(t, k, p.client, evidence.ViaSeed)
	wantVia(t, k, p.server, evidence.ViaSeed)
	refused(there)
	until(t, "the reset is told", func() bool { return events(there) == 1 })
	watch(there)
	wantAccepted(t, k, connect(t, there).server)
	if !slices.ContainsFunc(k.Level().Hooks, func(h evidence.KernelHook) bool { return h.Name == hookSeed.name && h.Attached }) {
		t.Errorf("hooks %+v", k.Level().Hooks)
	}
}
