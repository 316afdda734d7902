package eventlog

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/service"
)

const (
	// repeatAfter is the time from a warning of Kafka's clients to the next of the same words.
	repeatAfter = 30 * time.Second
	// maxSayings bounds the warnings, and the subjects of each, that are remembered.
	maxSayings = 64
)

// ClientLog is where Kafka clients log. All clients of a service may share one: what many of them have to say again and again, such as that a broker
// does not let them connect, is a warning for each broker once, and then one every 30 seconds with their number, and an info when the broker answers
// again. What the clients call info is our debug.
type ClientLog struct {
	log *slog.Logger

	mu   sync.Mutex
	said map[string]*saying // by message
	away map[string]*outage // by host:port
}

// saying is a message that was logged.
type saying struct {
	last     time.Time
	left     int                  // how often it was not logged since
	subjects map[string]time.Time // of what it was logged, and when last
}

// outage is one of a broker.
type outage struct {
	since    time.Time
	attempts int
	said     bool
}

// NewClientLog returns a log that writes to the given one.
func NewClientLog(log *slog.Logger) *ClientLog {
	return &ClientLog{log: log, said: map[string]*saying{}, away: map[string]*outage{}}
}

// opts has a client log here.
func (l *ClientLog) opts() []kgo.Opt {
	return []kgo.Opt{kgo.WithLogger(kafkaLogger{l}), kgo.WithHooks(kafkaHooks{l})}
}

// warn logs a message of warning or error, unless it was logged lately.
func (l *ClientLog) warn(level slog.Level, msg string, keyvals []any) {
	addr, subject := subjectOf(keyvals)
	l.mu.Lock()
	left, ok := l.due(msg, subject, time.Now())
	if ok && addr {
		l.outage(subject).said = true
	}
	l.mu.Unlock()
	if !ok {
		return
	}
	if left > 0 {
		keyvals = append(keyvals[:len(keyvals):len(keyvals)], service.KeyCount, left+1)
	}
	l.log.Log(context.Background(), level, "kafka: "+msg, keyvals...)
}

// due reports whether a message is to be logged now, and how often it was not since the last time. The caller holds mu.
func (l *ClientLog) due(msg, subject string, now time.Time) (left int, ok bool) {
	s := l.said[msg]
	if s == nil {
		if len(l.said) == maxSayings {
			clear(l.said)
		}
		s = &saying{subjects: map[string]time.Time{}}
		l.said[msg] = s
	}
	if _, before := s.subjects[subject]; before && now.Sub(s.last) < repeatAfter {
		s.left++
		return 0, false
	} else if !before && len(s.subjects) == maxSayings {
		clear(s.subjects)
	}
	left, s.last, s.left, s.subjects[subject] = s.left, now, 0, now
	return left, true
}

// outage returns the outage of a broker, which begins now if there is none. The caller holds mu.
func (l *ClientLog) outage(addr string) *outage {
	o := l.away[addr]
	if o == nil {
		o = &outage{since: time.Now()}
		l.away[addr] = o
	}
	return o
}

// refused notes that a broker did not let a client connect.
func (l *ClientLog) refused(addr string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.outage(addr).attempts++
}

// connected notes that a broker let a client connect, and answered it.
func (l *ClientLog) connected(addr string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	o := l.away[addr]
	if o == nil {
		return
	}
	delete(l.away, addr)
	now := time.Now()
	for _, s := range l.said {
		// One that comes and goes is said to be away twice a minute.
		if now.Sub(s.subjects[addr]) >= repeatAfter {
			delete(s.subjects, addr)
		}
	}
	if o.said {
		l.log.Info("kafka: the broker answers again", service.KeyAddr, addr, service.KeyDuration, now.Sub(o.since), service.KeyCount, o.attempts)
	}
}

// subjectOf returns what a message of a client is about, as far as one of each is worth a line of its own, and whether that is a broker's address.
func subjectOf(keyvals []any) (addr bool, subject string) {
	for i := 0; i+1 < len(keyvals); i += 2 {
		switch key := keyvals[i]; key {
		case "addr", "topic", "group":
			if s, ok := keyvals[i+1].(string); ok {
				return key == "addr", s
			}
		}
	}
	return false, ""
}

// kafkaLogger is what a client logs to.
type kafkaLogger struct{ l *ClientLog }

// Level implements kgo.Logger.
func (k kafkaLogger) Level() kgo.LogLevel {
	ctx := context.Background()
	switch {
	case k.l.log.Enabled(ctx, slog.LevelDebug):
		return kgo.LogLevelInfo
	case k.l.log.Enabled(ctx, slog.LevelWarn):
		return kgo.LogLevelWarn
	}
	return kgo.LogLevelError
}

// Log implements kgo.Logger.
func (k kafkaLogger) Log(level kgo.LogLevel, msg string, keyvals ...any) {
	switch level {
	case kgo.LogLevelError:
		k.l.warn(slog.LevelError, msg, keyvals)
	case kgo.LogLevelWarn:
		k.l.warn(slog.LevelWarn, msg, keyvals)
	case kgo.LogLevelNone, kgo.LogLevelInfo, kgo.LogLevelDebug:
		k.l.log.Log(context.Background(), slog.LevelDebug, "kafka: "+msg, keyvals...)
	}
}

// kafkaHooks tells which brokers let a client connect.
type kafkaHooks struct{ l *ClientLog }

var _ kgo.HookBrokerConnect = kafkaHooks{}

// OnBrokerConnect implements kgo.HookBrokerConnect. It is called when the broker has answered the first requests, too.
func (k kafkaHooks) OnBrokerConnect(meta kgo.BrokerMetadata, _ time.Duration, _ net.Conn, err error) {
	addr := net.JoinHostPort(meta.Host, strconv.Itoa(int(meta.Port)))
	switch {
	case err == nil:
		k.l.connected(addr)
	case !errors.Is(err, context.Canceled) && !errors.Is(err, kgo.ErrClientClosed):
		k.l.refused(addr)
	}
}
