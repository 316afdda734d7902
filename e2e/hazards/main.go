// Command hazards writes the table of the hazards that a folding pipeline must survive, with the tests that cover each. A test says so in its name:
// TestLateDisconnects_H3_H7 covers the third and the seventh; scenarios that are replayed from testdata say so in their manifest, and have it in
// their names as well. It fails if a hazard has no test.
package main

//go:generate go run . ../.. ../../docs/hazards.md

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

const intro = `# Hazards

What goes wrong between a broker and a status, and the tests that show that it does no harm. The numbers stand in the tests' names
(` + "`go test -run '_H3'`" + ` runs the functions of the third; subtests and scenarios have a blank in place of the underscore). In the simulator each occurs in at least 100 of the histories whose truth is compared
(` + "`libs/simulator`, `make soak`" + `). Laws and rules: [laws.md](laws.md).

This page is generated from the names of the tests by ` + "`make generate`" + `.

| | hazard | tests |
|---|---|---|
`

// hazards are what the numbers mean.
var hazards = []string{
	"**Duplicates**: redelivery, overlapping filters, two bridges, brokers that report one end twice",
	"**Reordering**, across nodes and within one: arrival order proves nothing",
	"**A late disconnect after a takeover** (ghost) names a connection that is over, or none",
	"**A stranger**: a refused login that looks like the client's disconnect, or like its connect",
	"**No disconnect on takeover**: counting connects and disconnects drifts",
	"**No disconnect at all**: killed processes, persistent sessions that lose their socket silently",
	"**Event times inverted**: the old connection's disconnect is stamped after the new one's connect",
	"**Equal stamps**: whole seconds, or a takeover within one millisecond",
	"**Clocks**: skewed between nodes, set back or forth, local time without a zone",
	"**A node dies or stops** without a word about its connections",
	"**A restart and its storm**: all clients reconnect at once, before the restart is known",
	"**The bridge's own outage**: what happened meanwhile is unknown, and nobody is offline because of it",
	"**A partition**: two live connections of one client ID",
	"**Active queries race** with events: a query may not know yet what an event has announced",
	"**Bytes of client IDs**: `/ + #`, quotes, spaces, U+FFFD, truncation; case and normalisation matter",
	"**Poison topics**: not UTF-8, or too long, they could end the bridge's session in a loop",
	"**Sessions outlive connections**: their expiry, hours later, is no second disconnect",
	"**Retained messages** are replayed at subscribe: a state of unknown age",
	"**Versions drift**, and are mixed in one cluster: fields, units, topics and spellings change",
	"**Literals** for no user name: `undefined`, `(null)`, empty",
	"**Gateway and bridge clients**: other namespaces with the same IDs",
	"**The bridge's own events** in its own stream",
}

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "hazards: give the root of the repository and the file to write")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "hazards:", err)
		os.Exit(1)
	}
}

func run(root, out string) error {
	tests := map[int][]string{} // by number, as Markdown links
	add := func(path, name string) error {
		for _, m := range tag.FindAllStringSubmatch(name, -1) {
			n, err := strconv.Atoi(m[1])
			if err != nil || n < 1 || n > len(hazards) {
				return fmt.Errorf("%s: %s names no hazard from H1 to H%d", path, name, len(hazards))
			}
			link := fmt.Sprintf("[%s](../%s)", name, filepath.ToSlash(path))
			if !slices.Contains(tests[n], link) {
				tests[n] = append(tests[n], link)
			}
		}
		return nil
	}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		switch {
		case d.IsDir() && strings.HasPrefix(d.Name(), ".") && rel != ".":
			return fs.SkipDir
		case strings.HasSuffix(path, "_test.go"):
			names, err := testNames(path)
			for _, name := range names {
				err = errors.Join(err, add(rel, name))
			}
			return err
		case d.Name() == "manifest.json":
			names, err := scenarioNames(path)
			for _, name := range names {
				err = errors.Join(err, add(rel, name))
			}
			return err
		}
		return nil
	})
	if err != nil {
		return err
	}
	var b bytes.Buffer
	b.WriteString(intro)
	var missing []string
	for i, text := range hazards {
		n := i + 1
		if len(tests[n]) == 0 {
			missing = append(missing, fmt.Sprintf("H%d", n))
		}
		fmt.Fprintf(&b, "| H%d | %s | %s |\n", n, text, strings.Join(tests[n], "<br>"))
	}
	if len(missing) > 0 {
		return fmt.Errorf("no test has %s in its name", strings.Join(missing, ", "))
	}
	return os.WriteFile(out, b.Bytes(), 0o644)
}

// tag finds a hazard's number in a name: after an underscore in a function's, after a blank in a subtest's.
var tag = regexp.MustCompile(`[_ ]H([0-9]+)`)

// testNames returns the names of the test functions of a file, and of the subtests that they name literally.
func testNames(path string) ([]string, error) {
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, decl := range file.Decls {
		f, ok := decl.(*ast.FuncDecl)
		if !ok || f.Recv != nil || !strings.HasPrefix(f.Name.Name, "Test") && !strings.HasPrefix(f.Name.Name, "Fuzz") {
			continue
		}
		names = append(names, f.Name.Name)
		ast.Inspect(f, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) != 2 {
				return true
			}
			if sel, ok := call.Fun.(*ast.SelectorExpr); !ok || sel.Sel.Name != "Run" {
				return true
			}
			if lit, ok := call.Args[0].(*ast.BasicLit); ok && lit.Kind == token.STRING {
				if name, err := strconv.Unquote(lit.Value); err == nil {
					names = append(names, f.Name.Name+"/"+name)
				}
			}
			return true
		})
	}
	return names, nil
}

// scenarioNames returns the names of the scenarios of a broker's testdata: TestConformance/<broker>/<file> <hazards>.
func scenarioNames(path string) ([]string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var m struct {
		Scenarios []struct{ File, Hazards string }
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	var names []string
	for _, s := range m.Scenarios {
		if s.Hazards != "" {
			names = append(names, filepath.Base(filepath.Dir(path))+" "+s.File+" "+s.Hazards)
		}
	}
	return names, nil
}
