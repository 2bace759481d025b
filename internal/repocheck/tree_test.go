package repocheck

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

const module = "tcpcoroner"

// root is the top of the checkout; go test runs in the package's directory.
const root = "../.."

// topLevel is all that may stand at the top. The second row is never
// committed: git's own, and what builds leave behind (.gitignore).
var topLevel = []string{
	"cmd", "evidence", "verdict", "recorder", "triggers", "exporter", "internal", "packaging", "debian", "docs",
	"go.mod", "go.sum", "LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md",
	".ci", ".gitignore", ".gitattributes", ".golangci.yml", ".editorconfig",
	".git", "dist", ".cache",
}

// built are the directories that a package build fills beside the sources.
var built = []string{".git", "dist", ".cache", "debian/build", "debian/tcpcoroner", "debian/.debhelper"}

// machinePath matches a path that only one developer's machine has. It is put
// together here so that this file does not match itself.
var machinePath = regexp.MustCompile(`(?m)(^|[^\w.$})~-])(` + strings.Join([]string{
	"/" + "home/[a-z][a-z0-9_-]*/",
	"/" + "Users/[A-Za-z]",
	"/" + "work/",
	"/" + "root/go",
	"/" + "farm/",
}, "|") + ")")

// walk calls f with the path, relative to root, of every file of the sources.
func walk(t *testing.T, f func(path string)) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if d.IsDir() && slices.Contains(built, rel) {
			return filepath.SkipDir
		}
		if d.Type().IsRegular() {
			f(filepath.ToSlash(rel))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestTopLevel(t *testing.T) {
	entries, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !slices.Contains(topLevel, e.Name()) {
			t.Errorf("%s stands at the top level: move it into a room of its own, or add it to topLevel with a reason", e.Name())
		}
	}
}

func TestLicense(t *testing.T) {
	if text := read(t, "LICENSE"); !strings.Contains(text, "Apache License") || !strings.Contains(text, "Version 2.0") {
		t.Error("LICENSE is not the Apache License 2.0 that debian/copyright names")
	}
}

func TestNoMachinePaths(t *testing.T) {
	walk(t, func(path string) {
		text := read(t, path)
		if !utf8.ValidString(text) {
			return // captures and other binary test data
		}
		for i, line := range strings.Split(text, "\n") {
			if m := machinePath.FindString(line); m != "" {
				t.Errorf("%s:%d: names %q, a path of one machine", path, i+1, strings.TrimSpace(m))
			}
		}
	})
}

func TestMachinePathPattern(t *testing.T) {
	for line, want := range map[string]bool{
		`path := "` + "/" + `home/jane/src"`:               true,
		"see " + "/" + "Users/jane":                        true,
		"/" + "work/main":                                  true,
		"GOPATH=" + "/" + "root/go":                        true,
		"ProtectHome hides /home and /root":                false,
		`mkdir "$dir` + "/" + `work/x"`:                    false,
		"https://example.org/how/we" + "/" + "work/better": false,
	} {
		if got := machinePath.MatchString(line); got != want {
			t.Errorf("machinePath.MatchString(%q) = %v, want %v", line, got, want)
		}
	}
}

// A file that nobody can read in one go is two files.
func TestGoFilesAreShort(t *testing.T) {
	const most = 700
	walk(t, func(path string) {
		if !strings.HasSuffix(path, ".go") {
			return
		}
		text := read(t, path)
		if strings.Contains(text, "\n// Code generated ") || strings.HasPrefix(text, "// Code generated ") {
			return
		}
		if n := strings.Count(text, "\n"); n > most {
			t.Errorf("%s has %d lines, more than %d: split it", path, n, most)
		}
	})
}
