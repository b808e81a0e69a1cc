package seccomp_test

import (
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/creel-sandbox/creel/pkg/seccomp"
)

// TestWithinShipped: each profile that is meant to be narrower is known to be.
func TestWithinShipped(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want bool
	}{
		{"default", "default", true},
		{"strict", "strict", true},
		{"build", "build", true},
		{"strict", "default", true},
		{"default", "strict", false},
		{"default", "build", true},
		{"build", "default", false},
		{"strict", "build", true},
		{"build", "strict", false},
	} {
		if got := seccomp.Within(load(t, tt.a), load(t, tt.b)); got != tt.want {
			t.Errorf("%s within %s: %v, want %v", tt.a, tt.b, got, tt.want)
		}
	}
}

// TestWithin: of profiles nobody wrote, one that is said to be within another
// allows no call that the other does not. There are few values, so that rules
// meet, and all of them are tried.
func TestWithin(t *testing.T) {
	cond := rapid.Custom(func(t *rapid.T) seccomp.Cond {
		c := seccomp.Cond{Arg: rapid.IntRange(0, 1).Draw(t, "index"), Bits: 64, Not: rapid.Bool().Draw(t, "not")}
		c.Mask = rapid.SampledFrom([]uint64{^uint64(0), 1}).Draw(t, "mask")
		c.Values = rapid.SliceOfNDistinct(rapid.Uint64Range(0, min(c.Mask, 2)), 1, 2, rapid.ID).Draw(t, "values")
		return c
	})
	rule := rapid.Custom(func(t *rapid.T) seccomp.Rule {
		return seccomp.Rule{
			Syscalls: []string{"read"}, When: rapid.SliceOfN(cond, 0, 2).Draw(t, "when"),
			Arch:   rapid.SampledFrom([][]string{nil, nil, {"amd64"}, {"arm64"}}).Draw(t, "arch"),
			Action: rapid.SampledFrom([]seccomp.Action{seccomp.Allow, seccomp.Allow, seccomp.Errno(unix.EPERM)}).Draw(t, "action"),
		}
	})
	profile := rapid.Custom(func(t *rapid.T) *seccomp.Profile {
		return &seccomp.Profile{Default: seccomp.Errno(unix.ENOSYS), Groups: []seccomp.Group{{Name: "g", Rules: rapid.SliceOfN(rule, 1, 3).Draw(t, "rules")}}}
	})
	said := 0
	rapid.Check(t, func(t *rapid.T) {
		for range 200 {
			a, b := profile.Draw(t, "a"), profile.Draw(t, "b")
			if !seccomp.Within(a, b) {
				continue
			}
			said++
			for _, arch := range seccomp.Architectures {
				nr, _ := seccomp.Number(arch, "read")
				for n := range uint64(9) {
					d := seccomp.Data{Arch: audit[arch], Nr: nr, Args: [6]uint64{n % 3, n / 3}}
					if a.Evaluate(arch, d) == seccomp.Allow && b.Evaluate(arch, d) != seccomp.Allow {
						t.Fatalf("%s: %v is allowed by %+v and not by %+v", arch, d.Args, a.Groups, b.Groups)
					}
				}
			}
		}
	})
	if said < 100 {
		t.Errorf("%d were within: nothing is shown", said)
	}
}
