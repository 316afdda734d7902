// Package simulator makes histories of MQTT broker clusters: what happened, what a bridge received of it, and the truth.
package simulator
