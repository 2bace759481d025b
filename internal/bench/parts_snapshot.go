package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"tcpcoroner/internal/bench/gen"
)

// The promises about a look at a large host, while it is recorded.
const (
	mostLook  = time.Second
	steady    = 25_000 // packets a second
	crowd     = 500    // processes
	theirs    = 30     // connections within each, both ends
	freezes   = 5
	firedWait = 30 * time.Second
)

// snapshotConfig is without the self-test: no packet but those that are counted. By
// hand the window is as short as it can be, for what it costs to judge its packets is
// not what is measured; that of the trigger is the usual one.
func snapshotConfig(resets bool) string {
	before := "0s"
	if resets {
		before = "30s"
	}
	return `recorder:
  memory: 96MiB
  ring: 32MiB
  cpu: 0%
  self_test: 0s
window:
  before: ` + before + `
  after: 1s
triggers:
  resets: {enabled: ` + fmt.Sprint(resets) + `}
`
}

// snapshots looks at a namespace with many sockets and processes, by hand and by a
// trigger, while packets are recorded at a steady rate.
func snapshots(ctx context.Context, b *bench) error {
	n, err := b.loop()
	if err != nil {
		return err
	}
	processes := pick(b, crowd, crowd/10)
	if err := b.populate(n, processes); err != nil {
		return err
	}
	byHand, err := b.looks(ctx, n, false, pick(b, freezes, 2))
	if err != nil {
		return err
	}
	byTrigger, err := b.looks(ctx, n, true, 1)
	if err != nil {
		return err
	}
	b.judgeLooks(processes, byHand, byTrigger)
	return nil
}

// populate fills a namespace with established connections on loopback, which are
// held by processes that do nothing.
func (b *bench) populate(n *namespace, processes int) error {
	if err := n.churnable(); err != nil {
		return err
	}
	return n.on(anyCPU, func() error {
		l, to, err := churnListener()
		if err != nil {
			return err
		}
		defer unix.Close(l)
		for range processes {
			if err := b.holder(l, to); err != nil {
				return err
			}
		}
		return nil
	})
}

// holder starts a process with connections. This one keeps none of them.
func (b *bench) holder(l int, to unix.Sockaddr) (err error) {
	var files []*os.File
	defer func() {
		for _, f := range files {
			err = errors.Join(err, f.Close())
		}
	}()
	for range theirs {
		c, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open a socket: %w", err)
		}
		files = append(files, os.NewFile(uintptr(c), "client"))
		if err := unix.Connect(c, to); err != nil {
			return fmt.Errorf("connect on loopback: %w", err)
		}
		s, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
		if err != nil {
			return fmt.Errorf("accept on loopback: %w", err)
		}
		files = append(files, os.NewFile(uintptr(s), "server"))
	}
	_, err = b.startWithFiles(nil, anyCPU, files, "sleep", "infinity")
	return err
}

// look is what one incident tells of its snapshot.
type look struct {
	took time.Duration
	// cpu is the daemon's, from the request until the incident is stored, beyond the
	// usual: of a look at the moment and one at the end, and of storing both.
	cpu   time.Duration
	bytes int // as JSON
	// stored is by how much the incidents on disk grew.
	stored                    int64
	sockets, owned, processes int
	missing                   []string
}

// looking is a run of the daemon.
type looking struct {
	looks []look
	sent  gen.Count
	got   counts
	rate  float64
}

func (b *bench) looks(ctx context.Context, n *namespace, trigger bool, times int) (out looking, err error) {
	keep := b.mark()
	defer func() { err = errors.Join(err, b.unwind(keep)) }()
	s, err := startConfigured(ctx, b, n, snapshotConfig(trigger), b.dir)
	if err != nil {
		return out, err
	}
	err = n.send(gen.Config{Flows: flows}, func(g *gen.Generator) error {
		flow, stop := context.WithCancel(ctx)
		defer stop()
		done := make(chan error, 1)
		start := time.Now()
		go func() {
			defer stop()
			var err error
			if out.looks, err = s.incidents(ctx, trigger, times); err != nil {
				done <- err
				return
			}
			done <- nil
		}()
		err := errors.Join(g.Pace(flow, steady, endless), <-done)
		out.sent = g.Sent()
		out.rate = float64(out.sent.Packets) / time.Since(start).Seconds()
		return err
	})
	if err = errors.Join(err, s.drain(ctx)); err != nil {
		return out, err
	}
	out.got, err = productCounts(ctx, s)
	return out, err
}

// incidents freezes some times, or waits for the trigger.
func (s *session) incidents(ctx context.Context, trigger bool, times int) (all []look, err error) {
	if trigger {
		one, err := s.incident(ctx, trigger, 0)
		return []look{one}, err
	}
	if _, err := s.usual(ctx); err != nil { // not usual yet: it has just started
		return nil, err
	}
	for range times {
		usual, err := s.usual(ctx)
		if err != nil {
			return nil, err
		}
		one, err := s.incident(ctx, trigger, usual)
		if err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	return all, nil
}

// spent is the daemon's processor time so far, also of its threads that have ended,
// as those do that judge, and of the programs that it ran; in steps of 10 ms.
func (s *session) spent() (time.Duration, error) {
	text, err := os.ReadFile(filepath.Join(proc, strconv.Itoa(s.pid()), "stat"))
	if err != nil {
		return 0, fmt.Errorf("read processor time of the daemon: %w", err)
	}
	_, ran, err := parseStat(string(text))
	return ran, err
}

// usual is the daemon's processor time a second when nothing happens but traffic.
func (s *session) usual(ctx context.Context) (time.Duration, error) {
	const seconds = 4
	before, err := s.spent()
	if err != nil {
		return 0, err
	}
	sleep(ctx, seconds*time.Second)
	after, err := s.spent()
	return (after - before) / seconds, err
}

func (s *session) incident(ctx context.Context, trigger bool, usual time.Duration) (l look, err error) {
	before, err := s.disk(ctx)
	if err != nil {
		return l, err
	}
	cpu, err := s.spent()
	if err != nil {
		return l, err
	}
	start := time.Now()
	if trigger {
		err = s.fires(ctx)
	} else {
		err = s.ask(ctx, nil, "freeze", "--reason", "bench")
	}
	if err != nil {
		return l, err
	}
	took := time.Since(start)
	end, err := s.spent()
	if err != nil {
		return l, err
	}
	l.cpu = end - cpu - time.Duration(float64(usual)*took.Seconds())
	after, err := s.disk(ctx)
	if err != nil {
		return l, err
	}
	l.stored = after.Incidents.Bytes - before.Incidents.Bytes
	return l, l.read(ctx, s)
}

// fires waits until a trigger's incident is stored.
func (s *session) fires(ctx context.Context) error {
	for end := time.Now().Add(firedWait); time.Now().Before(end) && ctx.Err() == nil; sleep(ctx, 100*time.Millisecond) {
		st, err := s.disk(ctx)
		if err != nil {
			return err
		}
		if st.Incidents.Stored > 0 {
			return nil
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("no trigger has fired within %v", firedWait)
}

// read takes the snapshot of the latest incident apart.
func (l *look) read(ctx context.Context, s *session) error {
	var incident struct {
		At json.RawMessage `json:"at"`
	}
	if err := s.ask(ctx, &incident, "show", "last"); err != nil {
		return err
	}
	l.bytes = len(incident.At)
	var at struct {
		Took    time.Duration `json:"took_ns"`
		Sockets []struct {
			State string `json:"state"`
			Owner *struct {
				PID int `json:"pid"`
			} `json:"owner"`
		} `json:"sockets"`
		Missing []struct{ What, Why string } `json:"missing"`
	}
	if err := json.Unmarshal(incident.At, &at); err != nil {
		return fmt.Errorf("read the snapshot of the incident: %w", err)
	}
	l.took, l.sockets = at.Took, len(at.Sockets)
	pids := map[int]bool{}
	for _, k := range at.Sockets {
		if k.Owner != nil {
			l.owned++
			pids[k.Owner.PID] = true
		}
	}
	l.processes = len(pids)
	for _, m := range at.Missing {
		l.missing = append(l.missing, m.What+": "+m.Why)
	}
	return nil
}

func (b *bench) judgeLooks(processes int, byHand, byTrigger looking) {
	want := 2 * theirs * processes
	t := table{Title: fmt.Sprintf("a look at %d sockets of %d processes, while %.0f packets/s are recorded", want, processes, byHand.rate),
		Columns: []string{"", "wall", "processor time, with a second look and storage", "JSON", "incident stored", "sockets", "with owner", "processes"}}
	var longest time.Duration
	whole, missing := true, []string(nil)
	add := func(name string, l look, cpu string) {
		t.Rows = append(t.Rows, []string{name, l.took.Round(time.Millisecond).String(), cpu, mebibytes(uint64(l.bytes)), mebibytes(uint64(l.stored)),
			fmt.Sprint(l.sockets), fmt.Sprint(l.owned), fmt.Sprint(l.processes)})
		longest = max(longest, l.took)
		whole = whole && l.owned >= want && l.processes >= processes
		for _, m := range l.missing {
			if !slices.Contains(missing, m) {
				missing = append(missing, m)
			}
		}
	}
	for _, l := range byHand.looks {
		add("by hand", l, l.cpu.Round(time.Millisecond).String())
	}
	for _, l := range byTrigger.looks {
		add("by a trigger", l, "")
	}
	b.table(t)
	b.say("partial: %s", strings.Join(append(missing, "nothing else"), "; "))
	b.goal(longest <= mostLook, fmt.Sprintf("a look takes at most %v", mostLook), "%v", longest.Round(time.Millisecond))
	b.goal(whole, fmt.Sprintf("all %d sockets and their %d processes are in it", want, processes), "%v", whole)
	for _, run := range []struct {
		name string
		looking
	}{{"by hand", byHand}, {"by a trigger", byTrigger}} {
		b.goal(run.got.Dropped == 0 && run.got.Packets == int64(run.sent.Packets), run.name+": no packet is lost meanwhile", "%d sent, %d seen, %d dropped",
			run.sent.Packets, run.got.Packets, run.got.Dropped)
	}
}
