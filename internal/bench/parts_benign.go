package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// benignConfig leaves everything as it is installed, but for how far a freeze at the
// end reaches back: over the whole run.
const benignConfig = `recorder:
  memory: 128MiB
  age: 1h
window:
  before: 1h
  after: 1s
`

// mostLoad bounds what the traffic itself may cost, as a share of a processor: it is
// about what resets are, not about how many.
const mostLoad = 0.15

// benignKinds are the kinds that the habits must show on each host, beside which no
// harmful ones may be.
var benignKinds = []string{"healthcheck", "after_fin", "abort_after_response", "scan", "refused_startup", "preconnect", "idle_close"}

// kinds are those that the habits show.
func (h *benignHosts) kinds() []string {
	if h.surfer == nil {
		return slices.Clone(benignKinds)
	}
	return append(slices.Clone(benignKinds), "abandoned")
}

// judged is a host with its daemon, and what that says in the end.
type judged struct {
	*session
	host     string
	triggers []triggerState
	most     map[string]float64 // the largest value that each trigger had
	kinds    map[string]int64
	harmful  int64
	groups   []harmed
	firings  int      // of the trigger "resets", by the recording
	resets   [2]int64 // counted before and after the freeze
	stored   int64    // incidents
	lost     int64    // packets that are not recorded, or not any more
}

// triggerState is what is read of `tcpcoroner triggers`.
type triggerState struct {
	Name       string  `json:"name"`
	State      string  `json:"state"`
	Value      float64 `json:"value"`
	Threshold  float64 `json:"threshold"`
	Fired      int64   `json:"fired"`
	Suppressed int64   `json:"suppressed"`
	Why        string  `json:"why"`
}

// benign lets two hosts with a daemon each live on harmless resets.
func benign(ctx context.Context, b *bench) error {
	before, err := ownTime()
	if err != nil {
		return err
	}
	h, err := b.benignHosts()
	if err != nil {
		return err
	}
	all, err := h.record(ctx)
	if err != nil {
		return err
	}
	client, server := h.habits()
	start := time.Now()
	if err := h.watch(ctx, all, client, server); err != nil {
		return err
	}
	took := time.Since(start)
	if err := errors.Join(h.surfer.settle(), onEach(all, func(j *judged) error { return j.look(ctx) }), h.stop()); err != nil {
		return err
	}
	after, err := ownTime()
	if err != nil {
		return err
	}
	if err := onEach(all, func(j *judged) error { return j.sort(ctx) }); err != nil {
		return err
	}
	b.benignTables(slices.Concat(client, server), all, took)
	b.benignGoals(h, all, after-before, took)
	return onEach(all, func(j *judged) error { return j.stop() })
}

func onEach(all []*judged, f func(*judged) error) (err error) {
	for _, j := range all {
		if e := f(j); e != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", j.host, e))
		}
	}
	return err
}

// record starts a daemon on each host.
func (h *benignHosts) record(ctx context.Context) (all []*judged, err error) {
	for _, host := range []struct {
		name string
		n    *namespace
	}{{"server", h.server}, {"client", h.client}} {
		s, err := startConfigured(ctx, h.b, host.n, benignConfig, h.b.dir)
		if err != nil {
			return nil, err
		}
		all = append(all, &judged{session: s, host: host.name, most: map[string]float64{}})
	}
	return all, nil
}

// lasts is how long the part does.
func (b *bench) lasts() time.Duration {
	minutes := pick(b, 30.0, 1.0)
	if b.minutes > 0 {
		minutes = b.minutes
	}
	return time.Duration(minutes * float64(time.Minute))
}

// watch has the hosts live for a while, and looks at the triggers meanwhile: their
// values are of ten seconds, so none is missed.
func (h *benignHosts) watch(ctx context.Context, all []*judged, client, server []*habit) (err error) {
	live, cancel := context.WithTimeout(ctx, h.b.lasts())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- h.lead(live, client, server) }()
	for ; live.Err() == nil && err == nil; sleep(live, 5*time.Second) {
		err = onEach(all, func(j *judged) error { return j.watch(ctx) })
	}
	cancel()
	return errors.Join(err, <-done, ctx.Err())
}

// watch remembers the largest values.
func (j *judged) watch(ctx context.Context) error {
	var all []triggerState
	err := j.ask(ctx, &all, "triggers")
	for _, t := range all {
		j.most[t.Name] = max(j.most[t.Name], t.Value)
	}
	return err
}

// look reads what the daemon has done so far.
func (j *judged) look(ctx context.Context) error {
	if err := j.ask(ctx, &j.triggers, "triggers"); err != nil {
		return err
	}
	st, err := j.disk(ctx)
	if err != nil {
		return err
	}
	j.stored = st.Incidents.Stored
	return j.reasons(ctx)
}

// reasons tells why what was stored was stored.
func (j *judged) reasons(ctx context.Context) error {
	var all []struct {
		ID string `json:"id"`
	}
	if err := j.ask(ctx, &all, "incidents"); err != nil {
		return err
	}
	for _, i := range all {
		var one struct {
			Firings []struct {
				Trigger string    `json:"trigger"`
				Reason  string    `json:"reason"`
				Time    time.Time `json:"time"`
			} `json:"firings"`
		}
		if err := j.ask(ctx, &one, "show", i.ID); err != nil {
			return err
		}
		for _, f := range one.Firings {
			j.b.say("%s: %s fired at %s: %s", j.host, f.Trigger, f.Time.Local().Format(time.TimeOnly), f.Reason)
		}
	}
	return nil
}

// sort has the product sort the resets of all that was recorded.
func (j *judged) sort(ctx context.Context) error {
	before, err := j.status(ctx)
	if err != nil {
		return err
	}
	if err := j.ask(ctx, nil, "freeze", "--reason", "bench"); err != nil {
		return err
	}
	after, err := j.status(ctx)
	if err != nil {
		return err
	}
	j.lost = after.Recorder.Evicted + after.Recorder.Dropped + after.Recorder.Skipped
	j.resets = [2]int64{before.Recorder.Resets, after.Recorder.Resets}
	path := filepath.Join(j.dir, "all.pcapng")
	if err := j.ask(ctx, nil, "pull", "last", "-o", path); err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, j.b.program, "triggers", "replay", path).CombinedOutput()
	if err != nil {
		return fmt.Errorf("tcpcoroner triggers replay: %w: %s", err, out)
	}
	if err := j.parse(string(out)); err != nil {
		return err
	}
	var sorted struct {
		Harm struct {
			Groups []harmed `json:"groups"`
		}
	}
	err = j.ask(ctx, &sorted, "triggers", "replay", path)
	j.groups = sorted.Harm.Groups
	return errors.Join(err, os.Remove(path))
}

// harmed is a service and a neighbourhood of its peers that saw harm, with the
// resets by kind.
type harmed struct {
	Port  int              `json:"port"`
	Peers string           `json:"peers"`
	Kinds map[string]int64 `json:"kinds"`
}

// incidentStatus is what the product's status tells of its incidents.
type incidentStatus struct {
	Incidents struct {
		Stored int64 `json:"stored"`
		Bytes  int64 `json:"bytes"`
	} `json:"incidents"`
}

// disk asks for it.
func (s *session) disk(ctx context.Context) (st incidentStatus, err error) {
	return st, s.ask(ctx, &st, "status")
}

var (
	replayFirings = regexp.MustCompile(`(\d+) firings\n`)
	replayKind    = regexp.MustCompile(`(?m)^ *([\d,]+)  (harmless|harmful): (\S+)$`)
)

// parse reads what `triggers replay` prints.
func (j *judged) parse(text string) (err error) {
	m := replayFirings.FindStringSubmatch(text)
	if m == nil {
		return fmt.Errorf("read replay: no number of firings in %q", text)
	}
	if j.firings, err = strconv.Atoi(m[1]); err != nil {
		return fmt.Errorf("read replay: %w", err)
	}
	j.kinds = map[string]int64{}
	for _, m := range replayKind.FindAllStringSubmatch(text, -1) {
		n, err := strconv.ParseInt(strings.ReplaceAll(m[1], ",", ""), 10, 64)
		if err != nil {
			return fmt.Errorf("read replay: %w", err)
		}
		j.kinds[m[3]] = n
		if m[2] == "harmful" {
			j.harmful += n
		}
	}
	return nil
}

// sum is how many resets were sorted.
func (j *judged) sum() (n int64) {
	for _, k := range j.kinds {
		n += k
	}
	return n
}

// stop stops the services, which are then waited for: their processor time counts.
func (h *benignHosts) stop() (err error) {
	for _, c := range h.services {
		err = errors.Join(err, c.stop())
	}
	return err
}

// ownTime is the processor time of this program and of processes that it has waited
// for.
func ownTime() (sum time.Duration, err error) {
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		if err := unix.Getrusage(who, &u); err != nil {
			return 0, fmt.Errorf("read processor time: %w", err)
		}
		sum += time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	return sum, nil
}

func (b *bench) benignTables(habits []*habit, all []*judged, took time.Duration) {
	t := table{Title: fmt.Sprintf("what was done for %v", took.Round(time.Second)), Columns: []string{"habit", "times", "a minute"}}
	for _, x := range habits {
		n := x.done.Load()
		t.Rows = append(t.Rows, []string{x.what, fmt.Sprint(n), fmt.Sprintf("%.0f", float64(n)/took.Minutes())})
	}
	b.table(t)
	b.table(kindTable(all))
	t = table{Title: "triggers, as `tcpcoroner triggers` tells", Columns: []string{"host", "trigger", "state", "highest value", "threshold", "fired", "held back", "remark"}}
	for _, j := range all {
		for _, g := range j.triggers {
			t.Rows = append(t.Rows, []string{j.host, g.Name, g.State, fmt.Sprintf("%.4g", j.most[g.Name]), fmt.Sprintf("%.4g", g.Threshold),
				fmt.Sprint(g.Fired), fmt.Sprint(g.Suppressed), strings.ReplaceAll(g.Why, "\n", "; ")})
		}
	}
	b.table(t)
}

// kindTable has a row for each kind that was seen, the most frequent first.
func kindTable(all []*judged) table {
	t := table{Title: "resets by kind, as `tcpcoroner triggers replay` sorts all that was recorded", Columns: []string{"kind"}}
	sums := map[string]int64{}
	for _, j := range all {
		t.Columns = append(t.Columns, j.host)
		for kind, n := range j.kinds {
			sums[kind] += n
		}
	}
	for _, kind := range slices.SortedFunc(maps.Keys(sums), func(x, y string) int { return cmp.Compare(sums[y], sums[x]) }) {
		row := []string{kind}
		for _, j := range all {
			row = append(row, fmt.Sprint(j.kinds[kind]))
		}
		t.Rows = append(t.Rows, row)
	}
	return t
}

func (b *bench) benignGoals(h *benignHosts, all []*judged, spent, took time.Duration) {
	if h.surfer != nil { // its time is told apart
		spent -= h.surfer.waited
	}
	for _, j := range all {
		b.goal(j.fired() == 0, j.host+": no trigger fires, none is held back, no incident is stored", "%d", j.fired())
		b.goal(j.harmful == 0, j.host+": all resets are counted as benign", "%d as harmful", j.harmful)
		for _, g := range j.groups {
			b.say("%s: harm at port %d for %s: %v", j.host, g.Port, g.Peers, g.Kinds)
		}
		if what := j.host + ": every reset is sorted"; j.lost == 0 {
			b.goal(j.resets[0] <= j.sum() && j.sum() <= j.resets[1], what, "%d of %d to %d", j.sum(), j.resets[0], j.resets[1])
		} else {
			b.refuse(what, "%d packets are not recorded", j.lost)
		}
		absent := slices.DeleteFunc(h.kinds(), func(kind string) bool { return j.kinds[kind] > 0 })
		b.goal(len(absent) == 0, j.host+": every harmless kind was there", "absent: %v", absent)
	}
	b.goal(h.errors.Load() == 0, "every habit did what it was to do", "%d failed", h.errors.Load())
	b.browserGoals(h.surfer, took)
	load := float64(spent) / float64(took)
	b.goal(load <= mostLoad, fmt.Sprintf("the traffic takes less than %.0f %% of a processor", 100*mostLoad), "%.1f %%", 100*load)
}

// browserGoals tells whose aborts those of browsers were, and what they took.
func (b *bench) browserGoals(s *surfer, took time.Duration) {
	const what = "browsers' aborts are Chromium's"
	if s == nil {
		b.refuse(what, "left out: %s is not installed (apt-get install --no-install-recommends %s)", chromium, chromium)
		return
	}
	b.goal(s.left > 0, what, "%d by %s", s.left, s.version)
	load := float64(s.ran) / float64(took)
	b.goal(load <= mostLoad, fmt.Sprintf("the browser takes less than %.0f %% of a processor", 100*mostLoad), "%.1f %%", 100*load)
}

// fired is what woke somebody, or would have.
func (j *judged) fired() int64 {
	n := int64(j.firings) + j.stored
	for _, t := range j.triggers {
		n += t.Fired + t.Suppressed
	}
	return n
}
