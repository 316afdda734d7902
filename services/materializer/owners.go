package materializer

import (
	"context"
	"errors"
	"fmt"
	"slices"
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
	// maxTaken is how often the membership may be given away within takenWithin. One that Kafka gave to a request of ours whose answer was lost is
	// ours again after one new attempt; two processes that join as one take it from each other for ever.
	maxTaken    = 4
	takenWithin = time.Minute
	// closeTime bounds how long a membership that ends waits for what the group is doing.
	closeTime = time.Second
)

// owners is the member of the consumer group: it runs a partition while the group has it assigned to this process. It reads no records,
// fetcher does.
type owners struct {
	m     *Materializer
	parts *parts
	fail  context.CancelCauseFunc

	mu      sync.Mutex
	client  *kgo.Client // the membership; replaced when the group has given it away
	cut     func()      // ends what the client waits for
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
	return o, o.join()
}

// join makes the process a member of the group, with a new client.
func (o *owners) join() error {
	opts, err := o.m.cfg.Kafka.SharedOpts(o.m.kafkaLog)
	if err != nil {
		return err
	}
	session := o.m.cfg.session()
	ctx, cut := context.WithCancel(context.Background())
	client, err := kgo.NewClient(append(opts,
		kgo.WithContext(ctx),
		kgo.ConsumerGroup(o.m.cfg.group()),
		kgo.InstanceID(o.m.cfg.instance()),
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
			o.lose(t[eventlog.TopicClientEvents])
		}),
	)...)
	if err != nil {
		cut()
		return fmt.Errorf("join consumer group %s: %w", o.m.cfg.group(), err)
	}
	client.PauseFetchTopics(eventlog.TopicClientEvents)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.client, o.cut = client, cut
	return nil
}

// member is the current membership.
func (o *owners) member() *kgo.Client {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.client
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
	defer o.unserveOthers()
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

// unserveOthers ends the reading of partitions that were lost and that the group has not given back. The caller holds mu.
func (o *owners) unserveOthers() {
	for id := range o.m.owned() {
		if o.running[id] == nil {
			o.m.setServed(id, nil)
		}
	}
}

// lose gives partitions up that Kafka has, or may have, given to others: the session is over. As long as it is not known who has them they can be read
// as they were, and say how old that is.
func (o *owners) lose(ids []int32) {
	o.mu.Lock()
	o.joined = false
	o.mu.Unlock()
	o.release(ids, errLost)
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
	o.mu.Lock()
	defer o.mu.Unlock()
	o.unserveOthers()
}

// close ends the client. One that joins waits for all members, of which some may be gone; that it is not waited for.
func (o *owners) close() {
	o.mu.Lock()
	client, cut := o.client, o.cut
	o.mu.Unlock()
	defer cut()
	defer time.AfterFunc(closeTime, cut).Stop()
	client.Close()
}

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
// it was no other member that fenced it, and it is acquired again. So it is, at once, if Kafka was away.
func (o *owners) own(ctx context.Context, id int32) error {
	log := o.parts.log.With(service.KeyPartition, id)
	fenced, failed := 0, 0
	for {
		began := time.Now()
		p := newPartition(id, o.parts)
		acquired := time.Time{}
		err := p.run(ctx, func(serve bool) {
			if serve {
				acquired = time.Now()
				o.m.setServed(id, p)
			} else {
				o.m.setServed(id, nil)
			}
		})
		if ctx.Err() != nil && !errors.Is(context.Cause(ctx), errLost) {
			o.m.setServed(id, nil)
		}
		if ctx.Err() != nil && (err == nil || isAway(err)) {
			return nil
		}
		if time.Since(began) > calm {
			fenced = 0
		}
		if !acquired.IsZero() && time.Since(acquired) > 2*retryMost {
			failed = 0
		}
		pause := o.m.cfg.session()
		switch {
		case errors.Is(err, errFenced):
			o.m.metrics.fenced.Inc()
			if fenced++; fenced >= maxFenced {
				o.m.setServed(id, nil)
				return fmt.Errorf("publish partition %d: another materializer has fenced this one %d times while group %s assigns the partition to it, so another replica publishes too: "+
					"set publish to false on all replicas but one: %w", id, fenced, o.m.cfg.group(), err)
			}
			log.Warn("another materializer publishes the partition now, so this one gives it up: the group has moved it, or, if this comes again, another replica publishes too: "+
				"set publish to false on all replicas but one", service.KeyGroup, o.m.cfg.group(), service.KeyError, err)
		case isAway(err):
			o.m.metrics.interrupted.Inc()
			if failed++; failed == 1 {
				o.m.outage.interrupts("partitions are interrupted; each is acquired again when kafka lets it", service.KeyPartition, id, service.KeyError, err)
			} else {
				log.Debug("partition is interrupted", service.KeyError, err)
			}
			pause = retryAfter(failed)
		default:
			o.m.setServed(id, nil)
			return err
		}
		pauseFor(ctx, pause)
	}
}

// watch reports what goes wrong with the membership, and takes it again where it was given away.
func (o *owners) watch(ctx context.Context) error {
	var taken []time.Time
	for ctx.Err() == nil {
		for _, e := range o.member().PollFetches(ctx).Errors() {
			switch {
			case ctx.Err() != nil, errors.Is(e.Err, kgo.ErrClientClosed):
				return nil
			case errors.Is(e.Err, kerr.FencedInstanceID):
				now := time.Now()
				taken = slices.DeleteFunc(append(taken, now), func(t time.Time) bool { return now.Sub(t) > takenWithin })
				if len(taken) >= maxTaken {
					return fmt.Errorf("stay in consumer group %s: another process joins as %q too; give each its own state-advertise: %w", o.m.cfg.group(), o.m.cfg.instance(), e.Err)
				}
				o.parts.log.Warn("the membership was given to a later request to join under the same name, of this process or another; joining again",
					service.KeyGroup, o.m.cfg.group(), service.KeyAddr, o.m.cfg.instance(), service.KeyError, e.Err)
				if err := o.rejoin(); err != nil {
					return err
				}
			default:
				o.membershipInterrupted(e.Err)
			}
		}
	}
	return nil
}

// rejoin takes the membership with a new client: the old one would ask for the one that it had for ever.
func (o *owners) rejoin() error {
	o.close() // its partitions are lost already
	return o.join()
}
