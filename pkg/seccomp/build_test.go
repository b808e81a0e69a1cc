package seccomp_test

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/seccomp"
)

// TestBuild: the filter of a root that installs packages differs from the
// default in set-user-ID and set-group-ID files alone, whatever the call and
// its arguments.
func TestBuild(t *testing.T) {
	const setID = unix.S_ISUID | unix.S_ISGID
	args := []uint64{
		0, 16, 0o755, 0o2755, unix.S_IFREG | 0o4755, unix.S_IFBLK | 0o4600, unix.O_CREAT | unix.O_WRONLY,
		unix.CLONE_NEWUSER, unix.AF_ALG, ^uint64(0),
	}
	for _, arch := range seccomp.Architectures {
		base, build := compile(t, "default", arch), compile(t, "build", arch)
		allowed := map[string]bool{}
		for _, name := range seccomp.Names(arch) {
			nr, _ := seccomp.Number(arch, name)
			for _, x := range args {
				for _, y := range args {
					for _, z := range args {
						d := seccomp.Data{Nr: nr, Arch: audit[arch], Args: [6]uint64{x, y, z, 0o4755}}
						was, is := seccomp.Simulate(base, d), seccomp.Simulate(build, d)
						if was == is {
							continue
						}
						if was.String() != "EPERM" || is.String() != "allow" || (x|y|z|0o4755)&setID == 0 {
							t.Fatalf("%s %s(%#x, %#x, %#x): %s, by default %s", arch, name, x, y, z, is, was)
						}
						allowed[name] = true
					}
				}
			}
		}
		want := map[string]bool{"openat": true, "fchmod": true, "fchmodat": true, "fchmodat2": true, "mkdirat": true, "mknodat": true}
		if arch == "amd64" {
			for _, n := range []string{"open", "creat", "mkdir", "chmod", "mknod"} {
				want[n] = true
			}
		}
		for n := range want {
			if !allowed[n] {
				t.Errorf("%s: %s makes no set-user-ID file", arch, n)
			}
		}
		if len(allowed) != len(want) {
			t.Errorf("%s: other than by default are %v", arch, allowed)
		}
	}
}
