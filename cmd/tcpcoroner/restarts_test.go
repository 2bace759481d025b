package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tcpcoroner/evidence"
	"tcpcoroner/internal/netlab"
	"tcpcoroner/triggers"
)

func TestServes(t *testing.T) {
	ap := netip.MustParseAddrPort
	said := func(src, dst string, payload uint32, flags evidence.Flags) *evidence.Segment {
		return &evidence.Segment{Src: ap(src), Dst: ap(dst), PayloadBytes: payload, Flags: flags}
	}
	for _, tt := range []struct {
		name string
		port string
		way  evidence.Direction
		s    *evidence.Segment
		want bool
	}{
		{"an answer", "192.0.2.1:80", evidence.Sent, said("192.0.2.1:80", "192.0.2.9:4000", 5, evidence.ACK), true},
		{"a request", "192.0.2.1:80", evidence.Received, said("192.0.2.9:4000", "192.0.2.1:80", 5, evidence.ACK), true},
		{"any address", "0.0.0.0:80", evidence.Received, said("192.0.2.9:4000", "192.0.2.1:80", 5, evidence.ACK), true},
		{"any address of both families", "[::]:80", evidence.Sent, said("192.0.2.1:80", "192.0.2.9:4000", 5, evidence.ACK), true},
		{"any address of IPv4", "0.0.0.0:80", evidence.Received, said("[2001:db8::9]:4000", "[2001:db8::1]:80", 5, evidence.ACK), false},
		{"loopback", "127.0.0.1:80", evidence.Loopback, said("127.0.0.1:4000", "127.0.0.1:80", 5, evidence.ACK), true},
		{"a direction that is not known", "192.0.2.1:80", evidence.DirectionUnknown, said("192.0.2.1:80", "192.0.2.9:4000", 5, evidence.ACK), true},
		{"no payload", "192.0.2.1:80", evidence.Sent, said("192.0.2.1:80", "192.0.2.9:4000", 0, evidence.SYN|evidence.ACK), false},
		{"a reset", "192.0.2.1:80", evidence.Sent, said("192.0.2.1:80", "192.0.2.9:4000", 5, evidence.RST), false},
		{"the same port of a peer", "0.0.0.0:80", evidence.Received, said("192.0.2.9:80", "192.0.2.1:4000", 5, evidence.ACK), false},
		{"asking a peer's port", "0.0.0.0:80", evidence.Sent, said("192.0.2.1:4000", "192.0.2.9:80", 5, evidence.ACK), false},
		{"another address", "192.0.2.2:80", evidence.Sent, said("192.0.2.1:80", "192.0.2.9:4000", 5, evidence.ACK), false},
		{"another port", "192.0.2.1:81", evidence.Sent, said("192.0.2.1:80", "192.0.2.9:4000", 5, evidence.ACK), false},
	} {
		if got := serves(ap(tt.port), tt.way, tt.s); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}

// What comes after a port was lost is of its successor.
func TestSettleServed(t *testing.T) {
	ap, end := netip.MustParseAddrPort, time.Unix(1790000000, 0)
	lost := []triggers.Loss{{Addr: ap("192.0.2.1:81"), Until: end}, {Addr: ap("192.0.2.1:80"), Until: end}}
	answer := &evidence.Segment{Time: end.Add(time.Millisecond), Src: ap("192.0.2.1:80"), Dst: ap("192.0.2.9:4000"), PayloadBytes: 5}
	had, lost := settleServed(nil, lost, evidence.Sent, answer)
	if len(had) != 0 || len(lost) != 2 {
		t.Errorf("after its end: had %v, lost %v", had, lost)
	}
	answer.Time = end
	had, lost = settleServed(nil, lost, evidence.Sent, answer)
	if len(had) != 1 || had[0].Port() != 80 || len(lost) != 1 || lost[0].Addr.Port() != 81 {
		t.Errorf("had %v, lost %v", had, lost)
	}
}

// All of /proc is walked through for new listeners and after a death, and not too
// often.
func TestOwnersWalkSeldom(t *testing.T) {
	now, walks := time.Unix(1790000000, 0), [][]uint32{}
	holds := map[uint32]*evidence.Owner{1: {PID: 10}, 2: {PID: 1}}
	living := map[int]bool{10: true, 11: true}
	walk := newOwnerWalk(func(_ context.Context, inodes []uint32) (map[uint32]*evidence.Owner, error) {
		slices.Sort(inodes)
		walks = append(walks, inodes)
		found := map[uint32]*evidence.Owner{}
		for _, n := range inodes {
			if holds[n] != nil {
				found[n] = holds[n]
			}
		}
		now = now.Add(10 * time.Millisecond) // so that 20 s must pass
		return found, nil
	})
	walk.now = func() time.Time { return now }
	o := newOwners(walk)
	o.alive = func(pid int) bool { return living[pid] }
	name := func(inodes ...uint32) (pids []int) {
		var all []evidence.Socket
		for _, n := range inodes {
			all = append(all, evidence.Socket{Inode: n, SendQueue: 8})
		}
		o.name(all)
		for i := range all {
			if all[i].Owner == nil {
				pids = append(pids, 0)
				continue
			}
			pids = append(pids, all[i].Owner.PID)
		}
		walk.walk()
		now = now.Add(time.Second)
		return pids
	}
	for i, want := range [][]int{{0, 0}, {10, 0}, {10, 0}} {
		if got := name(1, 2); !slices.Equal(got, want) {
			t.Errorf("second %d: %v, want %v", i, got, want)
		}
	}
	now = now.Add(20 * time.Second)
	holds[2] = &evidence.Owner{PID: 11} // what the service manager kept is used now
	name(1, 2)
	if got := name(1, 2); !slices.Equal(got, []int{10, 11}) {
		t.Errorf("the service behind a socket of the manager: %v", got)
	}
	living[10], holds[1] = false, &evidence.Owner{PID: 12}
	if got := name(1, 2); !slices.Equal(got, []int{0, 11}) {
		t.Errorf("after a death: %v", got)
	}
	now = now.Add(20 * time.Second)
	living[12] = true
	name(1, 2)
	if got := name(1, 2); !slices.Equal(got, []int{12, 11}) {
		t.Errorf("and later: %v", got)
	}
	name()
	if len(o.known) != 0 {
		t.Errorf("sockets that are gone are remembered: %v", o.known)
	}
	// In vain it is walked ever more seldom, unless there is something new.
	holds = nil
	for range 1000 {
		name(3)
	}
	name(3, 4)
	n := len(walks)
	if walks = walks[:3]; n < 8 || n > 12 {
		t.Errorf("%d walks in vain in 1000 s", n-3)
	}
	if diff := cmp.Diff([][]uint32{{1, 2}, {2}, {1}}, walks); diff != "" {
		t.Errorf("walks (-want +got):\n%s", diff)
	}
}

// service is a program of its own that listens and answers each line, so that it has
// an owner who can die. Port 0 is any.
func service(t *testing.T, ns *netlab.NS, port string) (addr string, cmd *exec.Cmd) {
	t.Helper()
	cmd = ns.Command(context.Background(), "perl", "-MIO::Socket::INET", "-e", `$|=1;
		$l=IO::Socket::INET->new(LocalAddr=>"127.0.0.1:$ARGV[0]",Listen=>8,ReuseAddr=>1) or die; print $l->sockport,"\n";
		while($c=$l->accept){ $c->autoflush(1); while(<$c>){ print $c $_ } }`, port)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	port, err = bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return net.JoinHostPort("127.0.0.1", strings.TrimSpace(port)), cmd
}

func talk(t *testing.T, ns *netlab.NS, addr string) {
	t.Helper()
	c := ns.Dial(t, addr)
	defer c.Close()
	line := make([]byte, 6)
	if _, err := c.Write([]byte("hello\n")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, line); err != nil {
		t.Fatal(err)
	}
}

// Of two services that die, the one that served fires, wherever it is; the idle one
// wakes nobody, though its successor serves at once.
func TestRestarts(t *testing.T) {
	netlab.NeedRoot(t)
	t.Parallel()
	own, blue, dir := netlab.NewNS(t), netlab.NewNS(t), t.TempDir()
	config := filepath.Join(dir, "config.yaml")
	text := fmt.Sprintf("recorder: {namespaces: [%s]}\nwindow: {before: 2s, after: 1s, max: 2s}\ntriggers:\n  cool_down: 0s\n  restarts: {age: 1s, recent: 5m}\n", pathOf(blue.Name))
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	type pair struct {
		ns             *netlab.NS
		idle, busy     string
		idler, servant *exec.Cmd
	}
	var pairs []*pair
	for _, ns := range []*netlab.NS{own, blue} {
		ns.IP(t, "link", "set", "lo", "up")
		x := &pair{ns: ns}
		x.idle, x.idler = service(t, ns, "0")
		x.busy, x.servant = service(t, ns, "0")
		pairs = append(pairs, x)
	}
	p := startDaemon(t, own, dir, nil, "--config", config)
	for _, x := range pairs {
		talk(t, x.ns, x.busy)
	}
	pause(t, 8*time.Second) // the age of the ports, and time to find their owners
	for i, x := range pairs {
		_, _ = x.idler.Process.Kill(), x.idler.Wait()
		_, port, err := net.SplitHostPort(x.idle)
		if err != nil {
			t.Fatal(err)
		}
		service(t, x.ns, port)
		talk(t, x.ns, x.idle)
		pause(t, 5*time.Second)
		_, _ = x.servant.Process.Kill(), x.servant.Wait()
		list := p.awaitIncidents(t, i+1, 30*time.Second)
		inc, err := p.client().Incident(t.Context(), list[0].ID)
		if err != nil {
			t.Fatal(err)
		}
		f := inc.Firings[0]
		label := ""
		if x.ns == blue {
			label = blue.Name
		}
		if f.Trigger != "restarts" || f.Namespace != label || !strings.Contains(f.Reason, "nobody listens on "+x.busy+" any more: it was ") ||
			!strings.Contains(f.Reason, fmt.Sprintf("pid %d perl", x.servant.Process.Pid)) || strings.Contains(f.Reason, x.idle) {
			t.Errorf("firing %+v", f)
		}
	}
	p.stop(t)
}
