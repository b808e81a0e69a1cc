package cgroup_test

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/kerneltest"
)

// A daemon in the cgroup it is to divide steps aside first; one that systemd
// put in its unit's subgroup finds the unit; one in a unit without a subgroup
// leaves the unit alone.
func TestDelegation(t *testing.T) {
	kerneltest.Require(t, kerneltest.Root, kerneltest.CgroupV2)
	tests := []struct {
		name      string
		sub       string // where in the unit the daemon is started
		delegated bool
		root      bool // the unit is given as Options.Root
		want      string
	}{
		{"steps aside", "", false, true, "0::UNIT/supervisor UNIT/sandboxes/box"},
		{"subgroup", "/supervisor", true, false, "0::UNIT/supervisor UNIT/sandboxes/box"},
		{"no subgroup", "", true, false, "0::UNIT /creel/sandboxes/box [the unit has no DelegateSubgroup=supervisor"},
		{"not delegated", "/supervisor", false, false, "0::UNIT/supervisor /creel/sandboxes/box"},
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			unit := fmt.Sprintf("/creel-test-unit-%d-%d", os.Getpid(), i)
			dir := "/sys/fs/cgroup" + unit
			t.Cleanup(func() { rmTree(t, dir) })
			if err := os.MkdirAll(dir+tt.sub, 0o755); err != nil {
				t.Fatal(err)
			}
			if tt.delegated {
				if err := unix.Setxattr(dir, "trusted.delegate", []byte("1"), 0); err != nil {
					t.Fatal(err)
				}
			}
			what := "detect:"
			if tt.root {
				what += unit
			}
			p := start(t, what)
			if err := os.WriteFile(dir+tt.sub+"/cgroup.procs", []byte(strconv.Itoa(p.Process.Pid)), 0); err != nil {
				t.Fatal(err)
			}
			p.run(t)
			want := strings.ReplaceAll(tt.want, "UNIT", unit)
			if got := p.line(t); !strings.HasPrefix(got, want) {
				t.Errorf("Detect in the unit: %s, want %s", got, want)
			}
			_ = p.Process.Kill()
			_ = p.Wait()
		})
	}
}
