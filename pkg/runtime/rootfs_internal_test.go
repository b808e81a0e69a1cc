package runtime

import (
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
)

func TestLowerOf(t *testing.T) {
	for _, tt := range []struct {
		name string
		m    mount.Mount
		want string
	}{
		{"one layer", mount.Mount{Type: "bind", Source: "/s/1/fs", Options: []string{"ro", "rbind", "uidmap=0:1:2"}}, "/s/1/fs"},
		{"several", mount.Mount{Type: "overlay", Options: []string{"index=off", "lowerdir=/s/2/fs:/s/1/fs", "upperdir=/s/3/fs"}}, "/s/2/fs:/s/1/fs"},
		{"none", mount.Mount{Type: "overlay", Options: []string{"upperdir=/s/3/fs"}}, ""},
		{"another kind", mount.Mount{Type: "ext4", Source: "/dev/x", Options: []string{"lowerdir=/s"}}, ""},
	} {
		if got := lowerOf(tt.m); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}
