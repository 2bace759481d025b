package kernel

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"tcpcoroner/evidence"
)

// hook is a place in the kernel and the program for it.
type hook struct {
	program, name, purpose string
	attach                 func(*ebpf.Program) (link.Link, error)
	// module is the kernel module that has the function; empty if none.
	module string
}

// The hooks. Raw tracepoints are for those whose socket may be NULL: verifiers of
// 6.2 to 6.12 take the pointer of a typed one for never NULL and drop the check.
var (
	hookSent      = hook{bpfProgSendReset, "tcp_send_reset", "resets sent", raw("tcp_send_reset"), ""}
	hookOldSent4  = hook{bpfProgOldSendReset4, "tcp_v4_send_reset", "resets sent without a connection, IPv4", tracing, ""}
	hookOldSent6  = hook{bpfProgOldSendReset6, "tcp_v6_send_reset", "resets sent without a connection, IPv6", tracing, ""}
	hookReceived  = hook{bpfProgReceiveReset, "tcp_receive_reset", "resets received", tracing, ""}
	hookError     = hook{bpfProgErrorReport, "inet_sk_error_report", "errors that applications see", tracing, ""}
	hookDrop      = hook{bpfProgDrop, "kfree_skb", "dropped segments", raw("kfree_skb"), ""}
	hookReject4   = hook{bpfProgReject4, "nf_send_reset", "firewall rejects, IPv4", tracing, "nf_reject_ipv4"}
	hookReject6   = hook{bpfProgReject6, "nf_send_reset6", "firewall rejects, IPv6", tracing, "nf_reject_ipv6"}
	hookState     = hook{bpfProgSetState, "inet_sock_set_state", "owners of connections and listeners", tracing, ""}
	hookDestroy   = hook{bpfProgDestroySock, "tcp_destroy_sock", "end of sockets", tracing, ""}
	hookAccept    = hook{bpfProgAcceptExit, "inet_csk_accept", "owners of accepted connections", tracing, ""}
	hookAcceptSys = hook{bpfProgAcceptSyscall, "sys_exit_accept", "owners of accepted connections", systemCall("sys_exit_accept"), ""}
	hookAccept4   = hook{bpfProgAccept4Syscall, "sys_exit_accept4", "owners of accepted connections", systemCall("sys_exit_accept4"), ""}
	hookSend      = hook{bpfProgSendLength, "sock_send_length", "owners of accepted connections, at first use", tracing, ""}
	hookRecv      = hook{bpfProgRecvLength, "sock_recv_length", "owners of accepted connections, at first use", tracing, ""}
)

// hookSeed is run at the start and for namespaces that are watched later.
var hookSeed = hook{bpfProgSeed, "iter/task_file", "owners of sockets that were there before", nil, ""}

func raw(name string) func(*ebpf.Program) (link.Link, error) {
	return func(p *ebpf.Program) (link.Link, error) {
		return link.AttachRawTracepoint(link.RawTracepointOptions{Name: name, Program: p})
	}
}

func systemCall(name string) func(*ebpf.Program) (link.Link, error) {
	return func(p *ebpf.Program) (link.Link, error) {
		return link.Tracepoint("syscalls", name, p, nil)
	}
}

func tracing(p *ebpf.Program) (link.Link, error) {
	return link.AttachTracing(link.TracingOptions{Program: p})
}

// load reads the kernel's types and makes the maps.
func (k *Kernel) load() error {
	k.types = btf.NewCache()
	types, err := k.types.Kernel()
	if err != nil {
		return fmt.Errorf("read type information of the kernel: %w: needs CONFIG_DEBUG_INFO_BTF", err)
	}
	if k.spec, err = loadBpf(); err != nil {
		return fmt.Errorf("read programs: %w", err)
	}
	k.readTypes(types)
	if err := k.configure(); err != nil {
		return fmt.Errorf("configure programs: %w", err)
	}
	if err := k.makeMaps(); err != nil {
		return fmt.Errorf("make maps: %w", explain(err))
	}
	if k.cfg.ProgramStats {
		if c, err := ebpf.EnableStats(bpfStatsRunTime); err == nil {
			k.closers = append(k.closers, c)
		}
	}
	return nil
}

// readTypes learns what the running kernel calls the reasons and how many
// arguments its tracepoints have.
func (k *Kernel) readTypes(types *btf.Spec) {
	k.dec.resets = enumNames(types, "sk_rst_reason", "SK_RST_REASON_")
	k.dec.drops = enumNames(types, "skb_drop_reason", "SKB_DROP_REASON_")
	k.state.sentArgs = tracepointArgs(types, "tcp_send_reset")
	k.state.dropArgs = tracepointArgs(types, "kfree_skb")
	if k.cfg.Level == evidence.LevelTuples {
		k.state.sentArgs = min(k.state.sentArgs, 2)
	}
	for _, name := range k.dec.resets {
		if name == "TCP_ABORT_ON_CLOSE" { // 8407994f0c35, Linux 6.12
			k.state.activeReasons = true
		}
	}
}

// configure sets the programs' constants.
func (k *Kernel) configure() error {
	token := uint64(1e9) / uint64(k.cfg.Rate)
	for name, value := range map[string]any{
		bpfVarSendResetArgs: uint8(k.state.sentArgs),
		bpfVarKfreeSkbArgs:  uint8(k.state.dropArgs),
		bpfVarDropWant:      dropsWanted(k.dec.drops, false),
		bpfVarPlotSeed:      rand.Uint64(),
		bpfVarPidNamespace:  pidNamespace(k.cfg.ProcRoot),
		bpfVarTokenNs:       token,
		bpfVarBucketNs:      token * uint64(k.cfg.Burst),
	} {
		if err := k.spec.Variables[name].Set(value); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	return nil
}

// makeMaps makes the maps that the programs share. Those of the compiler, whose
// names begin with a dot, are each program's own.
func (k *Kernel) makeMaps() error {
	k.spec.Maps[bpfMapOwners].MaxEntries = k.cfg.MaxOwners
	k.maps = map[string]*ebpf.Map{}
	for name, spec := range k.spec.Maps {
		if strings.HasPrefix(name, ".") {
			continue
		}
		m, err := ebpf.NewMap(spec)
		if err != nil {
			k.closeAll()
			return fmt.Errorf("%s with %d entries: %w", name, spec.MaxEntries, err)
		}
		k.maps[name] = m
		k.closers = append(k.closers, m)
	}
	if err := k.setWatched(everywhere()); err != nil {
		k.closeAll()
		return err
	}
	ring, err := ringbuf.NewReader(k.maps[bpfMapEvents])
	if err != nil {
		k.closeAll()
		return fmt.Errorf("map the ring of events: %w", err)
	}
	k.ring = ring
	k.closers = append(k.closers, ring)
	return nil
}

func (k *Kernel) closeAll() {
	for _, c := range k.closers {
		_ = c.Close()
	}
	k.closers, k.maps = nil, nil
}

// attachAll tries the hooks, the best first.
func (k *Kernel) attachAll() {
	if k.cfg.Level == evidence.LevelFull {
		k.attachOwners()
	}
	k.attachSent()
	k.attach(hookReceived)
	k.attach(hookError)
	k.attach(hookDrop)
	for _, h := range []hook{hookReject4, hookReject6} {
		if !k.attach(h) && !k.moduleLoaded(h.module) {
			k.later = append(k.later, h)
		}
	}
}

// attachOwners begins with accept: the other programs depend on what became of it.
// Each way costs more than the one before it. A tracepoint of system calls is the
// last: while it is on, each system call of each process takes the slow path
// (SYSCALL_WORK_SYSCALL_TRACEPOINT, kernel/entry).
func (k *Kernel) attachOwners() {
	exact := k.attach(hookAccept)
	used := !exact && k.attach(hookRecv) && k.attach(hookSend)
	exact = exact || !used && k.attach(hookAccept4) && k.attach(hookAcceptSys)
	k.state.accept = exact || used
	// It cannot fail: the variable is in the object.
	_ = k.spec.Variables[bpfVarInheritAccepted].Set(!exact)
	k.state.owners = k.attach(hookState) && k.attach(hookDestroy)
}

func (k *Kernel) attachSent() {
	k.state.sent = k.state.sentArgs > 0 && k.attach(hookSent)
	if k.state.sentArgs >= 3 || k.cfg.Level == evidence.LevelTuples {
		return
	}
	if k.attach(hookOldSent4) && k.attach(hookOldSent6) {
		return
	}
	// It cannot fail: configure has set the same variable.
	_ = k.spec.Variables[bpfVarDropWant].Set(dropsWanted(k.dec.drops, true))
}

// attach loads a program and puts it on its hook.
func (k *Kernel) attach(h hook) bool {
	p, err := k.loadProgram(h.program)
	var l link.Link
	if err == nil {
		k.closers = append(k.closers, p)
		if l, err = h.attach(p); err == nil {
			k.closers = append(k.closers, l)
			k.progs = append(k.progs, program{h.name, p})
		}
	}
	k.report(h, err)
	return err == nil
}

// report replaces what was known of the hook.
func (k *Kernel) report(h hook, err error) {
	r := evidence.KernelHook{Name: h.name, Purpose: h.purpose, Attached: err == nil}
	if err != nil {
		r.Why = explain(err).Error()
	}
	for i := range k.hooks {
		if k.hooks[i].Name == h.name {
			k.hooks[i] = r
			return
		}
	}
	k.hooks = append(k.hooks, r)
}

// loadProgram loads one program alone: what the kernel says of it is no matter of
// the others.
func (k *Kernel) loadProgram(name string) (*ebpf.Program, error) {
	spec := k.spec.Copy()
	spec.Programs = map[string]*ebpf.ProgramSpec{name: spec.Programs[name]}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: maps.Clone(k.maps), Cache: k.types})
	if err != nil {
		return nil, err
	}
	defer coll.Close()
	return coll.DetachProgram(name), nil
}

// attachLater tries the hooks whose module was loaded since.
func (k *Kernel) attachLater() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for i, h := range k.later {
		if !k.closed && k.moduleLoaded(h.module) {
			k.later = append(k.later[:i:i], k.later[i+1:]...)
			k.attach(h)
			return // the next one in a second
		}
	}
}

func (k *Kernel) moduleLoaded(name string) bool {
	_, err := os.Stat(filepath.Join(k.cfg.BTFRoot, name))
	return err == nil
}

// seed lets the kernel walk over all files of all processes, once. Cookies are
// given to sockets that have none. The program is kept for the next time.
func (k *Kernel) seed() {
	if !k.state.owners {
		return
	}
	k.report(hookSeed, k.runSeed())
}

func (k *Kernel) runSeed() (err error) {
	if k.seeder == nil {
		if k.seeder, err = k.loadProgram(hookSeed.program); err != nil {
			return err
		}
		k.closers = append(k.closers, k.seeder)
	}
	it, err := link.AttachIter(link.IterOptions{Program: k.seeder})
	if err != nil {
		return err
	}
	defer it.Close()
	r, err := it.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.Copy(io.Discard, r)
	return err
}

// errRefused replaces the library's advice about RLIMIT_MEMLOCK, which is no
// matter since Linux 5.11.
var errRefused = errors.New("this kernel refuses it: operation not permitted")

// explain shortens an error of the library to what the operator can act on.
func explain(err error) error {
	var v *ebpf.VerifierError
	switch {
	case errors.As(err, &v) && len(v.Log) > 0:
		// The last line of a complete log is its statistics.
		return fmt.Errorf("the verifier refuses it: %s", v.Log[max(0, len(v.Log)-2)])
	case errors.Is(err, unix.EPERM):
		return errRefused
	}
	return err
}
