package presencectl

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/mqtt-presence/presence/libs/eventlog"
)

const (
	defaultLetters = 100
	// previewBytes is how much of a payload a wide table shows.
	previewBytes = 120
)

func (a *app) deadLettersCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "dead-letters",
		GroupID: groupAdmin,
		Short:   "Look at what could not be decoded, and try it again",
		Long: `What bridge and materializer cannot decode goes to the topic presence.dead-letters.v1, with origin and reason, and is kept for 14 days.
These commands read that topic from Kafka itself: a dead letter holds whatever a broker sent, so that it is no part of what the query
service answers, and who may read it is up to Kafka's own rules. With --cluster, or a context that has one, letters that are known to
be of another cluster are left out.`,
		Example: `  presencectl dead-letters list --kafka-brokers 127.0.0.1:9092
  presencectl dead-letters replay --kafka-brokers 127.0.0.1:9092 --dry-run`,
		Args: a.noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.PersistentFlags().AddFlagSet(a.flags.kafka)
	cmd.AddCommand(a.listLettersCommand(), a.replayCommand())
	return cmd
}

// letterFilter are the flags that select dead letters.
type letterFilter struct {
	reason, origin string
	since          *timeFlag
}

func (a *app) letterFlags(cmd *cobra.Command) *letterFilter {
	f := &letterFilter{}
	cmd.Flags().StringVar(&f.reason, "reason", "", "why it could not be decoded: not_json, bad_record, ...")
	cmd.Flags().StringVar(&f.origin, "origin", "", "where it came from: mqtt or kafka")
	f.since = a.timeFlag(cmd, "since", "received at this time or later")
	a.completeFlag(cmd, "origin", completeWords([]string{eventlog.SourceMQTT, eventlog.SourceKafka}))
	a.completeFlag(cmd, "reason", completeWords(nil))
	return f
}

func (f *letterFilter) validate() error {
	if f.origin != "" && f.origin != eventlog.SourceMQTT && f.origin != eventlog.SourceKafka {
		return fmt.Errorf("--origin: %q is neither mqtt nor kafka", f.origin)
	}
	return nil
}

// letters calls do with each dead letter that is selected. Of a cluster's letters, those without one are taken too: nothing says whose they are.
func (a *app) letters(ctx context.Context, f *letterFilter, do func(*eventlog.Letter) error) error {
	cfg, err := a.settings.eventlog()
	if err != nil {
		return err
	}
	return eventlog.ReadDeadLetters(ctx, cfg, f.since.at, a.kafkaLog(), func(l eventlog.Letter) error {
		if f.reason != "" && l.Reason != f.reason || f.origin != "" && l.Source != f.origin ||
			a.settings.Cluster != "" && l.Cluster != "" && l.Cluster != a.settings.Cluster {
			return nil
		}
		return do(&l)
	})
}

// kafkaLog is for the Kafka client's own troubles; what it cannot do comes back as an error too.
func (a *app) kafkaLog() *slog.Logger {
	return slog.New(slog.NewTextHandler(a.err, &slog.HandlerOptions{Level: slog.LevelError}))
}

// offline returns the body of a command that does not ask the service.
func (a *app) offline(run func(ctx context.Context) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, _ []string) error {
		if err := errors.Join(a.checkOutput(), a.resolve()); err != nil {
			return err
		}
		return run(cmd.Context())
	}
}

func (a *app) listLettersCommand() *cobra.Command {
	var limit int
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List dead letters",
		Long:  "Lists the newest dead letters that the filters select, oldest first. With -o json each holds its payload too.",
		Example: `  presencectl dead-letters list --since -1h
  presencectl dead-letters list --origin mqtt --reason not_json --limit 10 -o wide
  presencectl dead-letters list --limit 0 -o json | jq -r .reason | sort | uniq -c`,
		Args: a.noArgs,
	}
	f := a.letterFlags(cmd)
	cmd.Flags().IntVar(&limit, "limit", defaultLetters, "how many at most, the newest; 0: all")
	cmd.RunE = a.offline(func(ctx context.Context) error {
		if limit < 0 {
			return fmt.Errorf("--limit: %d is negative", limit)
		}
		if err := f.validate(); err != nil {
			return err
		}
		return a.listLetters(ctx, f, limit)
	})
	return cmd
}

func (a *app) listLetters(ctx context.Context, f *letterFilter, limit int) error {
	var newest []*eventlog.Letter
	found := 0
	sort := func() {
		slices.SortFunc(newest, func(a, b *eventlog.Letter) int {
			return cmp.Or(cmp.Compare(a.ReceivedMS, b.ReceivedMS), cmp.Compare(a.LetterPartition, b.LetterPartition), cmp.Compare(a.LetterOffset, b.LetterOffset))
		})
	}
	err := a.letters(ctx, f, func(l *eventlog.Letter) error {
		found++
		newest = append(newest, l)
		if limit > 0 && len(newest) >= 2*limit {
			sort()
			newest = slices.Delete(newest, 0, len(newest)-limit)
		}
		return nil
	})
	if err != nil {
		return err
	}
	sort()
	if limit > 0 && len(newest) > limit {
		newest = newest[len(newest)-limit:]
	}
	t := &table{header: []string{"RECEIVED", "LETTER", "CLUSTER", "REASON", "ORIGIN", "DETAIL"}}
	if a.wide() {
		t.header = append(t.header, "PAYLOAD")
	}
	for _, l := range newest {
		if a.json() {
			if err := a.printJSON(letterJSON(l)); err != nil {
				return err
			}
			continue
		}
		row := []string{letterTime(l), letterName(l), cell(l.Cluster), cell(l.Reason), originName(l), letterDetail(l)}
		if a.wide() {
			row = append(row, preview(l.Payload))
		}
		t.add(row...)
	}
	if !a.json() {
		if err := a.printTable(t); err != nil {
			return err
		}
	}
	if found > len(newest) {
		a.note("the newest %d of %d dead letters; --limit 0 lists all", len(newest), found)
	}
	return nil
}

func letterTime(l *eventlog.Letter) string {
	return time.UnixMilli(l.ReceivedMS).UTC().Format(stampFormat)
}

// letterName is where the letter itself stands: partition/offset.
func letterName(l *eventlog.Letter) string {
	return fmt.Sprintf("%d/%d", l.LetterPartition, l.LetterOffset)
}

// originName is where what it is about came from.
func originName(l *eventlog.Letter) string {
	if l.Source == eventlog.SourceKafka {
		return fmt.Sprintf("kafka:%s/%d/%d", printable(l.Topic), l.Partition, l.Offset)
	}
	return fmt.Sprintf("%s:%s", cell(l.Source), printable(l.Topic))
}

func letterDetail(l *eventlog.Letter) string {
	if l.Err != nil {
		return printable(fmt.Sprintf("%s (the letter cannot be read: %v)", l.Detail, l.Err))
	}
	return printable(l.Detail)
}

// preview is the beginning of a payload.
func preview(payload []byte) string {
	if len(payload) <= previewBytes {
		return strconv.Quote(string(payload))
	}
	return strconv.Quote(string(payload[:previewBytes])) + fmt.Sprintf("... (%d bytes)", len(payload))
}

// jsonLetter is a dead letter as JSON. What is absent is not known, or does not apply.
type jsonLetter struct {
	LetterPartition int32  `json:"letter_partition"`
	LetterOffset    int64  `json:"letter_offset"`
	LetterError     string `json:"letter_error,omitempty"`
	Received        string `json:"received"`
	Reason          string `json:"reason"`
	Detail          string `json:"detail,omitempty"`
	Cluster         string `json:"cluster,omitempty"`
	Dialect         string `json:"dialect,omitempty"`
	Origin          string `json:"origin"`
	Topic           string `json:"topic"`
	TopicBase64     string `json:"topic_base64,omitempty"` // if it is not UTF-8

	Partition *int32       `json:"partition,omitempty"`
	Offset    *int64       `json:"offset,omitempty"`
	KeyBase64 *string      `json:"key_base64,omitempty"`
	KeyText   *string      `json:"key_text,omitempty"`
	Headers   []jsonHeader `json:"headers,omitempty"`

	QoS           *byte  `json:"qos,omitempty"`
	Retain        *bool  `json:"retain,omitempty"`
	BrokerVersion string `json:"broker_version,omitempty"`

	PayloadBytes  int     `json:"payload_bytes"`
	CutFromBytes  int     `json:"cut_from_bytes,omitempty"`
	PayloadText   *string `json:"payload_text,omitempty"` // if it is text
	PayloadBase64 string  `json:"payload_base64"`

	// Of a replay.
	Result       string `json:"result,omitempty"`
	ResultDetail string `json:"result_detail,omitempty"`
}

type jsonHeader struct {
	Key         string `json:"key"`
	ValueText   string `json:"value_text,omitempty"`
	ValueBase64 string `json:"value_base64"`
}

func letterJSON(l *eventlog.Letter) *jsonLetter {
	j := &jsonLetter{
		LetterPartition: l.LetterPartition, LetterOffset: l.LetterOffset, Received: letterTime(l), Reason: l.Reason, Detail: l.Detail,
		Cluster: l.Cluster, Dialect: l.Dialect, Origin: l.Source, Topic: l.Topic, PayloadBytes: len(l.Payload), CutFromBytes: l.CutFrom,
		PayloadText: asText(l.Payload), PayloadBase64: base64.StdEncoding.EncodeToString(l.Payload), BrokerVersion: l.Version,
	}
	if l.Err != nil {
		j.LetterError = l.Err.Error()
	}
	if !utf8.ValidString(l.Topic) {
		j.TopicBase64 = base64.StdEncoding.EncodeToString([]byte(l.Topic))
	}
	switch l.Source {
	case eventlog.SourceKafka:
		j.Partition, j.Offset = &l.Partition, &l.Offset
		if l.Key != nil {
			key := base64.StdEncoding.EncodeToString(l.Key)
			j.KeyBase64, j.KeyText = &key, asText(l.Key)
		}
		for _, h := range l.Headers {
			header := jsonHeader{Key: h.Key, ValueBase64: base64.StdEncoding.EncodeToString(h.Value)}
			if text := asText(h.Value); text != nil {
				header.ValueText = *text
			}
			j.Headers = append(j.Headers, header)
		}
	case eventlog.SourceMQTT:
		j.QoS, j.Retain = &l.QoS, &l.Retain
	}
	return j
}

// asText returns bytes as text if they print, with line breaks and tabs, else nil.
func asText(b []byte) *string {
	s := string(b)
	if !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return !strconv.IsPrint(r) && !strings.ContainsRune("\r\n\t", r) }) {
		return nil
	}
	return &s
}
