package e2e

import (
	"math/rand/v2"
	"net"
	"strconv"
	"testing"
)

// Ports to listen on, below those that outgoing connections take (net.ipv4.ip_local_port_range begins at 32768): a port that is free now
// must still be free when a process that was killed starts again.
const (
	firstPort = 12_000
	lastPort  = 32_000
)

// freePort returns a port of loopback that nothing listens on.
func freePort(t *testing.T) int {
	t.Helper()
	for range 100 {
		port := firstPort + rand.IntN(lastPort-firstPort)
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			continue
		}
		must(t, l.Close())
		return port
	}
	t.Fatal("found no free port")
	return 0
}

// freeAddr returns an address of loopback that nothing listens on.
func freeAddr(t *testing.T) string {
	t.Helper()
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(freePort(t)))
}
