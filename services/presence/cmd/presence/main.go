// Command presence runs all of Presence in one process.
package main

import (
	"os"

	"github.com/mqtt-presence/presence/libs/service"
	"github.com/mqtt-presence/presence/services/presence"
)

func main() { os.Exit(service.Main("presence", os.Args[1:], presence.Command)) }
