package scenes

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tcpcoroner/internal/netlab"
)

func TestMain(m *testing.M) {
	Main()
	os.Exit(m.Run())
}

// stage makes a stage that is removed when the test ends.
func stage(t testing.TB) *Stage {
	t.Helper()
	netlab.NeedRoot(t)
	st, err := NewStage()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	return st
}

func TestScenes(t *testing.T) {
	for _, ipv6 := range []bool{false, true} {
		for _, s := range All() {
			t.Run(fmt.Sprintf("%s/ipv6=%v", s.Name, ipv6), func(t *testing.T) {
				t.Parallel()
				st := stage(t)
				st.IPv6 = ipv6
				playAndCheck(t, st, s)
			})
		}
	}
}

// playAndCheck holds the truths against the hosts' counters: the scene itself
// checked the errors that the actors saw.
func playAndCheck(t *testing.T, st *Stage, s Scene) {
	t.Helper()
	wire := sniff(t, st)
	before := resets(t, st)
	truths, err := s.Play(t.Context(), st)
	if errors.Is(err, ErrNeeds) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	checkComplete(t, s.Name, truths)
	sent, made := expected(truths)
	after := resets(t, st)
	for host, n := range sent {
		if got := after[host] - before[host]; got != n {
			t.Errorf("%s's Tcp.OutRsts grew by %d, want %d by %+v", host, got, n, truths)
		}
	}
	if diff := cmp.Diff(made, wire()); diff != "" {
		t.Errorf("resets on the wire by source (-truth +wire):\n%s", diff)
	}
}

// expected counts the resets that each host's TCP sent, and all by source.
func expected(truths []Truth) (sent map[string]uint64, made map[netip.AddrPort]int) {
	sent = map[string]uint64{FromClient: 0, FromRouter: 0, FromServer: 0}
	made = map[netip.AddrPort]int{}
	for _, t := range truths {
		if t.RSTFrom == FromNone {
			continue
		}
		made[t.Claimed]++
		if t.Reason != "" {
			sent[t.RSTFrom]++
		}
	}
	return sent, made
}

func resets(t testing.TB, st *Stage) map[string]uint64 {
	t.Helper()
	all := map[string]uint64{}
	for _, h := range []*Host{st.Client, st.Router, st.Server} {
		c, err := h.Counters()
		if err != nil {
			t.Fatal(err)
		}
		all[h.Name] = c["Tcp.OutRsts"]
	}
	return all
}

func checkComplete(t *testing.T, name string, truths []Truth) {
	t.Helper()
	if len(truths) == 0 {
		t.Errorf("%s tells nothing", name)
	}
	for _, tr := range truths {
		if tr.Scene != name || !tr.Client.IsValid() || !tr.Server.IsValid() || tr.Client.Port() == 0 || tr.Server.Port() == 0 {
			t.Errorf("%s leaves out scene, client or server: %+v", name, tr)
		}
		if tr.RSTFrom != FromNone && !tr.Claimed.IsValid() {
			t.Errorf("%s does not say what source the reset claims: %+v", name, tr)
		}
		if (tr.OwnerPID != 0) != (tr.OwnerComm != "") || (tr.GuiltyPID != 0) != (tr.GuiltyComm != "") {
			t.Errorf("%s names a process that is none: %+v", name, tr)
		}
		if tr.Current != (tr.GuiltyPID != 0) || tr.Current && tr.Reason == "" {
			t.Errorf("%s blames without reason: %+v", name, tr)
		}
	}
}

func TestMixed(t *testing.T) {
	for _, ipv6 := range []bool{false, true} {
		t.Run(fmt.Sprintf("ipv6=%v", ipv6), func(t *testing.T) { mixAndCheck(t, ipv6, 300) })
	}
}

func BenchmarkMixed(b *testing.B) { mixAndCheck(b, false, b.N) }

func mixAndCheck(t testing.TB, ipv6 bool, n int) {
	t.Helper()
	st := stage(t)
	st.IPv6 = ipv6
	before := resets(t, st)
	mix, err := Mixed(t.Context(), st, n)
	if err != nil {
		t.Fatal(err)
	}
	if got := len(mix.Truths); got != n && got != n+1 {
		t.Errorf("%d truths, want %d or one more", got, n)
	}
	sent, _ := expected(mix.Truths)
	after := resets(t, st)
	for host, want := range sent {
		if got := after[host] - before[host]; got != want {
			t.Errorf("%s's Tcp.OutRsts grew by %d, want %d", host, got, want)
		}
	}
	t.Logf("%v %v", mix.ByScene, mix.ByFrom)
}

// TestActors checks what tests about processes rely on.
func TestActors(t *testing.T) {
	st := stage(t)
	p := &play{ctx: t.Context(), st: st}
	a := p.actor(st.Server, "some-name")
	if p.err != nil {
		t.Fatal(p.err)
	}
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", a.PID))
	if err != nil || string(comm) != "some-name\n" {
		t.Errorf("comm %q, error %v", comm, err)
	}
	want, err := st.Host(FromServer).NetNS()
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", a.PID)); got != fmt.Sprintf("net:[%d]", want) {
		t.Errorf("the actor is in namespace %s, want %d", got, want)
	}
	if err := st.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", a.PID)); !os.IsNotExist(err) {
		t.Errorf("the actor outlives its stage (%v)", err)
	}
}

func TestNeeds(t *testing.T) {
	s := script{"s", "", []string{NeedsVM, "no-such-program"}, nil}.scene()
	_, err := s.Play(t.Context(), &Stage{})
	want := "play s: the scene needs what is not here: a machine of its own (Stage.OwnMachine), the program no-such-program"
	if !errors.Is(err, ErrNeeds) || err.Error() != want {
		t.Errorf("Play says %v, want %v", err, want)
	}
}

func TestNamesAreUnique(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range All() {
		if seen[s.Name] || s.Name == "" || s.Doc == "" {
			t.Errorf("scene %q comes twice, or has no name or Doc", s.Name)
		}
		seen[s.Name] = true
	}
	for _, k := range kinds {
		if !seen[k.scene] {
			t.Errorf("the mix has %q, which is no scene", k.scene)
		}
	}
}

func TestStepsStopAtTheFirstError(t *testing.T) {
	st := stage(t)
	p := &play{ctx: t.Context(), st: st}
	c := p.connect()
	c.s.close()
	c.s.close() // EBADF
	first := p.err
	c.s.write(1)
	if first == nil || !errors.Is(p.err, first) {
		t.Errorf("error %v, want the first: %v", p.err, first)
	}
}
