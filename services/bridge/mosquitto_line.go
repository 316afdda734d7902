package bridge

import (
	"strconv"
	"strings"
	"time"

	"github.com/mqtt-presence/presence/libs/presence"
)

// lineKind says what a log line is about.
type lineKind uint8

const (
	lineOther    lineKind = iota
	lineAccepted          // a TCP listener accepted a connection
	lineOpened            // a CONNECT was accepted
	lineClosed            // a connection ended
	lineDropping          // the broker drops messages to a client whose queue is full
)

// line is what a log line of Mosquitto says.
type line struct {
	kind       lineKind
	clientID   string
	peer       string // ip:port, bare for IPv6; 1.x: ip
	keyed      bool   // a Closed that carries its peer
	username   string
	protocol   uint8
	cleanStart bool
	keepAliveS uint32
	reason     presence.Reason
	rawReason  string
	dead       *unreadable
}

// lineFormat is how the broker's version writes the end of a connection.
type lineFormat uint8

const (
	formatUnknown lineFormat = iota
	formatUnkeyed            // before 2.1.1: Client <id> ...
	formatKeyed              // Client <id> [<ip>:<port>] disconnected...
)

const (
	prefixClient    = "Client "
	prefixOpened    = "New client connected from "
	prefixBridge    = "New bridge connected from "
	prefixAccepted  = "New connection from "
	prefixBadSocket = "Bad socket read/write on client "
	prefixError1x   = "Socket error on client "
	prefixDropping  = "Outgoing messages are being dropped for client "
)

// aboutClient reports whether a line tells of a client's connection.
func aboutClient(text string) bool {
	return hasAnyPrefix(text, prefixClient, prefixOpened, prefixBridge, prefixBadSocket, prefixError1x)
}

// parseLine reads a line without its stamp.
//
// Client IDs and user names hold anything but control characters, so a line is read from its fixed ends: an opening from the first " as "
// after the address and the options at its end, a close from the longest ending that fits.
func parseLine(text string, format lineFormat) line {
	switch {
	case strings.HasPrefix(text, prefixOpened):
		return parseOpened(text[len(prefixOpened):])
	case strings.HasPrefix(text, prefixBridge):
		return parseOpened(text[len(prefixBridge):])
	case strings.HasPrefix(text, prefixAccepted):
		if peer, _, ok := strings.Cut(text[len(prefixAccepted):], " on port "); ok {
			return line{kind: lineAccepted, peer: peer}
		}
	case strings.HasPrefix(text, prefixClient):
		return parseClosed(text[len(prefixClient):], format)
	case strings.HasPrefix(text, prefixBadSocket):
		// The cause can be whatever the broker has no words for, also a CONNECT that it refused.
		rest := text[len(prefixBadSocket):]
		if i := strings.LastIndex(rest, ": "); i >= 0 {
			return line{kind: lineClosed, clientID: rest[:i], reason: presence.ReasonOther, rawReason: "bad socket read/write: " + rest[i+2:]}
		}
	case strings.HasPrefix(text, prefixError1x):
		if id, ok := strings.CutSuffix(text[len(prefixError1x):], ", disconnecting."); ok {
			return line{kind: lineClosed, clientID: id, reason: presence.ReasonConnectionLost, rawReason: "socket error"}
		}
	case strings.HasPrefix(text, prefixDropping):
		return line{kind: lineDropping, clientID: strings.TrimSuffix(text[len(prefixDropping):], ".")}
	}
	return line{}
}

// parseOpened reads <address> as <id> (p2, c1, k60, u'<user>'). A user name can itself look like the options, so that the line reads in
// more than one way; which one is true cannot be told, and a guess would be a fact about another client.
func parseOpened(rest string) line {
	peer, rest, ok := strings.Cut(rest, " as ")
	if !ok {
		return line{dead: &unreadable{deadField, "the line of an opened connection names no client"}}
	}
	var found line
	readings := 0
	for i := 0; i < len(rest); i++ {
		next := strings.Index(rest[i:], " (")
		if next < 0 {
			break
		}
		i += next
		if l, ok := parseOptions(rest[i+1:]); ok {
			l.clientID, l.peer = rest[:i], peer
			found = l
			readings++
		}
	}
	switch readings {
	case 0:
		return line{dead: &unreadable{deadField, "the line of an opened connection has no options (p, c, k) at its end"}}
	case 1:
		return found
	}
	return line{dead: &unreadable{deadAmbiguous, "the line of an opened connection can be read in more than one way"}}
}

// parseOptions reads the whole of (p2, c1, k60, u'<user>'). as written by the broker; 1.5 writes no p.
func parseOptions(s string) (line, bool) {
	l := line{kind: lineOpened}
	s, ok := strings.CutPrefix(s, "(")
	if !ok {
		return l, false
	}
	if s, ok = strings.CutSuffix(s, ")."); !ok {
		return l, false
	}
	var n uint64
	if strings.HasPrefix(s, "p") {
		if n, s, ok = cutNumber(s, "p"); !ok {
			return l, false
		}
		switch n {
		case 1:
			l.protocol = 3
		case 2:
			l.protocol = 4
		case 5:
			l.protocol = 5
		}
		if s, ok = strings.CutPrefix(s, ", "); !ok {
			return l, false
		}
	}
	if n, s, ok = cutNumber(s, "c"); !ok {
		return l, false
	}
	l.cleanStart = n == 1
	if s, ok = strings.CutPrefix(s, ", "); !ok {
		return l, false
	}
	if n, s, ok = cutNumber(s, "k"); !ok {
		return l, false
	}
	l.keepAliveS = uint32(n)
	if s == "" {
		return l, true
	}
	if s, ok = strings.CutPrefix(s, ", u'"); !ok {
		return l, false
	}
	l.username, ok = strings.CutSuffix(s, "'")
	return l, ok
}

// cutNumber reads a letter and the number that follows.
func cutNumber(s, letter string) (n uint64, rest string, ok bool) {
	if s, ok = strings.CutPrefix(s, letter); !ok {
		return 0, s, false
	}
	end := 0
	for end < len(s) && s[end] >= '0' && s[end] <= '9' {
		end++
	}
	n, err := strconv.ParseUint(s[:end], 10, 32)
	return n, s[end:], err == nil
}

// closings are the endings of lines before 2.1.1, longest first where one is the ending of another.
var closings = []struct {
	ending string
	raw    string
	reason presence.Reason
}{
	{" closed its connection.", "closed its connection", presence.ReasonConnectionLost},
	{" has exceeded timeout, disconnecting.", "exceeded timeout", presence.ReasonKeepAliveTimeout},
	{" disconnected, not authorised.", "not authorised", presence.ReasonNotAuthorized},
	{" disconnected, session taken over.", "session taken over", presence.ReasonTakenOver},
	{" already connected, closing old connection.", "already connected, closing old connection", presence.ReasonTakenOver},
	{" disconnected due to malformed packet.", "malformed packet", presence.ReasonProtocolError},
	{" disconnected due to protocol error.", "protocol error", presence.ReasonProtocolError},
	{" disconnected due to oversize packet.", "oversize packet", presence.ReasonProtocolError},
	{" disconnected due to oversize payload.", "oversize payload", presence.ReasonProtocolError},
	{" disconnected due to out of memory.", "out of memory", presence.ReasonServerError},
	{" been disconnected by administrative action.", "administrative action", presence.ReasonKicked},
	{" disconnected.", "", presence.ReasonNormal},
}

const closedByFeature = " disconnected due to using not allowed feature ("

// parseClosed reads what follows "Client ".
func parseClosed(rest string, format lineFormat) line {
	if format != formatUnkeyed {
		if l, ok := parseKeyedClosed(rest); ok {
			return l
		}
	}
	for _, c := range closings {
		if id, ok := strings.CutSuffix(rest, c.ending); ok {
			return line{kind: lineClosed, clientID: id, reason: c.reason, rawReason: c.raw}
		}
	}
	if i := strings.LastIndex(rest, closedByFeature); i >= 0 && strings.HasSuffix(rest, ").") {
		return line{kind: lineClosed, clientID: rest[:i], reason: presence.ReasonProtocolError, rawReason: "used disallowed feature"}
	}
	for _, middle := range []string{" disconnected: ", " disconnected due to ", " disconnected, "} {
		if i := strings.LastIndex(rest, middle); i >= 0 {
			raw := strings.TrimSuffix(rest[i+len(middle):], ".")
			return line{kind: lineClosed, clientID: rest[:i], reason: mosquittoReason(raw), rawReason: raw}
		}
	}
	return line{}
}

// parseKeyedClosed reads <id> [<ip>:<port>] disconnected: <reason>.
func parseKeyedClosed(rest string) (line, bool) {
	end := strings.LastIndex(rest, "] disconnected")
	if end < 0 {
		return line{}, false
	}
	start := strings.LastIndex(rest[:end], " [")
	if start < 0 {
		return line{}, false
	}
	l := line{kind: lineClosed, clientID: rest[:start], peer: rest[start+2 : end], keyed: true}
	if strings.ContainsAny(l.peer, " []") || !strings.Contains(l.peer, ":") && l.peer != "(null)" {
		return line{}, false
	}
	raw := rest[end+len("] disconnected"):]
	switch {
	case raw == ".":
		l.reason = presence.ReasonNormal
	case strings.HasPrefix(raw, ": ") && strings.HasSuffix(raw, "."):
		l.rawReason = strings.TrimSuffix(strings.TrimPrefix(raw, ": "), ".")
		l.reason = mosquittoReason(l.rawReason)
	default:
		return line{}, false
	}
	if l.peer == "(null)" {
		// After a restore of persisted sessions the address is gone; what is left names no connection.
		l.peer, l.keyed = "", false
	}
	return l, true
}

// mosquittoReason normalises the words after "disconnected". strerror texts of a dead socket are listed; others stay open.
func mosquittoReason(raw string) presence.Reason {
	switch raw {
	case "connection closed by client", "The connection was lost", "Connection reset by peer", "Broken pipe", "Connection timed out",
		"Operation timed out", "No route to host", "Host is down", "Network is down", "Network is unreachable", "Connection refused",
		"Software caused connection abort", "Transport endpoint is not connected", "Socket is not connected", "Bad file descriptor":
		return presence.ReasonConnectionLost
	case "exceeded timeout":
		return presence.ReasonKeepAliveTimeout
	case "not authorised", "client banned":
		return presence.ReasonNotAuthorized
	case "session taken over":
		return presence.ReasonTakenOver
	case "administrative action":
		return presence.ReasonKicked
	case "malformed packet", "protocol error", "oversize packet", "oversize payload", "topic alias invalid", "topic filter invalid", "topic name invalid":
		return presence.ReasonProtocolError
	case "receive maximum exceeded", "quota exceeded", "connection rate exceeded", "message rate too high":
		return presence.ReasonQuotaExceeded
	case "server busy", "out of memory", "server shutting down":
		return presence.ReasonServerError
	}
	if strings.HasPrefix(raw, "used disallowed feature") {
		return presence.ReasonProtocolError
	}
	return presence.ReasonOther
}

// stampLayouts are the forms of log_timestamp_format that are read, all of them with "T" or a space between date and time.
var stampLayouts = []string{"2006-01-02T15:04:05", "2006-01-02 15:04:05"}

const stampLength = len("2006-01-02T15:04:05")

// cutStamp reads the stamp at the start of a line, in milliseconds; 0 if there is none. A stamp without a zone is local time, which an
// hour of autumn has twice: the reading nearer to when it was received is taken.
func cutStamp(payload string, location *time.Location, receivedMS int64) (ms int64, text string) {
	digits := 0
	for digits < len(payload) && payload[digits] >= '0' && payload[digits] <= '9' {
		digits++
	}
	if digits > 4 && digits <= 12 && strings.HasPrefix(payload[digits:], ": ") {
		s, err := strconv.ParseInt(payload[:digits], 10, 64)
		if err == nil && s > 0 {
			return s * 1000, payload[digits+2:]
		}
	}
	if digits != 4 || len(payload) < stampLength {
		return 0, payload
	}
	stamp, rest := payload[:stampLength], payload[stampLength:]
	for _, layout := range stampLayouts {
		t, err := time.ParseInLocation(layout, stamp, location)
		if err != nil {
			continue
		}
		if text, ok := strings.CutPrefix(rest, ": "); ok {
			return nearest(t, layout, stamp, location, receivedMS), text
		}
		if zone, text, ok := strings.Cut(rest, ": "); ok {
			for _, form := range []string{"Z07:00", "-0700", "-07"} {
				if t, err := time.Parse(layout+form, stamp+zone); err == nil {
					return t.UnixMilli(), text
				}
			}
		}
	}
	return 0, payload
}

func nearest(t time.Time, layout, stamp string, location *time.Location, receivedMS int64) int64 {
	best := t.UnixMilli()
	for _, shift := range []time.Duration{-time.Hour, time.Hour} {
		other := t.Add(shift)
		if other.In(location).Format(layout) == stamp && abs(other.UnixMilli()-receivedMS) < abs(best-receivedMS) {
			best = other.UnixMilli()
		}
	}
	return best
}

func abs(n int64) int64 {
	if n < 0 {
		return -n
	}
	return n
}

// stampUnknown reports whether a line without a known stamp has one of another form before a text about a client. "Warning: " and "Error: ",
// with which some lines begin, are none.
func stampUnknown(payload string) bool {
	stamp, text, ok := strings.Cut(payload, ": ")
	return ok && strings.ContainsAny(stamp, "0123456789") && !aboutClient(payload) && aboutClient(text)
}
