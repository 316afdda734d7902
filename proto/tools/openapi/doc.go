// Command openapi completes the OpenAPI document that protoc-gen-openapiv2 writes: it lays a hand-written overlay over it and prints the
// result.
//
//	openapi GENERATED OVERLAY
//
// Objects merge key by key, at any depth; where both sides have anything else, the overlay wins. Nothing can be removed. The output is
// a function of the two documents: keys are sorted, the indent is two spaces.
//
// An overlay is used instead of annotations in the .proto files because the plain HTTP calls have no RPC to annotate, and the contract
// would otherwise import the plugin's options.
package main
