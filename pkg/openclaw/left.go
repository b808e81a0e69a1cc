package openclaw

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Bounds of a look for what was left.
const (
	MaxLooked = 100_000 // entries, of all trees together
	maxNamed  = 10      // of each tree
)

// Left are the files in one directory that are not its user's.
type Left struct {
	Root string
	// Files are the first of them, by name; of a directory only itself.
	Files []string
	// Count is how many were found.
	Count int
}

// FindLeft looks in directories for what another than uid owns: a container
// whose root is the host's leaves such files. It follows no links, stays on
// each directory's file system, and stops after most entries; all says
// whether that was enough. Directories that are not there are passed over.
func FindLeft(ctx context.Context, dirs []string, uid uint32, most int) (found []Left, all bool) {
	w := walk{ctx: ctx, uid: uid, left: most}
	for _, dir := range outermost(dirs) {
		var st unix.Stat_t
		if unix.Lstat(dir, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
			continue
		}
		w.dev, w.found = uint64(st.Dev), Left{Root: dir} //nolint:unconvert // it is 32 bits wide elsewhere
		if st.Uid != uid {
			w.add(dir)
		} else {
			w.tree(dir)
		}
		if w.found.Count > 0 {
			found = append(found, w.found)
		}
	}
	return found, w.left > 0 && ctx.Err() == nil
}

// outermost are the directories behind the names, without those that lie in
// another one.
func outermost(dirs []string) (out []string) {
	var resolved []string
	for _, d := range dirs {
		if r, err := filepath.EvalSymlinks(d); err == nil {
			resolved = append(resolved, r)
		}
	}
	slices.Sort(resolved)
	for _, d := range slices.Compact(resolved) {
		if !slices.ContainsFunc(out, func(o string) bool { return strings.HasPrefix(d, strings.TrimSuffix(o, "/")+"/") }) {
			out = append(out, d)
		}
	}
	return out
}

type walk struct {
	ctx   context.Context
	uid   uint32
	left  int // how many entries may still be looked at
	dev   uint64
	found Left
}

func (w *walk) add(path string) {
	w.found.Count++
	if len(w.found.Files) < maxNamed {
		w.found.Files = append(w.found.Files, path)
	}
}

func (w *walk) tree(root string) {
	for todo := []string{root}; len(todo) > 0 && w.left > 0 && w.ctx.Err() == nil; {
		dir := todo[len(todo)-1]
		todo = append(todo[:len(todo)-1], w.dir(dir)...)
	}
	slices.Sort(w.found.Files)
}

// dir looks at what is in one directory and gives the directories in it that
// are to be looked into.
func (w *walk) dir(path string) (dirs []string) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil // the user's own, and closed to the user: not what Docker left
	}
	defer func() { _ = f.Close() }()
	for w.left > 0 {
		entries, err := f.ReadDir(min(w.left, 256))
		for _, e := range entries {
			w.left--
			name := filepath.Join(path, e.Name())
			info, err := e.Info()
			if err != nil {
				continue // gone meanwhile
			}
			st, ok := info.Sys().(*syscall.Stat_t)
			switch {
			case !ok:
			case st.Uid != w.uid:
				w.add(name)
			case e.IsDir() && uint64(st.Dev) == w.dev: //nolint:unconvert // see FindLeft
				dirs = append(dirs, name)
			}
		}
		if err != nil { // the end, usually
			break
		}
	}
	return dirs
}

// ExplainLeft says what was left; owner is "user:group".
func ExplainLeft(found []Left, all bool, owner string) (out []Finding) {
	const about = "files"
	user, _, _ := strings.Cut(owner, ":")
	for _, l := range found {
		more := ""
		if n := l.Count - len(l.Files); n > 0 {
			more = fmt.Sprintf(" and %d more", n)
		}
		out = append(out, finding(Missing, about, "sudo chown -R --no-dereference "+owner+" "+shellQuote(l.Root),
			"not %s's, as the Docker backend leaves them, and no sandbox can write them: %s%s", user, strings.Join(l.Files, ", "), more))
	}
	switch {
	case !all:
		out = append(out, finding(Note, about, "", "the look for files of other owners was ended after %d entries", MaxLooked))
	case out == nil:
		out = append(out, finding(OK, about, "", "workspaces and sandboxes' directories have no files of other owners"))
	}
	return out
}

// shellQuote is a word for a shell.
func shellQuote(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+:@%,=", r)
	}
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool { return !plain(r) }) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
