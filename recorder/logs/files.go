package logs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"tcpcoroner/evidence"
)

// proxies are the programs whose logs are read although no query names them, by
// the name of their processes.
var proxies = []string{"nginx", "haproxy", "envoy"}

// logFile is one file to read.
type logFile struct {
	// name is what its writer calls it, in its own root directory. link, if there
	// is one, is the descriptor that leads to it even when it was renamed.
	name, link, root string
	pid              int
	implicated       bool
}

// open opens the file, or with a suffix the one that it was rotated to. Nothing
// but a regular file is opened: a reader of a pipe would be noticed. No link
// leads out of the root directory of a container.
func (f *logFile) open(suffix string) (*os.File, fs.FileInfo, error) {
	const flags = os.O_RDONLY | syscall.O_NONBLOCK | syscall.O_NOCTTY
	stat, open := os.Stat, os.OpenFile
	name := f.name + suffix
	switch {
	case f.link != "" && suffix == "":
		name = f.link
	case f.root != "/":
		root, err := os.OpenRoot(f.root)
		if err != nil {
			return nil, nil, err
		}
		defer func() { _ = root.Close() }()
		stat, open, name = root.Stat, root.OpenFile, strings.TrimPrefix(name, "/")
	}
	st, err := stat(name)
	if err != nil {
		return nil, nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, nil, fmt.Errorf("read %s: it is no regular file", f.name)
	}
	file, err := open(name, flags, 0)
	return file, st, err
}

// identity tells files apart whatever they are called.
type identity struct{ dev, inode uint64 }

// found collects log files, each once.
type found struct {
	files []logFile
	seen  map[identity]int
	max   int
	// over counts files beyond max.
	over int
}

func (f *found) add(l logFile) error {
	file, st, err := l.open("")
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	id := identify(st)
	if i, ok := f.seen[id]; ok {
		f.files[i].implicated = f.files[i].implicated || l.implicated
		return nil
	}
	if len(f.files) >= f.max {
		f.over++
		return nil
	}
	f.seen[id] = len(f.files)
	f.files = append(f.files, l)
	return nil
}

func identify(st fs.FileInfo) identity {
	if s, ok := st.Sys().(*syscall.Stat_t); ok {
		return identity{uint64(s.Dev), s.Ino}
	}
	return identity{}
}

// files reads the log files of the query, of its processes, and of the proxies.
func (r *Reader) files(ctx context.Context, q *Query) (h harvest) {
	list := r.find(ctx, q, &h)
	for i, f := range list.files {
		if ctx.Err() != nil {
			h.miss(fmt.Sprintf("%d log files", len(list.files)-i), fmt.Sprintf("reading logs took more than %v", r.cfg.MaxTime), "")
			break
		}
		r.readFile(ctx, q, f, &h)
	}
	if list.over > 0 {
		h.miss(fmt.Sprintf("%d log files", list.over), fmt.Sprintf("at most %d are read", r.cfg.MaxFiles), "")
	}
	return h
}

// find lists what to read, the most telling first.
func (r *Reader) find(ctx context.Context, q *Query, h *harvest) *found {
	list := &found{seen: map[identity]int{}, max: r.cfg.MaxFiles}
	for _, name := range q.Files {
		if err := list.add(logFile{name: name, root: "/", implicated: true}); err != nil {
			h.miss("the log file "+name, err.Error(), "check the file's name and rights")
		}
	}
	for _, pid := range q.PIDs {
		r.findOf(pid, true, list, h)
	}
	running, err := os.ReadDir(r.cfg.ProcRoot)
	if err != nil {
		h.miss("the log files of proxies", err.Error(), "mount proc")
	}
	spaces := r.spaces(q)
	for _, dir := range running {
		pid, err := strconv.Atoi(dir.Name())
		if err != nil || ctx.Err() != nil || slices.Contains(q.PIDs, pid) {
			continue
		}
		if slices.Contains(proxies, r.comm(pid)) && !spaces.foreign(pid) {
			r.findOf(pid, false, list, h)
		}
	}
	return list
}

func (r *Reader) proc(pid int, elem ...string) string {
	return filepath.Join(append([]string{r.cfg.ProcRoot, strconv.Itoa(pid)}, elem...)...)
}

func (r *Reader) comm(pid int) string {
	b, _ := os.ReadFile(r.proc(pid, "comm")) // a process that is gone has no name
	return strings.TrimSpace(string(b))
}

// findOf lists the log files of a process: those it writes, those its command line
// names, and where syslog writes for it. A process that is gone has none.
func (r *Reader) findOf(pid int, implicated bool, list *found, h *harvest) {
	root := r.proc(pid, "root")
	fds, err := os.ReadDir(r.proc(pid, "fd"))
	if errors.Is(err, fs.ErrPermission) {
		h.miss(fmt.Sprintf("the log files of process %d", pid), err.Error(), "run the recorder with CAP_SYS_PTRACE")
	}
	var logs []logFile
	for _, fd := range fds {
		link := r.proc(pid, "fd", fd.Name())
		name, err := os.Readlink(link)
		if err == nil && isLogName(name) && r.writes(pid, fd.Name()) {
			logs = append(logs, logFile{strings.TrimSuffix(name, deleted), link, root, pid, implicated})
		}
	}
	line, _ := os.ReadFile(r.proc(pid, "cmdline"))
	for _, name := range logArguments(string(line)) {
		logs = append(logs, logFile{name, "", root, pid, implicated})
	}
	for _, name := range r.cfg.Syslog[r.comm(pid)] {
		logs = append(logs, logFile{name, "", "/", 0, implicated})
	}
	for _, l := range logs {
		// What cannot be opened was closed meanwhile, or is only in an argument.
		_ = list.add(l)
	}
}

// deleted is what the kernel adds to the name of a file that has none any more.
const deleted = " (deleted)"

// writes tells whether a descriptor is open for writing: a log is, a data file
// that happens to be called one often is not. Flags are octal (proc(5), fdinfo).
func (r *Reader) writes(pid int, fd string) bool {
	b, err := os.ReadFile(r.proc(pid, "fdinfo", fd))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(b), "flags:")
	digits, _, _ := strings.Cut(strings.TrimSpace(rest), "\n")
	flags, err := strconv.ParseUint(digits, 8, 32)
	return err == nil && flags&syscall.O_ACCMODE != syscall.O_RDONLY
}

// isLogName tells whether the target of a descriptor is called like a log.
func isLogName(target string) bool {
	name := strings.TrimSuffix(target, deleted)
	if !strings.HasPrefix(name, "/") || strings.HasPrefix(name, "/dev/") || strings.HasPrefix(name, "/proc/") {
		return false
	}
	base := strings.ToLower(path.Base(name))
	return strings.Contains(base, ".log") || strings.HasSuffix(base, "_log") || strings.HasSuffix(base, ".err") ||
		strings.Contains(path.Dir(name)+"/", "/log/") || strings.Contains(path.Dir(name)+"/", "/logs/")
}

// logArguments finds log files in a command line (NUL between the arguments): nginx
// -e and -g "error_log ...;", Envoy --log-path, and --log-file of many others.
func logArguments(cmdline string) []string {
	var names []string
	args := strings.Split(strings.TrimRight(cmdline, "\x00"), "\x00")
	for i, a := range args {
		next := ""
		if i+1 < len(args) {
			next = args[i+1]
		}
		key, value, joined := strings.Cut(a, "=")
		if !joined {
			value = next
		}
		switch key {
		case "--log-path", "--log-file", "--logfile", "--access-log", "--error-log", "-e":
			names = append(names, value)
		case "-g":
			names = append(names, directiveLogs(value)...)
		}
	}
	return slices.DeleteFunc(names, func(n string) bool { return !strings.HasPrefix(n, "/") || strings.HasPrefix(n, "/dev/") })
}

// directiveLogs finds the files of error_log and access_log in nginx directives.
func directiveLogs(directives string) []string {
	var names []string
	for d := range strings.SplitSeq(directives, ";") {
		if f := strings.Fields(d); len(f) > 1 && (f[0] == "error_log" || f[0] == "access_log") {
			names = append(names, f[1])
		}
	}
	return names
}

// readFile reads the window of one file, and of the one it was rotated to while the
// window lasted.
func (r *Reader) readFile(ctx context.Context, q *Query, f logFile, h *harvest) {
	b := &basket{q: q, max: r.cfg.MaxLines}
	begin, err := r.readPart(ctx, &f, "", b)
	if err == nil && (begin.IsZero() || begin.After(q.From)) {
		_, err = r.readPart(ctx, &f, ".1", b)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			err = nil // it never was rotated, or its directory is not ours to search
		}
	}
	b.empty(h, f.name)
	var short *shortError
	switch {
	case errors.As(err, &short):
		h.miss("older lines of "+f.name, err.Error(), "read the file itself at this time")
	case err != nil:
		h.miss("the log file "+f.name, err.Error(), "check the file's rights")
	}
}

// readPart reads one file's lines of the window into the basket and returns the
// time of the oldest line that it saw.
func (r *Reader) readPart(ctx context.Context, f *logFile, suffix string, b *basket) (begin time.Time, err error) {
	file, st, err := f.open(suffix)
	if err != nil {
		return begin, err
	}
	defer func() { _ = file.Close() }()
	t := tail{file: file, size: st.Size(), max: r.cfg.MaxBytes, place: place{r.cfg.Location, b.q.To}}
	start, short := t.start(ctx, b.q.From)
	whole := start == 0 // or else the first line's beginning is missing
	var last evidence.LogLine
	err = eachLine(io.NewSectionReader(file, start, st.Size()-start), maxRaw, func(line []byte) bool {
		if whole {
			if last = t.place.next(string(line), &last); begin.IsZero() {
				begin = last.Time
			}
			l := last
			l.File, l.PID = f.name, cmp.Or(l.PID, f.pid)
			b.add(string(line), l, f.implicated)
		}
		whole = true
		return ctx.Err() == nil
	})
	if err == nil && (short || ctx.Err() != nil) {
		err = &shortError{r.cfg.MaxBytes, begin}
	}
	return begin, err
}

// next reads a line of a file. One without a time of its own, as in a stack trace,
// goes on from the line above.
func (p place) next(raw string, above *evidence.LogLine) evidence.LogLine {
	l := p.read(raw)
	if l.Time.IsZero() {
		l.Time, l.Precision = above.Time, above.Precision
	}
	return l
}

// shortError says that the bound of bytes was hit before the window's start.
type shortError struct {
	max   int64
	begin time.Time
}

func (e *shortError) Error() string {
	if e.begin.IsZero() {
		return fmt.Sprintf("none of the last %d bytes has a time that can be read", e.max)
	}
	return fmt.Sprintf("only the last %d bytes are read, which begin at %s", e.max, e.begin.Format(time.RFC3339))
}
