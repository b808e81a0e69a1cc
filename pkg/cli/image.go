package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/client"
	"github.com/creel-sandbox/creel/pkg/imagebuild"
	"github.com/creel-sandbox/creel/pkg/ocilayout"
)

func imageCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "image", Short: "Images", Args: args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(imageBuildCommand(a), imageImportCommand(a), imagePullCommand(a), imageListCommand(a), imageInspectCommand(a),
		imageTagCommand(a), imageSaveCommand(a), imageRemoveCommand(a))
	return cmd
}

func imageListCommand(a *app) *cobra.Command {
	var limit int
	cmd := &cobra.Command{Use: "ls", Short: "List images", Args: args(0, 0), RunE: func(cmd *cobra.Command, _ []string) error {
		list, err := pages(a, limit, maxPage, func(p client.Page) ([]api.Image, string, error) { return a.client().ImagesPage(cmd.Context(), p) })
		if err != nil || a.json {
			return orJSON(a, list, err)
		}
		var t table
		t.header("REF", "DIGEST", "SIZE", "CREATED", "OWNER")
		for _, i := range list {
			t.row(i.Ref, shortDigest(i.Digest), size(i.Size), ago(i.Created, time.Now()), owner(i.Owner, os.Getuid()))
		}
		return a.writeTable(&t)
	}}
	addLimit(cmd, &limit, "the first so many, by reference")
	return cmd
}

// owner says whose an image is: a name of the box's is meant by everybody.
func owner(uid uint32, self int) string {
	switch {
	case uid == 0:
		return "box"
	case int(uid) == self:
		return "you"
	}
	return "uid " + strconv.FormatUint(uint64(uid), 10)
}

func imageInspectCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "inspect REF...",
		Short: "Show an image's digest, size, layers and packages, as JSON",
		Args:  args(1, -1),
		RunE: func(cmd *cobra.Command, refs []string) error {
			return inspectEach(a, refs, func(ref string) (*api.Image, error) { return a.client().Image(cmd.Context(), ref) })
		},
	}
}

func imageTagCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "tag IMAGE REF",
		Short: "Give an image one more name",
		Long: `Give an image one more name.

The name is yours alone; root's are everybody's. It then stands for that image
until it is given to another or removed. A name that the box has cannot be
given to another image by anybody but root.`,
		Args: args(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			img, err := a.client().TagImage(cmd.Context(), args[0], args[1])
			return a.imported(img, err)
		},
	}
}

func imageSaveCommand(a *app) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "save [-o FILE] REF",
		Short: "Save an image as an OCI archive",
		Args:  args(1, 1),
		RunE: func(cmd *cobra.Command, refs []string) error {
			if output == "" && isTerminal(a.Out) {
				return misuse("standard output is a terminal; redirect it, or name a file with --output")
			}
			if output == "" && a.json {
				return misuse("the archive is the output; --json needs --output")
			}
			return a.saveImage(cmd.Context(), refs[0], output)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "write to this file")
	return cmd
}

func (a *app) saveImage(ctx context.Context, ref, output string) error {
	ctx, stop := interruptible(ctx)
	defer stop()
	in, err := a.client().SaveImage(ctx, ref)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	if output == "" {
		_, err := io.Copy(a.Out, in)
		return err
	}
	p := a.progress("saving the image")
	var n int64
	err = replaceFile(output, func(w io.Writer) (err error) {
		n, err = io.Copy(w, in)
		return err
	})
	p.end()
	if err != nil {
		return err
	}
	if a.json {
		return a.writeJSON(map[string]any{"ref": ref, "file": output, "bytes": n})
	}
	_, err = fmt.Fprintln(a.Out, printable(output))
	return err
}

func shortDigest(d string) string {
	const most = len("sha256:") + 12
	if len(d) > most {
		return d[:most]
	}
	return d
}

func imageRemoveCommand(a *app) *cobra.Command {
	return &cobra.Command{Use: "rm REF...", Short: "Remove images", Args: args(1, -1), RunE: func(cmd *cobra.Command, refs []string) error {
		return a.each(refs, func(ref string) error {
			if err := a.client().RemoveImage(cmd.Context(), ref); err != nil {
				return err
			}
			return a.done(ref)
		})
	}}
}

func imageImportCommand(a *app) *cobra.Command {
	var ref string
	cmd := &cobra.Command{
		Use:   "import [--ref REF] ARCHIVE",
		Short: "Import an OCI or Docker archive (- is standard input), or an OCI layout",
		Long: `Import an image from an OCI archive, from what "docker save" writes, plain or
compressed, or from a directory that is an OCI image layout.

The image is yours alone; root's are everybody's.`,
		Example: "  docker save tools:1 | creel image import -",
		Args:    args(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[0] == "-" && isTerminal(a.In) {
				return misuse("standard input is a terminal; send it an archive, as in: docker save IMAGE | creel image import -")
			}
			in, err := a.openImage(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			defer func() { _ = in.Close() }()
			p := a.progress("importing the image")
			img, err := a.client().ImportImage(cmd.Context(), ref, in)
			p.end()
			return a.imported(img, err)
		},
	}
	cmd.Flags().StringVar(&ref, "ref", "", "name it this instead of what the archive says")
	return cmd
}

// openImage gives the archive that is to be imported. It is opened here, as
// the caller; a layout becomes an archive as it is read.
func (a *app) openImage(ctx context.Context, name string) (io.ReadCloser, error) {
	if name == "-" {
		return io.NopCloser(a.In), nil
	}
	if st, err := os.Stat(name); err != nil || !st.IsDir() {
		return os.Open(name)
	}
	r, w := io.Pipe()
	go func() { _ = w.CloseWithError(ocilayout.Archive(ctx, name, w)) }() // ends when r is closed
	return r, nil
}

func (a *app) imported(img *api.Image, err error) error {
	if err != nil || a.json {
		return orJSON(a, img, err)
	}
	_, err = fmt.Fprintf(a.Out, "%s %s\n", printable(img.Ref), printable(img.Digest))
	return err
}

func commitCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "commit SANDBOX REF",
		Short: "Make an image of a sandbox's writable root",
		Long: `Make an image of what a sandbox has written to its root, on top of the image it
runs from. The sandbox must run or be paused; it is held still meanwhile.

What is in /tmp, /run and other tmpfs is not in it. Set-user-ID bits, devices and
extended attributes are left out. The image is yours; one that root commits is
everybody's, as with an import.`,
		Args: args(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			img, err := a.client().Commit(cmd.Context(), args[0], args[1])
			if err != nil || a.json {
				return orJSON(a, img, err)
			}
			_, err = fmt.Fprintf(a.Out, "%s %s\n", printable(img.Ref), printable(img.Digest))
			return err
		},
	}
}

func imageBuildCommand(a *app) *cobra.Command {
	var opts imagebuild.Options
	var output, epoch string
	cmd := &cobra.Command{
		Use:   "build [base|dev]",
		Short: "Build an agent image",
		Long: `Build an agent image, of Debian packages.

  base  shells, git, curl, jq, ripgrep, Python: what agents need
  dev   base, and Node, npm, build-essential, Chromium with fonts; 1.3 GB

It is made here, as you, with mmdebstrap, and then imported; the daemon never
builds. With --output it is written to a file instead and no daemon is needed.
SOURCE_DATE_EPOCH is respected.`,
		Args: args(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.Recipe = "base"
			if len(args) > 0 {
				opts.Recipe = args[0]
			}
			if known := imagebuild.Recipes(); !slices.Contains(known, opts.Recipe) {
				return misuse("there is no recipe %q; there are: %s", opts.Recipe, strings.Join(known, ", "))
			}
			if opts.Ref == "" {
				opts.Ref = opts.Recipe
			}
			var err error
			if opts.Epoch, err = parseEpoch(epoch); err != nil {
				return err
			}
			return a.buildImage(cmd.Context(), opts, output)
		},
	}
	fl := cmd.Flags()
	fl.StringVarP(&output, "output", "o", "", "write an OCI archive to this file")
	fl.StringVar(&opts.Ref, "ref", "", "name of the image (the recipe's)")
	fl.StringArrayVar(&opts.Extra, "package", nil, "a Debian package that it has as well, such as apt; may be given more than once")
	fl.StringVar(&opts.Suite, "suite", imagebuild.DefaultSuite, "Debian release")
	fl.StringArrayVar(&opts.Mirrors, "mirror", nil, "URL of a Debian archive, or a whole \"deb ...\" line (this host's APT sources)")
	fl.StringVar(&epoch, "epoch", os.Getenv("SOURCE_DATE_EPOCH"), "no file is newer than this many seconds since 1970")
	return cmd
}

func parseEpoch(s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 {
		return time.Time{}, misuse("--epoch %q is not a number of seconds since 1970", s)
	}
	return time.Unix(n, 0), nil
}

func (a *app) buildImage(ctx context.Context, opts imagebuild.Options, output string) error {
	ctx, stop := interruptible(ctx)
	defer stop()
	p := a.progress("building the image")
	opts.Progress = p.step
	if output != "" {
		res, err := buildToFile(ctx, opts, output)
		p.end()
		if err != nil || a.json {
			return orJSON(a, res, err)
		}
		_, err = fmt.Fprintf(a.Out, "%s %s\n", printable(output), res.Digest)
		return err
	}
	img, err := a.importFrom(ctx, opts.Ref, func(ctx context.Context, w io.Writer) error {
		_, err := imagebuild.Build(ctx, opts, w)
		return err
	})
	p.end()
	return a.imported(img, err)
}

func buildToFile(ctx context.Context, opts imagebuild.Options, output string) (res *imagebuild.Result, err error) {
	err = replaceFile(output, func(w io.Writer) (err error) {
		res, err = imagebuild.Build(ctx, opts, w)
		return err
	})
	return res, err
}

// replaceFile replaces the file when it is complete, never with a part. A
// device, which would be replaced just so, is refused.
func replaceFile(output string, write func(io.Writer) error) (err error) {
	if st, err := os.Stat(output); err == nil && !st.Mode().IsRegular() {
		return misuse("%s is not a regular file", output)
	}
	f, err := os.CreateTemp(filepath.Dir(output), "."+filepath.Base(output)+"-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	if err := write(f); err != nil {
		return err
	}
	if err := errors.Join(f.Chmod(0o644), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", output, err)
	}
	return os.Rename(f.Name(), output)
}

// importFrom streams what write does, an archive, into an import. The
// connection is made when the first bytes are there, so ask the daemon first:
// a minute's work should not end in "connection refused".
func (a *app) importFrom(ctx context.Context, ref string, write func(context.Context, io.Writer) error) (*api.Image, error) {
	if _, err := a.client().Version(ctx); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r, w := io.Pipe()
	built := make(chan error, 1)
	ready := make(chan struct{})
	go func() {
		err := write(ctx, &signalWriter{w: w, first: ready})
		built <- err
		_ = w.CloseWithError(err)
	}()
	select {
	case <-ready:
	case err := <-built:
		return nil, err
	}
	img, err := a.client().ImportImage(ctx, ref, r)
	if err != nil {
		cancel(err) // nobody reads any more
	}
	_ = r.CloseWithError(io.ErrClosedPipe)
	if berr := <-built; berr != nil && err != nil && !errors.Is(berr, io.ErrClosedPipe) && ctx.Err() == nil {
		return nil, berr
	}
	return img, err
}

// signalWriter closes first at the first write.
type signalWriter struct {
	w     io.Writer
	first chan struct{}
	done  bool
}

func (s *signalWriter) Write(p []byte) (int, error) {
	if !s.done {
		s.done = true
		close(s.first)
	}
	return s.w.Write(p)
}
