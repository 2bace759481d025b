package verdict_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tcpcoroner/evidence"
	"tcpcoroner/exporter/pcapng"
	"tcpcoroner/verdict"
)

var update = flag.Bool("update", false, "write what is concluded into the want.txt of the golden cases")

// TestGolden judges what was recorded of scenes whose truth is known. A difference
// is either a mistake or an insight; -update is for the latter.
func TestGolden(t *testing.T) {
	cases, err := filepath.Glob("testdata/*/incident.json")
	if err != nil || len(cases) == 0 {
		t.Fatalf("no golden cases (%v)", err)
	}
	for _, file := range cases {
		dir := filepath.Dir(file)
		t.Run(filepath.Base(dir), func(t *testing.T) {
			t.Parallel()
			got, want := conclusion(judged(t, dir)), filepath.Join(dir, "want.txt")
			if *update {
				if err := os.WriteFile(want, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			text, err := os.ReadFile(want)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(text), got); diff != "" {
				t.Errorf("verdicts (-want +got):\n%s", diff)
			}
		})
	}
}

// judged reads an incident and its packets, and judges it.
func judged(t *testing.T, dir string) verdict.Judgement {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "incident.json"))
	if err != nil {
		t.Fatal(err)
	}
	inc := new(evidence.Incident)
	if err := json.Unmarshal(b, inc); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(dir, "window.pcapng"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w, err := pcapng.Read(f)
	if err != nil {
		t.Fatal(err)
	}
	sel := verdict.NewSelection()
	for i := range w.Packets {
		sel.Survey(&w.Packets[i])
	}
	for i := range w.Packets {
		sel.Take(&w.Packets[i])
	}
	sel.Fill(&inc.Window)
	return verdict.Judge(inc)
}

// conclusion is a judgement for people who compare.
func conclusion(j verdict.Judgement) string {
	var b strings.Builder
	c := j.Verdict.Claim()
	fmt.Fprintf(&b, "incident: %s\n%s", short(c), c.Sentence+"\n")
	for i := range j.Flows {
		f := &j.Flows[i]
		c := f.Verdict.Claim()
		fmt.Fprintf(&b, "\n%s %v > %v: %s\n%s\n", f.ID, f.Client, f.Server, short(c), f.Verdict)
		for _, n := range f.Verdict.Findings() {
			against := ""
			if n.Against {
				against = "against: "
			}
			fmt.Fprintf(&b, "- %s%s: %s\n", against, n.Kind, n.Text)
		}
	}
	return b.String()
}

func short(c evidence.Claim) string {
	harmless := ""
	if c.Benign {
		harmless = ", harmless"
	}
	return fmt.Sprintf("%s %s, %s %s, party %s %s, cause %s %s%s", or(c.Origin), c.Confidence, or(c.Mechanism), c.MechanismConfidence,
		or(c.Party), c.PartyConfidence, or(c.Cause), c.CauseConfidence, harmless)
}

func or[T ~string](v T) string {
	if v == "" {
		return "unknown"
	}
	return string(v)
}

// noCase are the words of docs/verdicts.md that no golden case says, and why.
var noCase = map[string]string{
	"mechanism unknown": "what is said where nothing else is",
	"cause unknown":     "what is said where nothing else is",
	"origin unknown":    "what is said where nothing else is",
}

// lookAlike names for each word a case that comes near and must not say it.
var lookAlike = map[string]string{
	"origin local.process":             "reject-output-at-server",
	"origin local.kernel":              "reject-input-at-server",
	"origin local.host":                "linger0-at-server-packets",
	"origin local.netfilter":           "closed-port-at-server",
	"origin local.other_sender":        "reject-forward-at-router-packets",
	"origin peer.process":              "inject-exact-at-client",
	"origin peer.kernel":               "sigkill-unread-at-client",
	"origin peer.host":                 "tunnel-at-client",
	"origin middlebox":                 "linger0-at-client",
	"origin middlebox.near":            "half-open-at-client",
	"origin middlebox.far":             "longer-route-at-client",
	"origin nat":                       "conntrack-snat-at-server",
	"origin forwarded":                 "conntrack-dnat-at-router",
	"origin none":                      "closed-port-at-server",
	"mechanism refused":                "rate-limit-reject-at-server",
	"mechanism refused.no_listener":    "reject-input-at-server",
	"mechanism refused.filter":         "closed-port-at-server-packets",
	"mechanism refused.ratelimit":      "redeployed-at-client",
	"mechanism no_socket":              "close-late-data-at-server",
	"mechanism state_lost":             "crash-nothing-unread-at-server",
	"mechanism state_lost.nat":         "half-open-at-router",
	"mechanism late_data.after_close":  "half-open-listener-at-server",
	"mechanism active_abort":           "half-open-at-client",
	"mechanism abort.unread_data":      "linger0-at-server",
	"mechanism abort.linger0":          "close-unread-at-server",
	"mechanism abort.killed_socket":    "purge-at-server",
	"mechanism abort.listener_closed":  "purge-at-server",
	"mechanism abort.process_exit":     "purge-at-client",
	"mechanism abort.memory":           "user-timeout-at-server",
	"mechanism abort.keepalive":        "user-timeout-at-server",
	"mechanism after_fin":              "half-close-then-abort-at-client",
	"mechanism overflow.accept_queue":  "rate-limit-drop-at-server",
	"mechanism conntrack.full":         "conntrack-full-at-client",
	"mechanism port_exhaustion":        "ports-half-used-at-client",
	"mechanism injected.blind_ignored": "inject-in-window-at-client",
	"mechanism injected.spoof":         "conntrack-dnat-at-client",
	"mechanism timeout.silent":         "overflow-drop-at-server",
	"mechanism mtu_blackhole":          "path-cut-at-client",
	"cause app_abort":                  "sigkill-unread-at-server",
	"cause timeout":                    "slow-but-no-timer-at-client",
	"cause policy":                     "redeployed-at-client",
	"cause process_down":               "purge-at-client",
	"cause backlog_full":               "rate-limit-drop-at-server",
	"cause conntrack_full":             "rate-limit-drop-at-server",
	"cause ports_exhausted":            "ports-half-used-at-client",
	"cause stale_reuse":                "timer-of-server-at-client",
	"cause state_lost":                 "close-late-data-at-server",
	"cause path_drop":                  "rate-limit-drop-at-server",
	"cause protocol_mismatch":          "tls-first-flight-at-client",
	"cause forged":                     "linger0-at-client",
	"cause memory":                     "timer-and-abort-at-server-packets",
	"cause normal_close":               "client-gives-up-at-server",
	"cause scan":                       "redeployed-at-server",
	"cause health_check":               "turned-away-at-client",
}

// TestEveryVerdictHasCases: each word that docs/verdicts.md defines is said of one
// case at least, and is not said of one that comes near.
func TestEveryVerdictHasCases(t *testing.T) {
	said := saidWords(t)
	words := documentedWords(t)
	for _, w := range words {
		fires := false
		for _, of := range said {
			fires = fires || of[w]
		}
		near, listed := lookAlike[w]
		switch _, excused := noCase[w]; {
		case excused:
			if fires && !strings.HasSuffix(w, "unknown") {
				t.Errorf("%s has a case: take it out of noCase", w)
			}
		case !fires:
			t.Errorf("no golden case is %s", w)
		case !listed:
			t.Errorf("no golden case comes near %s without being it: name one in lookAlike", w)
		case said[near] == nil:
			t.Errorf("%s is to be told from %s, which does not exist", w, near)
		case said[near][w]:
			t.Errorf("%s must not be %s", near, w)
		}
	}
	for _, list := range []map[string]string{noCase, lookAlike} {
		for w := range list {
			if !slices.Contains(words, w) {
				t.Errorf("%s is not in docs/verdicts.md", w)
			}
		}
	}
}

// documentedWords are the origins, mechanisms and causes of docs/verdicts.md.
func documentedWords(t *testing.T) (all []string) {
	t.Helper()
	b, err := os.ReadFile("../docs/verdicts.md")
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string]string{"Origins": "origin", "Mechanisms": "mechanism", "Causes": "cause"}
	kind := ""
	for line := range strings.Lines(string(b)) {
		if title, ok := strings.CutPrefix(line, "## "); ok {
			name, _, _ := strings.Cut(title, ":")
			kind = kinds[name]
		}
		if m := documentedWord.FindStringSubmatch(line); m != nil && kind != "" {
			all = append(all, kind+" "+m[1])
		}
	}
	return all
}

// documentedWord is the first column of a table, or a heading.
var documentedWord = regexp.MustCompile("^(?:\\| |#{3,4} )`([a-z0-9_.]+)`")

// saidWords are what is wanted of each case, by its name.
func saidWords(t *testing.T) map[string]map[string]bool {
	t.Helper()
	files, err := filepath.Glob("testdata/*/want.txt")
	if err != nil {
		t.Fatal(err)
	}
	said := map[string]map[string]bool{}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		words := map[string]bool{}
		for _, m := range saidWord.FindAllStringSubmatch(string(b), -1) {
			words["origin "+m[1]], words["mechanism "+m[2]], words["cause "+m[3]] = true, true, true
		}
		said[filepath.Base(filepath.Dir(file))] = words
	}
	return said
}

// saidWord is the head of a verdict as short writes it.
var saidWord = regexp.MustCompile(`(?m)^(?:incident|f[0-9]+ [^ ]+ > [^ ]+): ([^ ]+) [^ ]+, ([^ ]+) [^ ]*, party [^ ]+ [^ ]*, cause ([^ ]+)`)
