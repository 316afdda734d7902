package eventlog_test

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/eventlog/eventlogtest"
	"github.com/mqtt-presence/presence/libs/service/servicetest"
)

// written is what was logged.
type written struct {
	mu  sync.Mutex
	out bytes.Buffer
}

func (w *written) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.out.Write(b)
}

// lines returns those that have all the texts.
func (w *written) lines(texts ...string) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var lines []string
next:
	for line := range strings.Lines(w.out.String()) {
		for _, text := range texts {
			if !strings.Contains(line, text) {
				continue next
			}
		}
		lines = append(lines, line)
	}
	return lines
}

func newWritten() (*written, *slog.Logger) {
	w := &written{}
	return w, slog.New(slog.NewTextHandler(w, nil))
}

// TestBrokerThatIsAway has several clients of one log ask a broker that is not there, again and again, until it is.
func TestBrokerThatIsAway(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	out, log := newWritten()
	shared := eventlog.NewClientLog(log)
	cfg := eventlog.DefaultConfig()
	cfg.Brokers = []string{addr}
	var clients []*kgo.Client
	for range 3 {
		opts, err := cfg.SharedOpts(shared)
		if err != nil {
			t.Fatal(err)
		}
		cl, err := kgo.NewClient(opts...)
		if err != nil {
			t.Fatal(err)
		}
		defer cl.Close()
		clients = append(clients, cl)
	}
	ping := func(cl *kgo.Client) error {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		return cl.Ping(ctx)
	}
	for range 5 {
		for _, cl := range clients {
			if err := ping(cl); err == nil {
				t.Fatal("a broker answers that is not there")
			}
		}
	}
	if got := out.lines("level=WARN"); len(got) != 1 || !strings.Contains(got[0], addr) || !strings.Contains(got[0], "refused") {
		t.Errorf("warnings: %q", got)
	}
	if got := out.lines("answers again"); len(got) != 0 {
		t.Errorf("it is back: %q", got)
	}

	port, err := strconv.Atoi(addr[strings.LastIndexByte(addr, ':')+1:])
	if err != nil {
		t.Fatal(err)
	}
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.Ports(port))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	for _, cl := range clients {
		servicetest.Eventually(t, 20*time.Second, func() error { return ping(cl) })
	}
	if got := out.lines("level=INFO", "answers again", addr); len(got) != 1 {
		t.Errorf("lines: %q", out.lines(""))
	}
}

// TestClientLogSummarises counts what it leaves out, and says of each broker once that it is away.
func TestClientLogSummarises(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out, log := newWritten()
		cfg := eventlog.DefaultConfig()
		cfg.Brokers = []string{"127.0.0.1:1"}
		shared := eventlog.NewClientLog(log)
		logger := eventlog.KafkaLogger(shared)
		refused := func(addr string) {
			logger.Log(kgo.LogLevelWarn, "unable to open connection to broker", "addr", addr, "err", "refused")
		}
		for range 600 { // a minute
			refused("a:1")
			refused("b:1")
			<-time.After(100 * time.Millisecond)
		}
		if a, b := out.lines("addr=a:1"), out.lines("addr=b:1"); len(a) == 0 || len(b) == 0 || len(a)+len(b) != 3 {
			t.Errorf("lines of a minute: %q", out.lines(""))
		}
		if got := out.lines("count=599"); len(got) != 1 {
			t.Errorf("the summary does not count: %q", out.lines(""))
		}
		// Another thing is said at once, and so is what was not said for long.
		logger.Log(kgo.LogLevelError, "group manage loop errored", "group", "g", "err", "no coordinator")
		<-time.After(time.Hour)
		refused("a:1")
		if got := out.lines(""); len(got) != 5 || !strings.Contains(got[3], "level=ERROR") {
			t.Errorf("lines: %q", got)
		}
		// Of what clients call info nothing is said; a broker that comes and goes is said to do so twice a minute.
		logger.Log(kgo.LogLevelInfo, "metadata update triggered")
		for range 60 {
			eventlog.Connected(shared, "a:1")
			refused("a:1")
			<-time.After(time.Second)
		}
		if got := out.lines(""); len(got) < 6 || len(got) > 10 {
			t.Errorf("%d lines: %q", len(got), got)
		}
	})
}

// TestOptsOfEachClient checks that clients log where they are told to.
func TestOptsOfEachClient(t *testing.T) {
	_, cfg := eventlogtest.NewCluster(t)
	out, log := newWritten()
	cfg.Brokers = []string{"127.0.0.1:1"}
	opts, err := cfg.Opts(log.With("component", "tested"))
	if err != nil {
		t.Fatal(err)
	}
	cl, err := kgo.NewClient(opts...)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	if err := cl.Ping(t.Context()); err == nil {
		t.Fatal("nobody is there, and answers")
	}
	if got := out.lines("level=WARN", "127.0.0.1:1", "component=tested"); len(got) != 1 {
		t.Errorf("lines: %q", out.lines(""))
	}
}
