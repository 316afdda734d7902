//go:build !race

package simulator

// slowdown divides the volume, see race_test.go.
const slowdown = 1
