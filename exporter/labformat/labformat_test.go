package labformat

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tcpcoroner/evidence"
)

// The words that the format knows.
var (
	knownOrigins    = []string{"", "local-process", "local-kernel", "local-firewall", "remote", "middlebox", "forwarded", "none"}
	knownParties    = []string{"", "client", "proxy", "server", "network"}
	knownMechanisms = []string{"", "linger-close", "unread-close", "process-exit", "late-data", "no-socket", "no-listener", "overflow",
		"tcp-timer", "firewall-reject", "injected", "none", "abortive-close", "no-such-connection", "refused"}
	knownCauses = []string{"", "app-abort", "timeout", "policy", "process-down", "backlog-full", "conntrack-full", "ports-exhausted",
		"stale-reuse", "state-lost", "path-drop", "forged", "protocol-mismatch", "normal-close", "scan", "health-check"}
)

// constants are the values of all constants of a type that package evidence has.
func constants(t *testing.T, typeName string) (values []string) {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "../../evidence/verdict.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || len(spec.Values) == 0 {
			return true
		}
		if name, ok := spec.Type.(*ast.Ident); !ok || name.Name != typeName {
			return true
		}
		for _, v := range spec.Values {
			text, err := strconv.Unquote(v.(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			values = append(values, text)
		}
		return true
	})
	if len(values) < 4 {
		t.Fatalf("%d constants of %s: the test does not find them", len(values), typeName)
	}
	return values
}

// checkWords: every constant has a word, if only the empty one on purpose.
func checkWords[K ~string](t *testing.T, typeName string, words map[K]string, known []string) {
	t.Helper()
	for _, v := range constants(t, typeName) {
		word, ok := words[K(v)]
		if !ok {
			t.Errorf("%s %q has no word in this format: add it to words.go", typeName, v)
		} else if !slices.Contains(known, word) {
			t.Errorf("%s %q becomes %q, which is no word of the format", typeName, v, word)
		}
	}
}

func TestEveryConstantHasAWord(t *testing.T) {
	checkWords(t, "Origin", origins, knownOrigins)
	checkWords(t, "Party", parties, knownParties)
	checkWords(t, "Cause", causes, knownCauses)
	here, elsewhere := map[evidence.Mechanism]string{}, map[evidence.Mechanism]string{}
	for k, m := range mechanisms {
		here[k], elsewhere[k] = m.here, m.elsewhere
	}
	checkWords(t, "Mechanism", here, knownMechanisms)
	checkWords(t, "Mechanism", elsewhere, knownMechanisms)
}

var at = time.Date(2026, 11, 23, 12, 0, 0, 250e6, time.UTC)

func judged(t *testing.T, c evidence.Claim) evidence.Verdict {
	t.Helper()
	v, err := evidence.NewVerdict(c, evidence.Finding{Kind: evidence.KindPacket, Text: "seen"}, evidence.Finding{Kind: evidence.KindKernel, Text: "told"})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestOf(t *testing.T) {
	claim := evidence.Claim{
		Origin: evidence.OriginLocalKernel, Mechanism: evidence.MechanismNoSocket, Confidence: evidence.Proven,
		MechanismConfidence: evidence.Likely,
		Party:               evidence.Proxy, PartyConfidence: evidence.Likely, Cause: evidence.CauseTimeout, CauseConfidence: evidence.Possible,
		Process: &evidence.Owner{PID: 7, Comm: "nginx"}, Sentence: "so it was",
	}
	inc := &evidence.Incident{
		Time: at, Verdict: judged(t, claim),
		Flows: []evidence.Flow{
			{Client: netip.MustParseAddrPort("192.0.2.1:4711"), Server: netip.MustParseAddrPort("[2001:db8::1]:80"), First: at.Add(-time.Second),
				Reset: &evidence.Reset{Time: at}, Verdict: judged(t, claim)},
			{Client: netip.MustParseAddrPort("192.0.2.1:4712"), Server: netip.MustParseAddrPort("192.0.2.2:80"), First: at},
		},
		Firings: []evidence.Firing{{Trigger: "manual", Time: at}, {Trigger: "resets", Time: at.Add(time.Second)}},
	}
	got := Of(inc, "here")
	const second = 1795435200
	want := Report{
		Format: Name, Vantage: "here",
		Flows: []Flow{
			{Src: netip.MustParseAddr("192.0.2.1"), Sport: 4711, Dst: netip.MustParseAddr("2001:db8::1"), Dport: 80, Time: second + 0.25,
				Verdict: Verdict{Origin: "local-kernel", Party: "proxy", Mechanism: "no-socket", Cause: "timeout", PID: 7, Comm: "nginx",
					Confidence: "certain", Sentence: "so it was"},
				Confidence: map[string]Confidence{"party": "likely", "cause": possible, "mechanism": "likely"}},
			{Src: netip.MustParseAddr("192.0.2.1"), Sport: 4712, Dst: netip.MustParseAddr("192.0.2.2"), Dport: 80, Time: second + 0.25,
				Verdict: Verdict{Confidence: "unknown", Sentence: "not judged"}, Confidence: map[string]Confidence{"party": "unknown", "cause": "unknown", "mechanism": "unknown"}},
		},
		Incidents: []Incident{{Time: second + 0.25, Party: "proxy", Cause: "timeout", Sentence: "so it was",
			Confidence: map[string]Confidence{"": "certain", "party": "likely", "cause": possible, "mechanism": "likely"}}},
		Alarms: []Alarm{{Time: second + 1.25, Kind: "rst-spike"}},
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("report (-want +got):\n%s", diff)
	}
}

func TestOfNothing(t *testing.T) {
	b, err := json.Marshal(Of(&evidence.Incident{}, "here"))
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"format":"rstlab-verdict/1","vantage":"here","flows":[],"incidents":[],"alarms":[]}`; string(b) != want {
		t.Errorf("%s, want %s", b, want)
	}
}

// What is far away gets the umbrella word; what is here the exact one.
func TestMechanismByOrigin(t *testing.T) {
	for _, tt := range []struct {
		origin evidence.Origin
		want   string
	}{
		{evidence.OriginLocalKernel, "no-socket"}, {evidence.OriginPeerHost, "no-such-connection"}, {evidence.OriginForwarded, "no-such-connection"},
	} {
		if got := mechanismOf(evidence.Claim{Origin: tt.origin, Mechanism: evidence.MechanismNoSocket}); got != tt.want {
			t.Errorf("no socket at %s is %q, want %q", tt.origin, got, tt.want)
		}
	}
}

// Every trigger has a kind, if only "other" on purpose.
func TestEveryTriggerHasAKind(t *testing.T) {
	files, err := filepath.Glob("../../triggers/*.go")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`\) Name\(\) string +\{ return "([^"]+)" \}`).FindAllSubmatch(text, -1) {
			n++
			if _, ok := kinds[string(m[1])]; !ok {
				t.Errorf("%s: trigger %q has no word in this format: add it to words.go", file, m[1])
			}
		}
	}
	if n < 3 {
		t.Errorf("%d triggers: the test does not find them", n)
	}
}

// What is harmless is nobody's incident, and an alarm about it says so.
func TestBenignIncident(t *testing.T) {
	c := evidence.Claim{Origin: evidence.OriginPeerHost, Mechanism: evidence.MechanismAfterFIN, Confidence: evidence.Likely, Benign: true}
	got := Of(&evidence.Incident{Time: at, Verdict: judged(t, c), Firings: []evidence.Firing{{Trigger: "listen", Time: at}, {Trigger: "new", Time: at}}}, "")
	if len(got.Incidents) != 0 {
		t.Errorf("incidents %+v", got.Incidents)
	}
	want := []Alarm{{Time: seconds(at), Kind: "listen-overflow", Benign: true}, {Time: seconds(at), Kind: "other", Benign: true}}
	if diff := cmp.Diff(want, got.Alarms); diff != "" {
		t.Errorf("alarms (-want +got):\n%s", diff)
	}
}
