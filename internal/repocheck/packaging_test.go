package repocheck

import (
	"fmt"
	"go/version"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
)

// capabilities are those that docs and tests account for, one by one.
const capabilities = "CAP_NET_RAW CAP_NET_ADMIN CAP_SYS_PTRACE CAP_DAC_READ_SEARCH CAP_BPF CAP_PERFMON"

// tooNew are settings that systemd 252 (Debian 12) does not know. Of an
// unknown key it only warns, so the unit would silently be another one there.
var tooNew = []string{"RestartMode", "RestartSteps", "RestartMaxDelaySec", "FileDescriptorStorePreserve", "ImportCredential", "PrivatePIDs"}

// find returns the first group of the pattern's first match in the file.
func find(t *testing.T, path, pattern string) string {
	t.Helper()
	m := regexp.MustCompile(pattern).FindStringSubmatch(read(t, path))
	if m == nil {
		t.Fatalf("%s has nothing that matches %s", path, pattern)
	}
	return m[1]
}

// A snapshot build puts an entry 0.1.0+git... on top of debian/changelog.
func TestVersionsAgree(t *testing.T) {
	changelog := find(t, "CHANGELOG.md", `(?m)^## \[?v?([0-9]+\.[0-9]+\.[0-9]+)`)
	debian := find(t, "debian/changelog", `^tcpcoroner \(([0-9.]+)`)
	if changelog != debian {
		t.Errorf("CHANGELOG.md is at %s, debian/changelog at %s", changelog, debian)
	}
}

func TestToolchainIsNewEnough(t *testing.T) {
	release := "go" + find(t, "packaging/lib/setup.sh", `(?m)^go_release=(\S+)`)
	for _, path := range []string{"go.mod", "packaging/tools/go.mod"} {
		if wanted := "go" + find(t, path, `(?m)^go (\S+)`); version.Compare(release, wanted) < 0 {
			t.Errorf("packaging/lib/setup.sh fetches %s, %s asks for %s", release, path, wanted)
		}
	}
}

// "journalctl -x" finds the explanation of an incident by its message id.
func TestCatalogExplainsTheMessage(t *testing.T) {
	id := find(t, "cmd/tcpcoroner/announce.go", `messageID = "([0-9a-f]{32})"`)
	text := read(t, "packaging/systemd/tcpcoroner.catalog")
	if !strings.HasPrefix(text, "-- "+id+"\n") {
		t.Errorf("tcpcoroner.catalog does not begin with %q, the id of announce.go", "-- "+id)
	}
	known := read(t, "cmd/tcpcoroner/announce.go")
	for _, m := range regexp.MustCompile(`@([A-Z_]+)@`).FindAllStringSubmatch(text, -1) {
		if !strings.Contains(known, `"`+m[1]+`"`) {
			t.Errorf("tcpcoroner.catalog uses @%s@, a field that announce.go does not send", m[1])
		}
	}
}

// settings reads a unit file; a key that stands twice keeps both values.
func settings(text string) map[string][]string {
	s := map[string][]string{}
	for line := range strings.SplitSeq(text, "\n") {
		if key, value, ok := strings.Cut(line, "="); ok && !strings.HasPrefix(line, "#") {
			s[key] = append(s[key], value)
		}
	}
	return s
}

func TestUnit(t *testing.T) {
	unit := settings(read(t, "packaging/systemd/tcpcoroner.service"))
	for key, want := range map[string]string{
		"Type":                  "notify",
		"ExecStart":             "/usr/bin/tcpcoroner run",
		"EnvironmentFile":       "-/etc/default/tcpcoroner",
		"User":                  "tcpcoroner",
		"Restart":               "always",
		"WatchdogSec":           "30s",
		"WatchdogSignal":        "SIGABRT",
		"MemoryMax":             "384M",
		"StateDirectory":        "tcpcoroner",
		"RuntimeDirectory":      "tcpcoroner",
		"CapabilityBoundingSet": capabilities,
		"AmbientCapabilities":   capabilities,
		"NoNewPrivileges":       "yes",
		"ProtectSystem":         "strict",
		"NoExecPaths":           "/",
	} {
		if got := unit[key]; !slices.Equal(got, []string{want}) {
			t.Errorf("tcpcoroner.service says %s=%q, want %q", key, got, want)
		}
	}
	for _, key := range tooNew {
		if unit[key] != nil {
			t.Errorf("tcpcoroner.service uses %s=, which systemd 252 does not know", key)
		}
	}
}

// leaves flattens a YAML document to "a.b.c" and its value. A key without a value
// has no default: the file shows examples of what belongs there.
func leaves(prefix string, v any, into map[string]string) {
	if v == nil {
		return
	}
	m, ok := v.(map[string]any)
	if !ok {
		into[prefix] = fmt.Sprint(v)
		return
	}
	for k, v := range m {
		leaves(strings.TrimPrefix(prefix+"."+k, "."), v, into)
	}
}

// The commented defaults of the configuration file, with the "#" taken away.
func defaults(t *testing.T) map[string]string {
	t.Helper()
	text := regexp.MustCompile(`(?m)^# .*$|^#`).ReplaceAllStringFunc(read(t, "packaging/config/tcpcoroner.yaml"), func(m string) string {
		if regexp.MustCompile(`^#  +[a-z]`).MatchString(m) {
			return m[1:]
		}
		return ""
	})
	var doc map[string]any
	if err := yaml.Unmarshal([]byte(text), &doc); err != nil {
		t.Fatalf("parse tcpcoroner.yaml without its comment signs: %v", err)
	}
	keys := map[string]string{}
	leaves("", doc, keys)
	return keys
}

// What the file shows as a default and what the manual says of it are the same.
func TestManualNamesEveryKey(t *testing.T) {
	keys := defaults(t)
	if len(keys) < 15 {
		t.Fatalf("tcpcoroner.yaml shows only %d keys: %v", len(keys), keys)
	}
	manual := read(t, "packaging/man/tcpcoroner.yaml.5")
	for key, value := range keys {
		if strings.HasSuffix(key, ".enabled") || strings.HasSuffix(key, ".cool_down") {
			continue // said once for all triggers
		}
		if want := fmt.Sprintf(".BR %s \" (%s)\"", key, value); !strings.Contains(manual, want) {
			t.Errorf("tcpcoroner.yaml(5) does not say %s", want)
		}
	}
	for _, m := range regexp.MustCompile(`(?m)^\.BR ([a-z_.]+) " \(`).FindAllStringSubmatch(manual, -1) {
		if _, ok := keys[m[1]]; !ok {
			t.Errorf("tcpcoroner.yaml(5) describes %s, which tcpcoroner.yaml does not have", m[1])
		}
	}
}
