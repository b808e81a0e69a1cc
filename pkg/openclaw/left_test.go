package openclaw_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/creel-sandbox/creel/pkg/kerneltest"
	"github.com/creel-sandbox/creel/pkg/openclaw"
)

func TestFindLeft(t *testing.T) {
	kerneltest.Require(t, kerneltest.Root)
	const other = 4321
	dir := write(t, map[string]string{
		"ws/mine": "", "ws/theirs": "", "ws/d/e/deep": "", "ws/root/inside": "", "out/x": "", "boxes/workspace-1/f": "",
	})
	in := func(names ...string) (out []string) {
		for _, n := range names {
			out = append(out, filepath.Join(dir, n))
		}
		return out
	}
	err := errors.Join(os.Symlink("../out", filepath.Join(dir, "ws/link")), os.Symlink("ws", filepath.Join(dir, "way")))
	for _, name := range in("ws/theirs", "ws/d/e/deep", "ws/root", "ws/root/inside", "out/x") {
		err = errors.Join(err, os.Lchown(name, other, other))
	}
	if err != nil {
		t.Fatal(err)
	}
	got, all := openclaw.FindLeft(t.Context(), in("ws", "way", "ws/d", "boxes", "none", "ws/mine"), 0, openclaw.MaxLooked)
	want := []openclaw.Left{{Root: filepath.Join(dir, "ws"), Files: in("ws/d/e/deep", "ws/root", "ws/theirs"), Count: 3}}
	if diff := cmp.Diff(want, got); diff != "" || !all {
		t.Errorf("all %v (-want +got):\n%s", all, diff)
	}
	if got, all := openclaw.Look(t.Context(), filepath.Join(dir, "ws"), 0, 2); all {
		t.Errorf("two entries are all: %+v", got)
	}
	// Another file system is none of the directory's.
	if got, _ := openclaw.Look(t.Context(), "/proc/self", 1<<31, 10); len(got) != 1 || got[0].Count != 1 {
		t.Errorf("a directory of another's: %+v", got)
	}
}

// Whoever runs it: what is another's is found, of a directory itself alone.
func TestFindLeftOfMany(t *testing.T) {
	files := map[string]string{}
	for i := range 30 {
		files[fmt.Sprintf("f%02d", i)] = ""
	}
	dir := write(t, files)
	uid := uint32(os.Geteuid())
	if got, all := openclaw.Look(t.Context(), dir, uid, 1000); len(got) != 0 || !all {
		t.Errorf("one's own: %+v, %v", got, all)
	}
	got, _ := openclaw.Look(t.Context(), dir, uid+1, 1000)
	if want := []openclaw.Left{{Root: dir, Files: []string{dir}, Count: 1}}; !cmp.Equal(want, got) {
		t.Errorf("another's: %+v", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, all := openclaw.Look(ctx, dir, uid, 1000); all {
		t.Error("a look that was ended is whole")
	}
	many := openclaw.Left{Root: "/srv/it's here", Files: []string{"/a", "/b"}, Count: 30}
	f := openclaw.ExplainLeft([]openclaw.Left{many}, false, "u:g")
	if len(f) != 2 || f[0].Fix != `sudo chown -R --no-dereference u:g '/srv/it'\''s here'` || !strings.HasSuffix(f[0].What, ": /a, /b and 28 more") || f[1].Level != openclaw.Note {
		t.Errorf("%+v", f)
	}
	if f := openclaw.ExplainLeft(nil, true, "u:g"); len(f) != 1 || f[0].Level != openclaw.OK {
		t.Errorf("%+v", f)
	}
}

func TestShellQuote(t *testing.T) {
	for in, want := range map[string]string{"/a-b/c_d.e": "/a-b/c_d.e", "": "''", "a b": "'a b'", "$(x)": "'$(x)'", "é": "'é'", "~": "'~'"} {
		if got := openclaw.ShellQuote(in); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}
