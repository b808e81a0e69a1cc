package stream

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
)

// FDConn is what a connection must offer to carry FDs frames; *fdconn.Conn
// does.
type FDConn interface {
	// Attach sends files with the first byte of the next Write.
	Attach(files ...*os.File) error
	// Take returns the files that came with the bytes read so far.
	Take() ([]*os.File, error)
}

// Conn is one end of an upgraded connection. Reading is for one goroutine,
// writing for any number.
type Conn struct {
	*Reader
	*Writer
	c net.Conn
}

// NewConn speaks frames over c. r reads from c and holds what was already
// buffered of it while HTTP was read; when nil, c is buffered here.
func NewConn(c net.Conn, r io.Reader) *Conn {
	if r == nil {
		r = bufio.NewReaderSize(c, 16<<10)
	}
	return &Conn{Reader: NewReader(r), Writer: NewWriter(c), c: c}
}

// Close closes the connection, which ends blocked reads and writes.
func (c *Conn) Close() error { return c.c.Close() }

// SendFDs sends an FDs frame with files: [stdin if there is one, stdout,
// stderr] or [terminal]. They stay the caller's.
func (c *Conn) SendFDs(files []*os.File) error {
	fc, ok := c.c.(FDConn)
	if !ok {
		return fmt.Errorf("send descriptors: %T carries none", c.c)
	}
	if len(files) == 0 || len(files) > 255 {
		return fmt.Errorf("send descriptors: %d is not a count between 1 and 255", len(files))
	}
	// Attached under the writer's lock, so that they go with this frame.
	return c.write(FDs, []byte{byte(len(files))}, func() error { return fc.Attach(files...) }, false)
}

// RecvFDs returns the descriptors that came with an FDs frame just read by
// Next, close-on-exec. When their number is not what the frame says they are
// closed and the error wraps ErrProtocol.
func (c *Conn) RecvFDs(f Frame) ([]*os.File, error) {
	fc, ok := c.c.(FDConn)
	if !ok {
		return nil, fmt.Errorf("receive descriptors: %T carries none", c.c)
	}
	files, err := fc.Take()
	if err == nil && (f.Type != FDs || len(files) != int(f.Payload[0])) {
		err = fmt.Errorf("%w: %d descriptors came with a frame that says otherwise", ErrProtocol, len(files))
	}
	if err != nil {
		for _, f := range files {
			_ = f.Close()
		}
		return nil, err
	}
	return files, nil
}

// EncodeResize is the payload of a Resize frame.
func EncodeResize(cols, rows uint16) []byte {
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, cols), rows)
}

// DecodeResize reads it; p is the payload of a frame that Next returned.
func DecodeResize(p []byte) (cols, rows uint16) {
	return binary.BigEndian.Uint16(p), binary.BigEndian.Uint16(p[2:])
}

// DecodeSignal reads the payload of a Signal frame: 1 to 64, see signal(7).
func DecodeSignal(p []byte) (syscall.Signal, error) {
	if len(p) != 1 || p[0] < 1 || p[0] > 64 {
		return 0, fmt.Errorf("%w: %x is not a signal between 1 and 64", ErrProtocol, p)
	}
	return syscall.Signal(p[0]), nil
}

// Gone says whether err means that the peer has closed the connection.
func Gone(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)
}
