package simulator

// dice is a small source of choices. The zero value is calm: every throw is 0, which everywhere is the simplest choice, so that a failing
// plan shrinks by taking the dice out of its steps one by one.
type dice struct{ state uint64 }

func (d *dice) next() uint64 {
	if d.state == 0 {
		return 0
	}
	// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators).
	d.state += 0x9e3779b97f4a7c15
	z := d.state
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// n returns a number from 0 to k-1.
func (d *dice) n(k int) int { return int(d.next() % uint64(k)) }

// ms returns a number from lo to hi, both included.
func (d *dice) ms(lo, hi int64) int64 { return lo + int64(d.next()%uint64(hi-lo+1)) }

// in reports true in so many of a hundred throws, and false if calm.
func (d *dice) in(percent int) bool { return d.n(100) >= 100-percent }

// fork returns dice of their own, calm if d is.
func (d *dice) fork() dice { return dice{d.next()} }
