package cgroup_test

import (
	"encoding/binary"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/creel-sandbox/creel/pkg/cgroup"
)

const hybrid = `31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 master:1 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 /docker/1a /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/with\040space rw - cgroup2 cgroup2 rw,nsdelegate
`

func TestParseMounts(t *testing.T) {
	want := []cgroup.Mount{
		{Root: "/", Point: "/sys/fs/cgroup/cpu,cpuacct", Options: []string{"cpu", "cpuacct"}},
		{Root: "/docker/1a", Point: "/sys/fs/cgroup/memory", Options: []string{"memory"}},
		{Root: "/", Point: "/sys/fs/cgroup/systemd", Options: []string{"name=systemd"}},
		{Root: "/", Point: "/sys/fs/cgroup/with space", V2: true},
	}
	if diff := cmp.Diff(want, cgroup.ParseMounts(hybrid)); diff != "" {
		t.Error(diff)
	}
}

func TestParseMembership(t *testing.T) {
	got := cgroup.ParseMembership("9:name=systemd:/\n4:memory:/a:b/c\n2:cpuacct,cpu:/\n0::/x\nbad\n")
	want := map[string]string{"name=systemd": "/", "memory": "/a:b/c", "cpuacct,cpu": "/", "": "/x"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestParseValues(t *testing.T) {
	for in, want := range map[string]int64{"max": math.MaxInt64, "12": 12, "": 0, "x": 0, "18446744073709551615": math.MaxInt64} {
		if got := cgroup.ParseNumber(in); got != want {
			t.Errorf("ParseNumber(%q) = %d, want %d", in, got, want)
		}
	}
	for _, in := range []string{"8:0 rbytes=1 wbytes=2 rios=9\n8:16 rbytes=10 wbytes=20\n", "8:0 Read 11\n8:0 Write 22\n8:0 Sync 5\nTotal 99\n"} {
		if r, w := cgroup.ParseIO(in); r != 11 || w != 22 {
			t.Errorf("ParseIO(%q) = %d, %d", in, r, w)
		}
	}
	if diff := cmp.Diff(map[string]int64{"oom": 0, "oom_kill": 2}, cgroup.ParseCounters("oom 0\noom_kill 2\nx y\n")); diff != "" {
		t.Error(diff)
	}
}

func TestDevicesClosed(t *testing.T) {
	for list, want := range map[string]bool{
		"c *:* m\nb *:* m\nc 1:3 rwm\nc 136:* rwm": true,
		"a *:* rwm":                false,
		"c 1:3 rwm\nb 8:0 r":       false,
		"c *:* rw":                 false,
		"c 1:3 rwm\nunknown":       false,
		"c 1:3 rwm\nb *:* m\na  x": false,
	} {
		if got := cgroup.DevicesClosed(list); got != want {
			t.Errorf("DevicesClosed(%q) = %v, want %v", list, got, want)
		}
	}
}

func TestInotifyKeys(t *testing.T) {
	ev := func(wd, namelen uint32) []byte {
		b := make([]byte, 16+namelen)
		binary.NativeEndian.PutUint32(b, wd)
		binary.NativeEndian.PutUint32(b[12:], namelen)
		return b
	}
	got := cgroup.InotifyKeys(slices.Concat(ev(1, 0), ev(7, 16), ev(1<<32-1, 0), []byte{1, 2}))
	if want := []int{1, 7, -1}; !slices.Equal(got, want) {
		t.Errorf("InotifyKeys = %v, want %v", got, want)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(hybrid)
	f.Add("9:a:/\n")
	f.Fuzz(func(t *testing.T, data string) {
		for _, m := range cgroup.ParseMounts(data) {
			if m.V2 && len(m.Options) > 0 {
				t.Errorf("a v2 mount has controllers %q", m.Options)
			}
		}
		cgroup.ParseMembership(data)
		cgroup.ParseCounters(data)
		cgroup.ParseIO(data)
		if n := cgroup.ParseNumber(data); n < 0 {
			t.Errorf("a negative number %d", n)
		}
		for _, k := range cgroup.InotifyKeys([]byte(data)) {
			_ = k
		}
	})
}

// fakeV2 is a directory that looks like a cgroup2 mount of a machine under
// systemd, with the daemon at self. The kernel's part is not played: what the
// code writes stays in the files.
func fakeV2(t *testing.T, self string, dirs ...string) (proc, top string) {
	t.Helper()
	proc, top = t.TempDir(), t.TempDir()
	write := func(name, data string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(proc+"/self/mountinfo", "1 0 0:1 / "+top+" rw - cgroup2 cgroup2 rw\n")
	write(proc+"/self/cgroup", "0::"+self+"\n")
	for _, d := range append(dirs, "") {
		dir := top + "/" + d
		write(dir+"/cgroup.controllers", "cpuset cpu io memory hugetlb pids rdma misc\n")
		write(dir+"/cgroup.subtree_control", "cpuset cpu io memory pids\n")
		write(dir+"/cgroup.procs", "")
		for f, v := range map[string]string{
			"memory.max": "", "memory.swap.max": "max", "pids.max": "", "cpu.max": "150000 100000", "io.weight": "default 100",
			"memory.current": "5", "memory.peak": "7", "pids.current": "3", "pids.events": "max 4", "memory.events": "oom 1\noom_kill 2",
			"cpu.stat": "usage_usec 2000000\nthrottled_usec 500000", "io.stat": "8:0 rbytes=1 wbytes=2",
			"cgroup.events": "populated 0\nfrozen 0", "cgroup.kill": "", "cgroup.freeze": "", "memory.oom.group": "",
		} {
			if d != "" {
				write(dir+"/"+f, v)
			}
		}
	}
	return proc, top
}

func content(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func TestV2Tree(t *testing.T) {
	box := "creel/sandboxes/box"
	proc, top := fakeV2(t, "/system.slice/creeld.service", "creel", "creel/sandboxes", box, box+"/init", box+"/agent")
	h, err := cgroup.Detect(cgroup.Options{Proc: proc})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	h.NoBPF()
	if h.Version() != "v2" || h.CgroupsPath("box") != "/"+box {
		t.Fatalf("version %s, path %s", h.Version(), h.CgroupsPath("box"))
	}
	lim := cgroup.Limits{Memory: 64 << 20, Pids: 100, CPUs: 1.5, IOWeight: 100}
	s, err := h.Open("box", 4242, lim)
	if err != nil {
		t.Fatal(err)
	}
	for f, want := range map[string]string{
		"init/cgroup.procs":            "4242",
		"cgroup.subtree_control":       "+memory +pids +cpu",
		"agent/cgroup.subtree_control": "+memory +pids",
		"agent/memory.max":             "67108864",
		"agent/memory.swap.max":        "0ax", // the fake keeps the rest of "max"
		"agent/pids.max":               "100",
	} {
		got := content(t, top+"/"+box+"/"+f)
		if !strings.HasPrefix(got, want) {
			t.Errorf("%s = %q, want %q", f, got, want)
		}
	}
	st, err := s.Stats()
	if err != nil || st.CPUSeconds != 2 || st.ThrottledSecs != 0.5 || st.MemoryPeak != 7 || st.IOWriteBytes != 2 || st.OOMKills != 2 {
		t.Errorf("Stats = %+v, %v", st, err)
	}
	if diff := cmp.Diff(map[string]int64{"pids": 4, "memory": 2}, s.Hits()); diff != "" {
		t.Error(diff)
	}
	if err := s.Kill(t.Context()); err != nil {
		t.Error(err)
	}
	if got := content(t, top+"/"+box+"/cgroup.kill"); got != "1" {
		t.Errorf("cgroup.kill = %q", got)
	}
}

func TestV2Missing(t *testing.T) {
	proc, top := fakeV2(t, "/", "creel", "creel/sandboxes")
	if err := os.WriteFile(top+"/creel/sandboxes/cgroup.subtree_control", []byte("cpu pids"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"cgroup.controllers", "creel/cgroup.controllers", "creel/sandboxes/cgroup.controllers"} {
		if err := os.WriteFile(top+"/"+f, []byte("cpu pids"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	_, err := cgroup.Detect(cgroup.Options{Proc: proc})
	if !errors.Is(err, cgroup.ErrUnsupported) || !strings.Contains(err.Error(), "memory") {
		t.Errorf("Detect without the memory controller: %v", err)
	}
	if _, err := cgroup.Detect(cgroup.Options{Proc: proc, Root: "/a/../.."}); err == nil {
		t.Error("a root with .. is accepted")
	}
}

// Look finds what Detect would, and makes none of it.
func TestLook(t *testing.T) {
	proc, top := fakeV2(t, "/system.slice/creeld.service")
	h, err := cgroup.Look(cgroup.Options{Proc: proc})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if h.Version() != "v2" || len(h.Weaker()) != 0 {
		t.Errorf("version %s, weaker %q", h.Version(), h.Weaker())
	}
	if _, err := os.Stat(top + "/creel"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the place for sandboxes: %v", err)
	}
	if err := os.WriteFile(top+"/cgroup.controllers", []byte("cpu pids"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := cgroup.Look(cgroup.Options{Proc: proc}); !errors.Is(err, cgroup.ErrUnsupported) {
		t.Errorf("without the memory controller: %v", err)
	}
}
