// Command query is the query service as a process of its own. It answers which MQTT clients are connected, over REST and gRPC, by asking
// the materializers that own the partitions; "query account" prints a line for its accounts file. It exits with 0 when it is stopped by a
// signal, 2 when its configuration is wrong, else 1.
package main
