package server

import (
	"net/http"
	"slices"
)

// Route is one method and path of the API.
type Route struct {
	Method  string
	Pattern string // of http.ServeMux
	// Stream marks requests that last; their number is limited apart.
	Stream bool
	// Once marks requests that Idempotency-Key is for: a repeat would do
	// something twice, or be taken for a mistake. Spawn keeps its keys itself.
	Once bool
	// Inside marks those that a sandbox's own socket has.
	Inside bool
	// Anyone marks those that a caller without a ceiling may use.
	Anyone bool
	handle func(*Server, http.ResponseWriter, *http.Request, Caller) error
}

// Routes are all routes, for holding the OpenAPI document against them.
func Routes() []Route { return slices.Clone(routes) }

// routes is never written.
var routes = []Route{
	{Method: "POST", Pattern: "/v1/sandboxes", Inside: true, Once: true, handle: (*Server).spawn},
	{Method: "POST", Pattern: "/v1/explain", handle: (*Server).explain},
	{Method: "GET", Pattern: "/v1/sandboxes", Inside: true, Anyone: true, handle: (*Server).list},
	{Method: "GET", Pattern: "/v1/sandboxes/{ref}", Inside: true, handle: (*Server).get},
	{Method: "PUT", Pattern: "/v1/sandboxes/{ref}", handle: (*Server).ensure},
	{Method: "DELETE", Pattern: "/v1/sandboxes/{ref}", Inside: true, handle: (*Server).remove},
	{Method: "POST", Pattern: "/v1/sandboxes/{ref}/stop", Inside: true, handle: (*Server).stopSandbox},
	{Method: "POST", Pattern: "/v1/sandboxes/{ref}/kill", Inside: true, Once: true, handle: (*Server).kill},
	{Method: "POST", Pattern: "/v1/sandboxes/{ref}/pause", handle: (*Server).pause},
	{Method: "POST", Pattern: "/v1/sandboxes/{ref}/resume", handle: (*Server).resume},
	{Method: "GET", Pattern: "/v1/sandboxes/{ref}/wait", Inside: true, Stream: true, handle: (*Server).wait},
	{Method: "GET", Pattern: "/v1/sandboxes/{ref}/logs", Inside: true, Stream: true, handle: (*Server).logs},
	{Method: "GET", Pattern: "/v1/sandboxes/{ref}/stats", handle: (*Server).stats},
	{Method: "GET", Pattern: "/v1/sandboxes/{ref}/top", handle: (*Server).top},
	{Method: "GET", Pattern: "/v1/sandboxes/{ref}/execs", handle: (*Server).execs},
	{Method: "GET", Pattern: "/v1/sandboxes/{ref}/evidence", handle: (*Server).evidence},
	{Method: "GET", Pattern: "/v1/sandboxes/{ref}/diff", handle: (*Server).diff},
	{Method: "POST", Pattern: "/v1/sandboxes/{ref}/commit", Stream: true, handle: (*Server).commit},
	{Method: "POST", Pattern: "/v1/sandboxes/{ref}/exec", Inside: true, Stream: true, Once: true, handle: (*Server).exec},
	{Method: "POST", Pattern: "/v1/sandboxes/{ref}/prepare", handle: (*Server).prepare},
	{Method: "POST", Pattern: "/v1/prepared/{id}", Stream: true, handle: (*Server).execPrepared},
	{Method: "DELETE", Pattern: "/v1/prepared/{id}", handle: (*Server).releasePrepared},
	{Method: "POST", Pattern: "/v1/sandboxes/{ref}/attach", Stream: true, handle: (*Server).attach},

	{Method: "POST", Pattern: "/v1/sandboxes/{ref}/egress", handle: (*Server).allowEgress},
	{Method: "POST", Pattern: "/v1/sandboxes/{ref}/forward", Stream: true, handle: (*Server).forward},

	{Method: "GET", Pattern: "/v1/sandboxes/{ref}/files", Stream: true, handle: (*Server).readFile},
	{Method: "PUT", Pattern: "/v1/sandboxes/{ref}/files", Stream: true, handle: (*Server).writeFile},
	{Method: "DELETE", Pattern: "/v1/sandboxes/{ref}/files", handle: (*Server).removeFile},
	{Method: "GET", Pattern: "/v1/sandboxes/{ref}/files/list", Stream: true, handle: (*Server).listDir},
	{Method: "GET", Pattern: "/v1/sandboxes/{ref}/files/stat", handle: (*Server).statFile},
	{Method: "POST", Pattern: "/v1/sandboxes/{ref}/files/mkdir", Once: true, handle: (*Server).mkdir},
	{Method: "POST", Pattern: "/v1/sandboxes/{ref}/files/rename", Once: true, handle: (*Server).renameFile},

	{Method: "GET", Pattern: "/v1/events", Stream: true, handle: (*Server).events},

	{Method: "GET", Pattern: "/v1/images", handle: (*Server).images},
	{Method: "POST", Pattern: "/v1/images", Stream: true, handle: (*Server).importImage},
	{Method: "GET", Pattern: "/v1/images/{ref...}", handle: (*Server).image},
	{Method: "PUT", Pattern: "/v1/images/{ref...}", handle: (*Server).tagImage},
	{Method: "DELETE", Pattern: "/v1/images/{ref...}", handle: (*Server).removeImage},
	{Method: "GET", Pattern: "/v1/archives/{ref...}", Stream: true, handle: (*Server).saveImage},

	{Method: "GET", Pattern: "/v1/volumes", handle: (*Server).volumes},
	{Method: "POST", Pattern: "/v1/volumes", Once: true, handle: (*Server).createVolume},
	{Method: "GET", Pattern: "/v1/volumes/{name}", handle: (*Server).volume},
	{Method: "DELETE", Pattern: "/v1/volumes/{name}", handle: (*Server).removeVolume},

	{Method: "GET", Pattern: "/v1/secrets", handle: (*Server).secrets},
	{Method: "PUT", Pattern: "/v1/secrets/{name}", handle: (*Server).setSecret},
	{Method: "DELETE", Pattern: "/v1/secrets/{name}", handle: (*Server).removeSecret},

	{Method: "GET", Pattern: "/v1/approvals", handle: (*Server).approvals},
	{Method: "POST", Pattern: "/v1/approvals/{id}", handle: (*Server).decideApproval},

	{Method: "GET", Pattern: "/v1/agents", handle: (*Server).agents},
	{Method: "GET", Pattern: "/v1/agents/{ref}", handle: (*Server).agent},
	{Method: "POST", Pattern: "/v1/agents/{ref}/revoke", handle: (*Server).revokeAgent},
	{Method: "POST", Pattern: "/v1/agents/{ref}/restore", handle: (*Server).restoreAgent},
	{Method: "POST", Pattern: "/v1/agents/{ref}/expire", handle: (*Server).expireAgent},
	{Method: "POST", Pattern: "/v1/agents/{ref}/forget-egress", handle: (*Server).forgetEgress},

	{Method: "GET", Pattern: "/v1/profiles", handle: (*Server).profiles},
	{Method: "GET", Pattern: "/v1/profiles/{name}", handle: (*Server).profile},
	{Method: "POST", Pattern: "/v1/profiles/check", handle: (*Server).checkProfile},

	{Method: "GET", Pattern: "/v1/system/df", handle: (*Server).diskUsage},
	{Method: "POST", Pattern: "/v1/system/prune", handle: (*Server).prune},

	{Method: "GET", Pattern: "/v1/audit", Stream: true, handle: (*Server).auditLog},
	{Method: "GET", Pattern: "/v1/audit/head", handle: (*Server).auditHead},
	{Method: "GET", Pattern: "/v1/key", handle: (*Server).publicKey},
	{Method: "GET", Pattern: "/v1/trust-bundle", handle: (*Server).trustBundle},
	{Method: "GET", Pattern: "/v1/doctor", handle: (*Server).doctor},
	{Method: "GET", Pattern: "/v1/version", Inside: true, Anyone: true, handle: (*Server).version},
	{Method: "GET", Pattern: "/v1/openapi.yaml", handle: (*Server).openapi},
}
