package api

import "time"

// The kinds of SecretPlace.
const (
	PlaceBearer = "bearer" // Authorization: Bearer VALUE (RFC 6750)
	PlaceHeader = "header" // Name: VALUE
	PlaceBasic  = "basic"  // Authorization: Basic, of the user Name (RFC 7617)
	PlaceQuery  = "query"  // ?Name=VALUE
)

// SecretPlace is where a secret goes in a request.
type SecretPlace struct {
	// Kind is "bearer", "header", "basic" or "query".
	Kind string `json:"kind"`
	// Name is of the header, user or parameter.
	Name string `json:"name,omitempty"`
}

// SecretRequest sets a secret. It is a closed schema.
type SecretRequest struct {
	// Value is one line of printable ASCII, 8 to 8,192 bytes. Nobody reads it
	// back. Required.
	Value string `json:"value"`

	// Rule is what it is bound to, in the form of SpawnRequest.Egress: https,
	// and one host by its name. Required.
	Rule string `json:"rule"`

	// Place is where it goes in a request; bearer when its kind is empty.
	Place SecretPlace `json:"place,omitzero"`

	// Env is a variable that has the placeholder in the sandboxes that use it.
	Env string `json:"env,omitempty"`

	// Agents are patterns of the names of agents whose sandboxes may use it; all
	// when empty. 64 at most.
	Agents []string `json:"agents,omitempty"`
}

// Secret is a credential that no sandbox sees. Its value is never shown.
type Secret struct {
	Name   string      `json:"name"`
	Box    bool        `json:"box,omitempty"` // the box's: an operator set it
	Rule   string      `json:"rule"`
	Place  SecretPlace `json:"place"`
	Env    string      `json:"env,omitempty"`
	Agents []string    `json:"agents,omitempty"`
	Caller Caller      `json:"caller"` // who set it
	// Set is when it was last given a value.
	Set time.Time `json:"set"`
	// Uses is how many requests it was sent with since creeld started, and
	// LastUsed when the last of them was.
	Uses     uint64    `json:"uses"`
	LastUsed time.Time `json:"last_used,omitzero"`
}
