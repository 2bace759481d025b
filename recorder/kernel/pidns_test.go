package kernel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"tcpcoroner/evidence"
	"tcpcoroner/internal/netlab"
)

// pidsEnv makes the test binary watch resets from a PID namespace of its own: its
// value is the address of a listener outside that resets. resetEnv makes it reset
// connections to itself, in a namespace below.
const (
	pidsEnv  = "KERNEL_TEST_PIDS"
	resetEnv = "KERNEL_TEST_RESET"
)

// pidReport is what the recorder in its namespace told: its own number, that of the
// process below, and who made the resets.
type pidReport struct {
	Self, Below int
	// By address of the end that reset: owner and actor, 0 if there is none.
	Own, Outside, Inside [2]int
}

// The recorder tells processes by the numbers that they have in its PID namespace,
// and names none that has no number there.
func TestPIDNamespace(t *testing.T) {
	netlab.NeedRoot(t)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		if c, err := l.Accept(); err == nil {
			_, _ = c.Read(make([]byte, 1)) // then the other end is connected
			_ = netlab.Reset(c)
		}
	}()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env, cmd.Stderr = append(os.Environ(), pidsEnv+"="+l.Addr().String()), os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var got pidReport
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	want := pidReport{Self: 1, Below: got.Below, Own: [2]int{1, 1}, Inside: [2]int{got.Below, got.Below}}
	if diff := cmp.Diff(want, got); diff != "" || got.Below <= 1 {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// numbering is TestPIDNamespace's recorder and its process below.
func numbering() {
	outside, watch := os.LookupEnv(pidsEnv)
	_, below := os.LookupEnv(resetEnv)
	var err error
	switch {
	case below:
		var at net.Addr
		if at, err = resetMyself(); err == nil {
			fmt.Println(at)
		}
	case watch:
		err = watchNumbers(outside)
	default:
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "watch resets:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func watchNumbers(outside string) error {
	runtime.LockOSThread() // tracefs is mounted for this thread
	if err := mountTracefs(); err != nil {
		return err
	}
	k, err := Open(config())
	if err != nil {
		return err
	}
	defer k.Close()
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	go func() { _ = k.Run(ctx) }()
	r := pidReport{Self: os.Getpid()}
	own, err := resetMyself()
	if err != nil {
		return err
	}
	if err := errors.Join(wasReset(outside), k.told(own.String(), &r.Own), k.told(outside, &r.Outside)); err != nil {
		return err
	}
	exe := exec.Command("/proc/self/exe")
	exe.Env, exe.Stderr = append(os.Environ(), resetEnv+"=1"), os.Stderr
	exe.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
	at, err := exe.Output()
	if err != nil {
		return err
	}
	r.Below = exe.Process.Pid
	if err := k.told(string(at[:len(at)-1]), &r.Inside); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

// told waits until the kernel tells of the reset that the end at local sent.
func (k *Kernel) told(local string, who *[2]int) error {
	for end := time.Now().Add(patience); time.Now().Before(end); <-time.After(5 * time.Millisecond) {
		for _, e := range k.Events(time.Time{}, time.Now().Add(time.Minute)) {
			if e.Kind == evidence.ResetSent && e.Local.String() == local {
				*who = [2]int{pidOf(e.Owner), pidOf(e.Actor)}
				return nil
			}
		}
	}
	return fmt.Errorf("%s sent no reset that the kernel tells of", local)
}

// resetMyself accepts a connection from itself and resets it: at is its end.
func resetMyself() (at net.Addr, err error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer l.Close()
	c, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	s, err := l.Accept()
	if err != nil {
		return nil, err
	}
	return l.Addr(), netlab.Reset(s)
}

// wasReset connects and waits for the reset.
func wasReset(addr string) error {
	c, err := net.Dial("tcp4", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Write([]byte("x")); err != nil {
		return err
	}
	if _, err := io.ReadAll(c); !errors.Is(err, unix.ECONNRESET) {
		return fmt.Errorf("the connection to %s ended with %v, not with a reset", addr, err)
	}
	return nil
}
