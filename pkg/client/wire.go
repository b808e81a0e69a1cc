package client

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/fdconn"
	"github.com/creel-sandbox/creel/pkg/stream"
)

// maxHead bounds the head of the daemon's answer.
const maxHead = 16 << 10

// wireRequest is a request that net/http's client cannot make: one that
// carries descriptors, or that becomes a stream.
type wireRequest struct {
	method, target string
	body           []byte
	dirs           []*os.File // sent with the first byte
	upgrade        bool
	key            string // Idempotency-Key
}

// wire is one raw connection to the daemon, used for one request.
type wire struct {
	conn   *fdconn.Conn
	r      *bufio.Reader
	stop   func() bool    // takes the context's hand off the connection
	answer *http.Response // of a request that did not upgrade
}

// openWire sends r and reads the head of the answer: 101 for an upgrade, else
// any 2xx with w.answer to read from. Everything else is an error.
func (c *Client) openWire(ctx context.Context, r wireRequest) (*wire, error) {
	uc, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	conn := fdconn.Client(uc)
	w := &wire{conn: conn, r: bufio.NewReaderSize(conn, maxHead)}
	// A deadline in the past ends every read and write that is under way.
	w.stop = context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	if err := w.roundTrip(r); err != nil {
		w.close()
		return nil, readError(ctx, err)
	}
	return w, nil
}

func (w *wire) roundTrip(r wireRequest) error {
	err := w.conn.Attach(r.dirs...)
	if err != nil {
		return api.Errorf(api.CodeInvalid, "mounts: %w", err)
	}
	if _, err := w.conn.Write(r.bytes()); err != nil {
		// The daemon may have answered without reading all of it.
		if refusal, ok := errors.AsType[*api.Error](w.readHead(r)); ok {
			return refusal
		}
		return fmt.Errorf("send request: %w", err)
	}
	return w.readHead(r)
}

// bytes is the whole request.
func (r wireRequest) bytes() []byte {
	b := make([]byte, 0, 256+len(r.target)+len(r.body))
	b = append(b, r.method...)
	b = append(b, ' ')
	b = append(b, r.target...)
	b = append(b, " HTTP/1.1\r\nHost: creel\r\n"...)
	if r.upgrade {
		b = append(b, "Connection: Upgrade\r\nUpgrade: "+stream.Protocol+"\r\n"...)
	} else {
		b = append(b, "Connection: close\r\n"...)
	}
	if r.key != "" {
		b = append(b, "Idempotency-Key: "+r.key+"\r\n"...)
	}
	if r.body != nil {
		b = append(b, "Content-Type: application/json\r\n"...)
	}
	b = append(b, "Content-Length: "...)
	b = strconv.AppendInt(b, int64(len(r.body)), 10)
	b = append(b, "\r\n\r\n"...)
	return append(b, r.body...)
}

// readHead reads the status line and headers.
func (w *wire) readHead(r wireRequest) error {
	const switching = "HTTP/1.1 101 "
	start, err := w.r.Peek(len(switching))
	if err != nil {
		return err
	}
	if r.upgrade && string(start) == switching {
		return w.skipHead()
	}
	// The method tells ReadResponse whether a body can follow.
	resp, err := http.ReadResponse(w.r, &http.Request{Method: r.method})
	if err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	if resp.StatusCode/100 != 2 {
		defer func() { _ = resp.Body.Close() }()
		return decodeError(resp)
	}
	if r.upgrade {
		_ = resp.Body.Close()
		return fmt.Errorf("the daemon answered %s instead of switching to %s; is it another version?", resp.Status, stream.Protocol)
	}
	w.answer = resp
	return nil
}

// skipHead reads past the headers of a 101 answer, none of which matters.
func (w *wire) skipHead() error {
	for total := 0; ; {
		line, err := w.r.ReadSlice('\n')
		total += len(line)
		if err != nil || total > maxHead {
			return errors.New("the answer's head is broken or too long; is the socket creeld's?")
		}
		if len(bytes.TrimRight(line, "\r\n")) == 0 {
			return nil
		}
	}
}

// readError is err, or why the context ended when that is what broke the read.
func readError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if apiErr, ok := errors.AsType[*api.Error](err); ok {
		return apiErr
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
		return brokeOff(err)
	}
	return err
}

func brokeOff(err error) error {
	return api.Errorf(api.CodeUnavailable, "the daemon broke the connection: %w", err).
		WithHint("its log says why (journalctl -u creeld)")
}

func (w *wire) close() {
	w.stop()
	_ = w.conn.Close()
}
