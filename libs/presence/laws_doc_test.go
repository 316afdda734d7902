package presence

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
)

// TestLawsDocument runs the examples of docs/laws.md, and sees that every status reason has one. Like the scripts it obeys -rewrite.
func TestLawsDocument(t *testing.T) {
	const path = "../../docs/laws.md"
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	rewrite := flag.Lookup("rewrite").Value.String() == "true"
	var out strings.Builder
	var s script
	seen := map[StatusReason]bool{}
	rest := string(text)
	for {
		before, block, ok := strings.Cut(rest, "```fold\n")
		out.WriteString(before)
		if !ok {
			break
		}
		block, rest, ok = strings.Cut(block, "```")
		if !ok {
			t.Fatal("an example has no end")
		}
		input, want, ok := strings.Cut(block, "----\n")
		if !ok {
			t.Fatalf("an example has no line ----:\n%s", block)
		}
		got := s.example(t, input)
		seen[Status(&s.state, &s.cluster, DefaultAllowanceMS).Reason] = true
		if got != want && !rewrite {
			t.Errorf("%s:\n%s\ngot:\n%s\nwant:\n%s", path, input, got, want)
		}
		fmt.Fprintf(&out, "```fold\n%s----\n%s```", input, got)
	}
	for r := range StatusReason(len(statusReasonWords)) {
		if !seen[r] {
			t.Errorf("%s: no example of %s", path, r)
		}
	}
	if rewrite {
		if err := os.WriteFile(path, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// example runs the lines of one example. A line may begin with "new"; "x17" after a fact's kind repeats it, a millisecond apart.
func (s *script) example(t *testing.T, input string) string {
	first, rest, _ := strings.Cut(input, "\n")
	if words := strings.Fields(first); len(words) > 0 && words[0] == "new" {
		*s = script{dialect: DialectEMQX}
		if len(words) > 1 {
			s.dialect = strings.TrimPrefix(words[1], "dialect=")
		}
		input = rest
	}
	var lines strings.Builder
	for line := range strings.Lines(input) {
		words := strings.Fields(line)
		var n int
		if _, err := fmt.Sscanf(words[min(1, len(words)-1)], "x%d", &n); err != nil {
			lines.WriteString(line)
			continue
		}
		for i := range n {
			for _, w := range append(words[:1:1], words[2:]...) {
				if at, ok := strings.CutPrefix(w, "at="); ok {
					w = fmt.Sprintf("at=%d", number(t, at)+int64(i))
				}
				lines.WriteString(w + " ")
			}
			lines.WriteString("\n")
		}
	}
	return shorten(s.fold(t, lines.String()))
}

// shorten writes equal lines once, with their number.
func shorten(text string) string {
	lines := strings.SplitAfter(text, "\n")
	var out strings.Builder
	for i := 0; i < len(lines); {
		n := 1
		for i+n < len(lines) && lines[i+n] == lines[i] {
			n++
		}
		if n > 2 {
			fmt.Fprintf(&out, "%d times %s", n, lines[i])
		} else {
			out.WriteString(strings.Repeat(lines[i], n))
		}
		i += n
	}
	return out.String()
}

var _ = datadriven.TestData{} // for its flag -rewrite
