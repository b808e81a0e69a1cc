package runtime_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/kerneltest"
	"github.com/creel-sandbox/creel/pkg/runtime"
)

func TestCheckVersions(t *testing.T) {
	good := runtime.Versions{Kernel: "6.12.107-cloud-amd64", Containerd: "2.4.2", Crun: "1.21", Runc: "1.5.2"}
	tests := []struct {
		name   string
		change func(*runtime.Versions)
		want   []string // parts of the error; none means success
	}{
		{"good", func(*runtime.Versions) {}, nil},
		{"debian 12 kernel", func(v *runtime.Versions) { v.Kernel = "6.1.0-30-amd64" }, nil},
		{"old kernel", func(v *runtime.Versions) { v.Kernel = "5.15.0-100-generic" }, []string{"kernel 5.15", "6.1 or later"}},
		{"debian 12 containerd", func(v *runtime.Versions) { v.Containerd = "1.6.20~ds1" }, []string{"containerd 1.6.20", "2.0.10 or later", "CVE-2026-53488"}},
		{"2.0 before the fix", func(v *runtime.Versions) { v.Containerd = "2.0.9" }, []string{"2.0.10 or later"}},
		{"2.0 with the fix", func(v *runtime.Versions) { v.Containerd = "v2.0.10" }, nil},
		{"2.1 before the fix", func(v *runtime.Versions) { v.Containerd = "2.1.8" }, []string{"2.1.9 or later"}},
		{"2.2 before the fix", func(v *runtime.Versions) { v.Containerd = "2.2.4" }, []string{"2.2.5 or later", "CVE-2026-46680"}},
		{"2.3 before the fix", func(v *runtime.Versions) { v.Containerd = "2.3.1" }, []string{"2.3.2 or later"}},
		{"2.3 with the fix", func(v *runtime.Versions) { v.Containerd = "2.3.7" }, nil},
		{"pre-release", func(v *runtime.Versions) { v.Containerd = "2.4.0-rc.1" }, []string{"2.4.0 or later"}},
		{"pre-release of the first", func(v *runtime.Versions) { v.Containerd = "2.0.0-beta.2" }, []string{"2.0.10 or later"}},
		{"later containerd", func(v *runtime.Versions) { v.Containerd = "3.1.0" }, nil},
		{"build suffix", func(v *runtime.Versions) { v.Containerd = "2.4.2+unknown" }, nil},
		{"no containerd", func(v *runtime.Versions) { v.Containerd = "" }, []string{"not understood"}},
		{"nonsense", func(v *runtime.Versions) { v.Containerd = "new" }, []string{"not understood"}},
		{"runc 1.1", func(v *runtime.Versions) { v.Runc = "1.1.15" }, []string{"runc 1.1.15", "1.2.8 or later"}},
		{"runc 1.2", func(v *runtime.Versions) { v.Runc = "1.2.8" }, nil},
		{"runc 1.3 between", func(v *runtime.Versions) { v.Runc = "1.3.5" }, []string{"1.3.6 or later", "CVE-2026-41579"}},
		{"runc 1.4 between", func(v *runtime.Versions) { v.Runc = "1.4.0-rc.3" }, []string{"1.4.3 or later"}},
		{"runc 1.5 between", func(v *runtime.Versions) { v.Runc = "1.5.1" }, []string{"1.5.2 or later"}},
		{"runc 1.6 pre-release", func(v *runtime.Versions) { v.Runc = "1.6.0-rc.1" }, nil},
		{"runc 1.4 on a bugged kernel", func(v *runtime.Versions) { v.Runc, v.Kernel = "1.4.3", "6.18.44-fc-v657" }, []string{"1.5.2 or later", "device programs"}},
		{"runc 1.5.2 on a bugged kernel", func(v *runtime.Versions) { v.Kernel = "7.1.2" }, nil},
		{"runc 1.4 after the bug", func(v *runtime.Versions) { v.Runc, v.Kernel = "1.4.3", "7.2.0" }, nil},
		{"old crun", func(v *runtime.Versions) { v.Crun = "1.8.1" }, []string{"crun 1.8.1", "1.21 or later", "CVE-2025-24965"}},
		{"no crun", func(v *runtime.Versions) { v.Crun = "" }, nil},
		{"no runtime", func(v *runtime.Versions) { v.Crun, v.Runc = "", "" }, []string{"neither crun nor runc"}},
		{"two faults", func(v *runtime.Versions) { v.Crun, v.Kernel = "1.8", "5.10" }, []string{"kernel 5.10", "crun 1.8"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := good
			tt.change(&v)
			err := errors.Join(runtime.CheckVersions(v), runtime.CheckContainerd(v.Containerd))
			if (err == nil) != (tt.want == nil) {
				t.Fatalf("CheckVersions(%+v) = %v", v, err)
			}
			for _, w := range tt.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q lacks %q", err, w)
				}
			}
			if err != nil && api.CodeOf(err) != api.CodeUnsupportedHost {
				t.Errorf("class %s", api.CodeOf(err))
			}
		})
	}
}

func TestReadVersions(t *testing.T) {
	kerneltest.Require(t, kerneltest.Bin)
	v, err := runtime.ReadVersions(t.Context(), kerneltest.BinDir(), true)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(runtime.CheckVersions(v), runtime.CheckContainerd(v.Containerd)); err != nil {
		t.Errorf("the pinned versions %+v are refused: %v", v, err)
	}
}

// A containerd that is not used is not asked, whatever is in its place.
func TestReadVersionsAsksWhatIsUsed(t *testing.T) {
	dir := t.TempDir()
	write := func(name, script string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	write("crun", "echo crun version 1.21")
	if v, err := runtime.ReadVersions(t.Context(), dir, false); err != nil || v.Crun != "1.21" || v.Runc != "" || v.Containerd != "" {
		t.Errorf("without containerd: %+v, %v", v, err)
	}
	if v, err := runtime.ReadVersions(t.Context(), dir, true); !errors.Is(err, os.ErrNotExist) || v.Crun != "1.21" {
		t.Errorf("own containerd that is not there: %+v, %v", v, err)
	}
	write("containerd", "exit 1")
	if v, err := runtime.ReadVersions(t.Context(), dir, false); err != nil || v.Containerd != "" {
		t.Errorf("broken containerd that is not used: %+v, %v", v, err)
	}
	write("runc", "exit 1")
	if v, err := runtime.ReadVersions(t.Context(), dir, true); err == nil || !strings.Contains(err.Error(), "containerd") || !strings.Contains(err.Error(), "runc") || v.Crun != "1.21" {
		t.Errorf("two that do not answer: %+v, %v", v, err)
	}
}
