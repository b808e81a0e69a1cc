package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/creel-sandbox/creel/pkg/api"
)

// PullOptions are what a line of "creel image pull" says; they mean what those
// of pkg/imagepull do.
type PullOptions struct {
	Ref, AuthFile string
	SkipTLSVerify bool
}

// RemoteImage is what a registry has under a reference, as pkg/imagepull
// gives it.
type RemoteImage struct {
	Ref, Digest string
	Size        int64
	Archive     func(context.Context, io.Writer) error
	Close       func()
}

// MainPull is Main for the program that "creel image pull" executes: the same
// line, with that verb alone. open asks a registry.
func MainPull(ctx context.Context, args []string, stdio Stdio, open func(context.Context, PullOptions) (*RemoteImage, error)) int {
	return runMain(ctx, &app{Stdio: stdio, line: args, openRemote: open})
}

// puller is the program that has the registry's library, which costs every
// start of a program that links it a millisecond.
const puller = "creel-pull"

type pullFlags struct {
	authFile  string
	tlsVerify bool
}

func (f *pullFlags) register(fl *pflag.FlagSet) {
	fl.StringVar(&f.authFile, "authfile", "", "registry credentials: a file of podman's or docker's login (where these have it)")
	fl.BoolVar(&f.tlsVerify, "tls-verify", true, "with =false, take any certificate of a registry, and plain HTTP")
}

func imagePullCommand(a *app) *cobra.Command {
	var f pullFlags
	cmd := &cobra.Command{
		Use:   "pull [flags] REF",
		Short: "Fetch an image from a registry and import it",
		Long: `Fetch an image from a registry and import it.

It is fetched here, as you, with your credentials, and then imported; the
daemon never pulls. A name without a registry is Docker Hub's. With a digest,
NAME@sha256:..., it is that image or none. What is here already is not fetched
again. The image is yours alone; root's are everybody's. A name that the box
has is refused to others.

Credentials are those of podman login and docker login: --authfile, else
$REGISTRY_AUTH_FILE, else $XDG_RUNTIME_DIR/containers/auth.json,
~/.config/containers/auth.json and ~/.docker/config.json. A credential helper
that such a file names, docker-credential-NAME in your PATH, is run as you.`,
		Example: `  creel image pull debian:12
  creel image pull ghcr.io/team/tools@sha256:...`,
		Args: args(1, 1),
		RunE: func(cmd *cobra.Command, refs []string) error {
			if a.openRemote == nil {
				return a.become(puller)
			}
			return a.pullImage(cmd.Context(), PullOptions{Ref: refs[0], AuthFile: f.authFile, SkipTLSVerify: !f.tlsVerify})
		},
	}
	f.register(cmd.Flags())
	return cmd
}

// pullImage asks the registry what the reference is, and fetches that if it
// is not here.
func (a *app) pullImage(ctx context.Context, o PullOptions) error {
	if strings.HasPrefix(o.Ref, "sha256:") {
		return misuse("a digest alone does not say where the image is: HOST/NAME@%s", o.Ref)
	}
	ctx, stop := interruptible(ctx)
	defer stop()
	have, err := a.client().Image(ctx, o.Ref)
	switch {
	case err != nil && api.CodeOf(err) != api.CodeNotFound:
		return err
	case err == nil && have.Owner == 0 && os.Geteuid() != 0:
		// The import would be refused; so would nothing be gained by it, for
		// the box's image of a name goes first.
		return api.Errorf(api.CodeConflict, "the box has an image %q, which stands for every caller", have.Ref).
			WithHint("root may pull it; for an image of your own, pull by digest: NAME@sha256:...")
	}
	p := a.progress("asking the registry for " + printable(o.Ref))
	img, fetched, err := a.fetchImage(ctx, o, have, p)
	p.end()
	if err == nil && !fetched && !a.json {
		a.say("it is here already; no layer was fetched")
	}
	return a.imported(img, err)
}

func (a *app) fetchImage(ctx context.Context, o PullOptions, have *api.Image, p *progress) (_ *api.Image, fetched bool, err error) {
	remote, err := a.openRemote(ctx, o)
	if err != nil {
		return nil, false, err
	}
	defer remote.Close()
	if have != nil && have.Digest == remote.Digest {
		return have, false, nil
	}
	// By another name, perhaps: the registry has just shown that the caller
	// may have it.
	img, err := a.client().TagImage(ctx, remote.Digest, remote.Ref)
	if api.CodeOf(err) != api.CodeNotFound {
		return img, false, err
	}
	p.set(pulling(p.terminal, 0, remote))
	img, err = a.importFrom(ctx, remote.Ref, func(ctx context.Context, w io.Writer) error {
		err := remote.Archive(ctx, &countWriter{w: w, report: func(n int64) { p.set(pulling(p.terminal, n, remote)) }})
		if err == nil {
			p.set("unpacking " + printable(remote.Ref))
		}
		return err
	})
	return img, true, err
}

// pulling says how far a pull is: with a bar where the line moves.
func pulling(bar bool, n int64, img *RemoteImage) string {
	n = min(n, img.Size) // n has the archive's own bytes, too
	percent := int64(100)
	if img.Size > 0 {
		percent = n * 100 / img.Size
	}
	much := fmt.Sprintf("%d%%, %s of %s", percent, size(n), size(img.Size))
	if !bar {
		return fmt.Sprintf("pulling %s: %s", printable(img.Ref), much)
	}
	const width = 30
	full := int(percent * width / 100)
	return fmt.Sprintf("[%s%s] %s, %s", strings.Repeat("=", full), strings.Repeat(" ", width-full), much, printable(img.Ref))
}

// countWriter tells how many bytes were written.
type countWriter struct {
	w      io.Writer
	n      int64
	report func(int64)
}

func (c *countWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	c.report(c.n)
	return n, err
}
