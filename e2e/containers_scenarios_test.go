//go:build e2e

package e2e

import "testing"

// TestContainers runs the scenarios, then the faults, over real Kafka, real Mosquitto and our images. The parts are started once: what one
// scenario leaves behind is what the next one meets.
func TestContainers(t *testing.T) {
	s := startSplit(t)
	tgt := s.target(t).open(t)
	runScenarios(t, tgt)
	for _, f := range faults {
		t.Run(f.name, func(t *testing.T) { f.run(t, s, tgt) })
	}
}
