package simulator

import (
	"bytes"
	"strings"
	"testing"
)

// script runs calm steps of one client on a setup with one node and returns what the broker emits, a line an event.
func script(setup *Setup, habits *Habits, steps ...Step) string {
	p := &Plan{Setup: setup, Mode: Exact, Nodes: []*Habits{habits, habits}, SkewMS: []int64{0, 0}, Clients: 1, Bridges: 1, Steps: steps}
	var lines []string
	for _, e := range Run(p).Events {
		line := e.Kind.String()
		if e.Kind == Disconnected || e.Kind == Refused {
			line += " " + e.RawReason
		}
		if e.Conn > 0 {
			line = "#" + string(rune('0'+e.Conn)) + " " + line
		}
		lines = append(lines, strings.TrimSpace(line))
	}
	return strings.Join(lines, "; ")
}

// TestHabits states what each broker emits, by its source and documents.
func TestHabits(t *testing.T) {
	takeover := []Step{{Action: Connect, Keep: true}, {Action: Connect, WaitMS: 9_000, Keep: true}}
	discard := []Step{{Action: Connect, Keep: true}, {Action: Connect, WaitMS: 9_000, Clean: true}}
	offline := []Step{{Action: Connect, Keep: true}, {Action: End, WaitMS: 9_000, Cause: CauseLost}, {Action: Connect, WaitMS: 9_000, Keep: true}}
	refused := []Step{{Action: Connect}, {Action: Stranger, WaitMS: 9_000}}
	crash := []Step{{Action: Connect}, {Action: Crash, WaitMS: 9_000}}
	expired := []Step{{Action: Connect, Keep: true}, {Action: End, WaitMS: 9_000, Cause: CauseLost}, {Action: ExpireSession, WaitMS: 9_000}}
	kicked := []Step{{Action: Connect, Keep: true}, {Action: End, WaitMS: 9_000, Cause: CauseLost}, {Action: Kick, WaitMS: 9_000}}
	tests := []struct {
		name   string
		habits *Habits
		steps  []Step
		want   string
	}{
		{"EMQX tells of a takeover before the new connection", &emqx, takeover, "#1 connected; #1 disconnected takenover; #2 connected"},
		{"EMQX tells of a discard", &emqx, discard, "#1 connected; #1 disconnected discarded; #2 connected"},
		{"EMQX says nothing of a session without connection", &emqx, offline, "#1 connected; #1 disconnected tcp_closed; #2 connected"},
		{"EMQX 5.0.10 to 5.6 ends an ended connection again", &emqx56, offline, "#1 connected; #1 disconnected tcp_closed; #1 disconnected takenover; #2 connected"},
		{"EMQX 5.0.9 says nothing of a takeover", &emqx50, takeover, "#1 connected; #2 connected"},
		{"EMQX 4 says nothing of a takeover", &emqx43, takeover, "#1 connected; #2 connected"},
		{"EMQX 4 with the flag does", &emqx43on, takeover, "#1 connected; #1 disconnected takeovered; #2 connected"},
		{"EMQX 4.2 kicks a session without connection", &emqx40, kicked, "#1 connected; #1 disconnected tcp_closed; #1 disconnected kicked"},
		{"EMQX's refused CONNECT is no presence", &emqx, refused, "#1 connected; refused not_authorized"},
		{"a crash has no events", &emqx, crash, "#1 connected"},
		{"an expired session has no events", &emqx, expired, "#1 connected; #1 disconnected tcp_closed"},
		{"RMQTT connects first, and then kicks", &rmqtt, takeover, "#1 connected; #2 connected; #1 disconnected Kicked"},
		{"RMQTT tells of the session's end", &rmqtt, expired, "#1 connected; #1 disconnected RemoteClose; #1 session ended"},
		{"Mosquitto 2.0 logs a takeover at level E", &mosquitto20, takeover,
			"line; #1 connected; #1 disconnected already connected, closing old connection; line; #2 connected"},
		{"Mosquitto 2.0 logs the end of a WebSocket late", &mosquitto20, []Step{{Action: Connect, Web: true}, {Action: Connect, WaitMS: 9_000}},
			"line; #1 connected; #1 disconnected already connected, closing old connection; line; #2 connected; #1 disconnected closed its connection"},
		{"Mosquitto 2.0 logs a refused CONNECT as an end", &mosquitto20, refused, "line; #1 connected; line; refused not authorised"},
		{"Mosquitto 2.1 ends an ended connection again", &mosquitto21, offline,
			"line; #1 connected; #1 disconnected connection closed by client; #1 disconnected session taken over; line; #2 connected"},
		{"the plugin says nothing of a lost session that is kept", &mosquittoPlugin, offline, "#1 connected; #2 connected"},
		{"NanoMQ says nothing of a lost session that is kept", &nanomq, offline, "#1 connected; #2 connected"},
		{"NanoMQ tells when the session expires", &nanomq, expired, "#1 connected; #1 disconnected 8e"},
		{"AWS tells of a takeover", &aws, takeover, "#1 connected; #1 disconnected DUPLICATE_CLIENTID; #2 connected"},
		{"a will comes at a takeover", &statusTopic, takeover, "#1 connected; #1 disconnected lost; #2 connected"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := script(&Setup{Name: "emqx", Strangers: true}, tt.habits, tt.steps...); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

// TestRunTwice checks that a plan says everything about its history.
func TestRunTwice(t *testing.T) {
	for _, setup := range Setups() {
		for mode := range numModes {
			for seed := range uint64(20) {
				a, b := Run(NewPlan(&setup, mode, seed)), Run(NewPlan(&setup, mode, seed))
				if !bytes.Equal([]byte(a.String()), []byte(b.String())) {
					t.Fatalf("%s, %s, seed %d: two runs differ", setup.Name, mode, seed)
				}
			}
		}
	}
}

// TestShrink looks for a ghost disconnect, and expects no more than what makes one.
func TestShrink(t *testing.T) {
	setup := Setup{Name: "rmqtt", Nodes: []*Habits{&rmqtt}}
	ghost := func(p *Plan) bool { return Run(p).Hazards.Has(3) }
	for seed := range uint64(100) {
		p := NewPlan(&setup, Exact, seed)
		if !ghost(p) {
			continue
		}
		small := Shrink(p, ghost)
		if !ghost(small) {
			t.Fatalf("seed %d: what is left has no ghost", seed)
		}
		if len(small.Steps) != 2 || small.Steps[0].Action != Connect && small.Steps[0].Action != Storm {
			t.Errorf("seed %d: %d steps are left, two connects make a ghost: %v", seed, len(small.Steps), small.Steps)
		}
	}
}
