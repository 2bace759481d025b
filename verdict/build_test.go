package verdict

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"tcpcoroner/evidence"
)

// The actors of the synthetic windows.
var (
	client = netip.MustParseAddrPort("10.0.0.9:40000")
	server = netip.MustParseAddrPort("10.0.0.1:8080")
	start  = time.Unix(1_700_000_000, 0)
)

// pkt describes one packet of a synthetic window.
type pkt struct {
	ms       float64
	src, dst netip.AddrPort
	flags    evidence.Flags
	seq, ack uint32
	payload  int
	dir      evidence.Direction
	iface    uint32
	ttl, tos uint8
	id       uint16
	label    uint32
	window   uint16 // 1000 where unset
	netns    uint16
	again    uint8 // Sighting
	mac      byte
	df       bool
	stamps   bool // TCP timestamps
}

// none is a window of 0.
const none = 0xffff

// header builds the bytes that the recorder would have kept.
func (p pkt) header() []byte {
	tcp := make([]byte, 20)
	if p.stamps {
		tcp = append(tcp, 1, 1, 8, 10, 0, 0, 0, 9, 0, 0, 0, 5)
	}
	binary.BigEndian.PutUint16(tcp, p.src.Port())
	binary.BigEndian.PutUint16(tcp[2:], p.dst.Port())
	binary.BigEndian.PutUint32(tcp[4:], p.seq)
	binary.BigEndian.PutUint32(tcp[8:], p.ack)
	tcp[12], tcp[13] = byte(len(tcp)/4)<<4, byte(p.flags)
	binary.BigEndian.PutUint16(tcp[14:], max(p.window, 1))
	if p.window == none {
		binary.BigEndian.PutUint16(tcp[14:], 0)
	}
	if p.src.Addr().Is6() {
		ip := make([]byte, 40)
		binary.BigEndian.PutUint32(ip, 6<<28|uint32(p.tos)<<20|p.label)
		binary.BigEndian.PutUint16(ip[4:], uint16(len(tcp)+p.payload))
		ip[6], ip[7] = 6, p.ttl
		copy(ip[8:], p.src.Addr().AsSlice())
		copy(ip[24:], p.dst.Addr().AsSlice())
		return append(ip, tcp...)
	}
	ip := make([]byte, 20)
	ip[0], ip[1], ip[8], ip[9] = 0x45, p.tos, p.ttl, 6
	binary.BigEndian.PutUint16(ip[2:], uint16(20+len(tcp)+p.payload))
	binary.BigEndian.PutUint16(ip[4:], p.id)
	if p.df {
		ip[6] = 0x40
	}
	copy(ip[12:], p.src.Addr().AsSlice())
	copy(ip[16:], p.dst.Addr().AsSlice())
	return append(ip, tcp...)
}

// window builds a window from packets, TTL 64 and interface 2 where unset, and
// has a Selection draw from it.
func window(packets ...pkt) evidence.Window {
	w := evidence.Window{
		Interfaces: []evidence.Interface{{Index: 2, Name: "eth0"}, {Index: 3, Name: "eth1"}, {Index: 2, Namespace: 1, Name: "eth0"}},
		Namespaces: []evidence.Namespace{{Index: 1, Path: "/run/netns/blue"}},
	}
	for _, p := range packets {
		if p.ttl == 0 {
			p.ttl = 64
		}
		if p.window == 0 {
			p.window = 1000
		}
		if p.iface == 0 {
			p.iface = 2
		}
		h := p.header()
		w.Packets = append(w.Packets, evidence.Packet{
			Nanos:  start.Add(time.Duration(p.ms * float64(time.Millisecond))).UnixNano(),
			Header: h, WireBytes: uint32(len(h) + p.payload), Direction: p.dir, Interface: p.iface, LinkType: 1,
			Namespace: p.netns, Sighting: p.again, SrcMAC: [6]byte{p.mac},
		})
	}
	slices.SortStableFunc(w.Packets, func(a, b evidence.Packet) int { return int(a.Nanos - b.Nanos) })
	selectAll(&w)
	return w
}

// served are the packets of a served request, seen at the server or (flip)
// at the client; then come the packets that a test adds.
func served(atServer bool, more ...pkt) []pkt {
	in, out := evidence.Received, evidence.Sent
	if !atServer {
		in, out = out, in
	}
	base := []pkt{
		{ms: 0, src: client, dst: server, flags: evidence.SYN, seq: 100, dir: in, id: 1},
		{ms: 1, src: server, dst: client, flags: evidence.SYN | evidence.ACK, seq: 500, ack: 101, dir: out},
		{ms: 2, src: client, dst: server, flags: evidence.ACK, seq: 101, ack: 501, dir: in, id: 2},
		{ms: 3, src: client, dst: server, flags: evidence.ACK | evidence.PSH, seq: 101, ack: 501, payload: 50, dir: in, id: 3},
		{ms: 4, src: server, dst: client, flags: evidence.ACK, seq: 501, ack: 151, dir: out, id: 7},
	}
	return append(base, more...)
}

// handshake is only the opening of served, seen at the server.
func handshake(more ...pkt) []pkt { return append(served(true)[:3:3], more...) }

// counters sets the growth of counters over the window.
func counters(inc *evidence.Incident, grown map[string]uint64) {
	inc.Before = evidence.Counters{Values: map[string]uint64{}}
	after := evidence.Counters{Values: map[string]uint64{}}
	for k, v := range grown {
		inc.Before.Values[k], after.Values[k] = 1000, 1000+v
	}
	inc.At = &evidence.Snapshot{Sockets: []evidence.Socket{{State: "established"}}, Counters: inc.Before}
	inc.After = &evidence.Snapshot{Counters: after}
}

// one judges and returns the only implicated flow.
func one(t *testing.T, inc *evidence.Incident) evidence.Flow {
	t.Helper()
	j := Judge(inc)
	if len(j.Flows) != 1 {
		t.Fatalf("%d implicated flows, want 1", len(j.Flows))
	}
	return j.Flows[0]
}

// selectAll fills a window whose packets are all in w.Packets, in the order of time. It
// makes sure that what a Selection says it does not need is not missed.
func selectAll(w *evidence.Window) {
	needed := *w
	draw(w, func(*Selection) func(*evidence.Packet) bool {
		return func(*evidence.Packet) bool { return true }
	})
	draw(&needed, neededOf)
	needed.Answers = w.Answers // which have no order
	if !reflect.DeepEqual(w, &needed) {
		panic(fmt.Sprintf("without what is not needed:\n%+v\nwith it:\n%+v", needed, *w))
	}
}

func draw(w *evidence.Window, needed func(*Selection) func(*evidence.Packet) bool) {
	all := w.Packets
	sel := NewSelection()
	for i := range all {
		all[i].Number = i + 1
		sel.Survey(&all[i])
	}
	takes := needed(sel)
	for i := range all {
		if takes(&all[i]) {
			sel.Take(&all[i])
		}
	}
	sel.Fill(w)
}

// neededOf leaves out as much as Need lets. What it has asked it forgets now and then,
// as a reader does.
func neededOf(sel *Selection) func(*evidence.Packet) bool {
	type like struct {
		src, dst   netip.AddrPort
		iface      uint32
		netns      uint16
		ttl, again uint8
		direction  evidence.Direction
	}
	need, left, n := sel.Need(), map[like]int{}, 0
	return func(p *evidence.Packet) bool {
		var g evidence.Segment
		if evidence.ParseSegment(p, &g) != nil || g.Flags.Has(evidence.RST) {
			return true
		}
		if n++; n%50 == 0 {
			clear(left)
		}
		k := like{g.Src, g.Dst, p.Interface, p.Namespace, g.TTL, p.Sighting, p.Direction}
		if _, asked := left[k]; !asked {
			left[k] = need(p)
		}
		left[k]--
		return left[k] >= 0
	}
}
