// Command creel-pull is "creel image pull", which executes it: it fetches an
// image from a registry, as the caller, and imports it. It is a program of its
// own because what it links costs every start of creel a millisecond, and
// because what speaks with strangers should be no more than that.
package main

import (
	"context"
	"os"
	"runtime"

	"github.com/creel-sandbox/creel/pkg/cli"
	"github.com/creel-sandbox/creel/pkg/imagepull"
)

func main() {
	stdio := cli.Stdio{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}
	os.Exit(cli.MainPull(context.Background(), os.Args[1:], stdio, open))
}

func open(ctx context.Context, o cli.PullOptions) (*cli.RemoteImage, error) {
	img, err := imagepull.Open(ctx, imagepull.Options{Ref: o.Ref, Arch: runtime.GOARCH, AuthFile: o.AuthFile, SkipTLSVerify: o.SkipTLSVerify})
	if err != nil {
		return nil, err
	}
	return &cli.RemoteImage{Ref: img.Ref, Digest: img.Digest, Size: img.Size, Archive: img.Archive, Close: img.Close}, nil
}
