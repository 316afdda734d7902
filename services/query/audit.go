package query

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"

	"github.com/mqtt-presence/presence/libs/service"
)

const (
	// auditStderr is the audit log's name for standard error.
	auditStderr = "-"
	// auditRate and auditBurst bound the lines about denied calls, a second and at once: a flood must not fill the disk.
	auditRate  = 20
	auditBurst = 200
	// auditTick is how often it is said how many lines were left out, and whether the file was moved away is looked at.
	auditTick = time.Second
	// maxAuditText bounds texts of callers in a line, in bytes.
	maxAuditText = 256
)

// audit writes a line for each denied call and for each call that needs admin. Denied calls beyond a rate are counted, and the count is
// written; calls of admins are never left out.
type audit struct {
	log     *slog.Logger
	service *slog.Logger // told what goes wrong with the file
	file    *auditFile   // nil: not a file of its own
	denied  *rate.Limiter
	lines   *prometheus.CounterVec

	mu   sync.Mutex
	left map[string]int // lines left out, by reason
}

func newAudit(to string, log *slog.Logger, reg prometheus.Registerer) (*audit, error) {
	a := &audit{
		service: log.With(service.KeyComponent, "audit"), denied: rate.NewLimiter(auditRate, auditBurst), left: make(map[string]int),
		lines: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "presence_query_audit_lines_total",
			Help: "Lines for the audit log, by outcome: written, left_out (denied calls beyond the rate, whose number is written), failed.",
		}, []string{"outcome"}),
	}
	if err := register(reg, a.lines); err != nil {
		return nil, err
	}
	var w io.Writer = os.Stderr
	switch to {
	case "":
		a.log = a.service
		return a, nil
	case auditStderr:
	default:
		a.file = &auditFile{path: to}
		if err := a.file.open(); err != nil {
			return nil, err
		}
		w = a.file
	}
	a.log = slog.New(slog.NewJSONHandler(&auditWriter{w, a}, nil))
	return a, nil
}

// auditWriter counts what could not be written.
type auditWriter struct {
	io.Writer
	audit *audit
}

func (w *auditWriter) Write(line []byte) (int, error) {
	n, err := w.Writer.Write(line)
	if err != nil {
		w.audit.lines.WithLabelValues("failed").Inc()
		w.audit.service.Error("audit line not written", service.KeyError, err, "line", string(line))
	}
	return n, err
}

// audited is what is said of one call.
type audited struct {
	transport, call   string
	account           string // who was admitted, or the account that the caller gave himself out for; empty: none that exists
	address           netip.Addr
	cluster, clientID string // as asked for; empty: not known
	code              codes.Code
	reason            string // of a refusal
}

// record writes the line of a call. A call that was neither denied nor needs admin has none.
func (a *audit) record(ctx context.Context, need permission, e audited) {
	denied := e.reason != ""
	if !denied && need != permAdmin {
		return
	}
	// The denial of an admin call counts as denied: anybody can bring it about.
	if denied && !a.denied.Allow() {
		a.mu.Lock()
		a.left[e.reason]++
		a.mu.Unlock()
		a.lines.WithLabelValues("left_out").Inc()
		return
	}
	outcome := "done"
	level := slog.LevelInfo
	switch {
	case denied:
		outcome, level = "denied", slog.LevelWarn
	case e.code != codes.OK:
		outcome, level = "failed", slog.LevelWarn
	}
	attrs := []slog.Attr{
		slog.String("account", bounded(e.account)), slog.String("address", addressText(e.address)),
		slog.String("transport", e.transport), slog.String("call", e.call),
	}
	if e.cluster != "" {
		attrs = append(attrs, slog.String(service.KeyCluster, bounded(e.cluster)))
	}
	if e.clientID != "" {
		attrs = append(attrs, slog.String(service.KeyClientID, bounded(e.clientID)))
	}
	attrs = append(attrs, slog.String("outcome", outcome), slog.String("code", e.code.String()))
	if denied {
		attrs = append(attrs, slog.String(service.KeyReason, e.reason))
	}
	a.log.LogAttrs(ctx, level, "call", attrs...)
	a.lines.WithLabelValues("written").Inc()
}

// bounded returns what a caller wrote in ASCII, in one line, and not longer than maxAuditText before it is quoted, as in Go. It is quoted only where
// it has to be, since the text format quotes once more: a text that begins with a quote is one that was quoted here.
func bounded(text string) string {
	if len(text) > maxAuditText {
		return strconv.QuoteToASCII(text[:maxAuditText]) + "..."
	}
	if quoted := strconv.QuoteToASCII(text); quoted[1:len(quoted)-1] != text {
		return quoted
	}
	return text
}

func addressText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.WithZone("").String()
}

// run says each second how much was left out, and follows the file, until ctx ends.
func (a *audit) run(ctx context.Context) {
	tick := time.NewTicker(auditTick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			a.flush(ctx)
			if a.file == nil {
				continue
			}
			if err := a.file.follow(); err != nil {
				a.service.Error("audit log not opened again", service.KeyError, err)
			}
		}
	}
}

// flush writes how many lines were left out since the last time.
func (a *audit) flush(ctx context.Context) {
	a.mu.Lock()
	left := a.left
	a.left = make(map[string]int)
	a.mu.Unlock()
	for reason, n := range left {
		a.log.LogAttrs(ctx, slog.LevelWarn, "calls left out", slog.String("outcome", "denied"), slog.String(service.KeyReason, reason), slog.Int(service.KeyCount, n))
	}
}

// close writes what is left to be said.
func (a *audit) close() error {
	a.flush(context.Background())
	if a.file == nil {
		return nil
	}
	return a.file.close()
}

// auditFile is appended to. It is opened again if it was moved away, as log rotation does.
type auditFile struct {
	path string
	mu   sync.Mutex
	file *os.File
}

func (f *auditFile) open() error {
	file, err := os.OpenFile(f.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("audit-log: open the file, or name another: %w", err)
	}
	f.file = file
	return nil
}

// Write appends a line.
func (f *auditFile) Write(line []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.file.Write(line)
}

// follow opens the file again if the path is another file's, or nobody's.
func (f *auditFile) follow() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	mine, err := f.file.Stat()
	if err != nil {
		return fmt.Errorf("look at the audit log: %w", err)
	}
	if there, err := os.Stat(f.path); err == nil && os.SameFile(mine, there) {
		return nil
	}
	old := f.file
	if err := f.open(); err != nil {
		return err
	}
	if err := old.Close(); err != nil {
		return fmt.Errorf("close the audit log that was moved away: %w", err)
	}
	return nil
}

func (f *auditFile) close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.file.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("close the audit log: %w", err)
	}
	return nil
}
