package evidence

import (
	"net/netip"
	"time"
)

// KernelEventKind says what the kernel did.
type KernelEventKind string

// The kinds of kernel events.
const (
	// ResetSent: TCP of this host made a RST.
	ResetSent KernelEventKind = "reset_sent"
	// ResetReceived: TCP accepted a RST and ended the connection.
	ResetReceived KernelEventKind = "reset_received"
	// SocketError: a socket got the error that its application will see.
	SocketError KernelEventKind = "socket_error"
	// SegmentDropped: a segment that has to do with resets was thrown away.
	SegmentDropped KernelEventKind = "drop"
	// FirewallReject: netfilter made a RST in the name of the segment's receiver.
	FirewallReject KernelEventKind = "reject"
)

// The ways by which the owner of a socket is known (KernelEvent.Via).
const (
	ViaConnect = "connect"
	ViaAccept  = "accept"
	// ViaFirstUse: who first sent or received on an accepted socket.
	ViaFirstUse = "first_use"
	// ViaInherit: nobody accepted the connection yet, its listener's owner stands for it.
	ViaInherit = "inherit"
	ViaListen  = "listen"
	// ViaSeed: the socket was there before the recorder; who held it then.
	ViaSeed = "seed"
)

// KernelEvent is one thing that the kernel did about a TCP connection, told by
// itself: the reason, the socket and the process.
type KernelEvent struct {
	Kind KernelEventKind `json:"kind"`
	// Time is CLOCK_REALTIME, converted from the kernel's boot clock. The event of a
	// reset that was sent may come some microseconds after its packet.
	Time time.Time `json:"time"`
	// NetNS is the inode number of the network namespace; 0 if not known.
	NetNS uint64 `json:"netns,omitempty"`
	// Local is this host's end, or the destination of a segment that was dropped
	// before anybody knew whether it is for this host. IPv4 in IPv6 is unmapped.
	Local  netip.AddrPort `json:"local"`
	Remote netip.AddrPort `json:"remote"`
	// Cookie names the socket (SO_COOKIE); 0 if there is none or it has no name.
	Cookie uint64 `json:"cookie,omitempty"`
	// Reason is the kernel's name without SK_RST_REASON_ or SKB_DROP_REASON_
	// (include/net/rstreason.h, dropreason-core.h); empty if the kernel gives none.
	Reason string `json:"reason,omitempty"`
	// State is that of the socket at the event, spelled as in Socket; empty
	// without socket.
	State string `json:"state,omitempty"`
	// Trigger is the segment that provoked the event; nil if none did.
	Trigger *Trigger `json:"trigger,omitempty"`
	// Location is the kernel function that dropped the segment.
	Location string `json:"location,omitempty"`
	// SndNxt and RcvNxt are the socket's next sequence numbers to send and to
	// receive; HasNumbers tells whether there was a socket to read them from.
	SndNxt     uint32 `json:"snd_nxt,omitempty"`
	RcvNxt     uint32 `json:"rcv_nxt,omitempty"`
	HasNumbers bool   `json:"has_numbers,omitempty"`
	// Unread and Unacked are bytes: received but not read by the application,
	// written by it but not acknowledged by the peer.
	Unread  uint32 `json:"unread,omitempty"`
	Unacked uint32 `json:"unacked,omitempty"`
	// Orphan: the application had already closed the socket.
	Orphan bool `json:"orphan,omitempty"`
	// ShutdownRead and ShutdownWrite are the socket's shutdown(2) bits.
	ShutdownRead  bool `json:"shutdown_read,omitempty"`
	ShutdownWrite bool `json:"shutdown_write,omitempty"`
	// Linger tells whether SO_LINGER is on, LingerTime what it is set to (socket(7)).
	Linger     bool          `json:"linger,omitempty"`
	LingerTime time.Duration `json:"linger_time_ns,omitempty"`
	// AcceptQueue and Backlog are a listener's connections waiting and their limit.
	AcceptQueue uint32 `json:"accept_queue,omitempty"`
	Backlog     uint32 `json:"backlog,omitempty"`
	// Errno is the pending error of the socket (errno(3)), 0 if none.
	Errno int `json:"errno,omitempty"`
	// Owner is the process that the socket belongs to, dead or alive, and Via how
	// it is known. With ViaInherit it is the listener's.
	Owner *Owner `json:"owner,omitempty"`
	Via   string `json:"via,omitempty"`
	// Actor is the process that was running, and is set only where that process is
	// the one that caused the event. Nil says nothing about innocence.
	Actor *Owner `json:"actor,omitempty"`
	// Exiting: the actor was dying and its sockets were closed for it. Signal
	// killed it, 0 if it left by itself; OutOfMemory if it was the OOM killer's.
	Exiting     bool `json:"exiting,omitempty"`
	Signal      int  `json:"signal,omitempty"`
	OutOfMemory bool `json:"out_of_memory,omitempty"`
	// SocketCgroup is the cgroup that the socket was made in (version 2).
	SocketCgroup string `json:"socket_cgroup,omitempty"`
	// Grave is the socket that lived at this tuple before; nil if none is known.
	Grave *Grave `json:"grave,omitempty"`
	// LastListener owns, or last owned, a listener on the local port.
	LastListener *Owner `json:"last_listener,omitempty"`
}

// Trigger is a TCP segment as the kernel saw it when it acted.
type Trigger struct {
	Flags Flags  `json:"flags"`
	Seq   uint32 `json:"seq"`
	Ack   uint32 `json:"ack"`
	// PayloadBytes is the length of the payload.
	PayloadBytes uint32 `json:"payload_bytes"`
	// TTL is the IPv4 time to live or the IPv6 hop limit.
	TTL uint8 `json:"ttl"`
	// Outgoing: a socket of this host sent it.
	Outgoing bool `json:"outgoing,omitempty"`
}

// Grave is a socket that is no more.
type Grave struct {
	Owner *Owner    `json:"owner,omitempty"`
	Via   string    `json:"via,omitempty"`
	Died  time.Time `json:"died"`
	// Cookie is the socket's (SO_COOKIE).
	Cookie uint64 `json:"cookie,omitempty"`
	// Errno is the error it died with, 0 if none; State the one it died in.
	Errno int    `json:"errno,omitempty"`
	State string `json:"state"`
	// Unread and Unacked are bytes, as in KernelEvent.
	Unread  uint32 `json:"unread,omitempty"`
	Unacked uint32 `json:"unacked,omitempty"`
}

// ResetNumbers are what is known of a RST's sequence and acknowledgment number.
type ResetNumbers struct {
	Seq, Ack           uint32
	SeqKnown, AckKnown bool
}

// ResetNumbers derives the numbers of the RST that the event is about, to find it
// among the packets. Both are unknown if there is no such RST.
func (e *KernelEvent) ResetNumbers() ResetNumbers {
	switch {
	case (e.Kind == ResetSent || e.Kind == FirewallReject) && e.Trigger != nil:
		return e.Trigger.answer()
	case e.Kind == ResetSent && e.HasNumbers: // tcp_send_active_reset
		return ResetNumbers{e.SndNxt, e.RcvNxt, true, true}
	case e.Kind == ResetReceived && e.State == "syn_sent" && e.HasNumbers:
		return ResetNumbers{Ack: e.SndNxt, AckKnown: true} // RFC 9293 section 3.10.7.3
	case e.Kind == ResetReceived && e.HasNumbers:
		return ResetNumbers{Seq: e.RcvNxt, SeqKnown: true} // RFC 5961 section 3.2
	case e.Kind == SegmentDropped && e.Trigger != nil && e.Trigger.Flags.Has(RST):
		return ResetNumbers{e.Trigger.Seq, e.Trigger.Ack, true, true}
	}
	return ResetNumbers{}
}

// answer is the RST that a segment provokes (RFC 9293 section 3.5.2, group 1).
func (t *Trigger) answer() ResetNumbers {
	if t.Flags.Has(ACK) {
		return ResetNumbers{Seq: t.Ack, SeqKnown: true}
	}
	s := Segment{Flags: t.Flags, PayloadBytes: t.PayloadBytes}
	return ResetNumbers{Seq: 0, Ack: t.Seq + s.Length(), SeqKnown: true, AckKnown: true}
}

// KernelSuppressed counts events that came too fast to be described.
type KernelSuppressed struct {
	Kind   KernelEventKind `json:"kind"`
	Reason string          `json:"reason,omitempty"`
	NetNS  uint64          `json:"netns,omitempty"`
	Port   uint16          `json:"port"`
	From   time.Time       `json:"from"`
	To     time.Time       `json:"to"`
	Count  uint64          `json:"count"`
}

// The levels of kernel evidence, best first.
const (
	// LevelFull: each reset with reason, socket and owner.
	LevelFull = "full"
	// LevelReasons: each reset with reason and socket, owners not or not all.
	LevelReasons = "reasons"
	// LevelTuples: resets with their addresses; the kernel gives no reason.
	LevelTuples = "tuples"
	// LevelPackets: no kernel events at all.
	LevelPackets = "packets"
)

// KernelLevel says how much this kernel tells.
type KernelLevel struct {
	Name string `json:"name"`
	// Why says what holds it back, Raise what would lift it; empty at the top.
	Why   string       `json:"why,omitempty"`
	Raise string       `json:"raise,omitempty"`
	Hooks []KernelHook `json:"hooks,omitempty"`
}

// KernelHook is one place in the kernel that tells about resets.
type KernelHook struct {
	// Name is the function or tracepoint, Purpose what it is for.
	Name    string `json:"name"`
	Purpose string `json:"purpose"`
	// Attached or not; Why says why not.
	Attached bool   `json:"attached"`
	Why      string `json:"why,omitempty"`
}
