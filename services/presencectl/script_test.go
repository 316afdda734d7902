package presencectl

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
)

// runner runs commands as a process would, with files of its own.
type runner struct {
	t    *testing.T
	dir  string
	env  []string
	in   string
	fake *fake
}

func newRunner(t *testing.T) *runner {
	t.Helper()
	f := newFake()
	dir := t.TempDir()
	return &runner{t: t, dir: dir, fake: f, env: []string{"HOME=" + dir, "PRESENCECTL_SERVER=" + f.start(t)}}
}

func (r *runner) run(args ...string) (out, errOut string, code int) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 30*time.Second)
	defer cancel()
	var stdout, stderr bytes.Buffer
	a := newApp(Process{Environ: r.env, In: strings.NewReader(r.in), Out: &stdout, Err: &stderr})
	a.now = func() time.Time { return testNow }
	code = a.run(ctx, args)
	return stdout.String(), stderr.String(), code
}

// TestScripts runs the scripts of testdata against a service that knows a few clients:
//
//	run [in="standard input"]
//	the arguments, in Go quotes where they need it
//	----
//	standard output
//	! standard error
//	exit code, if it is not 0
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			datadriven.RunTest(t, file, func(t *testing.T, d *datadriven.TestData) string {
				r := newRunner(t)
				for _, arg := range d.CmdArgs {
					switch arg.Key {
					case "in":
						in, err := strconv.Unquote(`"` + arg.Vals[0] + `"`)
						if err != nil {
							t.Fatal(err)
						}
						r.in = in
					case "limited":
						r.fake.fail = limited()
					case "env":
						r.env = append(r.env, arg.Vals...)
					default:
						d.Fatalf(t, "unknown argument %s", arg.Key)
					}
				}
				out, errOut, code := r.run(splitArgs(t, d.Input)...)
				checkInert(t, out+errOut)
				var b strings.Builder
				b.WriteString(out)
				for line := range strings.Lines(errOut) {
					b.WriteString("! " + line)
				}
				if !strings.HasSuffix(b.String(), "\n") && b.Len() > 0 {
					b.WriteByte('\n')
				}
				if code != 0 {
					fmt.Fprintf(&b, "exit %d\n", code)
				}
				// Lines without end blanks keep the scripts readable for editors that cut them.
				var text strings.Builder
				for line := range strings.Lines(b.String()) {
					text.WriteString(strings.TrimRight(line, " \n") + "\n")
				}
				return text.String()
			})
		})
	}
}

// checkInert checks that nothing acts on a terminal.
func checkInert(t *testing.T, s string) {
	t.Helper()
	for _, bad := range []string{"\x1b", "\u009b", "\r", "\a", "\t", "\u202e", "\x00"} {
		if strings.Contains(s, bad) {
			t.Errorf("%q is in the output %q", bad, s)
		}
	}
}

// splitArgs splits a command line at spaces, but not within Go quotes.
func splitArgs(t *testing.T, line string) []string {
	t.Helper()
	var args []string
	for line = strings.TrimSpace(line); line != ""; line = strings.TrimLeft(line, " \n") {
		if line[0] == '"' {
			quoted, err := strconv.QuotedPrefix(line)
			if err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			arg, err := strconv.Unquote(quoted)
			if err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			args, line = append(args, arg), line[len(quoted):]
			continue
		}
		word, rest, _ := strings.Cut(line, " ")
		args, line = append(args, word), rest
	}
	return args
}

func writeFile(t *testing.T, path, content string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
