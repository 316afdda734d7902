package service

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLogger(t *testing.T) {
	for _, test := range []struct {
		config LogConfig
		want   string // the line without its time
		hidden slog.Level
		err    string
	}{
		{config: DefaultLog(), hidden: slog.LevelDebug, want: `level=WARN msg=m component=c`},
		{config: LogConfig{"debug", "text"}, hidden: slog.LevelDebug - 1, want: `level=WARN msg=m component=c`},
		{config: LogConfig{"warn", "json"}, hidden: slog.LevelInfo, want: `"level":"WARN","msg":"m","component":"c"}`},
		{config: LogConfig{"loud", "text"}, err: "log-level: "},
		{config: LogConfig{"info", "xml"}, err: "log-format: "},
		{config: LogConfig{}, err: "log-level: "},
	} {
		t.Run(test.config.Level+" "+test.config.Format, func(t *testing.T) {
			var out bytes.Buffer
			log, err := test.config.Logger(&out)
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Errorf("got %v, want an error with %q", err, test.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			log.Log(t.Context(), test.hidden, "hidden")
			log.Warn("m", KeyComponent, "c")
			if got := strings.TrimSpace(out.String()); strings.Contains(got, "hidden") || !strings.HasSuffix(got, test.want) {
				t.Errorf("got %s, want only %s", got, test.want)
			}
		})
	}
}

func TestSecretDoesNotShow(t *testing.T) {
	const s = Secret("hunter2")
	holder := struct{ S Secret }{s}
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%c", "%10s"} {
		fmt.Fprintf(&out, verb+" "+verb+" ", s, holder)
	}
	slog.New(slog.NewTextHandler(&out, nil)).Info("m", "s", s, "holder", holder)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("m", "s", s, "holder", holder)
	if err := json.NewEncoder(&out).Encode(holder); err != nil {
		t.Fatal(err)
	}
	if got := out.String(); strings.Contains(got, "hunter2") || strings.Contains(got, "68756e74657232") || !strings.Contains(got, redacted) {
		t.Errorf("got %s", got)
	}
	if got := s.Reveal(); got != "hunter2" {
		t.Errorf("Reveal: got %q", got)
	}
	if got := fmt.Sprint(Secret("")); got != "" {
		t.Errorf("empty secret: got %q", got)
	}
}

func TestReadSecret(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	for _, test := range []struct {
		name string
		file string
		env  []Secret
		want Secret
		err  string
	}{
		{name: "neither"},
		{name: "file", file: write("a", " pass word "), want: " pass word "},
		{name: "one newline goes", file: write("b", "p\n\n"), env: []Secret{""}, want: "p\n"},
		{name: "one CRLF goes", file: write("c", "p\r\n"), want: "p"},
		{name: "environment", env: []Secret{"", "first", "second"}, want: "first"},
		{name: "both", file: write("d", "p"), env: []Secret{"hunter2"}, err: "given twice"},
		{name: "empty file", file: write("e", "\n"), err: "the file is empty"},
		{name: "no file", file: filepath.Join(dir, "none"), err: "no such file"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := ReadSecret(test.file, test.env...)
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) || strings.Contains(err.Error(), "hunter2") {
					t.Errorf("got %v, want an error with %q", err, test.err)
				}
				return
			}
			if err != nil || got != test.want {
				t.Errorf("got %q, %v; want %q", got.Reveal(), err, test.want.Reveal())
			}
		})
	}
}
