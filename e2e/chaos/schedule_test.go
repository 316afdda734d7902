package chaos

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"
)

// TestPlan checks the schedules of many seeds.
func TestPlan(t *testing.T) {
	for seed := range uint64(1000) {
		for _, lasts := range []time.Duration{90 * time.Second, 10 * time.Minute} {
			steps := Plan(seed, lasts)
			if !reflect.DeepEqual(steps, Plan(seed, lasts)) {
				t.Fatalf("seed %d: two plans differ", seed)
			}
			if err := checkPlan(steps, lasts); err != nil {
				t.Fatalf("seed %d, %v: %v\n%v", seed, lasts, err, steps)
			}
		}
	}
	if reflect.DeepEqual(Plan(1, time.Minute), Plan(2, time.Minute)) {
		t.Error("two seeds make one plan")
	}
}

func checkPlan(steps []Step, lasts time.Duration) error {
	hit := map[Kind]int{}
	long := 0 // pauses of a materializer that publishes, beyond its session
	for i, s := range steps {
		hit[s.Kind]++
		switch {
		case s.At+s.For > lasts:
			return fmt.Errorf("%v ends after the end", s)
		case s.For < 0, s.For == 0 && s.Action != Restart:
			return fmt.Errorf("%v lasts no time", s)
		case (s.Action == Cut) != (len(s.Peers) > 0):
			return fmt.Errorf("%v has the wrong peers", s)
		case slices.Contains(s.Peers, s.Targets[0]):
			return fmt.Errorf("%v cuts it off from itself", s)
		}
		if s.Action == Pause && s.Kind == ReplicaA && s.For >= session+2*time.Second {
			long++
		}
		for _, o := range steps[:i] {
			if alone(o.Kind, s.Kind) && o.At+o.For+settle[o.Kind] > s.At {
				return fmt.Errorf("%v begins before %v is settled", s, o)
			}
		}
	}
	for kind := range Processes() {
		if hit[kind] == 0 {
			return fmt.Errorf("%s is never hit", kind)
		}
	}
	if long == 0 {
		return errors.New("no materializer that publishes is paused until it is fenced")
	}
	if lasts >= 10*time.Minute && hit[Kafka] < 5 {
		return fmt.Errorf("kafka is hit %d times", hit[Kafka])
	}
	return nil
}

// alone reports whether two kinds are never away together.
func alone(a, b Kind) bool {
	replica := func(k Kind) bool { return k == ReplicaA || k == ReplicaB }
	return a == b || replica(a) && replica(b)
}
