package cli

import (
	"strings"
	"testing"
)

// TestNamesRegistry is which names are pulled without being told to.
func TestNamesRegistry(t *testing.T) {
	for ref, want := range map[string]bool{
		"ghcr.io/team/tools:1": true, "docker.io/library/debian": true, "localhost:5000/x": true, "127.0.0.1:5000/x": true, "[::1]:5000/x": true,
		"base": false, "debian:12": false, "team/tools": false, "team/tools:1.2": false, "localhost/x": false, "": false, "/x": false,
		"sha256:" + strings.Repeat("a", 64): false, "x@sha256:" + strings.Repeat("a", 64): false, "team/x@sha256:" + strings.Repeat("a", 64): false,
	} {
		if got := namesRegistry(ref); got != want {
			t.Errorf("%q: %v", ref, got)
		}
	}
}

func TestCheckPull(t *testing.T) {
	for _, tt := range []struct{ policy, image, want string }{
		{"missing", "base", ""},
		{"missing", "", ""},
		{"never", "r.test/x", ""},
		{"always", "r.test/x", ""},
		{"always", "", "needs an image"},
		{"always", "base", "does not name its registry"},
		{"newer", "r.test/x", "missing, always, never"},
		{"", "r.test/x", "missing, always, never"},
	} {
		err := checkPull(tt.policy, tt.image)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("--pull %s of %q: %v, want %q", tt.policy, tt.image, err, tt.want)
		}
	}
}
