package materializer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/libs/service"
	"github.com/mqtt-presence/presence/libs/service/servicetest"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

func TestFoldsFactsIntoRows(t *testing.T) {
	l := newLog(t)
	l.node(started("n1", 0))
	l.facts(opened("a", "n1", 1000), opened("b", "n1", 2000))
	m := l.start(l.config(vfs.NewMem())).ready()
	if e := m.get("a", nil); e.GetStatus() != "online" || !e.GetFound() || e.GetConnection().GetUsername() != "fleet" {
		t.Errorf("a is %v", e)
	}
	last := l.facts(closedAt("a", "n1", 1000, 5000))
	if e := m.get("a", last); e.GetStatus() != "offline" || e.GetStatusReason() != "closed" || e.GetPreviousStatus() != "online" || e.GetReason() != "normal" {
		t.Errorf("a is %v", e)
	}
	if e := m.get("b", nil); e.GetStatus() != "online" {
		t.Errorf("b is %v", e)
	}
	if e := m.get("nobody", nil); e.GetFound() || e.GetStatus() != "unknown" || e.GetBelief() != "offline" || e.GetStatusReason() != "never_seen" {
		t.Errorf("nobody is %v", e)
	}
	m.published(l)
	if got, want := l.transitions("a"), []string{"online connected", "offline closed"}; !slices.Equal(got, want) {
		t.Errorf("transitions of a: %v, want %v", got, want)
	}
}

// Three connections within one batch: each transition is there.
func TestKeepsEveryTransitionOfABatch(t *testing.T) {
	l := newLog(t)
	l.facts(opened("a", "n1", 0), closedAt("a", "n1", 0, 10), opened("a", "n1", 20), opened("a", "n1", 30), closedAt("a", "n1", 20, 31), closedAt("a", "n1", 30, 40))
	m := l.start(l.config(vfs.NewMem())).ready()
	m.published(l)
	want := []string{"online connected", "offline closed", "online connected", "online connected", "offline closed"}
	if got := l.transitions("a"); !slices.Equal(got, want) {
		t.Errorf("transitions: %v, want %v", got, want)
	}
}

func TestGoesOnFromTheStoreAfterARestart(t *testing.T) {
	l := newLog(t)
	fs := vfs.NewMem()
	m := l.start(l.config(fs)).ready()
	last := l.facts(opened("a", "n1", 0), opened("b", "n1", 0), opened("c", "n1", 0))
	m.get("c", last)
	m.published(l)
	if err := m.stop(); err != nil {
		t.Fatal(err)
	}
	l.facts(closedAt("a", "n1", 0, 50))
	m = l.start(l.config(fs)).ready()
	if e := m.get("a", nil); e.GetStatus() != "offline" {
		t.Errorf("a is %v", e)
	}
	if e := m.get("b", nil); e.GetStatus() != "online" {
		t.Errorf("b is %v", e)
	}
	if n := testutil.ToFloat64(m.metrics.facts.WithLabelValues("applied", "connected")); n != 0 {
		t.Errorf("%v facts were folded again", n)
	}
	m.published(l)
	if n := len(l.transitions("a")); n != 2 {
		t.Errorf("a has %d transitions, want 2", n)
	}
}

func TestPoisonGoesToTheDeadLetters(t *testing.T) {
	l := newLog(t)
	good, other := opened("a", "n1", 0), opened("a", "n1", 0)
	bad := &kgo.Record{
		Topic: eventlog.TopicClientEvents, Key: eventlog.ClientKey("default", "a"), Value: []byte(`{"type":`), Timestamp: time.UnixMilli(t0),
		Headers: []kgo.RecordHeader{{Key: "trace", Value: []byte("1")}},
	}
	mismatch := eventlog.FactRecord(&other, eventlog.JSON)
	mismatch.Key = eventlog.ClientKey("default", "b")
	l.produce(bad, mismatch)
	l.produce(&kgo.Record{Topic: eventlog.TopicNodeEvents, Key: []byte("x"), Value: []byte("nonsense"), Timestamp: time.UnixMilli(t0)})
	m := l.start(l.config(vfs.NewMem())).ready()
	last := l.facts(good)
	if e := m.get("a", last); e.GetStatus() != "online" {
		t.Errorf("a is %v", e)
	}
	var got []string
	for _, d := range l.deadLetters(3) {
		got = append(got, fmt.Sprintf("%s %s %s", d.Source, d.Topic, d.Reason))
		if d.Topic == eventlog.TopicClientEvents && d.Reason == reasonBadRecord && (d.Offset != bad.Offset || d.Partition != bad.Partition || string(d.Payload) != `{"type":` || d.Cluster != "default") {
			t.Errorf("dead letter is %+v", d)
		}
		// A replay produces the record as it was.
		if d.Offset == bad.Offset && d.Partition == bad.Partition && d.Topic == bad.Topic && (string(d.Key) != string(bad.Key) || len(d.Headers) != 1 || d.Headers[0].Key != "trace" || d.ReceivedMS != t0) {
			t.Errorf("dead letter is %+v", d)
		}
	}
	slices.Sort(got)
	want := []string{"kafka presence.client-events.v1 bad_record", "kafka presence.client-events.v1 key_mismatch", "kafka presence.node-events.v1 bad_record"}
	if !slices.Equal(got, want) {
		t.Errorf("dead letters %v, want %v", got, want)
	}
	if e := m.get("b", nil); e.GetFound() {
		t.Errorf("b is %v", e)
	}
}

func TestSweepPublishesWhatANodeCauses_H10(t *testing.T) {
	l := newLog(t)
	var facts []presence.Fact
	for i := range 20 {
		facts = append(facts, opened(fmt.Sprintf("dev%d", i), "n1", 1000))
	}
	facts = append(facts, opened("elsewhere", "n2", 1000))
	m := l.start(l.config(vfs.NewMem())).ready()
	l.facts(facts...)
	m.caughtUp(l)
	l.node(started("n1", 5000))
	servicetest.Eventually(t, patience, func() error {
		if e := m.get("dev1", nil); e.GetStatus() != "offline" || e.GetStatusReason() != "node_restarted" {
			return fmt.Errorf("dev1 is %v", e)
		}
		return nil
	})
	servicetest.Eventually(t, patience, func() error {
		for i := range 20 {
			id := fmt.Sprintf("dev%d", i)
			if got := l.transitions(id); !slices.Equal(got, []string{"online connected", "offline node_restarted"}) {
				return fmt.Errorf("transitions of %s: %v", id, got)
			}
		}
		return nil
	})
	if got := l.transitions("elsewhere"); len(got) != 1 {
		t.Errorf("transitions of elsewhere: %v", got)
	}
	if e := m.get("dev1", nil); e.GetPreviousStatus() != "online" || e.GetTransitionTimeMs() != t0+5000 {
		t.Errorf("dev1 is %v", e)
	}
}

// A change of nodes while the materializer is down is swept at the next start.
func TestSweepIsMadeUpForAfterARestart(t *testing.T) {
	l := newLog(t)
	fs := vfs.NewMem()
	m := l.start(l.config(fs)).ready()
	m.get("dev", l.facts(opened("dev", "n1", 1000)))
	m.published(l)
	if err := m.stop(); err != nil {
		t.Fatal(err)
	}
	l.node(started("n1", 5000))
	m = l.start(l.config(fs)).ready()
	servicetest.Eventually(t, patience, func() error {
		if got := l.transitions("dev"); !slices.Equal(got, []string{"online connected", "offline node_restarted"}) {
			return fmt.Errorf("transitions: %v", got)
		}
		return nil
	})
	m.published(l)
}

func TestCheckpointFollowsStatesWithoutTransition(t *testing.T) {
	l := newLog(t)
	cfg := l.config(vfs.NewMem())
	cfg.CheckpointInterval = 50 * time.Millisecond
	m := l.start(cfg).ready()
	again := opened("a", "n1", 1000)
	again.ReceivedMS-- // another bridge had it first: the state changes, the status stays
	last := l.facts(opened("a", "n1", 1000), again)
	m.get("a", last)
	servicetest.Eventually(t, patience, func() error {
		states := l.states()
		i := slices.IndexFunc(states, func(s eventlog.ClientState) bool { return s.ClientID == "a" && !s.Transition })
		if i < 0 {
			return errors.New("no state without transition")
		}
		for _, s := range states[i:] {
			if s.Checkpoint && s.EventOffset == last.Offset+1 {
				return nil
			}
		}
		return errors.New("no checkpoint after it")
	})
	if e := m.get("a", nil); e.GetEventOffset() != last.Offset-1 {
		t.Errorf("the last transition is at %d, want %d", e.GetEventOffset(), last.Offset-1)
	}
}

func TestReadyOnlyAfterTheEndSeenAtTheStart(t *testing.T) {
	l := newLog(t)
	m, err := New(l.config(vfs.NewMem()), testLog(t), newRegistry())
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Ready(t.Context()); err == nil {
		t.Error("ready before the start")
	}
	var p progress
	p.start(3, 0, 10, t0)
	if p.read().ready {
		t.Error("ready at the start")
	}
	p.advance(9, 0)
	if p.read().ready {
		t.Error("ready before the end")
	}
	p.sawEnd(100, t0, t0)
	if p.advance(10, 0); !p.read().ready {
		t.Error("not ready at the end seen at the start")
	}
}

func TestMinOffset(t *testing.T) {
	l := newLog(t)
	m := l.start(l.config(vfs.NewMem())).ready()
	last := l.facts(opened("a", "n1", 0))
	m.get("a", last)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	next := last.Offset + 1
	req := &presencev1.GetStatesRequest{Cluster: "default", Keys: []*presencev1.StateKey{{ClientId: "a", MinOffset: &next}}}
	_, err := m.GetStates(ctx, req)
	s := status.Convert(err)
	if s.Code() != codes.FailedPrecondition || len(s.Details()) != 1 {
		t.Fatalf("error is %v", err)
	}
	if info, ok := s.Details()[0].(*errdetails.ErrorInfo); !ok || info.GetReason() != "MIN_OFFSET_NOT_REACHED" {
		t.Errorf("details are %v", s.Details())
	}
	// The one that waits gets its answer when the record is applied.
	answer := make(chan error, 1)
	go func() {
		resp, err := m.GetStates(t.Context(), req)
		if err == nil && resp.GetEntries()[0].GetStatus() != "offline" {
			err = fmt.Errorf("a is %v", resp.GetEntries()[0])
		}
		answer <- err
	}()
	l.facts(closedAt("a", "n1", 0, 10))
	select {
	case err := <-answer:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Error("no answer")
	}
}

func TestFreshnessOfAnIdlePartition(t *testing.T) {
	l := newLog(t)
	l.node(started("n1", 0))
	m := l.start(l.config(vfs.NewMem())).ready()
	last := l.facts(opened("a", "n1", 0))
	m.get("a", last)
	var first int64
	servicetest.Eventually(t, patience, func() error {
		resp, err := m.GetStates(t.Context(), &presencev1.GetStatesRequest{Cluster: "default", Keys: []*presencev1.StateKey{{ClientId: "a"}}})
		if err != nil {
			return err
		}
		f := resp.GetPartitions()[0]
		if f.GetAppliedOffset() != last.Offset+1 || f.GetEndOffset() != last.Offset+1 || !f.GetReady() || f.GetNodeAppliedOffset() != 1 || f.GetNodeEndOffset() != 1 || f.GetAppliedTimeMs() != t0+5 {
			return fmt.Errorf("freshness is %v", f)
		}
		if first == 0 {
			first = f.GetEndOffsetTimeMs()
		}
		if f.GetEndOffsetTimeMs() <= first {
			return fmt.Errorf("the end offset is from %d", f.GetEndOffsetTimeMs())
		}
		if h := resp.GetHealth(); len(h.GetNodes()) != 1 || h.GetNodes()[0].GetNode() != "n1" {
			return fmt.Errorf("health is %v", h)
		}
		return nil
	})
}

func TestServesOverGRPC(t *testing.T) {
	l := newLog(t)
	cfg := l.config(vfs.NewMem())
	cfg.NoServer, cfg.StateAddr = false, "127.0.0.1:0"
	m := l.start(cfg).ready()
	last := l.facts(opened("a", "n1", 0))
	conn, err := grpc.NewClient(m.StateAddr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	resp, err := presencev1.NewStateServiceClient(conn).GetStates(ctx, &presencev1.GetStatesRequest{
		Cluster: "default", Keys: []*presencev1.StateKey{{ClientId: "a", MinOffset: &last.Offset}, {ClientId: "日本"}},
	})
	if err != nil || len(resp.GetEntries()) != 2 || resp.GetEntries()[0].GetStatus() != "online" || resp.GetEntries()[1].GetFound() {
		t.Errorf("answer is %v, %v", resp, err)
	}
	if h, err := healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{Service: presencev1.StateService_ServiceDesc.ServiceName}); err != nil || h.GetStatus() != healthv1.HealthCheckResponse_SERVING {
		t.Errorf("health is %v, %v", h, err)
	}
	if _, err := presencev1.NewStateServiceClient(conn).GetStates(ctx, &presencev1.GetStatesRequest{Cluster: "default", Keys: []*presencev1.StateKey{{}}}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("error is %v", err)
	}
}

// The StateService gives away everything, so it wants a certificate of its callers.
func TestServesOverMutualTLS(t *testing.T) {
	l := newLog(t)
	authority, stranger := servicetest.NewAuthority(t), servicetest.NewAuthority(t)
	cfg := l.config(vfs.NewMem())
	cfg.NoServer, cfg.StateAddr = false, "127.0.0.1:0"
	cfg.StateTLS.ClientCAFile = authority.File
	cfg.StateTLS.CertFile, cfg.StateTLS.KeyFile = authority.Issue("materializer", time.Hour)
	m := l.start(cfg).ready()
	ask := func(client service.ClientTLS) error {
		config, err := client.Config()
		if err != nil {
			t.Fatal(err)
		}
		creds := insecure.NewCredentials()
		if config != nil {
			creds = credentials.NewTLS(config)
		}
		conn, err := grpc.NewClient(m.StateAddr().String(), grpc.WithTransportCredentials(creds))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		_, err = presencev1.NewStateServiceClient(conn).GetStates(ctx, &presencev1.GetStatesRequest{Cluster: "default"})
		return err
	}
	own, foreign := service.ClientTLS{Enabled: true, CAFile: authority.File}, service.ClientTLS{Enabled: true, CAFile: authority.File}
	own.CertFile, own.KeyFile = authority.Issue("query", time.Hour)
	foreign.CertFile, foreign.KeyFile = stranger.Issue("query", time.Hour)
	if err := ask(own); err != nil {
		t.Errorf("with a certificate: %v", err)
	}
	for name, client := range map[string]service.ClientTLS{"without TLS": {}, "without a certificate": {Enabled: true, CAFile: authority.File}, "a stranger": foreign} {
		if err := ask(client); status.Code(err) != codes.Unavailable {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestListensBeyondLoopbackOnlyIfAllowed(t *testing.T) {
	cfg := DefaultConfig()
	cfg.DataDir, cfg.Kafka.Brokers, cfg.StateAddr = "x", []string{"127.0.0.1:1"}, "0.0.0.0:8083"
	if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), "state-addr: 0.0.0.0:8083") || !strings.Contains(err.Error(), "--allow-insecure") {
		t.Errorf("got %v", err)
	}
	cfg.AllowInsecure = true
	if err := cfg.Validate(); err != nil {
		t.Error(err)
	}
	cfg.AllowInsecure = false
	authority := servicetest.NewAuthority(t)
	cfg.StateTLS.CertFile, cfg.StateTLS.KeyFile = authority.Issue("materializer", time.Hour)
	if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), "client certificates") {
		t.Errorf("got %v", err)
	}
	cfg.StateTLS.ClientCAFile = authority.File
	if err := cfg.Validate(); err != nil {
		t.Error(err)
	}
}

// runError runs a materializer that is expected to fail.
func runError(t *testing.T, cfg Config) error {
	t.Helper()
	m, err := New(cfg, testLog(t), newRegistry())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	return m.Run(ctx)
}

func TestLostFactsAreAnError(t *testing.T) {
	l := newLog(t)
	fs := vfs.NewMem()
	m := l.start(l.config(fs)).ready()
	last := l.facts(opened("a", "n1", 0))
	m.get("a", last)
	if err := m.stop(); err != nil {
		t.Fatal(err)
	}
	last = l.facts(closedAt("a", "n1", 0, 10), opened("a", "n1", 20))
	offsets := kadm.Offsets{}
	offsets.Add(kadm.Offset{Topic: last.Topic, Partition: last.Partition, At: last.Offset})
	if _, err := kadm.NewClient(l.client).DeleteRecords(t.Context(), offsets); err != nil {
		t.Fatal(err)
	}
	if err := runError(t, l.config(fs)); !errors.Is(err, errOutOfRange) {
		t.Errorf("error is %v", err)
	}
}

func TestRefusesAnotherKafka(t *testing.T) {
	fs := vfs.NewMem()
	l := newLog(t)
	m := l.start(l.config(fs)).ready()
	if err := m.stop(); err != nil {
		t.Fatal(err)
	}
	err := runError(t, newLog(t).config(fs))
	if err == nil || !strings.Contains(err.Error(), "belongs elsewhere") || strings.Count(err.Error(), "topic ID") != 4 {
		t.Errorf("error is %v", err)
	}
}

// Two groups that publish fence each other; that is found, and said.
func TestTwoPublishingGroupsAreAnError(t *testing.T) {
	l := newLog(t)
	a := l.config(vfs.NewMem())
	a.sessionTimeout = 500 * time.Millisecond
	b := a
	b.fs, b.Replica = vfs.NewMem(), "b"
	errs := make(chan error, 2)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for _, cfg := range []Config{a, b} {
		m, err := New(cfg, testLog(t), newRegistry())
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			err := m.Run(ctx)
			errs <- err
		}()
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for i := int64(0); ; i++ {
		select {
		case err := <-errs:
			if !errors.Is(err, errFenced) || !strings.Contains(err.Error(), "set publish to false") {
				t.Errorf("error is %v", err)
			}
			cancel()
			<-errs
			l.states()
			return
		case <-tick.C:
			l.facts(opened("a", "n1", 10*i), closedAt("a", "n1", 10*i, 10*i+5))
		}
	}
}

func TestReplicaThatDoesNotPublishHasTheSameRows(t *testing.T) {
	l := newLog(t)
	a, b := l.config(vfs.NewMem()), l.config(vfs.NewMem())
	b.Replica, b.Publish = "b", false
	l.facts(opened("a", "n1", 0), opened("b", "n1", 0), closedAt("b", "n1", 0, 10))
	mb := l.start(b).ready()
	last := l.facts(closedAt("a", "n1", 0, 50))
	if e := mb.get("a", last); e.GetStatus() != "offline" {
		t.Errorf("a is %v", e)
	}
	if n := len(l.states()); n != 0 {
		t.Errorf("%d records are published", n)
	}
	ma := l.start(a).ready()
	if x, y := ma.get("b", nil), mb.get("b", nil); x.GetStatus() != y.GetStatus() || x.GetEventOffset() != y.GetEventOffset() {
		t.Errorf("%v is not %v", x, y)
	}
	ma.published(l)
	if n := len(l.states()); n == 0 {
		t.Error("nothing is published")
	}
}
