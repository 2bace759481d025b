package scenes

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"syscall"
)

// The hosts of a stage, as Truth.RSTFrom names them.
const (
	FromClient = "client"
	FromRouter = "router"
	FromServer = "server"
	FromNone   = "none"
)

// Truth is what really happened to one connection. A scene has one for each
// reset it causes, and one (RSTFrom "none") for each end without a reset.
type Truth struct {
	// Scene is the name of the scene that played.
	Scene string
	// Client and Server are the two ends as the host in RSTFrom knows them; the
	// connection was opened by Client, or pretends to be.
	Client, Server netip.AddrPort
	// RSTFrom is the host that made the segment: "client", "router", "server",
	// or "none" if there is no reset. Claimed is the source address in it: not
	// the host's own if it is forged or a firewall's.
	RSTFrom string
	Claimed netip.AddrPort
	// Reason is the name in enum sk_rst_reason without SK_RST_REASON_, as Linux
	// 6.12 and newer give it; empty if the kernel has no tcp_send_reset event.
	Reason string
	// State is the sending socket's state at that event ("closed",
	// "established", "listen", "time_wait", "fin_wait_1"); empty without socket.
	State string
	// GuiltyPID is the process whose system call or death sent the reset, 0 if
	// the kernel did it later by itself. Current tells that it was the running
	// task; it is true exactly if GuiltyPID is set.
	GuiltyPID int
	Current   bool
	// GuiltyComm and OwnerComm are the processes' names.
	GuiltyComm, OwnerComm string
	// OwnerPID is the process that owned the sending socket last (of an accepted
	// one: that accepted it; of one in the accept queue or a refused port: that
	// listens or listened). It may be dead. 0 if there never was a socket.
	OwnerPID int
	// Signal is what killed the guilty process, 0 if it lives.
	Signal syscall.Signal
	// Unread and Unacked are bytes that the sending socket had when it ended.
	Unread, Unacked int
	// Errno is the error of the socket at the reset's receiver, 0 if the reset
	// is ignored, lost, or met no socket. LocalErrno is the error of the sending
	// end, or with RSTFrom "none" of the end that gave up.
	Errno, LocalErrno syscall.Errno
	// Ignored tells that the receiver has the socket and refuses the reset.
	Ignored bool
}

// Scene is one way to make a reset.
type Scene struct {
	Name string
	// Doc is one sentence for people.
	Doc string
	// Needs are programs in PATH, or NeedsVM.
	Needs []string
	// Play acts on a stage of its own. The actors stay alive, with their sockets,
	// until the stage is closed; then dying actors may send more resets.
	// Without what it needs the error is ErrNeeds.
	Play func(context.Context, *Stage) ([]Truth, error)
}

// NeedsVM is the need of a scene that changes a setting of the whole machine.
const NeedsVM = "vm"

// ErrNeeds means that a scene cannot be played here.
var ErrNeeds = errors.New("the scene needs what is not here")

// All returns the scenes, those of sockets first.
func All() []Scene {
	var all []Scene
	for _, list := range [][]script{socketScripts, listenerScripts, timerScripts, networkScripts, proxyScripts} {
		for _, s := range list {
			all = append(all, s.scene())
		}
	}
	return all
}

// script is a scene as it is written: steps that stop at the first error.
type script struct {
	name, doc string
	needs     []string
	play      func(*play) []Truth
}

func (s script) scene() Scene {
	return Scene{s.name, s.doc, s.needs, func(ctx context.Context, st *Stage) ([]Truth, error) {
		if err := st.has(s.needs); err != nil {
			return nil, fmt.Errorf("play %s: %w", s.name, err)
		}
		p := &play{ctx: ctx, st: st}
		truths := p.run(s)
		if p.err != nil {
			return nil, fmt.Errorf("play %s: %w", s.name, p.err)
		}
		return truths, nil
	}}
}

func (st *Stage) has(needs []string) error {
	var missing []string
	for _, n := range needs {
		if n == NeedsVM {
			if !st.OwnMachine {
				missing = append(missing, "a machine of its own (Stage.OwnMachine)")
			}
		} else if _, err := exec.LookPath(n); err != nil {
			missing = append(missing, "the program "+n)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("%w: %s", ErrNeeds, strings.Join(missing, ", "))
	}
	return nil
}
