package materializer

import (
	"strings"
	"testing"
	"time"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

func TestValidateNamesEveryMistake(t *testing.T) {
	cfg := DefaultConfig()
	cfg.StateAddr, cfg.StateAdvertise, cfg.Replica, cfg.Allowance, cfg.CheckpointInterval, cfg.CacheSize = "x", "y", "", -1, 0, -1
	cfg.EvidencePerClient, cfg.SessionsPerClient, cfg.ExpireAfter = -1, 257, time.Hour
	err := cfg.Validate()
	if err == nil {
		t.Fatal("no error")
	}
	for _, option := range []string{"data-dir", "kafka-brokers", "state-addr", "state-advertise", "replica", "allowance", "checkpoint-interval", "cache-size", "evidence-per-client",
		"sessions-per-client", "expire-after"} {
		if !strings.Contains(err.Error(), option+": ") {
			t.Errorf("%s is not named in: %v", option, err)
		}
	}
	cfg = DefaultConfig()
	cfg.DataDir, cfg.Kafka.Brokers = "data", []string{"127.0.0.1:9092"}
	if err := cfg.Validate(); err != nil {
		t.Errorf("the defaults: %v", err)
	}
}

func TestKeysThatAreNotOwnedAreListed(t *testing.T) {
	cfg := DefaultConfig()
	cfg.DataDir, cfg.Kafka.Brokers = "data", []string{"127.0.0.1:9092"}
	m, err := New(cfg, testLog(t), newRegistry())
	if err != nil {
		t.Fatal(err)
	}
	resp, err := m.GetStates(t.Context(), &presencev1.GetStatesRequest{Cluster: "default", Keys: []*presencev1.StateKey{{ClientId: "a"}, {ClientId: "b"}}})
	if err != nil || len(resp.GetEntries()) != 0 || len(resp.GetNotOwned()) != 2 || resp.GetNotOwned()[1] != 1 {
		t.Errorf("answer is %v, %v", resp, err)
	}
}
