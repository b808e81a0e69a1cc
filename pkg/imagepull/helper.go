package imagepull

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
)

const (
	// helperTime leaves a person the time to unlock a key.
	helperTime = 2 * time.Minute
	// maxHelper bounds what a helper answers.
	maxHelper = 64 << 10
)

// helper asks a credential helper
// (github.com/docker/docker-credential-helpers) what it has for a registry. A
// file of the caller's own names it, and it runs as the caller, with the
// caller's environment: the file can have it run a program that is called
// docker-credential-… and lies in the caller's PATH, and no other. The
// registry is all it is told. Nothing that it says is shown: it may be secret.
func helper(ctx context.Context, name, registry string) (Cred, error) {
	if name == "" || strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") != "" {
		return Cred{}, fmt.Errorf("credential helper %q: letters, digits, -, _ and . only", name)
	}
	program := "docker-credential-" + name
	path, err := exec.LookPath(program)
	if err != nil {
		return Cred{}, api.Errorf(api.CodeNotFound, "the credential helper it names cannot be run: %w", err).
			WithHint("install it, or name a file without it by --authfile")
	}
	if registry == "docker.io" {
		registry = "https://index.docker.io/v1/" // what docker login tells it
	}
	ctx, cancel := context.WithTimeoutCause(ctx, helperTime, fmt.Errorf("%s took more than %s", program, helperTime))
	defer cancel()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	cmd := exec.CommandContext(ctx, path, "get") //nolint:gosec // as the caller, whose file names it; see above
	cmd.Stdin = strings.NewReader(registry)
	cmd.WaitDelay = time.Second // whoever else has its output open
	out := capture{left: maxHelper, full: func() { stop(fmt.Errorf("%s: its answer has more than %d bytes", program, maxHelper)) }}
	cmd.Stdout = &out
	err = cmd.Run()
	switch {
	case ctx.Err() != nil:
		return Cred{}, context.Cause(ctx)
	case err != nil && strings.TrimSpace(out.buf.String()) == "credentials not found in native keychain":
		return Cred{}, nil
	case err != nil:
		return Cred{}, api.Errorf(api.CodeInternal, "%s: %w", program, err).
			WithHint(fmt.Sprintf("try it: echo %s | %s get", registry, program))
	}
	var got struct{ Username, Secret string }
	if json.Unmarshal(out.buf.Bytes(), &got) != nil {
		return Cred{}, fmt.Errorf("%s did not answer with JSON of its protocol", program)
	}
	if got.Username == "<token>" {
		return Cred{IdentityToken: got.Secret}, nil
	}
	return Cred{Username: got.Username, Password: got.Secret}, nil
}

// capture is a buffer that takes so much and no more: then it calls full,
// since who writes may not care that nobody reads. The buffer is not embedded:
// its ReadFrom would be used, which takes all.
type capture struct {
	buf  bytes.Buffer
	left int
	full func()
}

func (c *capture) Write(p []byte) (int, error) {
	if c.left -= len(p); c.left < 0 {
		c.full()
		return 0, io.ErrShortWrite
	}
	return c.buf.Write(p)
}
