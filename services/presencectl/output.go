package presencectl

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Values of --output.
const (
	outputTable = "table"
	outputWide  = "wide"
	outputJSON  = "json"
)

var outputs = []string{outputTable, outputWide, outputJSON}

func (a *app) json() bool { return a.output == outputJSON }

func (a *app) wide() bool { return a.output == outputWide }

func (a *app) checkOutput() error {
	if !slices.Contains(outputs, a.output) {
		return fmt.Errorf("--output: %q is none of %s", a.output, strings.Join(outputs, ", "))
	}
	return nil
}

// absent is the cell of what is not known.
const absent = "-"

// cell returns a text as it may stand in a table: as it is, if that is safe and cannot be taken for another text or cell, else quoted as in Go.
// Texts of brokers and clients may hold anything, such as sequences that act on a terminal, or characters that reverse what follows.
func cell(s string) string {
	if s == "" {
		return absent
	}
	if s == absent || s[0] == '"' || strings.ContainsFunc(s, func(r rune) bool { return r == ' ' || !strconv.IsPrint(r) }) || !utf8.ValidString(s) {
		return strconv.Quote(s)
	}
	return s
}

// printable returns a sentence with everything escaped that does not print.
func printable(s string) string {
	if !strings.ContainsFunc(s, func(r rune) bool { return !strconv.IsPrint(r) }) && utf8.ValidString(s) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		if strconv.IsPrint(r) && (r != utf8.RuneError || n > 1) {
			b.WriteRune(r)
		} else {
			quoted := strconv.Quote(s[i : i+n])
			b.WriteString(quoted[1 : len(quoted)-1])
		}
		i += n
	}
	return b.String()
}

// number returns a count and what is counted, in the plural where it belongs.
func number(n int64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

const stampFormat = "2006-01-02T15:04:05.000Z"

func stamp(t *timestamppb.Timestamp) string {
	if t == nil {
		return absent
	}
	return t.AsTime().Format(stampFormat)
}

// span returns a duration as it is said: 1d2h, 5m3s, 120ms; two units are enough.
func span(d time.Duration) string {
	if d < 0 {
		return "-" + span(-d)
	}
	for i, u := range units {
		if d < u.length {
			continue
		}
		text := fmt.Sprintf("%d%s", d/u.length, u.name)
		if i+1 < len(units) && u.length > time.Second {
			if rest := d % u.length / units[i+1].length; rest > 0 {
				text += fmt.Sprintf("%d%s", rest, units[i+1].name)
			}
		}
		return text
	}
	return "0s"
}

var units = []struct {
	length time.Duration
	name   string
}{{24 * time.Hour, "d"}, {time.Hour, "h"}, {time.Minute, "m"}, {time.Second, "s"}, {time.Millisecond, "ms"}}

// parseTime reads an absolute time, or one before now such as -5m.
func parseTime(text string, now time.Time) (time.Time, error) {
	if ago, ok := strings.CutPrefix(text, "-"); ok {
		if d, err := time.ParseDuration(ago); err == nil && d >= 0 {
			return now.Add(-d), nil
		}
	}
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return time.Time{}, fmt.Errorf("%q is neither a time such as 2026-01-31T12:00:00Z nor one before now such as -5m", text)
	}
	return t, nil
}

// table is a table of cells that are safe to print.
type table struct {
	header []string
	rows   [][]string
	// least widths, so that the pages of one list stand below each other
	widths []int
	// headless leaves the header out.
	headless bool
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

// render writes the rows; statuses are coloured if wanted.
func (t *table) render(coloured bool) string {
	if len(t.widths) < len(t.header) {
		t.widths = make([]int, len(t.header))
	}
	rows := t.rows
	if !t.headless {
		rows = append([][]string{t.header}, rows...)
	}
	for _, row := range rows {
		for i, c := range row {
			t.widths[i] = max(t.widths[i], utf8.RuneCountInString(c))
		}
	}
	var b strings.Builder
	for n, row := range rows {
		for len(row) > 0 && row[len(row)-1] == "" {
			row = row[:len(row)-1]
		}
		for i, c := range row {
			text := c
			if coloured && (n > 0 || t.headless) && strings.HasSuffix(t.header[i], "STATUS") {
				text = colour(c)
			}
			b.WriteString(text)
			if i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", t.widths[i]-utf8.RuneCountInString(c)+2))
			}
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// colour colours a status.
func colour(status string) string {
	code := map[string]string{"online": "32", "offline": "31", "unknown": "33"}[status]
	if code == "" {
		return status
	}
	return "\x1b[" + code + "m" + status + "\x1b[0m"
}

func (a *app) printTable(t *table) error { return a.printf("%s", t.render(a.coloured())) }

// printMessage prints a message as REST answers it, on one line.
func (a *app) printMessage(m proto.Message) error {
	text, err := protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: true}.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode the answer: %w", err)
	}
	// The encoder varies its spaces on purpose.
	var b bytes.Buffer
	if err := json.Compact(&b, text); err != nil {
		return fmt.Errorf("encode the answer: %w", err)
	}
	return a.printf("%s\n", escapeJSON(b.String()))
}

// printJSON prints a value that is no message on one line.
func (a *app) printJSON(v any) error {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return fmt.Errorf("encode the answer: %w", err)
	}
	return a.printf("%s", escapeJSON(b.String()))
}

// escapeJSON escapes what does not print, which encoders leave as it is from DEL on. Outside of strings JSON has nothing but ASCII, which stays.
func escapeJSON(s string) string {
	unsafe := func(r rune) bool { return r >= 0x7F && !strconv.IsPrint(r) }
	if !strings.ContainsFunc(s, unsafe) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		switch {
		case !unsafe(r):
			b.WriteRune(r)
		case r > 0xFFFF:
			r -= 0x10000
			fmt.Fprintf(&b, `\u%04x\u%04x`, 0xD800+r>>10, 0xDC00+r&0x3FF)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}
