package bridge

import (
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
)

// brokerStarted is when the node of these tests booted.
var brokerStarted = time.Now().Add(-time.Minute)

// gatewayEvent publishes the connected event of a gateway's client, as EMQX does, at QoS 1.
func (b *broker) gatewayEvent(gateway, clientID string) {
	b.t.Helper()
	b.publish("$SYS/brokers/emqx@n1/gateway/"+gateway+"/clients/"+clientID+"/connected", fmt.Sprintf(
		`{"clientid":%q,"protocol":%q,"proto_ver":"1.2","connected_at":1760000000123,"ts":1760000000124}`, clientID, gateway), 1)
}

// wantNodes has heartbeats sent until the log has node facts of these kinds for a cluster, received after a time: a heartbeat that Kafka does
// not take at once is not kept.
func (r *reader) wantNodes(b *broker, cluster string, afterMS int64, kinds ...presence.NodeKind) {
	r.t.Helper()
	r.until(func() error {
		b.heartbeat(time.Since(brokerStarted))
		have := map[presence.NodeKind]bool{}
		for _, f := range r.nodes {
			if f.Cluster == cluster && f.ReceivedMS > afterMS {
				have[f.Kind] = true
			}
		}
		for _, kind := range kinds {
			if !have[kind] {
				return fmt.Errorf("no fact %v for cluster %s among %d", kind, cluster, len(r.nodes))
			}
		}
		return nil
	})
}

// TestGatewayIsAClusterOfItsOwn_H21 has one client ID in two namespaces (H21). The gateway's has the nodes and the feed of the cluster, from its first client
// on, and after a restart before any.
func TestGatewayIsAClusterOfItsOwn_H21(t *testing.T) {
	b, k := newBroker(t), newKafka(t)
	cfg := testConfig(t, b, k)
	r := start(t, cfg)
	r.waitReady(t)
	in := k.reader(t)
	in.wantNodes(b, "default", 0, presence.NodeStarted, presence.NodeAlive, presence.Feed)
	for _, f := range in.nodes {
		if f.Cluster != "default" {
			t.Fatalf("a gateway without clients: %+v", f)
		}
	}
	b.open("d1", 1_760_000_000_123)
	b.gatewayEvent("STOMP", "d1")
	b.gatewayEvent("no_cluster", "d1")
	in.want(2)
	clusters := map[string]bool{}
	for _, f := range in.facts {
		clusters[f.Cluster+"/"+f.ClientID] = true
	}
	if !reflect.DeepEqual(clusters, map[string]bool{"default/d1": true, "default-stomp/d1": true}) {
		t.Errorf("clients %v", clusters)
	}
	in.wantNodes(b, "default-stomp", 0, presence.NodeStarted, presence.NodeAlive, presence.Feed)
	var table presence.Cluster
	for i := range in.nodes {
		if in.nodes[i].Cluster == "default-stomp" {
			table.Apply(&in.nodes[i])
		}
	}
	if n := table.Nodes["emqx@n1"]; n == nil || n.StartedMS == 0 || len(table.Feeds) != 1 {
		t.Errorf("the table of the gateway's cluster: %+v", table)
	}
	in.until(func() error {
		if len(in.dead) == 0 {
			return fmt.Errorf("no dead letter")
		}
		return nil
	})
	if d, err := eventlog.DecodeDeadLetter(in.dead[0]); err != nil || d.Reason != deadGateway || !strings.Contains(d.Detail, "default-no_cluster") {
		t.Errorf("dead letter %+v, %v", d, err)
	}
	r.stop(t)
	in.feed(func(f presence.NodeFact) bool { return f.Cluster == "default-stomp" && f.GapFromMS != 0 })

	stopped := time.Now().UnixMilli()
	r = start(t, cfg)
	r.waitReady(t)
	in.wantNodes(b, "default-stomp", stopped, presence.NodeAlive, presence.Feed)
	r.stop(t)
}

func TestRecordsForGateways(t *testing.T) {
	c := &cluster{name: "default", nodes: newNodes("default")}
	if !c.addGateway("default-stomp") || c.addGateway("default-stomp") || !c.addGateway("default-coap") {
		t.Error("a gateway is new once")
	}
	if got := fmt.Sprint(c.clusters()); got != "[default default-coap default-stomp]" {
		t.Errorf("clusters %s", got)
	}
	records := c.nodeRecords([]presence.NodeFact{{Kind: presence.NodeAlive, Cluster: "default", Node: "n1", ReceivedMS: 1}}, c.clusters())
	ids := map[string]bool{}
	for i, want := range c.clusters() {
		var f presence.NodeFact
		if err := eventlog.DecodeNodeFact(records[i], &f); err != nil || f.Cluster != want || ids[f.ID] {
			t.Errorf("fact %+v, %v; want cluster %s and an ID of its own", f, err, want)
		}
		ids[f.ID] = true
	}
}

// TestImpostors has a client make up another broker's events, on topics that its own broker lets anybody publish to.
func TestImpostors(t *testing.T) {
	aws := message{topic: "$aws/events/presence/connected/d1", payload: []byte(`{"clientId":"d1","timestamp":1760000000123,"eventType":"connected","sessionIdentifier":"s"}`)}
	tdmq := message{topic: "$events/client_connected", payload: []byte(`{"clientid":"d1","connected_at":1760000000123}`)}
	rule := message{topic: "$events/client_connected", payload: []byte(`{"clientid":"d1","node":"emqx@n1","sockname":"10.0.0.1:1883","peername":"1.2.3.4:5","connected_at":1760000000123,"timestamp":1760000000124}`)}
	emqx := message{topic: "$SYS/brokers/emqx@n1/clients/d1/connected", payload: []byte(`{"clientid":"d1","protocol":"mqtt","connected_at":1760000000123,"ts":1760000000124}`)}
	log := message{topic: "$SYS/broker/log/N", payload: []byte("1760000000: Client d1 disconnected.")}
	plugin := message{topic: "$SYS/broker/connection/client/d1/state", payload: []byte("1")}
	for _, test := range []struct {
		name     string
		messages []message
		want     string // what becomes of each, and the dialect at the end
	}{
		{"embedded broker, EMQX", []message{emqx, aws, tdmq, rule}, "fact other_broker other_broker other_form emqx"},
		{"EMQX, rule events", []message{rule, aws, rule}, "fact other_broker fact emqx"},
		{"EMQX, system topics later", []message{rule, emqx, rule}, "fact fact other_form emqx"},
		{"Mosquitto", []message{log, aws, tdmq, rule, plugin}, "fact other_broker other_broker other_broker fact mosquitto-2.0"},
		{"Mosquitto, the client was first", []message{rule, log, rule, aws}, "fact fact other_broker other_broker mosquitto-2.0"},
		{"EMQX, the client was first", []message{aws, emqx, aws}, "fact fact other_broker emqx"},
		{"AWS", []message{aws, tdmq, aws}, "fact other_broker fact aws"},
		{"TDMQ", []message{tdmq, aws, tdmq}, "fact other_broker fact tdmq"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := &cluster{log: slog.New(slog.DiscardHandler), dialects: selectDialects(dialectAuto), nodes: newNodes("default"), feed: newFeed("default", "b", time.Minute)}
			for _, d := range c.dialects {
				c.decoders = append(c.decoders, d.newDecoder(decoderConfig{cluster: "default", location: time.UTC, mqtt: &MQTTConfig{}}))
			}
			var got []string
			for _, m := range test.messages {
				m.receivedMS = 1_760_000_000_500
				switch result, _ := c.decode(&m); {
				case result.dead != nil:
					got = append(got, result.dead.reason)
				case result.ignored != "":
					got = append(got, result.ignored)
				case len(result.facts) == 1:
					got = append(got, "fact")
				default:
					t.Fatalf("%s: %+v", m.topic, result)
				}
			}
			if got := strings.Join(append(got, c.feed.fact.Dialect), " "); got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
}
