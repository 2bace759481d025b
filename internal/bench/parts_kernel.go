package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"tcpcoroner/internal/bench/gen"
)

// The promises about the programs in the kernel.
const (
	mostChurn = 1.03
	scanRate  = 100_000
	// scanEvents is what the buckets of resets sent let through: those of
	// connections and of strays, for each processor, a second; and once more at the
	// start, when they are full.
	scanEvents = 200
	// scanShare is recorder.cpu's default.
	scanShare = 0.02
)

// kernelPrograms measures what the programs cost connections that come and go, and
// what a scan of closed ports costs. The daemon records another namespace than
// that of the traffic: only its programs, which are for the whole machine, see it.
func kernelPrograms(ctx context.Context, b *bench) error {
	quiet, err := b.namespace()
	if err != nil {
		return err
	}
	busy, err := b.namespace()
	if err != nil {
		return err
	}
	if err := busy.churnable(); err != nil {
		return err
	}
	if err := b.churned(ctx, quiet, busy); err != nil {
		return err
	}
	if err := b.runs(ctx, quiet, busy); err != nil {
		return err
	}
	return b.scanned(ctx, quiet, busy)
}

// churnable keeps TIME_WAIT from using up the ports.
func (n *namespace) churnable() error {
	return n.on(anyCPU, func() error {
		if err := set("/proc/sys/net/ipv4/tcp_max_tw_buckets", "64"); err != nil {
			return err
		}
		return set("/proc/sys/net/ipv4/ip_local_port_range", "1024 65000")
	})
}

// spent is what some connections cost, in nanoseconds a connection.
type spent struct{ sender, daemon, wall float64 }

func (s spent) whole() float64 { return s.sender + s.daemon }

// churned compares connections with and without the programs, in changing order.
func (b *bench) churned(ctx context.Context, quiet, busy *namespace) error {
	var without, with []spent
	var ratios, walls []float64
	n := pick(b, 40_000, 4_000)
	for round := range pick(b, 15, 3) {
		var pair [2]spent
		for i := range 2 {
			which := (i + round) % 2
			one, err := b.churnOnce(ctx, quiet, busy, n, which == 1)
			if err != nil {
				return err
			}
			pair[which] = one
		}
		without, with = append(without, pair[0]), append(with, pair[1])
		ratios = append(ratios, pair[1].whole()/pair[0].whole())
		walls = append(walls, pair[1].wall/pair[0].wall)
	}
	t := table{Title: fmt.Sprintf("connect, 1 byte each way, close: %d connections in one thread, %d runs in turn, ns a connection, median and (least)", n, len(with)),
		Columns: []string{"", "sender", "daemon", "sum", "wall clock"}}
	for _, row := range []struct {
		name string
		list []spent
	}{{"without", without}, {"with the programs", with}} {
		cells := []string{row.name}
		for _, f := range []func(spent) float64{
			func(s spent) float64 { return s.sender }, func(s spent) float64 { return s.daemon }, spent.whole, func(s spent) float64 { return s.wall },
		} {
			var list []float64
			for _, s := range row.list {
				list = append(list, f(s))
			}
			cells = append(cells, fmt.Sprintf("%.0f (%.0f)", median(list), least(list)))
		}
		t.Rows = append(t.Rows, cells)
	}
	b.table(t)
	r := median(ratios)
	b.goal(r <= mostChurn, "connections cost <= 3 % more with the programs, median of the pairs", "%.3f, by the wall clock %.3f", r, median(walls))
	return nil
}

func (b *bench) churnOnce(ctx context.Context, quiet, busy *namespace, n int, programs bool) (one spent, err error) {
	keep := b.mark()
	defer func() { err = errors.Join(err, b.unwind(keep)) }()
	var s *session
	var before time.Duration
	if programs {
		if s, err = product.start(ctx, b, quiet); err != nil {
			return one, err
		}
		if before, err = processorTime(proc, s.pid()); err != nil {
			return one, err
		}
	}
	if err = busy.on(sendCPU, func() error { one, err = churn(n); return err }); err != nil || s == nil {
		return one, err
	}
	after, err := processorTime(proc, s.pid())
	one.daemon = perPacket(after-before, float64(n))
	return one, errors.Join(err, s.stop())
}

// churn makes connections on loopback, both ends of them in this thread: all that
// the kernel does for them is in its time.
func churn(n int) (one spent, err error) {
	l, to, err := churnListener()
	if err != nil {
		return one, err
	}
	defer unix.Close(l)
	for range n / 10 { // the first ones pay for caches
		if err := connection(l, to); err != nil {
			return one, err
		}
	}
	start := time.Now()
	before, err := gen.CPU()
	if err != nil {
		return one, err
	}
	for range n {
		if err := connection(l, to); err != nil {
			return one, err
		}
	}
	after, err := gen.CPU()
	return spent{sender: perPacket(after-before, float64(n)), wall: perPacket(time.Since(start), float64(n))}, err
}

func churnListener() (fd int, at unix.Sockaddr, err error) {
	if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return 0, nil, fmt.Errorf("open a listener: %w", err)
	}
	err = errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 16))
	if err == nil {
		at, err = unix.Getsockname(fd)
	}
	if err != nil {
		_ = unix.Close(fd)
		return 0, nil, fmt.Errorf("open a listener: %w", err)
	}
	return fd, at, nil
}

// connection opens one, sends a byte each way and closes it.
func connection(l int, to unix.Sockaddr) error {
	c, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a socket: %w", err)
	}
	defer unix.Close(c)
	if err := unix.Connect(c, to); err != nil {
		return fmt.Errorf("connect on loopback: %w", err)
	}
	s, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
	if err != nil {
		return fmt.Errorf("accept on loopback: %w", err)
	}
	defer unix.Close(s)
	var one [1]byte
	for _, ends := range [][2]int{{c, s}, {s, c}} {
		if _, err := unix.Write(ends[0], one[:]); err != nil {
			return fmt.Errorf("write a byte: %w", err)
		}
		if _, err := unix.Read(ends[1], one[:]); err != nil {
			return fmt.Errorf("read a byte: %w", err)
		}
	}
	return nil
}

// statsSwitch makes the kernel measure each run of a program, for some 20 ns.
const statsSwitch = "/proc/sys/kernel/bpf_stats_enabled"

// runs tells how often each program runs for a connection, and how long.
func (b *bench) runs(ctx context.Context, quiet, busy *namespace) (err error) {
	s, err := product.start(ctx, b, quiet)
	if err != nil {
		return err
	}
	if err := set(statsSwitch, "1"); err != nil {
		return err
	}
	b.defers(func() error { return set(statsSwitch, "0") })
	n := pick(b, 40_000, 4_000)
	before, err := programs(s.pid())
	if err != nil {
		return err
	}
	if err := busy.on(sendCPU, func() error { _, err := churn(n); return err }); err != nil {
		return err
	}
	after, err := programs(s.pid())
	if err != nil {
		return err
	}
	made := float64(n + n/10)
	t := table{Title: fmt.Sprintf("the programs that run for a connection, of %d", n), Columns: []string{"program", "runs a connection", "ns a run", "ns a connection"}}
	sum := 0.0
	for _, name := range slices.Sorted(maps.Keys(after)) {
		count := float64(after[name].count - before[name].count)
		took := float64((after[name].time - before[name].time).Nanoseconds())
		if count < made/100 {
			continue
		}
		t.Rows = append(t.Rows, []string{name, fmt.Sprintf("%.1f", count/made), fmt.Sprintf("%.0f", took/count), fmt.Sprintf("%.0f", took/made)})
		sum += took / made
	}
	t.Rows = append(t.Rows, []string{"all", "", "", fmt.Sprintf("%.0f", sum)})
	b.table(t)
	return s.stop()
}

// ran is the work of a program.
type ran struct {
	count uint64
	time  time.Duration
}

// programs are those that a process holds, by name (proc(5), fdinfo).
func programs(pid int) (map[string]ran, error) {
	files, _ := filepath.Glob(filepath.Join(proc, strconv.Itoa(pid), "fdinfo/*"))
	all := map[string]ran{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // closed meanwhile
		}
		id, ok := programID(string(text))
		if !ok {
			continue
		}
		p, err := ebpf.NewProgramFromID(id)
		if err != nil {
			return nil, fmt.Errorf("open program %d of process %d: %w", id, pid, err)
		}
		info, err := p.Info()
		stats, serr := p.Stats()
		if err := errors.Join(err, serr, p.Close()); err != nil {
			return nil, fmt.Errorf("read program %d of process %d: %w", id, pid, err)
		}
		all[info.Name] = ran{stats.RunCount, stats.Runtime}
	}
	return all, nil
}

// programID is the program that a descriptor is of. Links tell theirs too.
func programID(fdinfo string) (ebpf.ProgramID, bool) {
	for line := range strings.Lines(fdinfo) {
		if text, ok := strings.CutPrefix(line, "prog_id:"); ok {
			id, err := strconv.ParseUint(strings.TrimSpace(text), 10, 32)
			return ebpf.ProgramID(id), err == nil
		}
	}
	return 0, false
}

// scanned measures a scan of closed ports.
func (b *bench) scanned(ctx context.Context, quiet, busy *namespace) error {
	s, err := product.start(ctx, b, quiet)
	if err != nil {
		return err
	}
	span := pick(b, 10*time.Second, 2*time.Second)
	before, err := s.status(ctx)
	if err != nil {
		return err
	}
	cpu, err := processorTime(proc, s.pid())
	if err != nil {
		return err
	}
	sent, sender := 0, time.Duration(0)
	start := time.Now()
	if err := busy.on(sendCPU, func() error { sent, sender, err = scan(ctx, span); return err }); err != nil {
		return err
	}
	took := time.Since(start)
	sleep(ctx, 2*settle) // what is in the ring
	end, err := processorTime(proc, s.pid())
	if err != nil {
		return err
	}
	after, err := s.status(ctx)
	if err != nil {
		return err
	}
	events := after.Kernel.Events - before.Kernel.Events
	counted := after.Kernel.Suppressed - before.Kernel.Suppressed
	share := float64(end-cpu) / float64(took)
	b.table(table{Title: fmt.Sprintf("SYN to closed ports for %v", span),
		Columns: []string{"SYN/s", "resets described", "only counted", "lost", "ns a SYN of the sender", "share of a processor of the daemon"},
		Rows: [][]string{{fmt.Sprintf("%.0f", float64(sent)/took.Seconds()), fmt.Sprint(events), fmt.Sprint(counted), fmt.Sprint(after.Kernel.Lost - before.Kernel.Lost),
			fmt.Sprintf("%.0f", perPacket(sender, float64(sent))), fmt.Sprintf("%.2f %%", 100*share)}}})
	most := int64(scanEvents * 2 * float64(b.report.CPUs) * (took.Seconds() + 2))
	b.goal(events <= most && after.Kernel.Lost == before.Kernel.Lost, fmt.Sprintf("at most %d events of %d resets, none lost", most, sent), "%d", events)
	b.goal(share <= scanShare, fmt.Sprintf("the daemon stays below %.0f %% of a processor", 100*scanShare), "%.2f %%", 100*share)
	return s.stop()
}

// scan sends SYN to ports of loopback where nobody listens (raw(7)).
func scan(ctx context.Context, span time.Duration) (sent int, cpu time.Duration, err error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return 0, 0, fmt.Errorf("open a raw socket: %w", err)
	}
	defer unix.Close(fd)
	before, err := gen.CPU()
	if err != nil {
		return 0, 0, err
	}
	var syn [20]byte
	to := &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}
	start := time.Now()
	for elapsed := time.Duration(0); elapsed < span && ctx.Err() == nil; elapsed = time.Since(start) {
		for due := int(scanRate * elapsed.Seconds()); sent < due; sent++ {
			fillSYN(&syn, sent)
			if err := unix.Sendto(fd, syn[:], 0, to); err != nil {
				return sent, 0, fmt.Errorf("send a SYN: %w", err)
			}
		}
		sleep(ctx, time.Millisecond)
	}
	after, err := gen.CPU()
	return sent, after - before, err
}

// fillSYN writes the nth SYN of a scan, from 127.0.0.1 to itself.
func fillSYN(b *[20]byte, n int) {
	*b = [20]byte{}
	put := func(at int, v uint16) { b[at], b[at+1] = byte(v>>8), byte(v) }
	put(0, 40000)
	put(2, uint16(1+n%1000)) // ports below 1024 have no listener here
	put(4, uint16(n>>16))
	put(6, uint16(n))
	b[12], b[13] = 5<<4, 2
	put(14, 64240)
	sum := uint32(0x7f00+0x0001)*2 + unix.IPPROTO_TCP + 20 // the pseudo header (RFC 9293 section 3.1)
	for i := 0; i < 20; i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	put(16, ^uint16(sum))
}
