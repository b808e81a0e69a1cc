package seccomp_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/creel-sandbox/creel/pkg/seccomp"
	"github.com/creel-sandbox/creel/profiles"
)

var update = flag.Bool("update", false, "rewrite testdata/*.golden")

// shipped are those of agents; build is in TestBuild.
var shipped = []string{"default", "strict"}

var audit = map[string]uint32{"amd64": 0xc000003e, "arm64": 0xc00000b7}

func load(tb testing.TB, name string) *seccomp.Profile {
	tb.Helper()
	p, err := seccomp.Load(profiles.FS, name)
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

func compile(tb testing.TB, name, arch string) seccomp.Filter {
	tb.Helper()
	f, err := load(tb, name).Compile(arch)
	if err != nil {
		tb.Fatal(err)
	}
	return f
}

// TestGolden holds the compiled programs and the outcome of every number. A
// difference is reviewed as a change of the security policy.
func TestGolden(t *testing.T) {
	for _, name := range append(slices.Clone(shipped), "build") {
		for _, arch := range seccomp.Architectures {
			t.Run(name+"-"+arch, func(t *testing.T) {
				f := compile(t, name, arch)
				golden(t, name+"-"+arch+".bpf", f.Disassemble())
				golden(t, name+"-"+arch+".calls", outcomes(f, arch))
			})
		}
	}
}

// outcomes is, for every number from 0 to 1023 that has a name or is not
// answered ENOSYS, what the filter says when its arguments are all zero, and
// whether other arguments can change that.
func outcomes(f seccomp.Filter, arch string) string {
	names := map[uint32]string{}
	for _, n := range seccomp.Names(arch) {
		nr, _ := seccomp.Number(arch, n)
		names[nr] = n
	}
	var b strings.Builder
	for nr := range uint32(1024) {
		d := seccomp.Data{Nr: nr, Arch: audit[arch]}
		a := seccomp.Simulate(f, d)
		name, known := names[nr]
		if !known {
			if a.String() != "ENOSYS" {
				name = "UNKNOWN"
			} else {
				continue
			}
		}
		fmt.Fprintf(&b, "%4d %-24s %s%s\n", nr, name, a, map[bool]string{true: "", false: " (by argument)"}[f.Constant(d.Arch, nr)])
	}
	return b.String()
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s changed (-want +got), run with -update if that is meant:\n%s", file, diff)
	}
}
