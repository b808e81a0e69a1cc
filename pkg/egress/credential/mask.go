package credential

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"net/http"
	"strings"

	"github.com/creel-sandbox/creel/pkg/egress"
)

// ErrEncoding is a response that cannot be read, so that nobody knows whether it
// gives a secret back.
var ErrEncoding = errors.New("the response has an encoding in which a secret could be hidden")

// Mask has the response of a host not tell the secrets that go to it: each byte
// of one becomes a "*", so that lengths stay. What the server changed a secret to
// in another way is not found.
func (s *Set) Mask(resp *http.Response, host egress.Name, port uint16) error {
	needles := s.needles(host, port)
	if len(needles) == 0 {
		return nil
	}
	switch coding := strings.ToLower(strings.Join(resp.Header.Values("Content-Encoding"), ",")); coding {
	case "", "identity":
	case "gzip", "x-gzip":
		if resp.Request == nil || resp.Request.Method == http.MethodHead || resp.StatusCode == http.StatusNoContent || resp.StatusCode == http.StatusNotModified {
			break
		}
		z := &gunzip{body: resp.Body}
		resp.Body = z
		resp.ContentLength = -1
		resp.Header.Del("Content-Encoding")
		resp.Header.Del("Content-Length")
	default:
		return ErrEncoding // which one is the server's to say, and not to be told
	}
	maskHeader(resp.Header, needles)
	m := &masked{body: resp.Body, needles: needles, end: func() { maskHeader(resp.Trailer, needles) }}
	if w, ok := resp.Body.(io.Writer); ok { // of a connection that is a WebSocket now
		resp.Body = &maskedConn{m, w}
		return nil
	}
	resp.Body = m
	return nil
}

// MaskHeader does the same to what comes before a response.
func (s *Set) MaskHeader(h http.Header, host egress.Name, port uint16) {
	maskHeader(h, s.needles(host, port))
}

// MaskText does the same to a text of what went wrong.
func (s *Set) MaskText(text string, host egress.Name, port uint16) string {
	b := []byte(text)
	mask(b, s.needles(host, port))
	return string(b)
}

func (s *Set) needles(host egress.Name, port uint16) (all [][]byte) {
	if s == nil {
		return nil
	}
	for i := range s.secrets {
		if b := &s.secrets[i]; b.at(host, port) {
			for _, n := range b.needles {
				all = append(all, []byte(n))
			}
		}
	}
	return all
}

func maskHeader(h http.Header, needles [][]byte) {
	for _, values := range h {
		for i, v := range values {
			b := []byte(v)
			mask(b, needles)
			values[i] = string(b)
		}
	}
}

// mask writes over what there is of the needles.
func mask(b []byte, needles [][]byte) {
	for _, n := range needles {
		for at := 0; ; {
			i := bytes.Index(b[at:], n)
			if i < 0 {
				break
			}
			for j := range n {
				b[at+i+j] = '*'
			}
			at += i + len(n)
		}
	}
}

// masked is a body. What could be the beginning of a needle waits for the rest.
type masked struct {
	body    io.ReadCloser
	needles [][]byte
	end     func()

	buf   []byte // what was read
	ready int    // of it, what can be given out
	err   error
}

// Read implements io.Reader.
func (m *masked) Read(p []byte) (int, error) {
	for m.ready == 0 {
		if m.err != nil {
			return 0, m.err
		}
		const chunk = 32 << 10
		was := len(m.buf)
		m.buf = append(m.buf, make([]byte, chunk)...)
		n, err := m.body.Read(m.buf[was:])
		m.buf = m.buf[:was+n]
		mask(m.buf, m.needles)
		m.ready = len(m.buf)
		if err != nil {
			m.err = err
			m.end()
			break
		}
		m.ready -= m.begun()
	}
	if m.ready == 0 && m.err != nil {
		return 0, m.err
	}
	n := copy(p, m.buf[:m.ready])
	m.buf = append(m.buf[:0], m.buf[n:]...)
	m.ready -= n
	return n, nil
}

// begun is how many bytes at the end could be the beginning of a needle.
func (m *masked) begun() int {
	most := 0
	for _, n := range m.needles {
		for l := min(len(n)-1, len(m.buf)); l > most; l-- {
			if bytes.HasSuffix(m.buf, n[:l]) {
				most = l
			}
		}
	}
	return most
}

// Close implements io.Closer.
func (m *masked) Close() error { return m.body.Close() }

// maskedConn is one that the agent writes to as well.
type maskedConn struct {
	*masked
	w io.Writer
}

// Write implements io.Writer.
func (m *maskedConn) Write(p []byte) (int, error) { return m.w.Write(p) }

// gunzip is a body without its encoding.
type gunzip struct {
	body io.ReadCloser
	z    *gzip.Reader
}

// Read implements io.Reader.
func (g *gunzip) Read(p []byte) (int, error) {
	if g.z == nil {
		z, err := gzip.NewReader(g.body)
		if err != nil {
			return 0, err
		}
		g.z = z
	}
	return g.z.Read(p)
}

// Close implements io.Closer.
func (g *gunzip) Close() error { return g.body.Close() }
