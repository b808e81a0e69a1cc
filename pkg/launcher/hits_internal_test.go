package launcher

import (
	"testing"

	"golang.org/x/sys/unix"
)

func TestIsFull(t *testing.T) {
	overlay := int64(unix.OVERLAYFS_SUPER_MAGIC)
	for _, tt := range []struct {
		name string
		st   unix.Statfs_t
		want bool
	}{
		{"tmpfs without limit", unix.Statfs_t{Bsize: 4096}, false},
		{"tmpfs with one page", unix.Statfs_t{Bsize: 4096, Blocks: 100, Bavail: 1}, false},
		{"tmpfs without", unix.Statfs_t{Bsize: 4096, Blocks: 100}, true},
		{"tmpfs without inodes", unix.Statfs_t{Bsize: 4096, Blocks: 100, Bavail: 50, Files: 10}, true},
		{"ext4 that refuses", unix.Statfs_t{Type: overlay, Bsize: 4096, Blocks: 12092, Bavail: 60, Files: 9, Ffree: 9}, true},
		{"large ext4 that refuses", unix.Statfs_t{Type: overlay, Bsize: 4096, Blocks: 100786, Bavail: 166}, true},
		{"ext4 with 2 MiB", unix.Statfs_t{Type: overlay, Bsize: 4096, Blocks: 100786, Bavail: 512}, false},
		{"small ext4 with a tenth", unix.Statfs_t{Type: overlay, Bsize: 4096, Blocks: 1024, Bavail: 102}, false},
	} {
		if got := isFull(tt.st); got != tt.want {
			t.Errorf("%s: full is %v", tt.name, got)
		}
	}
}
