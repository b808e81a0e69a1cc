package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/client"
)

func cpCommand(a *app) *cobra.Command {
	most := api.Size(16 << 30)
	cmd := &cobra.Command{
		Use:   "cp SRC SANDBOX:DST | cp SANDBOX:SRC DST",
		Short: "Copy files and directories into or out of a sandbox",
		Long: `Copy files and directories into or out of a sandbox; "-" is standard input or
output, for one file.

Inside, the files are read and written with the agent's rights. What comes out
is written as you, beneath DST only: links that lead out of it, devices and
set-ID bits are left behind, and each is named on standard error.`,
		Args: args(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.copy(cmd.Context(), args[0], args[1], most)
		},
	}
	cmd.Flags().Var(&text[api.Size, *api.Size]{v: &most, kind: "size", raw: "16G"}, "max-size", "bring out at most this much in all")
	return cmd
}

// copied is what a copy did.
type copied struct {
	Files int   `json:"files"`
	Dirs  int   `json:"dirs"`
	Bytes int64 `json:"bytes"`
	// Skipped says what was left behind and why.
	Skipped []string `json:"skipped,omitempty"`
}

func (a *app) copy(ctx context.Context, src, dst string, most api.Size) error {
	srcRef, srcPath, out := splitRef(src)
	dstRef, dstPath, in := splitRef(dst)
	if in == out {
		return misuse("one of SRC and DST is SANDBOX:PATH, the other is here; write ./a:b for a file here with a colon")
	}
	ctx, stop := interruptible(ctx)
	defer stop()
	c := copier{app: a, files: a.client(), most: int64(most)}
	var err error
	p := a.progress("copying")
	if out {
		err = c.out(ctx, srcRef, inSandbox(srcPath), dst)
	} else {
		err = c.in(ctx, src, dstRef, dstPath)
	}
	p.end()
	for _, s := range c.did.Skipped {
		a.say("left behind: %s", s)
	}
	if err != nil {
		return err
	}
	if a.json && dst != "-" {
		return a.writeJSON(c.did)
	}
	return nil
}

// inSandbox is the absolute form of a path in the sandbox, seen from its root.
func inSandbox(p string) string { return path.Clean("/" + p) }

// remote is what a copy needs of the sandbox; *client.Client is it.
type remote interface {
	StatFile(ctx context.Context, ref, path string) (*api.FileInfo, error)
	ReadFile(ctx context.Context, ref, path string) (io.ReadCloser, error)
	WriteFile(ctx context.Context, ref, path string, opts client.WriteOptions, r io.Reader, size int64) error
	Mkdir(ctx context.Context, ref, path string, parents bool) error
	ListDir(ctx context.Context, ref, dir string, limit int, fn func(api.FileInfo) error) (bool, error)
}

type copier struct {
	app   *app
	files remote
	most  int64 // bytes that may come out: a sparse file costs an agent nothing
	did   copied
}

// Bounds of one copy: a hostile tree must not keep it going for ever.
const (
	maxCopyDepth   = 128
	maxCopyEntries = 1 << 20
	maxDirEntries  = 1 << 17
	maxNotes       = 100
)

func (c *copier) skip(name, format string, args ...any) {
	switch n := len(c.did.Skipped); {
	case n < maxNotes:
		c.did.Skipped = append(c.did.Skipped, name+": "+fmt.Sprintf(format, args...))
	case n == maxNotes:
		c.did.Skipped = append(c.did.Skipped, "and more")
	}
}

// entry counts one more file or directory.
func (c *copier) entry(n *int) error {
	*n++
	if c.did.Files+c.did.Dirs > maxCopyEntries {
		return fmt.Errorf("more than %d files; copy an archive instead (creel exec ... tar)", maxCopyEntries)
	}
	return nil
}

// target is where a copy of a thing named base goes: into dst when that is a
// directory or is written as one, else to dst itself.
func target(dst, base string, isDir bool) string {
	if isDir || strings.HasSuffix(dst, "/") {
		return path.Join(dst, base)
	}
	return dst
}

// in copies from here into the sandbox.
func (c *copier) in(ctx context.Context, src, ref, dst string) error {
	remoteDst := inSandbox(dst)
	if src == "-" {
		if err := c.entry(&c.did.Files); err != nil {
			return err
		}
		return c.files.WriteFile(ctx, ref, remoteDst, client.WriteOptions{Mode: 0o644}, c.app.In, -1)
	}
	st, err := os.Stat(src) // follows a link: the user named it
	if err != nil {
		return err
	}
	there, err := c.files.StatFile(ctx, ref, remoteDst)
	if err != nil && api.CodeOf(err) != api.CodeNotFound {
		return err
	}
	abs, err := filepath.Abs(src) // "." has a name too
	if err != nil {
		return err
	}
	isDir := there != nil && there.Type == "dir"
	to := inSandbox(target(dst, filepath.Base(abs), isDir))
	if !st.IsDir() {
		f, err := os.Open(src)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		return c.sendFile(ctx, f, ref, to)
	}
	if there != nil && !isDir {
		return fmt.Errorf("%s: is not a directory", remoteDst)
	}
	root, err := os.OpenRoot(src)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	return c.sendDir(ctx, root, ".", ref, to)
}

// sendDir copies a directory. The agent may be writing to the same tree right
// now (a workspace), so every path is opened beneath root: a link that is
// swapped in cannot make the caller's other files follow it.
func (c *copier) sendDir(ctx context.Context, root *os.Root, dir, ref, to string) error {
	if strings.Count(dir, "/") >= maxCopyDepth {
		return fmt.Errorf("%s: more than %d directories deep", dir, maxCopyDepth)
	}
	if err := c.entry(&c.did.Dirs); err != nil {
		return err
	}
	if err := c.files.Mkdir(ctx, ref, to, true); err != nil {
		return fmt.Errorf("%s: %w", to, err)
	}
	d, err := root.Open(dir)
	if err != nil {
		return err
	}
	entries, err := d.ReadDir(-1)
	_ = d.Close()
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := path.Join(dir, e.Name())
		switch {
		case e.IsDir():
			err = c.sendDir(ctx, root, name, ref, path.Join(to, e.Name()))
		case e.Type().IsRegular():
			err = c.sendFrom(ctx, root, name, ref, path.Join(to, e.Name()))
		default:
			c.skip(name, "%s", kindOf(e.Type()))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *copier) sendFrom(ctx context.Context, root *os.Root, name, ref, to string) error {
	// Non-blocking: a pipe that was swapped in must not stop the copy.
	f, err := root.OpenFile(name, os.O_RDONLY|nonblock, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	return c.sendFile(ctx, f, ref, to)
}

func (c *copier) sendFile(ctx context.Context, f *os.File, ref, to string) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		c.skip(f.Name(), "%s", kindOf(st.Mode()))
		return nil
	}
	if err := c.entry(&c.did.Files); err != nil {
		return err
	}
	// Exactly as many bytes as it has now: a file that grows while it is
	// copied would break the request's length.
	n := &countReader{r: io.LimitReader(f, st.Size())}
	err = c.files.WriteFile(ctx, ref, to, client.WriteOptions{Mode: st.Mode().Perm()}, n, st.Size())
	c.did.Bytes += n.n
	if err != nil {
		return fmt.Errorf("%s: %w", to, err)
	}
	return nil
}

func kindOf(m os.FileMode) string {
	switch {
	case m&os.ModeSymlink != 0:
		return "a symbolic link"
	case m&os.ModeDevice != 0:
		return "a device"
	case m&os.ModeNamedPipe != 0:
		return "a pipe"
	case m&os.ModeSocket != 0:
		return "a socket"
	}
	return "not a regular file"
}

// countReader counts what is read.
type countReader struct {
	r io.Reader
	n int64
}

func (c *countReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

var errTooDeep = errors.New("too many directories deep")
