package broker

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"

	"github.com/mochi-mqtt/server/v2/packets"
)

// Reasons of a disconnected event that are not the name of a reason code.
const (
	reasonNormal    = "normal"
	reasonTCPClosed = "tcp_closed"
	reasonKeepAlive = "keepalive_timeout"
	reasonKicked    = "kicked"
	reasonDiscarded = "discarded"
	reasonTakenOver = "takenover"
	reasonTimedOut  = "etimedout"
	reasonInternal  = "internal_error"
)

// codeNames are EMQX's names of the reason codes of MQTT 5 (2.4) that can end a connection.
var codeNames = map[byte]string{
	0x04: "disconnect_with_will_message",
	0x80: "unspecified_error",
	0x81: "malformed_packet",
	0x82: "protocol_error",
	0x83: "implementation_specific_error",
	0x87: "not_authorized",
	0x89: "server_busy",
	0x8B: "server_shutting_down",
	0x8D: reasonKeepAlive,
	0x8E: reasonTakenOver,
	0x8F: "topic_filter_invalid",
	0x90: "topic_name_invalid",
	0x93: "receive_maximum_exceeded",
	0x94: "topic_alias_invalid",
	0x95: "packet_too_large",
	0x96: "message_rate_too_high",
	0x97: "quota_exceeded",
	0x98: "administrative_action",
	0x99: "payload_format_invalid",
	0x9A: "retain_not_supported",
	0x9B: "qos_not_supported",
	0x9C: "use_another_server",
	0x9D: "server_moved",
	0x9E: "shared_subscriptions_not_supported",
	0x9F: "connection_rate_exceeded",
	0xA0: "maximum_connect_time",
	0xA1: "subscription_identifiers_not_supported",
	0xA2: "wildcard_subscriptions_not_supported",
}

// reasonOf says in EMQX's words why a connection ended: cause is what stopped it, sent the reason code of the client's own DISCONNECT.
func reasonOf(cause error, sent byte) string {
	var code packets.Code
	var netErr net.Error
	switch {
	case errors.As(cause, &code):
		return codeReason(code, sent)
	case cause == nil, errors.Is(cause, io.EOF), errors.Is(cause, io.ErrUnexpectedEOF), errors.Is(cause, net.ErrClosed):
		return reasonTCPClosed
	case errors.Is(cause, os.ErrDeadlineExceeded):
		return reasonKeepAlive
	case errors.Is(cause, syscall.ECONNRESET):
		return "econnreset"
	case errors.Is(cause, syscall.EPIPE):
		return "epipe"
	case errors.Is(cause, syscall.ETIMEDOUT):
		return reasonTimedOut
	case errors.As(cause, &netErr):
		return reasonTCPClosed
	}
	return reasonInternal
}

func codeReason(code packets.Code, sent byte) string {
	if code == packets.CodeDisconnect {
		if sent == packets.CodeSuccess.Code {
			return reasonNormal
		}
		code.Code = sent
	}
	if code == packets.ErrAdministrativeAction {
		return reasonKicked // by Broker.Kick
	}
	if name, ok := codeNames[code.Code]; ok {
		return name
	}
	return reasonInternal
}
