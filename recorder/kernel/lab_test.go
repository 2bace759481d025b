package kernel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tcpcoroner/evidence"
	"tcpcoroner/internal/netlab"
	"tcpcoroner/internal/scenes"
)

func TestMain(m *testing.M) {
	scenes.Main()
	unprivileged()
	listening()
	holding()
	numbering()
	os.Exit(m.Run())
}

// patience bounds every wait.
const patience = 20 * time.Second

// open opens a Kernel that runs until the test ends.
func open(t testing.TB, cfg Config) *Kernel {
	t.Helper()
	k := openOnly(t, cfg)
	run(t, k)
	return k
}

// openOnly opens a Kernel.
func openOnly(t testing.TB, cfg Config) *Kernel {
	t.Helper()
	netlab.NeedRoot(t)
	var k *Kernel
	if err := withTracefs(func() (err error) { k, err = Open(cfg); return err }); err != nil {
		t.Fatal(err)
	}
	return k
}

// withTracefs mounts tracefs where it is not, for the thread that runs f and dies with
// its mount namespace. All tests do it this way: the library looks for tracefs only once.
func withTracefs(f func() error) (err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if err = mountTracefs(); err == nil {
			err = f()
		}
	}()
	<-done
	return err
}

func run(t testing.TB, k *Kernel) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- k.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := errors.Join(<-ended, k.Close()); err != nil {
			t.Error(err)
		}
	})
}

func mountTracefs() error {
	const dir = "/sys/kernel/tracing"
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err == nil && fs.Type == unix.TRACEFS_MAGIC {
		return nil
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare mounts: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("tracefs", dir, "tracefs", 0, ""); err != nil {
		return fmt.Errorf("mount tracefs: %w", err)
	}
	return nil
}

// config is the default, with events enough for a lab.
func config() Config {
	cfg := DefaultConfig()
	cfg.Rate, cfg.Burst = 10000, 10000
	return cfg
}

// lab is a stage and the Kernel that watches it.
type lab struct {
	*scenes.Stage
	k *Kernel
	// since is when the stage was made: numbers of namespaces are used again.
	since time.Time
	ns    map[uint64]bool
}

// expected is what the kernel can tell of a truth: before 6.10 there is no reason,
// and without it the process that destroyed a socket is not known from a timer.
func (l *lab) expected(tr scenes.Truth) scenes.Truth {
	if tr.Reason != "" && l.k.Level().Name == evidence.LevelTuples {
		tr.Reason = ""
		if tr.State != "closed" {
			tr.GuiltyPID = 0
		}
	}
	return tr
}

// newLab makes a stage that is removed when the test ends.
func newLab(t testing.TB, k *Kernel) *lab {
	t.Helper()
	since := time.Now()
	st, err := scenes.NewStage()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	l := &lab{st, k, since, map[uint64]bool{}}
	for _, h := range []*scenes.Host{st.Client, st.Router, st.Server} {
		l.ns[netns(t, h)] = true
	}
	return l
}

func netns(t testing.TB, h *scenes.Host) uint64 {
	t.Helper()
	n, err := h.NetNS()
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// events are those of the stage.
func (l *lab) events() []evidence.KernelEvent {
	return slices.DeleteFunc(l.k.Events(l.since, time.Now().Add(time.Minute)),
		func(e evidence.KernelEvent) bool { return !l.ns[e.NetNS] })
}

// await waits for n events that fit; more are an error.
func (l *lab) await(t testing.TB, n int, what string, fit func(*evidence.KernelEvent) bool) []evidence.KernelEvent {
	t.Helper()
	got := l.atLeast(t, n, what, fit)
	if len(got) != n {
		t.Errorf("%d events, want %d: %s:%s", len(got), n, what, list(got))
	}
	return got
}

// atLeast waits for n events that fit.
func (l *lab) atLeast(t testing.TB, n int, what string, fit func(*evidence.KernelEvent) bool) []evidence.KernelEvent {
	t.Helper()
	var got []evidence.KernelEvent
	until(t, fmt.Sprintf("there are %d events: %s", n, what), func() bool {
		got = slices.DeleteFunc(l.events(), func(e evidence.KernelEvent) bool { return !fit(&e) })
		return len(got) >= n
	})
	return got
}

// play plays one scene by its name; it skips the test if that is not possible here.
func (l *lab) play(t *testing.T, name string) []scenes.Truth {
	t.Helper()
	i := slices.IndexFunc(scenes.All(), func(s scenes.Scene) bool { return s.Name == name })
	if i < 0 {
		t.Fatalf("there is no scene %s", name)
	}
	truths, err := scenes.All()[i].Play(t.Context(), l.Stage)
	if errors.Is(err, scenes.ErrNeeds) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return truths
}

// until polls a condition that the kernel will bring about.
func until(t testing.TB, what string, met func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); !met(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("waited %v until %s", patience, what)
		}
	}
}

// list prints events for people.
func list(events []evidence.KernelEvent) string {
	var b strings.Builder
	for i := range events {
		e := &events[i]
		fmt.Fprintf(&b, "\n  %s %v>%v %s state=%s err=%d owner=%d/%s actor=%d", e.Kind, e.Local, e.Remote, e.Reason, e.State, e.Errno, pidOf(e.Owner), e.Via, pidOf(e.Actor))
		if e.Grave != nil {
			fmt.Fprintf(&b, " grave=%d/%s,%s", pidOf(e.Grave.Owner), e.Grave.Via, e.Grave.State)
		}
		if e.LastListener != nil {
			fmt.Fprintf(&b, " listener=%d", e.LastListener.PID)
		}
		if e.Trigger != nil {
			fmt.Fprintf(&b, " trigger=%v", e.Trigger.Flags)
		}
		if e.Location != "" {
			fmt.Fprintf(&b, " at %s", e.Location)
		}
	}
	return b.String()
}

func other(tr *scenes.Truth, end netip.AddrPort) netip.AddrPort {
	if end == tr.Client {
		return tr.Server
	}
	return tr.Client
}

func pidOf(o *evidence.Owner) int {
	if o == nil {
		return 0
	}
	return o.PID
}
