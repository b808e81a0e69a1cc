package imagepull

import (
	"context"
	"io"
	"time"
)

// For tests.
const (
	MaxJSON   = maxJSON
	MaxLayers = maxLayers
	MaxBytes  = maxBytes
)

var (
	ErrStalled    = errStalled
	ParseAuthFile = parseAuthFile
	IsLoopback    = isLoopback
)

// Find looks in a parsed file.
func (f *authFile) Find(ctx context.Context, registry, path string) (Cred, error) {
	return f.find(ctx, registry, path)
}

// Parse gives a reference in full, and as the library asks for it.
func Parse(ref string) (full, asked string, err error) {
	t, err := parse(Options{Ref: ref})
	if err != nil {
		return "", "", err
	}
	return t.full, t.ref.Context().Name() + " " + t.ref.Identifier() + " " + t.ref.Context().Scheme(), nil
}

// Stalled is a body that a registry sends nothing of.
func Stalled(stall time.Duration) error {
	ctx, cancel := context.WithCancelCause(context.Background())
	r, w := io.Pipe()
	context.AfterFunc(ctx, func() { _ = w.CloseWithError(context.Canceled) }) // as net/http does
	b := &body{inner: r, ctx: ctx, cancel: cancel, stall: stall, left: 1}
	_, err := b.Read(make([]byte, 1))
	_ = b.Close()
	return err
}
