package cli

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/api"
)

const nonblock = unix.O_NONBLOCK

// out copies out of the sandbox. Everything that comes from there is hostile:
// names, types, modes, link targets, and how much of it there is. What is
// written stays beneath one os.Root.
func (c *copier) out(ctx context.Context, ref, src, dst string) error {
	fi, err := c.files.StatFile(ctx, ref, src)
	if err != nil {
		return err
	}
	if dst == "-" {
		return c.outStream(ctx, ref, src)
	}
	st, err := os.Stat(dst)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	isDir := err == nil && st.IsDir()
	// The name comes from the command line here, not from the sandbox.
	to := target(dst, path.Base(src), isDir && path.Base(src) != "/")
	if fi.Type == "dir" {
		return c.outTree(ctx, ref, src, to, isDir && to == dst)
	}
	if fi.Type == "other" {
		return fmt.Errorf("%s: is not a file or directory", src)
	}
	root, err := os.OpenRoot(filepath.Dir(to))
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	// A link at the end is followed inside the sandbox, by the agent's rights.
	return c.receiveFile(ctx, ref, src, root, filepath.Base(to), fi.Mode)
}

func (c *copier) outStream(ctx context.Context, ref, src string) error {
	body, err := c.files.ReadFile(ctx, ref, src)
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	out := c.app.Out
	if isTerminal(out) {
		out = printableWriter{out} // an agent's bytes, not a command's own output
	}
	c.did.Bytes, err = io.Copy(out, body)
	return err
}

// printableWriter escapes what would speak to a terminal. It may cut a
// character at a write's end in two, which then shows as bytes.
type printableWriter struct{ w io.Writer }

func (p printableWriter) Write(b []byte) (int, error) {
	if _, err := io.WriteString(p.w, printableLines(string(b))); err != nil {
		return 0, err
	}
	return len(b), nil
}

// outTree copies a directory to a path. If the caller named that directory
// itself, named, it is taken as it is, a link included; a name that was put
// together must be a directory or nothing: the agent may have left a link
// there, in a workspace.
func (c *copier) outTree(ctx context.Context, ref, src, to string, named bool) error {
	root, err := openTree(to, named)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	return c.receiveDir(ctx, ref, src, root, ".")
}

func openTree(to string, named bool) (*os.Root, error) {
	if named {
		return os.OpenRoot(to)
	}
	parent, err := os.OpenRoot(filepath.Dir(to))
	if err != nil {
		return nil, err
	}
	defer func() { _ = parent.Close() }()
	if err := makeDir(parent, filepath.Base(to)); err != nil {
		return nil, err
	}
	// A link that is swapped in now leads nowhere outside the parent.
	return parent.OpenRoot(filepath.Base(to))
}

// receiveDir copies the entries of src into dir, a real directory of root.
func (c *copier) receiveDir(ctx context.Context, ref, src string, root *os.Root, dir string) error {
	if depth(dir) > maxCopyDepth {
		return fmt.Errorf("%s: more than %d %w", src, maxCopyDepth, errTooDeep)
	}
	if err := c.entry(&c.did.Dirs); err != nil {
		return err
	}
	var list []api.FileInfo
	truncated, err := c.files.ListDir(ctx, ref, src, maxDirEntries, func(fi api.FileInfo) error {
		if len(list) >= maxDirEntries {
			return fmt.Errorf("%s: the daemon sent more entries than asked for", src)
		}
		list = append(list, fi)
		return nil
	})
	if err != nil {
		return fmt.Errorf("%s: %w", src, err)
	}
	if truncated {
		return fmt.Errorf("%s: more than %d entries; copy an archive instead (creel exec ... tar)", src, maxDirEntries)
	}
	for _, fi := range list {
		if err := c.receive(ctx, ref, src, root, dir, fi); err != nil {
			return err
		}
	}
	return nil
}

func (c *copier) receive(ctx context.Context, ref, src string, root *os.Root, dir string, fi api.FileInfo) error {
	if !isFileName(fi.Name) {
		c.skip(path.Join(src, fi.Name), "a name that no file can have")
		return nil
	}
	from, name := path.Join(src, fi.Name), path.Join(dir, fi.Name)
	if fi.Mode&0o7000 != 0 {
		c.skip(from, "its set-ID or sticky bits")
	}
	switch fi.Type {
	case "dir":
		if err := makeDir(root, name); err != nil {
			return err
		}
		return c.receiveDir(ctx, ref, from, root, name)
	case "file":
		return c.receiveFile(ctx, ref, from, root, name, fi.Mode)
	case "symlink":
		return c.receiveLink(from, root, name, fi.Target)
	}
	c.skip(from, "not a file, directory or link")
	return nil
}

// isFileName accepts one element of a path.
func isFileName(name string) bool {
	return name != "" && name != "." && name != ".." && len(name) <= 255 && !strings.ContainsAny(name, "/\x00")
}

// makeDir makes a directory or takes one that is there; a link to one is
// neither, because the copy would then write where the link leads.
func makeDir(root *os.Root, name string) error {
	err := root.Mkdir(name, 0o777)
	if !errors.Is(err, os.ErrExist) {
		return err
	}
	st, err := root.Lstat(name)
	if err == nil && !st.IsDir() {
		err = fmt.Errorf("%s: is there and is not a directory", name)
	}
	return err
}

// receiveFile writes beside the name and renames, so that what was there, be
// it a link or a pipe, is replaced and never written through.
func (c *copier) receiveFile(ctx context.Context, ref, from string, root *os.Root, name string, mode uint32) (err error) {
	if err := c.entry(&c.did.Files); err != nil {
		return err
	}
	body, err := c.files.ReadFile(ctx, ref, from)
	if err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	defer func() { _ = body.Close() }()
	temp := path.Join(path.Dir(name), ".creel-"+rand.Text())
	// The caller's umask applies, as with cp.
	f, err := root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, os.FileMode(mode&0o777))
	if err != nil {
		return err
	}
	n, err := io.Copy(f, io.LimitReader(body, c.most-c.did.Bytes+1))
	if c.did.Bytes += n; err == nil && c.did.Bytes > c.most {
		err = fmt.Errorf("there is more than %v; see --max-size", api.Size(c.most))
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = root.Rename(temp, name)
	}
	if err != nil {
		_ = root.Remove(temp)
		return fmt.Errorf("%s: %w", from, err)
	}
	return nil
}

func (c *copier) receiveLink(from string, root *os.Root, name, to string) error {
	if !linkStaysIn(depth(path.Dir(name)), to) {
		c.skip(from, "a link that leads out of the copy (%s)", to)
		return nil
	}
	if err := c.entry(&c.did.Files); err != nil {
		return err
	}
	err := root.Symlink(to, name)
	if errors.Is(err, os.ErrExist) {
		if st, serr := root.Lstat(name); serr == nil && st.IsDir() {
			return fmt.Errorf("%s: is there and is a directory", name)
		}
		if err = root.Remove(name); err == nil {
			err = root.Symlink(to, name)
		}
	}
	return err
}

// depth is how many directories dir is below the copy's root.
func depth(dir string) int {
	if dir == "." {
		return 0
	}
	return 1 + strings.Count(dir, "/")
}

// linkStaysIn says whether a link in a real directory depth levels down can
// only lead to places in the tree. ".." is allowed at the start and only as far
// as the root: after a name it would be relative to wherever that name, itself
// perhaps a link, leads.
func linkStaysIn(depth int, to string) bool {
	if to == "" || strings.HasPrefix(to, "/") || strings.ContainsRune(to, 0) || len(to) > 4095 {
		return false
	}
	ups, named := 0, false
	for part := range strings.SplitSeq(to, "/") {
		switch part {
		case "", ".":
		case "..":
			if ups++; named || ups > depth {
				return false
			}
		default:
			named = true
		}
	}
	return true
}
