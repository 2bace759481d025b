package main

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"tcpcoroner/evidence"
	"tcpcoroner/exporter/api"
	"tcpcoroner/recorder"
)

// prober makes one reset on loopback now and then, and looks whether capture and
// counters saw it: a recorder that is blind must not look healthy.
type prober struct {
	every  time.Duration // 0: never
	resets func() recorder.Stats
	// counter reads the resets that the kernel says it sent (TcpOutRsts); false if
	// it cannot be read.
	counter func() (uint64, bool)

	mu    sync.Mutex
	last  time.Time
	probe *probe
	// recent are the ports of the last probes, newest last.
	recent []uint16
	result *api.SelfTestStatus
	// obstacle is why no reset could be made.
	obstacle string
}

// probe is one reset that was made.
type probe struct {
	port    uint16
	seen    uint64 // recorder.Stats.Resets before
	counted uint64
	counts  bool
	made    time.Time
}

const (
	// probeTime is how long capture and counters have to show a probe: they are
	// read once a second.
	probeTime = 3 * time.Second
	// maxProbes is how many ports are remembered.
	maxProbes = 64
)

// tick is called once a second. The first probe is made one interval after the
// start.
func (p *prober) tick(now time.Time) {
	if p.every == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.probe != nil:
		p.look(now)
	case p.last.IsZero():
		p.last = now
	case now.Sub(p.last) >= p.every:
		p.last = now
		p.make(now)
	}
}

func (p *prober) make(now time.Time) {
	q := &probe{seen: p.resets().Resets, made: now}
	q.counted, q.counts = p.counter()
	port, err := refusedOnce()
	if err != nil {
		p.result, p.obstacle = nil, err.Error()
		return
	}
	p.obstacle = ""
	q.port = port
	p.probe = q
	p.recent = append(p.recent, port)
	p.recent = p.recent[max(0, len(p.recent)-maxProbes):]
}

// look waits for both to show the probe, and tells which one did not.
func (p *prober) look(now time.Time) {
	q := p.probe
	captured := p.captured(q)
	after, readable := p.counter()
	counted := !q.counts || !readable || after > q.counted
	if now.Sub(q.made) < probeTime && !(captured && counted) {
		return
	}
	p.probe = nil
	p.result = &api.SelfTestStatus{Time: q.made, OK: captured && counted}
	switch {
	case !captured:
		p.result.Text = fmt.Sprintf("a reset from 127.0.0.1:%d was made, and the capture did not see it", q.port)
	case !counted:
		p.result.Text = fmt.Sprintf("a reset from 127.0.0.1:%d was made, and the kernel's counter Tcp.OutRsts did not grow", q.port)
	default:
		p.result.Text = "a reset on loopback was seen by capture and counters"
	}
}

// captured looks for the reset by its port. Where so many came since that its
// place was taken, the capture sees.
func (p *prober) captured(q *probe) bool {
	s := p.resets()
	n := s.Resets - q.seen
	if n > uint64(len(s.LastResets)) {
		return true
	}
	for i := range n {
		if s.LastResets[(q.seen+i)%uint64(len(s.LastResets))][0] == q.port {
			return true
		}
	}
	return false
}

// ports are those of the probes: their resets are not evidence.
func (p *prober) ports() []uint16 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.recent)
}

// missing tells that the self-test is not possible here, such as where a firewall
// drops what it makes: no reason to call the recorder blind.
func (p *prober) missing() (list []evidence.Missing) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.obstacle != "" {
		list = append(list, evidence.Missing{What: "self-test", Why: p.obstacle})
	}
	return list
}

func (p *prober) status() *api.SelfTestStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.result
}

// refusedOnce connects to a port on loopback that is bound, so that nobody else
// listens there, but not listening: the kernel answers with a RST.
func refusedOnce() (port uint16, err error) {
	bound, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open socket: %w", err)
	}
	defer unix.Close(bound)
	loopback := [4]byte{127, 0, 0, 1}
	if err := unix.Bind(bound, &unix.SockaddrInet4{Addr: loopback}); err != nil {
		return 0, fmt.Errorf("bind a port on 127.0.0.1: %w", err)
	}
	name, err := unix.Getsockname(bound)
	if err != nil {
		return 0, fmt.Errorf("ask for the bound port: %w", err)
	}
	to := name.(*unix.SockaddrInet4)
	return uint16(to.Port), knockOn(to)
}

// knockOn connects without waiting: loopback answers inside the call, unless a
// firewall drops the SYN.
func knockOn(to *unix.SockaddrInet4) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("open socket: %w", err)
	}
	defer unix.Close(fd)
	err = unix.Connect(fd, to)
	if errors.Is(err, unix.EINPROGRESS) {
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, 100)
		code, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
		err = unix.Errno(code)
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("connect to closed port %d on 127.0.0.1: no refusal (%w)", to.Port, err)
	}
	return nil
}
