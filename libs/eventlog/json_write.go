package eventlog

import (
	"encoding/base64"
	"strconv"
	"unicode/utf8"

	"github.com/mqtt-presence/presence/libs/presence"
)

// objectWriter writes a flat JSON object in the order of its calls. What is empty or zero is left out: absent means unknown.
type objectWriter struct {
	b    []byte
	some bool
}

func (w *objectWriter) open(dst []byte) { w.b = append(dst, '{') }

func (w *objectWriter) close() []byte { return append(w.b, '}') }

// name writes a field's name, which needs no escapes.
func (w *objectWriter) name(name string) {
	if w.some {
		w.b = append(w.b, ',')
	}
	w.some = true
	w.b = append(append(append(w.b, '"'), name...), `":`...)
}

func (w *objectWriter) str(name, v string) {
	if v != "" {
		w.name(name)
		w.b = appendJSONString(w.b, v)
	}
}

func (w *objectWriter) int(name string, v int64) {
	if v != 0 {
		w.name(name)
		w.b = strconv.AppendInt(w.b, v, 10)
	}
}

// zero writes a number even if it is zero.
func (w *objectWriter) zero(name string, v int64) {
	w.name(name)
	w.b = strconv.AppendInt(w.b, v, 10)
}

func (w *objectWriter) bool(name string, v bool) {
	w.name(name)
	w.b = strconv.AppendBool(w.b, v)
}

func (w *objectWriter) optInt(name string, v presence.Opt[uint32]) {
	if v.Valid {
		w.zero(name, int64(v.Value))
	}
}

func (w *objectWriter) optBool(name string, v presence.Opt[bool]) {
	if v.Valid {
		w.bool(name, v.Value)
	}
}

func (w *objectWriter) base64(name string, v []byte) {
	if len(v) > 0 {
		w.name(name)
		w.b = append(base64.StdEncoding.AppendEncode(append(w.b, '"'), v), '"')
	}
}

// unescaped says of a byte that it stands for itself in a JSON string: ASCII that needs no escape.
var unescaped = func() (t [256]bool) {
	for c := ' '; c < utf8.RuneSelf; c++ {
		t[c] = c != '"' && c != '\\'
	}
	return t
}()

// unescapedLen is the length of the beginning of a string that needs no escape.
func unescapedLen[T string | []byte](s T) int {
	i := 0
	for i < len(s) && unescaped[s[i]] {
		i++
	}
	return i
}

const hexDigits = "0123456789abcdef"

// appendJSONString appends a JSON string (RFC 8259, section 7). Only what must be escaped is; bytes that are not UTF-8, which no record
// should hold, become U+FFFD.
func appendJSONString(dst []byte, s string) []byte {
	dst = append(dst, '"')
	start, i := 0, unescapedLen(s)
	if i == len(s) {
		return append(append(dst, s...), '"')
	}
	for i < len(s) {
		c := s[i]
		if c >= utf8.RuneSelf {
			r, n := utf8.DecodeRuneInString(s[i:])
			if r == utf8.RuneError && n == 1 {
				dst = append(append(dst, s[start:i]...), "\ufffd"...)
				start = i + 1
			}
			i += n
			continue
		}
		if c >= ' ' && c != '"' && c != '\\' {
			i++
			continue
		}
		dst = append(dst, s[start:i]...)
		switch c {
		case '"', '\\':
			dst = append(dst, '\\', c)
		case '\n':
			dst = append(dst, '\\', 'n')
		case '\r':
			dst = append(dst, '\\', 'r')
		case '\t':
			dst = append(dst, '\\', 't')
		default:
			dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		}
		i++
		start = i
	}
	return append(append(dst, s[start:]...), '"')
}
