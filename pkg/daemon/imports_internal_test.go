package daemon

import (
	"errors"
	"io"
	"testing"
)

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// TestRoomyReader: an archive that is long on its way ends soon after the disk
// is nearly full.
func TestRoomyReader(t *testing.T) {
	full := errors.New("full")
	var state error
	r := &roomyReader{r: zeros{}, room: func() error { return state }}
	if _, err := io.CopyN(io.Discard, r, 3*roomEvery); err != nil {
		t.Fatal(err)
	}
	state = full
	if n, err := io.Copy(io.Discard, r); !errors.Is(err, full) || n > roomEvery {
		t.Errorf("%d bytes more, %v", n, err)
	}
	refused := &roomyReader{r: zeros{}, room: func() error { return full }}
	if n, err := io.Copy(io.Discard, refused); n != 0 || !errors.Is(err, full) {
		t.Errorf("from the start: %d bytes, %v", n, err)
	}
}
