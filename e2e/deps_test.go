package e2e

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const modulePrefix = "github.com/mqtt-presence/presence/"

// goPackage is a package of the workspace, named by its folder.
type goPackage struct {
	dir     string // relative to the workspace, with slashes
	name    string
	docs    []string            // files that hold a package comment
	imports map[string][]string // import path to the files that have it, tests left out
}

// workspace parses every package of the workspace, tests and generated code included, from the imports up only.
func workspace(t *testing.T) []*goPackage {
	t.Helper()
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(root, "go.work")); err != nil {
		t.Fatalf("the tests of e2e run in the workspace: %v", err)
	}
	byDir := map[string]*goPackage{}
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); path != root && (strings.HasPrefix(name, ".") || name == "testdata" || name == "tools") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		dir := filepath.ToSlash(filepath.Dir(rel))
		p := byDir[dir]
		if p == nil {
			p = &goPackage{dir: dir, imports: map[string][]string{}}
			byDir[dir] = p
		}
		p.add(filepath.ToSlash(rel), file)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var all []*goPackage
	for _, p := range byDir {
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b *goPackage) int { return strings.Compare(a.dir, b.dir) })
	return all
}

func (p *goPackage) add(file string, parsed *ast.File) {
	p.name = parsed.Name.Name
	if parsed.Doc != nil && !ast.IsGenerated(parsed) {
		p.docs = append(p.docs, file)
	}
	for _, spec := range parsed.Imports {
		if path, err := strconv.Unquote(spec.Path.Value); err == nil {
			p.imports[path] = append(p.imports[path], file)
		}
	}
}

// TestImportDirection keeps the flow one-way: bridge to Kafka to materializer, query asking it, and the domain free of them all.
func TestImportDirection(t *testing.T) {
	for _, p := range workspace(t) {
		for path, files := range p.imports {
			if reason := forbidden(p.dir, path); reason != "" {
				t.Errorf("%s imports %s: %s", strings.Join(files, ", "), path, reason)
			}
		}
	}
}

// forbidden returns why a package may not import another, or nothing.
func forbidden(dir, path string) string {
	inside, ours := strings.CutPrefix(path, modulePrefix)
	external := !ours && strings.Contains(strings.SplitN(path, "/", 2)[0], ".")
	below := func(folders ...string) bool {
		return slices.ContainsFunc(folders, func(f string) bool { return dir == f || strings.HasPrefix(dir, f+"/") })
	}
	service := strings.Join(strings.SplitN(dir, "/", 3)[:min(2, strings.Count(dir, "/")+1)], "/")
	switch {
	case below("libs/presence") && (ours || external):
		return "the fold is pure: it imports only the standard library"
	case below("libs/presenceclient") && (ours || external) && !clientMay(inside, path):
		return "services link presenceclient: it needs gRPC, and brings no Kafka, no store and no metrics"
	case below("libs", "proto") && (strings.HasPrefix(inside, "services/") || strings.HasPrefix(inside, "e2e")):
		return "libs and proto are below the services"
	case below("proto") && strings.HasPrefix(inside, "libs/"):
		return "proto is below libs"
	case strings.HasPrefix(dir, "services/") && !below("services/presence") && strings.HasPrefix(inside, "services/") && !strings.HasPrefix(inside+"/", service+"/"):
		return "a service imports no other service: they meet in Kafka and proto; only presence and e2e put them together"
	case strings.HasPrefix(path, "github.com/cockroachdb/pebble") && !below("services/materializer", "services/bridge", "services/presence", "e2e"):
		return "Pebble belongs to the materializer, the bridge's spool, presence and e2e"
	case (strings.HasPrefix(path, "github.com/eclipse/paho") || strings.HasPrefix(path, "github.com/mochi-mqtt")) && !below("services/bridge", "services/presence", "e2e"):
		return "the bridge alone talks to brokers; besides it presence and e2e have one"
	case strings.HasPrefix(path, "github.com/spf13/cobra") && !below("services/presencectl", "e2e"):
		return "commands with subcommands belong to presencectl; services have flags"
	case strings.HasPrefix(path, "github.com/spf13/cobra/doc"):
		return "it brings a renderer of manual pages into the binary; e2e/commands writes the reference"
	}
	return ""
}

// clientMay reports whether the Go client package may import a package that is not of the standard library.
func clientMay(inside, path string) bool {
	return inside == "proto/presence/v1" || inside == "libs/presenceclient" || strings.HasPrefix(path, "google.golang.org/")
}

func TestForbiddenImports(t *testing.T) {
	for _, c := range []struct {
		dir, path string
		bad       bool
	}{
		{"libs/presence", "crypto/sha256", false},
		{"libs/presence", "github.com/twmb/franz-go/pkg/kgo", true},
		{"libs/presence", modulePrefix + "libs/service", true},
		{"libs/eventlog", modulePrefix + "libs/presence", false},
		{"libs/eventlog", modulePrefix + "services/bridge", true},
		{"libs/presenceclient", modulePrefix + "libs/eventlog", true},
		{"libs/presenceclient", modulePrefix + "libs/service", true},
		{"libs/presenceclient", "github.com/twmb/franz-go/pkg/kgo", true},
		{"libs/presenceclient/presencetest", modulePrefix + "libs/presenceclient", false},
		{"libs/presenceclient", "google.golang.org/grpc", false},
		{"proto/presence/v1", modulePrefix + "libs/presence", true},
		{"services/query", modulePrefix + "services/materializer", true},
		{"services/query/readertest", modulePrefix + "services/query", false},
		{"services/query", "github.com/cockroachdb/pebble/v2", true},
		{"services/materializer/store", "github.com/cockroachdb/pebble/v2", false},
		{"services/materializer", "github.com/eclipse/paho.golang/paho", true},
		{"services/presence", modulePrefix + "services/materializer", false},
		{"e2e/load", modulePrefix + "services/presence", false},
		{"services/presencectl", modulePrefix + "services/query", true},
		{"services/presencectl", "github.com/cockroachdb/pebble/v2", true},
		{"services/presencectl", "github.com/spf13/cobra", false},
		{"services/presencectl", "github.com/spf13/cobra/doc", true},
		{"services/query", "github.com/spf13/cobra", true},
	} {
		if got := forbidden(c.dir, c.path); (got != "") != c.bad {
			t.Errorf("%s importing %s: %q", c.dir, c.path, got)
		}
	}
}

// TestPackageDocs wants one package comment in each package, in its doc.go; a command may have it in its main.go.
func TestPackageDocs(t *testing.T) {
	for _, p := range workspace(t) {
		ok := len(p.docs) == 1 && (p.docs[0] == p.dir+"/doc.go" || p.name == "main" && p.docs[0] == p.dir+"/main.go")
		if !ok {
			t.Errorf("package %s: one package comment, in doc.go, is wanted; found it in %v", p.dir, p.docs)
		}
	}
}
