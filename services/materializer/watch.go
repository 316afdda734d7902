package materializer

import (
	"context"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
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
	for {
		select {
		case <-ctx.Done():
			m.report(context.WithoutCancel(ctx), ps, o)
			return nil
		case <-ends.C:
			if m.askEnds(ctx, ps) && o.undisturbed() {
				m.outage.over()
			}
		case <-reports.C:
			m.report(ctx, ps, o)
		}
	}
}

// askEnds reports whether Kafka answers.
func (m *Materializer) askEnds(ctx context.Context, ps *parts) bool {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	// The answer is as old as the question.
	now := time.Now().UnixMilli()
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
			owned[l.Partition].progress.sawEnd(l.Offset, now)
		}
	})
	return err == nil
}

func (m *Materializer) report(ctx context.Context, ps *parts, o *owners) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	offsets := map[int32]kgo.EpochOffset{}
	// Of a partition that was lost, others report.
	ids, _ := o.assigned()
	owned := m.owned()
	for _, id := range ids {
		p := owned[id]
		if p == nil {
			continue
		}
		offsets[id] = kgo.EpochOffset{Epoch: -1, Offset: p.progress.read().next}
	}
	if len(offsets) == 0 {
		return
	}
	o.member().CommitOffsetsSync(ctx, map[string]map[int32]kgo.EpochOffset{eventlog.TopicClientEvents: offsets},
		func(_ *kgo.Client, _ *kmsg.OffsetCommitRequest, _ *kmsg.OffsetCommitResponse, err error) {
			if err != nil {
				ps.log.Debug("progress is not reported", service.KeyGroup, m.cfg.group(), service.KeyError, err)
			}
		})
}
