package pcapng

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tcpcoroner/evidence"
)

// tool finds a program of the reader's side: without it the format is proved
// against ourselves only, which continuous integration does not accept.
func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		refuse(t, name+" is not installed: apt-get install tshark tcpdump")
	}
	return path
}

// refuse skips, or fails in continuous integration.
func refuse(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// harmless is what the tools say of any file. tcpdump looks interface names up on
// the host that reads, of every cooked v2 file.
var harmless = []string{"Running as user", "reading from file", "Warning: interface names might be incorrect"}

// run runs a tool; anything it says beside the answer is a complaint about the file.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), tool(t, name), args...)
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir(), "TZ=UTC", "LC_ALL=C")
	var out, complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaints
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, &complaints)
	}
	for line := range strings.Lines(complaints.String()) {
		if !slices.ContainsFunc(harmless, func(h string) bool { return strings.HasPrefix(line, h) }) {
			t.Errorf("%s %q complains: %s", name, args, line)
		}
	}
	return out.String()
}

func sampleFile(t *testing.T) string {
	t.Helper()
	inc, win := sample(t)
	path := filepath.Join(t.TempDir(), "window.pcapng")
	if err := os.WriteFile(path, written(t, inc, win), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestTshark(t *testing.T) {
	file := sampleFile(t)
	fields := func(filter string, names ...string) string {
		args := []string{"-n", "-r", file, "-Y", filter, "-T", "fields", "-E", "separator=|"}
		for _, n := range names {
			args = append(args, "-e", n)
		}
		return run(t, "tshark", args...)
	}
	tests := []struct {
		name, got, want string
	}{
		{
			"all resets", fields("tcp.flags.reset==1", "frame.number", "frame.interface_name", "sll.pkttype", "ip.src", "ipv6.src", "tcp.len"),
			"5|eth0|4|10.0.0.2||64\n9|eth0|0||fd00::2|0\n10|br0|0||fd00::2|0\n11|eth0@blue|0||fd00::2|0\n",
		},
		{
			"metadata", fields("frame.number <= 7", "frame.number", "sll.ifindex", "sll.hatype", "sll.pkttype", "sll.src.eth", "frame.len", "frame.time_epoch"),
			"1|2|1|0|02:00:00:00:00:01|72|1740795180.123456789\n2|2|1|4|02:00:00:00:00:01|72|1740795180.133456789\n" +
				"3|2|1|0|02:00:00:00:00:01|110|1740795180.143456789\n4|2|1|3|02:00:00:00:00:01|138|1740795180.153456789\n" +
				"5|2|1|4|02:00:00:00:00:01|136|1740795180.163456789\n6|1|772|0|00:00:00:00:00:00|72|1740795180.173456789\n" +
				"7|7|65534|0||72|1740795180.183456789\n",
		},
		{
			"vlan", fields("vlan || ieee8021ad", "frame.number", "vlan.id", "vlan.priority", "ieee8021ad.id", "ipv6.flow"),
			"8|100|1||0x012345\n9|200|0|100|0x012345\n",
		},
		{"only the first of several sightings", fields("tcp.flags.reset==1 && sll.unused[-2:1] == 00", "frame.number"), "5\n9\n11\n"},
		{"a link without addresses", fields("frame.number == 7 && sll.unused[-2:1] == 00", "frame.number"), "7\n"},
		{"direction", fields("frame.packet_flags_direction == 2", "frame.number"), "2\n5\n"},
		{"comments", fields(`frame.comment contains "app aborted"`, "frame.number"), "5\n"},
		{"lost packets", fields("frame.drop_count", "frame.number", "frame.drop_count"), "4|14\n"},
		{"malformed", fields("_ws.malformed && !icmp", "frame.number"), ""},
	}
	for _, test := range tests {
		if diff := cmp.Diff(test.want, test.got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.name, diff)
		}
	}
}

func TestCapinfos(t *testing.T) {
	got := run(t, "capinfos", "-M", sampleFile(t))
	for _, want := range []string{
		"File type:           pcapng", "File encapsulation:  linux-sll2", "File timestamp precision:  nanoseconds (9)",
		"Number of packets:   11", "Capture application: tcpcoroner 1.0", "verdict: app aborted the connection [proven]",
		"Number of interfaces in file: 5", "Name = eth0", "Strict time order:   True",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("capinfos does not say %q:\n%s", want, got)
		}
	}
	empty := filepath.Join(t.TempDir(), "empty.pcapng")
	if err := os.WriteFile(empty, written(t, nil, &evidence.Window{}), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := run(t, "capinfos", "-M", empty); !strings.Contains(got, "Number of packets:   0") {
		t.Errorf("an empty window: %s", got)
	}
}

func TestTcpdumpReads(t *testing.T) {
	got := run(t, "tcpdump", "-n", "-r", sampleFile(t), "tcp[tcpflags] & tcp-rst != 0")
	if strings.Count(got, "Flags [R") != 1 || !strings.Contains(got, "10.0.0.2.8080 > 10.0.0.1.40000") {
		t.Errorf("tcpdump shows\n%s", got)
	}
}

// TestReadTcpdump reads what tcpdump captured of a refused connection on loopback.
func TestReadTcpdump(t *testing.T) {
	if os.Geteuid() != 0 {
		refuse(t, "capturing needs root")
	}
	for _, args := range [][]string{{"-i", "lo"}, {"-i", "any", "-y", "LINUX_SLL2"}, {"-i", "any", "-y", "LINUX_SLL"}} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			port, file := closedPort(t), filepath.Join(t.TempDir(), "lo.pcap")
			refused(t, port, append(args, "-n", "-U", "--immediate-mode", "-Z", "root", "-w", file, "tcp port "+port)...)
			f, err := os.Open(file)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			win, err := Read(f)
			if err != nil {
				t.Fatal(err)
			}
			if win.PacketCount != 2 || win.ResetCount != 1 {
				t.Fatalf("%d packets, %d resets, want the SYN and its RST", win.PacketCount, win.ResetCount)
			}
			for i, p := range win.Packets {
				if p.Direction != evidence.Loopback || p.LinkType != arphrdLoopback {
					t.Errorf("packet %d: %v on link type %d", i+1, p.Direction, p.LinkType)
				}
			}
		})
	}
}

func closedPort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// refused connects to a closed port while tcpdump captures, and waits until the
// RST is in its file.
func refused(t *testing.T, port string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, tool(t, "tcpdump"), append([]string{"-c", "2"}, args...)...)
	said, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	awaitListening(t, said)
	if c, err := net.Dial("tcp", "127.0.0.1:"+port); err == nil {
		c.Close()
		t.Errorf("port %s accepts", port)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("tcpdump: %v", err)
	}
}

// awaitListening reads until tcpdump says that it captures.
func awaitListening(t *testing.T, said interface{ Read([]byte) (int, error) }) {
	t.Helper()
	var all []byte
	buf := make([]byte, 256)
	for !bytes.Contains(all, []byte("listening on")) {
		n, err := said.Read(buf)
		all = append(all, buf[:n]...)
		if err != nil {
			t.Fatalf("tcpdump said %q: %v", all, err)
		}
	}
}
