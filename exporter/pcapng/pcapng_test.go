package pcapng

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"tcpcoroner/evidence"
)

var (
	start  = time.Date(2025, 3, 1, 2, 13, 0, 123456789, time.UTC)
	client = netip.MustParseAddrPort("10.0.0.1:40000")
	server = netip.MustParseAddrPort("10.0.0.2:8080")
	six    = netip.MustParseAddrPort("[fd00::1]:40000")
	six2   = netip.MustParseAddrPort("[fd00::2]:8080")
	secret = "GET /secret?token=hunter2 HTTP/1.1\r\n\r\n"
)

// bytesOf serialises layers with lengths and checksums.
func bytesOf(t testing.TB, all ...gopacket.SerializableLayer) []byte {
	t.Helper()
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, all...); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// segment makes a whole packet from the IP header on, payload included.
func segment(t testing.TB, src, dst netip.AddrPort, flags evidence.Flags, payload string) []byte {
	t.Helper()
	tcp := &layers.TCP{
		SrcPort: layers.TCPPort(src.Port()), DstPort: layers.TCPPort(dst.Port()), Seq: 100, Ack: 200, Window: 64,
		FIN: flags.Has(evidence.FIN), SYN: flags.Has(evidence.SYN), RST: flags.Has(evidence.RST),
		PSH: flags.Has(evidence.PSH), ACK: flags.Has(evidence.ACK),
		Options: []layers.TCPOption{{OptionType: layers.TCPOptionKindTimestamps, OptionLength: 10, OptionData: make([]byte, 8)}},
	}
	data := gopacket.Payload(payload)
	if src.Addr().Is4() {
		ip := &layers.IPv4{
			Version: 4, TTL: 64, Id: 7, Flags: layers.IPv4DontFragment, Protocol: layers.IPProtocolTCP,
			SrcIP: src.Addr().AsSlice(), DstIP: dst.Addr().AsSlice(),
		}
		_ = tcp.SetNetworkLayerForChecksum(ip)
		return bytesOf(t, ip, tcp, data)
	}
	ip := &layers.IPv6{
		Version: 6, HopLimit: 64, FlowLabel: 0x12345, NextHeader: layers.IPProtocolTCP,
		SrcIP: src.Addr().AsSlice(), DstIP: dst.Addr().AsSlice(),
	}
	_ = tcp.SetNetworkLayerForChecksum(ip)
	return bytesOf(t, ip, tcp, data)
}

func icmpError(t testing.TB, quoted []byte) []byte {
	ip := &layers.IPv4{
		Version: 4, TTL: 60, Protocol: layers.IPProtocolICMPv4,
		SrcIP: []byte{10, 0, 0, 9}, DstIP: client.Addr().AsSlice(),
	}
	return bytesOf(t, ip, &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(3, 4)}, gopacket.Payload(quoted))
}

// recorded makes a packet as the recorder keeps it.
func recorded(t testing.TB, millis int, d evidence.Direction, whole []byte) evidence.Packet {
	t.Helper()
	header, ok := headers(whole)
	if !ok {
		t.Fatalf("% x is nothing the recorder keeps", whole)
	}
	return evidence.Packet{
		Nanos: start.Add(time.Duration(millis) * time.Millisecond).UnixNano(), Interface: 2, LinkType: arphrdEther,
		WireBytes: uint32(len(whole)), Direction: d, SrcMAC: [6]byte{2, 0, 0, 0, 0, 1}, Header: header,
	}
}

// sample is an incident whose window has one packet of each shape. Packets 5 and
// 9 are RSTs, 10 and 11 are 9 again: on a bridge, and in another namespace.
func sample(t testing.TB) (*evidence.Incident, *evidence.Window) {
	t.Helper()
	data := segment(t, client, server, evidence.PSH|evidence.ACK, secret)
	w := &evidence.Window{
		From: start, To: start.Add(time.Second),
		Interfaces: []evidence.Interface{
			{Index: 2, Name: "eth0", LinkType: arphrdEther},
			{Index: 1, Name: "lo", LinkType: arphrdLoopback},
			{Index: 7, Name: "tun0", LinkType: arphrdNone},
			{Index: 9, Name: "br0", LinkType: arphrdEther},
			{Namespace: 3, Index: 2, Name: "eth0", LinkType: arphrdEther},
		},
		Namespaces: []evidence.Namespace{{Index: 3, Inode: 4026532456, Path: "/run/netns/blue"}},
		Gaps: []evidence.Gap{
			{From: start.Add(10 * time.Millisecond), To: start.Add(25 * time.Millisecond), Lost: 14, Reason: "ring full"},
			{From: start.Add(2 * time.Second), To: start.Add(3 * time.Second), Reason: "restart: uncounted"},
		},
		Packets: []evidence.Packet{
			recorded(t, 0, evidence.Received, segment(t, client, server, evidence.SYN, "")),
			recorded(t, 10, evidence.Sent, segment(t, server, client, evidence.SYN|evidence.ACK, "")),
			recorded(t, 20, evidence.Received, data),
			recorded(t, 30, evidence.Elsewhere, icmpError(t, data)),
			recorded(t, 40, evidence.Sent, segment(t, server, client, evidence.RST|evidence.ACK, "3BAA"+strings.Repeat("r", 60))),
			recorded(t, 50, evidence.Loopback, segment(t, client, server, evidence.ACK, "")),
			recorded(t, 60, evidence.DirectionUnknown, segment(t, client, server, evidence.ACK, "")),
			recorded(t, 70, evidence.Received, segment(t, six, six2, evidence.PSH|evidence.ACK, secret)),
			recorded(t, 80, evidence.Received, segment(t, six2, six, evidence.RST, "")),
			recorded(t, 80, evidence.Received, segment(t, six2, six, evidence.RST, "")),
			recorded(t, 80, evidence.Received, segment(t, six2, six, evidence.RST, "")),
		},
	}
	w.Packets[5].Interface, w.Packets[5].LinkType, w.Packets[5].SrcMAC = 1, arphrdLoopback, [6]byte{}
	w.Packets[6].Interface, w.Packets[6].LinkType, w.Packets[6].SrcMAC = 7, arphrdNone, [6]byte{}
	w.Packets[7].VLAN = [2]uint16{0x2064}
	w.Packets[8].VLAN = [2]uint16{100, 200}
	w.Packets[0].Checksum, w.Packets[1].Checksum = evidence.ChecksumTrusted, evidence.ChecksumPartial
	w.Packets[9].Interface, w.Packets[9].Sighting = 9, 1
	w.Packets[10].Namespace = 3
	for i := range w.Packets {
		w.Packets[i].Number = i + 1
	}
	w.PacketCount, w.ResetCount = len(w.Packets), 3
	return incident(t), w
}

func incident(t testing.TB) *evidence.Incident {
	t.Helper()
	v, err := evidence.NewVerdict(evidence.Claim{
		Origin: evidence.OriginLocalProcess, Mechanism: evidence.MechanismActiveAbort, Layer: evidence.LayerApplication,
		Confidence: evidence.Proven, Sentence: "app aborted the connection", Settle: "the application's log",
	},
		evidence.Finding{Kind: evidence.KindPacket, Text: "the RST has the socket's IP ID", Packets: []int{2, 5}},
		evidence.Finding{Kind: evidence.KindCounter, Text: "TCPAbortOnClose rose by 1"},
	)
	if err != nil {
		t.Fatal(err)
	}
	return &evidence.Incident{
		ID: "01JABCDEFGHJKMNPQRSTVWXYZ0", Version: "1.0", Host: evidence.Host{Name: "web1", Kernel: "6.8.0-50-generic"},
		Time: start, Firings: []evidence.Firing{{Trigger: "resets", Reason: "61 resets in 10 s"}}, Verdict: v,
		Flows: []evidence.Flow{{
			ID: "f1", Client: client, Server: server, Local: server, Verdict: v,
			Reset:       &evidence.Reset{Packet: 5, Time: start},
			Owner:       &evidence.Owner{PID: 4711, Comm: "app\x1b[31m", Unit: "app.service"},
			OwnerSource: "inet_diag at the firing",
		}, {ID: "f2", Verdict: v}},
	}
}

// write writes a window that holds all its packets.
func write(w io.Writer, inc *evidence.Incident, win *evidence.Window) error {
	f, err := NewWriter(w, inc, win)
	if err != nil {
		return err
	}
	for i := range win.Packets {
		if err := f.WritePacket(&win.Packets[i]); err != nil {
			return err
		}
	}
	return f.Close()
}

func written(t testing.TB, inc *evidence.Incident, win *evidence.Window) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := write(&b, inc, win); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestRoundTrip(t *testing.T) {
	inc, win := sample(t)
	got, err := Read(bytes.NewReader(written(t, inc, win)))
	if err != nil {
		t.Fatal(err)
	}
	want := *win
	want.From, want.To = win.Packets[0].Time(), win.Packets[len(win.Packets)-1].Time()
	opts := cmp.Options{cmpopts.EquateApproxTime(0)}
	if diff := cmp.Diff(want, got, opts); diff != "" {
		t.Errorf("window (-want +got):\n%s", diff)
	}
}

func TestComments(t *testing.T) {
	inc, win := sample(t)
	r, err := pcapgo.NewNgReader(bytes.NewReader(written(t, inc, win)), pcapgo.NgReaderOptions{WantMixedLinkType: true})
	if err != nil {
		t.Fatal(err)
	}
	info := r.SectionInfo()
	want := "incident 01JABCDEFGHJKMNPQRSTVWXYZ0 on web1 at 2025-03-01T02:13:00.123456789Z\n" +
		"verdict: app aborted the connection [proven]\ntrigger resets: 61 resets in 10 s\n" +
		"would settle it: the application's log\n11 packets; headers only, of a RST up to 64 bytes of payload\n" +
		"TCP checksums of segments with payload are not kept: 0 stands for them, and is no error\n" +
		"a packet that was seen on several interfaces stands once for each; only the first of each: sll.unused[-2:1] == 00\n" +
		"2 gaps, 14 packets lost on all interfaces together"
	if diff := cmp.Diff(want, info.Comment); diff != "" {
		t.Errorf("section comment (-want +got):\n%s", diff)
	}
	if info.Application != "tcpcoroner 1.0" || info.OS != "Linux 6.8.0-50-generic" {
		t.Errorf("section %+v", info)
	}
	comments := map[int][]string{}
	for n := 1; ; n++ {
		_, _, options, err := r.ReadPacketDataWithOptions()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if options.Comments != nil {
			comments[n] = options.Comments
		}
	}
	wantComments := map[int][]string{
		2: {"tcpcoroner: f1: the RST has the socket's IP ID"},
		4: {"tcpcoroner: gap from 2025-03-01T02:13:00.133456789Z to 2025-03-01T02:13:00.148456789Z lost 14: ring full"},
		5: {"tcpcoroner: f1: app aborted the connection [proven]; for: the RST has the socket's IP ID (packet); " +
			"for: TCPAbortOnClose rose by 1 (counter); owner: pid 4711 app [31m of app.service, known by inet_diag at the firing; " +
			"would settle it: the application's log"},
		11: {"tcpcoroner: gap from 2025-03-01T02:13:02.123456789Z to 2025-03-01T02:13:03.123456789Z lost 0: restart: uncounted"},
	}
	if diff := cmp.Diff(wantComments, comments); diff != "" {
		t.Errorf("comments (-want +got):\n%s", diff)
	}
}

// A recorder that kept too much must not leak through the file.
func TestNoPayload(t *testing.T) {
	data := segment(t, client, server, evidence.PSH|evidence.ACK, secret)
	reset := segment(t, client, server, evidence.RST, strings.Repeat("x", 64)+secret)
	udp := bytesOf(t, &layers.IPv4{Version: 4, TTL: 1, Protocol: layers.IPProtocolUDP, SrcIP: []byte{10, 0, 0, 1}, DstIP: []byte{10, 0, 0, 2}},
		gopacket.Payload("\x00\x01\x00\x02\x00\x30\x00\x00"+secret))
	fragment := bytes.Clone(data)
	fragment[7] = 0x10 // not the first: it holds payload only
	copy(fragment[20:], secret)
	tunnel := bytesOf(t, &layers.IPv4{Version: 4, TTL: 1, Protocol: layers.IPProtocolIPv4, SrcIP: []byte{10, 0, 0, 1}, DstIP: []byte{10, 0, 0, 2}},
		gopacket.Payload(data))
	win := &evidence.Window{}
	for _, whole := range [][]byte{data, reset, segment(t, six, six2, evidence.ACK, secret), udp, fragment, tunnel, icmpError(t, data), []byte("\x16\x03" + secret)} {
		win.Packets = append(win.Packets, evidence.Packet{Interface: 1, WireBytes: uint32(len(whole)), Header: whole})
	}
	file := written(t, nil, win)
	for _, word := range []string{"secret", "hunter2", "HTTP"} {
		if bytes.Contains(file, []byte(word)) {
			t.Errorf("the file holds %q", word)
		}
	}
	if !bytes.Contains(file, bytes.Repeat([]byte("x"), 64)) {
		t.Error("the payload of the RST is gone")
	}
	got, err := Read(bytes.NewReader(file))
	if err != nil || len(got.Packets) != len(win.Packets) {
		t.Errorf("%d packets of %d: the numbers shift: %v", len(got.Packets), len(win.Packets), err)
	}
}

func TestEmptyWindow(t *testing.T) {
	got, err := Read(bytes.NewReader(written(t, nil, &evidence.Window{})))
	if diff := cmp.Diff(evidence.Window{}, got); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
}

// capture writes a plain pcap as another program does.
func capture(t testing.TB, link layers.LinkType, frames ...[]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := pcapgo.NewWriterNanos(&b)
	if err := w.WriteFileHeader(65535, link); err != nil {
		t.Fatal(err)
	}
	for i, f := range frames {
		ci := gopacket.CaptureInfo{Timestamp: start.Add(time.Duration(i)), CaptureLength: len(f), Length: len(f)}
		if err := w.WritePacket(ci, f); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

func TestReadLinkTypes(t *testing.T) {
	data := segment(t, client, server, evidence.PSH|evidence.ACK, secret)
	reset := segment(t, client, server, evidence.RST, "")
	head, _ := headers(data)
	ether := "\x02\x00\x00\x00\x00\x02\x02\x00\x00\x00\x00\x01"
	sll := "\x00\x04\x00\x01\x00\x06\x02\x00\x00\x00\x00\x01\x00\x00"
	mac := [6]byte{2, 0, 0, 0, 0, 1}
	packet := func(index uint32, d evidence.Direction, link uint16, mac [6]byte, vlan ...uint16) evidence.Packet {
		p := evidence.Packet{
			Number: 1, Nanos: start.UnixNano(), Interface: index, WireBytes: uint32(len(data)),
			Direction: d, LinkType: link, SrcMAC: mac, Header: head,
		}
		copy(p.VLAN[:], vlan)
		return p
	}
	tests := []struct {
		name  string
		link  layers.LinkType
		frame string
		want  evidence.Packet
	}{
		{"ethernet", layers.LinkTypeEthernet, ether + "\x08\x00", packet(1, evidence.DirectionUnknown, 1, mac)},
		{"ethernet, vlan", layers.LinkTypeEthernet, ether + "\x81\x00\x20\x64\x08\x00", packet(1, evidence.DirectionUnknown, 1, mac, 0x2064)},
		{"ethernet, qinq", layers.LinkTypeEthernet, ether + "\x88\xa8\x00\x64\x81\x00\x00\xc8\x08\x00", packet(1, evidence.DirectionUnknown, 1, mac, 100, 200)},
		{"loopback device", layers.LinkTypeEthernet, strings.Repeat("\x00", 12) + "\x08\x00", packet(1, evidence.Loopback, 772, [6]byte{})},
		{"raw", layers.LinkTypeRaw, "", packet(1, evidence.DirectionUnknown, 0xfffe, [6]byte{})},
		{"raw of BSD", 12, "", packet(1, evidence.DirectionUnknown, 0xfffe, [6]byte{})},
		{"null", layers.LinkTypeNull, "\x02\x00\x00\x00", packet(1, evidence.Loopback, 772, [6]byte{})},
		{"loop", layers.LinkTypeLoop, "\x00\x00\x00\x02", packet(1, evidence.Loopback, 772, [6]byte{})},
		{"cooked", layers.LinkTypeLinuxSLL, sll + "\x08\x00", packet(1, evidence.Sent, 1, mac)},
		{"cooked v2", layers.LinkTypeLinuxSLL2, "\x08\x00\x00\x00\x00\x00\x00\x05\x00\x01\x00\x06\x02\x00\x00\x00\x00\x01\x00\x00", packet(5, evidence.Received, 1, mac)},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			file := capture(t, test.link, []byte(test.frame+string(data)), []byte(test.frame+string(reset)+"padding"))
			got, err := Read(bytes.NewReader(file))
			if err != nil {
				t.Fatal(err)
			}
			if got.PacketCount != 2 || got.ResetCount != 1 {
				t.Fatalf("%d packets, %d resets", got.PacketCount, got.ResetCount)
			}
			if diff := cmp.Diff(test.want, got.Packets[0]); diff != "" {
				t.Errorf("packet (-want +got):\n%s", diff)
			}
			if got.Packets[1].Header[len(got.Packets[1].Header)-1] == 'g' {
				t.Error("link-layer padding was taken for payload of the RST")
			}
		})
	}
}

// What the recorder does not keep is not read either.
func TestReadSkips(t *testing.T) {
	ether := string(make([]byte, 11)) + "\x01"
	arp := ether + "\x08\x06" + string(make([]byte, 28))
	echo := ether + "\x08\x00" + string(bytesOf(t, &layers.IPv4{Version: 4, Protocol: layers.IPProtocolICMPv4, SrcIP: []byte{1, 1, 1, 1}, DstIP: []byte{1, 1, 1, 2}},
		&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(8, 0)}))
	tcp := ether + "\x08\x00" + string(segment(t, client, server, evidence.SYN, ""))
	got, err := Read(bytes.NewReader(capture(t, layers.LinkTypeEthernet, []byte(arp), []byte(tcp), []byte(echo))))
	if err != nil || got.PacketCount != 1 {
		t.Errorf("%d packets: %v", got.PacketCount, err)
	}
	// The sending copy of a packet on loopback.
	sent := "\x00\x04\x03\x04\x00\x06\x00\x00\x00\x00\x00\x00\x00\x00\x08\x00" + string(segment(t, client, server, evidence.SYN, ""))
	got, err = Read(bytes.NewReader(capture(t, layers.LinkTypeLinuxSLL, []byte(sent))))
	if err != nil || got.PacketCount != 0 {
		t.Errorf("%d packets: %v", got.PacketCount, err)
	}
}

func TestReadDamaged(t *testing.T) {
	raw := segment(t, client, server, evidence.SYN, "")
	old := capture(t, layers.LinkTypeRaw, raw, raw)
	tests := []struct {
		name string
		file []byte
		want string
		kept int
	}{
		{"empty", nil, "read capture: not a pcapng or pcap file: it is empty", 0},
		{"short", []byte("ab"), "read capture: not a pcapng or pcap file: it has 2 bytes", 0},
		{"text", []byte(strings.Repeat("no capture ", 9)), "not a pcapng or pcap file: Unknown magic", 0},
		{"cut in a packet", old[:len(old)-3], "read capture, packet 2: unexpected EOF", 1},
		{"cut behind a record header", old[:24+16], "read capture, packet 1: unexpected EOF", 0},
		{"cut in a record header", old[:24+16+len(raw)+5], "read capture, packet 2: unexpected EOF", 1},
		{"link type", capture(t, layers.LinkTypeIEEE802_11, raw), "read capture, packet 1: link type 105 is not supported: capture with", 0},
		{"short frame ahead of a good one", capture(t, layers.LinkTypeEthernet, raw[:9],
			append([]byte(strings.Repeat("\x02", 12)+"\x08\x00"), raw...)), "read capture, packet 1: ethernet header is cut to 9 of 14 bytes", 1},
		{"short frame", capture(t, layers.LinkTypeEthernet, raw[:9]), "read capture, packet 1: ethernet header is cut to 9 of 14 bytes", 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := Read(bytes.NewReader(test.file))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want %q", err, test.want)
			}
			if got.PacketCount != test.kept {
				t.Errorf("kept %d packets, want %d", got.PacketCount, test.kept)
			}
		})
	}
}

// Every prefix of a file is read without panic, and no prefix invents packets.
func TestReadEveryPrefix(t *testing.T) {
	file := written(t, nil, second(sample(t)))
	for n := range file {
		got, _ := Read(bytes.NewReader(file[:n]))
		if got.PacketCount > 11 {
			t.Fatalf("%d packets of the first %d bytes", got.PacketCount, n)
		}
	}
}

func second(_ *evidence.Incident, w *evidence.Window) *evidence.Window { return w }

type brokenDisk struct{}

var errDisk = errors.New("no space left on device")

func (brokenDisk) Write([]byte) (int, error) { return 0, errDisk }

func TestWriteError(t *testing.T) {
	inc, win := sample(t)
	for range 10 {
		win.Packets = append(win.Packets, win.Packets...)
	}
	err := write(brokenDisk{}, inc, win)
	if !errors.Is(err, errDisk) || !strings.Contains(err.Error(), "write packet ") {
		t.Errorf("error %v", err)
	}
}

func FuzzRead(f *testing.F) {
	raw := segment(f, client, server, evidence.RST, "why")
	f.Add(written(f, nil, &evidence.Window{Packets: []evidence.Packet{{Interface: 2, Header: raw, VLAN: [2]uint16{1, 2}}}}))
	f.Add(capture(f, layers.LinkTypeRaw, raw))
	f.Add(capture(f, layers.LinkTypeEthernet, append([]byte(strings.Repeat("\x00", 12)+"\x81\x00\x00\x05\x08\x00"), raw...)))
	f.Add([]byte{0x1f, 0x8b, 8})
	f.Fuzz(func(t *testing.T, file []byte) {
		win, err := Read(bytes.NewReader(file))
		for i := range win.Packets {
			p := &win.Packets[i]
			if kept, _ := headers(p.Header); len(kept) != len(p.Header) {
				t.Fatalf("packet %d: %d of %d bytes may be kept", i+1, len(kept), len(p.Header))
			}
		}
		if err != nil {
			return
		}
		again, err := Read(bytes.NewReader(written(t, nil, &win)))
		if err != nil || len(again.Packets) != len(win.Packets) {
			t.Fatalf("round trip: %d packets of %d: %v", len(again.Packets), len(win.Packets), err)
		}
	})
}

func BenchmarkWrite(b *testing.B) {
	_, win := sample(b)
	f, err := NewWriter(io.Discard, nil, win)
	if err != nil {
		b.Fatal(err)
	}
	for i := range win.Packets { // every interface is described
		if err := f.WritePacket(&win.Packets[i]); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		if err := f.WritePacket(&win.Packets[n%len(win.Packets)]); err != nil {
			b.Fatal(err)
		}
		n++
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "packets/s")
}

// TestWriterDoesNotAllocate: ten million packets pass through the same memory.
func TestWriterDoesNotAllocate(t *testing.T) {
	_, win := sample(t)
	f, err := NewWriter(io.Discard, nil, win)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	next := func() {
		if err := f.WritePacket(&win.Packets[n%len(win.Packets)]); err != nil {
			t.Fatal(err)
		}
		n++
	}
	for range win.Packets {
		next()
	}
	if a := testing.AllocsPerRun(1000, next); a > 0 {
		t.Errorf("WritePacket allocates %v times a packet", a)
	}
}

// TestTunnelHeaders: in a tunnel the headers of the segment inside are kept.
func TestTunnelHeaders(t *testing.T) {
	inner := segment(t, client, server, evidence.PSH|evidence.ACK, secret)
	head, _ := headers(inner)
	ip := &layers.IPv4{Version: 4, TTL: 9, Protocol: layers.IPProtocolUDP, SrcIP: []byte{10, 9, 0, 1}, DstIP: []byte{10, 9, 0, 2}}
	udp := &layers.UDP{SrcPort: 5555, DstPort: 4789}
	_ = udp.SetNetworkLayerForChecksum(ip)
	vxlan := bytesOf(t, ip, udp, &layers.VXLAN{ValidIDFlag: true, VNI: 7},
		&layers.Ethernet{SrcMAC: make([]byte, 6), DstMAC: make([]byte, 6), EthernetType: layers.EthernetTypeIPv4}, gopacket.Payload(inner))
	kept, recorded := headers(vxlan)
	if want := 20 + 8 + 8 + 14 + len(head); len(kept) != want || !recorded {
		t.Errorf("%d bytes kept, want %d; recorded: %v", len(kept), want, recorded)
	}
	if bytes.Contains(kept, []byte("secret")) {
		t.Error("payload is kept")
	}
}

func ExampleWrite() {
	var file bytes.Buffer
	if err := write(&file, nil, &evidence.Window{}); err != nil {
		fmt.Println(err)
	}
	win, err := Read(&file)
	fmt.Println(win.PacketCount, err)
	// Output: 0 <nil>
}
