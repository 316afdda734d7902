package query

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc/codes"
)

func newTestAudit(t *testing.T, to string, log *slog.Logger) *audit {
	t.Helper()
	a, err := newAudit(to, log, prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// linesOf parses an audit log.
func linesOf(t *testing.T, content []byte) []map[string]any {
	t.Helper()
	var lines []map[string]any
	for line := range bytes.Lines(content) {
		var l map[string]any
		if err := json.Unmarshal(line, &l); err != nil {
			t.Fatalf("line %q: %v", line, err)
		}
		lines = append(lines, l)
	}
	return lines
}

var deniedCall = audited{
	transport: overREST, call: "GetClient", account: "ops", address: netip.MustParseAddr("10.0.0.1"),
	cluster: "default", clientID: "dev1", code: codes.PermissionDenied, reason: refusedPermission,
}

func TestAuditLines(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	a := newTestAudit(t, path, slog.New(slog.DiscardHandler))
	a.record(t.Context(), permRead, deniedCall)
	done := audited{transport: overGRPC, call: "DeleteClient", account: "root", code: codes.OK}
	a.record(t.Context(), permAdmin, done)
	done.code = codes.Unavailable
	a.record(t.Context(), permAdmin, done)
	a.record(t.Context(), permRead, audited{call: "GetClient", code: codes.NotFound}) // neither denied nor an admin's
	if err := a.close(); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := linesOf(t, content)
	if len(lines) != 3 {
		t.Fatalf("%d lines: %s", len(lines), content)
	}
	for key, want := range map[string]any{
		"account": "ops", "address": "10.0.0.1", "transport": "rest", "call": "GetClient", "cluster": "default", "client_id": "dev1",
		"outcome": "denied", "code": "PermissionDenied", "reason": "permission", "level": "WARN",
	} {
		if lines[0][key] != want {
			t.Errorf("%s is %v, want %v", key, lines[0][key], want)
		}
	}
	if lines[0]["time"] == nil || lines[1]["outcome"] != "done" || lines[2]["outcome"] != "failed" || lines[1]["client_id"] != nil {
		t.Errorf("lines %s", content)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file's mode: %v, %v", info.Mode(), err)
	}
}

// What is said of a call can be read, and found with grep, in either format.
func TestAuditQuotesOnce(t *testing.T) {
	var out bytes.Buffer
	a := newTestAudit(t, "", slog.New(slog.NewTextHandler(&out, nil)))
	e := deniedCall
	e.clientID = "a b"
	a.record(t.Context(), permRead, e)
	e.clientID = `"`
	a.record(t.Context(), permRead, e)
	for _, want := range []string{" account=ops ", " cluster=default ", ` client_id="a b" `, ` client_id="\"\\\"\"" `} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in %s", want, &out)
		}
	}
}

// Texts of callers cannot begin a line, in either format, nor fill the disk.
func TestAuditIsNotForged(t *testing.T) {
	for name, handler := range map[string]func(*bytes.Buffer) slog.Handler{
		"text": func(b *bytes.Buffer) slog.Handler { return slog.NewTextHandler(b, nil) },
		"json": func(b *bytes.Buffer) slog.Handler { return slog.NewJSONHandler(b, nil) },
	} {
		for _, evil := range []string{
			"a\ntime=2026 level=INFO msg=call outcome=done", "a\r\n{\"outcome\":\"done\"}", "\x1b[2J", "\u2028outcome=done", "\u202eenod", "\xff\x00", `" outcome=done "`,
			strings.Repeat("\xff", 100_000),
		} {
			var out bytes.Buffer
			a := newTestAudit(t, "", slog.New(handler(&out)))
			e := deniedCall
			e.account, e.cluster, e.clientID = evil, evil, evil
			a.record(t.Context(), permRead, e)
			if strings.Count(out.String(), "\n") != 1 || out.Len() > 10_000 || strings.Contains(out.String(), "\x1b") {
				t.Errorf("%s: %.40q gives %d bytes: %.300q", name, evil, out.Len(), &out)
			}
			for _, r := range out.String() {
				if r > 126 {
					t.Errorf("%s: %.40q gives %q", name, evil, r)
					break
				}
			}
			if !strings.Contains(out.String(), "audit") || name == "json" && linesOf(t, out.Bytes())[0]["outcome"] != "denied" {
				t.Errorf("%s: %.300q", name, &out)
			}
		}
	}
}

// A flood of denied calls is cut, and the number of what is cut is written. Calls of admins are not cut.
func TestAuditSaysWhatItLeavesOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		a := newTestAudit(t, "", slog.New(slog.NewJSONHandler(&out, nil)))
		for range 1_000 {
			a.record(t.Context(), permRead, deniedCall)
			a.record(t.Context(), permAdmin, audited{call: "DeleteClient", code: codes.OK})
		}
		a.flush(t.Context())
		a.flush(t.Context())
		denied, done, left, counts := 0, 0, 0, 0
		for _, l := range linesOf(t, out.Bytes()) {
			switch {
			case l["count"] != nil:
				n, _ := l["count"].(float64)
				left += int(n)
				counts++
			case l["outcome"] == "denied":
				denied++
			case l["outcome"] == "done":
				done++
			}
		}
		if denied != auditBurst || left != 1_000-auditBurst || counts != 1 || done != 1_000 {
			t.Errorf("%d denied, %d left out in %d lines, %d done", denied, left, counts, done)
		}
		if n := testutil.ToFloat64(a.lines.WithLabelValues("left_out")); n != 1_000-auditBurst {
			t.Errorf("counted %v", n)
		}
	})
}

func TestAuditFollowsItsFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	a := newTestAudit(t, path, slog.New(slog.DiscardHandler))
	a.record(t.Context(), permRead, deniedCall)
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if err := a.file.follow(); err != nil {
		t.Fatal(err)
	}
	a.record(t.Context(), permRead, deniedCall)
	if err := a.file.follow(); err != nil {
		t.Fatal(err)
	}
	a.record(t.Context(), permRead, deniedCall)
	for file, want := range map[string]int{path: 2, path + ".1": 1} {
		content, err := os.ReadFile(file)
		if err != nil || len(linesOf(t, content)) != want {
			t.Errorf("%s: %q, %v", file, content, err)
		}
	}
	if err := a.close(); err != nil {
		t.Fatal(err)
	}
	// What cannot be written is counted, and stands in the service's log.
	var lines bytes.Buffer
	a.service = slog.New(slog.NewTextHandler(&lines, nil))
	a.record(t.Context(), permRead, deniedCall)
	if testutil.ToFloat64(a.lines.WithLabelValues("failed")) != 1 || !strings.Contains(lines.String(), "GetClient") {
		t.Errorf("a closed file: %s", &lines)
	}
}
