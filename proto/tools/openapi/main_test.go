package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

func TestOverlay(t *testing.T) {
	for _, tc := range []struct{ name, generated, overlay, want string }{
		{"adds beside what is there", `{"a":{"b":1}}`, `{"a":{"c":2},"d":3}`, `{"a":{"b":1,"c":2},"d":3}`},
		{"replaces values", `{"a":1}`, `{"a":"x"}`, `{"a":"x"}`},
		{"replaces lists whole", `{"a":[1,2]}`, `{"a":[3]}`, `{"a":[3]}`},
		{"replaces an object by a value", `{"a":{"b":1}}`, `{"a":null}`, `{"a":null}`},
		{"replaces a value by an object", `{"a":1}`, `{"a":{"b":2}}`, `{"a":{"b":2}}`},
		{"sorts keys", `{"b":1,"a":2}`, `{}`, `{"a":2,"b":1}`},
		{"keeps numbers and text as written", `{"a":9007199254740993,"b":"<&>"}`, `{}`, `{"a":9007199254740993,"b":"<&>"}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := overlay(t, tc.generated, tc.overlay)
			if err != nil {
				t.Fatal(err)
			}
			if got != tc.want {
				t.Errorf("got %s, want %s", got, tc.want)
			}
		})
	}
}

func TestOverlayRefusesWhatIsNoObject(t *testing.T) {
	for _, text := range []string{``, `[]`, `{`, `{} {}`, `{"a":1}}`, `null`} {
		if got, err := overlay(t, `{}`, text); err == nil {
			t.Errorf("overlay %q gives %s, want an error", text, got)
		}
	}
}

// overlay returns the output without its white space.
func overlay(t *testing.T, generated, over string) (string, error) {
	t.Helper()
	dir := t.TempDir()
	args := []string{filepath.Join(dir, "generated.json"), filepath.Join(dir, "overlay.json")}
	for i, text := range []string{generated, over} {
		if err := os.WriteFile(args[i], []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var out bytes.Buffer
	err := run(args, &out)
	return string(bytes.Join(bytes.Fields(out.Bytes()), nil)), err
}
