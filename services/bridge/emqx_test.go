package bridge

import (
	"strings"
	"testing"
	"time"

	"github.com/mqtt-presence/presence/libs/presence"
)

func TestUptimeInWords_H19(t *testing.T) {
	for text, want := range map[string]int64{
		"7 seconds":                                      7_000,
		"2 minutes, 7 seconds":                           127_000,
		"12 hours, 0 minutes, 7 seconds":                 43_207_000,
		"3 days, 1 hours, 2 minutes, 7 seconds":          262_927_000,
		"4000 days, 0 hours, 0 minutes, 0 seconds":       345_600_000_000,
		"4294967295 days, 0 hours, 0 minutes, 0 seconds": 371_085_174_288_000_000,
	} {
		if got, err := parseUptime(text); err != nil || got != want {
			t.Errorf("%q: %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "7", "seconds", "-7 seconds", "7 seconds, 2 minutes", "7 seconds, 7 seconds", "7.5 seconds", "7 weeks", ", 7 seconds", "99999999999 days"} {
		if got, err := parseUptime(text); err == nil {
			t.Errorf("%q reads as %d", text, got)
		}
	}
}

// TestLocalDatetime_H9 has the hour that comes twice when summer ends, and zones that are not configured.
func TestLocalDatetime_H9(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	lordHowe, err := time.LoadLocation("Australia/Lord_Howe")
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		zone *time.Location
		at   string // the truth
	}{
		{time.UTC, "2025-10-26T00:30:00Z"}, {berlin, "2025-07-01T10:00:00Z"},
		{berlin, "2025-10-26T00:30:00Z"}, {berlin, "2025-10-26T01:30:00Z"}, // 02:30, twice
		{lordHowe, "2025-04-05T14:45:00Z"}, {lordHowe, "2025-04-05T15:15:00Z"}, // 01:45, twice
	} {
		at, err := time.Parse(time.RFC3339, test.at)
		if err != nil {
			t.Fatal(err)
		}
		got, err := parseLocal(at.In(test.zone).Format(time.DateTime), test.zone, at.UnixMilli()+300)
		if err != nil || !got.Equal(at) {
			t.Errorf("%s in %v reads as %v, %v", test.at, test.zone, got.UTC(), err)
		}
	}

	for _, test := range []struct {
		zone, text string
		want       string // the reason of a dead letter
	}{
		{"", "2025-10-09 08:54:50", ""},
		{"", "2025-10-09 08:49:00", ""},            // some minutes slow, which no zone is
		{"", "2025-10-09 16:54:55", deadHeartbeat}, // Shanghai
		{"", "2025-10-09 14:25:30", deadHeartbeat}, // Kolkata
		{"", "2025-10-09 04:54:55", deadHeartbeat}, // New York
		{"Asia/Shanghai", "2025-10-09 16:54:55", ""},
		{"Asia/Shanghai", "2025-10-09 15:54:55", ""}, // what is configured is believed
	} {
		mqtt := &MQTTConfig{Timezone: test.zone}
		location, err := time.LoadLocation(test.zone)
		if err != nil {
			t.Fatal(err)
		}
		d := emqxDialect.newDecoder(decoderConfig{cluster: "default", location: location, mqtt: mqtt})
		result := d.decode(&message{topic: "$SYS/brokers/emqx@n1/datetime", payload: []byte(test.text), receivedMS: receivedMS})
		got := ""
		if result.dead != nil {
			got = result.dead.reason
		}
		if got != test.want || (result.signal != nil) != (test.want == "") {
			t.Errorf("%q, zone %q: %+v", test.text, test.zone, result)
		}
	}
}

// TestKeysOfEMQX4_H19 goes through what can be known of a node when its events come.
func TestKeysOfEMQX4_H19(t *testing.T) {
	const (
		opened = `{"clientid":"d1","connack":0,"connected_at":1000,"ts":1001}`
		keyed  = `{"clientid":"d1","reason":"normal","connected_at":1000,"disconnected_at":2000,"ts":2000}`
		plain  = `{"clientid":"d1","reason":"normal","disconnected_at":2000,"ts":2000}`
	)
	const (
		keyless = presence.DialectEMQX40 + "/"
		byTime  = presence.DialectEMQX43 + "/1000"
	)
	for _, test := range []struct{ messages, want string }{
		{"opened", keyless},
		{"4.3.5 opened", keyless},
		{"4.3.6 opened", byTime},
		{"4.4.19 opened", byTime},
		{"keyed opened", byTime + " " + byTime},
		{"plain opened", keyless + " " + keyless},
		{"4.2.0 keyed opened", byTime + " " + byTime},   // a retained version from before an upgrade
		{"4.4.0 plain opened", keyless + " " + keyless}, // and from before a downgrade
		{"4.4.0 plain 4.4.0 opened", keyless + " " + byTime},
		{"nonsense opened", keyless},
	} {
		d := emqxDialect.newDecoder(decoderConfig{cluster: "default", location: time.UTC})
		var got []string
		for _, word := range strings.Fields(test.messages) {
			m := &message{topic: "$SYS/brokers/emqx@n1/clients/d1/disconnected", receivedMS: receivedMS}
			switch word {
			case "opened":
				m.topic, m.payload = "$SYS/brokers/emqx@n1/clients/d1/connected", []byte(opened)
			case "keyed":
				m.payload = []byte(keyed)
			case "plain":
				m.payload = []byte(plain)
			default:
				m.topic, m.payload, m.retain = "$SYS/brokers/emqx@n1/version", []byte(word), true
			}
			for _, f := range d.decode(m).facts {
				got = append(got, f.Dialect+"/"+f.Connection)
			}
		}
		if strings.Join(got, " ") != test.want {
			t.Errorf("%s: got %v, want %s", test.messages, got, test.want)
		}
	}
}

func TestGatewaysAreBounded_H21(t *testing.T) {
	d := emqxDialect.newDecoder(decoderConfig{cluster: "default", clusters: []string{"default", "default-stomp"}, location: time.UTC})
	event := func(gateway string) decoded {
		return d.decode(&message{
			topic: "$SYS/brokers/emqx@n1/gateway/" + gateway + "/clients/d1/connected", receivedMS: receivedMS,
			payload: []byte(`{"clientid":"d1","protocol":"x","connected_at":1000,"ts":1001}`),
		})
	}
	if r := event("STOMP"); r.dead == nil || r.dead.reason != deadGateway {
		t.Errorf("one whose cluster is another broker's: %+v", r)
	}
	for i := range maxGateways {
		name := "gw" + string(rune('a'+i))
		if r := event(name); len(r.facts) != 1 || r.facts[0].Cluster != "default-"+name {
			t.Errorf("gateway %s: %+v", name, r)
		}
	}
	if r := event("another"); r.dead == nil || r.dead.reason != deadGateway {
		t.Errorf("one more: %+v", r)
	}
	if r := event("GWA"); len(r.facts) != 1 || r.facts[0].Cluster != "default-gwa" {
		t.Errorf("one that is known: %+v", r)
	}
	for _, name := range []string{strings.Repeat("x", 63), "a_b", "", "\xff"} {
		if r := event(name); len(r.facts) != 0 && name != "" {
			t.Errorf("gateway %q: %+v", name, r)
		}
	}
}
