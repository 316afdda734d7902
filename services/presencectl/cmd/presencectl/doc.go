// Command presencectl asks a Presence service which MQTT clients are connected, over gRPC. Its commands are listed by --help. It exits with 3 on
// every error; "presencectl status" exits with 0 for online, 1 for offline and 2 for unknown, every other command with 0.
package main
