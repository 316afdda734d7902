package service

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
)

// redacted stands for a secret wherever one is printed.
const redacted = "[redacted]"

// Secret is a string that does not show itself: fmt, slog and encoders print
// "[redacted]", or nothing if it is empty. A config field of this type is read from the
// environment only.
type Secret string

// Reveal returns the secret itself.
func (s Secret) Reveal() string { return string(s) }

// String returns a placeholder.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return redacted
}

// Format prints the placeholder for every verb, also for those, such as %d, for
// which fmt would bypass String.
func (s Secret) Format(f fmt.State, _ rune) {
	// fmt reports write errors to its own caller.
	_, _ = io.WriteString(f, s.String())
}

// LogValue logs the placeholder.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText encodes the placeholder, in JSON and YAML too.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// ReadSecret returns the content of file without one trailing newline, or, if file
// is "", the first of the values that is set, which come from the environment.
// With neither it returns "". It is an error if both are given, or the file is empty.
func ReadSecret(file string, env ...Secret) (Secret, error) {
	var value Secret
	for _, e := range env {
		if e != "" {
			value = e
			break
		}
	}
	if file == "" {
		return value, nil
	}
	if value != "" {
		return "", fmt.Errorf("the secret is given twice, in file %s and in the environment; remove one", file)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("read the secret: %w", err)
	}
	text := strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), "\r")
	if text == "" {
		return "", fmt.Errorf("read the secret: %w", &os.PathError{Op: "read", Path: file, Err: errors.New("the file is empty; write the secret into it")})
	}
	return Secret(text), nil
}
