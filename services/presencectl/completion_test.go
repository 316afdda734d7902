package presencectl

import (
	"slices"
	"strings"
	"testing"
)

// completions returns what a shell would offer.
func (r *runner) completions(args ...string) []string {
	r.t.Helper()
	var words []string
	for line := range strings.Lines(r.ok(append([]string{"__complete"}, args...)...)) {
		word, _, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		if !strings.HasPrefix(word, ":") {
			words = append(words, word)
		}
	}
	return words
}

func TestCompletions(t *testing.T) {
	r := newRunner(t)
	r.ok("config", "set-context", "local", "--cluster", "eu-1")
	r.ok("config", "set-context", "prod", "--cluster", "eu-2")
	for _, c := range []struct{ args, want []string }{
		{[]string{"list", "--status", ""}, []string{"online", "offline", "unknown"}},
		{[]string{"--context", ""}, []string{"local", "prod"}},
		{[]string{"config", "use-context", "p"}, []string{"prod"}},
		{[]string{"config", "use-context", "prod", ""}, nil},
		// $(reboot) is left out: a shell would run it.
		{[]string{"list", "--node", ""}, []string{"emqx@10.0.3.11", "emqx@10.0.3.12"}},
		{[]string{"status", "--cluster", ""}, []string{"default", "eu-1"}},
		{[]string{"status", "-o", ""}, []string{"table", "wide", "json"}},
		{[]string{"dead-letters", "list", "--origin", ""}, []string{"mqtt", "kafka"}},
		{[]string{"completion", ""}, []string{"bash", "zsh", "fish"}},
		{[]string{"dead-letters", ""}, []string{"list", "replay"}},
		// A service that does not answer offers nothing, and says nothing into the command line.
		{[]string{"--server", "127.0.0.1:1", "list", "--node", ""}, nil},
	} {
		if got := r.completions(c.args...); !slices.Equal(got, c.want) {
			t.Errorf("%q offers %q, want %q", c.args, got, c.want)
		}
	}
}

// TestHelp: every command says what it does, and has an example that begins with its own name.
func TestHelp(t *testing.T) {
	root := Root()
	var walk func(path []string)
	walk = func(path []string) {
		cmd, _, err := root.Find(path)
		if err != nil {
			t.Fatal(err)
		}
		if cmd.Short == "" || strings.HasSuffix(cmd.Short, ".") || !strings.Contains(cmd.Example, name) {
			t.Errorf("%s: help %q with examples %q", cmd.CommandPath(), cmd.Short, cmd.Example)
		}
		for _, sub := range cmd.Commands() {
			if sub.Name() != "help" {
				walk(append(slices.Clone(path), sub.Name()))
			}
		}
	}
	walk(nil)
}
