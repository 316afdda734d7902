package presencectl

import (
	"bytes"
	"encoding/json"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// FuzzCell: what stands in a table has no character that does not print, and no space; two texts never look the same.
func FuzzCell(f *testing.F) {
	for _, s := range []string{"", "-", "a", `"a"`, "a b", hostile, "\xff", "é", "\u200d", "\ufeff", "\U000e0001"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c := cell(s)
		unquoted := c
		switch {
		case s == "":
			if c != absent {
				t.Fatalf("nothing became %q", c)
			}
			return
		case strings.HasPrefix(c, `"`):
			var err error
			if unquoted, err = strconv.Unquote(c); err != nil {
				t.Fatal(err)
			}
		case c == absent:
			t.Fatalf("%q looks as if it were not known", s)
		}
		if unquoted != s {
			t.Fatalf("%q became %q", s, c)
		}
		if strings.ContainsFunc(c, func(r rune) bool { return !strconv.IsPrint(r) }) || strings.ContainsFunc(printable(s), func(r rune) bool { return !strconv.IsPrint(r) }) {
			t.Fatalf("%q became %q and %q", s, c, printable(s))
		}
	})
}

// FuzzEscapeJSON: the escaped JSON means the same, and holds nothing that does not print.
func FuzzEscapeJSON(f *testing.F) {
	for _, s := range []string{"a", hostile, "\u2028", "\U000e0001", "\x7f"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if !utf8.ValidString(s) {
			t.Skip()
		}
		var b bytes.Buffer
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		if err := e.Encode(s); err != nil {
			t.Fatal(err)
		}
		escaped := escapeJSON(strings.TrimSuffix(b.String(), "\n"))
		var got string
		if err := json.Unmarshal([]byte(escaped), &got); err != nil || got != s {
			t.Fatalf("%q became %s: %v", s, escaped, err)
		}
		if strings.ContainsFunc(escaped, func(r rune) bool { return !strconv.IsPrint(r) }) {
			t.Fatalf("%q became %q", s, escaped)
		}
	})
}

// TestColours: colours go nowhere but to terminals, and pad nothing.
func TestColours(t *testing.T) {
	table := &table{header: []string{"ID", "STATUS", "NODE"}}
	table.add("online", online, "n")
	table.add("b", offline, "n")
	want := "ID      STATUS   NODE\nonline  \x1b[32monline\x1b[0m   n\nb       \x1b[31moffline\x1b[0m  n\n"
	if got := table.render(true); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := table.render(false); strings.Contains(got, "\x1b") {
		t.Errorf("got %q", got)
	}
	f, err := os.Create(t.TempDir() + "/out")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if newApp(Process{Out: f, Environ: []string{"TERM=xterm"}}).coloured() {
		t.Error("a file gets colours")
	}
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0) // a character device, as terminals are
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = null.Close() }()
	if !newApp(Process{Out: null, Environ: []string{"TERM=xterm"}}).coloured() {
		t.Error("a terminal gets no colours")
	}
	if newApp(Process{Out: null, Environ: []string{"TERM=xterm", "NO_COLOR=1"}}).coloured() {
		t.Error("NO_COLOR has no effect")
	}
}

func TestTimes(t *testing.T) {
	for text, want := range map[string]string{
		"-5m": "2026-01-31T11:55:00Z", "-1h30m": "2026-01-31T10:30:00Z", "2026-01-31T12:00:00.5+01:00": "2026-01-31T11:00:00.5Z",
		"": "", "-": "", "5m": "", "--5m": "", "now": "", "2026-01-31": "",
	} {
		got, err := parseTime(text, testNow)
		if (err != nil) != (want == "") || err == nil && got.UTC().Format(time.RFC3339Nano) != want {
			t.Errorf("%q is %v: %v, want %q", text, got, err, want)
		}
	}
	for d, want := range map[time.Duration]string{
		0: "0s", time.Millisecond: "1ms", 1500 * time.Millisecond: "1s", 61 * time.Second: "1m1s", time.Hour: "1h", 49 * time.Hour: "2d1h", -time.Minute: "-1m",
		24*time.Hour + time.Minute: "1d",
	} {
		if got := span(d); got != want {
			t.Errorf("%d is %s, want %s", d, got, want)
		}
	}
}
