// Package report writes an incident as text for a person at a terminal, the
// answer first and then what it stands on.
//
// It judges nothing and reads nothing but the incident it is given.
package report

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"github.com/dustin/go-humanize"

	"tcpcoroner/evidence"
)

// width is the columns of the terminal that the report is laid out for.
const width = 100

// page collects the text. All that comes from outside (process names, reasons)
// goes through text or row, which clean it: a process may call itself by an
// escape sequence, and a terminal would obey it.
type page struct {
	inc  *evidence.Incident
	zone *time.Location
	b    bytes.Buffer
	// table is the rows of the table that is open.
	table [][]string
}

// heading begins a section.
func (p *page) heading(format string, args ...any) {
	p.b.WriteString("\n")
	p.text("", "%s", fmt.Sprintf(format, args...))
}

// text writes a paragraph behind a label, wrapped, with the lines after the first
// indented to the label's width.
func (p *page) text(label, format string, args ...any) {
	column, indent := utf8.RuneCountInString(label), strings.Repeat(" ", utf8.RuneCountInString(label))
	p.b.WriteString(label)
	at := column
	for i, word := range strings.Fields(clean(fmt.Sprintf(format, args...))) {
		n := utf8.RuneCountInString(word)
		switch {
		case i == 0:
		case at+1+n > width:
			p.b.WriteString("\n" + indent)
			at = column
		default:
			p.b.WriteString(" ")
			at++
		}
		p.b.WriteString(word)
		at += n
	}
	p.b.WriteString("\n")
}

// row adds a row to the table; flush writes it.
func (p *page) row(cells ...string) {
	for i := range cells {
		cells[i] = clean(cells[i])
	}
	p.table = append(p.table, cells)
}

func (p *page) flush() {
	var table bytes.Buffer
	writeTable(&table, "  ", p.table)
	p.b.Write(table.Bytes())
	p.table = nil
}

// writeTable aligns rows; the bytes of cells must be clean.
func writeTable(w io.Writer, indent string, rows [][]string) {
	var aligned bytes.Buffer
	t := tabwriter.NewWriter(&aligned, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		fmt.Fprintln(t, indent+strings.Join(r, "\t"))
	}
	_ = t.Flush() // into memory
	for line := range strings.Lines(aligned.String()) {
		fmt.Fprintln(w, strings.TrimRight(line, " \n"))
	}
}

// clean makes a string safe for a terminal and a table cell.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return ' '
		}
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == utf8.RuneError {
			return '?'
		}
		return r
	}, s)
}

func (p *page) clock(t time.Time) string { return t.In(p.zone).Format("15:04:05.000") }

func count[N int | uint64](n N) string { return humanize.Comma(int64(n)) }

// plural is "1 packet" or "2,000 packets".
func plural[N int | uint64](n N, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return count(n) + " " + noun + "s"
}

// owner names a process in few columns: "nginx[4711] nginx.service".
func owner(o *evidence.Owner) string {
	if o == nil {
		return "-"
	}
	return strings.TrimSpace(fmt.Sprintf("%s[%d] %s", o.Comm, o.PID, o.Unit))
}

// stands writes confidence and whether it is harmless.
func stands(c evidence.Claim) string {
	if c.Benign {
		return fmt.Sprintf("[%s, benign]", c.Confidence)
	}
	return fmt.Sprintf("[%s]", c.Confidence)
}
