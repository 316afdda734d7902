package main

import (
	"os"

	"github.com/mqtt-presence/presence/libs/service"
	"github.com/mqtt-presence/presence/services/query"
)

func main() {
	os.Exit(service.Main("query", os.Args[1:], query.Command))
}
