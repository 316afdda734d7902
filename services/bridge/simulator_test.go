package bridge

import (
	"flag"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/libs/simulator"
)

var wireFor = flag.Duration("wire", 0, "TestSimulatorWire reads histories from new seeds for so long")

// wireVolume is how many histories of a setup are rendered and read, by mode.
var wireVolume = [...]int{simulator.Exact: 300, simulator.Clocks: 150, simulator.Lossy: 150, simulator.Silent: 40}

// minWireHazards is in how many messages each hazard must occur.
const minWireHazards = 100

// TestSimulatorWire_H15_H16_H18_H19_H20_H21_H22 checks the decoders against the simulator, which was written without them: what the brokers of a
// history would publish is decoded, by the dialect's own decoder and by all of them, and compared with what an ideal reader makes of it.
func TestSimulatorWire_H15_H16_H18_H19_H20_H21_H22(t *testing.T) {
	var mu sync.Mutex
	var sum [simulator.NumHazards + 1]int
	t.Run("setups", func(t *testing.T) {
		for _, setup := range simulator.Setups() {
			t.Run(setup.Name, func(t *testing.T) {
				t.Parallel()
				hazards := wireSetup(t, &setup)
				mu.Lock()
				defer mu.Unlock()
				for i, n := range hazards {
					sum[i] += n
				}
			})
		}
	})
	for _, n := range []int{15, 16, 18, 19, 20, 21, 22} {
		t.Logf("H%d %s: %d messages", n, simulator.HazardNames[n], sum[n])
		if sum[n] < minWireHazards {
			t.Errorf("H%d occurs in %d messages only", n, sum[n])
		}
	}
}

// wireSetup reads histories of one setup, and returns how often each hazard occurred.
func wireSetup(t *testing.T, setup *simulator.Setup) (hazards [simulator.NumHazards + 1]int) {
	read := func(mode simulator.Mode, seed uint64) bool {
		p := simulator.NewPlan(setup, mode, seed)
		r := readWire(t, p)
		for i, n := range r.hazards {
			hazards[i] += n
		}
		if len(r.problems) == 0 {
			return true
		}
		same := func(problem string) bool { return problemKind(problem) == problemKind(r.problems[0]) }
		small := simulator.Shrink(p, func(q *simulator.Plan) bool { return slices.ContainsFunc(readWire(t, q).problems, same) })
		s := readWire(t, small)
		t.Errorf("%s, seed %d: %s\nshrunk:\n%s\n%s\nreceived\n%s", mode, seed, r.problems[0], strings.Join(s.problems, "\n"), s.h, s.received.String())
		return false
	}
	for mode, volume := range wireVolume {
		for seed := range uint64(volume) {
			if !read(simulator.Mode(mode), seed) {
				break
			}
		}
	}
	for start, seed := time.Now(), uint64(1<<20); time.Since(start) < *wireFor; seed++ {
		if !read(simulator.Mode(seed%4), seed) {
			break
		}
	}
	return hazards
}

// problemKind returns a problem without what differs from history to history.
func problemKind(problem string) string {
	kind, _, _ := strings.Cut(problem, ":")
	return kind
}

// wireRun is a history as a bridge reads it, beside what an ideal one reads.
type wireRun struct {
	h        *simulator.History
	wire     *simulator.Wire
	dialect  *dialect
	filters  []filter
	decoders []decoder   // by bridge
	auto     [][]decoder // by bridge
	nodes    *nodes

	ideal, real fold
	applied     int            // how many deliveries the ideal bridge has had
	clients     map[string]int // by ID in messages
	realIDs     map[string]string
	idealIDs    map[string]string
	snapshots   map[int]bool // by client: what came of it at a subscription counts
	sawStep     bool         // a clock was seen to be set back
	late        bool         // the stamps of lines do not show how far the broker's clock is off: some came late
	loose       map[int]bool // by client: some of its messages are garbled
	lines       []lineCount  // by bridge
	// cautious is, by bridge, the stamp of the first line that it saw, if that may have begun before.
	cautious  []int64
	since     []int64 // by bridge: when its session began
	lastMS    int64
	lastOrder uint32
	announced []map[string]bool

	hazards  [simulator.NumHazards + 1]int
	problems []string
	received strings.Builder
}

// fold is what is known of a cluster and its clients.
type fold struct {
	cluster presence.Cluster
	states  []presence.State
}

func (f *fold) status(i int) presence.Verdict {
	return presence.Status(&f.states[i], &f.cluster, presence.DefaultAllowanceMS)
}

// lineCount numbers lines within a stamp, or messages within a millisecond.
type lineCount struct {
	at    int64
	count uint32
}

func (c *lineCount) next(at int64) uint32 {
	switch {
	case at > c.at:
		*c = lineCount{at: at}
	case at < c.at:
		return 0 // the clock was set back
	}
	c.count++
	return c.count
}

// wireNodes are the names of the only node of dialects that tell none.
var wireNodes = map[string]string{presence.DialectNanoMQ: nanomqNode, presence.DialectMosquittoPlugin: mosquittoNode}

// wireReceived are the dialects that tell no time.
var wireReceived = []string{presence.DialectMosquittoPlugin, presence.DialectStatusTopic, presence.DialectSparkplug}

// wireCustom returns the configuration of dialect custom for one of the two forms of the simulator's events.
func wireCustom(form int, key string) []CustomEvents {
	c := CustomEvents{Topic: "events/{event}/{client_id...}", TimeField: "at"}
	c.SetDefaults()
	if form == 1 {
		c.Topic, c.EventField, c.ClientIDField, c.TimeField, c.TimeUnit = "events", "event.word", "id", "event.at", unitRFC3339
	}
	c.ConnectedWords, c.DisconnectedWords = []string{"up"}, []string{"down"}
	c.ReasonField, c.UsernameField, c.PeerField = "why", "who", "from"
	c.Reasons = []string{"normal=normal", "tcp_closed=connection_lost", "keepalive_timeout=keep_alive_timeout", "kicked=kicked", "not_authorized=not_authorized",
		"malformed_packet=protocol_error", "quota_exceeded=quota_exceeded", "takenover=taken_over", "discarded=discarded"}
	if key != keyNone {
		c.ConnectionField, c.NodeField = "key", "host"
	}
	return []CustomEvents{c}
}

func readWire(t *testing.T, p *simulator.Plan) *wireRun {
	t.Helper()
	h := simulator.Run(p)
	zones := []string{"UTC", "Europe/Berlin", "Asia/Kathmandu"}
	zone := zones[p.Seed%3]
	location, err := time.LoadLocation(zone)
	if err != nil {
		t.Fatal(err)
	}
	r := &wireRun{h: h, wire: simulator.NewWire(h, location), nodes: newNodes(defaultCluster), clients: map[string]int{}, realIDs: map[string]string{},
		idealIDs: map[string]string{}, snapshots: map[int]bool{}, loose: map[int]bool{}}
	config := defaultMQTT()
	config.Timezone = zone
	profile := p.Nodes[0].Dialect
	for _, d := range dialects {
		if d.name == profile || slices.Contains(d.profiles, profile) || d == emqxDialect && strings.HasPrefix(profile, "emqx") {
			r.dialect = d
		}
	}
	if r.dialect == nil {
		t.Fatalf("no dialect has the profile %s", profile)
	}
	config.Dialect = r.dialect.name
	if r.dialect == customDialect {
		config.CustomKey = map[string]string{presence.DialectCustom: keyNone, presence.DialectCustomReusable: keyReusable, presence.DialectCustomUnique: keyUnique}[profile]
		config.Custom = wireCustom(r.wire.Custom, config.CustomKey)
		for _, err := range config.validateCustom() {
			t.Fatal(err)
		}
	}
	r.filters = filtersOf([]*dialect{r.dialect}, &config)
	dc := decoderConfig{cluster: defaultCluster, location: location, mqtt: &config}
	if r.dialect == rmqttDialect && p.Seed%2 == 1 {
		// A zone that is not configured is seen beside the stamp.
		dc.location = time.UTC
	}
	for range p.Bridges {
		r.decoders = append(r.decoders, r.dialect.newDecoder(dc))
		var auto []decoder
		if r.dialect.configured == nil {
			for _, d := range selectDialects(dialectAuto) {
				auto = append(auto, d.newDecoder(dc))
			}
		}
		r.auto = append(r.auto, auto)
		r.since = append(r.since, 0)
		r.lines, r.cautious = append(r.lines, lineCount{}), append(r.cautious, -1)
		r.announced = append(r.announced, map[string]bool{})
	}
	r.nodes.load()
	for i := range h.Clients {
		id := r.wire.ClientID(&simulator.Event{Habits: p.Nodes[0], ClientID: h.Clients[i].ID})
		r.clients[id] = i
	}
	r.ideal.states, r.real.states = make([]presence.State, len(h.Clients)), make([]presence.State, len(h.Clients))
	arrivals := r.wire.Arrivals()
	for i := range arrivals {
		r.idealNodes(arrivals[i].ReceivedMS)
		r.arrive(&arrivals[i])
	}
	r.idealNodes(h.EndMS)
	r.compare()
	return r
}

// idealNodes applies what an ideal bridge says of the nodes up to an instant.
func (r *wireRun) idealNodes(untilMS int64) {
	for ; r.applied < len(r.h.Deliveries) && r.h.Deliveries[r.applied].ReceivedMS <= untilMS; r.applied++ {
		if d := &r.h.Deliveries[r.applied]; d.IsNode {
			f := d.Node
			if name := wireNodes[f.Dialect]; name != "" && f.Node != "" {
				f.Node = name
			}
			r.ideal.cluster.Apply(&f)
		}
	}
}

func (r *wireRun) problem(kind, format string, args ...any) {
	r.problems = append(r.problems, kind+": "+fmt.Sprintf(format, args...))
}

func (r *wireRun) arrive(a *simulator.Arrival) {
	switch {
	case a.Session:
		if a.Resumed && r.lines[a.Bridge].count == 0 {
			r.cautious[a.Bridge] = 0
		} else if !a.Resumed {
			r.cautious[a.Bridge] = -1
			r.announced[a.Bridge] = map[string]bool{}
			r.lines[a.Bridge] = lineCount{}
		}
		r.since[a.Bridge] = a.ReceivedMS
		for _, d := range append([]decoder{r.decoders[a.Bridge]}, r.auto[a.Bridge]...) {
			d.connected(sessionStart{resumed: a.Resumed, complete: a.Resumed})
			d.subscribed(a.ReceivedMS)
		}
	case a.Told != nil && a.Told.IsNode:
		f := a.Told.Node
		if name := wireNodes[f.Dialect]; name != "" && f.Node != "" {
			f.Node = name
		}
		r.real.cluster.Apply(&f)
	case a.Told != nil:
		r.told(a.Told)
	default:
		r.message(a)
	}
}

// told applies what comes in no message: the answer of a query, which is asserted where the status differs, and what is to be forgotten.
func (r *wireRun) told(d *simulator.Delivery) {
	f := d.Fact
	if name := wireNodes[f.Dialect]; name != "" && f.Node != "" {
		f.Node = name
	}
	if v := r.ideal.status(d.Client); d.Query && (v.Status == presence.Online && f.Online.Value || v.Status == presence.Offline && !f.Online.Value) {
		return
	}
	r.ideal.states[d.Client].Apply(&f)
	r.real.states[d.Client].Apply(&f)
}

func (r *wireRun) message(a *simulator.Arrival) {
	w := a.Message
	if a.Event != nil && w.Stamp != 0 && a.ReceivedMS-a.Event.TrueMS >= stepMS {
		r.late = true
	}
	m := &message{topic: w.Topic, payload: w.Payload, qos: w.QoS, retain: w.Retain, receivedMS: a.ReceivedMS}
	if !slices.ContainsFunc(r.filters, func(f filter) bool { return matches(f.topic, w.Topic) }) {
		if w.Reads != simulator.ReadsNothing && w.Reads != simulator.ReadsDead {
			r.problem("not subscribed to", "%q", w.Topic)
		}
		return
	}
	got := deadLetter(deadTopic, "")
	if d := r.decoders[a.Bridge]; d.owns(m) {
		got = read(d, m)
	}
	r.checkAuto(a.Bridge, m, &got)
	fmt.Fprintf(&r.received, "  %9d bridge %d %q retain=%t %q\n", a.ReceivedMS-1_760_000_000_000, a.Bridge, m.topic, m.retain, m.payload)
	if w.Hazard != 0 {
		r.hazards[w.Hazard]++
	}
	r.checkReads(w, &got, m)
	if got.stepBack != nil {
		r.sawStep = true
		r.applyNodes(r.nodes.setBack(got.stepBack))
	}
	if got.signal != nil {
		r.applyNodes(r.nodes.apply(got.signal, m.receivedMS))
	}
	var order uint32
	at := w.Stamp
	if at == 0 {
		at = m.receivedMS
	}
	if strings.HasPrefix(m.topic, mosquittoLog) {
		if c := &r.cautious[a.Bridge]; *c == 0 || r.lines[a.Bridge].count == 0 && a.ReceivedMS < r.since[a.Bridge]+firstStampMS {
			*c = at
		}
		order = r.lines[a.Bridge].next(at)
		if w.Stamp != 0 && r.cautious[a.Bridge] == at {
			order = 0
		}
	}
	if peer, ok := strings.CutPrefix(string(m.payload[max(0, strings.Index(string(m.payload), "New connection from ")):]), "New connection from "); ok {
		peer, _, _ = strings.Cut(peer, " ")
		r.announced[a.Bridge][peer] = true
	}
	for i := range got.facts {
		f := &got.facts[i]
		client, ours := r.clients[f.ClientID]
		ours = ours && f.Cluster == defaultCluster
		if ours && w.Reads == simulator.ReadsOther {
			r.problem("of another client", "%q %q is taken for one about %q", m.topic, m.payload, f.ClientID)
		}
		if ours {
			r.real.states[client].Apply(f)
			r.snapshots[client] = r.snapshots[client] || w.Reads == simulator.ReadsSnapshot
		}
	}
	if w.Reads == simulator.ReadsFact {
		want := r.want(a, order)
		if len(got.facts) == 1 {
			if got := got.facts[0]; slices.Contains(wireReceived, want.Dialect) {
				// The ordinal counts whatever else the decoder stamped.
				if got.TimeMS == r.lastMS && got.Order <= r.lastOrder {
					r.problem("order", "%q: %d after %d", m.topic, got.Order, r.lastOrder)
				}
				r.lastMS, r.lastOrder = got.TimeMS, got.Order
				want.Order = got.Order
				want.SetID()
			}
			if got := got.facts[0]; want.Order == 0 && w.Stamp != 0 && got.Order == order && a.ReceivedMS >= r.since[a.Bridge]+firstStampMS {
				// The bridge takes it that lines do not wait for seconds; the ideal one knows.
				want.Order = order
				want.SetID()
			}
			r.checkFact(w, m, want, got.facts[0])
		}
		client := r.clients[want.ClientID]
		r.loose[client] = r.loose[client] || w.Loose
		r.ideal.states[client].Apply(&want)
	}
}

func (r *wireRun) applyNodes(facts []presence.NodeFact) {
	for i := range facts {
		r.real.cluster.Apply(&facts[i])
		fmt.Fprintf(&r.received, "            %s %s started=%d/%d time=%d\n", facts[i].Node, facts[i].Kind, facts[i].StartedMS-1_760_000_000_000,
			facts[i].StartedReceivedMS-1_760_000_000_000, facts[i].TimeMS-1_760_000_000_000)
	}
}
