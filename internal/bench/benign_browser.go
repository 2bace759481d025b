package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// chromium is the browser, as distributions name it.
const chromium = "chromium"

// chromiumFlags have it show no window and talk to the pages' server alone: it looks
// up no name, fetches no update, and is told what to do over a pair of pipes. What it
// was told of certificates is for the one that we made.
var chromiumFlags = []string{
	"--headless", "--disable-gpu", "--no-sandbox", "--mute-audio",
	"--remote-debugging-pipe", "--ignore-certificate-errors", "--no-proxy-server",
	"--no-first-run", "--no-default-browser-check", "--disable-default-apps", "--disable-extensions",
	"--disable-background-networking", "--disable-component-update", "--disable-domain-reliability",
	"--disable-sync", "--disable-breakpad", "--metrics-recording-only", "--no-pings",
	"--disable-features=DnsOverHttps,OptimizationHints,MediaRouter,Translate,DialMediaRouteProvider",
	"--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE " + serverIP,
}

// answerTime is how long the browser may take to do what it was told.
const answerTime = 30 * time.Second

// browser is a running Chromium and the two pipes on which it speaks the DevTools
// protocol (https://chromedevtools.github.io/devtools-protocol): messages of JSON,
// each behind which is a zero. It is for one goroutine.
type browser struct {
	c      *child
	dir    string // its files
	to     *os.File
	in     *os.File
	from   *bufio.Reader
	calls  int
	events map[string]json.RawMessage // the last of each kind that nobody waited for
	lasts  func() bool                // it ends with a context no more
}

// message is an answer, or an event if it has no number.
type message struct {
	ID     int             `json:"id"`
	Method string          `json:"method"`
	Params json.RawMessage `json:"params"`
	Result json.RawMessage `json:"result"`
	Error  struct {
		Message string `json:"message"`
	} `json:"error"`
}

// openBrowser starts one in a namespace, with its files below a directory, and says
// which it is. It ends with the context.
func (b *bench) openBrowser(ctx context.Context, n *namespace, dir string) (w *browser, version string, err error) {
	in, to, err := os.Pipe()
	if err != nil {
		return nil, "", fmt.Errorf("make a pipe to the browser: %w", err)
	}
	from, out, err := os.Pipe()
	if err != nil {
		return nil, "", errors.Join(fmt.Errorf("make a pipe from the browser: %w", err), in.Close(), to.Close())
	}
	args := append([]string{"env", "HOME=" + dir, chromium, "--user-data-dir=" + filepath.Join(dir, "profile")}, chromiumFlags...)
	w = &browser{dir: dir, to: to, in: from, from: bufio.NewReader(from), events: map[string]json.RawMessage{}}
	w.c, err = b.startWithFiles(n, anyCPU, []*os.File{in, out}, append(args, "about:blank")...)
	if err = errors.Join(err, in.Close(), out.Close()); err != nil {
		return nil, "", errors.Join(err, w.hangUp())
	}
	w.lasts = context.AfterFunc(ctx, w.crash)
	var v struct {
		Product string `json:"product"`
	}
	if err := w.call("", "Browser.getVersion", nil, &v); err != nil {
		w.crash()
		return nil, "", errors.Join(err, w.gone())
	}
	return w, v.Product, nil
}

func (w *browser) hangUp() error { return errors.Join(w.to.Close(), w.in.Close()) }

// call has the browser, or the tab of a session, do something, and reads what came of
// it into result unless that is nil.
func (w *browser) call(session, method string, params, result any) error {
	w.calls++
	text, err := json.Marshal(struct {
		ID      int    `json:"id"`
		Session string `json:"sessionId,omitempty"`
		Method  string `json:"method"`
		Params  any    `json:"params,omitempty"`
	}{w.calls, session, method, params})
	if err == nil {
		err = w.in.SetReadDeadline(time.Now().Add(answerTime))
	}
	if err == nil {
		_, err = w.to.Write(append(text, 0))
	}
	for m := (message{}); err == nil; {
		if m, err = w.read(); err != nil || m.ID != w.calls {
			continue
		}
		if m.Error.Message != "" {
			return fmt.Errorf("browser, %s: %s", method, m.Error.Message)
		}
		if result != nil {
			err = json.Unmarshal(m.Result, result)
		}
		break
	}
	if err != nil {
		return fmt.Errorf("browser, %s: %w", method, err)
	}
	return nil
}

// read takes a message, and remembers events.
func (w *browser) read() (m message, err error) {
	text, err := w.from.ReadBytes(0)
	if err != nil {
		return m, err
	}
	m, err = parseMessage(text)
	if m.Method != "" {
		w.events[m.Method] = m.Params
	}
	return m, err
}

func parseMessage(text []byte) (m message, err error) {
	return m, json.Unmarshal(text[:max(len(text)-1, 0)], &m)
}

// happens waits for an event, which may have happened before.
func (w *browser) happens(method string, params any) error {
	err := w.in.SetReadDeadline(time.Now().Add(answerTime))
	for w.events[method] == nil && err == nil {
		_, err = w.read()
	}
	if err == nil {
		err = json.Unmarshal(w.events[method], params)
	}
	delete(w.events, method)
	if err != nil {
		return fmt.Errorf("wait for %s of the browser: %w", method, err)
	}
	return nil
}

// crash ends all processes of the browser at once.
func (w *browser) crash() { _ = unix.Kill(-w.c.pid(), unix.SIGKILL) } // they may have ended

// quit closes the browser as its user does.
func (w *browser) quit() error { return w.call("", "Browser.close", nil, nil) }

// gone waits until it has ended.
func (w *browser) gone() error {
	w.lasts()
	select {
	case <-w.c.done:
		return w.hangUp()
	case <-time.After(patience):
		w.crash()
		<-w.c.done
		return errors.Join(fmt.Errorf("end the browser: it still ran after %v", patience), w.hangUp())
	}
}

// time is the processor time of its processes so far, also of those that have ended.
func (w *browser) time() (sum time.Duration) {
	files, _ := filepath.Glob(filepath.Join(proc, "[0-9]*", "stat"))
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // it has just ended
		}
		if group, ran, err := parseStat(string(text)); err == nil && group == w.c.pid() {
			sum += ran
		}
	}
	return sum
}

// parseStat reads a process's group, and the processor time of itself and of the
// children that it waited for (proc(5), /proc/PID/stat; a tick is 10 ms to programs).
func parseStat(text string) (group int, ran time.Duration, err error) {
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:]) // its name may hold anything
	if len(fields) < 15 {
		return 0, 0, fmt.Errorf("%q has too few fields for a process", text)
	}
	if group, err = strconv.Atoi(fields[2]); err != nil {
		return 0, 0, fmt.Errorf("read group of a process: %w", err)
	}
	for _, f := range fields[11:15] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, 0, fmt.Errorf("read time of a process: %w", err)
		}
		ran += time.Duration(n) * 10 * time.Millisecond
	}
	return group, ran, nil
}

// browserInstalled tells whether there is one to start.
func browserInstalled() bool {
	_, err := exec.LookPath(chromium)
	return err == nil
}
