package chaos

import (
	"cmp"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/mqtt-presence/presence/libs/presence"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// Answer is one answer about one client, as it was given.
type Answer struct {
	Client string
	From   string // which service answered, by which call
	Batch  bool   // asked for together with others of its partition
	Sent   time.Time

	Status, Belief, Reason string
	SinceMS                int64
	Node, Key              string // of the connection
	ConnectedMS            int64

	Partition            int32
	Applied, NodeApplied int64
	LagMS                int64 // -1: not stated
	Stale                bool
	StaleReasons         []string
}

// StatedBy returns an answer as the API gave it.
func StatedBy(c *presencev1.Client, from string, sent time.Time) Answer {
	f := c.GetFreshness()
	a := Answer{
		Client: c.GetClientId(), From: from, Sent: sent, Status: c.GetStatus(), Belief: c.GetBelief(), Reason: c.GetStatusReason(),
		Node: c.GetConnection().GetNode(), Key: c.GetConnection().GetKey(),
		Partition: f.GetPartition(), Applied: f.GetAppliedOffset(), NodeApplied: f.GetNodeAppliedOffset(), LagMS: -1,
		Stale: f.GetStale(), StaleReasons: f.GetStaleReasons(),
	}
	if f != nil && f.LagMs != nil {
		a.LagMS = f.GetLagMs()
	}
	if s := c.GetSince(); s != nil {
		a.SinceMS = s.AsTime().UnixMilli()
	}
	if s := c.GetConnection().GetConnectedAt(); s != nil {
		a.ConnectedMS = s.AsTime().UnixMilli()
	}
	return a
}

// String tells the answer.
func (a *Answer) String() string {
	return fmt.Sprintf("%s at %s: client %q is %s (%s), belief %s, since %d, connection %q of %q at %d; partition %d, offsets %d and %d, lag %d ms, stale %t %v",
		a.From, a.Sent.UTC().Format("15:04:05.000"), a.Client, a.Status, a.Reason, a.Belief, a.SinceMS, a.Key, a.Node, a.ConnectedMS,
		a.Partition, a.Applied, a.NodeApplied, a.LagMS, a.Stale, a.StaleReasons)
}

// inexact reports whether an answer may hold more than it states: a partition that catches up has rows that were restored from client-state and are ahead
// of it, and one offset for all clients of a batch.
func (a *Answer) inexact() bool { return a.Batch && slices.Contains(a.StaleReasons, "catching_up") }

// CheckAnswers holds answers against the fold of the facts below the offsets that they state. Those of batches of a partition that catches up may hold
// more, and are passed over.
func (l *Ledger) CheckAnswers(answers []Answer) error {
	byClient := map[string][]*Answer{}
	for i := range answers {
		byClient[answers[i].Client] = append(byClient[answers[i].Client], &answers[i])
	}
	var errs []error
	for id, list := range byClient {
		c := l.Client(id)
		slices.SortStableFunc(list, func(a, b *Answer) int { return cmp.Compare(a.Applied, b.Applied) })
		f := fold{l: l, c: c}
		for _, a := range list {
			if a.inexact() {
				continue
			}
			f.to(a.Applied)
			v := f.verdict(a.NodeApplied)
			if a.Partition != c.partition {
				errs = append(errs, fmt.Errorf("client %q belongs to partition %d: %s", id, c.partition, a))
			} else if !a.is(&v) {
				errs = append(errs, fmt.Errorf("the fold makes %s (%s), belief %s, since %d of the facts below the offsets that it states: %s\n%s",
					v.Status, v.Reason, v.Belief, v.SinceMS, a, c.around(a.Applied)))
			}
		}
	}
	return first(errs)
}

// is reports whether an answer is what a verdict says.
func (a *Answer) is(v *presence.Verdict) bool {
	key, ms := "", int64(0)
	if v.Conn != nil {
		key, ms = v.Conn.Key, v.Conn.OpenedMS
	}
	return a.Status == v.Status.String() && a.Belief == v.Belief.String() && a.Reason == v.Reason.String() && a.SinceMS == v.SinceMS &&
		a.Node == v.Node && a.Key == key && a.ConnectedMS == ms
}

// around returns the client's history near an offset.
func (c *Client) around(offset int64) string {
	const near = 4
	part := Client{ID: c.ID}
	i, _ := slices.BinarySearchFunc(c.Facts, offset, func(f Fact, offset int64) int { return cmp.Compare(f.Offset, offset) })
	part.Facts = c.Facts[max(0, i-near):min(len(c.Facts), i+near)]
	return part.String()
}

// Final returns what all facts make of each client.
func (l *Ledger) Final(clientID string) presence.Verdict {
	f := fold{l: l, c: l.Client(clientID)}
	f.to(end)
	return f.verdict(end)
}

// Tail is what the log was seen to have, and when.
type Tail struct {
	mu   sync.Mutex
	ends map[int32][]seen
}

type seen struct {
	at  time.Time
	end int64
}

// Saw notes that a partition of client-events had reached an end offset by a time. Times must not go back.
func (t *Tail) Saw(partition int32, at time.Time, end int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ends == nil {
		t.ends = map[int32][]seen{}
	}
	list := t.ends[partition]
	if n := len(list); n == 0 || end > list[n-1].end {
		t.ends[partition] = append(list, seen{at, end})
	}
}

// endAt returns the end that was seen latest by a time, 0 if none was.
func (t *Tail) endAt(partition int32, at time.Time) int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	list := t.ends[partition]
	i, _ := slices.BinarySearchFunc(list, at, func(s seen, at time.Time) int {
		if s.at.After(at) {
			return 1
		}
		return -1
	})
	if i == 0 {
		return 0
	}
	return list[i-1].end
}

// Check wants that whatever the log had when it was as long ago as an answer's lag says is in the answer, and that an answer that is not stale is
// no older than staleAfter. slack is for what lies between a moment and somebody's noticing it.
func (t *Tail) Check(answers []Answer, staleAfter, slack time.Duration) error {
	var errs []error
	for i := range answers {
		a := &answers[i]
		if a.LagMS >= 0 {
			lag := time.Duration(a.LagMS) * time.Millisecond
			if had := t.endAt(a.Partition, a.Sent.Add(-lag-slack)); had > a.Applied {
				errs = append(errs, fmt.Errorf("its lag is not true, the log had offset %d for %v: %s", had-1, t.age(a), a))
			}
		}
		if had := t.endAt(a.Partition, a.Sent.Add(-staleAfter-slack)); !a.Stale && had > a.Applied {
			errs = append(errs, fmt.Errorf("it should be stale, the log had offset %d for %v: %s", had-1, t.age(a), a))
		}
	}
	return first(errs)
}

// age returns for how long the log had had what an answer lacks when it was asked for.
func (t *Tail) age(a *Answer) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.ends[a.Partition] {
		if s.end > a.Applied {
			return a.Sent.Sub(s.at).Round(time.Millisecond)
		}
	}
	return 0
}
