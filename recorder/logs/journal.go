package logs

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"tcpcoroner/evidence"
)

const theJournal = "the journal"

// entry is one line of journalctl -o json (systemd.journal-fields(7)).
type entry struct {
	Message    text `json:"MESSAGE"`
	Transport  text `json:"_TRANSPORT"`
	Unit       text `json:"_SYSTEMD_UNIT"`
	About      text `json:"UNIT"` // of the manager's messages: the unit they are about
	PID        text `json:"_PID"`
	Priority   text `json:"PRIORITY"`
	SourceTime text `json:"_SOURCE_REALTIME_TIMESTAMP"`
	Time       text `json:"__REALTIME_TIMESTAMP"`
}

// entryFields is what journalctl is asked for.
const entryFields = "MESSAGE,_TRANSPORT,_SYSTEMD_UNIT,UNIT,_PID,PRIORITY,_SOURCE_REALTIME_TIMESTAMP"

// text is a field's value. journalctl writes bytes that are not UTF-8 as an array
// of numbers, a field that is there twice as an array of strings, and one of more
// than 4096 bytes as null.
type text string

const tooLong = "(a message of more than 4096 bytes)"

func (t *text) UnmarshalJSON(b []byte) error {
	var s string
	if json.Unmarshal(b, &s) == nil && !bytes.Equal(b, []byte("null")) {
		*t = text(s)
		return nil
	}
	var several []string
	if json.Unmarshal(b, &several) == nil && len(several) > 0 {
		*t = text(several[0])
		return nil
	}
	var numbers []int
	if json.Unmarshal(b, &numbers) == nil && len(numbers) > 0 {
		raw := make([]byte, len(numbers))
		for i, n := range numbers {
			raw[i] = byte(n)
		}
		*t = text(raw)
		return nil
	}
	*t = tooLong
	return nil
}

// priorities are syslog's severities (RFC 5424 section 6.2.1).
var priorities = []string{"emerg", "alert", "crit", "error", "warning", "notice", "info", "debug"}

// parseEntry reads one line of journalctl's output. The result still has to be
// finished from the message.
func parseEntry(b []byte, p place) (l evidence.LogLine, message string, err error) {
	var e entry
	if err := json.Unmarshal(b, &e); err != nil {
		return l, "", fmt.Errorf("read a journal entry: %w", err)
	}
	stamp := string(cmp.Or(e.SourceTime, e.Time))
	micro, err := strconv.ParseInt(stamp, 10, 64)
	if err != nil {
		return l, "", fmt.Errorf("read a journal entry's time %q: %w", stamp, err)
	}
	message = string(e.Message)
	switch {
	case e.Transport == "kernel":
		l = parseKernel(message)
	case e.About != "":
		l = parseManager(message)
	default:
		if l = p.read(message); l.Source == evidence.LogFile {
			l.Source = evidence.LogJournal
		}
	}
	l.Time, l.Precision = time.UnixMicro(micro), time.Microsecond
	l.Unit = string(cmp.Or(e.About, e.Unit))
	if pid, err := strconv.Atoi(string(e.PID)); err == nil && e.Transport != "kernel" {
		l.PID = pid
	}
	if n, err := strconv.Atoi(string(e.Priority)); err == nil && n >= 0 && n < len(priorities) {
		l.Level = cmp.Or(l.Level, priorities[n])
	}
	return l, message, nil
}

// journalArgs asks for the kernel's messages, for those of the units and
// processes, and for what the manager says of the units, as -u does
// (journalctl(1)); "+" is or.
func (r *Reader) journalArgs(q *Query) []string {
	at := func(t time.Time) string { return fmt.Sprintf("@%d.%06d", t.Unix(), t.Nanosecond()/1000) }
	args := []string{
		"--output=json", "--output-fields=" + entryFields, "--no-pager",
		"--since=" + at(q.From), "--until=" + at(q.To),
	}
	if r.cfg.JournalDir != "" {
		args = append(args, "--directory="+r.cfg.JournalDir)
	}
	args = append(args, "_TRANSPORT=kernel")
	for _, u := range q.Units {
		args = append(args, "+", "_SYSTEMD_UNIT="+u, "+", "UNIT="+u, "_PID=1")
	}
	for _, pid := range q.PIDs {
		args = append(args, "+", "_PID="+strconv.Itoa(pid))
	}
	return args
}

// journal asks journalctl(1), which knows all formats and compressions that its
// systemd writes.
func (r *Reader) journal(ctx context.Context, q *Query) (h harvest) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	cmd := exec.CommandContext(ctx, r.cfg.Journalctl, r.journalArgs(q)...)
	cmd.Env = []string{"LC_ALL=C", "PATH=/usr/bin:/bin"}
	cmd.WaitDelay = 100 * time.Millisecond
	complaint := &head{max: 512}
	cmd.Stderr = complaint
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		why, fix := whyNot(err)
		h.miss(theJournal, why, fix)
		return h
	}
	b := &basket{q: q, max: r.cfg.MaxLines}
	broken, full := r.readJournal(out, b)
	late := ctx.Err() != nil
	if full {
		stop() // what is not read is not wanted
	}
	err = cmd.Wait()
	b.empty(&h, theJournal)
	switch {
	case late:
		h.miss("the rest of "+theJournal, fmt.Sprintf("it took more than %v", r.cfg.MaxTime), "ask journalctl for this time")
	case full:
		h.miss("the rest of "+theJournal, fmt.Sprintf("it gave more than %d bytes", r.cfg.MaxBytes), "ask journalctl for this time")
	case err != nil:
		h.miss(theJournal, fmt.Sprintf("journalctl: %v: %s", err, complaint), "check that journald stores a journal and that it may be read")
	}
	if broken > 0 {
		h.miss(fmt.Sprintf("%d entries of %s", broken, theJournal), "they are not what journalctl -o json writes", "")
	}
	return h
}

// readJournal fills the basket. It counts entries that could not be read, and
// tells whether the bound was hit.
func (r *Reader) readJournal(out io.Reader, b *basket) (broken int, full bool) {
	p, spaces := place{r.cfg.Location, b.q.To}, r.spaces(b.q)
	limited := &io.LimitedReader{R: out, N: r.cfg.MaxBytes}
	// A read that fails is the end of the output: its reason is the exit's.
	_ = eachLine(limited, 64<<10, func(line []byte) bool {
		if len(line) == 0 || line[0] != '{' {
			return true // "-- No entries --"
		}
		l, message, err := parseEntry(line, p)
		if err != nil {
			if limited.N > 0 { // or else it is the one that the bound cut
				broken++
			}
			return true
		}
		if spaces.foreign(l.PID) {
			return true
		}
		b.add(message, l, slices.Contains(b.q.Units, l.Unit) || slices.Contains(b.q.PIDs, l.PID))
		return true
	})
	return broken, limited.N <= 0
}

// whyNot says why journalctl did not start, and what helps.
func whyNot(err error) (why, fix string) {
	switch {
	case errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist):
		return "journalctl is not installed", "install systemd's journalctl, or name the log files"
	case errors.Is(err, fs.ErrPermission):
		return err.Error(), "allow journalctl in the recorder's unit: ExecPaths= (systemd.exec(5))"
	}
	return err.Error(), "run journalctl by hand to see"
}

// head keeps the beginning of what is written to it.
type head struct {
	max  int
	kept []byte
}

func (h *head) Write(b []byte) (int, error) {
	h.kept = append(h.kept, b[:min(len(b), h.max-len(h.kept))]...)
	return len(b), nil
}

// String is the first line, fit to show.
func (h *head) String() string {
	line, _, _ := strings.Cut(string(h.kept), "\n")
	return tidy(line)
}
