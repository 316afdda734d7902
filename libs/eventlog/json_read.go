package eventlog

import (
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/mqtt-presence/presence/libs/presence"
)

// objectReader reads a JSON object whose interesting fields are scalars.
type objectReader struct {
	b    []byte
	i    int
	err  error
	key  []byte // name of the field being read; may point into b
	buf  []byte // of unescaped names
	text []byte // of unescaped values
}

var errSyntax = errors.New("not valid JSON")

func (r *objectReader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
}

func (r *objectReader) space() {
	for r.i < len(r.b) {
		switch r.b[r.i] {
		case ' ', '\t', '\n', '\r':
			r.i++
		default:
			return
		}
	}
}

func (r *objectReader) peek() byte {
	if r.i < len(r.b) && r.b[r.i] > ' ' {
		return r.b[r.i]
	}
	return r.peekSpace()
}

// peekSpace is peek where space may come first.
func (r *objectReader) peekSpace() byte {
	r.space()
	if r.i < len(r.b) {
		return r.b[r.i]
	}
	return 0
}

func (r *objectReader) expect(c byte) bool {
	if r.err != nil || r.peek() != c {
		r.fail(fmt.Errorf("%w: no %q at byte %d", errSyntax, c, r.i))
		return false
	}
	r.i++
	return true
}

// object calls field for each field; field must consume the value by one of the value methods. It reports the first error, which names
// the field.
func (r *objectReader) object(field func(name []byte)) error {
	if !r.expect('{') {
		return r.err
	}
	for first := true; r.err == nil; first = false {
		c := r.peek()
		if c == '}' && first {
			r.i++
			break
		}
		if !first {
			if c == '}' {
				r.i++
				break
			}
			if !r.expect(',') {
				break
			}
		}
		if r.peek() != '"' {
			r.fail(fmt.Errorf("%w: no field name at byte %d", errSyntax, r.i))
			break
		}
		r.key = r.rawString(&r.buf)
		if r.err != nil || !r.expect(':') {
			break
		}
		field(r.key)
		if r.err != nil {
			r.err = fmt.Errorf("field %q: %w", r.key, r.err)
		}
	}
	if r.err == nil && r.peek() != 0 || r.err == nil && r.i < len(r.b) {
		r.fail(fmt.Errorf("%w: more follows at byte %d", errSyntax, r.i))
	}
	return r.err
}

// rawString reads a string. The result points into the input unless there are escapes; then it is in buf.
func (r *objectReader) rawString(buf *[]byte) []byte {
	if r.peek() != '"' {
		r.fail(errors.New("not a string"))
		return nil
	}
	r.i++
	start, ascii := r.i, true
	r.i += unescapedLen(r.b[r.i:])
	for ; r.i < len(r.b); r.i++ {
		switch c := r.b[r.i]; {
		case c == '"':
			s := r.b[start:r.i]
			r.i++
			if !ascii && !utf8.Valid(s) {
				r.fail(errors.New("not valid UTF-8"))
			}
			return s
		case c == '\\':
			*buf = append((*buf)[:0], r.b[start:r.i]...)
			return r.escaped(buf)
		case c < ' ':
			r.fail(fmt.Errorf("%w: control character in a string", errSyntax))
			return nil
		case c >= utf8.RuneSelf:
			ascii = false
		}
	}
	r.fail(fmt.Errorf("%w: string does not end", errSyntax))
	return nil
}

func (r *objectReader) escaped(buf *[]byte) []byte {
	out := *buf
	for r.i < len(r.b) {
		c := r.b[r.i]
		r.i++
		switch {
		case c == '"':
			*buf = out
			if !utf8.Valid(out) {
				r.fail(errors.New("not valid UTF-8"))
			}
			return out
		case c < ' ':
			r.fail(fmt.Errorf("%w: control character in a string", errSyntax))
			return nil
		case c != '\\':
			out = append(out, c)
			continue
		case r.i == len(r.b):
			continue
		}
		e := r.b[r.i]
		r.i++
		switch e {
		case '"', '\\', '/':
			out = append(out, e)
		case 'b':
			out = append(out, '\b')
		case 'f':
			out = append(out, '\f')
		case 'n':
			out = append(out, '\n')
		case 'r':
			out = append(out, '\r')
		case 't':
			out = append(out, '\t')
		case 'u':
			out = utf8.AppendRune(out, r.unicodeEscape())
		default:
			r.fail(fmt.Errorf("%w: escape \\%c", errSyntax, e))
			return nil
		}
		if r.err != nil {
			return nil
		}
	}
	r.fail(fmt.Errorf("%w: string does not end", errSyntax))
	return nil
}

// unicodeEscape reads what follows \u, and the second half of a surrogate pair. A lone half is an error: it is no character, and
// replacing it would make two strings one.
func (r *objectReader) unicodeEscape() rune {
	hi := r.hex4()
	if !utf16.IsSurrogate(hi) {
		return hi
	}
	if r.i+1 < len(r.b) && r.b[r.i] == '\\' && r.b[r.i+1] == 'u' {
		r.i += 2
		if c := utf16.DecodeRune(hi, r.hex4()); c != utf8.RuneError {
			return c
		}
	}
	r.fail(fmt.Errorf("%w: lone surrogate", errSyntax))
	return utf8.RuneError
}

func (r *objectReader) hex4() rune {
	if r.i+4 > len(r.b) {
		r.fail(fmt.Errorf("%w: short \\u escape", errSyntax))
		return 0
	}
	v, err := strconv.ParseUint(string(r.b[r.i:r.i+4]), 16, 16)
	if err != nil || r.b[r.i] == '+' || r.b[r.i] == '-' {
		r.fail(fmt.Errorf("%w: \\u escape", errSyntax))
	}
	r.i += 4
	return rune(v)
}

// null reports whether the value is null, which is the same as an absent field.
func (r *objectReader) null() bool {
	if r.peek() != 'n' {
		return false
	}
	return r.literal("null")
}

func (r *objectReader) literal(word string) bool {
	if r.i+len(word) <= len(r.b) && string(r.b[r.i:r.i+len(word)]) == word {
		r.i += len(word)
		return true
	}
	r.fail(fmt.Errorf("%w at byte %d", errSyntax, r.i))
	return false
}

func (r *objectReader) str(v *string) {
	if r.null() {
		return
	}
	*v = string(r.rawString(&r.text))
}

// same is str, but keeps a string that is the same.
func (r *objectReader) same(v *string, before string) {
	if r.null() {
		return
	}
	if b := r.rawString(&r.text); string(b) == before {
		*v = before
	} else {
		*v = string(b)
	}
}

// raw reads a string that is only looked at, before the next value is read.
func (r *objectReader) raw() []byte {
	if r.null() {
		return nil
	}
	return r.rawString(&r.text)
}

// bytes reads a base64 string.
func (r *objectReader) bytes(v *[]byte) {
	var s string
	r.str(&s)
	if r.err != nil || s == "" {
		return
	}
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		r.fail(fmt.Errorf("not base64: %w", err))
		return
	}
	*v = b
}

func (r *objectReader) int(v *int64, lo, hi int64) {
	if r.null() {
		return
	}
	start := r.i
	if r.i < len(r.b) && r.b[r.i] == '-' {
		r.i++
	}
	digits := r.i
	var sum int64
	for r.i < len(r.b) && r.b[r.i] >= '0' && r.b[r.i] <= '9' {
		sum = sum*10 + int64(r.b[r.i]-'0')
		r.i++
	}
	if r.i < len(r.b) && (r.b[r.i] == '.' || r.b[r.i] == 'e' || r.b[r.i] == 'E') || r.i-digits > 1 && r.b[digits] == '0' {
		r.fail(errors.New("not a whole number"))
		return
	}
	n, err := sum, error(nil)
	if start != digits || r.i == digits || r.i-digits > 18 {
		// A sign, or more than what sum holds for sure.
		n, err = strconv.ParseInt(string(r.b[start:r.i]), 10, 64)
	}
	switch {
	case err != nil && r.i > digits:
		r.fail(errors.New("number out of range"))
	case err != nil:
		r.fail(errors.New("not a number"))
	case n < lo || n > hi:
		r.fail(fmt.Errorf("%d is not within %d to %d", n, lo, hi))
	default:
		*v = n
	}
}

// ms reads a time, a duration or an offset: none is negative.
func (r *objectReader) ms(v *int64) { r.int(v, 0, math.MaxInt64) }

func (r *objectReader) uint32(v *uint32) {
	n := int64(*v)
	r.int(&n, 0, math.MaxUint32)
	*v = uint32(n)
}

func (r *objectReader) uint8(v *uint8) {
	n := int64(*v)
	r.int(&n, 0, math.MaxUint8)
	*v = uint8(n)
}

func (r *objectReader) optInt(v *presence.Opt[uint32]) {
	if r.null() {
		return
	}
	r.uint32(&v.Value)
	v.Valid = r.err == nil
}

func (r *objectReader) optMS(v *presence.Opt[int64]) {
	if r.null() {
		return
	}
	r.ms(&v.Value)
	v.Valid = r.err == nil
}

func (r *objectReader) optBool(v *presence.Opt[bool]) {
	if r.null() {
		return
	}
	v.Valid = r.bool(&v.Value)
}

func (r *objectReader) bool(v *bool) bool {
	switch r.peek() {
	case 't':
		*v = true
		return r.literal("true")
	case 'f':
		*v = false
		return r.literal("false")
	case 'n':
		return r.literal("null")
	}
	r.fail(errors.New("neither true nor false"))
	return false
}

// maxDepth bounds the nesting of a value that is skipped.
const maxDepth = 64

// skip passes over a value of any kind, for the fields of newer versions.
func (r *objectReader) skip() { r.skipValue(0) }

func (r *objectReader) skipValue(depth int) {
	if depth > maxDepth {
		r.fail(fmt.Errorf("%w: nested deeper than %d", errSyntax, maxDepth))
		return
	}
	switch c := r.peek(); c {
	case '"':
		var buf []byte
		r.rawString(&buf)
	case '{', '[':
		r.skipNested(c, depth)
	case 't':
		r.literal("true")
	case 'f':
		r.literal("false")
	case 'n':
		r.literal("null")
	default:
		r.skipNumber()
	}
}

// skipNumber passes over a number of any kind (RFC 8259, section 6).
func (r *objectReader) skipNumber() {
	r.has("-")
	zero := r.i
	ok := r.digits() && (r.b[zero] != '0' || r.i == zero+1)
	if ok && r.has(".") {
		ok = r.digits()
	}
	if ok && r.has("eE") {
		r.has("+-")
		ok = r.digits()
	}
	if !ok {
		r.fail(fmt.Errorf("%w at byte %d", errSyntax, r.i))
	}
}

// has passes over a byte if it is one of those.
func (r *objectReader) has(bytes string) bool {
	ok := r.i < len(r.b) && strings.IndexByte(bytes, r.b[r.i]) >= 0
	if ok {
		r.i++
	}
	return ok
}

// digits passes over digits; it reports false if there is none.
func (r *objectReader) digits() bool {
	start := r.i
	for r.i < len(r.b) && r.b[r.i] >= '0' && r.b[r.i] <= '9' {
		r.i++
	}
	return r.i > start
}

func (r *objectReader) skipNested(opening byte, depth int) {
	r.i++
	closing := opening + 2 // in ASCII, } and ] stand two after their opening
	for first := true; r.err == nil; first = false {
		if r.peek() == closing {
			r.i++
			return
		}
		if !first && !r.expect(',') {
			return
		}
		if opening == '{' {
			var buf []byte
			if r.peek() != '"' {
				r.fail(fmt.Errorf("%w: no field name at byte %d", errSyntax, r.i))
				return
			}
			r.rawString(&buf)
			if !r.expect(':') {
				return
			}
		}
		r.skipValue(depth + 1)
	}
}
