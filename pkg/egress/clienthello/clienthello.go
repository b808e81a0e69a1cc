// Package clienthello reads what a TLS client says first, without answering:
// whom it asks for, and whether it hides that.
//
// A connection that is passed through is judged by it once; then Raw and the
// rest go to the server as they came. Parsing is crypto/tls's own, which
// refuses what two servers could read differently: an extension twice, two
// names, a name that ends in a dot.
//
// Beware: Name is what the client wrote. It is not canonical, and it proves
// nothing about the server or about what is asked for after the handshake.
package clienthello

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"
)

// Errors of this package, to be tested with errors.Is.
var (
	// ErrNotTLS is a client that does not begin with a ClientHello.
	ErrNotTLS = errors.New("not a TLS ClientHello")
	// ErrTooLong is a ClientHello of more than MaxBytes.
	ErrTooLong = errors.New("the ClientHello is too long")
)

// MaxBytes bounds what is read. A hello with post-quantum keys has some 2,000
// bytes; what pads it to more has no reason that is known.
const MaxBytes = 16 << 10

// extensionECH is encrypted_client_hello (RFC 9849, section 11.1).
const extensionECH = 0xfe0d

// Hello is a client's first message.
type Hello struct {
	// Name is the server_name (RFC 6066), or "".
	Name string
	// ECH says that an encrypted hello is in it, or something made to look
	// like one: nobody but the server can tell the two apart. If it is real,
	// Name is not whom the client asks for.
	ECH bool
	// Protocols are those of ALPN (RFC 7301), as they came.
	Protocols []string
	// Raw is all that was read: the hello, and what may have come with it.
	Raw []byte
}

// Read reads until it has a whole ClientHello. The caller bounds the time. An
// error of r's is returned as it is; it is io.ErrUnexpectedEOF where r ended.
func Read(r io.Reader) (Hello, error) {
	c := &silent{r: r}
	var h Hello
	srv := tls.Server(c, &tls.Config{
		MinVersion: tls.VersionTLS12, // judged only after the hello was read
		GetConfigForClient: func(in *tls.ClientHelloInfo) (*tls.Config, error) {
			h.Name, h.Protocols = in.ServerName, slices.Clone(in.SupportedProtos)
			h.ECH = slices.Contains(in.Extensions, extensionECH)
			return nil, errRead
		},
	})
	err := srv.HandshakeContext(context.Background())
	switch {
	case errors.Is(err, errRead):
		h.Raw = c.got.Bytes()
		return h, nil
	case c.err != nil:
		return Hello{}, c.err
	}
	return Hello{}, fmt.Errorf("%w: %w", ErrNotTLS, err)
}

// errRead ends the handshake when the hello was read.
var errRead = errors.New("read")

// silent is a connection that keeps what it reads and sends nothing.
type silent struct {
	r   io.Reader
	got bytes.Buffer
	err error // of r
}

// Read implements net.Conn.
func (c *silent) Read(b []byte) (int, error) {
	left := MaxBytes - c.got.Len()
	if left == 0 {
		c.err = ErrTooLong
		return 0, c.err
	}
	n, err := c.r.Read(b[:min(len(b), left)])
	c.got.Write(b[:n])
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if n > 0 {
		err = nil // it comes again
	}
	c.err = err
	return n, err
}

// Write implements net.Conn: crypto/tls's alert goes nowhere.
func (*silent) Write(b []byte) (int, error)      { return len(b), nil }
func (*silent) Close() error                     { return nil }
func (*silent) LocalAddr() net.Addr              { return nil }
func (*silent) RemoteAddr() net.Addr             { return nil }
func (*silent) SetDeadline(time.Time) error      { return nil }
func (*silent) SetReadDeadline(time.Time) error  { return nil }
func (*silent) SetWriteDeadline(time.Time) error { return nil }

var _ net.Conn = (*silent)(nil)
