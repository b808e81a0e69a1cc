package protect_test

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/idmap"
	"github.com/creel-sandbox/creel/pkg/kerneltest"
	"github.com/creel-sandbox/creel/pkg/mount"
	"github.com/creel-sandbox/creel/pkg/protect"
	"github.com/creel-sandbox/creel/pkg/thread"
)

// The ids of the tests: nobody has them.
const (
	callerID = 424242
	agentID  = 0x78000000 + 1000
)

var (
	agent  = protect.User{UID: agentID, GID: agentID}
	caller = protect.User{UID: callerID, GID: callerID}
)

func TestMain(m *testing.M) { kerneltest.InMountNamespace(m) }

const list = `version = 1
names = [".git/hooks/", ".git/config", ".git/commondir", ".envrc", ".vscode/", ".github/workflows/", ".github/actions/"]
[texts]
".git/commondir" = ".\n"
`

// work is a caller's directory, staged as often as wanted.
type work struct {
	t        *testing.T
	dir, run string
	l        protect.List
	staged   int
}

func newWork(t *testing.T) *work {
	t.Helper()
	kerneltest.Require(t, kerneltest.Root, kerneltest.IDMap)
	top, err := os.MkdirTemp("", "creel-protect-") //nolint:usetesting // t.TempDir lets only root pass
	if err != nil {
		t.Fatal(err)
	}
	w := &work{t: t, dir: filepath.Join(top, "work"), run: filepath.Join(top, "run")}
	if w.l, err = protect.Parse([]byte(list)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chmod(top, 0o755), os.MkdirAll(filepath.Join(w.run, "mnt"), 0o755), os.WriteFile(w.empty(), nil, 0o444)); err != nil {
		t.Fatal(err)
	}
	w.make("", "src/", ".git/hooks/", ".git/config", ".git/HEAD", ".git/hooks/pre-commit")
	t.Cleanup(func() {
		if err := errors.Join(mount.Cleanup(filepath.Join(w.run, "mnt")), os.RemoveAll(top)); err != nil {
			t.Error(err)
		}
	})
	return w
}

func (w *work) empty() string { return filepath.Join(w.run, "empty") }

func (w *work) at(name string) string { return filepath.Join(w.dir, name) }

// make makes the caller's files, and directories where the name ends in a slash.
func (w *work) make(names ...string) {
	w.t.Helper()
	for _, name := range names {
		dir := w.at(name)
		if name != "" && !strings.HasSuffix(name, "/") {
			dir = filepath.Dir(dir)
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			w.t.Fatal(err)
		}
		if dir != w.at(name) {
			if err := os.WriteFile(w.at(name), []byte("the user's "+name), 0o644); err != nil {
				w.t.Fatal(err)
			}
		}
		for p := w.at(name); strings.HasPrefix(p, w.dir); p = filepath.Dir(p) {
			if err := os.Lchown(p, callerID, callerID); err != nil {
				w.t.Fatal(err)
			}
		}
	}
}

// tree stages the directory once more.
func (w *work) tree(others ...string) protect.Tree {
	w.t.Helper()
	users, err := idmap.ForCaller(w.t.Context(), callerID, callerID, agentID, agentID, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	defer users.Close()
	dir, err := os.OpenFile(w.dir, unix.O_PATH, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	defer dir.Close()
	target := filepath.Join(w.run, "mnt", string(rune('0'+w.staged)))
	w.staged++
	if _, _, err := mount.New(nil).Stage(w.t.Context(), mount.Request{
		Dir: dir, Target: target, UserNS: users, CallerUID: callerID, CallerGID: callerID, AgentUID: agentID, AgentGID: agentID,
	}); err != nil {
		w.t.Fatal(err)
	}
	return protect.Tree{Field: "mounts[0]", Staged: target, Target: "/w", Others: append([]string{"/w"}, others...)}
}

// protect does all of it.
func (w *work) protect(tr protect.Tree, held protect.Held) (protect.Made, []protect.Mount) {
	w.t.Helper()
	plan, err := tr.Plan(w.l, held)
	if err != nil {
		w.t.Fatal(err)
	}
	made := w.made(tr, plan)
	if made.Placeholders, err = tr.Make(agent, plan); err != nil {
		w.t.Fatal(err)
	}
	ms, _, err := tr.Apply(w.l, made.Placeholders, w.empty())
	if err != nil {
		w.t.Fatal(err)
	}
	return made, ms
}

func (w *work) made(tr protect.Tree, ps []protect.Placeholder) protect.Made {
	w.t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(w.dir, &st); err != nil {
		w.t.Fatal(err)
	}
	return protect.Made{Staged: tr.Staged, Path: w.dir, Dev: st.Dev, Inode: st.Ino, Placeholders: ps}
}

// unstage takes a tree away, and its placeholders as if the tree was found or not.
func (w *work) unstage(m protect.Made, found bool, others protect.Held, meanwhile ...func()) {
	w.t.Helper()
	var dir *os.File
	if found {
		if dir = m.Open(); dir == nil {
			w.t.Fatal("the staged tree is not found")
		}
		defer dir.Close()
	}
	if err := mount.Remove(m.Staged); err != nil {
		w.t.Fatal(err)
	}
	for _, fn := range meanwhile {
		fn()
	}
	if left, err := m.Remove(dir, nil, agent, caller, others); err != nil || len(left) > 0 {
		w.t.Errorf("left %v, %v", left, err)
	}
}

// files is everything in the directory, with what it is.
func (w *work) files() map[string]string {
	w.t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(w.dir, func(p string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		text := []byte(nil)
		if d.Type().IsRegular() {
			text, err = os.ReadFile(p)
		}
		out[strings.TrimPrefix(p, w.dir)] = d.Type().String() + " " + string(text)
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

func asAgent(fn func() error) error { return thread.As(agentID, agentID, nil, fn) }

func TestProtect(t *testing.T) {
	w := newWork(t)
	w.make(".envrc")
	before := w.files()
	tr := w.tree()
	made, ms := w.protect(tr, nil)
	var names []string
	for _, p := range made.Placeholders {
		var st unix.Stat_t
		if err := unix.Lstat(w.at(p.Name), &st); err != nil || st.Uid != callerID || st.Ino != p.Inode {
			t.Errorf("%+v on the host is %+v, %v", p, st, err)
		}
		names = append(names, p.Name+" "+string(p.Kind))
	}
	if want := []string{".git/commondir file", ".vscode directory", ".github directory"}; !slices.Equal(names, want) {
		t.Errorf("placeholders are %q, want %q", names, want)
	}
	shown := map[string]bool{}
	for _, m := range ms {
		shown[m.Target] = m.ReadOnly
	}
	if want := map[string]bool{"/w/.git": false, "/w/.git/hooks": true, "/w/.git/config": true, "/w/.git/commondir": true, "/w/.envrc": true, "/w/.vscode": true, "/w/.github": true}; !maps.Equal(shown, want) {
		t.Errorf("mounts are %v, want %v", shown, want)
	}
	at := func(name string) string { return filepath.Join(tr.Staged, name) }
	err := asAgent(func() error {
		for _, name := range []string{".git/hooks", ".git/config", ".git/commondir", ".envrc", ".vscode", ".github", ".git"} {
			dir := !slices.Contains([]string{".git/config", ".git/commondir", ".envrc"}, name)
			for what, err := range map[string]error{
				"unlink":   unix.Unlink(at(name)),
				"rmdir":    unix.Rmdir(at(name)),
				"rename":   unix.Rename(at(name), at("other")),
				"exchange": unix.Renameat2(unix.AT_FDCWD, at(name), unix.AT_FDCWD, at("src"), unix.RENAME_EXCHANGE),
				"replace":  unix.Rename(at("src"), at(name)),
				"link":     unix.Symlink("src", at(name)),
				"name":     unix.Link(at(name), at("other")),
				"mkdir":    unix.Mkdir(at(name), 0o755),
			} {
				if err == nil {
					t.Errorf("%s of %s succeeds", what, name)
				}
			}
			if dir {
				name += "/new"
			}
			if err := os.WriteFile(at(name), []byte("x"), 0o644); (err == nil) != (name == ".git/new") {
				t.Errorf("writing %s: %v", name, err)
			}
		}
		// What git does to commit.
		return errors.Join(os.Remove(at(".git/new")), os.WriteFile(at(".git/HEAD.lock"), []byte("ref"), 0o644), os.Rename(at(".git/HEAD.lock"), at(".git/HEAD")), os.WriteFile(at("src/new"), nil, 0o644))
	})
	if err != nil {
		t.Error(err)
	}
	before["/.git/HEAD"], before["/src/new"] = "---------- ref", "---------- "
	w.unstage(made, true, nil)
	if after := w.files(); !maps.Equal(before, after) {
		t.Errorf("before %v\nafter %v", before, after)
	}
}

func TestSocket(t *testing.T) {
	w := newWork(t)
	before := w.files()
	tr := w.tree()
	made, ms := w.protect(tr, nil)
	envrc := filepath.Join(tr.Staged, ".envrc")
	if text, err := os.ReadFile(envrc); err != nil || len(text) > 0 {
		t.Errorf("inside it reads as %q, %v", text, err)
	}
	if !slices.ContainsFunc(ms, func(m protect.Mount) bool { return m.Target == "/w/.envrc" && m.Empty && m.ReadOnly }) {
		t.Errorf("mounts are %+v", ms)
	}
	if err := asAgent(func() error { return os.WriteFile(envrc, []byte("x"), 0o644) }); err == nil {
		t.Error("it can be written")
	}
	if kind := w.files()["/.envrc"]; !strings.HasPrefix(kind, "S") {
		t.Errorf("on the host it is %q", kind)
	}
	w.unstage(made, false, nil) // by its path, as after a restart of the host
	if after := w.files(); !maps.Equal(before, after) {
		t.Errorf("before %v\nafter %v", before, after)
	}
}

// TestRefused: what cannot be protected is told, with nothing left.
func TestRefused(t *testing.T) {
	for name, tt := range map[string]struct {
		lay func(w *work) error
		why string
	}{
		"a link":             {func(w *work) error { return os.Symlink("src", w.at(".vscode")) }, ".vscode in it cannot be protected: it is a symbolic link"},
		"a link to nothing":  {func(w *work) error { return os.Symlink("none", w.at(".envrc")) }, ".envrc in it cannot be protected: it is a symbolic link"},
		"a link on the way":  {func(w *work) error { return os.Symlink("src", w.at(".github")) }, ".github in it cannot be protected: it is a symbolic link"},
		"a pipe":             {func(w *work) error { return unix.Mkfifo(w.at(".envrc"), 0o644) }, "neither a directory nor a file"},
		"another name":       {func(w *work) error { return os.Link(w.at(".git/config"), w.at("src/config")) }, ".git/config in it cannot be protected: the file has another name"},
		"a closed directory": {func(w *work) error { w.make(".github/"); return os.Chmod(w.at(".github"), 0o500) }, ".github/workflows in it cannot be protected: permission denied"},
		"a directory of others'": {func(w *work) error {
			return errors.Join(os.Mkdir(w.at(".github"), 0o700), os.Chown(w.at(".github"), 5, 5))
		}, "permission denied"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWork(t)
			if err := tt.lay(w); err != nil {
				t.Fatal(err)
			}
			before := w.files()
			tr := w.tree()
			plan, err := tr.Plan(w.l, nil)
			if err == nil {
				plan, err = tr.Make(agent, plan)
			}
			if err == nil {
				_, _, err = tr.Apply(w.l, plan, w.empty())
			}
			e, ok := errors.AsType[*api.Error](err)
			if !ok || e.Code != api.CodeInvalid || len(e.Problems) != 1 || e.Problems[0].Field != "mounts[0].protect" || !strings.Contains(e.Problems[0].Want, tt.why) || e.Hint == "" {
				t.Errorf("it is %v (%+v); want %q", err, e, tt.why)
			}
			w.unstage(w.made(tr, plan), true, nil)
			if after := w.files(); !maps.Equal(before, after) {
				t.Errorf("before %v\nafter %v", before, after)
			}
		})
	}
}

// TestGitFile: in another work tree .git is a file, and must stay one.
func TestGitFile(t *testing.T) {
	w := newWork(t)
	if err := os.RemoveAll(w.at(".git")); err != nil {
		t.Fatal(err)
	}
	w.make(".git")
	tr := w.tree()
	made, ms := w.protect(tr, nil)
	if !slices.ContainsFunc(ms, func(m protect.Mount) bool { return m.Target == "/w/.git" && m.ReadOnly }) {
		t.Errorf("mounts are %+v", ms)
	}
	git := filepath.Join(tr.Staged, ".git")
	if err := asAgent(func() error { return errors.Join(os.Remove(git), os.WriteFile(git, nil, 0o644)) }); err == nil || strings.Count(err.Error(), "\n") != 1 {
		t.Errorf("removing and writing: %v", err)
	}
	w.unstage(made, true, nil)
}

// TestShared: a placeholder stays until the last that needs it is gone.
func TestShared(t *testing.T) {
	w := newWork(t)
	before := w.files()
	first, _ := w.protect(w.tree(), nil)
	held := protect.Held{}
	held.Add([]protect.Made{first})
	second, _ := w.protect(w.tree(), held)
	if len(second.Placeholders) != len(first.Placeholders) {
		t.Errorf("%v and %v", first.Placeholders, second.Placeholders)
	}
	held = protect.Held{}
	held.Add([]protect.Made{second})
	w.unstage(first, true, held)
	for _, p := range second.Placeholders {
		if _, err := os.Lstat(w.at(p.Name)); err != nil {
			t.Error(err)
		}
	}
	if err := asAgent(func() error { return os.WriteFile(filepath.Join(second.Staged, ".envrc"), nil, 0o644) }); err == nil {
		t.Error("what the second has can be written")
	}
	w.unstage(second, true, nil)
	if after := w.files(); !maps.Equal(before, after) {
		t.Errorf("before %v\nafter %v", before, after)
	}
}

// TestTheCallers: what the caller makes of a placeholder is the caller's.
func TestTheCallers(t *testing.T) {
	for _, found := range []bool{true, false} {
		w := newWork(t)
		made, _ := w.protect(w.tree(), nil)
		w.unstage(made, found, nil, func() {
			w.make(".vscode/settings.json", ".git/commondir")
			if err := os.Remove(w.at(".envrc")); err != nil {
				t.Fatal(err)
			}
			w.make(".envrc")
		})
		after := w.files()
		for _, name := range []string{".vscode/settings.json", ".git/commondir", ".envrc"} {
			if !strings.Contains(after["/"+name], "the user's") {
				t.Errorf("%s is gone", name)
			}
		}
		if after["/.github"] != "" {
			t.Error("a placeholder is left")
		}
	}
}

// TestPlanned: of what was only planned when all was lost, what is there and looks
// like it goes, and nothing else.
func TestPlanned(t *testing.T) {
	w := newWork(t)
	tr := w.tree()
	plan, err := tr.Plan(w.l, nil)
	if err != nil {
		t.Fatal(err)
	}
	before := w.files()
	if _, err := tr.Make(agent, plan); err != nil {
		t.Fatal(err)
	}
	if plan[0].Inode != 0 {
		t.Fatal("Make changes the plan that is on record")
	}
	w.unstage(w.made(tr, plan), true, nil)
	if after := w.files(); !maps.Equal(before, after) {
		t.Errorf("before %v\nafter %v", before, after)
	}
	if err := os.Mkdir(w.at(".vscode"), 0o755); err != nil { // root's
		t.Fatal(err)
	}
	w.make(".envrc")
	w.unstage(w.made(w.tree(), plan), false, nil)
	if after := w.files(); after["/.vscode"] == "" || after["/.envrc"] == "" {
		t.Errorf("somebody's are gone: %v", after)
	}
}

// TestMoved: another directory under the same path is left alone, and a busy
// placeholder is told of.
func TestMoved(t *testing.T) {
	w := newWork(t)
	made, _ := w.protect(w.tree(), nil)
	if left, err := made.Remove(made.Open(), nil, agent, caller, nil); err == nil || len(left) == 0 {
		t.Errorf("while they are mounted on: left %v, %v", left, err)
	}
	if err := os.Rename(w.dir, w.dir+".moved"); err != nil {
		t.Fatal(err)
	}
	w.make("", ".vscode/")
	w.unstage(made, false, nil)
	if _, err := os.Lstat(w.at(".vscode")); err != nil {
		t.Error(err)
	}
}

// TestOthers: a name that the sandbox has another mount at, or around, is that
// one's; one that is within is nested in what is protected.
func TestOthers(t *testing.T) {
	w := newWork(t)
	w.make(".vscode/in/", ".git/hooks/in/", "extra/")
	tr := w.tree("/w/.github/workflows", "/w/.vscode/in", "/w/.git/sub", "/w2", "/w/.git/hooks/in")
	w.make(".github/workflows/", ".git/sub/")
	_, ms := w.protect(tr, nil)
	for _, m := range ms {
		if m.Target == "/w/.github/workflows" {
			t.Errorf("mounts are %+v", ms)
		}
	}
	extra := w.tree()
	_, ids, err := w.tree().Apply(nil, nil, w.empty())
	if err != nil || len(ids) != 0 {
		t.Errorf("an empty list mounts %v, %v", ids, err)
	}
	for _, target := range []string{"/w/.vscode/in", "/w/.git/sub", "/w/.git/hooks/in"} {
		place := []mount.Place{{Staged: tr.Staged, Target: "/w"}, {Staged: extra.Staged, Target: target}}
		if err := mount.Nest(place); api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("%s without the ids: %v", target, err)
		}
	}
	tr2 := w.tree("/w/.git/sub", "/w/.git/hooks/in")
	held := protect.Held{}
	plan, err := tr2.Plan(w.l, held)
	if err != nil {
		t.Fatal(err)
	}
	_, ids, err = tr2.Apply(w.l, plan, w.empty())
	if err != nil || len(ids) == 0 {
		t.Fatalf("%v, %v", ids, err)
	}
	for _, target := range []string{"/w/.git/sub", "/w/.git/hooks/in"} {
		place := []mount.Place{{Staged: tr2.Staged, Target: "/w", Through: ids}, {Staged: extra.Staged, Target: target}}
		if err := mount.Nest(place); err != nil {
			t.Errorf("%s: %v", target, err)
		}
		if err := asAgent(func() error {
			return os.WriteFile(filepath.Join(tr2.Staged, strings.TrimPrefix(target, "/w"), "src", "new"), nil, 0o644)
		}); err != nil {
			t.Error(err)
		}
	}
	if err := asAgent(func() error { return os.WriteFile(filepath.Join(tr2.Staged, ".git/hooks/new"), nil, 0o644) }); !errors.Is(err, unix.EROFS) {
		t.Errorf("beside it: %v", err)
	}
}
