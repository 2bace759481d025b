package evidence

import (
	"encoding/json"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestNewVerdict(t *testing.T) {
	packet := Finding{Kind: KindPacket, Text: "a RST"}
	counter := Finding{Kind: KindCounter, Text: "OutRsts grew"}
	against := Finding{Kind: KindSocket, Text: "a socket listens", Against: true}
	tests := []struct {
		name     string
		claimed  Confidence
		findings []Finding
		want     Confidence
		err      error
	}{
		{"no evidence", Likely, nil, "", ErrNoEvidence},
		{"only evidence against", Likely, []Finding{against}, "", ErrNoEvidence},
		{"one kind proves nothing", Proven, []Finding{packet, packet}, Likely, nil},
		{"two kinds prove", Proven, []Finding{packet, counter}, Proven, nil},
		{"a contradiction caps", Proven, []Finding{packet, counter, against}, Possible, nil},
		{"never raised", Possible, []Finding{packet, counter}, Possible, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v, err := NewVerdict(Claim{Origin: OriginLocalHost, Confidence: tt.claimed}, tt.findings...)
			if !errors.Is(err, tt.err) {
				t.Fatalf("error %v, want %v", err, tt.err)
			}
			if err == nil && v.Claim().Confidence != tt.want {
				t.Errorf("confidence %s, want %s", v.Claim().Confidence, tt.want)
			}
		})
	}
}

// TestCapsHoldForEachField: party and cause need what the verdict needs.
func TestCapsHoldForEachField(t *testing.T) {
	packet, log := Finding{Kind: KindPacket, Text: "a RST"}, Finding{Kind: KindLog, Text: "a line", Against: true}
	claim := Claim{Origin: OriginPeerHost, Confidence: Likely, PartyConfidence: Proven, CauseConfidence: Possible}
	for _, tt := range []struct {
		findings []Finding
		party    Confidence
	}{{[]Finding{packet}, Likely}, {[]Finding{packet, log}, Possible}, {[]Finding{packet, {Kind: KindKernel}}, Proven}} {
		v, err := NewVerdict(claim, tt.findings...)
		if c := v.Claim(); err != nil || c.PartyConfidence != tt.party || c.CauseConfidence != Possible || c.MechanismConfidence != "" {
			t.Errorf("%+v, error %v, want party %s", c, err, tt.party)
		}
	}
}

func TestFamilies(t *testing.T) {
	for m, want := range map[Mechanism]Mechanism{
		MechanismLinger: MechanismActiveAbort, MechanismRefusedFilter: MechanismRefused, MechanismLateData: MechanismNoSocket,
		MechanismQueueOverflow: MechanismQueueOverflow, MechanismActiveAbort: MechanismActiveAbort,
	} {
		if got := m.Family(); got != want {
			t.Errorf("%s is of %s, want %s", m, got, want)
		}
	}
	if !OriginLocalNetfilter.Local() || OriginPeerHost.Local() || !OriginNAT.Middlebox() || OriginForwarded.Middlebox() {
		t.Error("an origin is on the wrong side")
	}
}

func TestVerdictJSON(t *testing.T) {
	v, err := NewVerdict(Claim{Origin: OriginPeerHost, Mechanism: MechanismRefused, Confidence: Likely, Sentence: "s"},
		Finding{Kind: KindPacket, Text: "a RST", Packets: []int{3}})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []Verdict{v, Unknown("nothing fits", "a capture")} {
		b, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		var got Verdict
		if err := json.Unmarshal(b, &got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(Verdict{})); diff != "" {
			t.Errorf("round trip (-want +got):\n%s", diff)
		}
	}
}

func TestVerdictJSONWithoutEvidenceIsRefused(t *testing.T) {
	var v Verdict
	err := json.Unmarshal([]byte(`{"origin":"local.kernel","confidence":"proven","findings":[]}`), &v)
	if !errors.Is(err, ErrNoEvidence) {
		t.Errorf("error %v, want %v", err, ErrNoEvidence)
	}
}

func TestZeroVerdictIsUnknown(t *testing.T) {
	if c := (Verdict{}).Claim(); c.Origin != OriginUnknown || c.Confidence != Uncertain {
		t.Errorf("the zero verdict claims %+v", c)
	}
}

func TestDirectionJSON(t *testing.T) {
	for _, want := range []Direction{DirectionUnknown, Received, Sent, Loopback, Elsewhere} {
		b, _ := json.Marshal(want)
		var got Direction
		if err := json.Unmarshal(b, &got); err != nil || got != want {
			t.Errorf("%s became %s, error %v", want, got, err)
		}
	}
	var d Direction
	if err := json.Unmarshal([]byte(`"sideways"`), &d); err == nil {
		t.Error("an unknown direction was accepted")
	}
}

func TestIncidentCounterDelta(t *testing.T) {
	at := func(n uint64) Counters { return Counters{Values: map[string]uint64{"Tcp.OutRsts": n}} }
	inc := Incident{Before: at(10), At: &Snapshot{Counters: at(12)}, After: &Snapshot{Counters: at(70)}}
	if got := inc.CounterDelta("Tcp.OutRsts"); got != 60 {
		t.Errorf("delta %d, want 60", got)
	}
	inc.After = nil
	if got := inc.CounterDelta("Tcp.OutRsts"); got != 2 {
		t.Errorf("delta to the firing %d, want 2", got)
	}
	if got := inc.CounterDelta("TcpExt.ListenDrops"); got != 0 {
		t.Errorf("unknown counter moved by %d", got)
	}
}
