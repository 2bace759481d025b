package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"tcpcoroner/evidence"
	"tcpcoroner/exporter/api"
	"tcpcoroner/internal/netlab"
	"tcpcoroner/internal/scenes"
)

// Every kind of trouble that the product is there for is made for real on a stage
// of three hosts, beside a real daemon on one of them. The trigger must fire, or
// none, and the incident must hold what proves the case.

// rows are the kinds of trouble. Each has a case at least.
var rows = []string{
	"application aborts",
	"nothing listens",
	"listen queue overflow",
	"proxy resets the client",
	"upstream resets the proxy",
	"client aborts",
	"keepalive mismatch",
	"NAT or conntrack state lost",
	"conntrack table full",
	"ephemeral ports exhausted",
	"firewall reject",
	"middlebox injection",
	"TLS policy or plaintext",
	"MTU black hole",
	"loss",
	"memory pressure",
	"keepalive or user timeout",
	"stall behind a slow server",
	"HTTP/2",
	"benign",
}

// trouble is one case.
type trouble struct {
	row, name string
	// trigger is the one that must fire; empty if none may.
	trigger string
	// watched is the host where the daemon runs, as scenes names it.
	watched string
	// config is more of the daemon's configuration, in YAML.
	config string
	// prepare is called before the daemon starts; nil if there is nothing to do.
	prepare func(*caseLab)
	// play makes the trouble. What it starts may go on until the test ends.
	play func(*caseLab)
	// datum looks for the proof in the incident and says in short what it found.
	datum func(*caseLab, *evidence.Incident) string
}

// allTroubles are the cases, by theme, those that take long first.
func allTroubles() []trouble {
	return slices.Concat(limitTroubles, pathTroubles, socketTroubles, listenerTroubles, proxyTroubles, webTroubles)
}

func TestEveryRowHasACase(t *testing.T) {
	names := map[string]bool{}
	for _, c := range allTroubles() {
		if names[c.name] || c.name == "" || c.datum == nil || c.play == nil {
			t.Errorf("case %q comes twice or is not complete", c.name)
		}
		names[c.name] = true
		if !slices.Contains(rows, c.row) {
			t.Errorf("case %q is of %q, which is no row", c.name, c.row)
		}
	}
	for _, row := range rows {
		if !slices.ContainsFunc(allTroubles(), func(c trouble) bool { return c.row == row }) {
			t.Errorf("no case shows %q", row)
		}
	}
}

// atOnceTroubles is how many cases run side by side. They mostly wait.
const atOnceTroubles = 8

func TestTroubles(t *testing.T) {
	netlab.NeedRoot(t)
	t.Parallel()
	var table ledgerOfTroubles
	slots := make(chan struct{}, atOnceTroubles)
	var all sync.WaitGroup
	for _, c := range allTroubles() {
		all.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			t.Run(c.name, func(t *testing.T) { table.add(c, c.run(t)) })
		})
	}
	all.Wait()
	t.Log("\n" + table.String())
}

// ledgerOfTroubles is what was shown.
type ledgerOfTroubles struct {
	mu    sync.Mutex
	lines map[string]shown
}

// shown is how long a case took to fire, and the proof.
type shown struct {
	trigger string
	after   time.Duration
	datum   string
}

func (l *ledgerOfTroubles) add(c trouble, s shown) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lines == nil {
		l.lines = map[string]shown{}
	}
	l.lines[c.name] = s
}

func (l *ledgerOfTroubles) String() string {
	var b bytes.Buffer
	w := tabwriter.NewWriter(&b, 0, 0, 1, ' ', 0)
	fmt.Fprintln(w, "row\t| case\t| trigger\t| seconds\t| datum")
	for _, c := range allTroubles() {
		s := l.lines[c.name]
		after := fmt.Sprintf("%.1f", s.after.Seconds())
		if c.trigger == "" {
			s.trigger, after = "none", "-"
		}
		fmt.Fprintf(w, "%s\t| %s\t| %s\t| %s\t| %s\n", c.row, c.name, s.trigger, after, s.datum)
	}
	_ = w.Flush() // to memory
	return b.String()
}

// caseLab is the stage of one case with its daemon.
type caseLab struct {
	*testing.T
	*scenes.Stage
	dir string
	// host is where the daemon p runs.
	host *scenes.Host
	p    *process
	// truths are of the scenes that were played, notes of a case's own.
	truths []scenes.Truth
	notes  map[string]string
	// behind are goroutines that need the stage.
	behind sync.WaitGroup
}

// meanwhile runs f beside the test, which waits for it; l.Context() ends it.
func (l *caseLab) meanwhile(f func()) { l.behind.Go(f) }

// caseConfig keeps windows short: the proof is in the snapshots and packets.
const caseConfig = `
recorder: {self_test: 0s, memory: 32MiB}
window: {before: 90s, after: 1s, max: 3s}
`

// firingTime bounds the wait for a trigger, on a machine that is busy.
const firingTime = 60 * time.Second

func (c *trouble) run(t *testing.T) (s shown) {
	st, err := scenes.NewStage()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	l := &caseLab{T: t, Stage: st, dir: t.TempDir(), host: st.Host(c.watched), notes: map[string]string{}}
	t.Cleanup(l.behind.Wait)
	if c.prepare != nil {
		c.prepare(l)
	}
	if l.p == nil {
		l.p = l.daemon(c.config)
	}
	defer func() { // before what plays is ended
		if l.Failed() {
			l.Log("\n" + l.state())
			l.tell(l.freeze())
		}
	}()
	l.armed()
	began := time.Now()
	c.play(l)
	if c.trigger == "" {
		inc := l.freeze()
		s.datum = c.datum(l, inc)
		l.noneFired()
		return s
	}
	inc, f := l.fired(c.trigger)
	return shown{trigger: c.trigger, after: f.Time.Sub(began), datum: c.datum(l, inc)}
}

// daemon starts a daemon on the watched host.
func (l *caseLab) daemon(config string) *process {
	l.Helper()
	p := &process{socket: filepath.Join(l.dir, "control.sock"), data: filepath.Join(l.dir, "data"), log: newWatched()}
	file := l.file("tcpcoroner.yaml", caseConfig+config)
	p.Cmd = exec.Command(self(l), "run", "--socket", p.socket, "--data", p.data, "--config", file)
	p.Env = append(os.Environ(), asProgram+"=1")
	p.Stderr = p.log
	l.must(l.host.Do(p.Start))
	l.Cleanup(p.kill)
	l.recording(p)
	return p
}

func (l *caseLab) recording(p *process) {
	l.Helper()
	if !p.log.wait("msg=recording", firingTime) {
		p.kill()
		l.Fatalf("the daemon does not record:\n%s", p.log)
	}
}

// armed wants the triggers checked, all in one go, before the daemon says that it
// records: what they read then is their base, and what happens from then on counts.
func (l *caseLab) armed() {
	l.Helper()
	s, err := l.p.client().Status(l.Context())
	l.must(err)
	l.want(slices.ContainsFunc(s.Triggers, func(g api.TriggerStatus) bool { return g.Name == "resets" && g.Threshold > 0 }),
		"the triggers checked: %+v", s.Triggers)
}

// fired waits for the incident that a trigger began or joined.
func (l *caseLab) fired(trigger string) (inc *evidence.Incident, f evidence.Firing) {
	l.Helper()
	await(l, firingTime, "incident by "+trigger, func() bool {
		list, err := l.p.client().Incidents(l.Context(), 0)
		l.must(err)
		for _, s := range list {
			inc, err = l.p.client().Incident(l.Context(), s.ID)
			l.must(err)
			for _, f = range inc.Firings {
				if f.Trigger == trigger {
					return true
				}
			}
		}
		return false
	})
	return inc, f
}

func (l *caseLab) state() string {
	s, err := l.p.client().Status(context.Background()) // that of the test has ended
	if err != nil {
		return err.Error()
	}
	var b strings.Builder
	_ = writeTriggers(&b, s.Triggers)
	return b.String()
}

// freeze has an incident made by hand.
func (l *caseLab) freeze() *evidence.Incident {
	l.Helper()
	ctx := context.Background() // that of the test may have ended
	f, err := l.p.client().Freeze(ctx, "to look")
	l.must(err)
	inc, err := l.p.client().Incident(ctx, f.ID)
	l.must(err)
	return inc
}

func (l *caseLab) noneFired() {
	l.Helper()
	s, err := l.p.client().Status(l.Context())
	l.must(err)
	for _, g := range s.Triggers {
		if g.Fired+g.Suppressed > 0 {
			l.Errorf("the trigger %s fired %d times, %d held back", g.Name, g.Fired, g.Suppressed)
		}
	}
	l.want(sum(s.Harm.Harmful) == 0 && sum(s.Harm.Harmless) > 0, "harmless resets alone: %s", harmLine(&s.Harm))
}

// tell shows what the incident of a failed case holds.
func (l *caseLab) tell(inc *evidence.Incident) {
	for _, f := range inc.Firings {
		l.Logf("%s: %s", f.Trigger, f.Reason)
	}
	_, harm := l.harm(inc)
	l.Logf("%s; scored again: %s", inc.Verdict, harm)
	for i := range inc.Flows {
		f := &inc.Flows[i]
		c := f.Verdict.Claim()
		l.Logf("%s %v owner %+v: %s/%s %s %s: %s", f.ID, f, f.Owner, c.Origin, c.Mechanism, c.Party, c.Cause, c.Sentence)
	}
	for i := range inc.Kernel {
		e := &inc.Kernel[i]
		l.Logf("kernel %s %v > %v %s %s owner %+v last %+v", e.Kind, e.Local, e.Remote, e.Reason, e.State, e.Owner, e.LastListener)
	}
	for _, line := range inc.Logs {
		l.Logf("log %s %s: %s", line.Source, line.Reason, line.Text)
	}
	for _, m := range inc.Missing() {
		l.Logf("missing %s: %s", m.What, m.Why)
	}
}

func (l *caseLab) must(err error) {
	l.Helper()
	if err != nil {
		l.Fatal(err)
	}
}

// want notes what is not as it should be.
func (l *caseLab) want(ok bool, format string, args ...any) {
	l.Helper()
	if !ok {
		l.Errorf("want "+format, args...)
	}
}

// full tells whether this kernel gives reasons and owners.
func (l *caseLab) full(inc *evidence.Incident) bool {
	return inc.KernelLevel != nil && inc.KernelLevel.Name == evidence.LevelFull
}
