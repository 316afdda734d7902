package query

import "github.com/prometheus/client_golang/prometheus"

// watchMetrics of WatchClients.
type watchMetrics struct {
	watchers      *prometheus.GaugeVec
	messages      *prometheus.CounterVec
	skipped       prometheus.Counter
	catchUps      prometheus.Counter
	catchingUp    prometheus.Gauge
	bufferRecords prometheus.Gauge
	bufferBytes   prometheus.Gauge
	badRecords    prometheus.Counter
}

func newWatchMetrics(reg prometheus.Registerer) (*watchMetrics, error) {
	m := &watchMetrics{
		watchers: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "presence_query_watchers",
			Help: "Watches that are running, by transport.",
		}, []string{"transport"}),
		messages: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "presence_query_watch_messages_total",
			Help: "Messages sent to watchers, by type.",
		}, []string{"type"}),
		skipped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "presence_query_watch_skipped_records_total",
			Help: "Records that slow watchers did not get to see, over all watchers.",
		}),
		catchUps: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "presence_query_watch_catch_ups_total",
			Help: "Watches that came back from further behind than the buffer reaches, and read Kafka themselves.",
		}),
		catchingUp: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "presence_query_watch_catching_up",
			Help: "Watches that read Kafka themselves, or wait for their turn to.",
		}),
		bufferRecords: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "presence_query_watch_buffer_records",
			Help: "Transitions kept for watchers.",
		}),
		bufferBytes: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "presence_query_watch_buffer_bytes",
			Help: "Memory of the transitions kept for watchers.",
		}),
		badRecords: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "presence_query_watch_bad_records_total",
			Help: "Records of client-state that are not of the contract, and were passed over.",
		}),
	}
	return m, register(reg, m.watchers, m.messages, m.skipped, m.catchUps, m.catchingUp, m.bufferRecords, m.bufferBytes, m.badRecords)
}
