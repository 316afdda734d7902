package query_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
	"github.com/mqtt-presence/presence/services/query/readertest"
)

// usernames is a reader whose usernames are made up.
type usernames struct {
	*readertest.Fake
	list func(ctx context.Context, req *presencev1.ListUsernamesRequest) (*presencev1.ListUsernamesResponse, error)
}

func (u usernames) ListUsernames(ctx context.Context, req *presencev1.ListUsernamesRequest) (*presencev1.ListUsernamesResponse, error) {
	answer, err := u.Fake.ListUsernames(ctx, req)
	if err != nil {
		return nil, err
	}
	made, err := u.list(ctx, req)
	if err == nil {
		answer.Usernames, answer.End = made.GetUsernames(), made.GetEnd()
	}
	return answer, err
}

func TestTooManyUsernames(t *testing.T) {
	one := &presencev1.StateUsername{Username: "a", Clients: 1}
	page := 0
	s := serve(t, testConfig(t), usernames{readertest.NewFake(1), func(context.Context, *presencev1.ListUsernamesRequest) (*presencev1.ListUsernamesResponse, error) {
		names := make([]*presencev1.StateUsername, 100_000)
		for i := range names {
			names[i] = one
		}
		page++
		names[len(names)-1] = &presencev1.StateUsername{Username: fmt.Sprintf("b%09d", page), Clients: 1}
		return &presencev1.ListUsernamesResponse{Usernames: names}, nil
	}})
	a := s.do("GET", "/v1/stats?page_size=1", "read", "")
	if a.status != 400 || fieldOf(t, a) != "skip_usernames" || !strings.Contains(a.body, "5000000") {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := s.do("GET", "/v1/stats?skip_usernames=true", "read", ""); a.status != 200 {
		t.Errorf("%d %s", a.status, a.body)
	}
}

// A list that does not move would be read for ever.
func TestUsernamesWithoutProgress(t *testing.T) {
	s := serve(t, testConfig(t), usernames{readertest.NewFake(1), func(context.Context, *presencev1.ListUsernamesRequest) (*presencev1.ListUsernamesResponse, error) {
		return &presencev1.ListUsernamesResponse{Usernames: []*presencev1.StateUsername{{Username: "a", Clients: 1}}}, nil
	}})
	if _, err := s.rpc.GetStats(as(t, "read"), &presencev1.GetStatsRequest{}); status.Code(err) != codes.Internal {
		t.Error(err)
	}
}

// Rankings that wait do not pile up, and hinder nobody who does not ask for one.
func TestRankingsAtATime(t *testing.T) {
	began, end := make(chan struct{}, 3), make(chan struct{})
	s := serve(t, testConfig(t), usernames{readertest.NewFake(1), func(ctx context.Context, _ *presencev1.ListUsernamesRequest) (*presencev1.ListUsernamesResponse, error) {
		began <- struct{}{}
		select {
		case <-end:
		case <-ctx.Done():
		}
		return &presencev1.ListUsernamesResponse{End: true}, nil
	}})
	done := make(chan error, 2)
	for range 2 {
		go func() { done <- second(s.rpc.GetStats(as(t, "read"), &presencev1.GetStatsRequest{})) }()
		<-began
	}
	at := time.Now()
	a := s.do("GET", "/v1/stats", "read", "")
	if a.status != 429 || a.header.Get("Retry-After") == "" || !strings.Contains(a.body, "skip_usernames") || time.Since(at) > 4*time.Second {
		t.Errorf("after %v: %d %s", time.Since(at), a.status, a.body)
	}
	if a := s.do("GET", "/v1/stats?skip_usernames=true", "read", ""); a.status != 200 {
		t.Errorf("%d %s", a.status, a.body)
	}
	close(end)
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if a := s.do("GET", "/v1/stats", "read", ""); a.status != 200 {
		t.Errorf("%d %s", a.status, a.body)
	}
}
