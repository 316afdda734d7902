package main

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"strings"
)

// The measured inputs of the sizing page. Times are CPU time.
const (
	inFold        = "materializer, CPU for each event: fold, store, publish (us)"
	inFoldKafka   = "Kafka, CPU for each event that a materializer folds and publishes (us)"
	inFoldRate    = "events per second of one materializer that publishes"
	inLargeFold   = "the same CPU, of the largest fleet in one process (us)"
	inLargeRate   = "events per second of one materializer that publishes, of the largest fleet in one process"
	inRebuildRate = "events per second of one materializer that rebuilds"
	inBridge      = "bridge, CPU for each event (us)"
	inBridgeKafka = "Kafka, CPU for each event of a bridge (us)"
	inBridgeRate  = "events per second of one bridge"
	inEventBytes  = "client-events, bytes for each event"
	inStateBytes  = "client-state, bytes for each transition"
	inRow         = "row, bytes for each client after many connections"
	inIndexes     = "indexes, bytes for each client after many connections"
	inEvidence    = "evidence, bytes for each client after many connections"
	inSessions    = "sessions, bytes for each client after many connections"
	inDisk        = "state on disk before compaction, bytes for each client after one connection"
	inResident    = "materializer, peak resident memory (MiB)"
	inRestoreRate = "clients per second of a restore from client-state"
	inLookup      = "lookup in process, p99 (us)"
	inREST        = "REST, CPU for each call with its caller (us)"
	inGRPC        = "gRPC, CPU for each call with its caller (us)"
)

// input is one measured number.
type input struct {
	name  string
	value float64
	part  string
}

// input keeps a number for the sizing page; of several with one name, the last, which is that of the largest fleet.
func (t *table) input(name string, value float64) {
	for i := range t.inputs {
		if t.inputs[i].name == name {
			t.inputs[i] = input{name, value, t.part}
			return
		}
	}
	t.inputs = append(t.inputs, input{name, value, t.part})
}

// What is assumed of a fleet.
const (
	eventsPerDay     = 24 // of each client: twelve connections and their ends
	eventsInStorm    = 2  // of each client: its connection ends, and it connects again
	retentionDays    = 7
	replication      = 3
	replicas         = 2 // of the materializers
	diskHeadroom     = 2 // for compactions and what they have not got to
	coresPerProcess  = 2
	partitionsACore  = 4
	leastPartitions  = 16
	mostPerPartition = 1_000_000  // clients, so that one restores in a minute
	smallFleet       = 1_000_000  // clients, up to which the CPU of an event is that of peers; of more it is that of the largest fleet
	mostPerProcess   = 10_000_000 // clients of a materializer: more were not measured
	busy             = 0.5        // share of a core that is planned for
	dayS             = 24 * 60 * 60
)

// needs is what a fleet takes. Cores are planned to be half busy.
type needs struct {
	clients                      float64
	steady                       float64 // events per second
	storm                        float64 // events per second of all clients within the time
	foldCores, kafkaCores        float64
	bridgeCores                  float64
	materializers, partitions    float64
	bridges                      float64
	stateDisk, eventLog, journal float64 // GiB: of one replica; of Kafka with its replication
	stormLag                     float64 // seconds until all of a storm within a minute is visible
	restore                      float64 // seconds, of one materializer's share
}

// sizing works out what a fleet needs to keep up with all of its clients within stormS seconds. What follows from an input that was not measured, NaN,
// is NaN.
func sizing(in map[string]float64, clients, stormS float64) needs {
	const gib, us = 1 << 30, 1e-6
	n := needs{clients: clients, steady: clients * eventsPerDay / dayS, storm: clients * eventsInStorm / stormS}
	fold, rate := in[inFold], in[inFoldRate]
	if clients > smallFleet {
		fold, rate = in[inLargeFold], in[inLargeRate]
	}
	n.foldCores = n.storm * fold * us / busy
	n.kafkaCores = n.storm * (replicas*in[inFoldKafka] + in[inBridgeKafka]) * us / busy
	n.bridgeCores = n.storm * in[inBridge] * us / busy
	n.materializers = math.Max(math.Ceil(clients/mostPerProcess), math.Ceil(n.foldCores/coresPerProcess))
	n.partitions = math.Max(leastPartitions, math.Max(partitionsACore*coresPerProcess*n.materializers, clients/mostPerPartition))
	n.partitions = math.Exp2(math.Ceil(math.Log2(n.partitions)))
	n.bridges = math.Max(1, math.Ceil(n.storm/(in[inBridgeRate]*busy)))
	n.stateDisk = clients * math.Max(in[inDisk], in[inRow]+in[inIndexes]+in[inEvidence]+in[inSessions]) * diskHeadroom / gib
	n.eventLog = clients * eventsPerDay * retentionDays * in[inEventBytes] * replication / gib
	n.journal = clients * (eventsPerDay*retentionDays + 1) * in[inStateBytes] * replication / gib
	n.stormLag = math.Max(0, clients*eventsInStorm/(n.materializers*rate)-60)
	n.restore = clients / n.materializers / in[inRestoreRate]
	return n
}

// neededInputs are those that the needs of a fleet follow from.
var neededInputs = []string{inFold, inFoldKafka, inFoldRate, inLargeFold, inLargeRate, inBridge, inBridgeKafka, inBridgeRate, inEventBytes, inStateBytes, inRow, inIndexes, inEvidence, inSessions, inDisk,
	inRestoreRate}

// sizingText renders what was measured, and what follows for fleets.
func sizingText(inputs []input, page string) string {
	var b strings.Builder
	in := map[string]float64{}
	for _, name := range neededInputs {
		in[name] = math.NaN()
	}
	fmt.Fprintf(&b, "Measured ([%s](benchmarks/%s)):\n\n| what | value | part |\n|---|---|---|\n", strings.TrimSuffix(page, ".md"), page)
	for _, i := range inputs {
		in[i.name] = i.value
		fmt.Fprintf(&b, "| %s | %s | %s |\n", i.name, short(i.value), i.part)
	}
	for _, name := range neededInputs {
		if math.IsNaN(in[name]) {
			fmt.Fprintf(&b, "| %s | not measured | |\n", name)
		}
	}
	for _, stormS := range []float64{300, 60} {
		fmt.Fprintf(&b, "\nExtrapolated by the rules above, for a fleet that keeps up while all of its clients reconnect within %.0f s:\n\n", stormS)
		b.WriteString("| | 1 M clients | 10 M | 100 M |\n|---|---|---|---|\n")
		fleets := []needs{sizing(in, 1e6, stormS), sizing(in, 1e7, stormS), sizing(in, 1e8, stormS)}
		row := func(name string, of func(needs) string) {
			fmt.Fprintf(&b, "| %s |", name)
			for _, n := range fleets {
				fmt.Fprintf(&b, " %s |", of(n))
			}
			b.WriteString("\n")
		}
		whole := func(v float64) string {
			if math.IsNaN(v) {
				return "not measured"
			}
			return short(math.Ceil(v))
		}
		number := func(of func(needs) float64) func(needs) string { return func(n needs) string { return whole(of(n)) } }
		row("events/s, on an ordinary day", number(func(n needs) float64 { return n.steady }))
		row("events/s, in the storm", number(func(n needs) float64 { return n.storm }))
		row("bridges, of as many broker clusters", number(func(n needs) float64 { return n.bridges }))
		row("their cores", number(func(n needs) float64 { return n.bridgeCores }))
		row("materializers of 2 cores, for each replica", number(func(n needs) float64 { return n.materializers }))
		row("partitions", number(func(n needs) float64 { return n.partitions }))
		row("disk of all materializers of a replica, GiB", number(func(n needs) float64 { return n.stateDisk }))
		row("restore of one with an empty disk, s", number(func(n needs) float64 { return n.restore }))
		row("Kafka's cores, over all brokers", number(func(n needs) float64 { return n.kafkaCores }))
		row("Kafka's disk, GiB: client-events / client-state", func(n needs) string { return whole(n.eventLog) + " / " + whole(n.journal) })
		if stormS > 60 {
			row("a storm within 60 s is visible so many seconds later", number(func(n needs) float64 { return n.stormLag }))
		}
	}
	return b.String()
}

// The lines between which the sizing page is written.
const (
	sizingBegin = "<!-- written by make bench: begin -->\n"
	sizingEnd   = "<!-- written by make bench: end -->\n"
)

// writeSizing replaces what stands between the two lines in the sizing page.
func writeSizing(path, text string) error {
	old, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read the sizing page: %w", err)
	}
	head, rest, begins := bytes.Cut(old, []byte(sizingBegin))
	_, tail, ends := bytes.Cut(rest, []byte(sizingEnd))
	if !begins || !ends {
		return fmt.Errorf("write the sizing page: %s does not have the lines %q and %q", path, strings.TrimSpace(sizingBegin), strings.TrimSpace(sizingEnd))
	}
	page := fmt.Sprintf("%s%s\n%s\n\n%s%s", head, sizingBegin, strings.TrimSpace(text), sizingEnd, tail)
	if err := os.WriteFile(path, []byte(page), 0o644); err != nil {
		return fmt.Errorf("write the sizing page: %w", err)
	}
	return nil
}
