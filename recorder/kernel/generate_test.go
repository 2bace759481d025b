package kernel

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// compiler is the version that the committed objects were made with. Another one
// makes other code, and says so in no place.
const compiler = "19.1.7"

// The objects are what the sources say.
func TestGenerated(t *testing.T) {
	if why := noCompiler(t); why != "" {
		if os.Getenv("CI") == "true" {
			t.Fatal(why)
		}
		t.Skip(why)
	}
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"run"}, generateArgs(t, dir)...)...)
	cmd.Env = append(os.Environ(), "GOPACKAGE=kernel")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, name := range []string{"bpf_bpfel.go", "bpf_bpfel.o"} {
		want, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not what bpf/ says (%v): run go generate", name, err)
		}
	}
}

func noCompiler(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		return "-short, as in a package build: nothing is compiled"
	}
	out, err := exec.CommandContext(t.Context(), "clang-19", "--version").Output()
	if err != nil {
		return "needs clang-19"
	}
	if !strings.Contains(string(out), "version "+compiler+" ") {
		return "needs clang " + compiler
	}
	return ""
}

// generateArgs are those of the go:generate line, writing to dir.
func generateArgs(t *testing.T, dir string) []string {
	t.Helper()
	doc, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	_, line, ok := strings.Cut(string(doc), "\n//go:generate go run ")
	if !ok {
		t.Fatal("there is no go:generate line in doc.go")
	}
	line, _, _ = strings.Cut(line, "\n")
	var args []string
	for _, word := range regexp.MustCompile(`"[^"]*"|\S+`).FindAllString(line, -1) {
		args = append(args, strings.Trim(word, `"`))
	}
	return append(args[:1:1], append([]string{"-output-dir", dir}, args[1:]...)...)
}
