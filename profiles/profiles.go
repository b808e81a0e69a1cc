// Package profiles embeds the isolation profiles and the system call profiles
// that creel ships. A file of the same name in the configuration directory
// takes the place of an embedded one.
package profiles

import "embed"

// FS holds *.toml (isolation profiles, and protect.toml, see pkg/protect),
// egress/*.toml (presets, see pkg/preset) and seccomp/*.json (system call profiles,
// see pkg/seccomp).
//
//go:embed *.toml seccomp/*.json egress/*.toml
var FS embed.FS
