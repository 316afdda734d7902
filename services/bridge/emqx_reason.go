package bridge

import (
	"strconv"
	"strings"

	"github.com/mqtt-presence/presence/libs/presence"
)

// emqxReason normalises a reason. The set is open: atoms of EMQX, errno names, and the names of MQTT 5 reason codes (emqx_reason_codes).
// internal_error stands for whatever EMQX has no name for, also for a WebSocket that was closed with a code, so it proves nothing.
func emqxReason(raw string) presence.Reason {
	switch raw {
	case "":
		return presence.ReasonUnknown
	case "normal", "normal_disconnection", "disconnect_with_will_message":
		return presence.ReasonNormal
	case "tcp_closed", "ssl_closed", "closed", "remote", "timeout", "einval", "etimedout", "econnreset", "econnaborted", "epipe", "enotconn",
		"ehostunreach", "enetunreach", "ehostdown", "enetdown", "sock_closed", "sock_error", "connection_lost":
		return presence.ReasonConnectionLost
	case "keepalive_timeout", "keep_alive_timeout":
		return presence.ReasonKeepAliveTimeout
	case "takenover", "takeovered", "session_taken_over":
		return presence.ReasonTakenOver
	case "discarded":
		return presence.ReasonDiscarded
	case "kicked", "administrative_action":
		return presence.ReasonKicked
	case "not_authorized", "bad_username_or_password", "bad_authentication_method", "authentication_expired", "auth_expired", "banned",
		"reauthenticate_failed", "expired":
		return presence.ReasonNotAuthorized
	case "malformed_packet", "protocol_error", "packet_too_large", "frame_too_large", "frame_error", "topic_name_invalid", "topic_filter_invalid",
		"topic_alias_invalid", "qos_not_supported", "retain_not_supported", "payload_format_invalid", "packet_identifier_in_use",
		"packet_identifier_not_found", "unsupported_protocol_version", "client_identifier_not_valid":
		return presence.ReasonProtocolError
	case "quota_exceeded", "message_rate_too_high", "receive_maximum_exceeded", "connection_rate_exceeded", "maximum_connect_time":
		return presence.ReasonQuotaExceeded
	case "use_another_server", "server_moved", "server_shutting_down", "shutdown":
		return presence.ReasonServerShutdown
	case "unspecified_error", "implementation_specific_error", "server_busy", "server_unavailable":
		return presence.ReasonServerError
	case "session_expired":
		return presence.ReasonSessionExpired
	}
	return presence.ReasonOther
}

// brokerVersion is major, minor and patch.
type brokerVersion [3]int

func (v brokerVersion) known() bool { return v != brokerVersion{} }

func (v brokerVersion) before(major, minor, patch int) bool {
	for i, n := range []int{major, minor, patch} {
		if v[i] != n {
			return v[i] < n
		}
	}
	return false
}

// parseVersion reads the first number.number.number of a text, such as e5.9.0-rc.1; the zero version if there is none.
func parseVersion(s string) brokerVersion {
	start := strings.IndexAny(s, "0123456789")
	if start < 0 {
		return brokerVersion{}
	}
	var v brokerVersion
	for i, part := range strings.SplitN(s[start:], ".", 3) {
		end := 0
		for end < len(part) && part[end] >= '0' && part[end] <= '9' {
			end++
		}
		n, err := strconv.Atoi(part[:end])
		if err != nil {
			return brokerVersion{}
		}
		v[i] = n
		if end < len(part) {
			break
		}
	}
	return v
}
