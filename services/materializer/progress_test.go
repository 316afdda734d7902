package materializer

import "testing"

// A machine's clock that was ahead, and is set back, does not hide how old the latest report of Kafka is.
func TestReportsAfterTheClockWasSetBack(t *testing.T) {
	const hour = 3_600_000
	var p progress
	p.start(0, 0, 0, hour)
	p.sawEnd(0, 2*hour, 2*hour)
	p.sawEnd(5, hour+1_000, hour+1_000)
	if f := p.read(); f.endMS != hour+1_000 || f.caughtUpMS != hour+1_000 || f.end != 5 {
		t.Errorf("after it was set back: %+v", f)
	}
	// Reports that overtake one another by little are no such thing.
	p.sawEnd(7, hour+900, hour+900)
	if f := p.read(); f.endMS != hour+1_000 || f.end != 7 {
		t.Errorf("after an older report: %+v", f)
	}
}
