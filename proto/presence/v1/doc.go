// Package presencev1 is the contract of version 1: the Kafka records, the internal StateService and the public PresenceService.
//
// What it guarantees:
//
//   - Within v1 the contract only grows. A field keeps its number, name, type and meaning; buf checks each change against the version before.
//   - Names are part of the contract. Records in JSON and REST answers use the field names as the .proto files spell them.
//   - Absent means unknown in a record, never zero. A field whose zero is a fact of its own (keep_alive_s 0: the keep alive is off) is
//     optional; offsets are always there, so that 0 is the first record.
//   - Records (ClientEvent, NodeEvent, ClientState) are flat: scalars only, no nested message, list or map, so that they load into a table
//     as they are.
//   - Units stand in the names: _ms is milliseconds, and for an instant milliseconds since the Unix epoch; _s is seconds. Only the answers of
//     PresenceService hold google.protobuf.Timestamp, which is RFC 3339 in JSON.
//   - Words (status, status_reason, reason, type) are strings, so a reader built before a word was added still reads the record.
//   - The REST calls are the HTTP rules of PresenceService and the plain calls beside them; [OpenAPI] describes both.
//
// The Go code is generated and committed; no generator is needed to build. The encoder of the records' JSON form is in libs/eventlog.
package presencev1
