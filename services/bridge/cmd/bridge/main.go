package main

import (
	"os"

	"github.com/mqtt-presence/presence/libs/service"
	"github.com/mqtt-presence/presence/services/bridge"
)

func main() {
	os.Exit(service.Main("bridge", os.Args[1:], bridge.Command))
}
