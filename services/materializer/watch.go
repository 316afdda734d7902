package materializer

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/service"
)

const (
	endInterval    = time.Second     // between two questions for the end offsets
	reportInterval = 5 * time.Second // between two commits of the group's offsets
	askTimeout     = 5 * time.Second
)

// watch asks Kafka for the end offsets, so that an idle partition is known to be up to date, and reports the applied offsets to the
// group, for lag tools. Neither failing is an error: the age of the end offset shows the one, the next report mends the other.
func (m *Materializer) watch(ctx context.Context, ps *parts, o *owners) error {
	ends, reports := time.NewTicker(endInterval), time.NewTicker(reportInterval)
	defer ends.Stop()
	defer reports.Stop()
	refused := false
	for {
		select {
		case <-ctx.Done():
			if err := m.report(context.WithoutCancel(ctx), o); err != nil {
				ps.log.Debug("progress is not reported", service.KeyError, err)
			}
			return nil
		case <-ends.C:
			if m.askEnds(ctx, ps) && o.undisturbed() {
				m.outage.over()
			}
		case <-reports.C:
			err := m.report(ctx, o)
			level := slog.LevelDebug // of what a rebalance or a Kafka that is away refuses: it is reported again soon
			if !refused && err != nil && eventlog.Permanent(err) {
				refused, level = true, slog.LevelWarn
			}
			if err != nil {
				ps.log.Log(ctx, level, "progress is not reported: lag tools show more than there is", service.KeyError, err)
			}
		}
	}
}

// askEnds reports whether Kafka answers.
func (m *Materializer) askEnds(ctx context.Context, ps *parts) bool {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	// The answer is as old as the question.
	asked := time.Now().UnixMilli()
	listed, err := ps.adm.ListEndOffsets(ctx, eventlog.TopicClientEvents, eventlog.TopicNodeEvents)
	if err != nil {
		ps.log.Debug("kafka does not tell the end offsets", service.KeyError, err)
	}
	owned := m.owned()
	listed.Each(func(l kadm.ListedOffset) {
		switch {
		case l.Err != nil:
		case l.Topic == eventlog.TopicNodeEvents:
			ps.nodes.sawEnd(l.Offset)
		case owned[l.Partition] != nil:
			owned[l.Partition].progress.sawEnd(l.Offset, asked, time.Now().UnixMilli())
		}
	})
	return err == nil
}

// report tells the group how far the partitions are, for lag tools.
func (m *Materializer) report(ctx context.Context, o *owners) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	next := map[int32]int64{}
	// Of a partition that was lost, others report.
	ids, _ := o.assigned()
	owned := m.owned()
	for _, id := range ids {
		if p := owned[id]; p != nil {
			next[id] = p.progress.read().next
		}
	}
	if len(next) == 0 {
		return nil
	}
	return o.commit(ctx, next)
}

// commit commits offsets to the group. The request is made here, since the client's own methods hold Kafka's answer against what the client has
// fetched, and a member that fetches nothing is told that its session is over.
func (o *owners) commit(ctx context.Context, next map[int32]int64) error {
	client := o.member()
	req := kmsg.NewPtrOffsetCommitRequest()
	req.Group, req.InstanceID = o.m.cfg.group(), kmsg.StringPtr(o.m.cfg.instance())
	req.MemberID, req.Generation = client.GroupMetadata()
	topic := kmsg.NewOffsetCommitRequestTopic()
	topic.Topic, topic.TopicID = eventlog.TopicClientEvents, o.parts.eventsTopic
	for id, offset := range next {
		p := kmsg.NewOffsetCommitRequestTopicPartition()
		p.Partition, p.Offset = id, offset
		topic.Partitions = append(topic.Partitions, p)
	}
	req.Topics = append(req.Topics, topic)
	resp, err := req.RequestWith(ctx, client)
	if err != nil {
		return fmt.Errorf("commit the offsets of group %s: %w", req.Group, err)
	}
	for _, t := range resp.Topics {
		for _, p := range t.Partitions {
			if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
				return fmt.Errorf("commit the offset of %s partition %d to group %s: %w", eventlog.TopicClientEvents, p.Partition, req.Group, err)
			}
		}
	}
	return nil
}
