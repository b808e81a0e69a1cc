package image

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// errCorrupt marks what a decompressor did not like.
var errCorrupt = errors.New("corrupt compression")

// zstdMemory bounds the window a zstd stream may ask for.
const zstdMemory = 128 << 20

// decompress reads gzip, zstd or plain bytes, told by their first bytes as
// containerd tells them.
func decompress(r io.Reader) (io.ReadCloser, error) {
	br := bufio.NewReaderSize(r, 64<<10)
	head, err := br.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b, 0x08}):
		z, err := gzip.NewReader(br)
		if err != nil {
			return nil, refuse("gzip: %v", err)
		}
		return &marked{r: z, close: func() {}}, nil
	case bytes.Equal(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(zstdMemory), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, refuse("zstd: %v", err)
		}
		return &marked{r: z, close: z.Close}, nil
	}
	return io.NopCloser(br), nil
}

// marked gives the errors of a decompressor a class.
type marked struct {
	r     io.Reader
	close func()
}

func (m *marked) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, ErrRefused) {
		err = fmt.Errorf("%w: %w", errCorrupt, err)
	}
	return n, err
}

func (m *marked) Close() error { m.close(); return nil }
