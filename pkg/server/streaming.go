package server

import (
	"io"
	"net/http"
	"time"
)

// stallReader reads a request's body of any length: what is limited is how
// long the client may send nothing.
type stallReader struct {
	r     io.Reader
	rc    *http.ResponseController
	stall time.Duration
}

func (s *Server) bodyOf(w http.ResponseWriter, r *http.Request) *stallReader {
	return &stallReader{r: r.Body, rc: http.NewResponseController(w), stall: s.opts.StallTime}
}

func (b *stallReader) Read(p []byte) (int, error) {
	_ = b.rc.SetReadDeadline(time.Now().Add(b.stall))
	n, err := b.r.Read(p)
	if err != nil {
		b.done()
	}
	return n, err
}

// done takes the deadline away, which would otherwise count as a lost client
// when it passes.
func (b *stallReader) done() { _ = b.rc.SetReadDeadline(time.Time{}) }

// stallWriter writes an answer of any length: what is limited is how long the
// client may read nothing.
type stallWriter struct {
	w     http.ResponseWriter
	rc    *http.ResponseController
	stall time.Duration
	flush bool // after each write
	begun bool
}

func (s *Server) bodyTo(w http.ResponseWriter, contentType string, flush bool) *stallWriter {
	w.Header().Set("Content-Type", contentType)
	return &stallWriter{w: w, rc: http.NewResponseController(w), stall: s.opts.StallTime, flush: flush}
}

func (b *stallWriter) Write(p []byte) (int, error) {
	b.begun = true
	_ = b.rc.SetWriteDeadline(time.Now().Add(b.stall))
	n, err := b.w.Write(p)
	if err == nil && b.flush {
		err = b.rc.Flush()
	}
	return n, err
}

// begin sends the header now.
func (b *stallWriter) begin() error {
	b.begun = true
	_ = b.rc.SetWriteDeadline(time.Now().Add(b.stall))
	b.w.WriteHeader(http.StatusOK)
	return b.rc.Flush()
}
