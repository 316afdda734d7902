package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

// page is what a run leaves in the documents.
type page struct {
	date    time.Time
	command string
	facts   [][2]string // of the machine and the versions
}

// newPage gathers what the results depend on. What cannot be found out is told as unknown.
func newPage(ctx context.Context, args []string) page {
	p := page{date: time.Now().UTC(), command: "go run ./e2e/bench " + strings.Join(args, " ")}
	add := func(name, value string) {
		if value == "" {
			value = "unknown"
		}
		p.facts = append(p.facts, [2]string{name, value})
	}
	add("processor", fmt.Sprintf("%s, %d cores", field("/proc/cpuinfo", `model name\s*:\s*(.*)`), runtime.NumCPU()))
	add("memory", field("/proc/meminfo", `MemTotal:\s*(.*)`))
	add("system", output(ctx, "uname", "-sr"))
	add("load average at the start", field("/proc/loadavg", `(\S+ \S+ \S+)`))
	add("Go", runtime.Version())
	add("Java", firstLine(output(ctx, "java", "-version")))
	add("commit", output(ctx, "git", "describe", "--always", "--dirty"))
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, d := range info.Deps {
			for _, name := range []string{"github.com/cockroachdb/pebble/v2", "github.com/twmb/franz-go", "github.com/eclipse/paho.golang", "google.golang.org/grpc"} {
				if d.Path == name {
					add(filepath.Base(strings.TrimSuffix(name, "/v2")), d.Version)
				}
			}
		}
	}
	return p
}

// field returns the first group of a pattern's first match in a file.
func field(path, pattern string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	m := regexp.MustCompile("(?m)^" + pattern + "$").FindSubmatch(text)
	if m == nil {
		m = regexp.MustCompile("(?m)^" + pattern).FindSubmatch(text)
	}
	if m == nil {
		return ""
	}
	return strings.TrimSpace(string(m[1]))
}

func output(ctx context.Context, name string, args ...string) string {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return line
}

// markdown renders the page; chart is the link to the chart, empty if there is none.
func (p page) markdown(t *table, chart string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Benchmarks of %s\n\nWritten by `make bench`. Ratios count, of runs on one machine on one day; the figures themselves are those of this machine.\n", p.date.Format(time.DateOnly))
	b.WriteString("What each part measures is told in [README.md](README.md).\n\n")
	fmt.Fprintf(&b, "    %s\n\n| | |\n|---|---|\n", strings.TrimSpace(p.command))
	for _, f := range p.facts {
		fmt.Fprintf(&b, "| %s | %s |\n", f[0], cell(f[1]))
	}
	for _, took := range t.took {
		fmt.Fprintf(&b, "\n## %s\n\n", took.part)
		head := "| what | measured | goal | |\n|---|---|---|---|\n"
		for _, r := range t.rows {
			if r.part == took.part {
				b.WriteString(head)
				head = ""
				fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", cell(r.what), cell(r.measured), cell(r.goal), verdictCell(r.verdict))
			}
		}
		switch failed := t.failed[took.part]; {
		case failed != nil:
			fmt.Fprintf(&b, "\n**This part failed after %s.** What it had measured until then stands above.\n\n%s", took.measured, indented(shortened(failed.Error())))
		case head != "":
			b.WriteString("Not measured: see the end of the missed goals.\n")
		default:
			fmt.Fprintf(&b, "\nThis part took %s.\n", took.measured)
		}
		if took.part == "scale" && chart != "" {
			fmt.Fprintf(&b, "\n![Cost by number of clients](%s)\n", chart)
		}
	}
	if len(t.inputs) > 0 {
		b.WriteString("\n## Inputs of the sizing page\n\n| what | value | part |\n|---|---|---|\n")
		for _, i := range t.inputs {
			fmt.Fprintf(&b, "| %s | %s | %s |\n", i.name, short(i.value), i.part)
		}
	}
	p.missed(&b, t)
	if len(t.profiles) > 0 {
		b.WriteString("\n## Where the time goes\n\nCPU profiles of the last run of each kind: of our process, through its admin port, or of the bench with all that runs in it (seed, grpc, flood, loaded).\n")
		for _, pr := range t.profiles {
			fmt.Fprintf(&b, "\n### %s\n\n%s", pr.name, indented(pr.top))
		}
	}
	return b.String()
}

// missed lists the goals that were not met, and the parts that were not measured.
func (p page) missed(b *strings.Builder, t *table) {
	b.WriteString("\n## Missed goals\n\n")
	none, above := true, ""
	for _, r := range t.rows {
		if !strings.HasPrefix(r.what, " ") {
			above = r.what
		}
		if r.verdict == miss {
			none = false
			fmt.Fprintf(b, "- %s, %s, %s: %s; the goal is %s.\n", r.part, above, strings.TrimSpace(r.what), r.measured, r.goal)
		}
	}
	if none {
		b.WriteString("None of those measured.\n")
	}
	for _, s := range t.skipped {
		fmt.Fprintf(b, "- Not measured: %s.\n", s)
	}
	for _, took := range t.took {
		if t.failed[took.part] != nil {
			fmt.Fprintf(b, "- Not measured, or not all of it: %s, which failed. Its section has the error.\n", took.part)
		}
	}
}

// errorLines is how many lines of an error are on the page; all of them are printed at the end of the run.
const errorLines = 20

// shortened returns the first lines of an error's text.
func shortened(text string) string {
	lines := slices.Collect(strings.Lines(text))
	if len(lines) > errorLines {
		lines = append(lines[:errorLines], "...")
	}
	return strings.Join(lines, "")
}

// indented makes a text a block that is shown as it is.
func indented(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		fmt.Fprintf(&b, "    %s\n", strings.TrimRight(line, " \n"))
	}
	return b.String()
}

func verdictCell(v string) string {
	if v == miss {
		return "**" + miss + "**"
	}
	return v
}

// cell makes a text fit into a table.
func cell(s string) string {
	// Indented lines belong to the one above.
	s = strings.ReplaceAll(s, "|", "\\|")
	if trimmed := strings.TrimLeft(s, " "); trimmed != s {
		return "&nbsp;&nbsp;" + trimmed
	}
	return s
}

// write puts page and chart into their folder.
func (p page) write(path string, t *table) (err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("make the folder of the page: %w", err)
	}
	link := ""
	if t.chart != nil {
		link = strings.TrimSuffix(filepath.Base(path), filepath.Ext(path)) + ".svg"
		if err := os.WriteFile(filepath.Join(filepath.Dir(path), link), []byte(t.chart.svg()), 0o644); err != nil {
			return fmt.Errorf("write the chart: %w", err)
		}
	}
	w := bufio.NewScanner(strings.NewReader(p.markdown(t, link)))
	var b strings.Builder
	for w.Scan() {
		b.WriteString(strings.TrimRight(w.Text(), " ") + "\n")
	}
	if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
		return fmt.Errorf("write the page: %w", err)
	}
	return nil
}
