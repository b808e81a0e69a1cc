package daemon

import (
	"context"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/failpoint"
	"github.com/creel-sandbox/creel/pkg/layertar"
	"github.com/creel-sandbox/creel/pkg/peer"
)

// maxNames is how many bytes of names a commit may remember. Files with many
// names take an agent next to nothing.
const maxNames = 128 << 20

// Commit makes an image of a sandbox's writable root. The layer is first
// written to a file without a name, so that the sandbox is held still no
// longer than that takes, and a daemon that is killed leaves nothing of it;
// what follows is as in an import.
func (s *service) Commit(ctx context.Context, c peer.Cred, ref, name string) (*api.Image, error) {
	if name == "" {
		return nil, &api.Error{Code: api.CodeInvalid, Message: "the request has 1 problem(s)", Problems: []api.Problem{
			{Field: "image", Want: "a name for the image"},
		}}
	}
	lim, end, err := s.newImage(ctx, c)
	if err != nil {
		return nil, err
	}
	defer end()
	if err := s.rt.NameFree(ctx, s.owner(c), name); err != nil {
		return nil, err
	}
	spool, err := unnamed(s.d.cfg.StateDir)
	if err != nil {
		return nil, err
	}
	defer spool.Close()
	out := &roomyWriter{w: spool, room: s.RoomOnDisk}
	base, err := s.WriteLayer(ctx, c, ref, out, layertar.Options{Bytes: lim.Bytes, Files: lim.Files, Names: maxNames})
	if err != nil {
		return nil, err
	}
	if err := failpoint.Hit("commit.spooled"); err != nil {
		return nil, err
	}
	img, err := s.rt.Extend(ctx, s.owner(c), base, io.NewSectionReader(spool, 0, out.n), out.n, name, lim)
	if api.CodeOf(err) == api.CodeNotFound {
		return nil, api.Errorf(api.CodeConflict, "the image that the sandbox runs from has been removed: %w", err).
			WithHint("import it again, and commit then")
	}
	if err != nil {
		return nil, err
	}
	return &img, nil
}

// unnamed is a file that goes when it is closed, however that happens.
func unnamed(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("file for a layer in %s: %w", dir, err)
	}
	return os.NewFile(uintptr(fd), "layer"), nil
}

// roomyWriter writes as long as the disk has room, and counts.
type roomyWriter struct {
	w    io.Writer
	room func() error
	left int64 // until the next look
	n    int64
}

func (r *roomyWriter) Write(p []byte) (int, error) {
	if r.left <= 0 {
		if err := r.room(); err != nil {
			return 0, err
		}
		r.left = roomEvery
	}
	n, err := r.w.Write(p)
	r.left -= int64(n)
	r.n += int64(n)
	return n, err
}
