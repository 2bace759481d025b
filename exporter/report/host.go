package report

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"tcpcoroner/evidence"
)

// Bounds of what is shown; the incident as JSON has all.
const (
	maxLogLines  = 12
	maxRules     = 8
	maxProcesses = 8
	maxChanges   = 10
)

// said is what the verdict says beside its sentence.
func said(p *page, c *evidence.Claim) {
	if c.Party != "" && c.Party != evidence.PartyUnknown {
		p.text("         ", "To act: the %s [%s]%s", c.Party, orSame(c.PartyConfidence, c.Confidence), because(c))
	}
	if d := c.Decision; d != nil {
		p.text("         ", "Decided before: %s %s", d.By, d.Text)
	}
	if c.Process != nil {
		p.text("         ", "Process: %s", owner(c.Process))
	}
	for _, x := range c.Excluded {
		p.text("         ", "Excluded: %s", x)
	}
	for _, a := range c.Advice {
		p.text("         ", "Do: %s", adviceText(&a))
	}
}

func because(c *evidence.Claim) string {
	if c.Cause == "" || c.Cause == evidence.CauseUnknown {
		return ""
	}
	return fmt.Sprintf("; cause: %s [%s]", strings.ReplaceAll(string(c.Cause), "_", " "), orSame(c.CauseConfidence, c.Confidence))
}

func orSame(own, general evidence.Confidence) evidence.Confidence { return cmp.Or(own, general) }

func adviceText(a *evidence.Advice) string {
	text := a.Text
	if a.Knob != "" && a.Value != "" {
		text += fmt.Sprintf(" (%s is %s here)", a.Knob, a.Value)
	} else if a.Knob != "" {
		text += fmt.Sprintf(" (%s)", a.Knob)
	}
	if a.SideEffect != "" {
		text += "; " + a.SideEffect
	}
	return text
}

// kernelEvents tells what the kernel said, by kind and reason.
func kernelEvents(p *page) {
	if l := p.inc.KernelLevel; l != nil && l.Name != evidence.LevelFull {
		p.heading("KERNEL tells %s only: %s", l.Name, l.Why)
		if l.Raise != "" {
			p.text("  ", "to have more next time: %s", l.Raise)
		}
	}
	type key struct {
		kind          evidence.KernelEventKind
		reason, state string
		process       string
	}
	counts := map[key]int{}
	for i := range p.inc.Kernel {
		e := &p.inc.Kernel[i]
		counts[key{e.Kind, e.Reason, e.State, eventProcess(e)}]++
	}
	if len(counts) == 0 {
		return
	}
	keys := make([]key, 0, len(counts))
	for k := range counts {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b key) int {
		return cmp.Or(counts[b]-counts[a], cmp.Compare(a.kind, b.kind), cmp.Compare(a.reason, b.reason), cmp.Compare(a.process, b.process))
	})
	p.heading("KERNEL EVENTS")
	p.row("COUNT", "WHAT", "REASON", "SOCKET STATE", "PROCESS")
	for _, k := range keys[:min(len(keys), 12)] {
		p.row(count(counts[k]), strings.ReplaceAll(string(k.kind), "_", " "), cmp.Or(k.reason, "-"), cmp.Or(k.state, "-"), k.process)
	}
	p.flush()
	for _, s := range p.inc.Suppressed[:min(len(p.inc.Suppressed), 3)] {
		p.text("  ", "%s more of %s %s on port %d came too fast and were only counted", count(s.Count), s.Kind, s.Reason, s.Port)
	}
}

// eventProcess names whose event it is: who did it, or whose socket it was.
func eventProcess(e *evidence.KernelEvent) string {
	switch {
	case e.Actor != nil:
		return owner(e.Actor)
	case e.Owner != nil:
		return "socket of " + owner(e.Owner)
	case e.Grave != nil && e.Grave.Owner != nil:
		return "late socket of " + owner(e.Grave.Owner)
	case e.LastListener != nil:
		return "port was " + owner(e.LastListener) + "'s"
	}
	return "-"
}

// rules are those of the firewall that matched between the snapshots, and those
// that answer with a RST.
func rules(p *page) {
	at, after := p.rulesets()
	if after == nil {
		return
	}
	hits := map[string]uint64{}
	name := func(r *evidence.Rule) string {
		return fmt.Sprintf("%s %s %s handle %d", r.Family, r.Table, r.Chain, r.Handle)
	}
	for _, h := range after.Since(at) {
		hits[name(&h.Rule)] = h.Packets
	}
	for i := range after.Rules {
		r := &after.Rules[i]
		if n := hits[name(r)]; (n > 0 || r.Resets()) && len(p.table) < maxRules {
			p.row(name(r), "+"+count(n), r.Text)
		}
	}
	if len(p.table) == 0 {
		return
	}
	p.heading("FIREWALL RULES that reset, or matched after the trigger")
	p.flush()
}

func (p *page) rulesets() (at, after *evidence.Ruleset) {
	for _, s := range p.snapshots() {
		if s.Implicated != nil && s.Implicated.Rules != nil {
			if at == nil {
				at = s.Implicated.Rules
			}
			after = s.Implicated.Rules
		}
	}
	return at, after
}

func (p *page) implicated() *evidence.Implicated {
	for _, s := range slices.Backward(p.snapshots()) {
		if s.Implicated != nil {
			return s.Implicated
		}
	}
	return nil
}

func processes(p *page) {
	i := p.implicated()
	if i == nil || len(i.Processes) == 0 {
		return
	}
	p.heading("PROCESSES of the connections")
	p.row("PROCESS", "STATE", "STARTED", "OPEN FILES", "COMMAND")
	for _, x := range i.Processes[:min(len(i.Processes), maxProcesses)] {
		files := count(x.FDs)
		if x.MaxFDs > 0 {
			files += " of " + count(x.MaxFDs)
		}
		p.row(owner(&x.Owner), x.State, x.Started.In(p.zone).Format("2006-01-02 15:04:05"), files, x.Command)
	}
	p.flush()
}

// changes are what was new on the host, and settings that are not the kernel's own.
func changes(p *page) {
	i := p.implicated()
	if i == nil {
		return
	}
	for _, c := range i.Changes[:min(len(i.Changes), maxChanges)] {
		what := c.What
		if c.Before != "" || c.After != "" {
			what += fmt.Sprintf(": %s -> %s", cmp.Or(c.Before, "nothing"), cmp.Or(c.After, "nothing"))
		}
		p.row(p.clock(c.Time), c.Kind, what)
	}
	if len(p.table) > 0 {
		p.heading("CHANGED in the last hour")
		p.flush()
	}
}

// logLines are those that name a flow or tell a reason, nearest to the trigger.
func logLines(p *page) {
	some := slices.DeleteFunc(slices.Clone(p.inc.Logs), func(l evidence.LogLine) bool { return l.Reason == "" })
	if len(some) == 0 {
		return
	}
	p.heading("LOG LINES that tell a reason, %d of %d", min(len(some), maxLogLines), len(some))
	for _, l := range some[:min(len(some), maxLogLines)] {
		p.row(p.clock(l.Time), string(l.Source), string(l.Reason), short(l.Text, 120))
	}
	p.flush()
}

func short(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n]) + "..."
	}
	return s
}
