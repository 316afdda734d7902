package query_test

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/mqtt-presence/presence/libs/service/servicetest"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
	"github.com/mqtt-presence/presence/services/query/readertest"
)

// notifying says when it is asked.
type notifying struct {
	*readertest.Fake
	asked chan struct{}
}

func (n notifying) GetStates(ctx context.Context, req *presencev1.GetStatesRequest) (*presencev1.GetStatesResponse, error) {
	n.asked <- struct{}{}
	return n.Fake.GetStates(ctx, req)
}

func TestStopsWithinThreeSecondsWhileRequestsWait(t *testing.T) {
	cfg := testConfig(t)
	cfg.RequestTimeout = time.Minute
	reader := notifying{readertest.NewFake(1), make(chan struct{}, 2)}
	s := serve(t, cfg, reader)
	var wg sync.WaitGroup
	wg.Go(func() {
		offset := int64(1)
		if _, err := s.rpc.GetClient(as(t, "read"), &presencev1.GetClientRequest{ClientId: "x", MinOffset: &offset}); err == nil {
			t.Error("a record that does not come was read over gRPC")
		}
	})
	wg.Go(func() {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url+"/v1/clients/x?min_offset=1", nil)
		if err != nil {
			t.Error(err)
			return
		}
		r.SetBasicAuth("read", password)
		if response, err := http.DefaultClient.Do(r); err == nil {
			t.Errorf("a record that does not come was read over REST: %v", response)
			if err := response.Body.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	<-reader.asked
	<-reader.asked
	began := time.Now()
	s.stop()
	select {
	case err := <-s.stopped:
		if took := time.Since(began); err != nil || took > 3*time.Second {
			t.Errorf("stopped after %v: %v", took, err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("did not stop within 10 s")
	}
	wg.Wait()
}

func TestStopsAtOnceWhenIdle(t *testing.T) {
	s := serve(t, testConfig(t), readertest.NewFake(1))
	// Both listeners have a connection that is kept alive.
	if a := s.do("GET", "/client-id/x/status", "connect", ""); a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	if _, err := s.rpc.GetStatus(as(t, "connect"), &presencev1.GetStatusRequest{ClientId: "x"}); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	s.stop()
	if err := <-s.stopped; err != nil || time.Since(began) > time.Second {
		t.Errorf("stopped after %v: %v", time.Since(began), err)
	}
}

func TestABusyPortIsAnErrorBeforeAnythingStarts(t *testing.T) {
	s := serve(t, testConfig(t), readertest.NewFake(1))
	cfg := testConfig(t)
	cfg.GRPCAddr = s.service.GRPCAddr().String()
	other := newService(t, cfg, readertest.NewFake(1))
	if err := other.Listen(); err == nil {
		t.Error("listened on a port in use")
	}
	if err := other.Ready(t.Context()); err == nil {
		t.Error("ready without listeners")
	}
	servicetest.Eventually(t, testTimeout, func() error {
		if err := s.service.Ready(t.Context()); err != nil {
			return fmt.Errorf("not ready: %w", err)
		}
		return nil
	})
}
