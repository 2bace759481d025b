package evidence

import (
	"encoding/json"
	"errors"
)

// Origin says who sent the RST, seen from this host.
type Origin string

// The origins that today's rules can name.
const (
	OriginLocalProcess Origin = "local.process"
	OriginLocalKernel  Origin = "local.kernel"
	// OriginLocalHost: this host sent it; process, kernel or filter is undecided.
	OriginLocalHost   Origin = "local.host"
	OriginPeerProcess Origin = "peer.process"
	// OriginPeerHost: it came in under the peer's address; nothing finer is known.
	OriginPeerHost  Origin = "peer.host"
	OriginForwarded Origin = "forwarded"
	OriginNone      Origin = "none"
	OriginUnknown   Origin = "unknown"
)

// Mechanism says how the RST came to be.
type Mechanism string

// The mechanisms that today's rules can name.
const (
	MechanismRefused       Mechanism = "refused"
	MechanismNoSocket      Mechanism = "no_socket"
	MechanismActiveAbort   Mechanism = "active_abort"
	MechanismAfterFIN      Mechanism = "after_fin"
	MechanismQueueOverflow Mechanism = "overflow.accept_queue"
	MechanismConntrackFull Mechanism = "conntrack.full"
	MechanismUnknown       Mechanism = "unknown"
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

// Kind is the kind of source a finding comes from. Two findings of one kind
// never prove each other.
type Kind string

// The kinds of sources.
const (
	KindPacket   Kind = "packet"
	KindSocket   Kind = "socket"
	KindCounter  Kind = "counter"
	KindFirewall Kind = "conntrack"
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
	Benign     bool       `json:"benign"`
	// Sentence tells it to a person.
	Sentence string `json:"sentence"`
	// Settle says what single piece of evidence would settle or change it.
	Settle string `json:"settle,omitempty"`
}

// Verdict is a claim with the evidence it stands on. Only NewVerdict and
// Unknown make one: a claim without a finding for it is refused.
type Verdict struct {
	claim    Claim
	findings []Finding
}

// ErrNoEvidence is returned for a claim that nothing speaks for.
var ErrNoEvidence = errors.New("a verdict needs at least one finding that speaks for it")

// NewVerdict makes a verdict. The confidence is capped: proven needs findings of
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
	if c.Confidence == Proven && len(kinds) < 2 {
		c.Confidence = Likely
	}
	if against && (c.Confidence == Proven || c.Confidence == Likely) {
		c.Confidence = Possible
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
