package repocheck

import (
	"cmp"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const verdictsDoc = "docs/verdicts.md"

func parse(t *testing.T, path string) *ast.File {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, path), nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// text is the value of a string literal; ok is false for anything else.
func text(e ast.Expr) (value string, ok bool) {
	lit, ok := e.(*ast.BasicLit)
	if !ok || lit.Kind != token.STRING {
		return "", false
	}
	value, err := strconv.Unquote(lit.Value)
	return value, err == nil
}

// wordsOf are the string constants of a type that a file declares, by name.
func wordsOf(file *ast.File, typeName string) map[string]string {
	words := map[string]string{}
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || len(spec.Values) != len(spec.Names) {
			return true
		}
		if id, ok := spec.Type.(*ast.Ident); !ok || id.Name != typeName {
			return true
		}
		for i, v := range spec.Values {
			if word, ok := text(v); ok {
				words[spec.Names[i].Name] = word
			}
		}
		return true
	})
	return words
}

// documented: each word occurs in the section with the heading.
func documented(t *testing.T, what, heading string, words []string, least int) {
	t.Helper()
	_, section, _ := strings.Cut(read(t, verdictsDoc), "\n## "+heading)
	section, _, _ = strings.Cut(section, "\n## ")
	if len(words) < least {
		t.Fatalf("%d words of %s %q: the test does not find them", len(words), what, words)
	}
	for _, w := range words {
		if !strings.Contains(section, "`"+w+"`") {
			t.Errorf("%s does not explain the %s `%s` under %q", verdictsDoc, what, w, heading)
		}
	}
}

func TestVerdictsAreDocumented(t *testing.T) {
	file := parse(t, "evidence/verdict.go")
	for typeName, heading := range map[string]string{
		"Origin": "Origins", "Mechanism": "Mechanisms", "Party": "Parties", "Cause": "Causes",
		"Layer": "Layers", "Confidence": "Confidence", "Kind": "Confidence",
	} {
		documented(t, typeName, heading, slices.Collect(maps.Values(wordsOf(file, typeName))), 4)
	}
}

// A mechanism has a section of its own, and a section is that of a mechanism.
func TestMechanismsHaveSections(t *testing.T) {
	doc := read(t, verdictsDoc)
	words := slices.Collect(maps.Values(wordsOf(parse(t, "evidence/verdict.go"), "Mechanism")))
	for _, m := range words {
		if !strings.Contains(doc, "\n#### `"+m+"`\n") && !strings.Contains(doc, "\n### `"+m+"`\n") {
			t.Errorf("%s has no section on the mechanism `%s`", verdictsDoc, m)
		}
	}
	for line := range strings.SplitSeq(doc, "\n") {
		if name, ok := strings.CutPrefix(line, "#### "); ok && !slices.Contains(words, strings.Trim(name, "`")) {
			t.Errorf("%s has a section on %s, which is no mechanism", verdictsDoc, name)
		}
	}
}

// triggerNames are what a file of package triggers names: by a constant Name...,
// by a method Name, or for a trigger that is made of another by its constructor.
func triggerNames(file *ast.File) (names []string) {
	ast.Inspect(file, func(n ast.Node) bool {
		var e ast.Expr
		switch n := n.(type) {
		case *ast.ValueSpec:
			if len(n.Values) == 1 && strings.HasPrefix(n.Names[0].Name, "Name") {
				e = n.Values[0]
			}
		case *ast.FuncDecl:
			if n.Name.Name == "Name" && len(n.Body.List) == 1 {
				if r, ok := n.Body.List[0].(*ast.ReturnStmt); ok {
					e = r.Results[0]
				}
			}
		case *ast.CallExpr:
			if id, ok := n.Fun.(*ast.Ident); ok && id.Name == "newRise" {
				e = n.Args[0]
			}
		}
		if name, ok := text(e); ok {
			names = append(names, name)
		}
		return true
	})
	return names
}

func TestTriggersAreDocumented(t *testing.T) {
	entries, err := os.ReadDir(filepath.Join(root, "triggers"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".go") && !strings.HasSuffix(e.Name(), "_test.go") {
			names = append(names, triggerNames(parse(t, "triggers/"+e.Name()))...)
		}
	}
	documented(t, "trigger", "Triggers", names, 15)
}

// literal is the composite literal that a variable of a file is set to.
func literal(t *testing.T, path, name string) *ast.CompositeLit {
	t.Helper()
	var found *ast.CompositeLit
	ast.Inspect(parse(t, path), func(n ast.Node) bool {
		if spec, ok := n.(*ast.ValueSpec); ok && spec.Names[0].Name == name && len(spec.Values) == 1 {
			found, _ = spec.Values[0].(*ast.CompositeLit)
		}
		return found == nil
	})
	if found == nil {
		t.Fatalf("%s has no table %s", path, name)
	}
	return found
}

func TestHarmIsDocumented(t *testing.T) {
	var names []string
	for _, e := range literal(t, "evidence/harm.go", "harmNames").Elts {
		if name, ok := text(e); ok {
			names = append(names, name)
		}
	}
	documented(t, "kind of harm", "Triggers", names, 10)
}

// What the exporter makes of an origin or a mechanism stands in one row with it.
func TestAttributesAreDocumented(t *testing.T) {
	file, doc := parse(t, "evidence/verdict.go"), read(t, verdictsDoc)
	for table, typeName := range map[string]string{"resetBy": "Origin", "sender": "Origin", "resetCause": "Mechanism"} {
		words := wordsOf(file, typeName)
		for _, e := range literal(t, "exporter/table.go", table).Elts {
			pair := e.(*ast.KeyValueExpr)
			word := words[pair.Key.(*ast.SelectorExpr).Sel.Name]
			value, _ := text(pair.Value)
			if value = cmp.Or(value, "absent"); !inOneRow(doc, word, value) {
				t.Errorf("%s has no row with `%s` and %s, which exporter/table.go has in %s", verdictsDoc, word, value, table)
			}
		}
	}
}

// inOneRow tells whether a row of a table begins with a cell that has the word, and
// the value in another.
func inOneRow(doc, word, value string) bool {
	for line := range strings.SplitSeq(doc, "\n") {
		cells := strings.Split(line, "|")
		if len(cells) < 4 || !strings.Contains(cells[1], "`"+word+"`") {
			continue
		}
		for _, c := range cells[2:] {
			if strings.Trim(strings.TrimSpace(c), "`") == value {
				return true
			}
		}
	}
	return false
}
