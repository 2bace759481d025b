package evidence

import (
	"fmt"
	"net/netip"
	"time"
)

// FlowKey names a TCP flow, the same for both directions.
type FlowKey struct{ A, B netip.AddrPort }

// NewFlowKey orders the two ends.
func NewFlowKey(x, y netip.AddrPort) FlowKey {
	if x.Compare(y) > 0 {
		x, y = y, x
	}
	return FlowKey{x, y}
}

// Flow is one implicated TCP connection as a window shows it.
type Flow struct {
	// ID is stable inside an incident: "f1", "f2", ...
	ID string `json:"id"`
	// Client is the TCP initiator and Server its other end. InitiatorSeen tells
	// whether the SYN was in the window; otherwise the lower port is the server.
	Client        netip.AddrPort `json:"client"`
	Server        netip.AddrPort `json:"server"`
	InitiatorSeen bool           `json:"initiator_seen"`
	// Local is this host's end; the zero value if the flow is forwarded.
	Local netip.AddrPort `json:"local,omitzero"`
	// Namespace is where the flow's story is told from, as in Packet.
	Namespace uint16    `json:"namespace,omitempty"`
	First     time.Time `json:"first"`
	Last      time.Time `json:"last"`
	// Packets counts further sightings of a packet once.
	Packets int `json:"packets"`
	// Bytes of payload from client to server and back, retransmissions included.
	ClientBytes uint64 `json:"client_bytes"`
	ServerBytes uint64 `json:"server_bytes"`
	// Reset is the first RST; nil if the flow failed without one: its SYNs or its
	// data stayed unanswered.
	Reset *Reset `json:"reset,omitempty"`
	// Resets counts all RST segments of the flow, each once.
	Resets int `json:"resets"`
	// Timeline holds the steps that tell the story, at most MaxSteps.
	Timeline []Step `json:"timeline,omitempty"`
	// Owner is the process on this host that owns the flow's local end.
	Owner *Owner `json:"owner,omitempty"`
	// Related is the other leg's flow of the same proxy, whose end this one's is a
	// consequence of; empty if there is none.
	Related string `json:"related,omitempty"`
	// OwnerSource says how the owner is known.
	OwnerSource string  `json:"owner_source,omitempty"`
	Verdict     Verdict `json:"verdict"`
}

// MaxSteps bounds a flow's timeline.
const MaxSteps = 24

// Peer is the end that is not on this host; the zero value if forwarded.
func (f *Flow) Peer() netip.AddrPort {
	switch f.Local {
	case f.Client:
		return f.Server
	case f.Server:
		return f.Client
	}
	return netip.AddrPort{}
}

func (f *Flow) String() string { return fmt.Sprintf("%v > %v", f.Client, f.Server) }

// Reset is one RST segment, with what the forensic rules read of it.
type Reset struct {
	Time time.Time `json:"time"`
	// Packet is its number in the window, from 1, as Wireshark counts.
	Packet int `json:"packet"`
	// From is the address that the RST claims to come from.
	From      netip.AddrPort `json:"from"`
	Direction Direction      `json:"direction"`
	// Interface carries the namespace if it is not the recorder's own: "eth0@blue".
	Interface string `json:"interface"`
	Flags     string `json:"flags"`
	TTL       uint8  `json:"ttl"`
	Payload   []byte `json:"payload,omitempty"`
}

// Step is one packet of a flow's story.
type Step struct {
	Time   time.Time `json:"time"`
	Packet int       `json:"packet"`
	Flags  string    `json:"flags"`
	// Line reads like tcpdump: offset, direction (< received, > sent), numbers, remark.
	Line string `json:"line"`
}

// Answer counts how one address answered SYNs in a window.
type Answer struct {
	// From is the server's end, Namespace as in Packet.
	From      netip.AddrPort
	Namespace uint16
	// Accepted counts SYN/ACKs, Refused RSTs in answer to a SYN, further sightings
	// left out.
	Accepted, Refused int
	// Alternations counts the changes between the two.
	Alternations int
	// FirstAccepted and LastAccepted are when; zero if none was.
	FirstAccepted, LastAccepted time.Time
}
