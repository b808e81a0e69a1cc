package integration_test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
)

// TestRefusesToStart starts creeld with something missing or weaker: it says
// what, and does not come up. creeld doctor says the same of the same
// configuration, beside all else that it has found. The sandbox that ran stays
// untouched.
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
			told, code := l.CreeldDoctor(tt.change(t))
			if code != 1 {
				t.Errorf("creeld doctor: exit code %d", code)
			}
			for _, want := range tt.want {
				if err := errors.Join(contains(out, want), contains(told, want)); err != nil {
					t.Error(err)
				}
			}
			if err := contains(told, "creeld does not start"); err != nil {
				t.Error(err)
			}
		})
	}
	l.Start()
	check()
}

// TestDoctorWithoutDaemon finds nothing to refuse where creeld starts, changes
// nothing, and is told of by creel doctor when nobody answers.
func TestDoctorWithoutDaemon(t *testing.T) {
	l := lab.New(t, lab.Options{})
	l.Kill()
	before := l.Snapshot()
	same := func(s string) string { return s }
	out, code := l.CreeldDoctor(same, "--json")
	var d api.Doctor
	if err := json.Unmarshal([]byte(out), &d); err != nil {
		t.Fatalf("exit code %d: %v\n%s", code, err, out)
	}
	if d.Leftovers != nil {
		t.Errorf("leftovers of no daemon: %q", d.Leftovers)
	}
	found := map[string]string{}
	for _, c := range d.Checks {
		found[c.Name] = c.Status
		if c.Status == "missing" {
			t.Errorf("creeld starts here, and yet: %+v", c)
		}
	}
	for _, name := range []string{
		"configuration", "programs", "profiles", "socket", "kernel", "kernel.id-mapped overlay layers", "state directory",
		"id range", "version.containerd", "version.crun", "version.runc",
	} {
		if found[name] != "ok" {
			t.Errorf("%s is %q", name, found[name])
		}
	}
	if found["cgroup"] == "" {
		t.Error("nothing of cgroups")
	}
	if diff := cmp.Diff(before, l.Snapshot()); diff != "" {
		t.Errorf("doctor changed the host: %s", diff)
	}
	// A state directory is creeld's to make; a file in the way is not.
	if out, code := l.CreeldDoctor(func(s string) string { return strings.ReplaceAll(s, "/state\"", "/log/state\"") }); code != 1 {
		t.Errorf("a file for a state directory: exit code %d\n%s", code, out)
	}
	stdout, stderr, code := l.Creel("doctor")
	if err := errors.Join(contains(stdout, "connection refused"), contains(stdout, "sudo creeld doctor"), contains(stdout, "kernel.openat2")); err != nil || code != 1 {
		t.Errorf("creel doctor: exit code %d, %v %s", code, err, stderr)
	}
	if out, code := l.CreeldDoctor(same, "--nonsense"); code != 2 || !strings.Contains(out, "creeld doctor [--config FILE]") {
		t.Errorf("an unknown flag: exit code %d\n%s", code, out)
	}
}
