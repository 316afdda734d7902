package materializer

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/services/materializer/store"
)

const namespace = "presence_materializer"

// metrics are the materializer's numbers. None has a client ID in it.
type metrics struct {
	facts         *prometheus.CounterVec
	nodeFacts     *prometheus.CounterVec
	transitions   *prometheus.CounterVec
	deadLetters   *prometheus.CounterVec
	published     prometheus.Counter
	fenced        prometheus.Counter
	interrupted   prometheus.Counter
	sweeps        prometheus.Counter
	expired       prometheus.Counter
	reads         prometheus.Histogram
	batchRecords  prometheus.Histogram
	commitBytes   prometheus.Histogram
	commitSeconds prometheus.Histogram
	listRows      prometheus.Histogram
}

// newMetrics registers the numbers; m is asked for those that are read at a scrape.
func newMetrics(reg prometheus.Registerer, m *Materializer) (*metrics, error) {
	counter := func(name, help string) prometheus.CounterOpts {
		return prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help}
	}
	histogram := func(name, help string, buckets []float64) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: namespace, Name: name, Help: help, Buckets: buckets})
	}
	x := &metrics{
		facts:         prometheus.NewCounterVec(counter("facts_total", "Client facts folded, by outcome and type."), []string{"outcome", "type"}),
		nodeFacts:     prometheus.NewCounterVec(counter("node_facts_total", "Node and feed facts applied, by type."), []string{"type"}),
		transitions:   prometheus.NewCounterVec(counter("transitions_total", "Changes of status or current connection, by the new status."), []string{"status"}),
		deadLetters:   prometheus.NewCounterVec(counter("dead_letters_total", "Records that could not be applied, by reason."), []string{"reason"}),
		published:     prometheus.NewCounter(counter("published_total", "Records committed to client-state.")),
		fenced:        prometheus.NewCounter(counter("fenced_total", "Times that a publisher was fenced.")),
		interrupted:   prometheus.NewCounter(counter("interrupted_total", "Times that a partition had to be acquired again since Kafka was away.")),
		sweeps:        prometheus.NewCounter(counter("sweeps_total", "Sweeps of a partition finished after a change of nodes.")),
		expired:       prometheus.NewCounter(counter("expired_total", "Clients of which nothing was heard for so long that they were removed.")),
		reads:         histogram("read_keys", "Clients asked for in one read.", prometheus.ExponentialBuckets(1, 4, 6)),
		batchRecords:  histogram("batch_records", "Records folded in one batch.", prometheus.ExponentialBuckets(1, 4, 8)),
		listRows:      histogram("list_rows", "Rows looked at for one list.", prometheus.ExponentialBuckets(10, 4, 7)),
		commitBytes:   histogram("commit_bytes", "Size of one commit to the store.", prometheus.ExponentialBuckets(256, 4, 9)),
		commitSeconds: histogram("commit_seconds", "Time of one commit to the store.", prometheus.ExponentialBuckets(1e-5, 4, 9)),
	}
	for _, c := range []prometheus.Collector{
		x.facts, x.nodeFacts, x.transitions, x.deadLetters, x.published, x.fenced, x.interrupted, x.sweeps, x.expired, x.reads, x.batchRecords, x.commitBytes, x.commitSeconds, x.listRows,
		newSnapshot(m),
	} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return x, nil
}

// partitionMetrics are the counters of the fold's inner loop, looked up once.
type partitionMetrics struct {
	facts        [presence.Forgotten + 1][presence.NumOutcomes]prometheus.Counter
	transitions  [presence.Online + 1]prometheus.Counter
	batchRecords prometheus.Histogram
	published    prometheus.Counter
}

func (x *metrics) partition() *partitionMetrics {
	p := &partitionMetrics{batchRecords: x.batchRecords, published: x.published}
	for kind := range p.facts {
		for outcome := range p.facts[kind] {
			p.facts[kind][outcome] = x.facts.WithLabelValues(presence.Outcome(outcome).String(), presence.Kind(kind).String())
		}
	}
	for status := range p.transitions {
		p.transitions[status] = x.transitions.WithLabelValues(presence.Presence(status).String())
	}
	return p
}

// add adds what a working set has counted.
func (x *partitionMetrics) add(c *counted) {
	for kind := range c.facts {
		for outcome, n := range c.facts[kind] {
			if n > 0 {
				x.facts[kind][outcome].Add(float64(n))
			}
		}
	}
	for status, n := range c.transitions {
		if n > 0 {
			x.transitions[status].Add(float64(n))
		}
	}
}

// snapshot collects what is read at a scrape.
type snapshot struct {
	m                              *Materializer
	lag, outbox, ready, indexed    *prometheus.Desc
	nodeLag                        *prometheus.Desc
	disk, debt, readAmp            *prometheus.Desc
	cacheHits, cacheMisses, walled *prometheus.Desc
}

func newSnapshot(m *Materializer) *snapshot {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(namespace+"_"+name, help, labels, nil)
	}
	return &snapshot{
		m:           m,
		lag:         desc("lag_records", "Client events that are in Kafka and not applied yet.", "partition"),
		outbox:      desc("outbox_records", "Records that wait for publication.", "partition"),
		ready:       desc("partition_ready", "1 once the end offset seen at the start is reached.", "partition"),
		indexed:     desc("partition_indexed", "1 while the indexes are complete, 0 while they are being built.", "partition"),
		nodeLag:     desc("node_lag_records", "Node events that are in Kafka and not applied yet."),
		disk:        desc("store_disk_bytes", "Size of the store on disk."),
		debt:        desc("store_compaction_debt_bytes", "Bytes that the store has yet to compact."),
		readAmp:     desc("store_read_amplification", "Sorted runs that a read of the store may look at."),
		walled:      desc("store_wal_bytes", "Size of the store's log that is not flushed yet."),
		cacheHits:   desc("store_cache_hits_total", "Blocks found in the store's cache."),
		cacheMisses: desc("store_cache_misses_total", "Blocks not found in the store's cache."),
	}
}

// Describe implements prometheus.Collector.
func (s *snapshot) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{s.lag, s.outbox, s.ready, s.indexed, s.nodeLag, s.disk, s.debt, s.readAmp, s.walled, s.cacheHits, s.cacheMisses} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (s *snapshot) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for id, p := range s.m.owned() {
		label, f := strconv.Itoa(int(id)), p.progress.read()
		gauge(s.lag, float64(f.end-f.next), label)
		gauge(s.outbox, float64(p.outbox.depth()), label)
		gauge(s.ready, oneIf(f.ready), label)
		gauge(s.indexed, oneIf(p.indexed.Load()), label)
	}
	ps := s.m.shared.Load()
	if ps == nil {
		return
	}
	gauge(s.nodeLag, float64(max(ps.nodes.end.Load()-ps.nodes.table().next, 0)))
	s.collectStore(ch, ps.store.Metrics())
}

func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func (s *snapshot) collectStore(ch chan<- prometheus.Metric, x store.Metrics) {
	for _, v := range []struct {
		desc  *prometheus.Desc
		kind  prometheus.ValueType
		value float64
	}{
		{s.disk, prometheus.GaugeValue, float64(x.DiskBytes)},
		{s.debt, prometheus.GaugeValue, float64(x.CompactionDebt)},
		{s.readAmp, prometheus.GaugeValue, float64(x.ReadAmp)},
		{s.walled, prometheus.GaugeValue, float64(x.WALBytes)},
		{s.cacheHits, prometheus.CounterValue, float64(x.CacheHits)},
		{s.cacheMisses, prometheus.CounterValue, float64(x.CacheMisses)},
	} {
		ch <- prometheus.MustNewConstMetric(v.desc, v.kind, v.value)
	}
}
