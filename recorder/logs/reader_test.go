package logs

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"tcpcoroner/evidence"
)

// noon is the moment of these tests.
var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// stamped is a line of a log at an offset from noon.
func stamped(offset time.Duration, text string) string {
	return noon.Add(offset).Format("2006-01-02T15:04:05.000Z07:00") + " " + text + "\n"
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// reader is one without a journal and without other processes.
func reader(t *testing.T, cfg Config) *Reader {
	t.Helper()
	cfg.MaxTime = 10 * time.Second
	if cfg.ProcRoot == "" {
		cfg.ProcRoot = t.TempDir()
	}
	if cfg.Journalctl == "" {
		cfg.Journalctl = script(t, "exit 0")
	}
	return New(cfg)
}

// script makes a program for the shell.
func script(t *testing.T, body string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "journalctl")
	if err := os.WriteFile(name, []byte("#!/bin/sh\n"+body+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return name
}

// window is two seconds around noon.
func window(q Query) Query {
	q.From, q.To = noon.Add(-time.Second), noon.Add(time.Second)
	return q
}

func texts(lines []evidence.LogLine) (all []string) {
	for _, l := range lines {
		_, text, _ := strings.Cut(l.Text, " ")
		all = append(all, text)
	}
	return all
}

func none(t *testing.T, missing []evidence.Missing) {
	t.Helper()
	for _, m := range missing {
		t.Errorf("missing %+v", m)
	}
}

func expect(t *testing.T, got []evidence.LogLine, want ...string) {
	t.Helper()
	if g, w := strings.Join(texts(got), "|"), strings.Join(want, "|"); g != w {
		t.Errorf("lines %q, want %q", g, w)
	}
}

func TestFileWindow(t *testing.T) {
	name := filepath.Join(t.TempDir(), "app.log")
	write(t, name, stamped(-time.Minute, "long before")+stamped(-time.Second, "first")+stamped(0, "stack")+
		"  at line 7 password=hunter2\n"+stamped(time.Second, "last")+stamped(time.Minute, "long after")+"no newline")
	lines, missing := reader(t, Config{}).Around(t.Context(), window(Query{Files: []string{name}}))
	none(t, missing)
	expect(t, lines, "first", "stack", "line 7 password=[redacted]", "last")
	if lines[0].File != name || !lines[2].Time.Equal(noon) {
		t.Errorf("%+v", lines)
	}
}

// A file of many blocks, with lines of a mebibyte in it, is searched from its end.
func TestBigFile(t *testing.T) {
	var b strings.Builder
	for i := range 40000 {
		b.WriteString(stamped(time.Duration(i-40000)*time.Second, "old "+strings.Repeat("x", 40)))
		if i%20000 == 19999 {
			b.WriteString(strings.Repeat("y", 1<<20) + "\n")
		}
	}
	b.WriteString(stamped(0, "wanted "+strings.Repeat("z", 1<<20)))
	b.WriteString(stamped(0, "next"))
	for i := range 10000 {
		b.WriteString(stamped(time.Duration(i+5)*time.Second, "new"))
	}
	name := filepath.Join(t.TempDir(), "app.log")
	write(t, name, b.String())
	lines, missing := reader(t, Config{}).Around(t.Context(), Query{From: noon, To: noon.Add(time.Second), Files: []string{name}})
	none(t, missing)
	if len(lines) != 2 || len(lines[0].Text) > evidence.MaxLogText || !strings.HasSuffix(lines[1].Text, "next") {
		t.Errorf("%d lines %.60q", len(lines), texts(lines))
	}
}

func TestBoundOfBytesIsTold(t *testing.T) {
	name := filepath.Join(t.TempDir(), "app.log")
	write(t, name, strings.Repeat(stamped(0, "many"), 1000))
	lines, missing := reader(t, Config{MaxBytes: 1000}).Around(t.Context(), window(Query{Files: []string{name}}))
	if len(lines) == 0 || len(lines) > 40 || len(missing) != 1 || !strings.Contains(missing[0].Why, "last 1000 bytes") {
		t.Errorf("%d lines, missing %+v", len(lines), missing)
	}
}

func TestRotatedFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "app.log")
	write(t, name+".1", stamped(-time.Minute, "old")+stamped(-time.Second/2, "before the rotation"))
	write(t, name, stamped(0, "after it"))
	lines, missing := reader(t, Config{}).Around(t.Context(), window(Query{Files: []string{name}}))
	none(t, missing)
	expect(t, lines, "before the rotation", "after it")
	write(t, name, "")
	lines, missing = reader(t, Config{}).Around(t.Context(), window(Query{Files: []string{name}}))
	none(t, missing)
	expect(t, lines, "before the rotation")
}

func TestFileThatIsNotThere(t *testing.T) {
	dir := t.TempDir()
	lines, missing := reader(t, Config{}).Around(t.Context(), window(Query{Files: []string{dir + "/none.log", dir}}))
	if len(lines) != 0 || len(missing) != 2 {
		t.Errorf("lines %v, missing %+v", lines, missing)
	}
}

// Of too many lines those that name the flow, tell a reason and lie near are kept.
func TestRanking(t *testing.T) {
	var b strings.Builder
	for i := range 100 {
		b.WriteString(stamped(time.Duration(i-50)*10*time.Millisecond, fmt.Sprintf("plain %d", i-50)))
	}
	b.WriteString(stamped(900*time.Millisecond, "read tcp 192.0.2.1:1->192.0.2.9:4711: connection reset by peer"))
	b.WriteString(stamped(901*time.Millisecond, "broken pipe"))
	name := filepath.Join(t.TempDir(), "app.log")
	write(t, name, b.String())
	flow := evidence.NewFlowKey(endpoint("192.0.2.9:4711"), endpoint("192.0.2.1:1"))
	q := window(Query{Files: []string{name}, Tuples: []evidence.FlowKey{flow}})
	lines, missing := reader(t, Config{MaxLines: 4}).Around(t.Context(), q)
	expect(t, lines, "plain -1", "plain 0", "read tcp 192.0.2.1:1->192.0.2.9:4711: connection reset by peer", "broken pipe")
	if len(missing) != 1 || !strings.HasPrefix(missing[0].What, "98 lines") {
		t.Errorf("missing %+v", missing)
	}
}

// world makes a proc with one process that has a log open, as descriptor 3.
func world(t *testing.T, comm, file string, flags int) (proc string) {
	t.Helper()
	proc = t.TempDir()
	dir := filepath.Join(proc, "42")
	write(t, filepath.Join(dir, "comm"), comm+"\n")
	write(t, filepath.Join(dir, "cmdline"), comm+"\x00")
	write(t, filepath.Join(dir, "fdinfo/3"), "pos:\t0\nflags:\t0"+strconv.FormatInt(int64(flags), 8)+"\nmnt_id:\t1\n")
	for link, target := range map[string]string{"fd/3": file, "root": "/"} {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(link)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	return proc
}

func TestFilesOfProcesses(t *testing.T) {
	name := filepath.Join(t.TempDir(), "error.log")
	write(t, name, stamped(0, "plain")+stamped(0, "broken pipe"))
	tests := []struct {
		name, comm string
		flags      int
		pids       []int
		want       []string
	}{
		{"a proxy that nobody named tells only reasons", "nginx", os.O_WRONLY | os.O_APPEND, nil, []string{"broken pipe"}},
		{"an implicated process tells all", "app", os.O_WRONLY | os.O_APPEND, []int{42}, []string{"plain", "broken pipe"}},
		{"another process is none of ours", "app", os.O_WRONLY, nil, nil},
		{"what is only read is no log", "nginx", os.O_RDONLY, nil, nil},
		{"a process that is gone", "app", os.O_WRONLY, []int{43}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := reader(t, Config{ProcRoot: world(t, tt.comm, name, tt.flags)})
			lines, missing := r.Around(t.Context(), window(Query{PIDs: tt.pids}))
			none(t, missing)
			expect(t, lines, tt.want...)
			for _, l := range lines {
				if l.PID != 42 || l.File != name {
					t.Errorf("%+v", l)
				}
			}
		})
	}
}

// A descriptor leads to a log that has no name any more.
func TestRemovedFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "app.log")
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if _, err := f.WriteString(stamped(0, "still here")); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	lines, _ := reader(t, Config{ProcRoot: "/proc"}).Around(t.Context(), window(Query{PIDs: []int{os.Getpid()}}))
	if len(lines) != 1 || lines[0].File != name || lines[0].PID != os.Getpid() {
		t.Errorf("%+v", lines)
	}
}

// Syslog writes for a program that has no log open itself.
func TestSyslogFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "haproxy.log")
	write(t, name, stamped(0, `web1 haproxy[42]: 192.0.2.9:4711 [23/Nov/2026:12:00:00.100] f b/s 0/0/400 3 SD 0/0/0/0/0 0/0`))
	r := reader(t, Config{
		ProcRoot: world(t, "haproxy", "/dev/null", os.O_WRONLY), Location: time.UTC, Syslog: map[string][]string{"haproxy": {name}},
	})
	lines, missing := r.Around(t.Context(), window(Query{}))
	none(t, missing)
	if len(lines) != 1 || lines[0].Reason != evidence.ReasonUpstreamReset || lines[0].PID != 42 || !lines[0].Time.Equal(noon.Add(500*time.Millisecond)) {
		t.Errorf("%+v", lines)
	}
}

func TestLogNames(t *testing.T) {
	for _, name := range []string{"/var/log/nginx/access.log", "/var/log/app/out", "/srv/logs/a", "/srv/a.log (deleted)", "/srv/access_log", "/srv/x.log.1"} {
		if !isLogName(name) {
			t.Errorf("%s is not taken for a log", name)
		}
	}
	for _, name := range []string{"socket:[1]", "/dev/null", "/dev/log", "/srv/blog/data", "/srv/catalog", "pipe:[7]"} {
		if isLogName(name) {
			t.Errorf("%s is taken for a log", name)
		}
	}
}

func TestLogArguments(t *testing.T) {
	tests := []struct{ cmdline, want string }{
		{"nginx\x00-e\x00/srv/e.log\x00-g\x00daemon off; error_log /srv/g.log info;\x00", "/srv/e.log /srv/g.log"},
		{"envoy\x00--log-path\x00/srv/envoy.log\x00-c\x00/etc/e.yaml\x00", "/srv/envoy.log"},
		{"app\x00--log-file=/srv/app.log\x00--access-log=-\x00-e\x00", "/srv/app.log"},
		{"app\x00-e\x00/dev/stderr\x00", ""},
		{"", ""},
	}
	for _, tt := range tests {
		if got := strings.Join(logArguments(tt.cmdline), " "); got != tt.want {
			t.Errorf("%q: %q, want %q", tt.cmdline, got, tt.want)
		}
	}
}

// A link of a container's must not lead to a file of the host.
func TestNoLinkLeadsOutOfARoot(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "secret.log"), stamped(0, "secret"))
	root := filepath.Join(dir, "root")
	write(t, filepath.Join(root, "fine.log"), stamped(0, "fine"))
	if err := os.Symlink("../secret.log", filepath.Join(root, "link.log")); err != nil {
		t.Fatal(err)
	}
	for name, ok := range map[string]bool{"/fine.log": true, "/link.log": false} {
		f := logFile{name: name, root: root}
		file, _, err := f.open("")
		if (err == nil) != ok {
			t.Errorf("open %s: %v", name, err)
		}
		if err == nil {
			_ = file.Close()
		}
	}
}

func TestEachLine(t *testing.T) {
	tests := []struct {
		name, text string
		want       []string
	}{
		{"lines", "a\nb\r\n\nc", []string{"a", "b", "", "c"}},
		{"a long line is cut and costs one", "a\n" + strings.Repeat("x", 100) + "\nb\n", []string{"a", strings.Repeat("x", 16), "b"}},
		{"a long last line", strings.Repeat("x", 100), []string{strings.Repeat("x", 16)}},
		{"nothing", "", nil},
	}
	for _, tt := range tests {
		var got []string
		err := eachLine(strings.NewReader(tt.text), 16, func(b []byte) bool { got = append(got, string(b)); return true })
		if err != nil || strings.Join(got, "|") != strings.Join(tt.want, "|") {
			t.Errorf("%s: %q, error %v, want %q", tt.name, got, err, tt.want)
		}
	}
}

func TestAroundStopsInTime(t *testing.T) {
	r := New(Config{ProcRoot: t.TempDir(), Journalctl: script(t, "exec sleep 60"), MaxTime: 50 * time.Millisecond})
	begin := time.Now()
	_, missing := r.Around(context.Background(), window(Query{}))
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
	if len(missing) != 1 || !strings.Contains(missing[0].Why, "more than 50ms") {
		t.Errorf("missing %+v", missing)
	}
}
