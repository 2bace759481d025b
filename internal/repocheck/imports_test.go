package repocheck

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// mayImport is the star: which of our packages each package may import.
// Test files are free. Only the command, which wires them, imports many.
var mayImport = map[string][]string{
	"evidence":           {},
	"verdict":            {"evidence"},
	"recorder":           {"evidence"},
	"recorder/afpacket":  {"evidence", "recorder"}, // it implements recorder's Source
	"recorder/kernel":    {"evidence"},
	"recorder/logs":      {"evidence"},
	"recorder/snapshot":  {"evidence"},
	"recorder/store":     {"evidence"},
	"triggers":           {"evidence"},
	"exporter":           {"evidence"},
	"exporter/api":       {"evidence"},
	"exporter/labformat": {"evidence"},
	"exporter/pcapng":    {"evidence"},
	"exporter/report":    {"evidence"},
	"internal/netlab":    {},
	"internal/scenes":    {},
	// The benchmark is a program of its own. What the kernel's programs cost, it
	// measures without the recorder around them.
	"internal/bench":      {"internal/bench/gen", "internal/bench/wire", "recorder/kernel"},
	"internal/bench/gen":  {},
	"internal/bench/wire": {},
}

// pure are the packages that import nothing but the standard library and what
// mayImport says: no dependency can change a verdict.
var pure = []string{"evidence", "verdict"}

// unshipped are for tests and the benchmark alone (docs/design.md).
var unshipped = []string{
	module + "/internal/", "github.com/google/go-cmp",
}

const (
	wiring  = "cmd/tcpcoroner"
	capture = "recorder/afpacket" // the only one that needs a C compiler
	cgoDep  = "github.com/google/gopacket/afpacket"
)

// pkg is what "go list -json" says of a package, as far as it is asked.
type pkg struct {
	ImportPath, Dir   string
	Name              string
	Standard          bool
	GoFiles, CgoFiles []string
	Imports           []string
}

// short is the path below the module; ours tells whether it is of the module.
func short(path string) (name string, ours bool) { return strings.CutPrefix(path, module+"/") }

// goList asks about the packages; -e, so that one that does not build yet is
// somebody else's failure.
func goList(t *testing.T, args ...string) []pkg {
	t.Helper()
	args = append([]string{"list", "-e", "-json=ImportPath,Dir,Name,Standard,GoFiles,CgoFiles,Imports"}, args...)
	cmd := exec.CommandContext(t.Context(), "go", args...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=1")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, &stderr)
	}
	var pkgs []pkg
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

// shipped leaves out the packages of nothing but tests, and lab programs.
func shipped(pkgs []pkg) []pkg {
	return slices.DeleteFunc(pkgs, func(p pkg) bool {
		name, _ := short(p.ImportPath)
		return len(p.GoFiles)+len(p.CgoFiles) == 0 || name == "internal/repocheck" || strings.HasPrefix(name, "packaging/")
	})
}

// checkStar returns what is wrong with the imports of one package.
func checkStar(p pkg) []string {
	name, _ := short(p.ImportPath)
	if name == wiring {
		return nil
	}
	allowed, known := mayImport[name]
	if !known {
		return []string{name + " is not in the table mayImport: add it there, with evidence as its only import"}
	}
	var wrong []string
	for _, i := range p.Imports {
		if i, ours := short(i); ours && !slices.Contains(allowed, i) {
			wrong = append(wrong, name+" imports "+i+": take a func field or a small interface instead, and let "+wiring+" wire it")
		}
	}
	return wrong
}

func TestImportsAreAStar(t *testing.T) {
	for _, p := range shipped(goList(t, "./...")) {
		for _, wrong := range checkStar(p) {
			t.Error(wrong)
		}
	}
}

func TestCheckStar(t *testing.T) {
	for _, tt := range []struct {
		name    string
		imports []string
		wrong   int
	}{
		{"recorder", []string{"fmt", "tcpcoroner/evidence"}, 0},
		{"recorder/afpacket", []string{"tcpcoroner/recorder"}, 0},
		{"recorder/store", []string{"tcpcoroner/recorder"}, 1},
		{"evidence", []string{"tcpcoroner/verdict"}, 1},
		{"triggers", []string{"tcpcoroner/internal/netlab", "tcpcoroner/exporter"}, 2},
		{"cmd/tcpcoroner", []string{"tcpcoroner/exporter", "tcpcoroner/recorder"}, 0},
		{"somewhere/else", nil, 1},
	} {
		got := checkStar(pkg{ImportPath: module + "/" + tt.name, Imports: tt.imports})
		if len(got) != tt.wrong {
			t.Errorf("checkStar(%s imports %v) = %q, want %d", tt.name, tt.imports, got, tt.wrong)
		}
	}
}

func TestPurePackages(t *testing.T) {
	var std []string
	for _, p := range goList(t, "std") {
		std = append(std, p.ImportPath)
	}
	for _, p := range shipped(goList(t, "./...")) {
		name, _ := short(p.ImportPath)
		if !slices.Contains(pure, name) {
			continue
		}
		for _, i := range p.Imports {
			if _, ours := short(i); !ours && !slices.Contains(std, i) {
				t.Errorf("%s imports %s: it must do with the standard library", name, i)
			}
		}
	}
}

func TestOneCgoPackage(t *testing.T) {
	for _, p := range shipped(goList(t, "./...")) {
		name, _ := short(p.ImportPath)
		if name == capture {
			continue
		}
		for _, c := range []string{"C", cgoDep} {
			if slices.Contains(p.Imports, c) {
				t.Errorf("%s imports %q: only %s may need a C compiler", name, c, capture)
			}
		}
	}
}

func TestNothingOfTestsIsShipped(t *testing.T) {
	for _, p := range goList(t, "-deps", "./"+wiring) {
		for _, u := range unshipped {
			if strings.HasPrefix(p.ImportPath, u) {
				t.Errorf("%s needs %s, which is for tests and the benchmark", wiring, p.ImportPath)
			}
		}
	}
}

func TestPackageComments(t *testing.T) {
	for _, p := range goList(t, "./...") {
		files := slices.Concat(p.GoFiles, p.CgoFiles)
		if len(files) == 0 {
			continue
		}
		var docs []string
		for _, f := range files {
			parsed, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, f), nil, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				t.Errorf("parse %s: %v", filepath.Join(p.Dir, f), err)
				continue
			}
			if parsed.Doc != nil {
				docs = append(docs, f)
			}
		}
		if len(docs) != 1 {
			t.Errorf("%s has %d package comments %v, want one that says its one job", p.ImportPath, len(docs), docs)
		}
	}
}
