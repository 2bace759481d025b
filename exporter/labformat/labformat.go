// Package labformat writes an incident as rstlab-verdict/1, the flat JSON in which
// tools that explain TCP resets are compared: who, how, why and how sure, one entry
// a connection, in words that no tool made up for itself.
//
// It says what the incident says and nothing more: it judges nothing, and a field
// that has no word in the format is left out.
package labformat

import (
	"cmp"
	"net/netip"
	"time"

	"tcpcoroner/evidence"
)

// Name is the format's name.
const Name = "rstlab-verdict/1"

// Report is one file of the format.
type Report struct {
	Format string `json:"format"`
	// Vantage names the host that looked.
	Vantage   string     `json:"vantage"`
	Flows     []Flow     `json:"flows"`
	Incidents []Incident `json:"incidents"`
	Alarms    []Alarm    `json:"alarms"`
}

// Flow is one connection. Time is that of its first RST, in seconds since 1970, or
// of its first packet if it has none.
type Flow struct {
	Src     netip.Addr `json:"src"`
	Sport   uint16     `json:"sport"`
	Dst     netip.Addr `json:"dst"`
	Dport   uint16     `json:"dport"`
	Time    float64    `json:"time"`
	Verdict Verdict    `json:"verdict"`
	// Confidence is by field, for those that may differ from the verdict's.
	Confidence map[string]Confidence `json:"confidence,omitempty"`
}

// Verdict holds words of the format; what is not known is empty.
type Verdict struct {
	Origin     string     `json:"origin,omitempty"`
	Party      string     `json:"party,omitempty"`
	Mechanism  string     `json:"mechanism,omitempty"`
	Cause      string     `json:"cause,omitempty"`
	PID        int        `json:"pid,omitempty"`
	Comm       string     `json:"comm,omitempty"`
	Benign     bool       `json:"benign,omitempty"`
	Confidence Confidence `json:"confidence"`
	// Sentence is ours; the format allows more fields.
	Sentence string `json:"sentence,omitempty"`
}

// Confidence is "certain", "likely", "unknown", or a number from 0 to 1.
type Confidence any

// Incident is the sentence about all of it. Its Confidence is by field; the empty
// key stands for all others.
type Incident struct {
	Time       float64               `json:"time"`
	Party      string                `json:"party,omitempty"`
	Cause      string                `json:"cause,omitempty"`
	Confidence map[string]Confidence `json:"confidence"`
	Sentence   string                `json:"sentence,omitempty"`
}

// Alarm is a trigger that fired.
type Alarm struct {
	Time   float64 `json:"time"`
	Kind   string  `json:"kind"`
	Benign bool    `json:"benign,omitempty"`
}

// Of is the report of an incident that was seen from the named host.
func Of(inc *evidence.Incident, vantage string) Report {
	r := Report{Format: Name, Vantage: vantage, Flows: []Flow{}, Incidents: []Incident{}, Alarms: []Alarm{}}
	for i := range inc.Flows {
		r.Flows = append(r.Flows, flowOf(&inc.Flows[i]))
	}
	claim := inc.Verdict.Claim()
	// What is harmless is nobody's incident.
	if i := incidentOf(claim, inc.Time); !claim.Benign && (i.Party != "" || i.Cause != "") {
		r.Incidents = append(r.Incidents, i)
	}
	for _, f := range inc.Firings {
		if kind := alarmKind(f.Trigger); kind != "" {
			r.Alarms = append(r.Alarms, Alarm{Time: seconds(f.Time), Kind: kind, Benign: claim.Benign})
		}
	}
	return r
}

func flowOf(f *evidence.Flow) Flow {
	c := f.Verdict.Claim()
	at := f.First
	if f.Reset != nil {
		at = f.Reset.Time
	}
	v := Verdict{
		Origin: origins[c.Origin], Mechanism: mechanismOf(c), Party: parties[c.Party], Cause: causes[c.Cause],
		Benign: c.Benign, Confidence: sureness(c.Confidence), Sentence: c.Sentence,
	}
	if c.Process != nil {
		v.PID, v.Comm = c.Process.PID, c.Process.Comm
	}
	return Flow{
		Src: f.Client.Addr(), Sport: f.Client.Port(), Dst: f.Server.Addr(), Dport: f.Server.Port(),
		Time: seconds(at), Verdict: v, Confidence: fields(c),
	}
}

func incidentOf(c evidence.Claim, at time.Time) Incident {
	i := Incident{
		Time: seconds(at), Party: parties[c.Party], Cause: causes[c.Cause],
		Confidence: fields(c), Sentence: c.Sentence,
	}
	i.Confidence[""] = sureness(c.Confidence)
	return i
}

// fields is how sure each field is that may have a confidence of its own.
func fields(c evidence.Claim) map[string]Confidence {
	own := func(v evidence.Confidence) Confidence { return sureness(cmp.Or(v, c.Confidence)) }
	return map[string]Confidence{"mechanism": own(c.MechanismConfidence), "party": own(c.PartyConfidence), "cause": own(c.CauseConfidence)}
}

// possible is nearer to a guess than to likely: the format has words for neither.
const possible = 0.45

func sureness(c evidence.Confidence) Confidence {
	switch c {
	case evidence.Proven:
		return "certain"
	case evidence.Likely:
		return "likely"
	case evidence.Possible:
		return possible
	}
	return "unknown"
}

// alarmKind is empty for a freeze by hand: it woke nobody.
func alarmKind(trigger string) string {
	kind, known := kinds[trigger]
	if !known {
		return otherKind
	}
	return kind
}

func seconds(t time.Time) float64 { return float64(t.UnixMicro()) / 1e6 }
