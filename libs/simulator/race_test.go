//go:build race

package simulator

// slowdown divides the volume: under the race detector everything takes many times as long.
const slowdown = 20
