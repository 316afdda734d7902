package materializer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/eventlog/eventlogtest"
	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/libs/service/servicetest"
	"github.com/mqtt-presence/presence/services/materializer/store"
)

// failing answers requests of one kind as fail says, until it is lifted; a nil response and error lets them through. It counts those it has failed.
func (l *log) failing(key kmsg.Key, fail func(kmsg.Request) (kmsg.Response, error)) (failed *atomic.Int64, lift func()) {
	var lifted atomic.Bool
	failed = new(atomic.Int64)
	l.cluster.ControlKey(int16(key), func(req kmsg.Request) (kmsg.Response, error, bool) {
		l.cluster.KeepControl()
		if lifted.Load() {
			return nil, nil, false
		}
		resp, err := fail(req)
		if resp == nil && err == nil {
			return nil, nil, false
		}
		failed.Add(1)
		return resp, err, true
	})
	return failed, func() { lifted.Store(true) }
}

// atLeast waits until a count has been reached.
func atLeast(t *testing.T, n *atomic.Int64, want int64) {
	t.Helper()
	servicetest.Eventually(t, patience, func() error {
		if got := n.Load(); got < want {
			return fmt.Errorf("%d requests, want %d", got, want)
		}
		return nil
	})
}

func errInitProducer(err *kerr.Error) func(kmsg.Request) (kmsg.Response, error) {
	return func(req kmsg.Request) (kmsg.Response, error) {
		if req.(*kmsg.InitProducerIDRequest).TransactionalID == nil {
			return nil, nil
		}
		resp := req.ResponseKind().(*kmsg.InitProducerIDResponse)
		resp.ErrorCode = err.Code
		return resp, nil
	}
}

// A Kafka that lets no publisher begin holds a partition up, and ends nothing.
func TestAcquisitionIsTriedAgain(t *testing.T) {
	for _, tc := range []struct {
		name string
		key  kmsg.Key
		fail func(kmsg.Request) (kmsg.Response, error)
	}{
		{"no producer ID, cut", kmsg.InitProducerID, func(req kmsg.Request) (kmsg.Response, error) {
			if req.(*kmsg.InitProducerIDRequest).TransactionalID == nil {
				return nil, nil
			}
			return nil, errors.New("cut")
		}},
		{"too few replicas", kmsg.InitProducerID, errInitProducer(kerr.NotEnoughReplicas)},
		{"unknown producer", kmsg.InitProducerID, errInitProducer(kerr.UnknownProducerID)},
		{"no offsets", kmsg.ListOffsets, func(req kmsg.Request) (kmsg.Response, error) {
			r := req.(*kmsg.ListOffsetsRequest)
			if r.Topics[0].Topic != eventlog.TopicClientEvents {
				return nil, nil
			}
			return nil, errors.New("cut")
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newLog(t)
			failed, lift := l.failing(tc.key, tc.fail)
			m := l.start(l.config(vfs.NewMem()))
			atLeast(t, failed, 6)
			if err := m.Ready(t.Context()); err == nil {
				t.Error("ready")
			}
			lift()
			last := l.facts(opened("a", "n1", 0))
			m.ready().get("a", last)
			m.published(l)
			if got := l.transitions("a"); !slices.Equal(got, []string{"online connected"}) {
				t.Errorf("transitions: %v", got)
			}
		})
	}
}

// What a person must mend ends the process, and says so.
func TestWhatIsNotAllowedEnds(t *testing.T) {
	l := newLog(t)
	l.failing(kmsg.InitProducerID, errInitProducer(kerr.TransactionalIDAuthorizationFailed))
	if err := runError(t, l.config(vfs.NewMem())); !errors.Is(err, kerr.TransactionalIDAuthorizationFailed) {
		t.Errorf("error is %v", err)
	}
}

// A transaction of which Kafka knows no more is no fencing: a new publisher begins at once, and nothing is lost or published as something else.
func TestLostTransactionIsPublishedAnew(t *testing.T) {
	for _, lost := range []*kerr.Error{kerr.InvalidTxnState, kerr.UnknownProducerID, kerr.InvalidProducerIDMapping} {
		t.Run(lost.Message, func(t *testing.T) {
			l := newLog(t)
			cfg := l.config(vfs.NewMem())
			cfg.sessionTimeout = 2 * patience // who waited for the group's decision would be too late
			m := l.start(cfg).ready()
			l.facts(opened("a", "n1", 0))
			m.published(l)
			failed, lift := l.failing(kmsg.EndTxn, func(req kmsg.Request) (kmsg.Response, error) {
				resp := req.ResponseKind().(*kmsg.EndTxnResponse)
				resp.ErrorCode = lost.Code
				return resp, nil
			})
			last := l.facts(closedAt("a", "n1", 0, 10), opened("a", "n1", 20))
			atLeast(t, failed, 1)
			// Rows are read all the while.
			if e := m.get("a", nil); e.GetStatus() == "unknown" {
				t.Errorf("a is %v", e)
			}
			lift()
			m.get("a", last)
			m.published(l)
			if got := l.transitions("a"); !slices.Equal(got, []string{"online connected", "offline closed", "online connected"}) {
				t.Errorf("transitions: %v", got)
			}
			if n := testutil.ToFloat64(m.metrics.fenced); n != 0 {
				t.Errorf("fenced %v times", n)
			}
			if n := testutil.ToFloat64(m.metrics.interrupted); n == 0 {
				t.Error("no interruption is counted")
			}
		})
	}
}

// A Kafka that is not there yet is waited for.
func TestWaitsForKafka(t *testing.T) {
	l := newLog(t)
	failed, lift := l.failing(kmsg.Metadata, func(kmsg.Request) (kmsg.Response, error) { return nil, errors.New("cut") })
	m := l.start(l.config(vfs.NewMem()))
	atLeast(t, failed, 3)
	servicetest.Eventually(t, patience, func() error {
		if err := m.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "waits for kafka") {
			return fmt.Errorf("ready: %w", err)
		}
		return nil
	})
	lift()
	m.ready()
}

// While the group does not answer, its partitions are read as they were, and who asks is told how old that is.
func TestLostPartitionsAreRead(t *testing.T) {
	l := newLog(t)
	cfg := l.config(vfs.NewMem())
	m := l.start(cfg).ready()
	last := l.facts(opened("a", "n1", 0))
	m.get("a", last)
	m.published(l)
	lose := func(kmsg.Request) (kmsg.Response, error) { return nil, errors.New("cut") }
	_, liftBeats := l.failing(kmsg.Heartbeat, lose)
	joins, liftJoins := l.failing(kmsg.JoinGroup, lose)
	atLeast(t, joins, 1)
	servicetest.Eventually(t, patience, func() error {
		if err := m.Ready(t.Context()); err == nil {
			return errors.New("ready")
		}
		return nil
	})
	if e := m.get("a", nil); e.GetStatus() != "online" {
		t.Errorf("a is %v", e)
	}
	liftBeats()
	liftJoins()
	m.ready().get("a", l.facts(closedAt("a", "n1", 0, 10)))
	m.published(l)
	// Another that joins takes half of them: those are not read here any more.
	b := l.config(vfs.NewMem())
	b.StateAdvertise = "127.0.0.1:3"
	l.start(b).ready()
	l.own(m, 2)
	if got := l.transitions("a"); !slices.Equal(got, []string{"online connected", "offline closed"}) {
		t.Errorf("transitions: %v", got)
	}
}

// The membership goes to a request of the process itself that was answered late: it is taken again. Then another process joins under the same name: one
// of them ends and says so.
func TestMembershipThatIsGivenAway(t *testing.T) {
	l := newLog(t)
	cfg := l.config(vfs.NewMem())
	m := l.start(cfg).ready()
	last := l.facts(opened("a", "n1", 0))
	m.get("a", last)
	thief := l.thief(cfg)
	before := m.owned()
	joined := make(chan struct{})
	go func() {
		defer close(joined)
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		thief.PollFetches(ctx)
	}()
	<-joined
	thief.CloseAllowingRebalance()
	servicetest.Eventually(t, patience, func() error {
		for id, p := range m.owned() {
			if p == before[id] {
				return fmt.Errorf("partition %d was not lost", id)
			}
		}
		return m.Ready(t.Context())
	})
	m.get("a", l.facts(closedAt("a", "n1", 0, 10)))

	if err := m.stop(); err != nil {
		t.Fatal(err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	errs := make(chan error, 2)
	for range 2 {
		cfg.fs = vfs.NewMem()
		m, err := New(cfg, testLog(t), newRegistry())
		if err != nil {
			t.Fatal(err)
		}
		go func() { errs <- m.Run(ctx) }()
	}
	select {
	case err := <-errs:
		if err == nil || !strings.Contains(err.Error(), "state-advertise") || !errors.Is(err, kerr.FencedInstanceID) {
			t.Errorf("error is %v", err)
		}
	case <-time.After(3 * patience):
		t.Error("two processes of one name take the membership from each other in silence")
	}
	cancel()
	<-errs
}

// thief is a client that joins as the member of a process.
func (l *log) thief(cfg Config) *kgo.Client {
	return eventlogtest.NewClient(l.t, l.cfg, kgo.ConsumerGroup(cfg.group()), kgo.InstanceID(cfg.instance()), kgo.SessionTimeout(cfg.session()),
		kgo.HeartbeatInterval(cfg.session()/5), kgo.Balancers(kgo.CooperativeStickyBalancer()), kgo.ConsumeTopics(eventlog.TopicClientEvents), kgo.DisableAutoCommit())
}

// What is read of client-state ahead of the offset says nothing of how far the partition is.
func TestAppliedTimeIsOfFactsBelowTheOffset(t *testing.T) {
	l := newLog(t)
	fs := vfs.NewMem()
	m := l.start(l.config(fs)).ready()
	first, later := opened("a", "n1", 0), opened("a", "n1", 50_000)
	last := l.facts(first)
	m.get("a", last)
	m.published(l)
	if err := m.stop(); err != nil {
		t.Fatal(err)
	}
	l.foreign(last.Partition, stateOf(presence.Online, presence.Online, store.Version{Event: last.Offset + 5, Node: -1}, true, first, later))
	m = l.start(l.config(fs)).ready()
	if e := m.get("a", nil); e.GetEventOffset() != last.Offset+5 {
		t.Errorf("the later state is not read: %v", e)
	}
	if f := m.owned()[last.Partition].progress.read(); f.next != last.Offset+1 || f.appliedMS != first.ReceivedMS {
		t.Errorf("next offset %d, applied time %d; want %d, %d", f.next, f.appliedMS-t0, last.Offset+1, first.ReceivedMS-t0)
	}
}

// What a Kafka that is away interrupts is told once, however often it is tried again, and so is that it is back.
func TestOutageIsToldOnce(t *testing.T) {
	l := newLog(t)
	out := &written{}
	m := l.startLogging(l.config(vfs.NewMem()), loggingTo(out)).ready()
	m.get("a", l.facts(opened("a", "n1", 0)))
	cut := func(kmsg.Request) (kmsg.Response, error) { return nil, errors.New("cut") }
	lifts := make([]func(), 0, 4)
	var joins *atomic.Int64
	for _, key := range []kmsg.Key{kmsg.Heartbeat, kmsg.JoinGroup, kmsg.ListOffsets, kmsg.InitProducerID} {
		failed, lift := l.failing(key, cut)
		lifts = append(lifts, lift)
		if key == kmsg.JoinGroup {
			joins = failed
		}
	}
	atLeast(t, joins, 1)
	servicetest.Eventually(t, patience, func() error {
		if len(out.lines("kafka is away: answers are stale")) == 0 {
			return errors.New("it is not said that kafka is away")
		}
		return nil
	})
	atLeast(t, joins, joins.Load()+2)
	if got := out.lines("kafka is back"); len(got) != 0 {
		t.Errorf("it is not: %q", got)
	}
	for _, lift := range lifts {
		lift()
	}
	m.ready()
	servicetest.Eventually(t, patience, func() error {
		if len(out.lines("kafka is back")) == 0 {
			return errors.New("it is not said that kafka is back")
		}
		return nil
	})
	for _, what := range []string{"kafka is away", "kafka is back", "partitions are interrupted"} {
		if got := out.lines(what); len(got) > 1 {
			t.Errorf("%d lines: %q", len(got), got)
		}
	}
	m.get("a", l.facts(closedAt("a", "n1", 0, 10)))
	m.published(l)
}

// The group's offsets are how far the partitions are, also though the member itself fetches nothing; a refusal is told once, and ends nothing.
func TestProgressIsReported(t *testing.T) {
	l := newLog(t)
	out := &written{}
	cfg := l.config(vfs.NewMem())
	failed, lift := l.failing(kmsg.OffsetCommit, func(req kmsg.Request) (kmsg.Response, error) {
		r := req.(*kmsg.OffsetCommitRequest)
		resp := r.ResponseKind().(*kmsg.OffsetCommitResponse)
		for _, t := range r.Topics {
			topic := kmsg.NewOffsetCommitResponseTopic()
			topic.Topic, topic.TopicID = t.Topic, t.TopicID
			for _, p := range t.Partitions {
				part := kmsg.NewOffsetCommitResponseTopicPartition()
				part.Partition, part.ErrorCode = p.Partition, kerr.TopicAuthorizationFailed.Code
				topic.Partitions = append(topic.Partitions, part)
			}
			resp.Topics = append(resp.Topics, topic)
		}
		return resp, nil
	})
	m := l.startLogging(cfg, loggingTo(out)).ready()
	last := l.facts(opened("a", "n1", 0))
	m.get("a", last)
	// Another member takes half of the partitions.
	other := l.config(vfs.NewMem())
	other.StateAdvertise = "127.0.0.1:3"
	l.start(other).ready()
	l.own(m, 2)
	atLeast(t, failed, failed.Load()+3)
	lift()
	adm := kadm.NewClient(l.client)
	servicetest.Eventually(t, patience, func() error {
		offsets, err := adm.FetchOffsets(t.Context(), cfg.group())
		if err != nil {
			return err
		}
		if o, ok := offsets.Lookup(eventlog.TopicClientEvents, last.Partition); !ok || o.At != last.Offset+1 {
			return fmt.Errorf("the group is at %+v, want %d", o.Offset, last.Offset+1)
		}
		return nil
	})
	if got := out.lines("progress is not reported"); len(got) != 1 || !strings.Contains(got[0], "TOPIC_AUTHORIZATION_FAILED") {
		t.Errorf("refusals: %q", got)
	}
	if got := out.lines("kafka: "); len(got) != 0 {
		t.Errorf("the client complains: %q", got)
	}
}
