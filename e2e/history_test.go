package e2e

import (
	"context"
	"fmt"
	"log/slog"
	"testing"

	"github.com/mqtt-presence/presence/e2e/chaos"
	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// history is what a run has left in Kafka. It is used by one goroutine.
type history struct {
	*chaos.Ledger
	reader *chaos.Reader
}

func newHistory(t *testing.T, cfg eventlog.Config) *history { return newHistoryOf(t, cfg, cluster) }

// newHistoryOf is the history of another MQTT cluster.
func newHistoryOf(t *testing.T, cfg eventlog.Config, cluster string) *history {
	t.Helper()
	opts, err := cfg.Opts(slog.New(slog.DiscardHandler))
	must(t, err)
	h := &history{Ledger: chaos.NewLedger(cluster, presence.DefaultAllowanceMS, cfg.Partitions)}
	h.reader, err = chaos.NewReader(h.Ledger, opts)
	must(t, err)
	t.Cleanup(h.reader.Close)
	return h
}

// read reads on to what is committed now.
func (h *history) read(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return h.reader.Read(ctx)
}

// agrees checks a client's records, and that the last transition is the answer.
func (h *history) agrees(answer *presencev1.Client) error {
	id := answer.GetClientId()
	if err := h.CheckClient(id); err != nil {
		return err
	}
	list := h.Client(id).Transitions()
	if len(list) == 0 {
		return fmt.Errorf("client %q: no transition is published, the answer is %s", id, answer.GetStatus())
	}
	last, told := list[len(list)-1], answer.GetLastTransition()
	if last.Status.String() != answer.GetStatus() || last.Node != answer.GetConnection().GetNode() || last.PreviousStatus.String() != told.GetPreviousStatus() ||
		last.EventOffset != told.GetEventOffset() || last.NodeEventOffset != told.GetNodeEventOffset() {
		return fmt.Errorf("client %q: the last transition is %s, the answer %v", id, &last, answer)
	}
	return nil
}
