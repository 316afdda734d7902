package query_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/eventlog/eventlogtest"
	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/libs/service/servicetest"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
	"github.com/mqtt-presence/presence/services/query"
	"github.com/mqtt-presence/presence/services/query/readertest"
)

// digesting is a StateService that a test looks into when a digest is asked for.
type digesting struct {
	*readertest.Fake
	before func(*presencev1.DigestStatesRequest)
}

func (d *digesting) DigestStates(req *presencev1.DigestStatesRequest, s grpc.ServerStreamingServer[presencev1.DigestStatesResponse]) error {
	if d.before != nil {
		d.before(req)
	}
	return d.Fake.DigestStates(req, s)
}

// comparedReplicas is a query service over two replicas with the same clients.
type comparedReplicas struct {
	*server
	a, b  *digesting
	facts []presence.Fact
}

func replicate(t *testing.T, clients int) *comparedReplicas {
	t.Helper()
	kafka := startKafka(t)
	w := &comparedReplicas{}
	var members []*materializer
	for i, d := range []**digesting{&w.a, &w.b} {
		*d = &digesting{Fake: readertest.NewFake(eventlogtest.Partitions)}
		members = append(members, joinAs(t, kafka, string(rune('a'+i)), (*d).Fake, *d))
	}
	_, facts := devices(clients)
	w.facts = facts
	for i, m := range members {
		settled(t, m)
		// Replicas batch as they like.
		for n := 0; n < len(facts); n += 7 + i {
			m.Apply(facts[n:min(n+7+i, len(facts))]...)
		}
	}
	r := startRouter(t, kafka, "a", "b")
	servicetest.Eventually(t, testTimeout, func() error {
		for replica := range 2 {
			for p := range int32(eventlogtest.Partitions) {
				if _, err := r.OwnerIn(replica, p); err != nil {
					return err
				}
			}
		}
		return nil
	})
	w.server = serve(t, testConfig(t), r)
	return w
}

func (w *comparedReplicas) compare(partitions ...int32) *presencev1.CompareReplicasResponse {
	w.t.Helper()
	answer, err := w.rpc.CompareReplicas(as(w.t, "admin"), &presencev1.CompareReplicasRequest{Partitions: partitions})
	if err != nil {
		w.t.Fatal(err)
	}
	return answer
}

func partitionOf(clientID string) int32 {
	return eventlog.Partition(eventlog.ClientKey("default", clientID), eventlogtest.Partitions)
}

func TestReplicasAreEqual(t *testing.T) {
	w := replicate(t, 200)
	answer := w.compare()
	clients := int64(0)
	for i, c := range answer.GetComparisons() {
		clients += c.GetClients()
		if c.GetPartition() != int32(i) || c.GetReplica() != "b" || c.GetReference() != "a" || !c.GetEqual() || c.GetError() != "" || c.GetFirstDifference() != nil ||
			c.GetDigest() == "" || c.GetDigest() != c.GetReferenceDigest() || c.GetClients() != c.GetReferenceClients() || c.GetOffset() != c.GetClients() {
			t.Errorf("%v", c)
		}
	}
	if !answer.GetOk() || len(answer.GetComparisons()) != eventlogtest.Partitions || clients != 200 {
		t.Errorf("%v", answer)
	}
	// REST says the same; one partition is asked for once, however often it is named.
	var over struct {
		OK          bool `json:"ok"`
		Comparisons []struct{ Partition int32 }
	}
	a := w.do("POST", "/v1/replicas:compare", "admin", `{"partitions":[2,2]}`)
	if err := json.Unmarshal([]byte(a.body), &over); err != nil || a.status != 200 || !over.OK || len(over.Comparisons) != 1 || over.Comparisons[0].Partition != 2 {
		t.Errorf("%d %s: %v", a.status, a.body, err)
	}
}

// One client that is another one's in one replica, that is missing in one, or too much in one, is named.
func TestReplicasDiffer(t *testing.T) {
	end := func(id string) presence.Fact { return readertest.Disconnected(readertest.Connected(id)) }
	for _, c := range []struct {
		name   string
		damage func(w *comparedReplicas)
		client string
		has    [2]bool // the reference, the replica
	}{
		{"changed", func(w *comparedReplicas) { w.b.Rewrite(end("dev77")) }, "dev77", [2]bool{true, true}},
		{"changed in the first", func(w *comparedReplicas) { w.a.Rewrite(end("dev78")) }, "dev78", [2]bool{true, true}},
		{"missing", func(w *comparedReplicas) { w.b.Lose("default", "dev5") }, "dev5", [2]bool{true, false}},
		{"too much", func(w *comparedReplicas) { w.b.Rewrite(readertest.Connected("zzz")) }, "zzz", [2]bool{false, true}},
		{"all missing", func(w *comparedReplicas) {
			for i := range 200 {
				w.b.Lose("default", fmt.Sprint("dev", i))
			}
		}, "", [2]bool{true, false}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := replicate(t, 200)
			c.damage(w)
			answer := w.compare()
			if answer.GetOk() {
				t.Fatal("they are equal")
			}
			for _, r := range answer.GetComparisons() {
				d := r.GetFirstDifference()
				if c.client != "" && r.GetPartition() != partitionOf(c.client) {
					if !r.GetEqual() || d != nil {
						t.Errorf("%v", r)
					}
					continue
				}
				if r.GetEqual() || r.GetError() != "" || r.GetDigest() == r.GetReferenceDigest() || d.GetCluster() != "default" || c.client != "" && d.GetClientId() != c.client ||
					[2]bool{d.GetReferenceDigest() != "", d.GetDigest() != ""} != c.has || d.GetDigest() == d.GetReferenceDigest() {
					t.Errorf("%v", r)
				}
			}
		})
	}
}

// Both replicas go on, each at its own pace: they are compared at one offset all the same.
func TestReplicasAreComparedUnderLoad(t *testing.T) {
	w := replicate(t, 50)
	w.b.Rewrite(readertest.Disconnected(readertest.Connected("dev7")))
	ctx, cancel := context.WithCancel(t.Context())
	var load sync.WaitGroup
	defer load.Wait()
	defer cancel()
	facts := make([]presence.Fact, 60_000)
	for i := range facts {
		facts[i] = readertest.Connected(fmt.Sprint("load", i))
	}
	for i, m := range []*digesting{w.a, w.b} {
		load.Go(func() {
			batch := 3 + 4*i
			tick := time.NewTicker(time.Duration(batch) * time.Millisecond)
			defer tick.Stop()
			for n := 0; n+batch <= len(facts) && ctx.Err() == nil; n += batch {
				m.Apply(facts[n : n+batch]...)
				<-tick.C
			}
		})
	}
	answer := w.compare()
	for _, c := range answer.GetComparisons() {
		if c.GetError() != "" || c.GetEqual() != (c.GetPartition() != partitionOf("dev7")) || !c.GetEqual() && c.GetFirstDifference().GetClientId() != "dev7" {
			t.Errorf("%v", c)
		}
	}
}

func TestReplicasThatDifferForAMoment(t *testing.T) {
	t.Run("it is gone when it is looked at", func(t *testing.T) {
		w := replicate(t, 50)
		lost := w.facts[9]
		w.b.Lose("default", "dev9")
		var once sync.Once
		w.b.before = func(req *presencev1.DigestStatesRequest) {
			if req.GetEach() {
				once.Do(func() { w.b.Rewrite(lost) })
			}
		}
		if answer := w.compare(); !answer.GetOk() {
			t.Errorf("%v", answer)
		}
	})
	t.Run("it is gone each time", func(t *testing.T) {
		w := replicate(t, 50)
		w.b.before = func(req *presencev1.DigestStatesRequest) {
			if w.b.Lose("default", "dev9"); req.GetEach() {
				w.b.Rewrite(w.facts[9])
			}
		}
		c := w.compare(partitionOf("dev9")).GetComparisons()[0]
		if c.GetEqual() || !strings.Contains(c.GetError(), "each time") || c.GetDigest() != "" || c.GetOffset() != 0 {
			t.Errorf("%v", c)
		}
	})
	t.Run("a clock that is behind", func(t *testing.T) {
		w := replicate(t, 50)
		w.a.SetClock(time.Now().Add(48 * time.Hour).UnixMilli())
		if answer := w.compare(); !answer.GetOk() || answer.GetComparisons()[0].GetClients() != 0 {
			t.Errorf("%v", answer)
		}
	})
	t.Run("rows that were restored from later on", func(t *testing.T) {
		w := replicate(t, 50)
		w.b.Lose("default", "dev9")
		p := partitionOf("dev9")
		asked := make(chan struct{}, 64)
		w.b.before = func(*presencev1.DigestStatesRequest) { asked <- struct{}{} }
		w.b.Restored(1000)
		done := make(chan *presencev1.CompareReplicasResponse, 1)
		go func() {
			answer, err := w.rpc.CompareReplicas(as(t, "admin"), &presencev1.CompareReplicasRequest{Partitions: []int32{p}})
			if err != nil {
				t.Error(err)
			}
			done <- answer
		}()
		<-asked
		var facts []presence.Fact
		for n := 0; len(facts) < 1200; n++ {
			if id := fmt.Sprint("later", n); partitionOf(id) == p {
				facts = append(facts, readertest.Connected(id))
			}
		}
		w.b.Rewrite(w.facts[9])
		w.a.Apply(facts...)
		w.b.Apply(facts...)
		c := (<-done).GetComparisons()[0]
		if !c.GetEqual() || c.GetOffset() < 1000 {
			t.Errorf("%v", c)
		}
	})
}

func TestReplicaIsAway(t *testing.T) {
	w := replicate(t, 20)
	w.b.Own()
	if began := time.Now(); len(w.compare().GetComparisons()) != eventlogtest.Partitions || time.Since(began) > 12*time.Second {
		t.Errorf("it took %v to find nobody", time.Since(began))
	}
	answer := w.compare(1)
	if c := answer.GetComparisons()[0]; answer.GetOk() || c.GetEqual() || !strings.Contains(c.GetError(), "partition 1 has no owner in replica b") || c.GetOffset() != 0 {
		t.Errorf("%v", c)
	}
}

func TestCompareReplicasRefuses(t *testing.T) {
	one := serve(t, testConfig(t), readertest.NewFake(2))
	_, err := one.rpc.CompareReplicas(as(t, "admin"), &presencev1.CompareReplicasRequest{})
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "--replicas") {
		t.Errorf("one replica: %v", err)
	}
	if a := one.do("POST", "/v1/replicas:compare", "admin", "{}"); a.status != 400 || !strings.Contains(a.body, "--replicas") {
		t.Errorf("one replica over REST: %d %s", a.status, a.body)
	}
	w := replicate(t, 5)
	for _, partitions := range [][]int32{{-1}, {0, eventlogtest.Partitions}, {1 << 30}} {
		if _, err := w.rpc.CompareReplicas(as(t, "admin"), &presencev1.CompareReplicasRequest{Partitions: partitions}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("partitions %v: %v", partitions, err)
		}
	}
	if a := w.do("POST", "/v1/replicas:compare", "read", "{}"); a.status != 403 {
		t.Errorf("without the permission: %d %s", a.status, a.body)
	}
	entered, leave := make(chan struct{}, 8), make(chan struct{})
	w.a.before = func(*presencev1.DigestStatesRequest) {
		entered <- struct{}{}
		<-leave
	}
	done := make(chan error, 1)
	go func() {
		_, err := w.rpc.CompareReplicas(as(t, "admin"), &presencev1.CompareReplicasRequest{Partitions: []int32{0}})
		done <- err
	}()
	<-entered
	_, err = w.rpc.CompareReplicas(as(t, "admin"), &presencev1.CompareReplicasRequest{})
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a second one: %v", err)
	}
	close(leave)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

var _ query.StateReader = (*query.Router)(nil)
