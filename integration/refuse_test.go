package integration_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/creel-sandbox/creel/integration/lab"
)

// TestRefusesToStart starts creeld with something missing or weaker: it says
// what, and does not come up. The sandbox that ran stays untouched.
func TestRefusesToStart(t *testing.T) {
	l := lab.New(t, lab.Options{})
	check := neighbour(t, l)
	l.Kill()
	same := func(s string) string { return s }
	// bin is a copy of the binaries with one replaced, or without it.
	bin := func(t *testing.T, name, script string) func(string) string {
		dir := t.TempDir()
		entries, err := os.ReadDir(l.Bin)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if e.Name() == name {
				continue
			}
			if err := os.Symlink(filepath.Join(l.Bin, e.Name()), filepath.Join(dir, e.Name())); err != nil {
				t.Fatal(err)
			}
		}
		if script != "" {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		return func(config string) string { return strings.ReplaceAll(config, l.Bin, dir) }
	}
	for _, tt := range []struct {
		name   string
		change func(*testing.T) func(string) string
		before func(*testing.T) (undo func())
		want   []string
	}{
		{
			name:   "old crun",
			change: func(t *testing.T) func(string) string { return bin(t, "crun", "#!/bin/sh\necho crun version 1.8.1\n") },
			want:   []string{"crun 1.8.1", "want 1.21 or later", "CVE-2025-24965"},
		},
		{
			name: "old containerd",
			change: func(t *testing.T) func(string) string {
				return bin(t, "containerd", "#!/bin/sh\necho containerd github.com/containerd/containerd 1.6.20 abc\n")
			},
			want: []string{"containerd 1.6.20", "want", "CVE-2026-53488"},
		},
		{
			name:   "no creel-init",
			change: func(t *testing.T) func(string) string { return bin(t, "creel-init", "") },
			want:   []string{"creel-init"},
		},
		{
			name: "bad config",
			change: func(*testing.T) func(string) string {
				return func(s string) string { return s + "\n[limits]\nmax = \"all\"\n" }
			},
			want: []string{"changed.toml", "limits"},
		},
		{
			name:   "bad profile",
			change: func(*testing.T) func(string) string { return same },
			before: func(t *testing.T) func() {
				dir := filepath.Join(l.Dir, "profiles")
				if err := os.MkdirAll(dir, 0o755); err != nil {
					t.Fatal(err)
				}
				file := filepath.Join(dir, "default.toml")
				if err := os.WriteFile(file, []byte("version = 1\nseccomp = \"none at all\"\n"), 0o644); err != nil {
					t.Fatal(err)
				}
				return func() { _ = os.Remove(file) }
			},
			want: []string{"default"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.before != nil {
				defer tt.before(t)()
			}
			out := l.Refused(tt.change(t))
			for _, want := range tt.want {
				if err := contains(out, want); err != nil {
					t.Error(err)
				}
			}
		})
	}
	l.Start()
	check()
}
