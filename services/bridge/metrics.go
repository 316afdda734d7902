package bridge

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the bridge's counters. None of them is labelled by client.
type metrics struct {
	facts         *prometheus.CounterVec
	deadLetters   *prometheus.CounterVec
	ignored       *prometheus.CounterVec
	connected     *prometheus.GaugeVec
	connects      *prometheus.CounterVec
	gaps          *prometheus.CounterVec
	dropped       prometheus.Counter
	produceErrors prometheus.Counter
	inFlight      prometheus.Gauge
	spoolRecords  prometheus.Gauge
	spoolBytes    prometheus.Gauge
	lag           prometheus.Gauge
	durable       prometheus.Histogram
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "presence_bridge_" + name, Help: help}, labels)
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: "presence_bridge_" + name, Help: help})
	}
	m := &metrics{
		facts:       counter("facts_total", "Facts that the brokers' messages gave.", "dialect", "type"),
		deadLetters: counter("dead_letters_total", "MQTT messages that could not be decoded, and records that Kafka refuses for good.", "reason"),
		ignored:     counter("ignored_total", "MQTT messages that say nothing about presence.", "reason"),
		connected: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "presence_bridge_mqtt_connected", Help: "1 while the bridge is subscribed to the cluster's broker.",
		}, []string{"cluster"}),
		connects: counter("mqtt_connects_total", "MQTT connections made, by whether the broker had kept the session.", "cluster", "session"),
		gaps:     counter("feed_gaps_total", "Subscriptions that could not continue the one before without loss.", "cluster"),
		dropped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "presence_bridge_dropped_total", Help: "Records dropped at the spool's bound.",
		}),
		produceErrors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "presence_bridge_produce_errors_total", Help: "Records that Kafka refused; they are tried again.",
		}),
		inFlight:     gauge("kafka_in_flight_records", "Records that Kafka has not acknowledged yet, without those of the spool."),
		spoolRecords: gauge("spool_records", "Records in the spool."),
		spoolBytes:   gauge("spool_bytes", "Size of the spool in bytes."),
		lag:          gauge("lag_seconds", "Age of the oldest fact that Kafka does not have."),
		durable: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "presence_bridge_durable_seconds",
			Help:    "Time from the receipt of an MQTT message until its facts are in Kafka or in the spool.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14),
		}),
	}
	for _, c := range []prometheus.Collector{
		m.facts, m.deadLetters, m.ignored, m.connected, m.connects, m.gaps, m.dropped, m.produceErrors, m.inFlight, m.spoolRecords, m.spoolBytes, m.lag, m.durable,
	} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("register the bridge's metrics: %w", err)
		}
	}
	return m, nil
}
