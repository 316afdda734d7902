package eventlog

import (
	"cmp"

	"github.com/twmb/franz-go/pkg/kgo"
)

// partitioner sends a client's records to the partition that Partition computes from the configured count, also when somebody adds partitions
// to the topic while the producer runs: the records of one client must not part. A count of 0 stands for the topic's own. Other topics are
// partitioned as Kafka's own clients do.
func partitioner(partitions int32) kgo.Partitioner {
	return byClient{
		others: kgo.StickyKeyPartitioner(nil),
		clients: kgo.BasicConsistentPartitioner(func(string) func(*kgo.Record, int) int {
			return func(r *kgo.Record, has int) int { return int(Partition(r.Key, cmp.Or(partitions, int32(has)))) }
		}),
	}
}

type byClient struct{ others, clients kgo.Partitioner }

func (p byClient) ForTopic(topic string) kgo.TopicPartitioner {
	switch topic {
	case TopicClientEvents, TopicClientState:
		return p.clients.ForTopic(topic)
	}
	return p.others.ForTopic(topic)
}
