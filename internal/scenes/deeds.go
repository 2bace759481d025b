package scenes

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// patience bounds every wait of a scene: what has not come by then never will.
const patience = 10 * time.Second

// deeds are what an actor can do; those that wait do so no longer than patience.
// An errno is part of the answer; another error is the actor's failure.
var deeds = map[string]func(request) (reply, error){
	"bind":     bind,    // Local -> FD, Local
	"listen":   listen,  // Local, N backlog -> FD, Local
	"socket":   socket,  // Peer for its family -> FD
	"connect":  connect, // FD, Peer -> Local
	"accept":   accept,  // FD -> FD, Local, Peer
	"read":     read,    // FD, N -> N
	"write":    write,   // FD, N -> N
	"close":    func(r request) (reply, error) { return reply{}, unix.Close(r.FD) },
	"shutdown": func(r request) (reply, error) { return reply{}, unix.Shutdown(r.FD, r.N) },
	"set":      func(r request) (reply, error) { return reply{}, unix.SetsockoptInt(r.FD, r.Level, r.Opt, r.Value) },
	"linger":   linger,    // FD; SO_LINGER on, N seconds
	"unread":   unread,    // FD -> N bytes
	"unacked":  unacked,   // FD -> N bytes
	"info":     info,      // FD -> N queue of a listener, or state
	"error":    sockError, // FD -> Errno once the connection is dead
	"sequence": sequence,  // FD -> Snd, Rcv
	"unspec":   unspec,    // FD
	"take":     take,      // PID, FD -> FD
	"destroy":  destroy,   // Local, Peer
	"crash":    crash,
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

func addrPort(s unix.Sockaddr) netip.AddrPort {
	switch s := s.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(s.Addr), uint16(s.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(s.Addr), uint16(s.Port))
	}
	return netip.AddrPort{}
}

func socket(r request) (reply, error) {
	fd, err := unix.Socket(int(family(r.Peer.Addr())), unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	return reply{FD: fd}, err
}

func bind(r request) (reply, error) {
	fd, err := unix.Socket(int(family(r.Local.Addr())), unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return reply{}, err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return reply{}, err
	}
	if err := unix.Bind(fd, sockaddr(r.Local)); err != nil {
		return reply{}, err
	}
	name, err := unix.Getsockname(fd)
	return reply{FD: fd, Local: addrPort(name)}, err
}

func listen(r request) (reply, error) {
	done, err := bind(r)
	if err != nil {
		return done, err
	}
	return done, unix.Listen(done.FD, r.N)
}

// connect also tells where from it was refused: the port stays until the close
// if it was bound before.
func connect(r request) (reply, error) {
	done := reply{FD: r.FD}
	if r.FD == 0 {
		var err error
		if done, err = socket(r); err != nil {
			return done, err
		}
	}
	refused := unix.Connect(done.FD, sockaddr(r.Peer))
	name, err := unix.Getsockname(done.FD)
	done.Local = addrPort(name)
	return done, errors.Join(refused, err)
}

func accept(r request) (reply, error) {
	if _, err := poll(r.FD, unix.POLLIN); err != nil {
		return reply{}, err
	}
	fd, peer, err := unix.Accept4(r.FD, unix.SOCK_CLOEXEC)
	if err != nil {
		return reply{}, err
	}
	name, err := unix.Getsockname(fd)
	return reply{FD: fd, Local: addrPort(name), Peer: addrPort(peer)}, err
}

// poll waits for one of the events, or for the connection's end.
func poll(fd int, events int16) (int16, error) {
	fds := []unix.PollFd{{Fd: int32(fd), Events: events}}
	for end := time.Now().Add(patience); ; {
		n, err := unix.Poll(fds, int(time.Until(end).Milliseconds()))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil && n == 0 {
			err = fmt.Errorf("poll socket: nothing came in %v", patience)
		}
		return fds[0].Revents, err
	}
}

func read(r request) (reply, error) {
	if _, err := poll(r.FD, unix.POLLIN); err != nil {
		return reply{}, err
	}
	b := make([]byte, r.N)
	n, err := unix.Read(r.FD, b)
	return reply{Text: string(b[:max(n, 0)])}, err
}

// write does not wait for room: it is for few bytes. MSG_NOSIGNAL, for a SIGPIPE
// is no part of a play.
func write(r request) (reply, error) {
	b := []byte(r.Text)
	if r.Text == "" {
		b = make([]byte, r.N)
	}
	_, err := unix.SendmsgN(r.FD, b, nil, nil, unix.MSG_NOSIGNAL)
	return reply{}, err
}

func linger(r request) (reply, error) {
	return reply{}, unix.SetsockoptLinger(r.FD, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1, Linger: int32(r.N)})
}

func unread(r request) (reply, error) {
	n, err := unix.IoctlGetInt(r.FD, unix.SIOCINQ)
	return reply{N: n}, err
}

func unacked(r request) (reply, error) {
	n, err := unix.IoctlGetInt(r.FD, unix.SIOCOUTQ)
	return reply{N: n}, err
}

// info of a listener tells the accept queue's length: tcpi_unacked is that
// (net/ipv4/tcp.c tcp_get_info).
func info(r request) (reply, error) {
	i, err := unix.GetsockoptTCPInfo(r.FD, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return reply{}, err
	}
	if i.State == stateListen {
		return reply{N: int(i.Unacked)}, nil
	}
	return reply{N: int(i.State)}, nil
}

// sockError waits until the connection is dead and takes its error. Poll tells
// the end by POLLHUP and POLLERR (net/ipv4/tcp.c tcp_poll).
func sockError(r request) (reply, error) {
	for end := time.Now().Add(patience); time.Now().Before(end); {
		events, err := poll(r.FD, 0)
		if err != nil {
			return reply{}, err
		}
		if events&(unix.POLLHUP|unix.POLLERR) != 0 {
			errno, err := unix.GetsockoptInt(r.FD, unix.SOL_SOCKET, unix.SO_ERROR)
			return reply{Errno: unix.Errno(errno)}, err
		}
	}
	return reply{}, errors.New("the connection does not end")
}

// States, timers as /proc/net/tcp numbers them, and queues of TCP_REPAIR (include/net/tcp_states.h, uapi/linux/tcp.h).
const (
	stateFinWait2   = 5
	stateTimeWait   = 6
	stateListen     = 10
	timerKeepalive  = 2
	timerTimeWait   = 3
	repairRecvQueue = 1
	repairSendQueue = 2
)

// sequence tells the next sequence numbers to send and to receive, which only a
// socket in repair mode gives. Off without a window probe: nobody is to notice.
func sequence(r request) (done reply, err error) {
	if err := unix.SetsockoptInt(r.FD, unix.IPPROTO_TCP, unix.TCP_REPAIR, 1); err != nil {
		return done, err
	}
	defer func() {
		err = errors.Join(err, unix.SetsockoptInt(r.FD, unix.IPPROTO_TCP, unix.TCP_REPAIR, unix.TCP_REPAIR_OFF_NO_WP))
	}()
	for queue, seq := range map[int]*uint32{repairSendQueue: &done.Snd, repairRecvQueue: &done.Rcv} {
		if err := unix.SetsockoptInt(r.FD, unix.IPPROTO_TCP, unix.TCP_REPAIR_QUEUE, queue); err != nil {
			return done, err
		}
		v, err := unix.GetsockoptInt(r.FD, unix.IPPROTO_TCP, unix.TCP_QUEUE_SEQ)
		if err != nil {
			return done, err
		}
		*seq = uint32(v)
	}
	return done, nil
}

// Sequence tells the next sequence numbers that a connection sends and receives. It
// needs CAP_NET_ADMIN.
func Sequence(c syscall.Conn) (snd, rcv uint32, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, 0, err
	}
	var at reply
	cerr := raw.Control(func(fd uintptr) { at, err = sequence(request{FD: int(fd)}) })
	return at.Snd, at.Rcv, errors.Join(err, cerr)
}

// unspec dissolves the connection: connect(2) to an address of family AF_UNSPEC.
func unspec(r request) (reply, error) {
	var none unix.RawSockaddr
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(r.FD), uintptr(unsafe.Pointer(&none)), unsafe.Sizeof(none))
	if errno != 0 {
		return reply{}, errno
	}
	return reply{}, nil
}

// take gets a descriptor out of another process, which keeps its own.
func take(r request) (reply, error) {
	pidfd, err := unix.PidfdOpen(r.PID, 0)
	if err != nil {
		return reply{}, err
	}
	defer unix.Close(pidfd)
	fd, err := unix.PidfdGetfd(pidfd, r.FD, 0)
	return reply{FD: fd}, err
}

func destroy(r request) (reply, error) {
	err := destroySocket(r.Local, r.Peer)
	if err != nil {
		return reply{Err: err.Error()}, nil
	}
	return reply{}, nil
}

// crash dies of SIGSEGV as a program without a Go runtime would, without a dump.
func crash(request) (reply, error) {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return reply{}, err
	}
	// struct kernel_sigaction with handler SIG_DFL is all zero; the last number
	// is sizeof(sigset_t) (kernel/signal.c rt_sigaction).
	var byDefault [32]byte
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(unix.SIGSEGV), uintptr(unsafe.Pointer(&byDefault)), 0, 8, 0, 0)
	if errno != 0 {
		return reply{}, errno
	}
	return reply{}, unix.Kill(unix.Getpid(), unix.SIGSEGV)
}
