package report

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"tcpcoroner/evidence"
)

var update = flag.Bool("update", false, "write the golden files")

var (
	start = time.Date(2025, 3, 1, 1, 13, 0, 123456789, time.UTC)
	zone  = time.FixedZone("CET", 3600)
	app   = &evidence.Owner{PID: 4711, Comm: "app", Unit: "app.service"}
)

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v: write it with go test -update", err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", name, diff)
	}
}

func judged(t *testing.T, c evidence.Claim, findings ...evidence.Finding) evidence.Verdict {
	t.Helper()
	if findings == nil {
		findings = []evidence.Finding{{Kind: evidence.KindPacket, Text: "the packets show it"}}
	}
	v, err := evidence.NewVerdict(c, findings...)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func addr(format string, args ...any) netip.AddrPort {
	return netip.MustParseAddrPort(fmt.Sprintf(format, args...))
}

func resetFlow(i int, v evidence.Verdict, o *evidence.Owner) evidence.Flow {
	f := evidence.Flow{
		ID: fmt.Sprintf("f%d", i), Client: addr("10.0.0.%d:%d", i, 40000+i), Server: addr("10.0.1.1:8080"), InitiatorSeen: true,
		First: start, Packets: 7, ClientBytes: 812, ServerBytes: 3 << 20, Owner: o, Verdict: v, Resets: 1,
	}
	f.Reset = &evidence.Reset{
		Time: start.Add(time.Duration(i) * 37 * time.Millisecond), Packet: 10 * i, From: f.Server,
		Direction: evidence.Sent, Interface: "eth0", Flags: "RST_ACK", TTL: 64,
	}
	return f
}

// storm is an incident as large as they come.
func storm(t *testing.T) *evidence.Incident {
	abort := judged(t, evidence.Claim{
		Origin: evidence.OriginLocalProcess, Mechanism: evidence.MechanismActiveAbort, Layer: evidence.LayerApplication, Confidence: evidence.Proven,
		Sentence: "This host's app (pid 4711, app.service) aborted 47 connections with unread data in their receive queues.",
		Settle:   "the application's own log at 02:13:00, or a stack trace of its close() call",
	},
		evidence.Finding{Kind: evidence.KindPacket, Text: "47 of 47 resets bear the flow's own acknowledgement, a timestamp option and the IP ID after the socket's last", Source: "net/ipv4/tcp_output.c tcp_send_active_reset", Packets: []int{10, 20, 30, 40, 50, 60, 70, 80}},
		evidence.Finding{Kind: evidence.KindCounter, Text: "TCPAbortOnClose rose by 47 within the window"},
	)
	doubt := judged(t, evidence.Claim{Origin: evidence.OriginPeerHost, Mechanism: evidence.MechanismUnknown, Confidence: evidence.Likely, Sentence: "The peer reset the connection."},
		evidence.Finding{Kind: evidence.KindPacket, Text: "it came in under the peer's address"},
		evidence.Finding{Kind: evidence.KindPacket, Text: "its TTL is 3 off", Against: true})
	benign := judged(t, evidence.Claim{Origin: evidence.OriginLocalKernel, Mechanism: evidence.MechanismAfterFIN, Confidence: evidence.Likely, Benign: true, Sentence: "Data came after a complete FIN exchange."})
	inc := &evidence.Incident{
		Schema: evidence.SchemaIncident, ID: "01JNA5Q0Z3X4Y5W6V7T8S9R0QP", TraceID: "4bf92f3577b34da6a3ce929d0e0e4736", Version: "1.0",
		Host: evidence.Host{Name: "web1", Kernel: "6.8.0-50-generic"}, Time: start, Closed: start.Add(10 * time.Second),
		Firings: []evidence.Firing{{
			Trigger: "resets", Time: start, Expression: "resets in 10 s >= 20 and >= 4 x baseline", Value: 61, Threshold: 20, Baseline: 1.5,
			Unit: "{reset}", Reason: "61 resets in 10 s: the threshold is 20, usual are 1.5",
		}, {
			Trigger: "listen", Time: start.Add(time.Second), Expression: "ListenOverflows or ListenDrops in 10 s >= 5", Value: 12, Threshold: 5,
			Reason:    "listen queue overflow: 12 in 10 s; 0.0.0.0:8080 (pid 4711 app) has 129 of 128 in its accept queue",
			Listeners: []evidence.Socket{{State: "listen", Local: addr("0.0.0.0:8080"), RecvQueue: 129, SendQueue: 128, Owner: app}},
		}},
		Joined: 3,
		Window: evidence.Window{
			From: start.Add(-60 * time.Second), To: start.Add(10 * time.Second), HeldFrom: start.Add(-48200 * time.Millisecond),
			Interfaces:  []evidence.Interface{{Index: 1, Name: "lo"}, {Index: 2, Name: "eth0"}},
			PacketCount: 1234567, ResetCount: 61,
			Gaps: []evidence.Gap{{From: start.Add(-time.Second), To: start, Lost: 1400, Reason: "the ring was full"}},
		},
		Before:     evidence.Counters{Time: start.Add(-60 * time.Second), Values: map[string]uint64{"Tcp.OutRsts": 100, "TcpExt.TCPAbortOnClose": 5, "TcpExt.ListenDrops": 9}},
		FlowsTotal: 18930, FlowsImplicated: 2048, Verdict: abort,
	}
	for i := 1; i <= 8; i++ {
		inc.Flows = append(inc.Flows, resetFlow(i, abort, app))
	}
	inc.Flows = append(inc.Flows, resetFlow(9, benign, nil), resetFlow(10, doubt, &evidence.Owner{PID: 1, Comm: "x\x1b[31m\tevil\n"}))
	inc.Flows[9].Reset.From, inc.Flows[9].Reset.Direction = inc.Flows[9].Client, evidence.Received
	inc.Flows[0].Timeline = []evidence.Step{
		{Packet: 3, Flags: "SYN", Line: "    0.0 ms  <  SYN  seq 0"},
		{Packet: 4, Flags: "SYN_ACK", Line: "    0.1 ms  >  SYN_ACK  seq 0 ack 1"},
		{Packet: 9, Flags: "PSH_ACK", Line: "    3.2 ms  <  PSH_ACK  812 bytes"},
		{Packet: 10, Flags: "RST_ACK", Line: "   37.0 ms  >  RST_ACK  seq 1 ack 1  812 bytes were never read"},
	}
	look(inc)
	return inc
}

// look gives an incident its two snapshots.
func look(inc *evidence.Incident) {
	inc.At = &evidence.Snapshot{
		Taken:    start,
		Counters: evidence.Counters{Time: start, Values: map[string]uint64{"Tcp.OutRsts": 140, "TcpExt.TCPAbortOnClose": 50, "TcpExt.ListenDrops": 9}},
		Sockets: []evidence.Socket{
			{State: "listen", Local: addr("0.0.0.0:8080"), RecvQueue: 129, SendQueue: 128, Owner: app},
			{State: "listen", Local: addr("[::]:22"), RecvQueue: 0, SendQueue: 128},
		},
		Conntrack: &evidence.Conntrack{
			Count: 261000, Max: 262144, Drop: 12, Invalid: 4,
			Sampled:    10000,
			TopTalkers: []evidence.Talker{{Source: netip.MustParseAddr("10.0.0.77"), Destination: addr("10.0.1.1:8080"), Protocol: "tcp", Entries: 9100}},
		},
		Interfaces: []evidence.InterfaceStats{{Interface: evidence.Interface{Index: 2, Name: "eth0"}, RxDropped: 1200}, {Interface: evidence.Interface{Index: 1, Name: "lo"}}},
		Missing:    []evidence.Missing{{What: "kernel reset events", Why: "load eBPF program: operation not permitted", Fix: "give the service CAP_BPF and CAP_PERFMON, or run it as root"}},
	}
	inc.After = &evidence.Snapshot{
		Taken:      start.Add(10 * time.Second),
		Counters:   evidence.Counters{Time: start.Add(10 * time.Second), Values: map[string]uint64{"Tcp.OutRsts": 161, "TcpExt.TCPAbortOnClose": 52, "TcpExt.ListenDrops": 9}},
		Interfaces: []evidence.InterfaceStats{{Interface: evidence.Interface{Index: 2, Name: "eth0"}, RxDropped: 1277, RxMissed: 3}},
	}
}

// flooded is an incident with more flows than can be counted, of several
// namespaces, recorded by a host that had to save its CPU.
func flooded(t *testing.T) *evidence.Incident {
	inc := storm(t)
	w := &inc.Window
	w.FlowsAtLeast, w.Cut = true, true
	inc.FlowsTotal, inc.FlowsImplicated = 36864, 36864
	w.Namespaces = []evidence.Namespace{{Index: 1, Inode: 4026532456, Path: "/run/netns/blue"}, {Index: 2, Path: "/proc/812/ns/net"}}
	w.Interfaces = append(w.Interfaces, evidence.Interface{Namespace: 1, Index: 2, Name: "eth0"}, evidence.Interface{Namespace: 2, Index: 2, Name: "eth0"})
	w.Gaps = nil
	for i := range 7 {
		w.Gaps = append(w.Gaps, evidence.Gap{From: start.Add(time.Duration(i) * time.Second), To: start.Add(time.Duration(i+1) * time.Second),
			Reason: "the CPU budget was used up: only packets that open and end connections were kept"})
	}
	w.Gaps[1].Lost = 12
	inc.Flows[0].Namespace, inc.Flows[0].Owner = 1, nil
	inc.Flows[1].Namespace, inc.Flows[1].Owner = 2, nil
	return inc
}

// quiet is an incident of which next to nothing is known.
func quiet() *evidence.Incident {
	return &evidence.Incident{
		ID: "01JNA5Q0Z3X4Y5W6V7T8S9R0QP", Host: evidence.Host{Name: "web1", Kernel: "6.8.0"}, Time: start, Closed: start,
		Firings: []evidence.Firing{{Trigger: "manual", Reason: "users complain"}},
		Window:  evidence.Window{From: start.Add(-time.Minute), To: start},
		Verdict: evidence.Unknown("No reset was seen.", "a capture at the peer"),
	}
}

func TestText(t *testing.T) {
	for name, inc := range map[string]*evidence.Incident{"storm.txt": storm(t), "flooded.txt": flooded(t), "quiet.txt": quiet(), "zero.txt": {}} {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			if err := Text(&b, inc, zone); err != nil {
				t.Fatal(err)
			}
			golden(t, name, b.Bytes())
			terminal(t, b.String())
		})
	}
}

// terminal checks that a text fits and does nothing to the terminal.
func terminal(t *testing.T, text string) {
	t.Helper()
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if n := utf8.RuneCountInString(line); n > width {
			t.Errorf("%d columns: %s", n, line)
		}
		if strings.ContainsFunc(line, func(r rune) bool { return r < ' ' || r == 0x7f }) || line != strings.TrimRight(line, " ") {
			t.Errorf("control character or blank at the end: %q", line)
		}
	}
}

func TestList(t *testing.T) {
	for name, all := range map[string][]evidence.Summary{
		"list.txt": {storm(t).Summary(), quiet().Summary(), {ID: "x", Time: start, Trigger: "resets", Verdict: "Port scan.", Confidence: evidence.Likely, Benign: true}},
		"none.txt": nil,
	} {
		var b bytes.Buffer
		if err := List(&b, all, zone); err != nil {
			t.Fatal(err)
		}
		golden(t, name, b.Bytes())
	}
}

func TestGrouped(t *testing.T) {
	one := judged(t, evidence.Claim{Origin: evidence.OriginLocalKernel, Confidence: evidence.Likely, Sentence: "3 refused"})
	alike := judged(t, evidence.Claim{Origin: evidence.OriginLocalKernel, Confidence: evidence.Likely, Sentence: "4 refused"})
	benign := judged(t, evidence.Claim{Origin: evidence.OriginLocalKernel, Confidence: evidence.Likely, Sentence: "scan", Benign: true})
	got := grouped([]evidence.Flow{{Verdict: benign}, {Verdict: benign}, {Verdict: benign}, {Verdict: one}, {Verdict: alike}, {}})
	var sizes []int
	for _, g := range got {
		sizes = append(sizes, len(g.flows))
	}
	if diff := cmp.Diff([]int{2, 1, 3}, sizes); diff != "" || !got[2].claim.Benign {
		t.Errorf("groups (-want +got):\n%s", diff)
	}
}

func TestManyGroupsAndFlows(t *testing.T) {
	inc := &evidence.Incident{FlowsImplicated: 500}
	for i := range 12 {
		v := judged(t, evidence.Claim{Origin: evidence.Origin(fmt.Sprint("o", i)), Confidence: evidence.Likely, Sentence: fmt.Sprint("kind ", i)})
		for range 40 {
			inc.Flows = append(inc.Flows, resetFlow(1, v, nil))
		}
	}
	var b bytes.Buffer
	if err := Text(&b, inc, zone); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(b.String(), "  f1 "); n != maxExemplars {
		t.Errorf("%d exemplars, want %d", n, maxExemplars)
	}
	for _, want := range []string{"and 2 kinds more", "20 more are in the capture only"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, &b)
		}
	}
}

type closedPipe struct{}

var errPipe = errors.New("broken pipe")

func (closedPipe) Write([]byte) (int, error) { return 0, errPipe }

func TestWriteErrors(t *testing.T) {
	if err := Text(closedPipe{}, quiet(), zone); !errors.Is(err, errPipe) {
		t.Errorf("Text: %v", err)
	}
	if err := List(closedPipe{}, nil, zone); !errors.Is(err, errPipe) {
		t.Errorf("List: %v", err)
	}
}
