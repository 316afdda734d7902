package bridge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/service"
)

// replayCommand is the subcommand that decodes dead letters again.
const replayCommand = "replay"

// replayConfig is the configuration of the replay subcommand: the bridge's own, of which it needs Kafka and how the brokers' events are read,
// and which letters to take.
type replayConfig struct {
	commandConfig
	Since  string `conf:"since" usage:"replay: letters received at this time or later, RFC 3339; empty: all that Kafka has"`
	Reason string `conf:"reason" usage:"replay: letters with this reason only; empty: with any"`
	DryRun bool   `conf:"dry-run" usage:"replay: say what would be done, and do nothing"`
}

// Validate reports every mistake. It asks for no broker and no folder: none is used.
func (c *replayConfig) Validate() error {
	bridge := c.Config
	if bridge.DataDir == "" {
		bridge.DataDir = "unused"
	}
	if len(bridge.Clusters) == 0 && len(bridge.MQTT.URLs) == 0 {
		bridge.Dial = func(context.Context) (net.Conn, error) { return nil, errors.ErrUnsupported }
	}
	errs := []error{bridge.Validate(), c.Log.Validate()}
	if _, err := c.since(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (c *replayConfig) since() (time.Time, error) {
	if c.Since == "" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339Nano, c.Since)
	if err != nil {
		return t, fmt.Errorf("since: %q is no time such as 2026-01-31T12:00:00Z", c.Since)
	}
	return t, nil
}

// runReplay is the replay subcommand.
func runReplay(ctx context.Context, args []string, out io.Writer) error {
	cfg := &replayConfig{commandConfig: commandConfig{Config: DefaultConfig(), Log: service.DefaultLog(), Admin: service.DefaultAdmin()}}
	cfg.Log.Level = "warn"
	if err := service.LoadTo(out, "bridge "+replayCommand, args, os.Environ(), cfg); err != nil {
		return err
	}
	log, err := cfg.Log.Logger(os.Stderr)
	if err != nil {
		return err
	}
	since, err := cfg.since()
	if err != nil {
		return err
	}
	return replay(ctx, cfg.Config, replayFilter{since, cfg.Reason}, cfg.DryRun, log, out)
}

// replayFilter selects dead letters.
type replayFilter struct {
	since  time.Time // zero: all
	reason string    // empty: any
}

// replay decodes the dead letters of the configured clusters with the decoders of today, and produces the facts that they give, with the time at
// which the bridge received them. It writes a line for each letter.
//
// It may be repeated, and a bridge of the clusters may run: a letter gives the same facts each time, with the same IDs, and facts may come in any
// order. Each letter is read on its own, so that what a decoder learns from messages around it is missing: facts of Mosquitto have no ordinal
// (order), facts of dialects without stamps are the first of their millisecond. What letters tell about nodes is out of date and is left out.
func replay(ctx context.Context, cfg Config, filter replayFilter, dryRun bool, log *slog.Logger, out io.Writer) (err error) {
	r := &replayer{out: out, format: cfg.Format(), clusters: map[string]*replayCluster{}}
	var names []string
	for _, c := range cfg.clusters() {
		names = append(names, c.Name)
	}
	for _, c := range cfg.clusters() {
		location, err := time.LoadLocation(c.Timezone)
		if err != nil {
			return fmt.Errorf("mqtt-timezone: %w", err)
		}
		mqtt := c.MQTTConfig
		r.clusters[c.Name] = &replayCluster{dialects: selectDialects(c.Dialect), config: decoderConfig{cluster: c.Name, clusters: names, location: location, mqtt: &mqtt}}
	}
	if !dryRun {
		opts, err := cfg.Opts(log)
		if err != nil {
			return err
		}
		kafka := cfg.Config
		kafka.Partitions = 0 // as the topic has
		client, err := kgo.NewClient(append(opts, kafka.ProducerOpts()...)...)
		if err != nil {
			return fmt.Errorf("create the kafka client: %w", err)
		}
		defer client.Close()
		r.client = client
	}
	err = eventlog.ReadDeadLetters(ctx, cfg.Config, filter.since, log, func(l eventlog.Letter) error {
		if l.Source != eventlog.SourceMQTT || filter.reason != "" && l.Reason != filter.reason {
			return nil
		}
		return r.letter(ctx, &l)
	})
	if err != nil {
		return fmt.Errorf("%w; to begin again does no harm", err)
	}
	facts := "facts produced"
	if dryRun {
		facts = "facts that would be produced"
	}
	_, err = fmt.Fprintf(out, "letters: %d; decoded: %d; %s: %d; without facts: %d; still not decoded: %d; of clusters not configured here: %d\n",
		r.letters, r.decoded, facts, r.facts, r.ignored, r.dead, r.foreign)
	if err != nil {
		return fmt.Errorf("print what became of the letters: %w", err)
	}
	return nil
}

// replayCluster is how the messages of a cluster are read.
type replayCluster struct {
	dialects []*dialect
	config   decoderConfig
}

type replayer struct {
	out      io.Writer
	format   eventlog.Format
	client   *kgo.Client // nil: produce nothing
	clusters map[string]*replayCluster

	letters, decoded, facts, ignored, dead, foreign int
}

// letter decodes a letter again.
func (r *replayer) letter(ctx context.Context, l *eventlog.Letter) error {
	r.letters++
	c := r.clusters[l.Cluster]
	if c == nil {
		r.foreign++
		return r.say(l, fmt.Sprintf("of cluster %q, which is not configured here", l.Cluster))
	}
	result := c.decode(l)
	switch {
	case result.dead != nil:
		r.dead++
		return r.say(l, fmt.Sprintf("still cannot be decoded: %s: %s", result.dead.reason, result.dead.detail))
	case result.signal != nil:
		r.ignored++
		return r.say(l, "tells about a node, as it was then: left out")
	case len(result.facts) == 0:
		r.ignored++
		return r.say(l, "tells nothing about a client: "+result.ignored)
	}
	var records []*kgo.Record
	var clients []string
	for i := range result.facts {
		f := &result.facts[i]
		records = append(records, eventlog.FactRecord(f, r.format))
		clients = append(clients, fmt.Sprintf("%s of %q, fact %s", f.Kind, f.ClientID, f.ID))
	}
	r.decoded++
	r.facts += len(records)
	verb := "gives"
	if r.client != nil {
		verb = "produced"
		limited, cancel := context.WithTimeout(ctx, kafkaTimeout)
		defer cancel()
		if err := r.client.ProduceSync(limited, records...).FirstErr(); err != nil {
			return fmt.Errorf("produce the facts of letter %d/%d: %w", l.LetterPartition, l.LetterOffset, err)
		}
	}
	return r.say(l, verb+" "+strings.Join(clients, ", "))
}

// say writes what became of a letter. Texts of brokers are quoted: they may hold what acts on a terminal.
func (r *replayer) say(l *eventlog.Letter, what string) error {
	if strings.ContainsFunc(what, func(c rune) bool { return c < ' ' || c >= 0x7F }) {
		what = fmt.Sprintf("%+q", what)
	}
	if _, err := fmt.Fprintf(r.out, "letter %d/%d, topic %+q, %q: %s\n", l.LetterPartition, l.LetterOffset, l.Topic, l.Reason, what); err != nil {
		return fmt.Errorf("print what became of a letter: %w", err)
	}
	return nil
}

// decode reads the message of a letter, by what the bridge knew when it came: the broker's dialect and version.
func (c *replayCluster) decode(l *eventlog.Letter) decoded {
	switch {
	case l.Err != nil:
		return deadLetter(l.Reason, "the letter itself cannot be read: "+l.Err.Error())
	case l.CutFrom != 0:
		return deadLetter(l.Reason, fmt.Sprintf("the letter has only the first %d of %d bytes", len(l.Payload), l.CutFrom))
	}
	m := &message{topic: l.Topic, payload: l.Payload, qos: l.QoS, retain: l.Retain, receivedMS: l.ReceivedMS}
	version := versionMessage(&l.DeadLetter)
	for _, dialect := range c.dialects {
		d := dialect.newDecoder(c.config)
		if version != nil && d.owns(version) {
			d.decode(version)
		}
		if !d.owns(m) {
			continue
		}
		if len(c.dialects) > 1 {
			if why := impostor(m, l.Dialect, dialect.name); why != nil {
				return decoded{dead: why}
			}
		}
		return read(d, m)
	}
	return noOwner()
}
