package presencectl

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// TestBatchSplits: any number of IDs, of any length, goes in calls that the service takes, and is answered in order.
func TestBatchSplits(t *testing.T) {
	r := newRunner(t)
	var in, want strings.Builder
	for i := range 2_500 {
		fmt.Fprintf(&in, "id%d\n", i)
		fmt.Fprintf(&want, "id%d offline\n", i)
	}
	r.in = in.String()
	var got strings.Builder
	for i, line := range strings.Split(strings.TrimSpace(r.ok("batch")), "\n") {
		fields := strings.Fields(line)
		if i > 0 {
			got.WriteString(fields[0] + " " + fields[1] + "\n")
		}
	}
	if got.String() != want.String() {
		t.Error("the answers are not those of the IDs, in their order")
	}
	if !slices.Equal(r.fake.batches, []int{1000, 1000, 500}) {
		t.Errorf("calls of %v", r.fake.batches)
	}

	r.fake.batches = nil
	long := strings.Repeat("x", 65_534)
	r.in = ""
	for i := range 100 {
		r.in += fmt.Sprintf("%s%d\n", long, i%10)
	}
	r.in += "y" // the last line has no end
	if out := r.ok("batch", "-o", "json"); strings.Count(out, "\n") != 101 {
		t.Errorf("%d answers", strings.Count(out, "\n"))
	}
	if !slices.Equal(r.fake.batches, []int{32, 32, 32, 5}) {
		t.Errorf("calls of %v", r.fake.batches)
	}
	r.in = long + "xx\n"
	r.fails("has at most 65535", "batch", "-o", "json")
	r.in = long + "xxxxx\n"
	r.fails("line 1", "batch", "-o", "json")
}
