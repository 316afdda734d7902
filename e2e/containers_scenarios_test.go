//go:build e2e

package e2e

import "testing"

// TestContainers runs the scenarios, the hazards of a real broker and the faults over real Kafka, real Mosquitto and our images. The parts are started once: what one
// scenario leaves behind is what the next one meets.
func TestContainers(t *testing.T) {
	s := startSplit(t)
	tgt := s.target(t).open(t)
	runScenarios(t, tgt)
	t.Run("late ghost H3", func(t *testing.T) { scenarioLateGhost(t, tgt) })
	t.Run("stranger H4", func(t *testing.T) { scenarioStranger(t, tgt) })
	t.Run("identical lines H8", func(t *testing.T) { scenarioIdenticalLines(t, tgt) })
	t.Run("storm over TCP H5 H8", func(t *testing.T) { mosquittoStorm(t, tgt) })
	t.Run("storm over WebSocket H3 H8", func(t *testing.T) { mosquittoStorm(t, tgt.overWebSocket()) })
	for _, f := range faults {
		t.Run(f.name, func(t *testing.T) { f.run(t, s, tgt) })
	}
}
