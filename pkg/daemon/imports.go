package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/image"
	"github.com/creel-sandbox/creel/pkg/peer"
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

func (i *imports) begin(uid uint32, most int) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if n := i.n[uid]; n >= most {
		return api.Errorf(api.CodeExhausted, "%d images of this user are being imported or saved, the most there may be at one time", n).
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

// newImage begins an image that is to be a caller's, with the bounds that are
// left for it. Call end when it is there, or is not to be.
func (s *service) newImage(ctx context.Context, c peer.Cred) (_ image.Limits, end func(), err error) {
	// What is left of a bound is one image's, or two would have it.
	most := maxImports
	if ceiling := s.Callers.Ceiling(c); ceiling != nil && ceiling.ImageBytes > 0 {
		most = 1
	}
	if err := s.imports.begin(c.UID, most); err != nil {
		return image.Limits{}, nil, err
	}
	left, err := s.roomForImage(ctx, c)
	if err != nil {
		s.imports.end(c.UID)
		return image.Limits{}, nil, err
	}
	limits := image.DefaultLimits
	limits.Bytes = min(limits.Bytes, left)
	return limits, func() { s.imports.end(c.UID) }, nil
}

// boundBy names the ceiling where that, and not what any image may have, is
// what an image was too large for.
func boundBy(limits image.Limits, err error) error {
	if e, ok := errors.AsType[*api.Error](err); ok && e.Hint == "" && limits.Bytes < image.DefaultLimits.Bytes {
		e.Hint = fmt.Sprintf("ceiling.image_bytes leaves %s for it: remove images, or have the operator raise it", api.Size(limits.Bytes))
	}
	return err
}

// roomForImage is how many bytes one more image of a caller's may have, if it
// may have one.
func (s *service) roomForImage(ctx context.Context, c peer.Cred) (int64, error) {
	ceiling := s.Callers.Ceiling(c)
	if ceiling == nil {
		return image.DefaultLimits.Bytes, nil // an operator's
	}
	if !slices.Contains(ceiling.Images, "own") {
		return 0, api.Errorf(api.CodeDenied, `ceiling.images is %s: no image of your own`, strings.Join(ceiling.Images, " or ")).
			WithHint(`use one of the box's, or have the operator add "own"`)
	}
	all, err := s.rt.Images(ctx, c.UID)
	if err != nil {
		return 0, err
	}
	n, sizes := 0, map[string]int64{}
	for _, i := range all {
		if i.Owner == c.UID {
			n++
			sizes[i.Digest] = i.Size // of several names it is one
		}
	}
	if n >= maxImages {
		return 0, api.Errorf(api.CodeExhausted, "this user has %d images, the most there may be", n).
			WithHint("remove some with creel image rm")
	}
	if ceiling.ImageBytes == 0 {
		return image.DefaultLimits.Bytes, nil
	}
	left := int64(ceiling.ImageBytes)
	for _, size := range sizes {
		left -= size
	}
	if left <= 0 {
		return 0, api.Errorf(api.CodeExhausted, "ceiling.image_bytes is %s, and your images have that", ceiling.ImageBytes).
			WithHint("remove some with creel image rm, or have the operator raise it")
	}
	return left, nil
}
