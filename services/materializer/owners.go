package materializer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/service"
)

const (
	// maxFenced is how often in a row a partition may be fenced while the group says that it is ours.
	maxFenced = 3
	// calm is how long a partition must run for an earlier fencing to be forgotten.
	calm = time.Minute
)

// owners is the member of the consumer group: it runs a partition while the group has it assigned to this process. It reads no records,
// fetcher does.
type owners struct {
	m      *Materializer
	parts  *parts
	fail   context.CancelCauseFunc
	client *kgo.Client

	mu      sync.Mutex
	running map[int32]*owner
	joined  bool // the group has assigned partitions, possibly none
	stopped bool
}

// owner is a running partition.
type owner struct {
	cancel context.CancelCauseFunc
	done   chan struct{}
}

func newOwners(m *Materializer, ps *parts, fail context.CancelCauseFunc) (*owners, error) {
	o := &owners{m: m, parts: ps, fail: fail, running: map[int32]*owner{}}
	opts, err := m.cfg.Kafka.Opts(m.log)
	if err != nil {
		return nil, err
	}
	session := m.cfg.session()
	o.client, err = kgo.NewClient(append(opts,
		kgo.ConsumerGroup(m.cfg.group()),
		kgo.InstanceID(m.cfg.instance()),
		kgo.SessionTimeout(session),
		kgo.HeartbeatInterval(session/5),
		kgo.Balancers(kgo.CooperativeStickyBalancer()),
		kgo.ConsumeTopics(eventlog.TopicClientEvents),
		kgo.DisableAutoCommit(),
		kgo.OnPartitionsAssigned(func(_ context.Context, _ *kgo.Client, t map[string][]int32) { o.assign(t[eventlog.TopicClientEvents]) }),
		kgo.OnPartitionsRevoked(func(_ context.Context, _ *kgo.Client, t map[string][]int32) {
			o.release(t[eventlog.TopicClientEvents], errGivenUp)
		}),
		kgo.OnPartitionsLost(func(_ context.Context, _ *kgo.Client, t map[string][]int32) {
			o.release(t[eventlog.TopicClientEvents], errLost)
		}),
	)...)
	if err != nil {
		return nil, fmt.Errorf("join consumer group %s: %w", m.cfg.group(), err)
	}
	o.client.PauseFetchTopics(eventlog.TopicClientEvents)
	return o, nil
}

// assigned returns the partitions that the group has assigned; false before the first assignment.
func (o *owners) assigned() ([]int32, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	ids := make([]int32, 0, len(o.running))
	for id := range o.running {
		ids = append(ids, id)
	}
	return ids, o.joined
}

func (o *owners) assign(ids []int32) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.joined = true
	if o.stopped {
		return
	}
	for _, id := range ids {
		if o.running[id] != nil {
			continue
		}
		ctx, cancel := context.WithCancelCause(context.Background())
		w := &owner{cancel: cancel, done: make(chan struct{})}
		o.running[id] = w
		go func() {
			defer close(w.done)
			defer cancel(nil)
			if err := o.own(ctx, id); err != nil {
				o.fail(err)
			}
		}()
	}
}

// release gives partitions up and returns when they are.
func (o *owners) release(ids []int32, cause error) {
	o.mu.Lock()
	var gone []*owner
	for _, id := range ids {
		if w := o.running[id]; w != nil {
			w.cancel(cause)
			gone = append(gone, w)
			delete(o.running, id)
		}
	}
	o.mu.Unlock()
	for _, w := range gone {
		<-w.done
	}
}

// stop gives all partitions up, in order. The member stays in the group, so that a restart within the session timeout gets them back
// without a rebalance.
func (o *owners) stop() {
	o.mu.Lock()
	o.stopped = true
	o.mu.Unlock()
	ids, _ := o.assigned()
	o.release(ids, errGivenUp)
}

func (o *owners) close() { o.client.Close() }

// leave ends the membership, which outlives the process otherwise. It is called after close: a client that is told so would join again.
func (o *owners) leave(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	left, err := o.parts.adm.LeaveGroup(ctx, kadm.LeaveGroup(o.m.cfg.group()).InstanceIDs(o.m.cfg.instance()))
	if err == nil {
		err = left.Error()
	}
	if err != nil {
		o.parts.log.Warn("the consumer group was not left; it waits for this member until its session ends", service.KeyGroup, o.m.cfg.group(), service.KeyError, err)
	}
}

// own runs a partition until ctx ends. A fenced partition is given up; if the group does not take it away within its session timeout,
// it was no other member that fenced it, and it is acquired again.
func (o *owners) own(ctx context.Context, id int32) error {
	log := o.parts.log.With(service.KeyPartition, id)
	for fenced := 1; ; fenced++ {
		began := time.Now()
		p := newPartition(id, o.parts)
		err := p.run(ctx, func() { o.m.setServed(id, p) })
		o.m.setServed(id, nil)
		if err == nil && ctx.Err() != nil {
			return nil
		}
		if !errors.Is(err, errFenced) {
			return err
		}
		o.m.metrics.fenced.Inc()
		if time.Since(began) > calm {
			fenced = 1
		}
		if fenced >= maxFenced {
			return fmt.Errorf("publish partition %d: fenced %d times while group %s assigns it to this process; does another group publish too? set publish to false on all replicas but one: %w",
				id, fenced, o.m.cfg.group(), err)
		}
		log.Warn("partition is given up", slog.Any(service.KeyError, err))
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(o.m.cfg.session()):
		}
	}
}

// watch reports what goes wrong with the membership.
func (o *owners) watch(ctx context.Context) error {
	for ctx.Err() == nil {
		for _, e := range o.client.PollFetches(ctx).Errors() {
			switch {
			case ctx.Err() != nil, errors.Is(e.Err, kgo.ErrClientClosed):
				return nil
			case errors.Is(e.Err, kerr.FencedInstanceID):
				return fmt.Errorf("stay in consumer group %s: another process has joined as %q; give each its own state-advertise: %w", o.m.cfg.group(), o.m.cfg.instance(), e.Err)
			}
			o.parts.log.Warn("consumer group is interrupted", service.KeyGroup, o.m.cfg.group(), service.KeyError, e.Err)
		}
	}
	return nil
}
