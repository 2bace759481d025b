package report

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"tcpcoroner/evidence"
)

// Whole writes the report of an incident that is in no store: it is Text without
// the way to its capture.
func Whole(w io.Writer, inc *evidence.Incident, zone *time.Location) error {
	return write(w, inc, zone, verdict, facts, findings, flows, timeline,
		kernelEvents, logLines, rules, processes, changes,
		listeners, conntrack, counters, interfaces, missing)
}

// Explain writes how the verdicts of flows of an incident were found: the chain of
// packets, the evidence for and against, what else it could have been, what to do.
// Without flows it explains the incident's own verdict, and an exemplar of each kind.
func Explain(w io.Writer, inc *evidence.Incident, only []*evidence.Flow, zone *time.Location) error {
	sections := []func(*page){verdict, findings}
	if only != nil {
		sections = nil
	} else {
		groups := grouped(inc.Flows)
		for _, g := range groups[:min(len(groups), maxGroups)] {
			only = append(only, g.flows[0])
		}
	}
	for _, f := range only {
		sections = append(sections, func(p *page) { explainFlow(p, f) })
	}
	return write(w, inc, zone, append(sections, missing)...)
}

func write(w io.Writer, inc *evidence.Incident, zone *time.Location, sections ...func(*page)) error {
	p := &page{inc: inc, zone: zone}
	for _, section := range sections {
		section(p)
	}
	text := strings.TrimLeft(p.b.String(), "\n")
	if _, err := io.WriteString(w, text); err != nil {
		return fmt.Errorf("write report of incident %s: %w", inc.ID, err)
	}
	return nil
}

// explainFlow is all that is known of one flow, its verdict first.
func explainFlow(p *page, f *evidence.Flow) {
	c := f.Verdict.Claim()
	p.heading("FLOW %s, %s%s", f.ID, f, p.in(f))
	p.text("verdict  ", "%s %s", c.Sentence, stands(c))
	p.text("         ", "Origin %s, mechanism %s, layer %s", c.Origin, c.Mechanism, c.Layer)
	said(p, &c)
	if c.Settle != "" {
		p.text("         ", "What would settle it: %s", c.Settle)
	}
	if d := c.Decision; d != nil && d.Packet != 0 {
		p.text("decision ", "packet %d at %s", d.Packet, p.clock(d.Time))
	}
	if c.Trigger != 0 {
		p.text("trigger  ", "packet %d provoked the reset", c.Trigger)
	}
	if f.Reset != nil {
		r := f.Reset
		p.text("reset    ", "packet %d at %s on %s, from %v (%s): %s, TTL %d; %s in all",
			r.Packet, p.clock(r.Time), r.Interface, r.From, sender(f), r.Flags, r.TTL, plural(f.Resets, "reset"))
	}
	if f.Owner != nil {
		p.text("owner    ", "%s", ownerOf(f))
	}
	evidenceOf(p, f.Verdict.Findings())
	steps(p, f)
}

// ownerOf names the process of a flow's local end, and how it is known.
func ownerOf(f *evidence.Flow) string {
	if f.OwnerSource == "" {
		return owner(f.Owner)
	}
	return fmt.Sprintf("%s, known by %s", owner(f.Owner), f.OwnerSource)
}

// evidenceOf lists findings, those that speak for the verdict first.
func evidenceOf(p *page, all []evidence.Finding) {
	sorted := slices.Clone(all)
	slices.SortStableFunc(sorted, func(a, b evidence.Finding) int {
		switch {
		case a.Against == b.Against:
			return 0
		case b.Against:
			return -1
		}
		return 1
	})
	for _, f := range sorted {
		finding(p, f)
	}
}

// steps is the timeline of a flow, its reset marked.
func steps(p *page, f *evidence.Flow) {
	if len(f.Timeline) == 0 {
		return
	}
	p.text("  ", "client sent %s, server %s in %s from %s on; packets:",
		bytesOf(f.ClientBytes), bytesOf(f.ServerBytes), plural(f.Packets, "packet"), p.clock(f.First))
	if !f.InitiatorSeen {
		p.text("  ", "the handshake is not in the window; the lower port is taken for the server")
	}
	trigger := f.Verdict.Claim().Trigger
	for _, s := range f.Timeline {
		mark := " "
		switch {
		case f.Reset != nil && s.Packet == f.Reset.Packet:
			mark = "*"
		case s.Packet == trigger:
			mark = "!"
		}
		p.row(fmt.Sprintf("%s %d", mark, s.Packet), s.Line)
	}
	p.flush()
}
