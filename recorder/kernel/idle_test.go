package kernel

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tcpcoroner/internal/netlab"
)

// The sizes of TestIdleConnectionsKeepTheirOwners, and where larger ones come from.
const (
	idleEnv  = "KERNEL_IDLE"
	churnEnv = "KERNEL_CHURN"
	idle     = 6_000 // with both ends more than there are slots
	churned  = 20_000
	// holds is how many connections one process can have with a usual limit of files.
	holds = 8_000
)

// Connections that do nothing keep their owners, however many others come and go.
func TestIdleConnectionsKeepTheirOwners(t *testing.T) {
	netlab.NeedRoot(t)
	k := open(t, config())
	ns := netlab.NewNS(t)
	connections, others := number(t, idleEnv, idle), number(t, churnEnv, churned)
	owners := map[uint64]int{}
	for left := connections; left > 0; left -= holds {
		hold(t, ns, min(left, holds), owners)
	}
	start := time.Now()
	ns.Run(t, func() {
		if err := comeAndGo(others); err != nil {
			t.Fatal(err)
		}
	})
	took := time.Since(start)
	wrong := 0
	for cookie, pid := range owners {
		if o, ok := k.lookUp(cookie); !ok || int(o.Pid) != pid {
			wrong++
		}
	}
	s := k.Stats()
	if wrong > 0 || len(owners) != 2*connections || s.OwnersFailed > 0 {
		t.Errorf("%d owners of %d sockets are not known, %d found no room", wrong, len(owners), s.OwnersFailed)
	}
	if s.Graves+s.GravesFailed < uint64(2*others) || s.GravesFailed > s.Graves/1000 {
		t.Errorf("%d sockets were buried, %d could not be, of at least %d", s.Graves, s.GravesFailed, 2*others)
	}
	t.Logf("%d sockets idle while %d connections came and went in %v: %d owners known, %d KiB of maps, %d graves and %d without",
		len(owners), others, took.Round(time.Millisecond), s.Owners, s.MapBytes>>10, s.Graves, s.GravesFailed)
}

// holdEnv makes the test binary hold that many connections until its input ends.
const holdEnv = "KERNEL_TEST_HOLD"

func holding() {
	n, err := strconv.Atoi(os.Getenv(holdEnv))
	if err != nil {
		return
	}
	if err := holdConnections(n); err != nil {
		fmt.Fprintln(os.Stderr, "hold connections:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// holdConnections writes the cookies of its sockets.
func holdConnections(n int) error {
	l, to, err := listenRaw()
	if err != nil {
		return err
	}
	out := bufio.NewWriter(os.Stdout)
	for range n {
		ends, err := connectRaw(l, to)
		if err != nil {
			return err
		}
		for _, fd := range ends {
			cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
			if err != nil {
				return err
			}
			if err := binary.Write(out, binary.NativeEndian, cookie); err != nil {
				return err
			}
		}
	}
	if err := out.Flush(); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// hold has a process hold connections, and notes it as their owner.
func hold(t *testing.T, ns *netlab.NS, n int, owners map[uint64]int) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := ns.Command(t.Context(), exe)
	cmd.Env, cmd.Stderr = append(os.Environ(), fmt.Sprintf("%s=%d", holdEnv, n)), os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); _ = cmd.Wait() })
	cookies := make([]uint64, 2*n)
	if err := binary.Read(out, binary.NativeEndian, cookies); err != nil {
		t.Fatal(err)
	}
	for _, c := range cookies {
		owners[c] = cmd.Process.Pid
	}
}

// comeAndGo makes connections and ends them without TIME_WAIT, so that ports do
// not run out.
func comeAndGo(n int) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	l, to, err := listenRaw()
	if err != nil {
		return err
	}
	defer unix.Close(l)
	for range n {
		ends, err := connectRaw(l, to)
		if err != nil {
			return err
		}
		for _, fd := range ends {
			if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
				return err
			}
			if err := unix.Close(fd); err != nil {
				return err
			}
		}
	}
	return nil
}

func listenRaw() (fd int, to unix.Sockaddr, err error) {
	if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return fd, nil, err
	}
	if err = unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return fd, nil, err
	}
	if err = unix.Listen(fd, 64); err != nil {
		return fd, nil, err
	}
	to, err = unix.Getsockname(fd)
	return fd, to, err
}

// connectRaw makes a connection and uses it: both ends.
func connectRaw(l int, to unix.Sockaddr) (ends [2]int, err error) {
	if ends[0], err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return ends, err
	}
	if err = unix.Connect(ends[0], to); err != nil {
		return ends, err
	}
	if ends[1], _, err = unix.Accept4(l, unix.SOCK_CLOEXEC); err != nil {
		return ends, err
	}
	var b [1]byte
	if _, err = unix.Write(ends[0], b[:]); err != nil {
		return ends, err
	}
	_, err = unix.Read(ends[1], b[:])
	return ends, err
}
