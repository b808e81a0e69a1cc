package cli

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/api"
)

// The values of --pull.
const (
	pullMissing = "missing"
	pullAlways  = "always"
	pullNever   = "never"
)

// checkPull says what is wrong with --pull for an image.
func checkPull(policy, image string) error {
	switch policy {
	case pullMissing, pullNever:
		return nil
	case pullAlways:
	default:
		return fmt.Errorf("--pull %q is not one of missing, always, never", policy)
	}
	if image == "" {
		return errors.New("--pull always needs an image: --image HOST/NAME")
	}
	if !namesRegistry(image) {
		return fmt.Errorf("--pull always: %q does not name its registry; Docker Hub's are docker.io/NAME and docker.io/library/NAME", image)
	}
	return nil
}

// namesRegistry reports whether a reference says which registry it is of. Only
// such a one is pulled without being told to: what "base" is, is said on this
// box, and a name that was mistyped, or that was removed here, must not become
// whatever a stranger has put on Docker Hub under it. "localhost/x" is what
// others call their local images.
func namesRegistry(ref string) bool {
	host, _, ok := strings.Cut(ref, "/")
	return ok && strings.ContainsAny(host, ".:")
}

// spawnPulling is spawn, after a pull of the image where --pull says so. The
// daemon is first asked to launch: so the usual case costs nothing, and what a
// name means is the daemon's to say.
func (a *app) spawnPulling(ctx context.Context, f *runFlags, req api.SpawnRequest) (*api.SpawnResult, error) {
	if f.pull == pullAlways {
		if err := a.pullFor(ctx, f, req.Image); err != nil {
			return nil, err
		}
	}
	res, err := a.spawn(ctx, req, f.ensure)
	if err == nil || f.pull != pullMissing || api.CodeOf(err) != api.CodeNotFound || !namesRegistry(req.Image) {
		return res, err
	}
	if _, ierr := a.client().Image(ctx, req.Image); api.CodeOf(ierr) != api.CodeNotFound {
		return res, err // something else is not there
	}
	if err := a.pullFor(ctx, f, req.Image); err != nil {
		return nil, err
	}
	return a.spawn(ctx, req, f.ensure)
}

// pullFor pulls an image that a run needs. The program that does it says
// itself what went wrong.
func (a *app) pullFor(ctx context.Context, f *runFlags, image string) error {
	ctx, stop := interruptible(ctx)
	defer stop()
	line := []string{"--socket", a.client().Socket(), "image", "pull", fmt.Sprintf("--tls-verify=%v", f.tlsVerify)}
	if f.authFile != "" {
		line = append(line, "--authfile", f.authFile)
	}
	if a.json {
		line = append(line, "--json")
	}
	err := withPart(puller, func(path string) error {
		cmd := exec.CommandContext(ctx, path, append(line, "--", image)...)
		cmd.Stderr = a.Err
		cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
		cmd.WaitDelay = 10 * time.Second
		return cmd.Run()
	})
	if ee, ok := errors.AsType[*exec.ExitError](err); ok && ee.Exited() {
		return &exitError{code: exitOwn}
	}
	if err != nil {
		return &exitError{exitOwn, fmt.Errorf("pull %s: %w", image, err)}
	}
	return nil
}
