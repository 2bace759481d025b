package kernel

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"tcpcoroner/evidence"
	"tcpcoroner/internal/netlab"
)

func TestLevelOf(t *testing.T) {
	full := state{sentArgs: 3, dropArgs: 4, activeReasons: true, sent: true, owners: true, accept: true}
	with := func(change func(*state)) state { s := full; change(&s); return s }
	for name, tt := range map[string]struct {
		limit string
		state state
		want  string
		why   string
	}{
		"everything":      {"full", full, "full", ""},
		"no BTF":          {"full", state{broken: errors.New("no types")}, "packets", "no types"},
		"not attached":    {"full", state{sentArgs: 3}, "packets", "cannot be watched"},
		"Linux 6.1":       {"full", with(func(s *state) { s.sentArgs, s.activeReasons = 2, false }), "tuples", "no reason"},
		"Linux 6.10":      {"full", with(func(s *state) { s.activeReasons = false }), "reasons", "applications"},
		"no owners":       {"full", with(func(s *state) { s.owners, s.accept = false, false }), "reasons", "owners"},
		"no accept":       {"full", with(func(s *state) { s.accept = false }), "reasons", "accept"},
		"limited":         {"reasons", with(func(s *state) { s.owners = false }), "reasons", "configuration"},
		"limited more":    {"packets", state{}, "packets", "configuration"},
		"less than limit": {"reasons", state{broken: errors.New("no types")}, "packets", "no types"},
	} {
		t.Run(name, func(t *testing.T) {
			got := levelOf(tt.limit, tt.state)
			if got.Name != tt.want || !strings.Contains(got.Why, tt.why) || (got.Name != "full" && (got.Why == "" || got.Raise == "")) {
				t.Errorf("%+v, want %s because of %q", got, tt.want, tt.why)
			}
		})
	}
}

// Each level can be asked for, and gives no more than it says.
func TestForcedLevels(t *testing.T) {
	for _, level := range levels {
		t.Run(level, func(t *testing.T) {
			cfg := config()
			cfg.Level = level
			k := open(t, cfg)
			if got := k.Level(); levelRank(got.Name) > levelRank(level) {
				t.Skipf("this kernel gives less: %s", got.Why)
			} else if got.Name != level {
				t.Fatalf("level %+v", got)
			}
			l := newLab(t, k)
			l.play(t, "close-unread")
			if level == evidence.LevelPackets {
				if n := len(l.events()); n != 0 {
					t.Errorf("%d events", n)
				}
				return
			}
			e := l.await(t, 1, "reset sent", func(e *evidence.KernelEvent) bool { return e.Kind == evidence.ResetSent })[0]
			got := []bool{e.Reason != "", e.Owner != nil, e.Actor != nil}
			want := map[string][]bool{
				evidence.LevelFull:    {true, true, true},
				evidence.LevelReasons: {true, false, true},
				evidence.LevelTuples:  {false, false, true},
			}[level]
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("reason, owner, actor (-want +got):\n%s", diff)
			}
		})
	}
}

func TestBadConfig(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"level":  func(c *Config) { c.Level = "some" },
		"keep":   func(c *Config) { c.Keep = 0 },
		"events": func(c *Config) { c.MaxEvents = 0 },
		"owners": func(c *Config) { c.MaxOwners = 0 },
		"rate":   func(c *Config) { c.Rate = 0 },
		"burst":  func(c *Config) { c.Burst = 1e7 },
	} {
		cfg := DefaultConfig()
		change(&cfg)
		if _, err := Open(cfg); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

// CloseTwice also shows that nothing is asked of what is closed.
func TestCloseTwice(t *testing.T) {
	k := openOnly(t, DefaultConfig())
	for range 2 {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, _, ok := k.OwnerByCookie(1); ok || k.Stats().Kept != 0 {
		t.Error("something is left")
	}
	k.tick(time.Now())
}

// unprivilegedEnv makes the test binary look at the level as nobody: its value are
// the capabilities.
const unprivilegedEnv = "KERNEL_TEST_CAPS"

// unprivileged prints the level and ends the process, if it was asked for.
func unprivileged() {
	if _, ok := os.LookupEnv(unprivilegedEnv); !ok {
		return
	}
	k, err := Open(DefaultConfig())
	if err != nil {
		panic(err)
	}
	_ = json.NewEncoder(os.Stdout).Encode(k.Level())
	os.Exit(0)
}

// As an unprivileged user the programs run with two capabilities; without any they
// do not, and one line says why.
func TestUnprivileged(t *testing.T) {
	netlab.NeedRoot(t)
	for name, tt := range map[string]struct {
		caps []uintptr
		want []string
	}{
		"BPF and PERFMON": {[]uintptr{unix.CAP_BPF, unix.CAP_PERFMON}, []string{"full", "reasons"}},
		"BPF":             {[]uintptr{unix.CAP_BPF}, []string{"packets"}},
		"none":            {nil, []string{"packets"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := levelAs(t, tt.caps)
			if !strings.Contains(strings.Join(tt.want, " "), got.Name) {
				t.Errorf("level %+v, want one of %v", got, tt.want)
			}
			if got.Name == "packets" && !strings.Contains(got.Raise, "CAP_BPF") {
				t.Errorf("how to raise it is not said: %+v", got)
			}
		})
	}
}

// levelAs runs this test binary as nobody.
func levelAs(t *testing.T, caps []uintptr) (l evidence.KernelLevel) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), unprivilegedEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}, AmbientCaps: caps}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("run as nobody: %v: %s", err, &stderr)
	}
	if err := json.Unmarshal(out, &l); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return l
}

// A hook whose function is in a module waits for the module.
func TestModuleComesLater(t *testing.T) {
	cfg := config()
	cfg.BTFRoot = t.TempDir()
	k := openOnly(t, cfg)
	defer k.Close()
	if len(k.later) == 0 {
		t.Skip("this kernel has the functions already")
	}
	waiting := len(k.later)
	k.attachLater()
	if len(k.later) != waiting {
		t.Error("it was tried before the module came")
	}
	if err := os.WriteFile(filepath.Join(cfg.BTFRoot, k.later[0].module), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	hooks := len(k.Level().Hooks)
	k.attachLater()
	if len(k.later) != waiting-1 || len(k.Level().Hooks) != hooks {
		t.Errorf("%d hooks wait, want %d; %d are told of, want %d", len(k.later), waiting-1, len(k.Level().Hooks), hooks)
	}
}
