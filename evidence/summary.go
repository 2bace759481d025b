package evidence

import "time"

// Summary is an incident in one line of a list.
type Summary struct {
	ID      string    `json:"id"`
	Time    time.Time `json:"time"`
	Trigger string    `json:"trigger"`
	// Verdict is the sentence.
	Verdict    string     `json:"verdict"`
	Origin     Origin     `json:"origin"`
	Mechanism  Mechanism  `json:"mechanism"`
	Confidence Confidence `json:"confidence"`
	Benign     bool       `json:"benign"`
	// Flows are those with a RST, Resets the RST segments, Packets all packets.
	Flows   int    `json:"flows"`
	Resets  int    `json:"resets"`
	Packets int    `json:"packets"`
	TraceID string `json:"trace_id"`
}

// Summary makes the line of an incident.
func (i *Incident) Summary() Summary {
	c := i.Verdict.Claim()
	return Summary{
		ID: i.ID, Time: i.Time.UTC(), Trigger: i.Trigger(), Verdict: c.Sentence, Origin: c.Origin,
		Mechanism: c.Mechanism, Confidence: c.Confidence, Benign: c.Benign, Flows: i.FlowsImplicated,
		Resets: i.Window.ResetCount, Packets: i.Window.PacketCount, TraceID: i.TraceID,
	}
}
