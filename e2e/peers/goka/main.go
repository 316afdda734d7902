package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/IBM/sarama"
	"github.com/lovoo/goka"
	"github.com/lovoo/goka/codec"
	"github.com/lovoo/goka/storage"
)

// event is what must be read of a client event.
type event struct {
	Type   string `json:"type"`
	Node   string `json:"node"`
	TimeMS int64  `json:"time_ms"`
}

// timeSize is the length of the event's time, which stands before the event in the table, so that it need not be decoded again.
const timeSize = 8

func main() {
	brokers := flag.String("brokers", "127.0.0.1:9092", "Kafka brokers, host:port, with commas between them")
	topic := flag.String("topic", "presence.client-events.v1", "topic of the client events")
	dir := flag.String("dir", "", "folder of the table, which must be empty")
	flag.Parse()
	if err := run(strings.Split(*brokers, ","), *topic, *dir); err != nil {
		log.Fatal("goka: ", err)
	}
}

func run(brokers []string, topic, dir string) (err error) {
	if dir == "" {
		return errors.New("dir: is empty; name a folder for the table")
	}
	total, err := recordsIn(brokers, topic)
	if err != nil {
		return err
	}
	config := goka.DefaultConfig()
	config.Consumer.Offsets.Initial = sarama.OffsetOldest
	goka.ReplaceGlobalConfig(config)
	topics := goka.NewTopicManagerConfig()
	topics.Table.Replication = 1
	group := goka.Group("bench-goka-" + strconv.FormatInt(time.Now().UnixNano(), 36))
	if err := makeTable(brokers, config, topics, string(goka.GroupTable(group)), topic); err != nil {
		return err
	}

	var applied atomic.Int64
	all := make(chan struct{})
	apply := func(ctx goka.Context, message any) {
		if err := keepNewest(ctx, message.([]byte)); err != nil {
			ctx.Fail(err)
		}
		if applied.Add(1) == total {
			close(all)
		}
	}
	processor, err := goka.NewProcessor(brokers,
		goka.DefineGroup(group, goka.Input(goka.Stream(topic), new(codec.Bytes), apply), goka.Persist(new(codec.Bytes))),
		goka.WithTopicManagerBuilder(goka.TopicManagerBuilderWithTopicManagerConfig(topics)),
		goka.WithStorageBuilder(storage.DefaultBuilder(dir)))
	if err != nil {
		return fmt.Errorf("make the processor: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	began := time.Now()
	go func() { ended <- processor.Run(ctx) }()
	select {
	case <-all:
		fmt.Printf("done %d %.3f\n", total, time.Since(began).Seconds())
	case err := <-ended:
		cancel()
		return fmt.Errorf("process: %w", err)
	}
	_, _ = io.Copy(io.Discard, os.Stdin) // its end is what counts
	cancel()
	return <-ended
}

// keepNewest stores the event unless a newer one is in the table.
func keepNewest(ctx goka.Context, value []byte) error {
	var e event
	if err := json.Unmarshal(value, &e); err != nil {
		return fmt.Errorf("read an event: %w", err)
	}
	if old, ok := ctx.Value().([]byte); ok && int64(binary.BigEndian.Uint64(old)) > e.TimeMS {
		return nil
	}
	ctx.SetValue(append(binary.BigEndian.AppendUint64(make([]byte, 0, timeSize+len(value)), uint64(e.TimeMS)), value...))
	return nil
}

// tableWithin is how long the brokers may take to know a new topic's leaders. A processor would not wait for that.
const tableWithin = 30 * time.Second

// makeTable makes the table's topic with as many partitions as the topic of the events, and waits until all of them can be asked.
func makeTable(brokers []string, config *sarama.Config, topics *goka.TopicManagerConfig, table, topic string) (err error) {
	client, err := sarama.NewClient(brokers, config)
	if err != nil {
		return fmt.Errorf("connect to kafka: %w", err)
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	partitions, err := client.Partitions(topic)
	if err != nil {
		return fmt.Errorf("describe %s: %w", topic, err)
	}
	manager, err := goka.NewTopicManager(brokers, config, topics)
	if err != nil {
		return fmt.Errorf("connect to kafka: %w", err)
	}
	defer func() { err = errors.Join(err, manager.Close()) }()
	if err := manager.EnsureTableExists(table, len(partitions)); err != nil {
		return fmt.Errorf("make the table's topic: %w", err)
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for began := time.Now(); ; <-tick.C {
		if err = askable(client, table, partitions); err == nil || time.Since(began) > tableWithin {
			return err
		}
	}
}

// askable returns nil if the leaders of all partitions answer.
func askable(client sarama.Client, table string, partitions []int32) error {
	if err := client.RefreshMetadata(table); err != nil {
		return fmt.Errorf("describe %s: %w", table, err)
	}
	for _, p := range partitions {
		if _, err := client.GetOffset(table, p, sarama.OffsetOldest); err != nil {
			return fmt.Errorf("ask for the begin of %s/%d: %w", table, p, err)
		}
	}
	return nil
}

// recordsIn counts the records of a topic of which none has been deleted.
func recordsIn(brokers []string, topic string) (total int64, err error) {
	client, err := sarama.NewClient(brokers, sarama.NewConfig())
	if err != nil {
		return 0, fmt.Errorf("connect to kafka: %w", err)
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	partitions, err := client.Partitions(topic)
	if err != nil {
		return 0, fmt.Errorf("describe %s: %w", topic, err)
	}
	for _, p := range partitions {
		end, err := client.GetOffset(topic, p, sarama.OffsetNewest)
		if err != nil {
			return 0, fmt.Errorf("ask for the end of %s/%d: %w", topic, p, err)
		}
		total += end
	}
	if total == 0 {
		return 0, fmt.Errorf("topic %s is empty", topic)
	}
	return total, nil
}
