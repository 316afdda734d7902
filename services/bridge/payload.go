package bridge

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// ignoredRefused counts events about a CONNECT that the broker refused: there is no connection (H4).
const ignoredRefused = "refused_connect"

// parseJSON reads a payload into v, and says what is wrong with one that cannot be read. Fields that v does not have are left alone: brokers
// add some with every version.
func parseJSON(payload []byte, v any) *unreadable {
	err := json.Unmarshal(payload, v)
	if err == nil {
		return nil
	}
	var field *json.UnmarshalTypeError
	if errors.As(err, &field) {
		if field.Field == "" {
			return &unreadable{deadField, fmt.Sprintf("the payload is a JSON %s, not an object", field.Value)}
		}
		return &unreadable{deadField, fmt.Sprintf("field %q is a JSON %s that does not fit", field.Field, field.Value)}
	}
	return &unreadable{deadJSON, err.Error()}
}

// clientID chooses between the client ID of the payload, which field names, and that of the topic, which may be unable to carry some IDs. The
// payload's wins, unless it holds U+FFFD: either the client sent that itself, and then the topic has it too, or it stands for bytes that are
// not UTF-8, and then the topic has those.
func clientID(inPayload *string, field, inTopic string) (string, *unreadable) {
	if inPayload == nil {
		return "", &unreadable{deadField, fmt.Sprintf("field %q is missing", field)}
	}
	id := *inPayload
	if strings.Contains(id, replacement) {
		if id = inTopic; !utf8.ValidString(id) {
			return "", &unreadable{deadClientID, fmt.Sprintf("client ID %q", inTopic)}
		}
	}
	if id == "" {
		return "", &unreadable{deadEmptyID, fmt.Sprintf("field %q is empty", field)}
	}
	return id, nil
}
