package pcapng

import (
	"fmt"
	"strings"
	"time"

	"tcpcoroner/evidence"
)

// maxComment bounds a comment in bytes; the format itself ends at 65,535.
const maxComment = 4096

// clean makes text fit for an option of the file: UTF-8 without control
// characters but newlines (process names are bytes that anybody can choose).
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.TrimSpace(s))
	if len(s) > maxComment {
		s = s[:maxComment] + "..."
	}
	return strings.ToValidUTF8(s, "?")
}

// sectionComment introduces the whole file.
func sectionComment(inc *evidence.Incident, win *evidence.Window) string {
	c := inc.Verdict.Claim()
	lines := []string{
		fmt.Sprintf("incident %s on %s at %s", inc.ID, inc.Host.Name, inc.Time.UTC().Format(time.RFC3339Nano)),
		"verdict: " + sentence(c),
	}
	if inc.ID == "" {
		lines = nil
	}
	if len(inc.Firings) > 0 {
		lines = append(lines, fmt.Sprintf("trigger %s: %s", inc.Trigger(), inc.Firings[0].Reason))
	}
	if c.Settle != "" {
		lines = append(lines, "would settle it: "+c.Settle)
	}
	lines = append(lines, fmt.Sprintf("%d packets; headers only, of a RST up to %d bytes of payload", win.PacketCount, evidence.MaxResetPayload),
		"TCP checksums of segments with payload are not kept: 0 stands for them, and is no error",
		"a packet that was seen on several interfaces stands once for each; only the first of each: sll.unused[-2:1] == 00")
	if !win.HeldFrom.IsZero() {
		lines = append(lines, "the buffer held packets only from "+win.HeldFrom.UTC().Format(time.RFC3339Nano))
	}
	if len(win.Gaps) > 0 {
		lines = append(lines, fmt.Sprintf("%d gaps, %d packets lost on all interfaces together", len(win.Gaps), win.Lost()))
	}
	return clean(strings.Join(lines, "\n"))
}

// sentence is what a verdict says, with its confidence.
func sentence(c evidence.Claim) string {
	if c.Benign {
		return fmt.Sprintf("%s [%s, benign]", c.Sentence, c.Confidence)
	}
	return fmt.Sprintf("%s [%s]", c.Sentence, c.Confidence)
}

// comments are the comments of the packets, by number.
func comments(inc *evidence.Incident) map[int][]string {
	all := map[int][]string{}
	for i := range inc.Flows {
		f := &inc.Flows[i]
		if f.Reset == nil {
			continue
		}
		all[f.Reset.Packet] = append(all[f.Reset.Packet], flowComment(f))
		for _, finding := range f.Verdict.Findings() {
			remark(all, f, finding)
		}
	}
	return all
}

// maxRemarks bounds the packets that one finding is written to.
const maxRemarks = 4

// remark puts a finding on the packets that show it, other than the RST.
func remark(all map[int][]string, f *evidence.Flow, finding evidence.Finding) {
	for _, n := range finding.Packets[:min(len(finding.Packets), maxRemarks)] {
		if n != f.Reset.Packet {
			all[n] = append(all[n], clean(fmt.Sprintf("%s: %s: %s", application, f.ID, finding.Text)))
		}
	}
}

// flowComment tells a flow's verdict on its RST.
func flowComment(f *evidence.Flow) string {
	c := f.Verdict.Claim()
	parts := []string{fmt.Sprintf("%s: %s: %s", application, f.ID, sentence(c))}
	for _, finding := range f.Verdict.Findings() {
		side := "for"
		if finding.Against {
			side = "against"
		}
		parts = append(parts, fmt.Sprintf("%s: %s (%s)", side, finding.Text, finding.Kind))
	}
	if f.Owner != nil {
		parts = append(parts, "owner: "+owner(f))
	}
	if c.Settle != "" {
		parts = append(parts, "would settle it: "+c.Settle)
	}
	return clean(strings.Join(parts, "; "))
}

func owner(f *evidence.Flow) string {
	s := fmt.Sprintf("pid %d %s", f.Owner.PID, f.Owner.Comm)
	if f.Owner.Unit != "" {
		s += " of " + f.Owner.Unit
	}
	if f.OwnerSource != "" {
		s += ", known by " + f.OwnerSource
	}
	return s
}

const (
	gapPrefix   = application + ": gap from "
	gapComplete = " (nothing is missing)"
)

func gapComment(g evidence.Gap) string {
	note := ""
	if g.Complete {
		note = gapComplete
	}
	return clean(fmt.Sprintf("%s%s to %s lost %d%s: %s", gapPrefix,
		g.From.UTC().Format(time.RFC3339Nano), g.To.UTC().Format(time.RFC3339Nano), g.Lost, note, g.Reason))
}

// parseGap reads what gapComment wrote.
func parseGap(comment string) (g evidence.Gap, ok bool) {
	rest, ok := strings.CutPrefix(comment, gapPrefix)
	if !ok {
		return g, false
	}
	var from, to string
	head, reason, ok := strings.Cut(rest, ": ")
	head, g.Complete = strings.CutSuffix(head, gapComplete)
	if _, err := fmt.Sscanf(head, "%s to %s lost %d", &from, &to, &g.Lost); !ok || err != nil {
		return g, false
	}
	var errFrom, errTo error
	g.From, errFrom = time.Parse(time.RFC3339Nano, from)
	g.To, errTo = time.Parse(time.RFC3339Nano, to)
	g.Reason = reason
	return g, errFrom == nil && errTo == nil
}

const namespaceFormat = "network namespace %d, inode %d: "

// namespaceText describes an interface's namespace; it is empty for the
// recorder's own.
func namespaceText(win *evidence.Window, index uint16) string {
	if index == 0 {
		return ""
	}
	n := evidence.Namespace{Index: index}
	for _, o := range win.Namespaces {
		if o.Index == index {
			n = o
		}
	}
	return clean(fmt.Sprintf(namespaceFormat+"%s", n.Index, n.Inode, n.Path))
}

// parseNamespace reads what namespaceText wrote.
func parseNamespace(description string) (n evidence.Namespace, ok bool) {
	head, path, ok := strings.Cut(description, ": ")
	if !ok {
		return n, false
	}
	got, err := fmt.Sscanf(head+": ", namespaceFormat, &n.Index, &n.Inode)
	n.Path = path
	return n, err == nil && got == 2 && n.Index != 0
}
