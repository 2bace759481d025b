package kernel

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"tcpcoroner/evidence"
	"tcpcoroner/internal/scenes"
)

// matrixEnv makes TestMatrix run: "own" where the machine is there for nothing
// else, anything else where it is shared (packaging/kernel-matrix).
const matrixEnv = "KERNEL_MATRIX"

// TestMatrix prints a line for each scene, which packaging/kernel-matrix puts
// into a table with those of other kernels.
func TestMatrix(t *testing.T) {
	where := os.Getenv(matrixEnv)
	if where == "" {
		t.Skipf("set %s to print this kernel's column", matrixEnv)
	}
	k := open(t, config())
	level := k.Level()
	fmt.Printf("MATRIX|level|%s\n", level.Name)
	for _, h := range level.Hooks {
		if !h.Attached {
			fmt.Printf("MATRIX-HOOK|%s|%s\n", h.Name, h.Why)
		}
	}
	for _, s := range scenes.All() {
		t.Run(s.Name, func(t *testing.T) {
			cells := []string{column(t, k, s, where == "own", false)}
			if six := column(t, k, s, where == "own", true); six != cells[0] {
				cells = append(cells, "IPv6: "+six)
			}
			fmt.Printf("MATRIX|%s|%s\n", s.Name, strings.Join(cells, "; "))
		})
	}
}

// column plays a scene and says what the kernel told of it.
func column(t *testing.T, k *Kernel, s scenes.Scene, own, ipv6 bool) string {
	t.Helper()
	l := newLab(t, k)
	l.IPv6, l.OwnMachine = ipv6, own
	truths, err := s.Play(t.Context(), l.Stage)
	if errors.Is(err, scenes.ErrNeeds) {
		_, needs, _ := strings.Cut(err.Error(), scenes.ErrNeeds.Error()+": ")
		return "not played, needs " + needs
	}
	if err != nil {
		t.Error(err)
		return "the scene failed"
	}
	var cells []string
	for _, m := range l.meet(truths) {
		cell, ok := l.compare(&m)
		if !ok {
			t.Errorf("%s: %+v", cell, m)
		}
		if !slices.Contains(cells, cell) {
			cells = append(cells, cell)
		}
	}
	return strings.Join(cells, "; ")
}

// meeting is a truth and the event of its reset, nil if there is none.
type meeting struct {
	truth *scenes.Truth
	event *evidence.KernelEvent
}

// meet finds the events of truths in the order of the play: a tuple may have been
// reset more than once. Events without a truth come last.
func (l *lab) meet(truths []scenes.Truth) (all []meeting) {
	want := 0
	for i := range truths {
		if truths[i].Reason != "" {
			want++
		}
	}
	sent := l.settled(want)
	for i := range truths {
		tr := &truths[i]
		m := meeting{truth: tr}
		at := slices.IndexFunc(sent, func(e evidence.KernelEvent) bool {
			return tr.Reason != "" && e.Local == tr.Claimed && e.Remote == other(tr, tr.Claimed)
		})
		if at >= 0 {
			e := sent[at]
			m.event, sent = &e, slices.Delete(sent, at, at+1)
		}
		all = append(all, m)
	}
	for i := range sent {
		all = append(all, meeting{event: &sent[i]})
	}
	return all
}

// settled waits until n resets are told, but not for ever.
func (l *lab) settled(n int) (sent []evidence.KernelEvent) {
	for end := time.Now().Add(patience); ; {
		sent = slices.DeleteFunc(l.events(), func(e evidence.KernelEvent) bool { return e.Kind != evidence.ResetSent })
		if len(sent) >= n || time.Now().After(end) {
			return sent
		}
		<-time.After(5 * time.Millisecond)
	}
}

// compare is what the table says of a reset, and whether that is as it should be
// at this kernel's level.
func (l *lab) compare(m *meeting) (cell string, ok bool) {
	switch {
	case m.truth == nil:
		return "an event without a reset", false
	case m.truth.Reason == "":
		return l.silent(m.truth)
	case m.event == nil:
		return "no event", false
	}
	tr, e := m.truth, m.event
	may := l.expected(*tr)
	var odd []string
	ok = true
	for _, field := range []struct{ name, want, may, got string }{
		{"reason", tr.Reason, may.Reason, e.Reason},
		{"state", tr.State, may.State, e.State},
		{"owner", named(tr.OwnerPID), named(may.OwnerPID), named(pidOf(ownerOf(e)))},
		{"actor", named(tr.GuiltyPID), named(may.GuiltyPID), named(pidOf(e.Actor))},
	} {
		switch {
		case field.got == field.want:
		case field.got == "":
			odd = append(odd, field.name+" absent")
			ok = ok && field.may == ""
		default:
			odd = append(odd, fmt.Sprintf("%s differs: %s", field.name, field.got))
			ok = false
		}
	}
	if odd == nil {
		return "as expected", ok
	}
	return strings.Join(odd, ", "), ok
}

// silent is a reset that no TCP of the stage sent, or none at all. Where the kernel
// lets netfilter be watched, a reject is to be told.
func (l *lab) silent(tr *scenes.Truth) (cell string, ok bool) {
	if !strings.HasPrefix(tr.Scene, "reject-") || !l.rejectsTold() {
		return "as expected: no event", true
	}
	for end := time.Now().Add(patience); time.Now().Before(end); <-time.After(5 * time.Millisecond) {
		for _, e := range l.events() {
			if e.Kind == evidence.FirewallReject {
				return "as expected: reject told", true
			}
		}
	}
	return "reject absent", false
}

func named(pid int) string {
	if pid == 0 {
		return ""
	}
	return fmt.Sprintf("process %d", pid)
}

// ownerOf is who had the connection, or the port that refuses.
func ownerOf(e *evidence.KernelEvent) *evidence.Owner {
	owner := e.Owner
	if e.Grave != nil && (owner == nil || e.State == "listen") {
		owner = e.Grave.Owner
	}
	if owner == nil && e.Trigger != nil && e.Trigger.Flags == evidence.SYN {
		owner = e.LastListener
	}
	return owner
}
