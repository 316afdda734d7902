package simulator

import "slices"

// Shrink returns a plan as small as it finds for which fails still holds. It takes steps out, then makes what is left simpler.
func Shrink(p *Plan, fails func(*Plan) bool) *Plan {
	best := *p
	try := func(change func(*Plan)) bool {
		q := best
		q.Steps = slices.Clone(best.Steps)
		q.SkewMS = slices.Clone(best.SkewMS)
		change(&q)
		if slices.ContainsFunc(q.Steps, func(s Step) bool { return s.Client < 0 }) || !fails(&q) {
			return false
		}
		best = q
		return true
	}
	for again := true; again; {
		again = false
		for size := max(len(best.Steps)/2, 1); size > 0; size /= 2 {
			for from := 0; from < len(best.Steps); {
				to := min(from+size, len(best.Steps))
				if try(func(q *Plan) { q.Steps = slices.Delete(q.Steps, from, to) }) {
					again = true
				} else {
					from = to
				}
			}
		}
		for i := range best.Steps {
			for _, change := range simpler {
				if try(func(q *Plan) {
					s := &q.Steps[i]
					was := *s
					if change(s); *s == was {
						*s = Step{Client: -1}
					}
				}) {
					again = true
				}
			}
		}
		for i := range best.SkewMS {
			if best.SkewMS[i] != 0 && try(func(q *Plan) { q.SkewMS[i] = 0 }) {
				again = true
			}
		}
		if best.Bridges > 1 && try(func(q *Plan) { q.Bridges = 1 }) {
			again = true
		}
		if len(best.Steps) > 0 && best.Seed != 1 && try(func(q *Plan) { q.Seed = 1 }) {
			again = true
		}
		for last := best.Clients - 1; best.Clients > 1 && !slices.ContainsFunc(best.Steps, func(s Step) bool { return s.Client == last }); last-- {
			if !try(func(q *Plan) { q.Clients-- }) {
				break
			}
		}
	}
	return &best
}

// simpler are changes of one step, each towards something easier to read.
var simpler = []func(*Step){
	func(s *Step) { s.Seed = 0 },
	func(s *Step) { s.WaitMS = 0 },
	func(s *Step) { s.WaitMS = s.WaitMS / 1000 * 1000 },
	func(s *Step) { s.WaitMS = min(s.WaitMS, 10) },
	func(s *Step) { s.Clean = false },
	func(s *Step) { s.Keep = false },
	func(s *Step) { s.Web = false },
	func(s *Step) { s.Client = 0 },
	func(s *Step) { s.Node = 0 },
	func(s *Step) { s.Cause = CauseNormal },
}
