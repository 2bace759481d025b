package evidence

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
)

// HarmKind says what a reset did to the people behind it.
type HarmKind uint8

// The kinds. Those before HarmDataLost are benign: nobody missed anything.
const (
	// HarmHealthCheck is a client that connects and resets at once, without a byte.
	HarmHealthCheck HarmKind = iota
	// HarmAfterFIN is a reset of a connection that an end had closed, with nothing
	// on its way.
	HarmAfterFIN
	// HarmAbortAfterResponse is a client that resets after it has the whole answer.
	HarmAbortAfterResponse
	// HarmScan is a source that tries many ports.
	HarmScan
	// HarmStartup is a refused connection that was not tried again and again.
	HarmStartup
	// HarmDuplicate is a further reset of a connection that was reset just before, or
	// of the other connections of a page that a client left: up to six are one.
	HarmDuplicate
	// HarmIgnored is a reset that a receiver ignores: it is outside of the window or
	// not exactly the next byte (RFC 5961, 3.2).
	HarmIgnored
	// HarmStray answers a connection that the recorder knows nothing of.
	HarmStray
	// HarmIdleClose is a reset of a connection on which nothing was on its way for a
	// while.
	HarmIdleClose
	// HarmPreconnect is a client that resets a connection it never used.
	HarmPreconnect
	// HarmAbandoned is a client that leaves in the middle of an answer, as users of
	// browsers do, where nobody else left the service within five seconds. The next
	// one is harm.
	HarmAbandoned
	// HarmDataLost is a reset with data on its way, or data for an end that had
	// closed.
	HarmDataLost
	// HarmUnanswered is a reset after a request and before its answer.
	HarmUnanswered
	// HarmMidstream is a reset in the middle of an exchange.
	HarmMidstream
	// HarmRefusedServing is a connection refused by a port that was serving.
	HarmRefusedServing
	// HarmRefused is a connection refused again and again.
	HarmRefused

	// HarmKinds is the number of kinds.
	HarmKinds
)

var harmNames = [HarmKinds]string{
	"healthcheck", "after_fin", "abort_after_response", "scan", "refused_startup", "duplicate", "ignored", "stray",
	"idle_close", "preconnect", "abandoned", "data_lost", "unanswered", "midstream", "refused_serving", "refused",
}

func (k HarmKind) String() string {
	if k < HarmKinds {
		return harmNames[k]
	}
	return fmt.Sprintf("harm(%d)", uint8(k))
}

// Harmful tells whether somebody missed something.
func (k HarmKind) Harmful() bool { return k >= HarmDataLost && k < HarmKinds }

// HarmCounts counts resets by kind.
type HarmCounts [HarmKinds]uint64

// Harmful is how many of them were.
func (c *HarmCounts) Harmful() (n uint64) {
	for k := HarmDataLost; k < HarmKinds; k++ {
		n += c[k]
	}
	return n
}

// MarshalJSON writes {"data_lost": 3}: those that were seen, by name.
func (c HarmCounts) MarshalJSON() ([]byte, error) {
	seen := map[string]uint64{}
	for k, n := range c {
		if n != 0 {
			seen[HarmKind(k).String()] = n
		}
	}
	return json.Marshal(seen)
}

// UnmarshalJSON reads what MarshalJSON wrote. A kind that it does not know is an error.
func (c *HarmCounts) UnmarshalJSON(text []byte) error {
	var seen map[string]uint64
	if err := json.Unmarshal(text, &seen); err != nil {
		return fmt.Errorf("read resets by kind: %w", err)
	}
	*c = HarmCounts{}
	for name, n := range seen {
		k := slices.Index(harmNames[:], name)
		if k < 0 {
			return fmt.Errorf("read resets by kind: %q is none", name)
		}
		c[k] = n
	}
	return nil
}

// HarmGroup is a service and a neighbourhood of its peers.
type HarmGroup struct {
	// Port is that of the service.
	Port uint16 `json:"port"`
	// Outbound tells that the peers run the service and this host is its client.
	Outbound bool `json:"outbound,omitempty"`
	// Peers is the /24 or /56 of the end that is not on this host; of traffic that
	// is only forwarded, of the client.
	Peers netip.Prefix `json:"peers"`
}

// String reads "port 443 for 192.0.2.0/24".
func (g HarmGroup) String() string {
	if g.Outbound {
		return fmt.Sprintf("port %d of %v", g.Port, g.Peers)
	}
	return fmt.Sprintf("port %d for %v", g.Port, g.Peers)
}

// GroupHarm is what the resets of one group did since the group is known.
type GroupHarm struct {
	HarmGroup
	Kinds HarmCounts `json:"kinds"`
}

// HarmSample is what all resets did since the recorder began.
type HarmSample struct {
	Kinds HarmCounts `json:"kinds"`
	// Score is the sum of the scores, from 0 to 100 each, of all resets.
	Score uint64 `json:"score"`
	// Closes counts connections that ended, with FIN or RST, each once.
	Closes uint64 `json:"closes"`
	// Unscored counts RST segments that were too odd to be scored, such as those in
	// tunnels.
	Unscored uint64 `json:"unscored"`
	// Groups are those with a harmful reset, in no order; of many groups those that
	// saw harm lately. Evicted counts those that were forgotten.
	Groups  []GroupHarm `json:"groups,omitempty"`
	Evicted uint64      `json:"evicted"`
}
