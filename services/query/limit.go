package query

import (
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// holdRefused is how long an answer is held back at most, and half of it at least, that says once more that a rate is used up. It is the
	// least Retry-After, so nobody who waits as long as told meets it, and a flood in a closed loop slows itself down. It is drawn, so
	// that those who are held do not all come back at once.
	holdRefused = time.Second
	// promptRefusals is how many of these answers are given at once, and promptPerSecond how many of them come back in a second.
	promptRefusals  = 10
	promptPerSecond = 1
	// maxHoldings bounds the answers held back at a time; those beyond are given at once.
	maxHoldings = 10_000
	// maxTracked bounds the addresses, and the token subjects, whose use is remembered.
	maxTracked = 1 << 16
	// evictSample is how many entries are compared to find one that was not used for long.
	evictSample = 16
	// maxAnonymousStreams and maxAnonymousPerAddress bound streams that need no account.
	maxAnonymousStreams    = 1_000
	maxAnonymousPerAddress = 100
	// batchCost is how many clients of a batch cost as much as one more request.
	batchCost = 100
)

// rateLimit is a token bucket of which every account, or every address, has one.
type rateLimit struct {
	name      string // in headers
	perSecond float64
	burst     float64
	policy    string // item of a RateLimit-Policy header
}

// newRateLimit returns nil if there is no limit.
func newRateLimit(name string, perSecond float64, burst int) *rateLimit {
	if perSecond == 0 {
		return nil
	}
	l := &rateLimit{name: name, perSecond: perSecond, burst: float64(burst)}
	if burst == 0 {
		l.burst = max(1, math.Ceil(perSecond))
	}
	// The window in which the quota comes back: at least the second that headers can say.
	window := max(1, math.Ceil(l.burst/perSecond))
	quota := max(l.burst, math.Floor(perSecond*window))
	l.policy = fmt.Sprintf("%q;q=%.0f;w=%.0f", name, min(quota, maxSFInteger), min(window, maxSFInteger))
	return l
}

// prompt limits the refusals that are told at once.
var prompt = &rateLimit{perSecond: promptPerSecond, burst: promptRefusals}

// maxSFInteger is the largest integer of a structured field.
const maxSFInteger = 999_999_999_999_999

// bucket counts what was used of a rateLimit. The zero bucket is full.
type bucket struct {
	mu   sync.Mutex
	used float64
	at   time.Time
}

// quota is what a bucket says after a request.
type quota struct {
	left float64
	wait time.Duration // until what was asked for is there; 0: it was taken
	full time.Duration // until the bucket is full
}

// take takes n, or nothing if n is not there. What is more than the whole bucket counts as the whole.
func (l *rateLimit) take(b *bucket, now time.Time, n float64) quota {
	n = min(n, l.burst)
	b.mu.Lock()
	defer b.mu.Unlock()
	if elapsed := now.Sub(b.at); elapsed > 0 {
		b.used = max(0, b.used-elapsed.Seconds()*l.perSecond)
		b.at = now
	}
	q := quota{}
	if b.used+n > l.burst {
		q.wait = max(1, seconds((b.used+n-l.burst)/l.perSecond))
	} else {
		b.used += n
	}
	q.left = l.burst - b.used
	q.full = seconds(b.used / l.perSecond)
	return q
}

// seconds is s as a duration, at most a year.
func seconds(s float64) time.Duration {
	const year = 365 * 24 * 3600
	return time.Duration(min(s, year) * float64(time.Second))
}

// item is the bucket's part of a RateLimit header. After a refusal it ends when Retry-After does.
func (l *rateLimit) item(q quota) string {
	until := q.full
	if q.wait > 0 {
		until = q.wait
	}
	return fmt.Sprintf("%q;r=%.0f;t=%d", l.name, min(math.Floor(q.left), maxSFInteger), int64(math.Ceil(until.Seconds())))
}

// usage is what an account, a token's subject or an address uses.
type usage struct {
	requests bucket
	refusals bucket       // of prompt: told at once that requests is empty
	streams  atomic.Int64 // open
	listing  atomic.Int64 // lists that are read, or wait for that
	last     atomic.Int64 // unix ns of the last use
}

// usages remembers the use of many, at most maximum besides those with open streams. If a new one needs the place, one leaves that was not used
// for long: who would make room for himself so needs more names than there are places, and with these would have as many full buckets
// anyway.
type usages[K comparable] struct {
	mu      sync.Mutex
	maximum int
	byKey   map[K]*usage
}

func newUsages[K comparable](maximum int) *usages[K] {
	return &usages[K]{maximum: maximum, byKey: make(map[K]*usage)}
}

func (t *usages[K]) of(key K, now time.Time) *usage {
	t.mu.Lock()
	defer t.mu.Unlock()
	u := t.byKey[key]
	if u == nil {
		if len(t.byKey) >= t.maximum {
			t.evict()
		}
		u = &usage{}
		t.byKey[key] = u
	}
	u.last.Store(now.UnixNano())
	return u
}

func (t *usages[K]) evict() {
	var oldest K
	at := int64(math.MaxInt64)
	seen := 0
	for key, u := range t.byKey { // begins anywhere
		if last := u.last.Load(); last < at && u.streams.Load() == 0 {
			oldest, at = key, last
		}
		if seen++; seen >= evictSample && at < math.MaxInt64 {
			break
		}
	}
	if at < math.MaxInt64 {
		delete(t.byKey, oldest)
	}
}

// limited is what the limits say of a request, for its headers.
type limited struct {
	limit *rateLimit
	quota quota
}

// rateLimitHeaders returns the values of RateLimit-Policy and RateLimit (draft-ietf-httpapi-ratelimit-headers), empty without limits.
func rateLimitHeaders(limits []limited) (policy, left string) {
	var policies, items []string
	for _, l := range limits {
		if l.limit != nil {
			policies = append(policies, l.limit.policy)
			items = append(items, l.limit.item(l.quota))
		}
	}
	return strings.Join(policies, ", "), strings.Join(items, ", ")
}

// announceAfter writes the headers, with l after what another limit has written.
func announceAfter(header http.Header, policy, left string, l limited) {
	if l.limit == nil {
		return
	}
	if policy != "" {
		policy += ", "
		left += ", "
	}
	header.Set("RateLimit-Policy", policy+l.limit.policy)
	header.Set("RateLimit", left+l.limit.item(l.quota))
}

// announce writes the headers.
func announce(header http.Header, limits []limited) {
	if policy, left := rateLimitHeaders(limits); policy != "" {
		header.Set("RateLimit-Policy", policy)
		header.Set("RateLimit", left)
	}
}

// costOf is what a request for n clients costs beyond the 1 of every request.
func costOf(n int) int { return n / batchCost }

// bounds of streams.
type streamBounds struct {
	all, perAccount int64
	open            atomic.Int64
}

// enter counts a stream, and returns why it may not be.
func (b *streamBounds) enter(u *usage) (left func(), why string) {
	if n := b.open.Add(1); b.all > 0 && n > b.all {
		b.open.Add(-1)
		return nil, "the service has as many streams open as it may, " + strconv.FormatInt(b.all, 10)
	}
	if n := u.streams.Add(1); b.perAccount > 0 && n > b.perAccount {
		u.streams.Add(-1)
		b.open.Add(-1)
		return nil, "the account has as many streams open as it may, " + strconv.FormatInt(b.perAccount, 10)
	}
	return sync.OnceFunc(func() {
		u.streams.Add(-1)
		b.open.Add(-1)
	}), ""
}
