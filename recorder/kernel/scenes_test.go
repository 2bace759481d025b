package kernel

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"

	"tcpcoroner/evidence"
	"tcpcoroner/internal/netlab"
	"tcpcoroner/internal/scenes"
)

// Every reset that a scene causes has its event, with reason, owner and actor,
// and there is no other.
func TestScenes(t *testing.T) {
	netlab.NeedRoot(t)
	k := open(t, config())
	t.Logf("%+v", k.Level())
	for _, ipv6 := range []bool{false, true} {
		for _, s := range scenes.All() {
			t.Run(fmt.Sprintf("%s/ipv6=%v", s.Name, ipv6), func(t *testing.T) { play(t, k, s, ipv6) })
		}
	}
	if s := k.Stats(); s.Lost+s.Undecodable+s.OwnersFailed+s.Evicted != 0 {
		t.Errorf("something was lost: %+v", s)
	}
}

func play(t *testing.T, k *Kernel, s scenes.Scene, ipv6 bool) {
	l := newLab(t, k)
	l.IPv6 = ipv6
	phantoms := k.Stats().Phantoms
	truths, err := s.Play(t.Context(), l.Stage)
	if errors.Is(err, scenes.ErrNeeds) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	want := 0
	for i := range truths {
		if truths[i].Reason != "" {
			want++
			tr := l.expected(truths[i])
			l.checkTruth(t, &tr)
		}
	}
	sent := l.await(t, want, "resets sent", func(e *evidence.KernelEvent) bool { return e.Kind == evidence.ResetSent })
	for _, e := range sent {
		if !e.ResetNumbers().SeqKnown {
			t.Errorf("numbers of the reset are not known: %+v", e)
		}
	}
	l.checkReceived(t, truths)
	l.checkRejects(t, truths)
	if s.Name == "shutdown-late-data" && k.Stats().Phantoms == phantoms {
		t.Error("data after shutdown makes the kernel tell of a reset that never came: it was not taken back")
	}
}

// checkRejects wants an event for each reset of a firewall, where the kernel lets
// its function be watched.
func (l *lab) checkRejects(t *testing.T, truths []scenes.Truth) {
	t.Helper()
	if !l.rejectsTold() {
		return
	}
	for i := range truths {
		tr := &truths[i]
		if !strings.HasPrefix(tr.Scene, "reject-") {
			continue
		}
		e := l.await(t, 1, "reject", func(e *evidence.KernelEvent) bool { return e.Kind == evidence.FirewallReject })[0]
		from := e.Local
		if e.Trigger.Outgoing {
			from = e.Remote
		}
		if from != tr.Claimed || e.NetNS != netns(t, l.Host(tr.RSTFrom)) {
			t.Errorf("reject of %+v:%s", *tr, list([]evidence.KernelEvent{e}))
		}
	}
}

// rejectsTold tells whether both functions of netfilter are watched.
func (l *lab) rejectsTold() bool {
	return !slices.ContainsFunc(l.k.Level().Hooks, func(h evidence.KernelHook) bool {
		return strings.HasPrefix(h.Name, "nf_send_reset") && !h.Attached
	})
}

// checkTruth finds the event of one reset.
func (l *lab) checkTruth(t *testing.T, tr *scenes.Truth) {
	t.Helper()
	ns := netns(t, l.Host(tr.RSTFrom))
	got := l.await(t, 1, fmt.Sprintf("%+v", *tr), func(e *evidence.KernelEvent) bool {
		return e.Kind == evidence.ResetSent && e.NetNS == ns && e.Local == tr.Claimed && e.Remote == other(tr, tr.Claimed) &&
			e.Reason == tr.Reason && e.State == tr.State
	})
	e := &got[0]
	if pidOf(e.Actor) != tr.GuiltyPID {
		t.Errorf("actor %+v, want %s[%d]", e.Actor, tr.GuiltyComm, tr.GuiltyPID)
	}
	if e.Actor != nil && e.Actor.Comm != tr.GuiltyComm {
		t.Errorf("actor %+v, want %s", e.Actor, tr.GuiltyComm)
	}
	if syscall.Signal(e.Signal) != tr.Signal {
		t.Errorf("signal %d, want %d", e.Signal, tr.Signal)
	}
	checkOwner(t, e, tr)
}

func checkOwner(t *testing.T, e *evidence.KernelEvent, tr *scenes.Truth) {
	t.Helper()
	owner := ownerOf(e)
	if pidOf(owner) != tr.OwnerPID {
		t.Errorf("owner %+v, want %s[%d] of %+v (grave %+v, listener %+v)", owner, tr.OwnerComm, tr.OwnerPID, *e, e.Grave, e.LastListener)
	}
	if owner != nil && owner.Comm != tr.OwnerComm {
		t.Errorf("owner %+v, want %s", owner, tr.OwnerComm)
	}
	unread := e.Unread
	if e.Grave != nil {
		unread = e.Grave.Unread
	}
	if int(unread) != tr.Unread {
		t.Errorf("%d bytes unread, want %d", unread, tr.Unread)
	}
}

// checkReceived looks at the other ends: who was told has an error, and nobody
// else got a reset.
func (l *lab) checkReceived(t *testing.T, truths []scenes.Truth) {
	t.Helper()
	told := map[netip.AddrPort]bool{}
	for i := range truths {
		tr := &truths[i]
		if tr.RSTFrom == scenes.FromNone || tr.Errno == 0 {
			continue
		}
		end := other(tr, tr.Claimed)
		told[end] = true
		l.await(t, 1, fmt.Sprintf("error %d at %v", tr.Errno, end), func(e *evidence.KernelEvent) bool {
			return e.Kind == evidence.SocketError && e.Local == end && e.Errno == int(tr.Errno)
		})
	}
	for _, e := range l.events() {
		if e.Kind == evidence.ResetReceived && !told[e.Local] {
			t.Errorf("a reset was received that nobody sent:%s", list([]evidence.KernelEvent{e}))
		}
	}
}
