package main

import (
	"context"
	"io/fs"
	"math"
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
	"tcpcoroner/exporter/pcapng"
	"tcpcoroner/recorder"
)

func TestParseLocality(t *testing.T) {
	got, err := parseLocality("192.0.2.1, 2001:db8::/64,", "02:00:00:00:00:01")
	want := locality{[]netip.Prefix{netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("2001:db8::/64")}, [][6]byte{{2, 0, 0, 0, 0, 1}}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(locality{}), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	for _, tt := range []struct{ addresses, macs, want string }{
		{"here", "", `--local: "here" is not a network: write it as`},
		{"", "02:00", `--local-mac: "02:00" is not a link-layer address: write it as`},
		{"", "02:00:00:00:00:00:00:01", `is not a link-layer address`},
	} {
		if _, err := parseLocality(tt.addresses, tt.macs); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q %q: %v, want %q", tt.addresses, tt.macs, err, tt.want)
		}
	}
}

// ip4 is a TCP segment with nothing but its addresses.
func ip4(src, dst string) []byte {
	b := make([]byte, 40)
	b[0], b[3], b[9], b[32] = 0x45, 40, 6, 0x50
	s, d := netip.MustParseAddr(src).As4(), netip.MustParseAddr(dst).As4()
	copy(b[12:], s[:])
	copy(b[16:], d[:])
	return b
}

func TestOrient(t *testing.T) {
	mac, other := [6]byte{2, 0, 0, 0, 0, 1}, [6]byte{2, 0, 0, 0, 0, 2}
	byMAC := locality{macs: [][6]byte{mac}}
	byAddress := locality{networks: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("192.0.2.9/32")}}
	both := locality{byAddress.networks, byMAC.macs}
	in, out := ip4("192.0.2.2", "192.0.2.1"), ip4("192.0.2.1", "192.0.2.2")
	tests := []struct {
		name string
		l    locality
		p    evidence.Packet
		want evidence.Direction
	}{
		{"told already", byMAC, evidence.Packet{SrcMAC: mac, Header: out, Direction: evidence.Received}, evidence.Received},
		{"local mac", byMAC, evidence.Packet{SrcMAC: mac, Header: in}, evidence.Sent},
		{"another mac", byMAC, evidence.Packet{SrcMAC: other, Header: out}, evidence.Received},
		{"no mac, no addresses", byMAC, evidence.Packet{Header: out}, evidence.DirectionUnknown},
		{"no mac, but addresses", both, evidence.Packet{Header: out}, evidence.Sent},
		{"mac before addresses", both, evidence.Packet{SrcMAC: other, Header: out}, evidence.Received},
		{"local sender", byAddress, evidence.Packet{Header: out}, evidence.Sent},
		{"local receiver", byAddress, evidence.Packet{Header: in}, evidence.Received},
		{"both local", byAddress, evidence.Packet{Header: ip4("192.0.2.1", "192.0.2.9")}, evidence.DirectionUnknown},
		{"none local", byAddress, evidence.Packet{Header: ip4("192.0.2.2", "192.0.2.3")}, evidence.DirectionUnknown},
		{"damaged", byAddress, evidence.Packet{Header: []byte{0x45}}, evidence.DirectionUnknown},
		{"nothing said", locality{}, evidence.Packet{SrcMAC: mac, Header: out}, evidence.DirectionUnknown},
	}
	for _, tt := range tests {
		tt.p.WireBytes = uint32(len(tt.p.Header))
		packets := []evidence.Packet{tt.p}
		known := tt.l.orient(packets)
		if packets[0].Direction != tt.want || (known == 1) != (tt.want != evidence.DirectionUnknown) {
			t.Errorf("%s: %v, %d known, want %v", tt.name, packets[0].Direction, known, tt.want)
		}
	}
}

// Files that number their interfaces alike keep them apart; a file alone keeps its
// own numbers.
func TestMerger(t *testing.T) {
	file := func(name string, nanos ...int64) *evidence.Window {
		w := &evidence.Window{Interfaces: []evidence.Interface{{Index: 1, Name: name}}}
		for _, n := range nanos {
			w.Packets = append(w.Packets, evidence.Packet{Nanos: n, Interface: 1})
		}
		return w
	}
	var m merger
	m.add(file("if1", 10, 30), "/tmp/host.eth0.pcap", true)
	m.add(file("ens3", 20, 40), "/tmp/b.pcapng.gz", true)
	w := m.window()
	var got []uint32
	for _, p := range w.Packets {
		got = append(got, p.Interface)
	}
	want := []evidence.Interface{{Index: 1, Name: "host.eth0"}, {Index: 2, Name: "ens3"}}
	if !slices.Equal(got, []uint32{1, 2, 1, 2}) || !slices.Equal(w.Interfaces, want) {
		t.Errorf("packets on %v of %v", got, w.Interfaces)
	}
	if !w.From.Equal(time.Unix(0, 10)) || !w.To.Equal(time.Unix(0, 40)) {
		t.Errorf("from %v to %v", w.From, w.To)
	}
	m = merger{}
	m.add(&evidence.Window{Interfaces: []evidence.Interface{{Index: 7, Name: "eth0"}}}, "x.pcap", false)
	if w := m.window(); w.Interfaces[0].Index != 7 {
		t.Errorf("interfaces %v", w.Interfaces)
	}
}

// sink takes packets and ticks.
type sink struct{ packets, ticks int }

func (s *sink) Add(*recorder.Meta, []byte)   { s.packets++ }
func (s *sink) Count(*recorder.Meta, []byte) {}
func (s *sink) Store(*recorder.Meta, []byte) {}
func (s *sink) Skip(uint64, int64, int64)    {}
func (s *sink) Tick() recorder.Order         { s.ticks++; return recorder.Order{} }

// Triggers see the seconds of the packets, and not every second of a long silence.
func TestTimed(t *testing.T) {
	second := int64(time.Second)
	var seconds []int64
	var s sink
	source := &timed{second: func(now time.Time) { seconds = append(seconds, now.UnixNano()/second) }}
	for _, at := range []int64{100 * second, 100*second + 1, 103 * second, 9000 * second, 9000*second + 5} {
		source.Packets = append(source.Packets, evidence.Packet{Nanos: at})
	}
	if err := source.Run(t.Context(), &s); err != nil {
		t.Fatal(err)
	}
	if s.packets != 5 || !slices.Equal(seconds, []int64{101, 102, 103, 104, 9001}) {
		t.Errorf("%d packets, seconds %v", s.packets, seconds)
	}
	// A damaged file may hold any time.
	source.Packets = []evidence.Packet{{Nanos: math.MinInt64}, {Nanos: 0}, {Nanos: 1e9}, {Nanos: math.MaxInt64}}
	seconds = nil
	if err := source.Run(t.Context(), &s); err != nil || len(seconds) != 4 {
		t.Errorf("%d seconds: %v", len(seconds), err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := source.Run(ctx, &s); err == nil {
		t.Error("a replay that was cut short is taken for whole")
	}
}

func TestReplayBadInput(t *testing.T) {
	dir := t.TempDir()
	text := filepath.Join(dir, "text.pcap")
	if err := os.WriteFile(text, []byte("this is no capture file"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		args []string
		code int
		want string
	}{
		{"no file", nil, exitUsage, "requires at least 1 arg"},
		{"missing", []string{filepath.Join(dir, "none.pcap")}, exitError, "no such file"},
		{"text", []string{text}, exitError, "text.pcap: read capture: not a pcapng or pcap file"},
		{"format", []string{text, "--format", "yaml"}, exitUsage, "--format is"},
		{"local", []string{text, "--local", "me"}, exitUsage, "--local:"},
		{"roles", []string{text, "--roles", text}, exitUsage, "roles " + text},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, errs, code := cli(t, append([]string{"replay"}, tt.args...)...)
			if code != tt.code || !strings.Contains(errs, tt.want) {
				t.Errorf("exit %d, want %d: %s, want %q", code, tt.code, errs, tt.want)
			}
		})
	}
}

// foreignCaptures are those that come with modules of the build.
func foreignCaptures(t *testing.T) (files []string) {
	t.Helper()
	for _, module := range []string{"github.com/gopacket/gopacket", "github.com/google/gopacket"} {
		out, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", module).Output()
		if err != nil {
			t.Skipf("go list -m %s: %v", module, err)
		}
		err = filepath.WalkDir(strings.TrimSpace(string(out)), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() && slices.Contains([]string{".pcap", ".pcapng", ".cap"}, filepath.Ext(path)) {
				files = append(files, path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return files
}

// Captures that are not ours are judged or refused, and blame nobody for certain.
func TestReplayForeignCaptures(t *testing.T) {
	files := foreignCaptures(t)
	if len(files) == 0 {
		t.Skip("no captures in the module cache")
	}
	judged := 0
	for _, file := range files {
		out, errs, code := cli(t, "replay", "--format", "json", file)
		switch {
		case code == exitOK || code == exitError && out != "":
			judged++
		case code != exitError || !strings.Contains(errs, "no TCP packet in"):
			t.Errorf("%s: exit %d: %s", file, code, errs)
			continue
		default:
			continue
		}
		for _, f := range readIncident(t, []byte(out)).Flows {
			if f.Verdict.Claim().Confidence == evidence.Proven {
				t.Errorf("%s: flow %v: packets alone prove nothing: %s", file, &f, f.Verdict)
			}
		}
	}
	t.Logf("%d of %d files hold TCP", judged, len(files))
}

// Whatever bytes a capture holds, it is judged.
func FuzzReplay(f *testing.F) {
	f.Add(smallCapture(f), false)
	f.Add(smallCapture(f), true)
	f.Fuzz(func(t *testing.T, file []byte, local bool) {
		w, _ := pcapng.Read(strings.NewReader(string(file)))
		if len(w.Packets) == 0 || len(w.Packets) > 1000 {
			return
		}
		here := locality{}
		if local {
			here.networks = []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32")}
		}
		here.orient(w.Packets)
		inc, err := rejudge(t.Context(), w, evidence.Host{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if len(inc.Flows) > inc.FlowsTotal {
			t.Errorf("%d flows of %d", len(inc.Flows), inc.FlowsTotal)
		}
	})
}

// smallCapture is a refused connection as pcapng.
func smallCapture(t testing.TB) []byte {
	t.Helper()
	syn, rst := ip4("192.0.2.2", "192.0.2.1"), ip4("192.0.2.1", "192.0.2.2")
	syn[33], rst[33] = byte(evidence.SYN), byte(evidence.RST|evidence.ACK)
	win := &evidence.Window{Packets: []evidence.Packet{
		{Nanos: 1e18, Interface: 1, LinkType: 1, WireBytes: 40, Header: syn}, {Nanos: 1e18 + 1, Interface: 1, LinkType: 1, WireBytes: 40, Header: rst}}}
	var b strings.Builder
	out, err := pcapng.NewWriter(&b, nil, win)
	if err != nil {
		t.Fatal(err)
	}
	for i := range win.Packets {
		if err := out.WritePacket(&win.Packets[i]); err != nil {
			t.Fatal(err)
		}
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	return []byte(b.String())
}
