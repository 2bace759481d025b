package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"tcpcoroner/internal/bench/wire"
)

// engine is something that records. To add one is to add a value.
type engine struct {
	name string
	// start starts it in the namespace and returns when it records.
	start func(context.Context, *bench, *namespace) (*session, error)
	// counts ends it and tells what it saw.
	counts func(context.Context, *session) (counts, error)
}

// session is an engine at work.
type session struct {
	*child
	b   *bench
	dir string
}

// counts is what an engine says of itself. Resets is -1 where it does not count
// them and kept not enough files to do it.
type counts struct {
	Packets, Dropped, Resets int64
	// Level is the one at which it recorded at the end, and Levels how often that
	// changed, if the engine has such.
	Level  string `json:",omitempty"`
	Levels int64  `json:",omitempty"`
}

// settle is how long an engine gets after it says that it is ready, before
// anything is measured.
const settle = 300 * time.Millisecond

// The rivals, as somebody would run them for the same purpose: the last 64 MB of
// headers in files on a tmpfs, with a kernel buffer of 32 MiB.
var (
	tcpdump = engine{"tcpdump", rival("listening on", "tcpdump", "-i", device, "-s", "96", "-B", "32768", "-C", "16", "-W", "4",
		"-w", "DIR/x.pcap", "-Z", "root", "-n", "tcp"), rivalCounts(parseTcpdump)}
	dumpcap = engine{"dumpcap", rival("File:", "dumpcap", "-i", device, "-s", "96", "-B", "32", "-b", "filesize:16384", "-b", "files:4",
		"-w", "DIR/x.pcapng", "-q", "-f", "tcp"), rivalCounts(parseDumpcap)}
	// plain keeps one file with everything, to compare with.
	plain = engine{"tcpdump -w", rival("listening on", "tcpdump", "-i", device, "-s", "96", "-B", "32768",
		"-w", "DIR/x.pcap", "-Z", "root", "-n", "tcp"), rivalCounts(parseTcpdump)}
	product = engine{"tcpcoroner", startProduct, productCounts}
	// nothing is the machine without a recorder.
	nothing = engine{name: "nothing"}
)

// rival starts a program and waits until it prints ready.
func rival(ready string, args ...string) func(context.Context, *bench, *namespace) (*session, error) {
	return func(ctx context.Context, b *bench, n *namespace) (*session, error) {
		s, err := b.session()
		if err != nil {
			return nil, err
		}
		run := make([]string, len(args))
		for i, a := range args {
			run[i] = strings.Replace(a, "DIR", s.dir, 1)
		}
		if s.child, err = b.start(n, tapCPU, run...); err != nil {
			return nil, err
		}
		if err := s.says(ctx, ready); err != nil {
			return nil, err
		}
		sleep(ctx, settle)
		return s, nil
	}
}

// session makes the directory of one.
func (b *bench) session() (*session, error) {
	dir, err := os.MkdirTemp(b.dir, "")
	if err != nil {
		return nil, fmt.Errorf("make a directory for a recorder: %w", err)
	}
	// Some rivals leave root as soon as the socket is open.
	if err := errors.Join(os.Chmod(b.dir, 0o755), os.Chmod(dir, 0o777)); err != nil {
		return nil, fmt.Errorf("open directory for a recorder: %w", err)
	}
	return &session{b: b, dir: dir}, nil
}

func rivalCounts(parse func(string) (counts, error)) func(context.Context, *session) (counts, error) {
	return func(_ context.Context, s *session) (counts, error) {
		if err := s.stop(); err != nil {
			return counts{}, err
		}
		c, err := parse(s.text.String())
		if err != nil {
			return c, err
		}
		c.Resets = -1
		if kept, err := wire.CountFiles(s.files()...); err == nil && int64(kept.Packets) == c.Packets {
			c.Resets = int64(kept.Resets)
		}
		return c, nil
	}
}

// files are the captures that the engine has left.
func (s *session) files() []string {
	list, _ := filepath.Glob(filepath.Join(s.dir, "*.pcap*"))
	return list
}

var (
	tcpdumpSaw     = regexp.MustCompile(`(\d+) packets? captured`)
	tcpdumpDropped = regexp.MustCompile(`(\d+) packets? dropped by kernel`)
	dumpcapSaw     = regexp.MustCompile(`Packets captured: (\d+)`)
	dumpcapDropped = regexp.MustCompile(`Packets received/dropped on interface '[^']*': \d+/(\d+)`)
)

func parseTcpdump(text string) (counts, error) { return parseCounts(text, tcpdumpSaw, tcpdumpDropped) }
func parseDumpcap(text string) (counts, error) { return parseCounts(text, dumpcapSaw, dumpcapDropped) }

func parseCounts(text string, saw, dropped *regexp.Regexp) (c counts, err error) {
	for _, f := range []struct {
		re *regexp.Regexp
		to *int64
	}{{saw, &c.Packets}, {dropped, &c.Dropped}} {
		m := f.re.FindStringSubmatch(text)
		if m == nil {
			return c, fmt.Errorf("read counters: nothing in %q matches %v", text, f.re)
		}
		if *f.to, err = strconv.ParseInt(m[1], 10, 64); err != nil {
			return c, fmt.Errorf("read counters: %w", err)
		}
	}
	return c, nil
}

// configuration is that of the product: the rivals' kernel buffer, their 64 MB
// beside it, no bound on its processor time, and nobody who freezes but us.
func configuration(memory int) string {
	return `recorder:
  memory: ` + strconv.Itoa(memory) + `MiB
  ring: 32MiB
  cpu: 0%
  age: 1h
window:
  before: 1h
triggers:
  resets: {enabled: false}
  conntrack: {enabled: false}
  listen: {enabled: false}
store:
  max_bytes: 512MiB
`
}

// The product's memory in MiB, its ring included.
const (
	usualMemory = 96
	wideMemory  = 256 // holds a whole trace, to compare
)

func startProduct(ctx context.Context, b *bench, n *namespace) (*session, error) {
	return startWith(ctx, b, n, usualMemory, b.dir)
}

// startWith starts the product with so much memory and its incidents below data.
func startWith(ctx context.Context, b *bench, n *namespace, memory int, data string) (*session, error) {
	return startConfigured(ctx, b, n, configuration(memory), data)
}

// startConfigured starts the product with a configuration and its incidents below data.
func startConfigured(ctx context.Context, b *bench, n *namespace, text, data string) (*session, error) {
	s, err := b.session()
	if err != nil {
		return nil, err
	}
	if data, err = os.MkdirTemp(data, "tcpcoroner-bench-data-"); err != nil {
		return nil, fmt.Errorf("make a directory for incidents: %w", err)
	}
	b.defers(func() error { return os.RemoveAll(data) })
	config := filepath.Join(s.dir, "config.yaml")
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return nil, fmt.Errorf("write configuration: %w", err)
	}
	s.child, err = b.start(n, tapCPU, b.program, "run", "--config", config, "--data", data, "--socket", s.socket())
	if err != nil {
		return nil, err
	}
	if err := s.says(ctx, "msg=recording"); err != nil {
		return nil, err
	}
	sleep(ctx, settle)
	return s, nil
}

func (s *session) socket() string { return filepath.Join(s.dir, "socket") }

// ask runs a verb of the product and decodes its JSON into v, if that is not nil.
func (s *session) ask(ctx context.Context, v any, args ...string) error {
	cmd := exec.CommandContext(ctx, s.b.program, append([]string{"--json", "--socket", s.socket()}, args...)...)
	var stderr output
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("tcpcoroner %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	if v == nil {
		return nil
	}
	if err := json.Unmarshal(out, v); err != nil {
		return fmt.Errorf("tcpcoroner %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

// status is what is read of the product's status.
type status struct {
	Recorder struct {
		Seen        int64  `json:"seen"`
		Dropped     int64  `json:"dropped_by_kernel"`
		Skipped     int64  `json:"skipped"`
		Evicted     int64  `json:"evicted"`
		Resets      int64  `json:"resets"`
		Level       string `json:"level"`
		Levels      int64  `json:"level_changes"`
		BufferBytes int64  `json:"buffer_bytes"`
		// HeldBytes are those of sealed chunks: of all HeldPackets after a freeze.
		HeldPackets int64 `json:"held_packets"`
		HeldBytes   int64 `json:"held_bytes"`
		// HoldSeconds is how long the latest freeze took until nothing of it could be
		// lost any more.
		HoldSeconds float64 `json:"hold_seconds"`
	} `json:"recorder"`
	Kernel struct {
		Events     int64 `json:"events"`
		Suppressed int64 `json:"suppressed"`
		Lost       int64 `json:"lost"`
	} `json:"kernel"`
}

// bytesPerPacket is what a packet that is held takes, right after a freeze.
func (s *status) bytesPerPacket() float64 {
	return float64(s.Recorder.HeldBytes) / float64(max(1, s.Recorder.HeldPackets))
}

func (s *session) status(ctx context.Context) (st status, err error) {
	return st, s.ask(ctx, &st, "status")
}

func productCounts(ctx context.Context, s *session) (counts, error) {
	st, err := s.status(ctx)
	if err != nil {
		return counts{}, errors.Join(err, s.stop())
	}
	return st.counts(), s.stop()
}

func (s *status) counts() counts {
	return counts{Packets: s.Recorder.Seen, Dropped: s.Recorder.Dropped + s.Recorder.Skipped, Resets: s.Recorder.Resets,
		Level: s.Recorder.Level, Levels: s.Recorder.Levels}
}

// drain waits until the engine has read what is in its buffer: until it has
// used less than 3 % of a processor for longer than tcpdump leaves a packet in
// an open block of the kernel's ring, which is a second.
func (s *session) drain(ctx context.Context) error {
	const look, quiet = 350 * time.Millisecond, 4
	last, still := time.Duration(0), 0
	for end := time.Now().Add(patience); still < quiet && time.Now().Before(end) && ctx.Err() == nil; sleep(ctx, look) {
		now, err := processorTime(proc, s.pid())
		if err != nil {
			return err
		}
		still++
		if now-last > look*3/100 {
			still = 0
		}
		last = now
	}
	return ctx.Err()
}
