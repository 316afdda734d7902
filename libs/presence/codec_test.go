package presence

import (
	"math"
	"strconv"
	"testing"
)

func TestIsDecimal(t *testing.T) {
	for _, v := range []int64{0, 1, 9, 10, -1, math.MaxInt64, math.MinInt64, 1_700_000_000_000} {
		own := strconv.FormatInt(v, 10)
		for _, s := range []string{own, "", "0", "0" + own, own + "0", own[1:], own[:len(own)-1], "+" + own, own[:len(own)-1] + ":"} {
			if got := isDecimal(s, v); got != (s == own) {
				t.Errorf("isDecimal(%q, %d) = %v", s, v, got)
			}
		}
	}
}
