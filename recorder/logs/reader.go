package logs

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"tcpcoroner/evidence"
)

// The defaults of Config.
const (
	DefaultMaxTime  = 800 * time.Millisecond
	DefaultMaxBytes = 4 << 20
	DefaultMaxLines = 200
	DefaultMaxFiles = 32
)

// Config bounds a Reader and says where its world is. The zero value is the host
// with the defaults above.
type Config struct {
	// ProcRoot is where proc(5) is mounted, "/proc".
	ProcRoot string
	// Journalctl is the program, "journalctl" of PATH. JournalDir reads the
	// journal files of a directory in place of the system's.
	Journalctl, JournalDir string
	// Location is the time zone of logs that write local time without one.
	Location *time.Location
	// Syslog are files into which syslog writes for a program that holds no log
	// file open itself, by the program's name. Nil means Debian's places.
	Syslog map[string][]string
	// MaxTime bounds one call of Around. MaxBytes and MaxLines bound what is read
	// and what is kept of each source; the journal is one source, each file another.
	MaxTime  time.Duration
	MaxBytes int64
	MaxLines int
	MaxFiles int
}

// withDefaults fills what is not set.
func (c Config) withDefaults() Config {
	c.ProcRoot = cmp.Or(c.ProcRoot, "/proc")
	c.Journalctl = cmp.Or(c.Journalctl, "journalctl")
	c.Location = cmp.Or(c.Location, time.Local)
	c.MaxTime = cmp.Or(c.MaxTime, DefaultMaxTime)
	c.MaxBytes = cmp.Or(c.MaxBytes, DefaultMaxBytes)
	c.MaxLines = cmp.Or(c.MaxLines, DefaultMaxLines)
	c.MaxFiles = cmp.Or(c.MaxFiles, DefaultMaxFiles)
	if c.Syslog == nil {
		c.Syslog = map[string][]string{"haproxy": {"/var/log/haproxy.log"}}
	}
	return c
}

// Reader reads logs. It holds nothing open between calls and may be used by
// several goroutines.
type Reader struct{ cfg Config }

// New makes a Reader and touches nothing.
func New(cfg Config) *Reader { return &Reader{cfg.withDefaults()} }

// Query says which lines are wanted.
type Query struct {
	// From and To are the window. Moment is what the lines are about: where too
	// many are found, the nearest are kept. Zero means the window's middle.
	From, To, Moment time.Time
	// Units are systemd units ("nginx.service"), PIDs processes that are
	// implicated, Tuples their flows, Files further log files of this host.
	Units  []string
	PIDs   []int
	Tuples []evidence.FlowKey
	Files  []string
	// NetNS are the inode numbers of the network namespaces that it is about: lines
	// of processes in others are left out, unless they are implicated. Nil is all.
	NetNS []uint64
}

// moment is the instant that near lines are near to.
func (q *Query) moment() time.Time {
	if !q.Moment.IsZero() {
		return q.Moment
	}
	return q.From.Add(q.To.Sub(q.From) / 2)
}

// Around returns the lines of the window in order of time: those that name an
// implicated flow or tell a reason, and, from implicated units, processes and
// named files, the others around them. It returns after MaxTime with what it has;
// only a file system that hangs can hold it longer.
func (r *Reader) Around(ctx context.Context, q Query) ([]evidence.LogLine, []evidence.Missing) {
	ctx, stop := context.WithTimeout(ctx, r.cfg.MaxTime)
	defer stop()
	var journal, files harvest
	var wg sync.WaitGroup
	wg.Go(func() { journal = r.journal(ctx, &q) })
	files = r.files(ctx, &q)
	wg.Wait()
	journal.join(files)
	slices.SortStableFunc(journal.lines, func(a, b evidence.LogLine) int { return a.Time.Compare(b.Time) })
	return journal.lines, journal.missing
}

// harvest is what one or more sources gave.
type harvest struct {
	lines   []evidence.LogLine
	missing []evidence.Missing
}

func (h *harvest) join(o harvest) {
	h.lines = append(h.lines, o.lines...)
	h.missing = append(h.missing, o.missing...)
}

// miss notes what could not be had.
func (h *harvest) miss(what, why, fix string) {
	h.missing = append(h.missing, evidence.Missing{What: what, Why: why, Fix: fix})
}

// basket keeps the best lines of one source.
type basket struct {
	q    *Query
	max  int
	kept []ranked
	// seq counts the lines that were worth keeping, dropped those that max forbade.
	seq, dropped int
}

// ranked is a line with its worth and its place in its source. It is finished
// from raw when it is sure to be kept.
type ranked struct {
	line      evidence.LogLine
	raw       string
	rank, seq int
}

// add offers a line. Implicated tells whether its source is named in the query.
func (b *basket) add(raw string, l evidence.LogLine, implicated bool) {
	rank := b.rank(&l, implicated)
	if rank == 0 || strings.TrimSpace(raw) == "" {
		return
	}
	b.seq++
	b.kept = append(b.kept, ranked{l, raw[:min(len(raw), maxRaw)], rank, b.seq})
	if len(b.kept) >= 2*b.max {
		b.prune()
	}
}

// rank tells how much a line is worth; 0 is not kept. Of the kernel's lines and of
// those about requests that went well only the telling ones are evidence.
func (b *basket) rank(l *evidence.LogLine, implicated bool) int {
	if !l.Around(b.q.From, b.q.To) {
		return 0
	}
	named := slices.ContainsFunc(b.q.Tuples, l.Names)
	told := l.Reason != ""
	access := l.Source == evidence.LogNginxAccess || l.Source == evidence.LogHAProxy || l.Source == evidence.LogEnvoyAccess
	switch {
	case named && told:
		return 5
	case named:
		return 4
	case told && (implicated || b.sharesAddress(l)):
		return 3
	case told:
		return 2
	case implicated && !access && l.Source != evidence.LogKernel:
		return 1
	}
	return 0
}

// sharesAddress tells whether the line names an address of an implicated flow.
func (b *basket) sharesAddress(l *evidence.LogLine) bool {
	for _, e := range l.Endpoints() {
		for _, k := range b.q.Tuples {
			if e.Addr() == k.A.Addr() || e.Addr() == k.B.Addr() {
				return true
			}
		}
	}
	return false
}

// prune drops the least worth: by rank, then by distance from the moment.
func (b *basket) prune() {
	at := b.q.moment()
	far := func(r ranked) time.Duration { return r.line.Time.Sub(at).Abs() }
	slices.SortStableFunc(b.kept, func(x, y ranked) int {
		return cmp.Or(cmp.Compare(y.rank, x.rank), cmp.Compare(far(x), far(y)))
	})
	if over := len(b.kept) - b.max; over > 0 {
		b.kept = b.kept[:b.max]
		b.dropped += over
	}
}

// empty pours the basket into a harvest and tells what fell out.
func (b *basket) empty(into *harvest, what string) {
	b.prune()
	slices.SortFunc(b.kept, func(x, y ranked) int { return cmp.Compare(x.seq, y.seq) })
	for _, r := range b.kept {
		finish(r.raw, &r.line)
		into.lines = append(into.lines, r.line)
	}
	if b.dropped > 0 {
		into.miss(fmt.Sprintf("%d lines of %s", b.dropped, what),
			fmt.Sprintf("at most %d lines are kept of a source, those that tell most and lie nearest", b.max),
			"read the log itself at this time")
	}
}
