package bridge

import (
	"fmt"
	"hash/maphash"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/mqtt-presence/presence/libs/presence"
)

// mosquittoDialect reads the log of Mosquitto (log_dest topic), which is all that it tells about its clients:
//
//	$SYS/broker/log/<level>   "<stamp>: <text>", one line a message, cut at 999 bytes; QoS 2, expires after 20 s
//	$SYS/broker/uptime        "37 seconds", every 10 s; retained
//	$SYS/broker/version       "mosquitto version 2.0.20"; retained
//
// It needs log_type notice and error (and information, to see a start at once), connection_messages true, and max_queued_messages 0.
var mosquittoDialect = &dialect{
	name: presence.DialectMosquitto20,
	filters: []filter{
		{topic: mosquittoLog + "#", qos: 2, events: true},
		{topic: mosquittoUptime, qos: 2},
		{topic: mosquittoVersion, qos: 2},
	},
	queueExpiry: 20 * time.Second,
	heartbeat:   10 * time.Second,
	profiles:    []string{presence.DialectMosquitto21},
	newDecoder:  func(c decoderConfig) decoder { return newMosquittoDecoder(c) },
}

const (
	mosquittoRoot    = "$SYS/broker/"
	mosquittoLog     = mosquittoRoot + "log/"
	mosquittoUptime  = mosquittoRoot + "uptime"
	mosquittoVersion = mosquittoRoot + "version"
	// mosquittoNode names the only node; Mosquitto has no clusters.
	mosquittoNode = "mosquitto"
	// cutLength is the length of a line that did not fit (lib/logging.c: char log_line[1000]).
	cutLength = 999
	// liveAfterMS is when uptimes count as live even though no retained one has come since the connection.
	liveAfterMS = 30_000

	peersRemembered      = 64 << 10
	addressIDsRemembered = 1 << 10
	// linesRemembered is as many as may come in the time after which the broker drops them at 3,000 a second.
	linesRemembered = 64 << 10
)

type mosquittoDecoder struct {
	cluster  string
	location *time.Location
	version  brokerVersion
	stamps   stampCounter
	arrivals arrivals // of lines without a stamp
	clock    skew
	step     *stepBack // that the line being read shows
	// tcp are the peers whose connection was announced by a TCP listener: listeners of libwebsockets announce none.
	tcp *peerSet
	// addressIDs are the peers of clients whose ID is their own address, which 2.1 also writes for connections without a CONNECT.
	addressIDs *peerSet
	// Heartbeats that the broker kept for the session are of unknown age. Its retained one comes after them.
	live        bool
	connectedMS int64
}

func newMosquittoDecoder(c decoderConfig) *mosquittoDecoder {
	return &mosquittoDecoder{cluster: c.cluster, location: c.location, tcp: newPeerSet(peersRemembered), addressIDs: newPeerSet(addressIDsRemembered)}
}

func (d *mosquittoDecoder) connected(s sessionStart) {
	d.stamps.connected(s)
	if !s.resumed || !s.complete {
		// What came of the peers that were announced may be lost, and their addresses come again.
		d.tcp = newPeerSet(peersRemembered)
	}
	d.live, d.connectedMS = !s.resumed, 0
}

func (d *mosquittoDecoder) subscribed(atMS int64) { d.stamps.subscribed(atMS) }

func (d *mosquittoDecoder) owns(m *message) bool {
	return strings.HasPrefix(m.topic, mosquittoRoot) && !strings.HasPrefix(m.topic, mosquittoState)
}

func (d *mosquittoDecoder) decode(m *message) decoded {
	if d.connectedMS == 0 {
		d.connectedMS = m.receivedMS
	}
	switch {
	case strings.HasPrefix(m.topic, mosquittoLog):
		d.step = nil
		result := d.line(m, strings.TrimPrefix(m.topic, mosquittoLog))
		result.stepBack, result.unnumbered = d.step, d.stamps.joined()
		return result
	case m.topic == mosquittoUptime:
		return d.uptime(m)
	case m.topic == mosquittoVersion:
		if v, ok := strings.CutPrefix(string(m.payload), "mosquitto version "); ok {
			d.version = parseVersion(v)
		}
		return ignore(ignoredVersion)
	}
	return ignore(ignoredOtherTopic)
}

func (d *mosquittoDecoder) uptime(m *message) decoded {
	text, ok := strings.CutSuffix(string(m.payload), " seconds")
	s, err := strconv.ParseInt(text, 10, 64)
	if !ok || err != nil || s < 0 || s > maxUptimeMS/1000 {
		// Other brokers write other units to this topic; whoever they are, this is not Mosquitto.
		return ignore(ignoredOtherTopic)
	}
	switch {
	case m.retain:
		d.live = true
		return ignore(ignoredRetained)
	case !d.live && m.receivedMS-d.connectedMS < liveAfterMS:
		return ignore(ignoredQueued)
	}
	return decoded{signal: &signal{
		kind: signalUptime, dialect: d.dialect(), node: mosquittoNode, ms: s * 1000, granularityMS: 1000, clockMS: d.clock.nodeTime(m.receivedMS),
	}}
}

func (d *mosquittoDecoder) keyed() bool { return d.version.known() && !d.version.before(2, 1, 1) }

func (d *mosquittoDecoder) dialect() string {
	if d.keyed() {
		return presence.DialectMosquitto21
	}
	return presence.DialectMosquitto20
}

// line reads one log line. Every line of whichever level counts for the order within its stamp.
func (d *mosquittoDecoder) line(m *message, level string) decoded {
	if m.retain {
		return ignore(ignoredRetained)
	}
	payload := string(m.payload)
	at, text := cutStamp(payload, d.location, m.receivedMS)
	var order uint32
	if at != 0 {
		// Only the stamps of clients' lines are compared. Mosquitto 2.0.11 may write its last lines, when it is stopped, with the stamp of the second before.
		if from, ok := d.stamps.setBack(at, payload, aboutClient(text)); ok {
			d.step = &stepBack{node: mosquittoNode, fromMS: from, toMS: at - 1}
			d.clock = skew{}
		}
		order = d.stamps.next(at, m.receivedMS)
		if d.live {
			d.clock.sample(at, m.receivedMS)
		}
	} else if stampUnknown(payload) {
		return deadLetter(deadTimestamp, fmt.Sprintf("log_timestamp_format of %.40q is neither epoch seconds nor ISO 8601", payload))
	} else {
		at, order = d.arrivals.next(m.receivedMS)
	}
	if level == "I" {
		return d.lifecycle(text, at)
	}
	if level != "N" && level != "E" {
		return ignore(ignoredLine)
	}
	if len(payload) >= cutLength && aboutClient(text) {
		return deadLetter(deadTruncated, "the line was cut at 999 bytes")
	}
	l := parseLine(text, d.lineFormat())
	switch {
	case l.dead != nil:
		return decoded{dead: l.dead}
	case l.kind == lineAccepted:
		d.tcp.add(l.peer)
		return ignore(ignoredLine)
	case l.kind == lineDropping:
		return decoded{signal: &signal{kind: signalLost, dialect: d.dialect(), clientID: l.clientID}}
	case l.kind == lineOpened:
		return d.fact(m, l, at, order)
	case l.kind == lineClosed:
		if l.clientID == "<unknown>" || l.keyed && strings.HasPrefix(l.peer, l.clientID+":") && !d.addressIDs.remove(l.peer) {
			return ignore(ignoredUnconnected)
		}
		return d.fact(m, l, at, order)
	}
	return ignore(ignoredLine)
}

// lineFormat says how to read a line that ends a connection.
func (d *mosquittoDecoder) lineFormat() lineFormat {
	switch {
	case !d.version.known():
		return formatUnknown
	case d.keyed():
		return formatKeyed
	}
	return formatUnkeyed
}

// lifecycle reads the lines of level information that the broker writes when it starts and stops.
func (d *mosquittoDecoder) lifecycle(text string, at int64) decoded {
	rest, ok := strings.CutPrefix(text, "mosquitto version ")
	if !ok {
		return ignore(ignoredLine)
	}
	if at <= 0 {
		return deadLetter(deadTimestamp, "the stamp is before 1970")
	}
	s := &signal{dialect: d.dialect(), node: mosquittoNode, ms: at, granularityMS: 1000, clockMS: at}
	switch {
	case strings.HasSuffix(rest, " starting"):
		d.version = parseVersion(rest)
		s.kind, s.dialect = signalStarted, d.dialect()
	case strings.HasSuffix(rest, " terminating"):
		s.kind = signalStopped
	default:
		return ignore(ignoredLine)
	}
	return decoded{signal: s}
}

func (d *mosquittoDecoder) fact(m *message, l line, at int64, order uint32) decoded {
	if !utf8.ValidString(l.clientID) {
		return deadLetter(deadClientID, fmt.Sprintf("client ID %.80q", l.clientID))
	}
	if l.clientID == "" {
		return deadLetter(deadEmptyID, "the line names an empty client ID")
	}
	if at <= 0 {
		return deadLetter(deadTimestamp, "the stamp is before 1970")
	}
	l.peer = strings.ToValidUTF8(l.peer, replacement)
	f := presence.Fact{
		Kind:       presence.Closed,
		Cluster:    d.cluster,
		ClientID:   l.clientID,
		Dialect:    d.dialect(),
		Node:       mosquittoNode,
		TimeMS:     at,
		Order:      order,
		ReceivedMS: m.receivedMS,
		Peer:       l.peer,
		Reason:     l.reason,
		RawReason:  strings.ToValidUTF8(l.rawReason, replacement),
	}
	if l.keyed {
		f.Dialect, f.Connection = presence.DialectMosquitto21, l.peer
	}
	if l.kind == lineOpened {
		f.Kind = presence.Opened
		f.Username = username(strings.ToValidUTF8(l.username, replacement))
		f.ProtocolVersion = l.protocol
		f.CleanStart = presence.Some(l.cleanStart)
		f.KeepAliveS = presence.Some(l.keepAliveS)
		if d.tcp.remove(l.peer) {
			f.Transport = "tcp"
		}
		if d.keyed() {
			f.Connection = l.peer
			if strings.HasPrefix(l.peer, l.clientID+":") {
				d.addressIDs.add(l.peer)
			}
		}
	}
	f.SetID()
	return decoded{facts: []presence.Fact{f}}
}

// stampCounter numbers the log lines within a stamp, which has whole seconds.
type stampCounter struct {
	latest  int64
	count   uint32
	counted bool // the session saw the stamp begin
	started bool
	last    int64 // of the line about a client before; 0: none
	past    int64 // last, of the connections before this one, until a line has reached it; 0: none
	lines   lineMemory
	sinceMS int64 // when the subscription began; 0: not yet; -1: lines from before it may come
}

// firstStampMS is how long after the subscription a line must come so that its stamp began after it: a line is at most a second older than
// the beginning of its stamp, and takes its time to come.
const firstStampMS = 2_000

func (c *stampCounter) connected(s sessionStart) {
	if !s.resumed || !s.complete {
		*c = stampCounter{}
	}
	if s.resumed {
		c.sinceMS = -1
	}
	c.past, c.last = max(c.past, c.last), 0
}

func (c *stampCounter) subscribed(atMS int64) {
	if c.sinceMS == 0 {
		c.sinceMS = atMS
	}
}

// setBack reports whether the stamp of the next line about a client shows that the clock was set back, and from when: the latest stamp of the session. One MQTT
// session keeps the order of lines, so that a stamp below the one before shows it, by however little: time has passed between the two. A broker that
// was killed, though, resumes the session as it was when it was saved: the first lines of a connection may be copies of what came before.
func (c *stampCounter) setBack(at int64, line string, client bool) (fromMS int64, ok bool) {
	if !client {
		return 0, false
	}
	switch {
	case at < c.last:
		ok = true
	case at < c.past:
		ok = !c.lines.has(line)
	}
	if ok || at >= c.past {
		c.past = 0
	}
	c.last = at
	c.lines.add(line)
	return c.latest, ok
}

// joined reports whether a session that is new, so that it continues nothing, joined within the latest stamp.
func (c *stampCounter) joined() bool { return c.started && !c.counted && c.sinceMS >= 0 }

// next returns the 1-based ordinal of a line, 0 if the session did not see its stamp begin. A stamp before the latest is one of a clock that
// was set back: which of its lines came before is not known.
func (c *stampCounter) next(at, receivedMS int64) uint32 {
	switch {
	case !c.started:
		c.started, c.latest = true, at
		c.counted = c.sinceMS > 0 && receivedMS >= c.sinceMS+firstStampMS
	case at > c.latest:
		c.latest, c.count, c.counted = at, 0, true
	case at < c.latest:
		return 0
	}
	if !c.counted {
		return 0
	}
	c.count++
	return c.count
}

// lineMemory remembers the latest lines, by their hashes.
type lineMemory struct {
	seed   maphash.Seed
	hashes []uint64
	next   int // to be replaced, once there are linesRemembered
	found  int // after the last one that was looked for and found: copies come in the order of their originals
}

func (m *lineMemory) add(line string) {
	if m.hashes == nil {
		m.seed = maphash.MakeSeed()
	}
	h := maphash.String(m.seed, line)
	if len(m.hashes) < linesRemembered {
		m.hashes = append(m.hashes, h)
		return
	}
	m.hashes[m.next] = h
	m.next = (m.next + 1) % linesRemembered
}

func (m *lineMemory) has(line string) bool {
	if m.hashes == nil {
		return false
	}
	h := maphash.String(m.seed, line)
	for i := range m.hashes {
		if at := (m.found + i) % len(m.hashes); m.hashes[at] == h {
			m.found = at + 1
			return true
		}
	}
	return false
}

// skew estimates how far the node's clock is from the bridge's, from stamps of whole seconds: each is late by up to a second and by the
// delivery, so the largest difference of the last one to two minutes is the nearest.
type skew struct {
	latest, before window
}

type window struct {
	sinceMS int64 // 0: no sample
	largest int64
}

const windowMS = 60_000

func (s *skew) sample(stampMS, receivedMS int64) {
	diff := stampMS - receivedMS
	if s.latest.sinceMS == 0 || receivedMS-s.latest.sinceMS >= windowMS {
		s.before, s.latest = s.latest, window{receivedMS, diff}
	}
	s.latest.largest = max(s.latest.largest, diff)
}

// nodeTime returns the node's clock at an instant of the bridge's, 0 if unknown. It is early rather than late, by what the stamps were late: a node
// that seems to have started later than it has would end the connections of its first second.
func (s *skew) nodeTime(ms int64) int64 {
	if s.latest.sinceMS == 0 {
		return 0
	}
	largest := s.latest.largest
	if s.before.sinceMS != 0 {
		largest = max(largest, s.before.largest)
	}
	return ms + largest
}

// peerSet remembers a bounded number of peers; the oldest goes first.
type peerSet struct {
	members map[string]int // by peer: its place in ring
	ring    []string
	size    int
	next    int
}

func newPeerSet(size int) *peerSet { return &peerSet{members: map[string]int{}, size: size} }

func (s *peerSet) add(peer string) {
	if len(s.ring) < s.size {
		s.ring = append(s.ring, "")
	}
	if old := s.ring[s.next]; s.members[old] == s.next {
		delete(s.members, old)
	}
	s.ring[s.next], s.members[peer] = peer, s.next
	s.next = (s.next + 1) % s.size
}

// remove reports whether the peer was a member.
func (s *peerSet) remove(peer string) bool {
	_, ok := s.members[peer]
	delete(s.members, peer)
	return ok
}
