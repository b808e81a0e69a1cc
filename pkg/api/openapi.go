package api

import _ "embed"

//go:embed openapi.yaml
var openAPI string

// OpenAPI is the OpenAPI 3.1 document of the API, as YAML. The daemon serves
// it at /v1/openapi.yaml; a test of pkg/server holds it against the routes and
// these types.
func OpenAPI() string { return openAPI }
