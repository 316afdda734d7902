package broker

import (
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	connections             prometheus.Gauge
	connected, disconnected prometheus.Counter
	dropped                 prometheus.Counter
}

func newMetrics(b *Broker, reg prometheus.Registerer) (*metrics, error) {
	events := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "presence_broker_events_total",
		Help: "Client events of the embedded MQTT broker, by kind.",
	}, []string{"event"})
	m := &metrics{
		connections: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "presence_broker_connections",
			Help: "MQTT clients that are connected to the embedded broker.",
		}),
		connected:    events.WithLabelValues("connected"),
		disconnected: events.WithLabelValues("disconnected"),
		dropped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "presence_broker_events_dropped_total",
			Help: "Client events that were lost because the bridge did not keep up.",
		}),
	}
	queued := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "presence_broker_events_queued",
		Help: "Messages of the embedded broker that wait for the bridge.",
	}, func() float64 { return float64(b.feed.pending.Load()) })
	var errs []error
	for _, c := range []prometheus.Collector{events, m.connections, m.dropped, queued} {
		errs = append(errs, reg.Register(c))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("register the broker's metrics: %w", err)
	}
	return m, nil
}
