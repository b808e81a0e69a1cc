package api

import "time"

// The bounds of a volume's size. A smaller one would have no journal.
const (
	MinVolume Size = 16 << 20
	MaxVolume Size = 8 << 40
)

// VolumeRequest makes a volume. It is a closed schema.
type VolumeRequest struct {
	// Name is 1 to 63 of [a-z0-9-], starting with a letter or digit. Unique
	// among the caller's volumes.
	Name string `json:"name"`

	// Agent is the agent whose sandboxes may write it: same form as Name.
	// "default" when empty.
	Agent string `json:"agent,omitempty"`

	// Size is the most bytes it may hold, its own tables included: 16 MiB to
	// 8 TiB, rounded down to whole MiB. 1 GiB when zero.
	Size Size `json:"size,omitzero"`
}

// Volume is a file system of one agent's that outlives its sandboxes.
type Volume struct {
	Name     string      `json:"name"`
	Agent    string      `json:"agent"`
	Size     Size        `json:"size"`
	Inodes   int64       `json:"inodes"` // files and directories it may hold
	Used     Size        `json:"used"`   // bytes of the host's disk it takes now
	Caller   Caller      `json:"caller"`
	Created  time.Time   `json:"created"`
	LastUsed time.Time   `json:"last_used,omitzero"` // when a sandbox last began or ceased to use it
	UsedBy   []VolumeUse `json:"used_by,omitempty"`
	Problem  string      `json:"problem,omitempty"`
}

// VolumeUse is a sandbox that has a volume mounted.
type VolumeUse struct {
	Sandbox  string `json:"sandbox"` // its id
	Name     string `json:"name"`
	Agent    string `json:"agent"`
	ReadOnly bool   `json:"readonly,omitempty"`
}
