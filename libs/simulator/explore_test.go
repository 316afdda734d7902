package simulator

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

func TestExplore(t *testing.T) {
	pat := regexp.MustCompile(os.Getenv("SIM"))
	digits := regexp.MustCompile(`c?[0-9@.]+`)
	for _, setup := range Setups() {
		for mode := range numModes {
			name := setup.Name + "/" + mode.String()
			if !pat.MatchString(name) {
				continue
			}
			n := map[string]int{}
			first := map[string]*Plan{}
			for i := range 3000 {
				p := NewPlan(&setup, mode, uint64(i+1))
				for _, m := range fold(Run(p)).check() {
					sig := digits.ReplaceAllString(strings.SplitN(m, "\n", 2)[0], "")
					n[sig]++
					if first[sig] == nil {
						first[sig] = p
					}
				}
			}
			for sig, k := range n {
				has := func(q *Plan) bool {
					for _, m := range fold(Run(q)).check() {
						if digits.ReplaceAllString(strings.SplitN(m, "\n", 2)[0], "") == sig {
							return true
						}
					}
					return false
				}
				small := Shrink(first[sig], has)
				t.Logf("##### %s: %d times: %s\n%s", name, k, sig, fold(Run(small)).h)
			}
		}
	}
}
