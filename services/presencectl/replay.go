package presencectl

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
)

// produceTimeout is how long Kafka may take for one record.
const produceTimeout = 30 * time.Second

// Results of a replay, as counted and as JSON says.
const (
	replayed      = "replayed"
	replayable    = "replayable"     // a dry run
	stillBad      = "still_bad"      // it would be a dead letter again
	forBridge     = "for_bridge"     // an MQTT message: the bridge decodes it again
	notReplayable = "not_replayable" // the detail says why
	duplicate     = "duplicate"      // another letter is about the same record
)

func (a *app) replayCommand() *cobra.Command {
	var dryRun, yes, unchecked bool
	cmd := &cobra.Command{
		Use:   "replay",
		Short: "Try dead letters again, once what could not read them is mended",
		Long: `Dead letters of records of presence.client-events.v1 are produced to that topic again, with the key, the headers and the value that they
had, so that they come to the partition of their key. What would be a dead letter again is left alone and listed. To repeat a replay
does no harm: facts have deterministic IDs, so that copies make no difference, and the order of facts makes none either.

Records of presence.node-events.v1 and presence.client-state.v1 are not produced again: these topics keep the latest value of each key, which
an old one would replace. A materializer reads all of node-events anew whenever it starts.

Messages of MQTT brokers are for the bridge, which knows their dialects: this command prints the command that decodes them again
('bridge replay'), which keeps the time at which they were received.`,
		Example: `  presencectl dead-letters replay --dry-run
  presencectl dead-letters replay --reason bad_record --since -24h --yes`,
		Args: a.noArgs,
	}
	f := a.letterFlags(cmd)
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "say what would be done, and do nothing")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask for confirmation")
	cmd.Flags().BoolVar(&unchecked, "unchecked", false, "produce also what this presencectl cannot read, for materializers that are newer than it")
	cmd.RunE = a.offline(func(ctx context.Context) error {
		if err := f.validate(); err != nil {
			return err
		}
		r := &replay{app: a, filter: f, unchecked: unchecked, counts: map[string]int{}}
		return r.run(ctx, dryRun, yes)
	})
	return cmd
}

// replay reads the letters twice: to see what there is, and, once that is confirmed, to produce.
type replay struct {
	app       *app
	filter    *letterFilter
	unchecked bool
	counts    map[string]int
	chosen    map[place]bool // letters to replay
}

// place is a record of a topic.
type place struct {
	topic     string
	partition int32
	offset    int64
}

func (r *replay) run(ctx context.Context, dryRun, yes bool) error {
	a := r.app
	if err := r.look(ctx, dryRun); err != nil {
		return err
	}
	r.tellBridge()
	if len(r.chosen) == 0 || dryRun {
		a.note("%s", r.summary())
		return nil
	}
	if !yes {
		question := fmt.Sprintf("Produce %s to %s again?", number(int64(len(r.chosen)), "record"), eventlog.TopicClientEvents)
		if err := a.confirm(question); err != nil {
			return err
		}
	}
	err := r.produce(ctx)
	a.note("%s", r.summary())
	return err
}

// look decides what becomes of each letter, and prints it, except for those that will be produced: they are printed once they are.
func (r *replay) look(ctx context.Context, dryRun bool) error {
	r.chosen = map[place]bool{}
	origins := map[place]bool{}
	t := r.table()
	err := r.app.letters(ctx, r.filter, func(l *eventlog.Letter) error {
		result, detail, _ := r.plan(l)
		if result == replayable {
			// Each replica of the materializer writes a letter of its own.
			origin := place{l.Topic, l.Partition, l.Offset}
			if origins[origin] {
				result = duplicate
			} else {
				origins[origin], r.chosen[letterPlace(l)] = true, true
			}
			if !dryRun && result == replayable {
				return nil
			}
		}
		r.counts[result]++
		return r.print(t, l, result, detail)
	})
	if err != nil {
		return err
	}
	return r.flush(t)
}

func letterPlace(l *eventlog.Letter) place {
	return place{eventlog.TopicDeadLetters, l.LetterPartition, l.LetterOffset}
}

// plan returns what becomes of a letter, and the record to produce.
func (r *replay) plan(l *eventlog.Letter) (result, detail string, record *kgo.Record) {
	switch {
	case l.Err != nil:
		return notReplayable, "the letter itself cannot be read: " + l.Err.Error(), nil
	case l.Source == eventlog.SourceMQTT:
		return forBridge, "", nil
	case l.Topic == eventlog.TopicNodeEvents:
		return notReplayable, "an old value would replace a newer one of its key; materializers read the topic anew when they start", nil
	case l.Topic == eventlog.TopicClientState:
		return notReplayable, "an old value would replace a newer one of its key; states are folded from client-events", nil
	case l.Topic != eventlog.TopicClientEvents:
		// Whoever can write a dead letter could have any record written to any topic.
		return notReplayable, "only records of " + eventlog.TopicClientEvents + " are replayed", nil
	case l.CutFrom != 0:
		return notReplayable, "the letter holds only a part of the record, which was too large for one", nil
	}
	record = &kgo.Record{Topic: l.Topic, Key: l.Key, Value: l.Payload, Headers: l.Headers, Timestamp: time.UnixMilli(l.ReceivedMS)}
	var fact presence.Fact
	if err := eventlog.DecodeFact(record, &fact); err != nil {
		if r.unchecked && record.Key != nil {
			return replayable, "not checked", record
		}
		return stillBad, err.Error(), nil
	}
	key := eventlog.ClientKey(fact.Cluster, fact.ClientID)
	switch {
	case record.Key == nil:
		record.Key = key
		return replayable, "with the key that its value asks for", record
	case string(record.Key) != string(key) && !r.unchecked:
		return stillBad, "the key is not cluster/client_id of the value", nil
	}
	return replayable, "", record
}

// produce reads the letters again and produces those that were chosen.
func (r *replay) produce(ctx context.Context) (err error) {
	cfg, err := r.app.settings.eventlog()
	if err != nil {
		return err
	}
	opts, err := cfg.Opts(r.app.kafkaLog())
	if err != nil {
		return err
	}
	cfg.Partitions = 0 // as the topic has
	client, err := kgo.NewClient(append(opts, cfg.ProducerOpts()...)...)
	if err != nil {
		return fmt.Errorf("create the kafka client: %w", err)
	}
	defer client.Close()
	t := r.table()
	err = r.app.letters(ctx, r.filter, func(l *eventlog.Letter) error {
		if !r.chosen[letterPlace(l)] {
			return nil
		}
		_, detail, record := r.plan(l)
		if record == nil {
			return nil
		}
		// The client's own limit for a delivery would count from the record's time, which is long ago.
		limited, cancel := context.WithTimeout(ctx, produceTimeout)
		defer cancel()
		if err := client.ProduceSync(limited, record).FirstErr(); err != nil {
			return fmt.Errorf("produce letter %s to %s again; those before it are produced, and to repeat them does no harm: %w", letterName(l), record.Topic, err)
		}
		r.counts[replayed]++
		to := fmt.Sprintf("to %s/%d/%d", record.Topic, record.Partition, record.Offset)
		return r.print(t, l, replayed, strings.TrimSuffix(to+", "+detail, ", "))
	})
	return errors.Join(err, r.flush(t))
}

func (r *replay) table() *table {
	return &table{header: []string{"LETTER", "RECEIVED", "ORIGIN", "REASON", "RESULT", "DETAIL"}}
}

// printEvery is after how many letters a table is printed, so that a long replay shows where it is.
const printEvery = 500

func (r *replay) print(t *table, l *eventlog.Letter, result, detail string) error {
	if r.app.json() {
		j := letterJSON(l)
		j.Result, j.ResultDetail = result, detail
		return r.app.printJSON(j)
	}
	t.add(letterName(l), letterTime(l), originName(l), cell(l.Reason), result, printable(detail))
	if len(t.rows) >= printEvery {
		return r.flush(t)
	}
	return nil
}

func (r *replay) flush(t *table) error {
	if len(t.rows) == 0 {
		return nil
	}
	err := r.app.printTable(t)
	t.rows, t.headless = nil, true
	return err
}

// tellBridge prints the command that decodes what came from MQTT.
func (r *replay) tellBridge() {
	if r.counts[forBridge] == 0 {
		return
	}
	command := "bridge replay"
	if r.filter.since.text != "" {
		command += " --since=" + r.filter.since.at.UTC().Format(time.RFC3339Nano)
	}
	if r.filter.reason != "" {
		command += " --reason=" + shellQuote(r.filter.reason)
	}
	r.app.note("of MQTT brokers: %s. The bridge decodes such again, with its own flags, environment or --config; first with --dry-run:", number(int64(r.counts[forBridge]), "letter"))
	r.app.note("  %s", command)
}

// shellQuote quotes a word for a shell.
func shellQuote(s string) string {
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_-./:", r))
	}) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

func (r *replay) summary() string {
	var parts []string
	for _, c := range []struct{ result, text string }{
		{replayed, "produced again"}, {replayable, "would be produced again"}, {stillBad, "would be dead letters again"}, {forBridge, "for 'bridge replay'"},
		{notReplayable, "not to be replayed"}, {duplicate, "about the same record as another"},
	} {
		if n := r.counts[c.result]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, c.text))
		}
	}
	if len(parts) == 0 {
		return "no dead letters"
	}
	return "dead letters: " + strings.Join(parts, ", ")
}
