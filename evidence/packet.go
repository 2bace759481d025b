package evidence

import (
	"encoding/json"
	"fmt"
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

// Packet is the header of one packet as the recorder kept it.
type Packet struct {
	// Nanos is the kernel's receive time, CLOCK_REALTIME in nanoseconds.
	Nanos int64
	// Interface is the ifindex the packet was seen on.
	Interface uint32
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
	Index    uint32 `json:"index"`
	Name     string `json:"name"`
	LinkType uint16 `json:"link_type"`
	MTU      int    `json:"mtu,omitempty"`
}

// Gap is a stretch of time in which the recorder may have missed packets.
type Gap struct {
	From time.Time `json:"from"`
	To   time.Time `json:"to"`
	// Lost is the number of packets that the kernel dropped, 0 if uncounted.
	Lost   uint64 `json:"lost"`
	Reason string `json:"reason"`
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
	Gaps       []Gap       `json:"gaps,omitempty"`
	// PacketCount and ResetCount stay when the packets are stored elsewhere.
	PacketCount int `json:"packets"`
	ResetCount  int `json:"resets"`
	// Packets are ordered by time. They are stored as chunks, not as JSON.
	Packets []Packet `json:"-"`
}

// InterfaceName returns the name for an ifindex, or "if<index>" if unknown.
func (w *Window) InterfaceName(index uint32) string {
	for _, i := range w.Interfaces {
		if i.Index == index {
			return i.Name
		}
	}
	return fmt.Sprintf("if%d", index)
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
