package presencev1

import _ "embed"

//go:embed openapi.swagger.json
var openAPI string

// OpenAPI returns the OpenAPI 2.0 document, in JSON, of all public HTTP calls: the HTTP rules of PresenceService and the plain calls
// beside them. The caller owns the bytes.
func OpenAPI() []byte {
	return []byte(openAPI)
}
