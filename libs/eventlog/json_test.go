package eventlog

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/mqtt-presence/presence/libs/presence"
)

// What was in the fact before makes no difference to what is read.
func TestDecodeFactOverAnother(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f, before := anyFact(t), anyFact(t)
		switch rapid.IntRange(0, 2).Draw(t, "same") {
		case 1:
			before.Node, before.Username = f.Node, f.Username
		case 2:
			f.Node, f.Username = "", ""
		}
		for _, format := range []Format{JSON, Protobuf} {
			got := before
			if err := DecodeFact(FactRecord(&f, format), &got); err != nil || !reflect.DeepEqual(got, f) {
				t.Fatalf("%v: %+v, %v, want %+v", format, got, err, f)
			}
		}
	})
}

// Strings of any length, with what must be escaped at any place, are as encoding/json reads them.
func TestEscapesAnywhere(t *testing.T) {
	for _, c := range []string{"", "\"", "\\", "\n", "\x1f", " ", "\x7f", "é", "日", "\u2028", "😀"} {
		for length := range 40 {
			for at := range length + 1 {
				s := strings.Repeat("x", at) + c + strings.Repeat("y", length-at)
				b := appendJSONString(nil, s)
				var want string
				if err := json.Unmarshal(b, &want); err != nil || want != s {
					t.Fatalf("%q is written as %s: %v", s, b, err)
				}
				r := objectReader{b: b}
				var got string
				if r.str(&got); r.err != nil || got != s {
					t.Fatalf("%s is read as %q: %v", b, got, r.err)
				}
			}
		}
	}
	if b := appendJSONString(nil, "abc\xff\xfed"); string(b) != "\"abc\ufffd\ufffdd\"" {
		t.Errorf("bytes that are not UTF-8 are written as %q", b)
	}
}

func TestNumbers(t *testing.T) {
	for _, c := range []struct {
		text string
		want int64
		bad  bool
	}{
		{"0", 0, false}, {"7", 7, false}, {"253402300799999", 253_402_300_799_999, false},
		{"999999999999999999", 999_999_999_999_999_999, false}, {"9223372036854775807", 9_223_372_036_854_775_807, false},
		{"9223372036854775808", 0, true}, {"18446744073709551616", 0, true}, {"18446744073709551617", 0, true}, {"99999999999999999999999999999", 0, true},
		{"-1", 0, true}, {"-", 0, true}, {"", 0, true}, {"00", 0, true}, {"01", 0, true}, {"1.5", 0, true}, {"1e3", 0, true}, {"\"1\"", 0, true},
	} {
		var f presence.Fact
		err := DecodeFactJSON(fmt.Appendf(nil, `{"time_ms":%s}`, c.text), &f)
		if (err != nil) != c.bad || f.TimeMS != c.want && err == nil {
			t.Errorf("%s is read as %d, %v", c.text, f.TimeMS, err)
		}
	}
	var v int64
	r := objectReader{b: []byte("-1")}
	if r.int(&v, -1, 5); r.err != nil || v != -1 {
		t.Errorf("-1 is read as %d, %v", v, r.err)
	}
}
