package evidence

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"path"
	"strings"
	"time"
)

// Direction tells which way a packet crossed the interface it was seen on.
type Direction uint8

// The directions, from the packet type that the kernel gives each packet
// (packet(7), sll_pkttype). On loopback a packet is sent and received at once,
// and only its receiving copy is kept; on devices without a link layer
// (tun, wireguard, ppp) the kernel's mark is unreliable and stays unknown.
const (
	DirectionUnknown Direction = iota
	Received
	Sent
	Loopback
	// Elsewhere is a packet for another host, seen in promiscuous mode.
	Elsewhere
)

var directionNames = [...]string{"unknown", "received", "sent", "loopback", "elsewhere"}

func (d Direction) String() string {
	if int(d) < len(directionNames) {
		return directionNames[d]
	}
	return fmt.Sprintf("direction(%d)", d)
}

// ChecksumStatus tells what is known of a TCP checksum.
type ChecksumStatus uint8

// The states of a TCP checksum. It covers the payload, which is not kept: only
// that of a segment without payload can be verified later.
const (
	// ChecksumUnknown cannot be verified; its field in the header reads 0, unless
	// the packet is one of those that are kept byte for byte.
	ChecksumUnknown ChecksumStatus = iota
	// ChecksumTrusted was verified by the kernel or the network card
	// (TP_STATUS_CSUM_VALID); its field reads 0.
	ChecksumTrusted
	// ChecksumGood was verified from the header.
	ChecksumGood
	// ChecksumPartial is the sum of the pseudo header only: the local stack left
	// the rest to hardware that the packet had not reached, or never needs to.
	ChecksumPartial
	// ChecksumBad is wrong, verified from the header.
	ChecksumBad
)

var checksumNames = [...]string{"unknown", "trusted", "good", "partial", "bad"}

func (c ChecksumStatus) String() string {
	if int(c) < len(checksumNames) {
		return checksumNames[c]
	}
	return fmt.Sprintf("checksum(%d)", c)
}

// Packet is the header of one packet as the recorder kept it.
type Packet struct {
	// Number counts the packets of a window from 1, in the order of time; 0 if the
	// packet is of no window.
	Number int
	// Nanos is the kernel's receive time, CLOCK_REALTIME in nanoseconds.
	Nanos int64
	// Interface is the ifindex the packet was seen on.
	Interface uint32
	// Namespace is the index of the network namespace in Window.Namespaces; 0 is
	// the recorder's own.
	Namespace uint16
	// Sighting is 0 for a packet that is seen first, n for the nth time that the
	// interfaces of one namespace show the same packet again (a bridge and its
	// port, a VLAN device and the device below).
	Sighting uint8
	// Checksum is the state of the TCP checksum.
	Checksum ChecksumStatus
	// WireBytes is the length from the network header on, as on the wire
	// (up to 64 KiB with GRO/GSO), not what was kept.
	WireBytes uint32
	Direction Direction
	// LinkType is the ARPHRD_ value of the interface (1 Ethernet, 772 loopback).
	LinkType uint16
	// SrcMAC is the sender's link-layer address; zero where the link has none.
	SrcMAC [6]byte
	// VLAN holds the outer and inner tag control information, 0 where untagged.
	VLAN [2]uint16
	// Header starts at the IP header. It holds all network and TCP header
	// bytes, up to MaxResetPayload bytes of payload if the segment is a RST,
	// and the headers that an ICMP error quotes. It never holds other payload.
	// The bytes belong to a sealed chunk or to the reader: do not write them.
	Header []byte
}

// MaxResetPayload is the number of payload bytes of a RST segment that are kept
// (diagnostic payloads, draft-ietf-tcpm-rst-diagnostic-payload). No payload
// byte of any other segment is kept.
const MaxResetPayload = 64

// Time is the packet's time stamp.
func (p *Packet) Time() time.Time { return time.Unix(0, p.Nanos) }

// Interface describes one network interface of a window.
type Interface struct {
	// Namespace is as in Packet.
	Namespace uint16 `json:"namespace,omitempty"`
	Index     uint32 `json:"index"`
	Name      string `json:"name"`
	LinkType  uint16 `json:"link_type"`
	MTU       int    `json:"mtu,omitempty"`
}

// Namespace is a network namespace that was recorded beside the recorder's own.
type Namespace struct {
	Index uint16 `json:"index"`
	// Inode identifies it on this host (the number in /proc/PID/ns/net).
	Inode uint64 `json:"inode"`
	// Path is where it was opened, such as /run/netns/blue or /proc/812/ns/net.
	Path string `json:"path"`
}

// Label is a short name for people: "blue" of /run/netns/blue, "pid812" of
// /proc/812/ns/net, and "ns<inode>" where the path tells nothing.
func (n *Namespace) Label() string {
	if pid, ok := strings.CutPrefix(n.Path, "/proc/"); ok {
		pid, _, _ = strings.Cut(pid, "/")
		return "pid" + pid
	}
	if n.Path == "" {
		return fmt.Sprintf("ns%d", n.Inode)
	}
	return path.Base(n.Path)
}

// Gap is a stretch of time in which the recorder may have missed packets.
type Gap struct {
	From time.Time `json:"from"`
	To   time.Time `json:"to"`
	// Lost is the number of packets that the kernel dropped, 0 if uncounted.
	Lost   uint64 `json:"lost"`
	Reason string `json:"reason"`
	// Complete tells that nothing is missing: the recorder changed how it keeps
	// packets, and notes when.
	Complete bool `json:"complete,omitempty"`
}

// Window is a frozen stretch of the flight buffer.
type Window struct {
	// From and To are the bounds that were asked for.
	From time.Time `json:"from"`
	To   time.Time `json:"to"`
	// HeldFrom is the time of the oldest packet that the buffer still held, the
	// honest beginning of the window if it is after From. Zero if the recorder
	// evicted nothing after From.
	HeldFrom   time.Time   `json:"held_from,omitzero"`
	Interfaces []Interface `json:"interfaces"`
	// Namespaces are those beside the recorder's own, by their index.
	Namespaces []Namespace `json:"namespaces,omitempty"`
	Gaps       []Gap       `json:"gaps,omitempty"`
	// PacketCount counts all packets of the window, further sightings included,
	// and ResetCount its RST segments, each once.
	PacketCount int `json:"packets"`
	ResetCount  int `json:"resets"`
	// Packets are those that a verdict is drawn from, not all of the window: a
	// window can hold millions. They are ordered by time and carry their Number.
	// They are stored as chunks, not as JSON.
	Packets []Packet `json:"-"`
	// Excerpts tell which of Packets are of which flow, by the first RST.
	Excerpts []Excerpt `json:"-"`
	// Answers are how servers answered SYNs, by address.
	Answers []Answer `json:"-"`
	// FlowCount counts the TCP connections of the window and ResetFlowCount those
	// with a RST, each once however many namespaces show it. FlowsAtLeast tells
	// that there were too many to count: the numbers are lower bounds.
	FlowCount      int  `json:"flows,omitempty"`
	ResetFlowCount int  `json:"reset_flows,omitempty"`
	FlowsAtLeast   bool `json:"flows_at_least,omitempty"`
	// SentResets counts the RST segments that left the recorder's own namespace
	// and had not come in just before: those that its TCP should have counted too
	// (Tcp OutRsts). It may be too high, never too low.
	SentResets int `json:"sent_resets,omitempty"`
	// OwnResets of the SentResets answered the recorder's self-test.
	OwnResets int `json:"own_resets,omitempty"`
	// Cut tells that Packets lacks some that a verdict could need, for their number
	// is bounded; flows that have no excerpt at all are no cut.
	Cut bool `json:"cut,omitempty"`
}

// Excerpt is a connection with a RST, by what a window keeps of it: the opening,
// the stretch before its first RST, and a little after.
type Excerpt struct {
	Key FlowKey
	// Namespace is as in Packet: one connection that two namespaces show has two
	// excerpts.
	Namespace uint16
	// Client is the initiator if its SYN was seen; otherwise the zero value.
	Client netip.AddrPort
	// Packets and Resets count the whole connection, further sightings left out,
	// and Bytes its payload, from Key.A and from Key.B.
	Packets, Resets int
	Bytes           [2]uint64
	First, Last     time.Time
	// Kept are the indices of the excerpt in Window.Packets, in order.
	Kept []int32
}

// InterfaceName returns the name for an ifindex of the recorder's own namespace,
// or "if<index>" if unknown.
func (w *Window) InterfaceName(index uint32) string { return w.interfaceName(0, index) }

// InterfaceOf returns the name of the interface that p was seen on, such as
// "eth0", or "eth0@blue" if it is of another namespace than the recorder's.
func (w *Window) InterfaceOf(p *Packet) string {
	name := w.interfaceName(p.Namespace, p.Interface)
	if p.Namespace == 0 {
		return name
	}
	return name + "@" + w.NamespaceLabel(p.Namespace)
}

func (w *Window) interfaceName(namespace uint16, index uint32) string {
	for i := range w.Interfaces {
		if w.Interfaces[i].Index == index && w.Interfaces[i].Namespace == namespace {
			return w.Interfaces[i].Name
		}
	}
	return fmt.Sprintf("if%d", index)
}

// NamespaceLabel names a namespace other than the recorder's own: "" for 0.
func (w *Window) NamespaceLabel(index uint16) string {
	if index == 0 {
		return ""
	}
	for i := range w.Namespaces {
		if w.Namespaces[i].Index == index {
			return w.Namespaces[i].Label()
		}
	}
	return fmt.Sprintf("ns-%d", index)
}

// Lost is the number of packets the kernel dropped inside the window.
func (w *Window) Lost() (n uint64) {
	for _, g := range w.Gaps {
		n += g.Lost
	}
	return n
}

// MarshalJSON writes the name.
func (d Direction) MarshalJSON() ([]byte, error) { return json.Marshal(d.String()) }

// UnmarshalJSON reads the name.
func (d *Direction) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	for i, name := range directionNames {
		if s == name {
			*d = Direction(i)
			return nil
		}
	}
	return fmt.Errorf("direction %q: not one of %v", s, directionNames)
}
