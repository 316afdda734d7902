package query_test

import (
	"context"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
	"github.com/mqtt-presence/presence/services/query/readertest"
)

// slowLists is a reader whose lists wait.
type slowLists struct {
	*readertest.Fake

	begun   chan struct{}
	release chan struct{}
}

func (r slowLists) ListStates(ctx context.Context, req *presencev1.ListStatesRequest) (*presencev1.ListStatesResponse, error) {
	r.begun <- struct{}{}
	select {
	case <-r.release:
	case <-ctx.Done():
	}
	return r.Fake.ListStates(ctx, req)
}

// Lists wait for one another; who asks for one client waits for none of them, and one account does not take the others' places.
func TestListsTakeTurns(t *testing.T) {
	r := slowLists{readertest.NewFake(1), make(chan struct{}, 100), make(chan struct{})}
	cfg := testConfig(t)
	cfg.RequestTimeout = testTimeout
	s := serve(t, cfg, r)
	var wg sync.WaitGroup
	list := func(account string) error {
		_, err := s.rpc.ListClients(as(t, account), &presencev1.ListClientsRequest{})
		return err
	}
	refused := make(chan error, 20)
	for range 20 {
		wg.Go(func() {
			if err := list("read"); err != nil {
				refused <- err
			}
		})
	}
	// 16 are under way, whatever waits.
	for range 4 {
		if err := <-refused; status.Code(err) != codes.ResourceExhausted {
			t.Errorf("a list too many: %v", err)
		}
	}
	wg.Go(func() {
		if err := list("both"); err != nil {
			t.Errorf("another account: %v", err)
		}
	})
	<-r.begun
	if _, err := s.rpc.GetStatus(as(t, "connect"), &presencev1.GetStatusRequest{ClientId: "dev1"}); err != nil {
		t.Errorf("beside lists: %v", err)
	}
	close(r.release)
	wg.Wait()
	select {
	case err := <-refused:
		t.Errorf("one of the 16: %v", err)
	default:
	}
	if err := list("read"); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}
