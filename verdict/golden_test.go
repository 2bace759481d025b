package verdict_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
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
