package bridge

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/libs/service"
)

const (
	// nodeTick is how often heartbeats that wait for their other half are looked at.
	nodeTick = 250 * time.Millisecond
	// dropLogInterval is the time between two log lines about drops.
	dropLogInterval = 10 * time.Second
)

// cluster carries the events of one MQTT broker cluster: from its session, by its decoders, to the pipeline.
type cluster struct {
	name     string
	log      *slog.Logger
	metrics  *metrics
	format   eventlog.Format
	interval time.Duration
	pipeline *pipeline
	spool    *spool
	session  *mqttSession

	onSubscribed func()        // at each SUBACK
	assertNow    chan struct{} // asks for a Feed fact before the next tick

	mu        sync.Mutex // guards what follows; not held while submitting
	dialects  []*dialect
	decoders  []decoder
	nodes     *nodes
	feed      *feed
	others    others
	gateways  []string // clusters of the clients of gateways, which have the same nodes and the same feed; ascending
	up        bool
	refusal   error // why the broker refuses the subscription
	proven    bool  // a topic under sysRoot has told the dialect
	unproven  error // what it refuses of it, as long as nothing that came tells which dialect is the broker's
	heartbeat bool  // a node's heartbeat of this MQTT session is durable
	epoch     int   // number of the connection
	heardMS   int64 // when the connection before was last heard; 0: there was none

	dropLogged time.Time

	saving sync.Mutex // so that what is kept of the feed is the latest

	loaded    chan struct{} // closed once what the log knows is known
	startedMS int64         // when this process began
}

func newCluster(c ClusterConfig, cfg *Config, m *metrics, log *slog.Logger) (*cluster, error) {
	location, err := time.LoadLocation(c.Timezone)
	if err != nil {
		return nil, fmt.Errorf("mqtt-timezone: %w", err)
	}
	password, err := service.ReadSecret(c.PasswordFile, cfg.Password)
	if err != nil {
		return nil, fmt.Errorf("mqtt-password-file: %w", err)
	}
	log = log.With(service.KeyCluster, c.Name)
	cl := &cluster{
		name: c.Name, log: log, metrics: m, format: cfg.Format(), interval: cfg.HeartbeatInterval, assertNow: make(chan struct{}, 1),
		loaded: make(chan struct{}), startedMS: time.Now().UnixMilli(),
		dialects: selectDialects(c.Dialect), nodes: newNodes(c.Name), feed: newFeed(c.Name, cfg.Name, cfg.LeaseDuration),
	}
	decoders := decoderConfig{cluster: c.Name, location: location, mqtt: &c.MQTTConfig}
	for _, other := range cfg.clusters() {
		decoders.clusters = append(decoders.clusters, other.Name)
	}
	for _, d := range cl.dialects {
		cl.decoders = append(cl.decoders, d.newDecoder(decoders))
	}
	if len(cl.dialects) == 1 {
		cl.feed.fact.Dialect = cl.dialects[0].name
	}
	m.connected.WithLabelValues(c.Name).Set(0)
	cl.session, err = newMQTTSession(&c, password, cfg.Dial, filtersOf(cl.dialects, &c.MQTTConfig), cl, log)
	return cl, err
}

// run keeps the session, and asserts what the passing of time tells, until ctx ends.
func (c *cluster) run(ctx context.Context) error {
	ticks := make(chan struct{})
	go func() {
		defer close(ticks)
		c.tick(ctx)
	}()
	if err := c.awaitLog(ctx); err != nil {
		<-ticks
		return nil
	}
	err := c.session.run(ctx)
	<-ticks
	// The last word: the subscription is down from now on.
	return errors.Join(err, c.assert())
}

// awaitLog waits for what the log says of other bridges, which may number the first lines of a session, but not for a Kafka that is down: then the
// spool takes what comes. An embedded broker has one bridge.
func (c *cluster) awaitLog(ctx context.Context) error {
	if c.session.embedded {
		return nil
	}
	timer := time.NewTimer(loadPatience)
	defer timer.Stop()
	select {
	case <-c.loaded:
	case <-timer.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

func (c *cluster) tick(ctx context.Context) {
	nodeTicker := time.NewTicker(nodeTick)
	defer nodeTicker.Stop()
	feedTicker := time.NewTicker(c.interval)
	defer feedTicker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-nodeTicker.C:
			c.mu.Lock()
			facts := c.nodes.tick(now.UnixMilli())
			epoch := c.epoch
			c.mu.Unlock()
			c.submitNodes(facts, now.UnixMilli(), epoch, nil)
			continue
		case <-feedTicker.C:
		case <-c.assertNow:
		}
		if err := c.assert(); err != nil {
			c.log.Error("cannot keep the state of the subscription; a crash now would cost a feed gap", service.KeyError, err)
		}
	}
}

// askAssert makes the state of the feed known before the next tick.
func (c *cluster) askAssert() {
	select {
	case c.assertNow <- struct{}{}:
	default:
	}
}

// assert gives the feed's state to Kafka, and keeps it on disk.
func (c *cluster) assert() error {
	now := c.pipeline.durableMS(time.Now().UnixMilli())
	c.mu.Lock()
	fact, ok := c.feed.assert(now)
	if ok {
		c.others.wrote(fact.ID)
	}
	clusters := c.clusters()
	c.mu.Unlock()
	if !ok {
		return nil
	}
	c.pipeline.submit(&delivery{cluster: c.name, receivedMS: time.Now().UnixMilli(), transient: true, records: c.nodeRecords([]presence.NodeFact{fact}, clusters)})
	return c.remember()
}

// remember keeps the state of the feed on disk: before the log was read, what was dropped since, beside what the process before has kept.
func (c *cluster) remember() error {
	c.saving.Lock()
	defer c.saving.Unlock()
	c.mu.Lock()
	saved, err := c.feed.save()
	loaded := c.feed.loaded
	c.mu.Unlock()
	if err != nil {
		return err
	}
	if !loaded {
		return c.spool.remember(map[string][]byte{c.dropsName(): saved})
	}
	return c.spool.remember(map[string][]byte{c.memoryName(): saved, c.dropsName(): nil})
}

// open takes the pipeline and the spool, and what processes before have dropped that had not read the log.
func (c *cluster) open(p *pipeline, s *spool) error {
	c.pipeline, c.spool = p, s
	saved, err := s.recall(c.dropsName())
	if err != nil || saved == nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.feed.recallDrops(saved)
}

// clusters returns the names of all clusters whose facts come through this subscription; mu must be held.
func (c *cluster) clusters() []string { return append([]string{c.name}, c.gateways...) }

// nodeRecords returns the records of node facts, for each of the clusters.
func (c *cluster) nodeRecords(facts []presence.NodeFact, clusters []string) []*kgo.Record {
	var records []*kgo.Record
	for _, name := range clusters {
		for _, f := range facts {
			f.Cluster = name
			setNodeID(&f)
			records = append(records, eventlog.NodeRecord(&f, c.format))
		}
	}
	return records
}

// addGateway notes the cluster of a gateway's clients. It reports whether it is new: what is known of the nodes is to be asserted for it.
func (c *cluster) addGateway(name string) bool {
	i, known := slices.BinarySearch(c.gateways, name)
	if !known {
		c.gateways = slices.Insert(c.gateways, i, name)
	}
	return !known
}

func (c *cluster) memoryName() string { return "feed/" + c.name }

func (c *cluster) dropsName() string { return "drops/" + c.name }

// load takes what the log and the disk know from before: the node facts of the cluster, the feed of this bridge, and the gateways for which it
// asserted that feed too, unless they are the names of clusters that are configured. It is called once.
func (c *cluster) load(facts []presence.NodeFact, configured []string) error {
	saved, err := c.spool.recall(c.memoryName())
	if err != nil {
		return err
	}
	now := time.Now().UnixMilli()
	c.mu.Lock()
	var logged *presence.NodeFact
	for i := range facts {
		f := &facts[i]
		switch {
		case f.Cluster != c.name:
			if f.Kind == presence.Feed && f.Bridge == c.feed.fact.Bridge && strings.HasPrefix(f.Cluster, c.name+"-") && !slices.Contains(configured, f.Cluster) {
				c.addGateway(f.Cluster)
			}
		case f.Kind != presence.Feed:
			c.nodes.recall(f)
		case f.Bridge == c.feed.fact.Bridge:
			logged = f
		default:
			c.others.noteFeed(f)
		}
	}
	err = c.feed.recall(logged, saved)
	started := c.nodes.load()
	clusters, known := c.clusters(), c.nodes.asserted()
	epoch := c.epoch
	c.mu.Unlock()
	if err != nil {
		return err
	}
	c.submitNodes(started, now, epoch, nil)
	// A gateway's first client may have come before the log was read.
	c.submitNodesOf(clusters[1:], known, now)
	c.askAssert()
	close(c.loaded)
	return nil
}

func (c *cluster) connected(resumed bool, atMS int64) {
	session := "new"
	if resumed {
		session = "resumed"
	}
	c.metrics.connects.WithLabelValues(c.name, session).Inc()
	c.log.Info("connected to the mqtt broker", "session", session)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.epoch++
	start := sessionStart{resumed: resumed, complete: c.feed.complete(resumed, c.heardMS, atMS)}
	for _, d := range c.decoders {
		d.connected(start)
	}
	if resumed {
		c.nodes.resumed(cmp.Or(c.heardMS, c.feed.coveredMS), atMS)
	}
}

func (c *cluster) subscribed(resumed bool, connectedMS, atMS int64, partly error) {
	c.mu.Lock()
	before := c.feed.fact.GapToMS
	c.feed.subscribed(subscription{resumed: resumed, connectedMS: connectedMS, subscribedMS: atMS})
	gap, loaded := c.feed.fact.GapToMS != before, c.feed.loaded
	from := c.feed.fact.GapFromMS
	c.up, c.refusal, c.heartbeat = true, nil, false
	if c.unproven = nil; c.feed.fact.Dialect == "" {
		c.unproven = partly
	}
	c.nodes.subscribed(atMS)
	for _, d := range c.decoders {
		d.subscribed(atMS)
	}
	c.mu.Unlock()
	c.metrics.connected.WithLabelValues(c.name).Set(1)
	if gap && loaded {
		c.metrics.gaps.WithLabelValues(c.name).Inc()
		c.log.Warn("events may be lost; answers are stale until the gap is healed", "from", time.UnixMilli(from).UTC(), "to", time.UnixMilli(atMS).UTC())
	}
	c.log.Info("subscribed to the broker's events")
	c.onSubscribed()
	c.askAssert()
}

func (c *cluster) refused(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refusal = err
}

func (c *cluster) disconnected(lastMS int64) {
	c.mu.Lock()
	c.feed.interrupted(lastMS)
	c.nodes.interrupted(lastMS)
	c.heardMS = lastMS
	c.up, c.heartbeat = false, false
	c.mu.Unlock()
	c.metrics.connected.WithLabelValues(c.name).Set(0)
	c.askAssert()
}

// received decodes a message and submits what it gives. The message is settled by the pipeline, or, if it gives nothing, after everything
// before it.
func (c *cluster) received(m *message, redelivered bool, settle func()) {
	done := func(outcome) {
		if settle != nil {
			settle()
		}
	}
	if redelivered {
		// Its first copy is on its way, ahead of this one.
		c.metrics.ignored.WithLabelValues(ignoredRedelivered).Inc()
		c.pipeline.submit(&delivery{cluster: c.name, receivedMS: m.receivedMS, settle: done})
		return
	}
	c.mu.Lock()
	result, nodeFacts := c.decode(m)
	if result.unnumbered && len(result.facts) > 0 && c.others.covers(m.receivedMS) {
		// Another bridge tells where in its second the line stands. As long as this one relies on it, it has not seen everything.
		result = ignore(ignoredOtherBridge)
		c.feed.relied(m.receivedMS)
	}
	var added []string
	for i := range result.facts {
		c.nodes.event(result.facts[i].TimeMS, m.receivedMS)
		if name := result.facts[i].Cluster; name != c.name && c.addGateway(name) {
			added = append(added, name)
		}
	}
	var known []presence.NodeFact
	if len(added) > 0 {
		known = c.nodes.asserted()
	}
	epoch := c.epoch
	dialect, version := c.feed.fact.Dialect, ""
	if result.dead != nil {
		version = versionFor(c.decoders, m)
	}
	c.mu.Unlock()

	if len(added) > 0 {
		c.log.Info("a gateway has clients; they are a cluster of their own", "clusters", added)
		c.submitNodesOf(added, known, m.receivedMS)
		c.askAssert()
	}
	d := &delivery{cluster: c.name, receivedMS: m.receivedMS, settle: done}
	for i := range result.facts {
		f := &result.facts[i]
		if f.Kind == presence.Closed && f.Reason.Takeover() && f.ClientID == c.session.clientID {
			c.session.toldTakeover(time.Now())
		}
		c.metrics.facts.WithLabelValues(f.Dialect, f.Kind.String()).Inc()
		d.records = append(d.records, eventlog.FactRecord(f, c.format))
	}
	switch {
	case result.dead != nil:
		c.metrics.deadLetters.WithLabelValues(result.dead.reason).Inc()
		d.records = append(d.records, c.deadLetter(m, dialect, version, result.dead))
	case result.ignored != "":
		c.metrics.ignored.WithLabelValues(result.ignored).Inc()
	}
	switch {
	case len(nodeFacts) > 0 && len(d.records) > 0:
		c.submitNodes(nodeFacts, m.receivedMS, epoch, nil)
	case len(nodeFacts) > 0:
		c.submitNodes(nodeFacts, m.receivedMS, epoch, done)
		return
	}
	if len(d.records) == 0 && settle == nil {
		return
	}
	c.pipeline.submit(d)
}

// decode has the message read by the first dialect that owns it.
func (c *cluster) decode(m *message) (decoded, []presence.NodeFact) {
	for i, d := range c.decoders {
		if !d.owns(m) {
			continue
		}
		if why := impostor(m, c.feed.fact.Dialect, c.dialects[i].name); why != nil {
			return decoded{dead: why}, nil
		}
		result := read(d, m)
		if len(result.facts) > 0 || result.signal != nil {
			c.recognise(m, c.dialects[i].name)
		}
		var facts []presence.NodeFact
		if result.stepBack != nil {
			c.log.Warn("the clock of a node was set back; until it has caught up, some clients' status is unknown", service.KeyNode, result.stepBack.node)
			facts = c.nodes.setBack(result.stepBack)
		}
		if result.signal == nil {
			return result, facts
		}
		if result.signal.kind == signalLost {
			if result.signal.clientID == c.session.clientID {
				c.log.Error("the broker drops events because the bridge's queue is full; raise max_queued_messages, 0 for no limit")
				c.feed.lost(m.receivedMS)
				c.askAssert()
			}
			return ignore(ignoredLine), facts
		}
		return result, append(facts, c.nodes.apply(result.signal, m.receivedMS)...)
	}
	return noOwner(), nil
}

func noOwner() decoded {
	return deadLetter(deadTopic, "no dialect knows the topic with such a payload")
}

// sysRoot begins the topics to which a broker lets nobody else publish, unless its rules allow it.
const sysRoot = "$SYS/"

// recognise notes whose message has come. Of several dialects the first is the broker's, unless only one that comes later has a topic that no client
// can publish to.
func (c *cluster) recognise(m *message, name string) {
	sys := strings.HasPrefix(m.topic, sysRoot)
	if dialect := c.feed.fact.Dialect; dialect == "" || dialect != name && sys && !c.proven {
		c.feed.fact.Dialect, c.unproven = name, nil
		c.log.Info("recognised the broker", service.KeyDialect, name)
	}
	c.proven = c.proven || sys
}

// impostor says why a message of a dialect cannot be the broker's: another one was recognised, and the topic is one to which any client may publish, as
// most brokers know nothing of each other's. What it says may be made up.
func impostor(m *message, recognised, dialect string) *unreadable {
	if recognised == "" || recognised == dialect || strings.HasPrefix(m.topic, sysRoot) {
		return nil
	}
	return &unreadable{deadImpostor, fmt.Sprintf("an event of dialect %s, and the broker's is %s: if a client published it, see the broker's access rules, "+
		"else name the dialect with mqtt-dialect", dialect, recognised)}
}

// submitNodes submits node facts. A heartbeat alone is transient, a start is not.
func (c *cluster) submitNodes(facts []presence.NodeFact, receivedMS int64, epoch int, done func(outcome)) {
	if len(facts) == 0 {
		return
	}
	c.mu.Lock()
	clusters := c.clusters()
	c.mu.Unlock()
	d := &delivery{cluster: c.name, receivedMS: receivedMS, transient: true, upTo: toReserve, records: c.nodeRecords(facts, clusters)}
	beats := false
	for i := range facts {
		f := &facts[i]
		c.metrics.facts.WithLabelValues(f.Dialect, f.Kind.String()).Inc()
		d.transient = d.transient && f.Kind == presence.NodeAlive
		beats = beats || f.Kind == presence.NodeAlive || f.Kind == presence.NodeStarted
		if f.Kind == presence.NodeStarted {
			c.log.Info("a node has a new generation", service.KeyNode, f.Node, "started", time.UnixMilli(f.StartedMS).UTC())
		}
		if f.Kind == presence.NodeSilent {
			c.log.Warn("a node is silent: its heartbeats stay away", service.KeyNode, f.Node)
		}
	}
	d.settle = func(o outcome) {
		if beats && (o == inKafka || o == inSpool) {
			c.mu.Lock()
			c.heartbeat = c.heartbeat || epoch == c.epoch
			c.mu.Unlock()
		}
		if done != nil {
			done(o)
		}
	}
	c.pipeline.submit(d)
}

// submitNodesOf submits what is known of the nodes for clusters that have just come to be known.
func (c *cluster) submitNodesOf(clusters []string, known []presence.NodeFact, receivedMS int64) {
	if len(clusters) > 0 && len(known) > 0 {
		c.pipeline.submit(&delivery{cluster: c.name, receivedMS: receivedMS, upTo: toReserve, records: c.nodeRecords(known, clusters)})
	}
}

func (c *cluster) deadLetter(m *message, dialect, version string, why *unreadable) *kgo.Record {
	c.log.Debug("dead letter", service.KeyReason, why.reason, service.KeyMQTTTopic, m.topic, "detail", why.detail)
	return eventlog.DeadLetterRecord(&eventlog.DeadLetter{
		Source: eventlog.SourceMQTT, Topic: m.topic, Cluster: c.name, Dialect: dialect, Reason: why.reason, Detail: why.detail,
		ReceivedMS: m.receivedMS, Payload: m.payload, QoS: m.qos, Retain: m.retain, Version: version,
	})
}

// drop notes that facts were dropped.
func (c *cluster) drop(d drops) {
	c.mu.Lock()
	c.feed.dropped(d.count, d.fromMS, d.toMS)
	total, log := c.feed.fact.DroppedCount, time.Since(c.dropLogged) > dropLogInterval
	if log {
		c.dropLogged = time.Now()
	}
	c.mu.Unlock()
	if log {
		c.log.Error("events were dropped because the spool, or the embedded broker's queue, is full: bring kafka back or raise the bound", service.KeyCount, total)
	}
	c.askAssert()
}

// ready returns nil if the subscription stands, else why it does not.
func (c *cluster) ready(heartbeat bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.refusal != nil:
		return fmt.Errorf("cluster %s: %w", c.name, c.refusal)
	case c.rival(time.Now().UnixMilli()) != nil:
		return fmt.Errorf("cluster %s: %w", c.name, c.rival(time.Now().UnixMilli()))
	case !c.up:
		return fmt.Errorf("cluster %s: not subscribed to the mqtt broker", c.name)
	case c.unproven != nil:
		// Any broker grants filters that mean nothing to it: what was granted may be of other dialects.
		return fmt.Errorf("cluster %s: nothing has come that tells the broker's dialect, and %w; or name the dialect with mqtt-dialect", c.name, c.unproven)
	case heartbeat && !c.heartbeat:
		return fmt.Errorf("cluster %s: no node has sent a heartbeat yet", c.name)
	}
	return nil
}
