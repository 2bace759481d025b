package kernel

import (
	"fmt"
	"net/netip"
	"strings"
	"time"
	"unsafe"

	"tcpcoroner/evidence"
)

// table names the values of a small enum.
type table []string

func (t table) name(n uint8) string {
	if int(n) < len(t) {
		return t[n]
	}
	return fmt.Sprint(n)
}

// Names of what bpf/record.h numbers, and of the TCP_ states of
// include/net/tcp_states.h in the spelling of evidence.Socket.
var (
	kindNames = [...]evidence.KernelEventKind{
		1: evidence.ResetSent, 2: evidence.ResetReceived, 3: evidence.SocketError,
		4: evidence.SegmentDropped, 5: evidence.FirewallReject,
	}
	viaNames = table{
		"", evidence.ViaConnect, evidence.ViaAccept, evidence.ViaFirstUse, evidence.ViaInherit,
		evidence.ViaListen, evidence.ViaSeed,
	}
	stateNames = table{
		"", "established", "syn_sent", "syn_received", "fin_wait_1", "fin_wait_2", "time_wait",
		"closed", "close_wait", "last_ack", "listen", "closing", "syn_received", "bound_inactive",
	}
)

// Numbers of the states and of bpf/record.h that the rules below use.
const (
	stateClose  = 7
	segmentHere = 1
	segmentSent = 2
)

// parseEvent reads one record of the ring.
func parseEvent(b []byte) (e bpfEvent, err error) {
	// Both sides are little-endian, fields are whole numbers, and there are no holes
	// between them (TestEventHasNoHoles): the record is the structure.
	to := unsafe.Slice((*byte)(unsafe.Pointer(&e)), unsafe.Sizeof(e))
	if len(b) != len(to) {
		return e, fmt.Errorf("decode event of %d bytes: want %d", len(b), len(to))
	}
	copy(to, b)
	if e.Kind == 0 || int(e.Kind) >= len(kindNames) {
		return e, fmt.Errorf("decode event: kind %d is not known", e.Kind)
	}
	return e, nil
}

// decoder gives records the names and times of this host.
type decoder struct {
	resets, drops map[uint32]string
	clock         *clock
	hz            uint64
}

// event tells a record in the words of evidence. Owners have no more than the
// kernel gave.
func (d *decoder) event(r *bpfEvent) evidence.KernelEvent {
	e := evidence.KernelEvent{
		Kind: kindNames[r.Kind], Time: d.clock.time(r.Time), NetNS: uint64(r.Tuple.Netns), Cookie: r.Cookie,
		Local: endpoint(r.Tuple.Laddr, r.Tuple.Lport), Remote: endpoint(r.Tuple.Raddr, r.Tuple.Rport),
		Reason: d.reason(r.Kind, r.Reason), State: stateNames.name(r.State),
		Owner: d.owner(r.Owner), Via: via(r.Owner), LastListener: d.owner(r.Listener),
		Trigger: trigger(r), Grave: d.grave(&r.Grave),
	}
	if r.Sock != 0 {
		d.socket(&e, r)
	}
	if e.Owner == nil && e.Grave != nil && r.Cookie != 0 && e.Grave.Cookie == r.Cookie {
		// The socket itself, buried already: an orphan, or one in time-wait, which
		// keeps the cookie of the one that it stands for.
		e.Owner, e.Via = e.Grave.Owner, e.Grave.Via
	}
	if believable(r, e.Reason) {
		d.actor(&e, r)
	}
	return e
}

// socket tells what was read from a full socket.
func (d *decoder) socket(e *evidence.KernelEvent, r *bpfEvent) {
	e.Errno = int(r.Err)
	e.Orphan = r.Orphan != 0
	e.ShutdownRead, e.ShutdownWrite = r.Shutdown&1 != 0, r.Shutdown&2 != 0
	e.Linger = r.Linger != 0
	e.AcceptQueue, e.Backlog = r.AcceptQueue, r.Backlog
	e.Unread, e.Unacked = r.Unread, r.Unacked
	e.SndNxt, e.RcvNxt = r.SndNxt, r.RcvNxt
	e.HasNumbers = e.State != "listen"
	if e.Linger && d.hz > 0 {
		const most = uint64(1<<63-1) / uint64(time.Second)
		e.LingerTime = time.Duration(min(r.LingerJiffies/d.hz, most)) * time.Second
	}
}

func (d *decoder) actor(e *evidence.KernelEvent, r *bpfEvent) {
	e.Actor = d.process(r.Actor)
	if e.Exiting = r.Exiting != 0; e.Exiting {
		e.Signal = int(r.ExitCode & 0x7f) // wait(2)
		e.OutOfMemory = r.Oom != 0
	}
}

// believable tells whether the process that was running sent the reset. It did if
// no segment provoked it and the socket is closed already: only tcp_close() and
// tcp_disconnect() do that, in the caller's context. Or if the socket is not closed
// and its state is the reason: tcp_abort(), asked for by SOCK_DESTROY (ss -K).
// Timers and the receive path run in whatever process they interrupt.
func believable(r *bpfEvent, reason string) bool {
	switch {
	case kindNames[r.Kind] != evidence.ResetSent || r.Sock == 0 || r.Seg.How&segmentHere != 0:
		return false
	case r.Actor.Pid == 0 || r.Kthread != 0:
		return false // idle, in another PID namespace, or a worker that closes for somebody
	case r.State != stateClose:
		return reason == "TCP_STATE"
	case r.Orphan != 0 && (reason == "TCP_STATE" || reason == "" || reason == "NOT_SPECIFIED"):
		// inet_child_forget(): by who closes the listener, or in the receive path
		// when the handshake ends just then.
		return r.Owner.Via != 0 && r.Owner.Pid == r.Actor.Pid
	}
	return true
}

func (d *decoder) reason(kind uint8, n uint32) string {
	names := d.resets
	if kindNames[kind] == evidence.SegmentDropped {
		names = d.drops
	} else if kindNames[kind] != evidence.ResetSent {
		return ""
	}
	if name, ok := names[n]; ok && name != "NOT_SPECIFIED" {
		return name
	}
	if n == 0 || names[n] != "" {
		return ""
	}
	return fmt.Sprint(n)
}

// owned tells whether the record has an owner that can be named: one outside of the
// recorder's PID namespace has no number there.
func owned(r bpfOwner) bool { return r.Via != 0 && r.Pid != 0 }

// owner is nil where the record has none.
func (d *decoder) owner(r bpfOwner) *evidence.Owner {
	if !owned(r) {
		return nil
	}
	return d.process(r)
}

func via(r bpfOwner) string {
	if !owned(r) {
		return ""
	}
	return viaNames.name(r.Via)
}

func (d *decoder) process(r bpfOwner) *evidence.Owner {
	return &evidence.Owner{PID: int(r.Pid), Comm: comm(r.Comm), UID: r.Uid, Started: d.clock.time(r.Start)}
}

func (d *decoder) grave(g *bpfGrave) *evidence.Grave {
	if g.Died == 0 {
		return nil
	}
	return &evidence.Grave{
		Owner: d.owner(g.Owner), Via: via(g.Owner), Died: d.clock.time(g.Died), Cookie: g.Cookie,
		Errno: int(g.Err), State: stateNames.name(uint8(min(g.State, 255))), Unread: g.Unread, Unacked: g.Unacked,
	}
}

func (d *decoder) suppressed(k bpfSuppressedKey, n uint64, now time.Time) evidence.KernelSuppressed {
	s := evidence.KernelSuppressed{
		NetNS: uint64(k.Netns), Port: k.Port, Count: n, From: now.Add(-time.Second), To: now,
	}
	if k.Kind != 0 && int(k.Kind) < len(kindNames) {
		s.Kind, s.Reason = kindNames[k.Kind], d.reason(k.Kind, k.Reason)
	}
	return s
}

func trigger(r *bpfEvent) *evidence.Trigger {
	if r.Seg.How&segmentHere == 0 {
		return nil
	}
	return &evidence.Trigger{
		Flags: evidence.Flags(r.Seg.Flags), Seq: r.Seg.Seq, Ack: r.Seg.Ack, PayloadBytes: r.Seg.Payload,
		TTL: r.Seg.Ttl, Outgoing: r.Seg.How&segmentSent != 0,
	}
}

func endpoint(addr [16]uint8, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(addr).Unmap(), port)
}

// comm is a process name, which ends at a NUL or after 15 bytes.
func comm(c [16]int8) string {
	b := make([]byte, 0, len(c))
	for _, x := range c {
		if x == 0 {
			break
		}
		b = append(b, byte(x))
	}
	return strings.ToValidUTF8(string(b), "?")
}
