package query

import (
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// requestOf returns the message that a call takes; nil for one that the contract does not have.
func requestOf(call string) protoreflect.MessageDescriptor {
	method := presencev1.File_presence_v1_presence_proto.Services().ByName("PresenceService").Methods().ByName(protoreflect.Name(call))
	if method == nil {
		return nil
	}
	return method.Input()
}

// checkQuery refuses parameters that the gateway would pass over, or refuse without naming them: those that the call does not have, that
// come twice, and that are not of their field's type.
func checkQuery(c *call, rawQuery string) error {
	query, err := url.ParseQuery(rawQuery)
	if err != nil {
		return invalid("query", "the query is not percent-encoded: "+err.Error())
	}
	request := requestOf(c.name)
	for name, values := range query {
		if !slices.Contains(c.query, name) || request == nil {
			return invalid(strings.ToValidUTF8(name, "\ufffd"), fmt.Sprintf("unknown query parameter %.100q; this call knows %s", name, listOf(c.query)))
		}
		field := request.Fields().ByName(protoreflect.Name(name))
		if field == nil {
			return invalid(name, fmt.Sprintf("unknown query parameter %q", name))
		}
		if len(values) > 1 && !field.IsList() {
			return invalid(name, name+" is given more than once; give it once")
		}
		for _, v := range values {
			if want := wanted(field, v); want != "" {
				return invalid(name, fmt.Sprintf("%s %.60q is not %s", name, v, want))
			}
		}
	}
	return nil
}

// wanted says what a parameter should be; empty if it is that.
func wanted(field protoreflect.FieldDescriptor, value string) string {
	switch field.Kind() {
	case protoreflect.Int32Kind:
		if _, err := strconv.ParseInt(value, 10, 32); err != nil {
			return "a whole number of at most 2147483647"
		}
	case protoreflect.Int64Kind:
		if _, err := strconv.ParseInt(value, 10, 64); err != nil {
			return "a whole number of at most 9223372036854775807"
		}
	case protoreflect.BoolKind:
		if value != "true" && value != "false" {
			return "true or false"
		}
	case protoreflect.MessageKind:
		switch field.Message().FullName() {
		case "google.protobuf.Timestamp":
			// A + that was not encoded is a space by now.
			if t, err := time.Parse(time.RFC3339Nano, value); err != nil || t.UTC().Year() < 1 || t.UTC().Year() > 9999 {
				return "a time of RFC 3339, such as 2026-01-31T12:00:00Z; in a query a + is written %2B"
			}
		case "google.protobuf.Duration":
			if _, err := time.ParseDuration(value); err != nil {
				return "a duration, such as 5s"
			}
		}
	default:
		if !utf8.ValidString(value) {
			return "valid UTF-8"
		}
	}
	return ""
}

// wrongField finds the string of a message that is not UTF-8, which is why the message does not decode; empty if that is not why.
func wrongField(data []byte, message any) string {
	m, ok := message.(proto.Message)
	if !ok {
		return ""
	}
	fields := m.ProtoReflect().Descriptor().Fields()
	for len(data) > 0 {
		number, kind, n := protowire.ConsumeTag(data)
		if n < 0 {
			return ""
		}
		data = data[n:]
		size := protowire.ConsumeFieldValue(number, kind, data)
		if size < 0 {
			return ""
		}
		if field := fields.ByNumber(number); field != nil && field.Kind() == protoreflect.StringKind && kind == protowire.BytesType {
			if text, n := protowire.ConsumeBytes(data); n >= 0 && !utf8.Valid(text) {
				return string(field.Name())
			}
		}
		data = data[size:]
	}
	return ""
}
