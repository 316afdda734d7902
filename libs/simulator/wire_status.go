package simulator

import (
	"encoding/binary"
	"strings"

	"github.com/mqtt-presence/presence/libs/presence"
)

// plugin renders what Mosquitto's plugin connection-state publishes.
func (r *render) plugin() {
	const root = "$SYS/broker/connection/client/"
	topic := root + r.id + "/state"
	r.fact.Username, r.fact.Peer = "", ""
	switch r.e.Kind {
	case Connected:
		r.add(topic, "1", ReadsFact)
	case Disconnected:
		r.add(topic, "0", ReadsFact)
	case Refused:
		r.add(topic, "0", ReadsFact).Hazard = 4
	case Self:
		r.hazard(22, topic, "1", ReadsOther)
	case Gateway:
		r.hazard(21, root+"edge1.bridge/state", "1", ReadsOther)
	case Poison:
		if r.d.in(50) {
			r.hazard(16, topic, "1", ReadsDead)
			return
		}
		r.hazard(16, root+"d1/state", [...]string{"2", "on", "\xff", "11"}[r.d.n(4)], ReadsDead)
	case SessionEnded, OtherLine, Replay:
	}
}

// The conventions of status topics.
const (
	homie   = "homie"
	tasmota = "tasmota"
	zigbee  = "zigbee2mqtt"
)

// convention returns which convention a client's status may follow: Tasmota says nothing when it leaves, and Zigbee2MQTT, which speaks for its
// devices, knows no takeover.
func (w *Wire) convention(client int) string {
	may := []string{homie, tasmota, zigbee}
	drop := func(name string) {
		for i := range may {
			if may[i] == name {
				may = append(may[:i], may[i+1:]...)
				return
			}
		}
	}
	left, taken := false, false
	for _, e := range w.h.Events {
		if e.Client == client && e.Kind == Disconnected {
			left = left || e.Cause == CauseNormal
			taken = taken || e.Cause == CauseTakenOver || e.Cause == CauseDiscarded
		}
	}
	if left {
		drop(tasmota)
	}
	if taken || w.h.Plan.Mode == Silent {
		drop(zigbee)
	}
	return may[w.d.n(len(may))]
}

func (r *render) statusTopic() {
	e := r.e
	r.fact.Username, r.fact.Peer = "", ""
	convention := homie
	if e.Client >= 0 {
		convention = r.w.status[e.Client]
	}
	topic := "homie/5/" + r.id + "/$state"
	switch convention {
	case tasmota:
		topic = "tele/" + r.id + "/LWT"
	case zigbee:
		topic = r.id + "/availability"
	}
	switch e.Kind {
	case Connected:
		word := map[string]string{homie: "ready", tasmota: "Online", zigbee: "online"}[convention]
		if convention == homie && r.d.in(30) {
			word = "init"
		}
		r.add(topic, r.word(convention, word), ReadsFact)
	case Disconnected:
		switch convention {
		case tasmota:
			r.fact.Reason, r.fact.RawReason = presence.ReasonConnectionLost, "Offline"
		case zigbee:
			r.fact.Reason, r.fact.RawReason = presence.ReasonKeepAliveTimeout, "offline"
		default:
			r.fact.RawReason = e.RawReason
		}
		r.add(topic, r.word(convention, r.fact.RawReason), ReadsFact)
	case Self:
		r.hazard(22, topic, "ready", ReadsOther)
	case Poison:
		if r.d.in(50) {
			r.hazard(16, topic, "ready", ReadsDead)
			return
		}
		r.hazard(16, "homie/5/d1/$state", [...]string{"on", "\xff\xfe", "READY", `{"state":"ready"}`}[r.d.n(4)], ReadsDead)
	case Refused, SessionEnded, OtherLine, Gateway, Replay:
	}
}

// word returns a status as the convention writes it.
func (r *render) word(convention, word string) string {
	if convention == zigbee && r.d.in(70) {
		return `{"state":"` + word + `"}`
	}
	return word
}

// sparkplug renders births and deaths of edge nodes (Sparkplug 3.0, 6.4.1), in Protobuf.
func (r *render) sparkplug() {
	e := r.e
	group, id, _ := strings.Cut(r.id, "/")
	r.fact.Username, r.fact.Peer = "", ""
	birth, death := "spBv1.0/"+group+"/NBIRTH/"+id, "spBv1.0/"+group+"/NDEATH/"+id
	var number uint64
	for _, c := range e.Key {
		number = number*10 + uint64(c-'0')
	}
	switch e.Kind {
	case Connected:
		r.add(birth, string(r.birth(number)), ReadsFact)
	case Disconnected:
		r.fact.Reason, r.fact.RawReason = presence.ReasonConnectionLost, "NDEATH"
		r.add(death, string(field(nil, 2, metric("bdSeq", number))), ReadsFact)
	case Self:
		r.hazard(22, birth, string(r.birth(0)), ReadsOther)
	case Poison:
		switch r.d.n(3) {
		case 0:
			r.hazard(16, birth, string(r.birth(1)), ReadsDead)
		case 1:
			b := r.birth(1)
			r.hazard(16, "spBv1.0/g/NBIRTH/d1", string(b[:len(b)-1]), ReadsDead)
		default:
			r.hazard(16, "spBv1.0/g/NDEATH/d1", string(field(nil, 2, metric("other", 1))), ReadsDead)
		}
	case Replay:
		r.hazard(18, birth, string(r.birth(0)), ReadsNothing)
		r.messages[0].Retain = true
	case Refused, SessionEnded, OtherLine, Gateway:
	}
}

// birth returns a payload with timestamp, some metrics, and the sequence number.
func (r *render) birth(number uint64) []byte {
	metrics := [][]byte{metric("Node Control/Rebirth", 0), metric("bdSeq", number), metric("bdSeq of the line", 7), metric("grüße", 1<<40)}
	k := r.d.n(len(metrics))
	metrics[1], metrics[k] = metrics[k], metrics[1]
	b := integer(nil, 1, uint64(r.e.StampMS))
	for _, m := range metrics {
		b = field(b, 2, m)
	}
	return integer(b, 3, 0)
}

// metric returns a metric with a whole number: name, alias, timestamp, datatype (UInt64), long_value.
func metric(name string, value uint64) []byte {
	b := field(nil, 1, []byte(name))
	b = integer(b, 2, 5)
	b = integer(b, 3, epochMS)
	b = integer(b, 4, 8)
	return integer(b, 11, value)
}

// integer and field append a field of a Protobuf message: of a number, and of bytes.
func integer(b []byte, number int, value uint64) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(b, uint64(number)<<3), value)
}

func field(b []byte, number int, value []byte) []byte {
	b = binary.AppendUvarint(b, uint64(number)<<3|2)
	return append(binary.AppendUvarint(b, uint64(len(value))), value...)
}
