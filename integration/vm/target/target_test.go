// Package target_test checks that the virtual machine of "make test-vm" is the
// platform that creel is written for. Without it, tests that ran there could
// pass on the fallback and nobody would know.
package target_test

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/creel-sandbox/creel/pkg/kerneltest"

	"golang.org/x/sys/unix"
)

func TestNeeds(t *testing.T) {
	kerneltest.Require(t, kerneltest.TargetVM, kerneltest.Root, kerneltest.CgroupV2, kerneltest.Systemd, kerneltest.IDMap, kerneltest.Bin)
}

// TestOnlyCgroupV2 refuses a hybrid: there the controllers may be on v1.
func TestOnlyCgroupV2(t *testing.T) {
	kerneltest.Require(t, kerneltest.TargetVM) // a development host is allowed to be less
	var fs unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &fs); err != nil {
		t.Fatal(err)
	}
	if fs.Type != unix.CGROUP2_SUPER_MAGIC {
		t.Errorf("/sys/fs/cgroup has type %#x, want cgroup2", fs.Type)
	}
	got := strings.Fields(read(t, "/sys/fs/cgroup/cgroup.controllers"))
	for _, want := range []string{"cpu", "cpuset", "io", "memory", "pids"} {
		if !slices.Contains(got, want) {
			t.Errorf("controllers are %q, want %s among them", got, want)
		}
	}
}

// TestDelegated is what creeld.service relies on, too: the controllers arrive
// in the unit's own cgroup.
func TestDelegated(t *testing.T) {
	kerneltest.Require(t, kerneltest.TargetVM) // a development host is allowed to be less
	_, path, ok := strings.Cut(strings.TrimSpace(read(t, "/proc/self/cgroup")), "0::")
	if !ok || !strings.HasSuffix(path, "/creel-test.service") {
		t.Fatalf("this test's cgroup is %q, want creel-test.service", path)
	}
	got := strings.Fields(read(t, "/sys/fs/cgroup"+path+"/cgroup.controllers"))
	for _, want := range []string{"cpu", "memory", "pids"} {
		if !slices.Contains(got, want) {
			t.Errorf("delegated controllers are %q, want %s among them", got, want)
		}
	}
}

func TestKernel(t *testing.T) {
	kerneltest.Require(t, kerneltest.TargetVM) // a development host is allowed to be less
	lsm := strings.Split(read(t, "/sys/kernel/security/lsm"), ",")
	for _, want := range []string{"bpf", "landlock", "apparmor"} {
		if !slices.Contains(lsm, want) {
			t.Errorf("active LSMs are %q, want %s among them", lsm, want)
		}
	}
	if swaps := strings.Count(read(t, "/proc/swaps"), "\n"); swaps > 1 {
		t.Errorf("the machine has swap; memory limits would not be tested")
	}
}

// TestStateDisk wants a file system of its own for the state, with project
// quotas on: creel uses none, and is not to stumble over them.
func TestStateDisk(t *testing.T) {
	kerneltest.Require(t, kerneltest.TargetVM) // a development host is allowed to be less
	for line := range strings.Lines(read(t, "/proc/self/mountinfo")) {
		if f := strings.Fields(line); len(f) > 4 && f[4] == "/var/lib/creel" {
			if !strings.Contains(line, "prjquota") {
				t.Errorf("/var/lib/creel is mounted as %q, want prjquota", strings.TrimSpace(line))
			}
			return
		}
	}
	t.Error("/var/lib/creel is no mount")
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
