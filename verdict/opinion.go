package verdict

import (
	"fmt"

	"tcpcoroner/evidence"
)

// opinion is what is thought of a flow while it is judged. The rules add to it in
// three steps: who sent the RST and how; who ended the connection first and why;
// who has to act.
type opinion struct {
	claim evidence.Claim
	facts []evidence.Finding
	// because tells the cause in words, after the sentence.
	because string
	// aside tells that because goes on with the sentence.
	aside bool
	// cap is the most that the evidence allows, and why; Proven where nothing limits.
	cap evidence.Confidence
	// doubted tells that nobody may be named.
	doubted bool
}

func (o *opinion) add(f ...evidence.Finding) { o.facts = append(o.facts, f...) }

// exclude notes an explanation that is none, and why.
func (o *opinion) exclude(format string, args ...any) {
	o.claim.Excluded = append(o.claim.Excluded, fmt.Sprintf(format, args...))
}

// limit lowers the cap.
func (o *opinion) limit(v evidence.Confidence) { o.cap = o.cap.AtMost(v) }

// blame sets party and cause.
func (o *opinion) blame(p evidence.Party, pc evidence.Confidence, cause evidence.Cause, cc evidence.Confidence, because string) {
	o.claim.Party, o.claim.PartyConfidence = p, pc
	o.claim.Cause, o.claim.CauseConfidence = cause, cc
	if p == "" || p == evidence.PartyUnknown {
		o.claim.Party, o.claim.PartyConfidence = evidence.PartyUnknown, evidence.Uncertain
	}
	o.because, o.aside = because, false
}

// This is the one place where confidence is bounded. The rules say how sure they
// are of themselves; then these limits apply:
//
//   - proven needs two independent kinds of evidence, and a finding against leaves
//     possible at most (evidence.NewVerdict);
//   - packets that may be missing from the flow, or too few that were kept, leave
//     likely at most;
//   - a RST of a flow of which nothing came before leaves likely at most;
//   - party and cause are under the same limits, and never surer than the origin.
func (c *caseFile) bound(s *story) {
	o := &s.opinion
	if f, holed := c.hole(s); holed {
		o.limit(evidence.Likely)
		o.add(f)
	}
	if c.window.Lost() > 0 || c.window.Cut {
		o.limit(evidence.Likely)
	}
	if s.trigger == nil && s.event == nil {
		o.limit(evidence.Likely)
	}
	cl := &o.claim
	if cl.MechanismConfidence == "" {
		cl.MechanismConfidence = cl.Confidence
	}
	for _, v := range []*evidence.Confidence{&cl.Confidence, &cl.MechanismConfidence, &cl.PartyConfidence, &cl.CauseConfidence} {
		*v = v.AtMost(o.cap)
	}
	cl.PartyConfidence, cl.CauseConfidence = cl.PartyConfidence.AtMost(cl.Confidence), cl.CauseConfidence.AtMost(cl.Confidence)
	if cl.MechanismConfidence == cl.Confidence {
		cl.MechanismConfidence = ""
	}
}

// hole is a stretch of the flow's life in which the recorder may have missed
// packets. What was kept completely is none.
func (c *caseFile) hole(s *story) (evidence.Finding, bool) {
	for _, g := range c.window.Gaps {
		if !g.Complete && g.From.Before(s.time()) && g.To.After(s.flow.First) {
			return evidence.Finding{Kind: evidence.KindPacket, Against: s.opinion.claim.Benign, Text: fmt.Sprintf(
				"not all packets of the flow were kept, data may have been outstanding: %s", g.Reason)}, true
		}
	}
	return evidence.Finding{}, false
}

// verdict makes the flow's verdict of its opinion.
func (c *caseFile) verdict(s *story) evidence.Verdict {
	o := &s.opinion
	c.bound(s)
	switch {
	case o.because != "" && o.aside:
		o.claim.Sentence += ", " + o.because
	case o.because != "":
		o.claim.Sentence += "; " + o.because
	}
	if o.doubted || o.claim.Confidence == evidence.Uncertain || o.claim.Confidence == "" {
		return evidence.Unknown(o.claim.Sentence, o.claim.Settle, o.facts...)
	}
	o.claim.Advice = c.advice(s)
	v, _ := must(o.claim, o.facts...)
	return v
}
