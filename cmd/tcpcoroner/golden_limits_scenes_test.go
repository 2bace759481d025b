package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tcpcoroner/internal/netlab"
	"tcpcoroner/internal/scenes"
)

// These scenes are about limits of rate, processes that die, and paths on which
// something is missing: packets, or which way they went.

// on runs a tool on a host.
func on(h *scenes.Host, input, name string, args ...string) error {
	return h.Do(func() error {
		cmd := exec.Command(name, args...)
		cmd.Stdin = strings.NewReader(input)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
		}
		return nil
	})
}

// limited serves on a port of which the server's packet filter lets one new
// connection pass each 200 ms and does with others what is said.
func limited(st *scenes.Stage, then string) (*net.TCPListener, error) {
	l, err := serve(st, netip.AddrPortFrom(st.ServerIP(), 0))
	if err != nil {
		return nil, err
	}
	port := l.Addr().(*net.TCPAddr).Port
	rules := fmt.Sprintf(`table inet limits { chain in { type filter hook input priority 0;
		tcp dport %d tcp flags & (syn|ack) == syn limit rate over 5/second burst 1 packets counter %s; }; }`, port, then)
	return l, errors.Join(err, on(st.Server, rules, "nft", "-f", "-"))
}

// rateLimitReject: a client gets in and is refused in turns.
func rateLimitReject(st *scenes.Stage) error {
	l, err := limited(st, "reject with tcp reset")
	if err != nil {
		return err
	}
	defer l.Close()
	for turns, refused := 0, false; turns < 6; {
		c, err := dial(st, l.Addr())
		if (err != nil) != refused {
			turns, refused = turns+1, !refused
		}
		switch {
		case errors.Is(err, unix.ECONNREFUSED):
			<-time.After(110 * time.Millisecond)
		case err != nil:
			return err
		default:
			s, err := l.AcceptTCP()
			if err := errors.Join(err, say(c, s, 100), say(s, c, 100), c.Close(), s.Close()); err != nil {
				return err
			}
		}
	}
	return nil
}

// rateLimitDrop: one client gets in, and those right behind it get no answer until
// they give up.
func rateLimitDrop(st *scenes.Stage) error {
	l, err := limited(st, "drop")
	if err != nil {
		return err
	}
	defer l.Close()
	p, err := join(st, l)
	if err != nil {
		return err
	}
	if err := errors.Join(p.exchange(), p.client.Close(), p.server.Close()); err != nil {
		return err
	}
	// The first of them takes the place of the others at each retransmission.
	ends := make(chan error)
	for range 4 {
		go func() {
			var c *net.TCPConn
			err := st.Client.Do(func() error {
				d := net.Dialer{Timeout: 1500 * time.Millisecond}
				got, err := d.Dial("tcp", l.Addr().String())
				c, _ = got.(*net.TCPConn)
				return err
			})
			if err == nil {
				err = c.Close()
			} else if os.IsTimeout(err) {
				err = nil
			}
			ends <- err
		}()
	}
	for range 4 {
		err = errors.Join(err, <-ends)
	}
	s, aerr := l.AcceptTCP()
	if aerr != nil {
		return errors.Join(err, aerr)
	}
	return errors.Join(err, finished(s), s.Close())
}

// redeployed: a port serves, refuses three times, and serves again. It changed its
// answer twice, as a restart makes it; no limit is at work.
func redeployed(st *scenes.Stage) error {
	at := netip.AddrPortFrom(st.ServerIP(), 0)
	for range 2 {
		l, err := serve(st, at)
		if err != nil {
			return err
		}
		at = l.Addr().(*net.TCPAddr).AddrPort()
		for range 3 {
			p, err := join(st, l)
			if err != nil {
				return err
			}
			if err := errors.Join(p.exchange(), p.client.Close(), finished(p.server), p.server.Close()); err != nil {
				return err
			}
		}
		if err := l.Close(); err != nil {
			return err
		}
		for range 3 {
			if c, err := dial(st, net.TCPAddrFromAddrPort(at)); !errors.Is(err, unix.ECONNREFUSED) {
				return fmt.Errorf("a closed port answered %v, %v", c, err)
			}
		}
	}
	return nil
}

// finished waits for the end that the other side made with FIN.
func finished(c net.Conn) error {
	_, err := io.Copy(io.Discard, c)
	return err
}

// The victim is this program once more, as a service that is to be killed. It takes
// the connections of a listener that it inherits, reads of each as many bytes as it
// is told, says so, and waits for its end.
const (
	asVictim    = "TCPCORONER_TEST_AS_VICTIM"
	victims     = 4
	victimWords = 1000
)

func TestVictim(t *testing.T) {
	n, err := strconv.Atoi(os.Getenv(asVictim))
	if err != nil {
		t.Skip("is started by scenes that kill it")
	}
	threads, err := filepath.Glob("/proc/self/task/*/comm")
	for _, comm := range threads { // any of them may close the sockets
		_ = os.WriteFile(comm, []byte("service"), 0)
	}
	f := os.NewFile(3, "listener")
	l, lerr := net.FileListener(f)
	if err := errors.Join(err, lerr, f.Close()); err != nil {
		t.Fatal(err)
	}
	for range victims {
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, n)); err != nil {
			t.Fatal(err)
		}
		fmt.Println("served")
		defer c.Close()
	}
	_, _ = io.Copy(io.Discard, os.Stdin) // ends with the parent
}

// killed has a victim serve clients, kills it, and gives the clients' ends.
func killed(st *scenes.Stage, read int) (clients []*net.TCPConn, at net.Addr, err error) {
	l, err := serve(st, netip.AddrPortFrom(st.ServerIP(), 0))
	if err != nil {
		return nil, nil, err
	}
	f, err := l.File()
	if err := errors.Join(err, l.Close()); err != nil {
		return nil, nil, err
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestVictim$")
	cmd.Env = append(os.Environ(), asVictim+"="+strconv.Itoa(read))
	cmd.ExtraFiles = []*os.File{f}
	words, err := cmd.StdoutPipe()
	life, lerr := cmd.StdinPipe()
	if err := errors.Join(err, lerr, st.Server.Do(cmd.Start), f.Close()); err != nil {
		return nil, nil, err
	}
	defer life.Close()
	served := bufio.NewScanner(words)
	for range victims {
		c, err := dial(st, l.Addr())
		if err != nil {
			return nil, nil, errors.Join(err, cmd.Process.Kill())
		}
		if _, err := c.Write(make([]byte, victimWords)); err != nil || !served.Scan() {
			return nil, nil, errors.Join(err, served.Err(), cmd.Process.Kill())
		}
		clients = append(clients, c)
	}
	err = cmd.Process.Kill()
	_ = cmd.Wait() // it was killed
	return clients, l.Addr(), err
}

// refusedAt wants the port closed.
func refusedAt(st *scenes.Stage, at net.Addr) error {
	if c, err := dial(st, at); !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("the port of a dead process answered %v, %v", c, err)
	}
	return nil
}

// crash: a service with four requests half read dies of SIGKILL.
func crash(st *scenes.Stage) error {
	clients, at, err := killed(st, 1)
	for _, c := range clients {
		err = errors.Join(err, gone(c), c.Close())
	}
	return errors.Join(err, refusedAt(st, at))
}

// crashRead: a service that has read all it was sent dies of SIGKILL. Its kernel
// closes with FIN; the next requests meet no socket.
func crashRead(st *scenes.Stage) error {
	clients, at, err := killed(st, victimWords)
	for _, c := range clients {
		_, read := io.Copy(io.Discard, c)
		_, wrote := c.Write(make([]byte, 100))
		err = errors.Join(err, read, wrote, dead(c), c.Close())
	}
	return errors.Join(err, refusedAt(st, at))
}

// dead waits until a connection that the other side had closed is reset.
func dead(c *net.TCPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	state := 0
	for end := time.Now().Add(10 * time.Second); state != unix.BPF_TCP_CLOSE; {
		if time.Now().After(end) {
			return fmt.Errorf("a connection to the dead is in state %d", state)
		}
		cerr := raw.Control(func(fd uintptr) {
			info, ierr := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
			if err = ierr; err == nil {
				state = int(info.State)
			}
		})
		if err := errors.Join(err, cerr); err != nil {
			return err
		}
	}
	return nil
}

// purge: a service throws four clients out at once and goes on serving: it did not
// die.
func purge(st *scenes.Stage) error {
	l, err := serve(st, netip.AddrPortFrom(st.ServerIP(), 0))
	if err != nil {
		return err
	}
	defer l.Close()
	var all []pair
	for range victims {
		p, err := join(st, l)
		if err != nil {
			return err
		}
		if err := p.exchange(); err != nil {
			return err
		}
		all = append(all, p)
	}
	for _, p := range all {
		err = errors.Join(err, netlab.Reset(p.server), gone(p.client), p.client.Close())
	}
	p, jerr := join(st, l)
	if jerr != nil {
		return errors.Join(err, jerr)
	}
	return errors.Join(err, p.exchange(), p.client.Close(), finished(p.server), p.server.Close())
}

// The hosts' addresses in the tunnels, whose devices have no link layer.
const tunnelClient, tunnelServer = "10.99.1.2", "10.99.2.2"

// tunnel: a server closes with data unread, and all that the hosts see of it is on
// devices that do not tell sent from received, as those of VPNs in user space.
func tunnel(st *scenes.Stage) error {
	err := errors.Join(
		pipe(st.Client, tunnelClient, st.Router, "10.99.1.1"),
		pipe(st.Server, tunnelServer, st.Router, "10.99.2.1"),
		on(st.Client, "", "ip", "route", "add", tunnelServer, "via", "10.99.1.1"),
		on(st.Server, "", "ip", "route", "add", tunnelClient, "via", "10.99.2.1"))
	if err != nil {
		return err
	}
	l, err := serve(st, netip.AddrPortFrom(netip.MustParseAddr(tunnelServer), 0))
	if err != nil {
		return err
	}
	defer l.Close()
	for range 2 {
		p, err := join(st, l)
		if err != nil {
			return err
		}
		_, err = p.client.Write(make([]byte, 1000))
		if err := errors.Join(err, readable(p.server), p.server.Close(), gone(p.client), p.client.Close()); err != nil {
			return err
		}
	}
	return nil
}

// pipe joins two hosts by a pair of TUN devices. They are gone with the hosts.
func pipe(a *scenes.Host, ipA string, b *scenes.Host, ipB string) error {
	x, err := tun(a, ipA, ipB)
	if err != nil {
		return err
	}
	y, err := tun(b, ipB, ipA)
	if err != nil {
		return err
	}
	go pump(x, y)
	go pump(y, x)
	return nil
}

func tun(h *scenes.Host, own, peer string) (f *os.File, err error) {
	name := ""
	err = h.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		r, err := unix.NewIfreq("tun%d")
		if err != nil {
			return errors.Join(err, unix.Close(fd))
		}
		r.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, r); err != nil {
			return errors.Join(err, unix.Close(fd))
		}
		name, f = r.Name(), os.NewFile(uintptr(fd), "tun")
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("make a TUN device on %s: %w", h.Name, err)
	}
	return f, errors.Join(
		on(h, "", "ip", "address", "add", own, "peer", peer, "dev", name),
		on(h, "", "ip", "link", "set", name, "up"))
}

// pump carries packets until the device is gone.
func pump(from, to *os.File) {
	defer from.Close()
	for b := make([]byte, 65536); ; {
		n, err := from.Read(b)
		if err != nil {
			return
		}
		_, _ = to.Write(b[:n]) // the other side may be gone
	}
}

// mtuBlackhole: the router has less room towards the server and tells nobody. The
// client's first words arrive, and what is larger does not.
func mtuBlackhole(st *scenes.Stage) error {
	if err := narrow(st); err != nil {
		return err
	}
	return stalls(st, func() error { return nil }, 20<<10)
}

// mtuUpload: on the same path, the head and the tail of an upload arrive, and what is
// between them does not; the server waits for it, and then aborts.
func mtuUpload(st *scenes.Stage) error {
	if err := narrow(st); err != nil {
		return err
	}
	return uploads(st, func(p pair) error {
		_, large := p.client.Write(make([]byte, 2*1448))
		_, small := p.client.Write(make([]byte, 900))
		return errors.Join(large, small)
	})
}

// stalledUpload: a client falls silent after the head of its upload.
func stalledUpload(st *scenes.Stage) error { return uploads(st, func(pair) error { return nil }) }

// uploads has a server read the heads of uploads, and abort two seconds later.
func uploads(st *scenes.Stage, rest func(pair) error) error {
	all, err := pairs(st, 3, 0)
	for _, p := range all {
		err = errors.Join(err, say(p.client, p.server, 200), rest(p))
	}
	<-time.After(2 * time.Second)
	for _, p := range all {
		err = errors.Join(err, netlab.Reset(p.server), gone(p.client), p.client.Close())
	}
	return err
}

// narrow makes the router's way to the server smaller, and has it tell nobody.
func narrow(st *scenes.Stage) error {
	const rules = "table inet quiet { chain out { type filter hook output priority 0; icmp type destination-unreachable drop; }; }"
	return errors.Join(on(st.Router, "", "ip", "link", "set", "server", "mtu", "1280"), on(st.Router, rules, "nft", "-f", "-"))
}

// pathCut: nothing gets through any more, however small.
func pathCut(st *scenes.Stage) error {
	return stalls(st, func() error { return st.Router.Sysctl("net.ipv4.ip_forward", "0") }, 300)
}

// stalls has connections that were served send n bytes, which do not arrive, and
// give up.
func stalls(st *scenes.Stage, cut func() error, n int) error {
	all, err := pairs(st, 2, 0)
	for _, p := range all {
		err = errors.Join(err, p.exchange())
	}
	if err := errors.Join(err, cut()); err != nil {
		return err
	}
	for _, p := range all {
		raw, err := p.client.SyscallConn()
		if err != nil {
			return err
		}
		var serr error
		err = raw.Control(func(fd uintptr) {
			serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 2500)
		})
		_, werr := p.client.Write(make([]byte, n))
		if err := errors.Join(err, serr, werr); err != nil {
			return err
		}
	}
	for _, p := range all {
		_, err := io.Copy(io.Discard, p.client)
		if !errors.Is(err, unix.ETIMEDOUT) {
			return fmt.Errorf("a stalled connection ended with %w", err)
		}
	}
	return nil
}

// localPorts is how many local ports the client has.
const localPorts = 40

// noLocalPort: a client that closes first has all its ports to a server in TIME_WAIT.
func noLocalPort(st *scenes.Stage) error {
	l, err := takePorts(st, localPorts)
	if err != nil {
		return err
	}
	defer l.Close()
	if c, err := dial(st, l.Addr()); !errors.Is(err, unix.EADDRNOTAVAIL) {
		return fmt.Errorf("the client found a port: %v, %v", c, err)
	}
	return nil
}

// portsHalfUsed: there are ports left.
func portsHalfUsed(st *scenes.Stage) error {
	l, err := takePorts(st, localPorts/2)
	if err != nil {
		return err
	}
	return l.Close()
}

// takePorts has the client open n connections and close each.
func takePorts(st *scenes.Stage, n int) (*net.TCPListener, error) {
	l, err := serve(st, netip.AddrPortFrom(st.ServerIP(), 0))
	err = errors.Join(err, st.Client.Sysctl("net.ipv4.ip_local_port_range", fmt.Sprintf("20000 %d", 20000+localPorts-1)),
		st.Client.Sysctl("net.ipv4.tcp_tw_reuse", "0"))
	for range n {
		if err != nil {
			return nil, err
		}
		var p pair
		if p, err = join(st, l); err == nil {
			err = errors.Join(p.client.Close(), finished(p.server), p.server.Close())
		}
	}
	return l, err
}
