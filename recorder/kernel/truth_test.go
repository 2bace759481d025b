package kernel

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"tcpcoroner/evidence"
	"tcpcoroner/internal/netlab"
	"tcpcoroner/internal/scenes"
)

// mixedEnv is how many resets of all kinds are made, instead of mixed.
const (
	mixedEnv = "KERNEL_MIXED"
	mixed    = 2000
)

// Each of many resets has exactly one event with its reason and its owner, none is
// made up, and what was on the wire without an event is what forgers and firewalls
// sent: the ledger says so.
func TestMixed(t *testing.T) {
	netlab.NeedRoot(t)
	cfg := config()
	cfg.MaxEvents = 1 << 18
	k := open(t, cfg)
	l := newLab(t, k)
	before, seen := outRsts(t, l), watchWire(t, l)
	start := time.Now()
	mix, err := scenes.Mixed(t.Context(), l.Stage, number(t, mixedEnv, mixed))
	if err != nil {
		t.Fatal(err)
	}
	took := time.Since(start)
	l.checkMix(t, mix.Truths)
	wire := seen()
	events := l.events()
	sent := slices.DeleteFunc(slices.Clone(events), func(e evidence.KernelEvent) bool { return e.Kind != evidence.ResetSent })
	if after := outRsts(t, l); uint64(len(sent)) != after-before {
		t.Errorf("%d resets sent, but Tcp.OutRsts grew by %d", len(sent), after-before)
	}
	l.checkWire(t, wire, sent, mix.Truths)
	l.checkLedger(t, wire, events, mix.Truths)
	if s := k.Stats(); s.Lost+s.Undecodable+s.Evicted != 0 {
		t.Errorf("something was lost: %+v", s)
	}
	t.Logf("%d resets in %v: %v; %d on the wire, %d events of resets sent", len(mix.Truths), took.Round(time.Millisecond), mix.ByScene, len(wire), len(sent))
}

// number is a size that the environment may change.
func number(t testing.TB, env string, usual int) int {
	t.Helper()
	text := os.Getenv(env)
	if text == "" {
		return usual
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("%s: %v", env, err)
	}
	return n
}

func outRsts(t *testing.T, l *lab) (n uint64) {
	t.Helper()
	for _, h := range []*scenes.Host{l.Client, l.Router, l.Server} {
		c, err := h.Counters()
		if err != nil {
			t.Fatal(err)
		}
		n += c["Tcp.OutRsts"]
	}
	return n
}

// told is what an event must say of a reset; ports come again, so it is counted.
type told struct {
	local, remote netip.AddrPort
	reason, state string
	actor, owner  int
}

// checkMix compares what was told with what was done.
func (l *lab) checkMix(t *testing.T, truths []scenes.Truth) {
	t.Helper()
	want := map[told]int{}
	n := 0
	for _, tr := range truths {
		if tr.Reason != "" {
			tr = l.expected(tr)
			want[told{tr.Claimed, other(&tr, tr.Claimed), tr.Reason, tr.State, tr.GuiltyPID, tr.OwnerPID}]++
			n++
		}
	}
	for _, e := range l.await(t, n, "resets sent", func(e *evidence.KernelEvent) bool { return e.Kind == evidence.ResetSent }) {
		key := told{e.Local, e.Remote, e.Reason, e.State, pidOf(e.Actor), pidOf(ownerOf(&e))}
		if want[key]--; want[key] < 0 {
			t.Errorf("an event that no truth is for:%s", list([]evidence.KernelEvent{e}))
		}
	}
	for key, n := range want {
		if n > 0 {
			t.Errorf("%d events are missing: %+v", n, key)
		}
	}
}

// A process that has nothing to do with it, and keeps the CPU busy on which all
// actors, timers and receive paths run, is never named.
func TestInnocentIsNotNamed(t *testing.T) {
	netlab.NeedRoot(t)
	k := open(t, config())
	t.Run("pinned", func(t *testing.T) {
		pin(t)
		pid := busy(t)
		l := newLab(t, k)
		var truths []scenes.Truth
		for _, name := range []string{"keepalive", "keepalive-user-timeout", "user-timeout", "close-late-data", "half-open", "closed-port", "shutdown-late-data"} {
			truths = append(truths, l.play(t, name)...)
		}
		mix, err := scenes.Mixed(t.Context(), l.Stage, 200)
		if err != nil {
			t.Fatal(err)
		}
		l.checkMix(t, append(truths, mix.Truths...))
		for _, e := range l.events() {
			for _, o := range []*evidence.Owner{e.Owner, e.Actor, e.LastListener} {
				if pidOf(o) == pid {
					t.Errorf("the innocent process %d is named:%s", pid, list([]evidence.KernelEvent{e}))
				}
			}
		}
	})
}

// pin keeps this thread, which ends with its goroutine, and the processes that it
// starts on the first CPU.
func pin(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	var one unix.CPUSet
	one.Set(0)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		t.Errorf("pin to a CPU: %v", err)
	}
}

// busy starts a process that does nothing but run.
func busy(t *testing.T) int {
	t.Helper()
	ctx, stop := context.WithTimeout(context.Background(), time.Minute)
	cmd := exec.CommandContext(ctx, "sh", "-c", "while :; do :; done")
	if err := cmd.Start(); err != nil {
		t.Errorf("start a busy process: %v", err)
	}
	t.Cleanup(func() { stop(); _ = cmd.Wait() })
	return cmd.Process.Pid
}

// A scan of closed ports makes few events; all others are counted, exactly.
func TestFloodIsBounded(t *testing.T) {
	netlab.NeedRoot(t)
	const scanned = 2000
	cfg := DefaultConfig()
	cfg.Rate, cfg.Burst = 1, 20
	k := open(t, cfg)
	start := time.Now()
	ns := netlab.NewNS(t)
	for i := range scanned {
		if _, err := ns.TryDial(fmt.Sprintf("127.0.0.1:%d", 1+i%4)); err == nil {
			t.Fatal("a port is open")
		}
	}
	s := k.Stats()
	sent := s.Events[evidence.ResetSent] + s.Suppressed[evidence.ResetSent]
	if sent < scanned {
		t.Errorf("%d resets told or counted of %d", sent, scanned)
	}
	most := uint64(ebpf.MustPossibleCPU()) * uint64(20+1+time.Since(start)/time.Second)
	for kind, n := range s.Events {
		if n > 2*most { // resets sent have two buckets
			t.Errorf("%d events of kind %s, want at most %d", n, kind, 2*most)
		}
	}
	k.drain(time.Now())
	counted := uint64(0)
	for _, sup := range k.Suppressed(start, time.Now()) {
		if sup.Kind == evidence.ResetSent && sup.Reason == "NO_SOCKET" && sup.Port <= 4 {
			counted += sup.Count
		}
	}
	if counted+s.Events[evidence.ResetSent] < scanned {
		t.Errorf("%d are counted by port and %d told, of %d", counted, s.Events[evidence.ResetSent], scanned)
	}
	if s.Lost != 0 {
		t.Errorf("%d events are lost", s.Lost)
	}
}
