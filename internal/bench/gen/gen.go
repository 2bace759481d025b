// Package gen makes TCP traffic of which every packet is counted: its one job
// is to put frames into the receive path of a network device, faster than a
// recorder can take them, and to know exactly how many they were. It is for
// the benchmark and must not be imported by anything that ships.
//
// The frames are made by an eBPF program that BPF_PROG_TEST_RUN runs in live
// frame mode (Documentation/bpf/bpf_prog_run.rst): what it passes takes the way
// of a received frame through every tap, up to the IP layer, which drops it
// because its destination MAC address is foreign.
package gen

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Frame sizes in bytes: Ethernet, IPv4 and TCP with a time stamp option, and
// what a data segment carries.
const (
	HeaderBytes  = 66
	PayloadBytes = 64
	FrameBytes   = HeaderBytes + PayloadBytes
)

// ResetEvery is the number of packets of which one is a RST.
const ResetEvery = 512

// MaxFlows bounds Config.Flows.
const MaxFlows = 4096

// batch is how many frames the kernel makes before it hands them on; 64 is
// what a network card's driver hands on at most (NAPI_POLL_WEIGHT).
const batch = 64

// pause is the least time between two bursts of a paced run. The kernel needs
// some 30 ms to set a burst up.
const pause = 40 * time.Millisecond

// Config is what to send.
type Config struct {
	// Interface is the ifindex of a veth, in the namespace of the calling thread.
	Interface int
	// Flows is the number of connections, a power of two up to MaxFlows. Both
	// directions of each send PayloadBytes in turn; sequence numbers, IP ids and
	// time stamps advance as those of a real one.
	Flows int
	// Flood sends SYN without payload from 2^24 addresses instead.
	Flood bool
	// Scan is a flood of 1024 ports, ScanPort and up. To be answered it needs a
	// device with ScanMAC, the address ScanAddress, and a route back to 10.0.0.0/8.
	Scan bool
}

// Where a scan goes to.
const (
	ScanMAC     = "02:00:00:00:fe:01"
	ScanAddress = "10.2.0.1"
	ScanPort    = serverPort
)

// Count is what was sent.
type Count struct {
	Packets, Resets uint64
}

// Generator sends packets. It belongs to the thread that opened it: lock the
// goroutine to its thread and enter the namespace before.
type Generator struct {
	ifindex uint32
	frame   []byte
	state   *ebpf.Map
	flows   *ebpf.Map
	program *ebpf.Program
	pass    *ebpf.Program
	xdp     link.Link
	sent    Count
}

// Open loads the program. A veth has a receive queue that live frames can
// enter only while an XDP program is attached, so one that passes all is.
func Open(c Config) (*Generator, error) {
	if c.Flows <= 0 || c.Flows > MaxFlows || c.Flows&(c.Flows-1) != 0 {
		return nil, fmt.Errorf("%d flows: give a power of two up to %d", c.Flows, MaxFlows)
	}
	g := &Generator{ifindex: uint32(c.Interface), frame: template(c.Flood || c.Scan)}
	if err := errors.Join(g.load(c), g.attach()); err != nil {
		return nil, errors.Join(fmt.Errorf("open traffic generator: %w", err), g.Close())
	}
	return g, nil
}

func (g *Generator) load(c Config) (err error) {
	if g.state, err = array("bench_state", stateBytes); err != nil {
		return err
	}
	if g.flows, err = array("bench_flows", MaxFlows*8); err != nil {
		return err
	}
	instructions := flowProgram(g.state.FD(), g.flows.FD(), c.Flows)
	if c.Flood || c.Scan {
		instructions = floodProgram(g.state.FD(), c.Scan)
	}
	g.program, err = ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "bench_gen", Type: ebpf.XDP, License: "GPL", Instructions: instructions,
	})
	if err != nil {
		return fmt.Errorf("load program: %w", err)
	}
	return nil
}

// array makes a map of one value, which programs reach by its address.
func array(name string, bytes uint32) (*ebpf.Map, error) {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: name, Type: ebpf.Array, KeySize: 4, ValueSize: bytes, MaxEntries: 1})
	if err != nil {
		return nil, fmt.Errorf("make map %s: %w", name, err)
	}
	return m, nil
}

func (g *Generator) attach() (err error) {
	if g.program == nil {
		return nil
	}
	g.pass, err = ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "bench_pass", Type: ebpf.XDP, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, xdpPass), asm.Return()},
	})
	if err != nil {
		return fmt.Errorf("load program: %w", err)
	}
	g.xdp, err = link.AttachXDP(link.XDPOptions{Program: g.pass, Interface: int(g.ifindex), Flags: link.XDPDriverMode})
	if err != nil {
		return fmt.Errorf("attach XDP to interface %d (is it a veth of this namespace?): %w", g.ifindex, err)
	}
	return nil
}

// Close takes the program off the device.
func (g *Generator) Close() error {
	var errs []error
	if g.xdp != nil {
		errs = append(errs, g.xdp.Close())
	}
	for _, p := range []*ebpf.Program{g.program, g.pass} {
		errs = append(errs, p.Close()) // of nil too
	}
	for _, m := range []*ebpf.Map{g.state, g.flows} {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}

// Sent is what was sent since Open.
func (g *Generator) Sent() Count { return g.sent }

// Burst sends exactly n packets, as fast as it can.
func (g *Generator) Burst(n int) error {
	limit := g.sent.Packets + uint64(n)
	if err := g.allow(limit); err != nil {
		return err
	}
	// Who is interrupted by a signal starts anew, but the program counts, and
	// drops what goes beyond the limit.
	for g.sent.Packets < limit {
		if err := g.run(uint32(limit - g.sent.Packets)); err != nil {
			return err
		}
		if err := g.read(); err != nil {
			return err
		}
	}
	return nil
}

func (g *Generator) run(repeat uint32) error {
	_, err := g.program.Run(&ebpf.RunOptions{
		Data: g.frame, Repeat: repeat, Flags: unix.BPF_F_TEST_XDP_LIVE_FRAMES, BatchSize: batch,
		Context: &xdpMD{DataEnd: uint32(len(g.frame)), Ingress: g.ifindex},
	})
	if err != nil {
		return fmt.Errorf("send %d live frames (kernel 5.18 or later can): %w", repeat, err)
	}
	return nil
}

// xdpMD is struct xdp_md (linux/bpf.h).
type xdpMD struct {
	Data, DataEnd, DataMeta, Ingress, Queue, Egress uint32
}

func (g *Generator) allow(limit uint64) error {
	value := make([]byte, stateBytes)
	binary.NativeEndian.PutUint64(value[offSent:], g.sent.Packets)
	binary.NativeEndian.PutUint64(value[offLimit:], limit)
	binary.NativeEndian.PutUint64(value[offResets:], g.sent.Resets)
	if err := g.state.Put(uint32(0), value); err != nil {
		return fmt.Errorf("set limit of traffic generator: %w", err)
	}
	return nil
}

func (g *Generator) read() error {
	value := make([]byte, stateBytes)
	if err := g.state.Lookup(uint32(0), value); err != nil {
		return fmt.Errorf("read counters of traffic generator: %w", err)
	}
	g.sent.Packets = binary.NativeEndian.Uint64(value[offSent:])
	g.sent.Resets = binary.NativeEndian.Uint64(value[offResets:])
	return nil
}

// Pace sends packets at a rate per second, in bursts, until it has sent total
// or the context ends, which is no error. A rate of 0 is as fast as it goes.
func (g *Generator) Pace(ctx context.Context, rate float64, total int) error {
	first, start := g.sent.Packets, time.Now()
	for ctx.Err() == nil {
		done := int(g.sent.Packets - first)
		if done >= total {
			return nil
		}
		n := due(rate, time.Since(start), done, total)
		if n > 0 {
			if err := g.Burst(n); err != nil {
				return err
			}
		}
		if rate > 0 {
			wait(ctx, pause)
		}
	}
	return nil
}

// most bounds a burst, so that the end of a context is seen.
const most = 500_000

// due is how many packets a paced run has to send now.
func due(rate float64, elapsed time.Duration, done, total int) int {
	n := total - done
	if rate > 0 {
		n = min(n, int(rate*elapsed.Seconds())-done)
	}
	return min(n, most)
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// CPU is the processor time that the calling thread has used, which is that of
// all packets it sent: taps and IP layer run in it.
func CPU() (time.Duration, error) {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &u); err != nil {
		return 0, fmt.Errorf("read processor time of this thread: %w", err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), nil
}

// Pin binds the calling thread to one processor.
func Pin(cpu int) error {
	var set unix.CPUSet
	set.Set(cpu)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return fmt.Errorf("bind thread to processor %d of %d: %w", cpu, runtime.NumCPU(), err)
	}
	return nil
}
