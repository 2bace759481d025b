package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"tcpcoroner/internal/bench/gen"
	"tcpcoroner/recorder/kernel"
)

// The promises about the programs in the kernel.
const (
	mostChurn = 1.03
	leastScan = 100_000
	// scanEvents is what the buckets of resets sent let through: those of
	// connections and of strays, for each processor, a second; and once more at the
	// start, when they are full.
	scanEvents = 200
	// scanShare is recorder.cpu's default, and scanReserve the time's worth of it that
	// may be saved up and spent at once.
	scanShare   = 0.02
	scanReserve = 30 * time.Second
)

// kernelPrograms measures what the programs cost connections that come and go, and
// what a scan of closed ports costs.
func kernelPrograms(ctx context.Context, b *bench) error {
	n, err := b.namespace()
	if err != nil {
		return err
	}
	others, err := strangers()
	if err := errors.Join(err, n.churnable(), b.hooks()); err != nil {
		return err
	}
	if err := b.churned(ctx, n, others); err != nil {
		return err
	}
	if err := b.runs(n); err != nil {
		return err
	}
	return b.scanned(ctx)
}

// hooks tells where the programs sit: what they cost depends on it.
func (b *bench) hooks() error {
	k, err := programsFor(elsewhere, false)
	if err != nil {
		return err
	}
	t := table{Title: "hooks", Columns: []string{"hook", "purpose", ""}}
	for _, h := range k.Level().Hooks {
		t.Rows = append(t.Rows, []string{h.Name, h.Purpose, cmp.Or(h.Why, "attached")})
	}
	b.table(t)
	return k.Close()
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
type spent struct{ thread, wall float64 }

// watching is whose connections the programs are told to watch.
type watching int

// The ways to watch: without programs, with those of a daemon that records another
// namespace, and with those of one that records this one. Packets are not recorded.
const (
	notAtAll watching = iota
	elsewhere
	here
	ways
)

func (w watching) String() string {
	return [ways]string{"without programs", "in a namespace that nobody records", "in a recorded namespace"}[w]
}

// programsFor loads and attaches the programs; nil for notAtAll.
func programsFor(w watching, stats bool) (*kernel.Kernel, error) {
	if w == notAtAll {
		return nil, nil
	}
	c := kernel.DefaultConfig()
	c.ProgramStats = stats
	k, err := kernel.Open(c)
	if err != nil || w == here {
		return k, err
	}
	return k, k.Watch(nil)
}

// churned compares connections with and without the programs, in changing order:
// many short runs, for the neighbours of this machine change from second to second.
// There is no answer beside the programs of others.
func (b *bench) churned(ctx context.Context, busy *namespace, others int) error {
	var all [ways][]spent
	n := pick(b, 8_000, 2_000)
	for round := range pick(b, 45, 3) {
		for i := range ways {
			w := (i + watching(round)) % ways
			one, err := churnOnce(busy, n, w)
			if err = errors.Join(err, ctx.Err()); err != nil {
				return err
			}
			all[w] = append(all[w], one)
		}
	}
	t := table{Title: fmt.Sprintf("connect, 1 byte each way, close: %d connections in one thread, %d runs in turn, ns a connection", n, len(all[here])),
		Columns: []string{"", "processor time, median (least)", "wall clock", "ratio, median of the pairs (quartiles)", "by the wall clock"}}
	var ratios [ways]float64
	for w, list := range all {
		var times, walls, ratio, wallRatio []float64
		for i, s := range list {
			times, walls = append(times, s.thread), append(walls, s.wall)
			ratio, wallRatio = append(ratio, s.thread/all[notAtAll][i].thread), append(wallRatio, s.wall/all[notAtAll][i].wall)
		}
		ratios[w] = median(ratio)
		t.Rows = append(t.Rows, []string{watching(w).String(), fmt.Sprintf("%.0f (%.0f)", median(times), least(times)),
			fmt.Sprintf("%.0f (%.0f)", median(walls), least(walls)), fmt.Sprintf("%.3f (%.3f to %.3f)", ratios[w], quarter(ratio, 1), quarter(ratio, 3)), fmt.Sprintf("%.3f", median(wallRatio))})
	}
	b.table(t)
	const what = "connections cost <= 3 % more with the programs, median of the pairs"
	if others > 0 {
		b.refuse(what, "%.3f, where nobody records %.3f, but there are programs of %d other recorders", ratios[here], ratios[elsewhere], others)
		return nil
	}
	b.goal(ratios[here] <= mostChurn && ratios[elsewhere] <= mostChurn, what, "%.3f, where nobody records %.3f", ratios[here], ratios[elsewhere])
	return nil
}

// quarter is a quartile of a list that is not empty: the first or the third.
func quarter(list []float64, which int) float64 {
	return slices.Sorted(slices.Values(list))[len(list)*which/4]
}

// strangers counts the programs of others on the hook that runs most. The kernel calls
// a tracepoint's only program directly but several of them one by one, so that the
// second is dearer than the first, and the first is in what "without programs" costs.
func strangers() (n int, err error) {
	for id := ebpf.ProgramID(0); ; {
		id, err = ebpf.ProgramGetNextID(id)
		if errors.Is(err, os.ErrNotExist) {
			return n, nil
		}
		if err != nil {
			return 0, fmt.Errorf("list the programs in the kernel: %w", err)
		}
		p, err := ebpf.NewProgramFromID(id)
		if err != nil {
			continue // gone meanwhile
		}
		if info, err := p.Info(); err == nil && info.Name == "set_state" {
			n++
		}
		_ = p.Close() // it was only looked at
	}
}

func churnOnce(busy *namespace, n int, w watching) (one spent, err error) {
	k, err := programsFor(w, false)
	if k != nil {
		defer func() { err = errors.Join(err, k.Close()) }()
	}
	if err != nil {
		return one, err
	}
	return one, busy.on(sendCPU, func() error { one, err = churn(n); return err })
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
	return spent{thread: perPacket(after-before, float64(n)), wall: perPacket(time.Since(start), float64(n))}, err
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

// runs tells how often each program runs for a connection, and how long: the least
// of many short runs, so that what neighbours do to the caches is not the programs'.
func (b *bench) runs(busy *namespace) error {
	rounds, n := pick(b, 100, 10), 400
	t := table{Title: fmt.Sprintf("the programs that run for a connection, of %d, the least of %d runs; some 80 ns a run are the measuring", n, rounds),
		Columns: []string{"program", "runs a connection", "ns a run", "ns a connection"}}
	for _, w := range []watching{elsewhere, here} {
		rows, err := runsOf(busy, rounds, n, w)
		if err != nil {
			return err
		}
		t.Rows = append(t.Rows, []string{w.String() + ":", "", "", ""})
		t.Rows = append(t.Rows, rows...)
	}
	b.table(t)
	return nil
}

func runsOf(busy *namespace, rounds, n int, w watching) (rows [][]string, err error) {
	k, err := programsFor(w, true)
	if k != nil {
		defer func() { err = errors.Join(err, k.Close()) }()
	}
	if err != nil {
		return nil, err
	}
	times := make([][]float64, len(k.Stats().Programs))
	counts := make([]float64, len(times))
	made := float64(n + n/10)
	for range rounds {
		before := k.Stats().Programs
		if err := busy.on(sendCPU, func() error { _, err := churn(n); return err }); err != nil {
			return nil, err
		}
		for i, p := range k.Stats().Programs {
			times[i] = append(times[i], float64((p.Time-before[i].Time).Nanoseconds())/made)
			counts[i] += float64(p.Runs-before[i].Runs) / made / float64(rounds)
		}
	}
	sum := 0.0
	for i, p := range k.Stats().Programs {
		if counts[i] < 0.5 {
			continue
		}
		took := least(times[i])
		sum += took
		rows = append(rows, []string{p.Hook, fmt.Sprintf("%.1f", counts[i]), fmt.Sprintf("%.0f", took/counts[i]), fmt.Sprintf("%.0f", took)})
	}
	return append(rows, []string{"all", "", "", fmt.Sprintf("%.0f", sum)}), nil
}

// statsSwitch makes the kernel measure each run of a program, for some 70 ns.
const statsSwitch = "/proc/sys/kernel/bpf_stats_enabled"

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

// scannable makes a namespace that answers a scan of the generator, to nobody.
func (b *bench) scannable() (*namespace, error) {
	n, err := b.namespace()
	if err != nil {
		return nil, err
	}
	far, err := b.namespace()
	if err != nil {
		return nil, err
	}
	const gateway = "10.2.0.2"
	for _, args := range [][]string{
		{"link", "add", device, "type", "veth", "peer", "name", device, "netns", far.name},
		{"link", "set", device, "address", gen.ScanMAC},
		{"link", "set", device, "addrgenmode", "none"},
		{"link", "set", device, "up"},
		{"addr", "add", gen.ScanAddress + "/24", "dev", device},
		{"neigh", "add", gateway, "lladdr", "02:00:00:00:fe:02", "dev", device, "nud", "permanent"},
		{"route", "add", "10.0.0.0/8", "via", gateway, "dev", device},
	} {
		if err := ip(append([]string{"-n", n.name}, args...)...); err != nil {
			return nil, err
		}
	}
	return n, far.up(device, "")
}

// scanned measures a scan of closed ports in the namespace that is recorded, with
// the usual bound on the recorder's processor time.
func (b *bench) scanned(ctx context.Context) error {
	n, err := b.scannable()
	if err != nil {
		return err
	}
	s, err := startConfigured(ctx, b, n, strings.Replace(configuration(usualMemory), "cpu: 0%", "cpu: 2%", 1), b.dir)
	if err != nil {
		return err
	}
	if err := set(statsSwitch, "1"); err != nil {
		return err
	}
	b.defers(func() error { return set(statsSwitch, "0") })
	r, err := b.scan(ctx, n, s)
	if err != nil {
		return err
	}
	rate := func(n uint64) string { return fmt.Sprintf("%.0f", float64(n)/r.took.Seconds()) }
	b.table(table{Title: fmt.Sprintf("SYN to 1024 closed ports for %v, recorded", r.took.Round(time.Second)),
		Columns: []string{"SYN/s", "answered/s", "in the fastest burst", "described", "only counted", "lost", "ns an event in the kernel", "ns a SYN of the sender"},
		Rows: [][]string{{rate(r.sent), rate(r.answered), fmt.Sprintf("%.0f", r.fastest), fmt.Sprint(r.events), fmt.Sprint(r.counted), fmt.Sprint(r.lost),
			fmt.Sprintf("%.0f", perPacket(r.program.time, float64(r.program.count))), fmt.Sprintf("%.0f", perPacket(r.sender, float64(r.sent)))}}})
	share := func(d time.Duration) string { return fmt.Sprintf("%.2f %%", 100*d.Seconds()/r.span.Seconds()) }
	b.table(table{Title: "the daemon meanwhile, shares of a processor", Columns: []string{"recording, every SYN and RST", "at level", "all else", "all"},
		Rows: [][]string{{share(r.recording), r.level, share(r.daemon - r.recording), share(r.daemon)}}})
	mean := float64(r.answered) / r.took.Seconds()
	b.goal(mean >= leastScan, fmt.Sprintf("at least %d SYN/s are answered, mean of the scan", leastScan), "%.0f", mean)
	most := int64(scanEvents * 2 * float64(b.report.CPUs) * (r.took.Seconds() + 2))
	b.goal(r.events <= most && r.lost == 0, fmt.Sprintf("at most %d events of %d resets, none lost", most, r.answered), "%d", r.events)
	budget := time.Duration(scanShare * float64(r.span+scanReserve))
	b.goal(r.daemon <= budget, fmt.Sprintf("the whole daemon stays in recorder.cpu, %.0f %% of the %.1f s and of %v saved up: %.2f s",
		100*scanShare, r.span.Seconds(), scanReserve, budget.Seconds()), "%.2f s", r.daemon.Seconds())
	return s.stop()
}

// scanResult is what became of a scan.
type scanResult struct {
	sent, answered        uint64
	events, counted, lost int64
	took, sender          time.Duration
	fastest               float64 // answers a second in the fastest burst
	program               ran     // tcp_send_reset's
	// daemon is the processor time of the whole daemon in span, which is took and the
	// wait for what is in the ring; recording is that of its thread that records packets.
	span, daemon, recording time.Duration
	level                   string
}

// scanStatus is what is read of the product's status.
type scanStatus struct {
	Recorder struct {
		Level      string  `json:"level"`
		CPUSeconds float64 `json:"cpu_seconds"`
	} `json:"recorder"`
	Kernel struct {
		Events     int64 `json:"events"`
		Suppressed int64 `json:"suppressed"`
		Lost       int64 `json:"lost"`
	} `json:"kernel"`
}

func scanned(ctx context.Context, s *session) (st scanStatus, err error) {
	return st, s.ask(ctx, &st, "status")
}

// scan runs one and compares the counters around it.
func (b *bench) scan(ctx context.Context, n *namespace, s *session) (r scanResult, err error) {
	before, err := scanned(ctx, s)
	if err != nil {
		return r, err
	}
	cpu, err := processorTime(proc, s.pid())
	if err != nil {
		return r, err
	}
	start := time.Now()
	if err := n.send(gen.Config{Flows: 1, Scan: true}, func(g *gen.Generator) error { return r.run(ctx, g, pick(b, 30, 6)) }); err != nil {
		return r, err
	}
	sleep(ctx, 2*settle) // what is in the ring
	end, err := processorTime(proc, s.pid())
	if err != nil {
		return r, err
	}
	r.span, r.daemon = time.Since(start), end-cpu
	after, err := scanned(ctx, s)
	if err != nil {
		return r, err
	}
	r.level = after.Recorder.Level
	r.recording = time.Duration((after.Recorder.CPUSeconds - before.Recorder.CPUSeconds) * float64(time.Second))
	r.events, r.counted = after.Kernel.Events-before.Kernel.Events, after.Kernel.Suppressed-before.Kernel.Suppressed
	r.lost = after.Kernel.Lost - before.Kernel.Lost
	all, err := programs(s.pid())
	r.program = all["send_reset"]
	return r, err
}

// scanBurst is sent between two looks at the counters. On a machine that others use,
// the fastest one shows what a scanner with a machine of its own does.
const scanBurst = 50_000

// run sends as fast as it goes, in the namespace's thread.
func (r *scanResult) run(ctx context.Context, g *gen.Generator, bursts int) error {
	cpu, err := gen.CPU()
	if err != nil {
		return err
	}
	answered, err := resetsSent()
	if err != nil {
		return err
	}
	for start := time.Now(); bursts > 0 && ctx.Err() == nil; bursts-- {
		began := time.Now()
		if err := g.Burst(scanBurst); err != nil {
			return err
		}
		took := time.Since(began)
		now, err := resetsSent()
		if err != nil {
			return err
		}
		r.fastest = max(r.fastest, float64(now-answered-r.answered)/took.Seconds())
		r.answered, r.sent, r.took = now-answered, g.Sent().Packets, time.Since(start)
	}
	end, err := gen.CPU()
	r.sender = end - cpu
	return err
}

// resetsSent is Tcp.OutRsts of the calling thread's network namespace (proc(5)).
func resetsSent() (uint64, error) {
	text, err := os.ReadFile("/proc/thread-self/net/snmp")
	if err != nil {
		return 0, fmt.Errorf("read counters of TCP: %w", err)
	}
	var names []string
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != "Tcp:" {
			continue
		}
		for i, name := range names {
			if name == "OutRsts" && i < len(fields) {
				return strconv.ParseUint(fields[i], 10, 64)
			}
		}
		names = fields
	}
	return 0, errors.New("read counters of TCP: there is no Tcp.OutRsts in /proc/net/snmp")
}
