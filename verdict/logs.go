package verdict

import (
	"fmt"
	"time"

	"tcpcoroner/evidence"
)

// This file reads what the logs say of a flow. A log hints and never proves: parts
// of it are written by the client.

// logMeaning is what a reason means for the cause. Closer is the side, seen from the
// writer, that must have closed the connection for the line to fit; empty is the
// writer's own.
type logMeaning struct {
	cause  evidence.Cause
	closer evidence.LogParty
}

var logMeanings = map[evidence.LogReason]logMeaning{
	evidence.ReasonTimeout:         {evidence.CauseTimeout, ""},
	evidence.ReasonClientTimeout:   {evidence.CauseTimeout, ""},
	evidence.ReasonUpstreamTimeout: {evidence.CauseTimeout, ""},
	evidence.ReasonServerTimeout:   {evidence.CauseTimeout, ""},
	evidence.ReasonIdleTimeout:     {evidence.CauseTimeout, ""},
	evidence.ReasonQueueTimeout:    {evidence.CauseTimeout, ""},
	evidence.ReasonBodyTooLarge:    {evidence.CausePolicy, ""},
	evidence.ReasonHeaderTooLarge:  {evidence.CausePolicy, ""},
	evidence.ReasonLimit:           {evidence.CausePolicy, ""},
	evidence.ReasonReject:          {evidence.CausePolicy, ""},
	evidence.ReasonFirewall:        {evidence.CausePolicy, ""},
	evidence.ReasonTLSError:        {evidence.CausePolicy, ""},
	evidence.ReasonPlaintext:       {evidence.CauseProtocolMismatch, ""},
	evidence.ReasonProtocolError:   {evidence.CauseProtocolMismatch, ""},
	evidence.ReasonClientReset:     {evidence.CauseAppAbort, evidence.PartyClient},
	evidence.ReasonClientClosed:    {evidence.CauseAppAbort, evidence.PartyClient},
	evidence.ReasonUpstreamReset:   {evidence.CauseAppAbort, evidence.PartyServer},
	evidence.ReasonUpstreamClosed:  {evidence.CauseAppAbort, evidence.PartyServer},
}

// logWithin is how far a line's time may be from the event that it tells.
const logWithin = 100 * time.Millisecond

// byLog takes the cause from lines about the flow, if all agree with each other and
// with who closed first.
func byLog(c *caseFile, s *story) bool {
	d := &s.closing
	if d.at == nil || s.opinion.claim.Origin.Middlebox() {
		return false
	}
	var line *evidence.LogLine
	for i := range c.inc.Logs {
		l := &c.inc.Logs[i]
		m, ok := logMeanings[l.Reason]
		if !ok || !c.about(s, l) || (m.closer == "") != (d.by.addr == s.flow.Local) {
			continue
		}
		if line != nil && logMeanings[line.Reason] != m {
			return false // they contradict each other
		}
		line = l
	}
	if line == nil {
		return false
	}
	m := logMeanings[line.Reason]
	if m.cause == evidence.CauseAppAbort {
		s.opinion.add(logFact(line)) // who: the packets know more of why
		return false
	}
	s.opinion.add(logFact(line))
	s.logged, s.acted = line, "it acted after "+seconds(d.idle)
	sure := evidence.Likely
	if line.Precision < time.Second && s.opinion.claim.Confidence == evidence.Proven {
		sure = evidence.Proven
	}
	c.decided(s, fmt.Sprintf("after %s (%s: %s)", seconds(d.idle), line.Source, line.Reason), m.cause, sure)
	if sure == evidence.Proven {
		s.opinion.claim.PartyConfidence = evidence.Proven
	}
	return true
}

// about tells whether a line is about the flow: it names the flow's client end with
// its port, or one of its ends at the time of the closing and no other flow's.
func (c *caseFile) about(s *story, l *evidence.LogLine) bool {
	at := s.closing.at.Time
	if !l.Around(at.Add(-logWithin), at.Add(logWithin)) {
		return false
	}
	f := &s.flow
	for _, a := range l.Endpoints() {
		if a == f.Client {
			return true
		}
	}
	upstream := f.Local == f.Client
	switch {
	case upstream && l.Upstream == f.Server:
		return !l.Local.IsValid() || l.Local == f.Local
	case !upstream && l.Client.Addr() == f.Client.Addr():
		return l.Client.Port() == 0
	}
	return false
}

func logFact(l *evidence.LogLine) evidence.Finding {
	return evidence.Finding{Kind: evidence.KindLog, Source: string(l.Source), Text: fmt.Sprintf("%s: %s", l.Reason, l.Text)}
}
