package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"tcpcoroner/internal/bench/gen"
)

// The processors: traffic and busy hosts run on the first, recorders on the
// second.
const (
	anyCPU  = -1
	sendCPU = 0
	tapCPU  = 1
)

// device is the interface that is recorded.
const device = "bench0"

// The addresses of the two ends of a pair.
const (
	clientIP = "10.99.0.1"
	serverIP = "10.99.0.2"
)

// namespace is a network namespace of this run.
type namespace struct {
	name string
	file *os.File
}

func ip(args ...string) error { return command("ip", args...) }

func command(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// namespace makes one with nothing but loopback.
func (b *bench) namespace() (*namespace, error) {
	b.made++
	n := &namespace{name: fmt.Sprintf("bench-%d-%d", os.Getpid(), b.made)}
	if err := ip("netns", "add", n.name); err != nil {
		return nil, err
	}
	b.defers(func() error { return ip("netns", "del", n.name) })
	var err error
	if n.file, err = os.Open(filepath.Join("/run/netns", n.name)); err != nil {
		return nil, fmt.Errorf("open namespace: %w", err)
	}
	b.defers(n.file.Close)
	return n, ip("-n", n.name, "link", "set", "lo", "up")
}

// loop makes a namespace for made traffic: a veth of which both ends are in it.
func (b *bench) loop() (*namespace, error) {
	n, err := b.namespace()
	if err != nil {
		return nil, err
	}
	err = ip("-n", n.name, "link", "add", device, "type", "veth", "peer", "name", "bench1")
	for _, dev := range []string{device, "bench1"} {
		err = errors.Join(err, n.up(dev, ""))
	}
	return n, err
}

// pair makes two namespaces joined by a veth, without offloads: each packet is
// one that could be on a wire, with its own checksum.
func (b *bench) pair() (client, server *namespace, err error) {
	if client, err = b.namespace(); err != nil {
		return nil, nil, err
	}
	if server, err = b.namespace(); err != nil {
		return nil, nil, err
	}
	err = ip("-n", client.name, "link", "add", device, "type", "veth", "peer", "name", device, "netns", server.name)
	return client, server, errors.Join(err, client.end(clientIP), server.end(serverIP))
}

func (n *namespace) end(address string) error {
	return errors.Join(n.up(device, address),
		command("ip", "netns", "exec", n.name, "ethtool", "-K", device, "tso", "off", "gso", "off", "gro", "off", "tx", "off"))
}

// up brings a device up that speaks no IPv6 of its own.
func (n *namespace) up(dev, address string) error {
	err := errors.Join(ip("-n", n.name, "link", "set", dev, "addrgenmode", "none"), ip("-n", n.name, "link", "set", dev, "up"))
	if address != "" {
		err = errors.Join(err, ip("-n", n.name, "addr", "add", address+"/24", "dev", dev))
	}
	return err
}

// on runs f in the namespace and on one processor, in a thread of its own that
// ends with it. What f starts as a process inherits both.
func (n *namespace) on(cpu int, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread is spoilt
		done <- func() error {
			if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("enter namespace %s: %w", n.name, err)
			}
			if cpu != anyCPU {
				if err := gen.Pin(cpu); err != nil {
					return err
				}
			}
			return f()
		}()
	}()
	return <-done
}

// send opens a traffic generator at the namespace's device and hands it to f.
func (n *namespace) send(c gen.Config, f func(*gen.Generator) error) error {
	return n.on(sendCPU, func() error {
		dev, err := net.InterfaceByName(device)
		if err != nil {
			return fmt.Errorf("find device: %w", err)
		}
		c.Interface = dev.Index
		g, err := gen.Open(c)
		if err != nil {
			return err
		}
		return errors.Join(f(g), g.Close())
	})
}

// child is a process that this run started.
type child struct {
	cmd  *exec.Cmd
	text output // what it said on both outputs
	done chan struct{}
	err  error // once done is closed
}

// output is a buffer that one writes and others look into.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// start starts a process in a namespace, or in this one if that is nil. It is
// killed, by its id, at the end of the part if it still runs then.
func (b *bench) start(n *namespace, cpu int, args ...string) (*child, error) {
	return b.startWithFiles(n, cpu, nil, args...)
}

// startWithFiles is start with further open files, from descriptor 3 on.
func (b *bench) startWithFiles(n *namespace, cpu int, files []*os.File, args ...string) (*child, error) {
	c := &child{cmd: exec.Command(args[0], args[1:]...), done: make(chan struct{})}
	c.cmd.ExtraFiles = files
	c.cmd.Stdout, c.cmd.Stderr = &c.text, &c.text
	c.cmd.Env = append(os.Environ(), "LC_ALL=C")
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a Ctrl-C is for us, and we stop it
	if err := b.launch(n, cpu, c.cmd); err != nil {
		return nil, fmt.Errorf("start %s: %w", args[0], err)
	}
	go func() {
		c.err = c.cmd.Wait()
		close(c.done)
	}()
	b.defers(func() error { c.kill(); return nil })
	return c, nil
}

func (b *bench) launch(n *namespace, cpu int, cmd *exec.Cmd) error {
	if n == nil {
		return cmd.Start()
	}
	return n.on(cpu, cmd.Start)
}

func (c *child) pid() int { return c.cmd.Process.Pid }

func (c *child) kill() {
	_ = c.cmd.Process.Kill() // it may have ended
	<-c.done
}

// patience is how long a process may take to begin or to end.
const patience = 60 * time.Second

// stop asks the process to end, and waits until it has.
func (c *child) stop() error {
	if err := c.cmd.Process.Signal(unix.SIGINT); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop process %d: %w", c.pid(), err)
	}
	select {
	case <-c.done:
		return nil
	case <-time.After(patience):
		c.kill()
		return fmt.Errorf("stop process %d: it did not end within %v:\n%s", c.pid(), patience, c.text.String())
	}
}

// says waits until the process has printed the text.
func (c *child) says(ctx context.Context, text string) error {
	for end := time.Now().Add(patience); ; {
		if strings.Contains(c.text.String(), text) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c.done:
			return fmt.Errorf("process ended before it said %q:\n%s", text, c.text.String())
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(end) {
			return fmt.Errorf("process did not say %q within %v:\n%s", text, patience, c.text.String())
		}
	}
}

// hogVerb is what this program is called with to do nothing, busily.
const hogVerb = "hog"

func hog() {
	for n := 0; ; n++ {
	}
}

// hogs starts a busy process on each of the two processors.
func (b *bench) hogs(n *namespace) (stop func(), err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	var all []*child
	for _, cpu := range []int{sendCPU, tapCPU} {
		c, err := b.start(n, cpu, self, hogVerb)
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return func() {
		for _, c := range all {
			c.kill()
		}
	}, nil
}
