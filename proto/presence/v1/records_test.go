package presencev1_test

import (
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// files are all files of the package.
var files = []protoreflect.FileDescriptor{
	presencev1.File_presence_v1_event_proto,
	presencev1.File_presence_v1_presence_proto,
	presencev1.File_presence_v1_state_proto,
}

// A record loads into a table as it is, in JSON too: scalars only, each one column.
func TestRecordsAreFlat(t *testing.T) {
	messages := presencev1.File_presence_v1_event_proto.Messages()
	for _, name := range []protoreflect.Name{"ClientEvent", "NodeEvent", "ClientState"} {
		if messages.ByName(name) == nil {
			t.Errorf("event.proto has no message %s", name)
		}
	}
	for i := range messages.Len() {
		m := messages.Get(i)
		if m.Messages().Len() > 0 || m.Enums().Len() > 0 {
			t.Errorf("%s declares types of its own", m.Name())
		}
		for j := range m.Fields().Len() {
			field := m.Fields().Get(j)
			switch {
			case field.IsMap():
				t.Errorf("%s.%s is a map", m.Name(), field.Name())
			case field.IsList():
				t.Errorf("%s.%s is a list", m.Name(), field.Name())
			case field.Message() != nil:
				t.Errorf("%s.%s is a message, %s", m.Name(), field.Name(), field.Message().FullName())
			case field.Enum() != nil:
				t.Errorf("%s.%s is an enum: an older reader would see a number where JSON has a word", m.Name(), field.Name())
			case field.ContainingOneof() != nil && !field.ContainingOneof().IsSynthetic():
				t.Errorf("%s.%s is part of a oneof", m.Name(), field.Name())
			}
		}
	}
}

// The JSON names are the proto names, so a json_name option would make two spellings of one field.
func TestNoFieldIsRenamedInJSON(t *testing.T) {
	for _, file := range files {
		for i := range file.Messages().Len() {
			fields := file.Messages().Get(i).Fields()
			for j := range fields.Len() {
				field := fields.Get(j)
				if want := camel(field.Name()); field.JSONName() != want {
					t.Errorf("%s: json_name is %q; remove the option, JSON uses %q", field.FullName(), field.JSONName(), field.Name())
				}
			}
		}
	}
}

// camel is protoc's default JSON name of a field.
func camel(name protoreflect.Name) string {
	var b []byte
	upper := false
	for _, c := range []byte(name) {
		switch {
		case c == '_':
			upper = true
		case upper && 'a' <= c && c <= 'z':
			b, upper = append(b, c-'a'+'A'), false
		default:
			b, upper = append(b, c), false
		}
	}
	return string(b)
}
