package scenes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// actorEnv holds the actor's name in the environment of an actor process.
const actorEnv = "SCENES_ACTOR"

// The pipes of an actor, behind stdin, stdout and stderr.
const (
	requestFD = 3
	replyFD   = 4
)

// actor is a process that owns sockets and does with them what it is told.
type actor struct {
	// Name is its comm, PID its process id.
	Name string
	PID  int
	cmd  *exec.Cmd
	to   *os.File
	from *os.File
	enc  *json.Encoder
	dec  *json.Decoder
	gone bool
}

// request is one thing to do; which fields count depends on Op (see deeds).
type request struct {
	Op                string
	FD, N             int
	Level, Opt, Value int
	PID               int
	Local, Peer       netip.AddrPort
	Text              string
}

// reply is what came of it. Errno is the answer of a system call that may fail
// as part of the play; Err is what must not happen.
type reply struct {
	FD, N       int
	Snd, Rcv    uint32
	Local, Peer netip.AddrPort
	Text        string
	Errno       syscall.Errno
	Err         string
}

// actor starts a process in the namespace. It ends with the stage or the context.
func (st *Stage) actor(ctx context.Context, h *Host, name string) (*actor, error) {
	a := &actor{Name: name}
	if err := a.start(ctx, h); err != nil {
		return nil, fmt.Errorf("start actor %s on %s: %w", name, h.Name, err)
	}
	st.actors = append(st.actors, a)
	var r reply
	if err := a.dec.Decode(&r); err != nil {
		return nil, fmt.Errorf("wait for actor %s (does the program call scenes.Main first?): %w", name, err)
	}
	return a, nil
}

func (a *actor) start(ctx context.Context, h *Host) error {
	requests, to, err := os.Pipe()
	if err != nil {
		return err
	}
	defer requests.Close()
	from, replies, err := os.Pipe()
	if err != nil {
		return errors.Join(err, to.Close())
	}
	defer replies.Close()
	a.cmd = exec.CommandContext(ctx, "/proc/self/exe")
	a.cmd.Env = append(os.Environ(), actorEnv+"="+a.Name)
	a.cmd.ExtraFiles = []*os.File{requests, replies}
	a.cmd.Stderr = os.Stderr
	// A process starts in the namespace of the thread that forks.
	if err := h.Do(a.cmd.Start); err != nil {
		return errors.Join(err, to.Close(), from.Close())
	}
	a.PID, a.to, a.from = a.cmd.Process.Pid, to, from
	a.enc, a.dec = json.NewEncoder(to), json.NewDecoder(from)
	return nil
}

// do has the actor do one thing and waits until it is done.
func (a *actor) do(r request) (reply, error) {
	var done reply
	if err := a.enc.Encode(r); err != nil {
		return done, fmt.Errorf("tell %s[%d] to %s: %w", a.Name, a.PID, r.Op, err)
	}
	if err := a.dec.Decode(&done); err != nil {
		return done, fmt.Errorf("hear from %s[%d] about %s: %w", a.Name, a.PID, r.Op, err)
	}
	if done.Err != "" {
		return done, fmt.Errorf("%s[%d] %s: %s", a.Name, a.PID, r.Op, done.Err)
	}
	return done, nil
}

// kill ends the process by a signal and waits until its sockets are closed:
// exit_files comes before the parent can reap (kernel/exit.c do_exit). SIGSEGV
// it has to send to itself, for Go catches what others send.
func (a *actor) kill(sig syscall.Signal) error {
	if sig == unix.SIGSEGV {
		_ = a.enc.Encode(request{Op: "crash"})
	} else if err := a.cmd.Process.Signal(sig); err != nil {
		return fmt.Errorf("send %v to %s[%d]: %w", sig, a.Name, a.PID, err)
	}
	if got := a.wait(); got.Signal() != sig {
		return fmt.Errorf("%s[%d] should have died of %v, but: %v", a.Name, a.PID, sig, got)
	}
	return nil
}

func (a *actor) wait() syscall.WaitStatus {
	_ = a.cmd.Wait() // the status tells
	a.gone = true
	_ = a.to.Close()
	_ = a.from.Close()
	status, _ := a.cmd.ProcessState.Sys().(syscall.WaitStatus)
	return status
}

// end kills the process if it is alive.
func (a *actor) end() {
	if !a.gone {
		_ = a.cmd.Process.Kill()
		a.wait()
	}
}

// Main is to be called first by every program that plays scenes (of tests: in
// TestMain). In an actor process it acts and never returns; else it returns at
// once.
func Main() {
	name := os.Getenv(actorEnv)
	if name == "" {
		return
	}
	// One thread makes all system calls: two never mix in what the kernel records.
	runtime.LockOSThread()
	if err := act(name); err != nil {
		fmt.Fprintf(os.Stderr, "actor %s: %v\n", name, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// act answers requests until the pipe is closed.
func act(name string) error {
	if err := setName(name); err != nil {
		return err
	}
	// What the actor starts or hands on must not hold its pipes open.
	unix.CloseOnExec(requestFD)
	unix.CloseOnExec(replyFD)
	dec := json.NewDecoder(os.NewFile(requestFD, "requests"))
	enc := json.NewEncoder(os.NewFile(replyFD, "replies"))
	for done := (reply{}); ; {
		if err := enc.Encode(done); err != nil {
			return fmt.Errorf("reply: %w", err)
		}
		var r request
		if err := dec.Decode(&r); err != nil {
			return nil // the play is over
		}
		done = perform(r)
	}
}

func perform(r request) reply {
	deed, ok := deeds[r.Op]
	if !ok {
		return reply{Err: "no such deed"}
	}
	done, err := deed(r)
	if errno := syscall.Errno(0); errors.As(err, &errno) {
		done.Errno = errno
	} else if err != nil {
		done.Err = err.Error()
	}
	return done
}

// setName names the process and all its threads: any of them may be the one that
// closes the sockets when the process is killed. Later threads inherit the name.
func setName(name string) error {
	threads, err := filepath.Glob("/proc/self/task/*/comm")
	if err != nil {
		return fmt.Errorf("find threads: %w", err)
	}
	for _, comm := range threads {
		err := os.WriteFile(comm, []byte(name), 0)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // the thread is gone
		}
		if err != nil {
			return fmt.Errorf("name a thread: %w", err)
		}
	}
	return nil
}
