package query

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/prometheus/client_golang/prometheus"
)

func TestBucket(t *testing.T) {
	l := newRateLimit("account", 2, 4)
	var b bucket
	now := time.Unix(1_000, 0)
	take := func(n float64, left float64, wait time.Duration) {
		t.Helper()
		if q := l.take(&b, now, n); math.Abs(q.left-left) > 1e-9 || (q.wait-wait).Abs() > time.Microsecond {
			t.Errorf("after %v: %+v, want %v left and a wait of %v", n, q, left, wait)
		}
	}
	take(1, 3, 0)
	take(3, 0, 0)
	take(1, 0, 500*time.Millisecond)
	now = now.Add(250 * time.Millisecond)
	take(1, .5, 250*time.Millisecond) // a refusal takes nothing
	now = now.Add(250 * time.Millisecond)
	take(1, 0, 0)
	now = now.Add(time.Hour)
	take(0, 4, 0)     // never more than the burst
	take(1_000, 0, 0) // more than all is all
	now = now.Add(-time.Minute)
	take(1, 0, 500*time.Millisecond) // a clock that goes back gives nothing
}

// Never is more admitted in any time than the burst and what the rate brings.
func TestBucketHoldsItsRate(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	l := newRateLimit("account", 50, 20)
	var b bucket
	begin := time.Unix(1_000, 0)
	now := begin
	admitted := 0.0
	for range 10_000 {
		now = now.Add(time.Duration(random.IntN(10)) * time.Millisecond)
		n := float64(1 + random.IntN(3))
		if l.take(&b, now, n).wait == 0 {
			admitted += n
		}
	}
	if most := 20 + 50*now.Sub(begin).Seconds(); admitted > most || admitted < most-25 {
		t.Errorf("admitted %v, at most %v", admitted, most)
	}
}

func TestRateLimitHeaders(t *testing.T) {
	for _, c := range []struct {
		perSecond    float64
		burst        int
		q            quota
		policy, left string
	}{
		{100, 0, quota{left: 99, full: time.Millisecond}, `"account";q=100;w=1`, `"account";r=99;t=1`},
		{0.25, 3, quota{left: 0.9, wait: 3600 * time.Millisecond, full: 8 * time.Second}, `"account";q=3;w=12`, `"account";r=0;t=4`},
		{1000, 10, quota{left: 10}, `"account";q=1000;w=1`, `"account";r=10;t=0`},
		{1e-300, 1, quota{left: 1}, `"account";q=1;w=999999999999999`, `"account";r=1;t=0`},
	} {
		l := newRateLimit("account", c.perSecond, c.burst)
		if policy, left := rateLimitHeaders([]limited{{l, c.q}}); policy != c.policy || left != c.left {
			t.Errorf("%v/%d: %s, %s", c.perSecond, c.burst, policy, left)
		}
	}
	header := http.Header{}
	announce(header, []limited{{}})
	if len(header) != 0 {
		t.Errorf("without limits: %v", header)
	}
	announce(header, []limited{{newRateLimit("address", 1, 1), quota{left: 1}}})
	announceAfter(header, header.Get("RateLimit-Policy"), header.Get("RateLimit"), limited{newRateLimit("account", 2, 2), quota{left: 2}})
	if header.Get("RateLimit-Policy") != `"address";q=1;w=1, "account";q=2;w=1` || header.Get("RateLimit") != `"address";r=1;t=0, "account";r=2;t=0` {
		t.Errorf("both: %v", header)
	}
}

func TestUsagesAreBounded(t *testing.T) {
	table := newUsages[int](100)
	now := time.Unix(1_000, 0)
	busy := table.of(-1, now)
	busy.streams.Add(1)
	for i := range 10_000 {
		now = now.Add(time.Millisecond)
		table.of(i, now)
		if len(table.byKey) > 101 {
			t.Fatalf("%d entries", len(table.byKey))
		}
	}
	if table.byKey[-1] != busy {
		t.Error("one with an open stream was forgotten, and with it the stream")
	}
	// The one used last is not the one to go.
	recent := table.of(9_999, now)
	for i := range 50 {
		table.of(20_000+i, now)
		if table.of(9_999, now.Add(time.Second)) != recent {
			t.Fatal("one in use was forgotten")
		}
	}
}

// testGate returns a gate with the accounts, and with limits.
func testGate(t *testing.T, account, address *rateLimit) *gate {
	t.Helper()
	m, err := newMetrics(prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{account: account, address: address, metrics: m, addresses: newUsages[netip.Addr](100), subjects: newUsages[string](100)}
	return g
}

// Who floods beyond the rate is told so at once as often as the rate allows requests, and then slowed down.
func TestFloodIsSlowedDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := testGate(t, newRateLimit("account", 10, 10), nil)
		p := pass{gate: g, principal: principal{usage: &usage{}}}
		began := time.Now()
		var admitted, refused int
		for time.Since(began) < time.Minute {
			switch err := p.charge(t.Context(), 1); {
			case err == nil:
				admitted++
			case status.Code(err) == codes.ResourceExhausted && retryAfter(status.Convert(err)) > 0:
				refused++
			default:
				t.Fatal(err)
			}
		}
		// Without the delay the loop would never end: the clock stands still while it runs.
		if admitted < 60 || admitted > 620 || refused > 180 {
			t.Errorf("in a minute %d were admitted, %d refused", admitted, refused)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		began = time.Now()
		for range 100 {
			_ = p.charge(ctx, 1)
		}
		if time.Since(began) != 0 {
			t.Error("an answer was held back for a caller that has gone")
		}
	})
}

func TestKnock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := testGate(t, nil, newRateLimit("address", 1, 2))
		knock := func(addr string) codes.Code {
			_, err := g.knock(t.Context(), netip.MustParseAddr(addr))
			return status.Code(err)
		}
		for i, want := range []codes.Code{codes.OK, codes.OK, codes.ResourceExhausted} {
			if got := knock("2001:db8::" + fmt.Sprint(i+1)); got != want {
				t.Errorf("request %d of a /64: %v, want %v", i, got, want)
			}
		}
		if got := knock("2001:db8:0:1::1"); got != codes.OK {
			t.Errorf("another /64: %v", got)
		}
		for _, addr := range []string{"127.0.0.1", "127.0.0.1", "10.0.0.1", "10.0.0.1"} {
			if got := knock(addr); got != codes.OK {
				t.Errorf("%s: %v", addr, got)
			}
		}
		if knock("127.0.0.1") != codes.ResourceExhausted || knock("10.0.0.1") != codes.ResourceExhausted {
			t.Error("more than the burst was admitted")
		}
		<-time.After(time.Second)
		if got := knock("10.0.0.1"); got != codes.OK {
			t.Errorf("a second later: %v", got)
		}
	})
}

func TestStreamsAreBounded(t *testing.T) {
	g := testGate(t, nil, nil)
	g.streams.all, g.streams.perAccount = 5, 3
	a, b := pass{gate: g, principal: principal{usage: &usage{}}}, pass{gate: g, principal: principal{usage: &usage{}}}
	var ends []func()
	open := func(p *pass) error {
		_, end, err := p.stream(t.Context())
		if err == nil {
			ends = append(ends, end)
		}
		return err
	}
	for range 3 {
		if err := open(&a); err != nil {
			t.Fatal(err)
		}
	}
	if err := open(&a); status.Code(err) != codes.ResourceExhausted || retryAfter(status.Convert(err)) == 0 || a.reason != refusedStreams {
		t.Errorf("a fourth of an account: %v", err)
	}
	if err := open(&b); err != nil {
		t.Fatal(err)
	}
	if err := open(&b); err != nil {
		t.Fatal(err)
	}
	if err := open(&b); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a sixth in all: %v", err)
	}
	ends[0]()
	ends[0]() // once is enough
	if err := open(&b); err != nil {
		t.Errorf("after one has ended: %v", err)
	}
	for _, end := range ends {
		end()
	}
	if g.streams.open.Load() != 0 || a.usage.streams.Load() != 0 || b.usage.streams.Load() != 0 {
		t.Error("streams are left")
	}
}

func TestStreamTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := testGate(t, nil, nil)
		g.streamFor = time.Hour
		p := pass{gate: g, principal: principal{usage: &usage{}}}
		began := time.Now()
		ctx, end, err := p.stream(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer end()
		<-ctx.Done()
		if time.Since(began) != time.Hour || status.Code(streamEnd(ctx, ctx.Err())) != codes.Unavailable {
			t.Errorf("ended after %v: %v", time.Since(began), streamEnd(ctx, ctx.Err()))
		}
	})
}

func TestGateIsRaceFree(t *testing.T) {
	g := testGate(t, newRateLimit("account", 1e6, 0), newRateLimit("address", 1e6, 0))
	g.streams.all, g.streams.perAccount = 1_000, 1_000
	u := &usage{}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 500 {
				p := pass{gate: g, principal: principal{usage: u}}
				_, _ = g.knock(t.Context(), netip.AddrFrom4([4]byte{10, 0, byte(i), byte(j)}))
				_ = p.charge(t.Context(), 1)
				if _, end, err := p.stream(t.Context()); err == nil {
					end()
				}
			}
		})
	}
	wg.Wait()
	if g.streams.open.Load() != 0 {
		t.Error("streams are left")
	}
}
