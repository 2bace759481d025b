package kernel

import (
	"encoding/binary"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tcpcoroner/evidence"
	"tcpcoroner/internal/scenes"
)

// wireReset is a RST as one namespace's interfaces showed it.
type wireReset struct {
	netns  uint64
	packet evidence.Packet
	evidence.Segment
}

// watchWire captures the RSTs of IPv4 in all namespaces of the stage from now on.
// The function that it returns ends that and gives them.
func watchWire(t *testing.T, l *lab) (seen func() []wireReset) {
	t.Helper()
	type result struct {
		list []wireReset
		err  error
	}
	var taps []int
	results := make(chan result)
	for _, h := range []*scenes.Host{l.Client, l.Router, l.Server} {
		ns, fd := netns(t, h), -1
		if err := h.Do(func() (err error) { fd, err = tap(); return err }); err != nil {
			t.Fatal(err)
		}
		taps = append(taps, fd)
		go func() {
			list, err := readTap(fd, ns)
			results <- result{list, err}
		}()
	}
	return func() (all []wireReset) {
		for range taps {
			r := <-results
			if r.err != nil {
				t.Error(r.err)
			}
			all = append(all, r.list...)
		}
		for _, fd := range taps {
			if s, err := unix.GetsockoptTpacketStats(fd, unix.SOL_PACKET, unix.PACKET_STATISTICS); err != nil || s.Drops != 0 {
				t.Errorf("the capture dropped packets: %+v, error %v", s, err)
			}
			unix.Close(fd)
		}
		return all
	}
}

// quiet is how long a tap waits for the last packet.
const quiet = 3 * time.Second

// tap opens a packet socket that takes RSTs only.
func tap() (int, error) {
	all := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL))
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fd, err
	}
	// TCP in IPv4 with the RST bit: bpf(4), packets begin at the network header.
	filter := []unix.SockFilter{
		{Code: 0x30, K: 9}, {Code: 0x15, Jf: 5, K: unix.IPPROTO_TCP},
		{Code: 0xb1, K: 0}, {Code: 0x50, K: 13}, {Code: 0x54, K: uint32(evidence.RST)},
		{Code: 0x15, Jt: 1, K: 0}, {Code: 0x06, K: 0xffff}, {Code: 0x06},
	}
	for _, set := range []func() error{
		func() error {
			return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
		},
		func() error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20) },
		func() error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1) },
		func() error {
			tv := unix.NsecToTimeval(int64(quiet))
			return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
		},
		func() error { return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all}) },
	} {
		if err := set(); err != nil {
			return fd, err
		}
	}
	return fd, nil
}

// readTap reads until nothing comes any more.
func readTap(fd int, ns uint64) (list []wireReset, err error) {
	b, control := make([]byte, 256), make([]byte, 64)
	for {
		n, m, _, from, err := unix.Recvmsg(fd, b, control, 0)
		if err == unix.EINTR {
			continue
		}
		if err == unix.EAGAIN {
			return list, nil
		}
		if err != nil {
			return list, err
		}
		at, err := stamp(control[:m])
		if err != nil {
			return list, err
		}
		r := wireReset{netns: ns, packet: evidence.Packet{
			Nanos: at, WireBytes: uint32(n), Header: append([]byte(nil), b[:n]...), Direction: evidence.Received,
		}}
		link := from.(*unix.SockaddrLinklayer)
		const loopback = 1
		switch {
		case link.Ifindex == loopback && link.Pkttype == unix.PACKET_OUTGOING:
			continue // the receiving copy is the one that counts
		case link.Ifindex == loopback:
			r.packet.Direction = evidence.Loopback
		case link.Pkttype == unix.PACKET_OUTGOING:
			r.packet.Direction = evidence.Sent
		}
		if err := evidence.ParseSegment(&r.packet, &r.Segment); err != nil {
			return list, err
		}
		list = append(list, r)
	}
}

// stamp is the time of a packet (socket(7), SO_TIMESTAMPNS).
func stamp(control []byte) (int64, error) {
	all, err := unix.ParseSocketControlMessage(control)
	for _, m := range all {
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SO_TIMESTAMPNS && len(m.Data) >= 16 {
			return int64(binary.NativeEndian.Uint64(m.Data))*int64(time.Second) + int64(binary.NativeEndian.Uint64(m.Data[8:])), nil
		}
	}
	return 0, err
}

// made counts the resets that no TCP of the stage sent: forged, or a firewall's.
func made(truths []scenes.Truth) (n int) {
	for _, tr := range truths {
		if tr.Reason == "" && tr.RSTFrom != scenes.FromNone {
			n++
		}
	}
	return n
}

// checkWire joins the RSTs with the events, one to one: by namespace, addresses,
// numbers and time.
func (l *lab) checkWire(t *testing.T, wire []wireReset, sent []evidence.KernelEvent, truths []scenes.Truth) {
	t.Helper()
	type place struct {
		netns    uint64
		src, dst string
	}
	left := map[place][]evidence.KernelEvent{}
	for _, e := range sent {
		p := place{e.NetNS, e.Local.String(), e.Remote.String()}
		left[p] = append(left[p], e)
	}
	joined, alone := 0, 0
	router, arrived := netns(t, l.Router), map[[2]uint32]bool{}
	for i := range wire {
		w := &wire[i]
		numbers := [2]uint32{w.Seq, w.Ack}
		if w.packet.Direction == evidence.Received {
			arrived[numbers] = arrived[numbers] || w.netns == router
			continue
		}
		p := place{w.netns, w.Src.String(), w.Dst.String()}
		switch at := fits(left[p], w); {
		case at >= 0:
			left[p] = append(left[p][:at], left[p][at+1:]...)
			joined++
		case w.netns == router && arrived[numbers]: // passed on
		default:
			alone++
		}
	}
	if want := made(truths); alone != want {
		t.Errorf("%d resets on the wire have no event, want %d", alone, want)
	}
	for _, events := range left {
		if len(events) > 0 {
			t.Errorf("events without a reset on the wire:%s", list(events))
		}
	}
	t.Logf("%d events joined with their packet, %d packets of forgers and firewalls", joined, alone)
}

// joinTime is how far a packet and its event may lie apart on a busy machine.
const joinTime = 100 * time.Millisecond

func fits(events []evidence.KernelEvent, w *wireReset) int {
	for i := range events {
		n := events[i].ResetNumbers()
		if (!n.SeqKnown || n.Seq == w.Seq) && (!n.AckKnown || n.Ack == w.Ack) && events[i].Time.Sub(w.packet.Time()).Abs() < joinTime {
			return i
		}
	}
	return -1
}

// checkLedger wants every residue explained as what was done.
func (l *lab) checkLedger(t *testing.T, wire []wireReset, events []evidence.KernelEvent, truths []scenes.Truth) {
	t.Helper()
	spaces := []uint64{netns(t, l.Client), netns(t, l.Router), netns(t, l.Server)}
	counter := &evidence.WireResets{}
	counter.Expect(events)
	for i := range wire {
		for j, ns := range spaces {
			if ns == wire[i].netns {
				wire[i].packet.Namespace = uint16(j)
			}
		}
		counter.Count(&wire[i].packet)
	}
	rows := evidence.BalanceLedger(evidence.KernelLedger(events, nil, nil), counter, func(n uint16) uint64 { return spaces[n] })
	got := map[string]int{}
	for i := range rows {
		r := &rows[i]
		for _, p := range r.Parts {
			got[l.name(t, r.NetNS)+" "+p.Cause] += int(p.Count)
		}
		got["rejects told"] += int(r.Rejects)
	}
	want := map[string]int{}
	for _, tr := range truths {
		switch {
		case tr.Reason != "" || tr.RSTFrom == scenes.FromNone:
		case tr.RSTFrom == scenes.FromRouter:
			want["router "+evidence.LedgerOtherSender]++
		case l.rejectsTold():
			want["rejects told"]++
		default:
			want["server "+evidence.LedgerFirewall]++
		}
	}
	for _, m := range []map[string]int{got, want} {
		for what := range m {
			if got[what] != want[what] {
				t.Errorf("the ledger has %d of %s, want %d", got[what], what, want[what])
			}
		}
	}
	t.Logf("the ledger: %v", got)
}

func (l *lab) name(t *testing.T, ns uint64) string {
	for _, h := range []*scenes.Host{l.Client, l.Router, l.Server} {
		if netns(t, h) == ns {
			return h.Name
		}
	}
	return "elsewhere"
}
