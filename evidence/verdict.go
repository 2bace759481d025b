package evidence

import (
	"encoding/json"
	"errors"
	"strings"
	"time"
)

// Origin says who sent the RST, seen from this host.
type Origin string

// The origins. Those of the peer are under the address that the RST came from:
// what else lives at that address cannot be seen from here.
const (
	OriginLocalProcess Origin = "local.process"
	OriginLocalKernel  Origin = "local.kernel"
	// OriginLocalNetfilter: a packet filter of this host made it.
	OriginLocalNetfilter Origin = "local.netfilter"
	// OriginLocalOther: it left this host, and neither TCP nor the packet filter
	// made it (raw socket, tc, XDP).
	OriginLocalOther Origin = "local.other_sender"
	// OriginLocalHost: this host sent it; process, kernel or filter is undecided.
	OriginLocalHost   Origin = "local.host"
	OriginPeerProcess Origin = "peer.process"
	OriginPeerKernel  Origin = "peer.kernel"
	// OriginPeerHost: it came in under the peer's address; nothing finer is known.
	OriginPeerHost Origin = "peer.host"
	// OriginMiddlebox: a device on the path made it, in the name of the peer; near
	// is nearer to this host than the peer, far is behind the peer's address.
	OriginMiddlebox     Origin = "middlebox"
	OriginMiddleboxNear Origin = "middlebox.near"
	OriginMiddleboxFar  Origin = "middlebox.far"
	// OriginNAT: the translator whose address the peer hides behind.
	OriginNAT       Origin = "nat"
	OriginForwarded Origin = "forwarded"
	OriginNone      Origin = "none"
	OriginUnknown   Origin = "unknown"
)

// Local tells whether this host sent the RST.
func (o Origin) Local() bool { return strings.HasPrefix(string(o), "local.") }

// Middlebox tells whether a device on the path sent it.
func (o Origin) Middlebox() bool { return strings.HasPrefix(string(o), "middlebox") || o == OriginNAT }

// Mechanism says how the RST came to be, or without one how the flow failed. A
// name of several parts is a finer case of its family.
type Mechanism string

// The mechanisms.
const (
	// MechanismRefused is the family of what answers a SYN; the finer ones follow.
	MechanismRefused          Mechanism = "refused"
	MechanismRefusedListener  Mechanism = "refused.no_listener"
	MechanismRefusedFilter    Mechanism = "refused.filter"
	MechanismRefusedRateLimit Mechanism = "refused.ratelimit"
	// MechanismNoSocket: a segment of a connection that the host does not know;
	// MechanismStateLost where it once did.
	MechanismNoSocket     Mechanism = "no_socket"
	MechanismStateLost    Mechanism = "state_lost"
	MechanismStateLostNAT Mechanism = "state_lost.nat"
	MechanismLateData     Mechanism = "late_data.after_close"
	// MechanismActiveAbort is the family of open sockets that were ended by RST.
	MechanismActiveAbort    Mechanism = "active_abort"
	MechanismUnread         Mechanism = "abort.unread_data"
	MechanismLinger         Mechanism = "abort.linger0"
	MechanismKilledSocket   Mechanism = "abort.killed_socket"
	MechanismListenerClosed Mechanism = "abort.listener_closed"
	MechanismProcessExit    Mechanism = "abort.process_exit"
	MechanismMemory         Mechanism = "abort.memory"
	MechanismKeepalive      Mechanism = "abort.keepalive"
	// MechanismAfterFIN: a RST behind a FIN, with nothing outstanding.
	MechanismAfterFIN       Mechanism = "after_fin"
	MechanismQueueOverflow  Mechanism = "overflow.accept_queue"
	MechanismConntrackFull  Mechanism = "conntrack.full"
	MechanismPortExhaustion Mechanism = "port_exhaustion"
	MechanismInjected       Mechanism = "injected.spoof"
	// MechanismInjectedBlind: a RST that its receiver ignored.
	MechanismInjectedBlind Mechanism = "injected.blind_ignored"
	// MechanismSilent: no RST; segments stayed unanswered until somebody gave up.
	MechanismSilent       Mechanism = "timeout.silent"
	MechanismMTUBlackhole Mechanism = "mtu_blackhole"
	MechanismUnknown      Mechanism = "unknown"
)

// Family is the mechanism that m is a case of, m itself if of none:
// MechanismActiveAbort, MechanismRefused, MechanismNoSocket.
func (m Mechanism) Family() Mechanism {
	switch m {
	case MechanismUnread, MechanismLinger, MechanismKilledSocket, MechanismListenerClosed, MechanismProcessExit,
		MechanismMemory, MechanismKeepalive:
		return MechanismActiveAbort
	case MechanismRefusedListener, MechanismRefusedFilter, MechanismRefusedRateLimit:
		return MechanismRefused
	case MechanismStateLost, MechanismStateLostNAT, MechanismLateData:
		return MechanismNoSocket
	}
	return m
}

// Party is who has to act.
type Party string

// The parties. A filter or a queue on a party's host counts as the party's.
const (
	Client  Party = "client"
	Proxy   Party = "proxy"
	Server  Party = "server"
	Network Party = "network"
	// PartyUnknown is also what the zero value means.
	PartyUnknown Party = "unknown"
)

// Cause says why the decision was made.
type Cause string

// The causes.
const (
	CauseAppAbort         Cause = "app_abort"
	CauseTimeout          Cause = "timeout"
	CausePolicy           Cause = "policy"
	CauseProcessDown      Cause = "process_down"
	CauseBacklogFull      Cause = "backlog_full"
	CauseConntrackFull    Cause = "conntrack_full"
	CausePortsExhausted   Cause = "ports_exhausted"
	CauseStaleReuse       Cause = "stale_reuse"
	CauseStateLost        Cause = "state_lost"
	CausePathDrop         Cause = "path_drop"
	CauseForged           Cause = "forged"
	CauseProtocolMismatch Cause = "protocol_mismatch"
	CauseMemory           Cause = "memory"
	CauseNormalClose      Cause = "normal_close"
	CauseScan             Cause = "scan"
	CauseHealthCheck      Cause = "health_check"
	CauseUnknown          Cause = "unknown"
)

// Layer says where the decision was made.
type Layer string

// The layers.
const (
	LayerApplication Layer = "application"
	LayerTransport   Layer = "transport"
	LayerNetwork     Layer = "network"
	LayerUnknown     Layer = "unknown"
)

// Confidence is a band, never a made-up percentage.
type Confidence string

// The bands: proven needs two independent kinds of evidence that agree.
const (
	Proven    Confidence = "proven"
	Likely    Confidence = "likely"
	Possible  Confidence = "possible"
	Uncertain Confidence = "unknown"
)

var confidenceOrder = map[Confidence]int{Possible: 1, Likely: 2, Proven: 3}

// AtMost lowers v to limit; what is not stated stays so.
func (v Confidence) AtMost(limit Confidence) Confidence {
	if v != "" && confidenceOrder[v] > confidenceOrder[limit] {
		return limit
	}
	return v
}

// Kind is the kind of source a finding comes from. Two findings of one kind
// never prove each other.
type Kind string

// The kinds of sources.
const (
	KindPacket   Kind = "packet"
	KindSocket   Kind = "socket"
	KindCounter  Kind = "counter"
	KindFirewall Kind = "conntrack"
	KindKernel   Kind = "kernel"
	KindRule     Kind = "firewall_rule"
	KindProcess  Kind = "process"
	KindLog      Kind = "log"
)

// Finding is one observed fact that speaks for or against a verdict.
type Finding struct {
	Kind Kind `json:"kind"`
	// Text states the fact with its numbers.
	Text string `json:"text"`
	// Source is the rule's origin: RFC section, kernel file, man page.
	Source string `json:"source,omitempty"`
	// Packets are the numbers in the window that show it.
	Packets []int `json:"packets,omitempty"`
	// Against is true if the fact contradicts the verdict.
	Against bool `json:"against,omitempty"`
}

// Claim is the content of a verdict.
type Claim struct {
	Origin     Origin     `json:"origin"`
	Mechanism  Mechanism  `json:"mechanism"`
	Layer      Layer      `json:"layer"`
	Confidence Confidence `json:"confidence"`
	// MechanismConfidence is that of Mechanism where it is not Confidence.
	MechanismConfidence Confidence `json:"mechanism_confidence,omitempty"`
	Benign              bool       `json:"benign"`
	// Party has to act, and Cause says why it came to this. How sure each is; the
	// other fields are as sure as Confidence.
	Party           Party      `json:"party,omitempty"`
	PartyConfidence Confidence `json:"party_confidence,omitempty"`
	Cause           Cause      `json:"cause,omitempty"`
	CauseConfidence Confidence `json:"cause_confidence,omitempty"`
	// Process is the one on this host that did it, dead or alive; nil if it was
	// none or is not known.
	Process *Owner `json:"process,omitempty"`
	// Decision is what came first: the FIN, the timeout or the policy that the RST
	// is only a consequence of. Nil if the RST itself was the decision.
	Decision *Decision `json:"decision,omitempty"`
	// Trigger is the number of the packet that provoked the RST, 0 if none did.
	Trigger int `json:"trigger,omitempty"`
	// Excluded are the other explanations, and why they are none.
	Excluded []string `json:"excluded,omitempty"`
	// Advice is what to do, most useful first.
	Advice []Advice `json:"advice,omitempty"`
	// Sentence tells it to a person.
	Sentence string `json:"sentence"`
	// Settle says what single piece of evidence would settle or change it.
	Settle string `json:"settle,omitempty"`
}

// Decision is what made a connection end before its RST.
type Decision struct {
	// By is who decided, as a party or an address.
	By   string    `json:"by"`
	Time time.Time `json:"time,omitzero"`
	// Packet is the number of the packet that shows it, 0 if none does.
	Packet int `json:"packet,omitempty"`
	// Text tells it: "closed with FIN after 60.0 s of silence (timeout server)".
	Text string `json:"text"`
}

// Advice is one thing that an operator can do.
type Advice struct {
	Text string `json:"text"`
	// Knob is the setting and Value what it is on this host; empty if it is not
	// one, or not readable. SideEffect is what else changing it does.
	Knob       string `json:"knob,omitempty"`
	Value      string `json:"value,omitempty"`
	SideEffect string `json:"side_effect,omitempty"`
}

// Verdict is a claim with the evidence it stands on. Only NewVerdict and
// Unknown make one: a claim without a finding for it is refused.
type Verdict struct {
	claim    Claim
	findings []Finding
}

// ErrNoEvidence is returned for a claim that nothing speaks for.
var ErrNoEvidence = errors.New("a verdict needs at least one finding that speaks for it")

// NewVerdict makes a verdict. The confidences are capped: proven needs findings of
// two kinds, and a finding against caps at possible.
func NewVerdict(c Claim, findings ...Finding) (Verdict, error) {
	kinds, against := map[Kind]bool{}, false
	for _, f := range findings {
		if f.Against {
			against = true
			continue
		}
		kinds[f.Kind] = true
	}
	if len(kinds) == 0 {
		return Verdict{}, ErrNoEvidence
	}
	for _, v := range []*Confidence{&c.Confidence, &c.MechanismConfidence, &c.PartyConfidence, &c.CauseConfidence} {
		if len(kinds) < 2 {
			*v = v.AtMost(Likely)
		}
		if against {
			*v = v.AtMost(Possible)
		}
	}
	return Verdict{c, findings}, nil
}

// Unknown is the verdict that nothing is known; settle says what would help.
func Unknown(sentence, settle string, findings ...Finding) Verdict {
	return Verdict{Claim{
		Origin: OriginUnknown, Mechanism: MechanismUnknown, Layer: LayerUnknown,
		Confidence: Uncertain, Sentence: sentence, Settle: settle,
	}, findings}
}

// Claim returns what the verdict says. The zero Verdict is unknown.
func (v Verdict) Claim() Claim {
	if v.claim.Origin == "" {
		return Unknown("not judged", "").claim
	}
	return v.claim
}

// Findings returns the evidence; do not write it.
func (v Verdict) Findings() []Finding { return v.findings }

func (v Verdict) String() string { return v.Claim().Sentence }

type verdictJSON struct {
	Claim
	Findings []Finding `json:"findings"`
}

// MarshalJSON writes claim and findings as one object.
func (v Verdict) MarshalJSON() ([]byte, error) {
	return json.Marshal(verdictJSON{v.Claim(), v.findings})
}

// UnmarshalJSON refuses a claim without evidence, as NewVerdict does.
func (v *Verdict) UnmarshalJSON(b []byte) (err error) {
	var j verdictJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return err
	}
	if j.Confidence == Uncertain {
		*v = Verdict{j.Claim, j.Findings}
		return nil
	}
	*v, err = NewVerdict(j.Claim, j.Findings...)
	return err
}
