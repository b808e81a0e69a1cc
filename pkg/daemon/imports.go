package daemon

import (
	"context"
	"io"
	"sync"

	"github.com/creel-sandbox/creel/pkg/api"
)

const (
	// maxImports is how many archives one user may send and fetch at one time:
	// each costs buffers here and writes on the disk that all share, and one
	// that is fetched holds an image that the user may have removed.
	maxImports = 4
	// maxImages is how many images of its own a user other than root may have.
	maxImages = 64
)

// imports counts the archives that are under way.
type imports struct {
	mu sync.Mutex
	n  map[uint32]int
}

func (i *imports) begin(uid uint32) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.n[uid] >= maxImports {
		return api.Errorf(api.CodeExhausted, "%d images of this user are being imported or saved, the most there may be at one time", maxImports).
			WithHint("wait for one to end")
	}
	if i.n == nil {
		i.n = map[uint32]int{}
	}
	i.n[uid]++
	return nil
}

func (i *imports) end(uid uint32) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.n[uid]--; i.n[uid] == 0 {
		delete(i.n, uid)
	}
}

// roomEvery is how many bytes of an archive are taken between two looks at
// the disk.
const roomEvery = 8 << 20

// roomyReader reads an archive as long as the disk has room for it.
type roomyReader struct {
	r    io.Reader
	room func() error
	left int64 // until the next look
}

func (r *roomyReader) Read(p []byte) (int, error) {
	if r.left <= 0 {
		if err := r.room(); err != nil {
			return 0, err
		}
		r.left = roomEvery
	}
	n, err := r.r.Read(p)
	r.left -= int64(n)
	return n, err
}

// roomForImage is nil if a user may have one more image.
func (s *service) roomForImage(ctx context.Context, uid uint32) error {
	if uid == 0 {
		return nil
	}
	n, err := s.rt.CountImages(ctx, uid)
	if err != nil {
		return err
	}
	if n >= maxImages {
		return api.Errorf(api.CodeExhausted, "this user has %d images, the most there may be", n).
			WithHint("remove some with creel image rm")
	}
	return nil
}
