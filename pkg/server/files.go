package server

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"github.com/creel-sandbox/creel/pkg/api"
)

// Bounds of a listing.
const (
	defaultEntries = 10_000
	maxEntries     = 1_000_000
)

// noMode is not a mode.
const noMode = 1 << 31

func (s *Server) readFile(w http.ResponseWriter, r *http.Request, c Caller) error {
	q := parseQuery(r)
	path := q.path("path")
	if err := q.done(); err != nil {
		return err
	}
	info, f, err := s.svc.ReadFile(r.Context(), c, r.PathValue("ref"), path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	// No Content-Length: the agent may be writing the file.
	out := s.bodyTo(w, "application/octet-stream", false)
	w.Header().Set("Creel-File-Mode", strconv.FormatUint(uint64(info.Mode), 8))
	w.Header().Set("Creel-File-Size", strconv.FormatInt(info.Size, 10))
	if _, err := io.Copy(out, f); err != nil {
		return fmt.Errorf("read file of sandbox: %w", err)
	}
	return nil
}

func (s *Server) writeFile(w http.ResponseWriter, r *http.Request, c Caller) error {
	q := parseQuery(r)
	path := q.path("path")
	opts := WriteOptions{Mode: q.mode("mode", noMode), Parents: q.flag("parents"), Exclusive: q.flag("exclusive")}
	if opts.Mode == noMode {
		opts.Mode, opts.KeepMode = 0o644, true
	}
	if err := q.done(); err != nil {
		return err
	}
	body := s.bodyOf(w, r)
	defer body.done()
	return answerNone(w, s.svc.WriteFile(r.Context(), c, r.PathValue("ref"), path, opts, body))
}

func (s *Server) removeFile(w http.ResponseWriter, r *http.Request, c Caller) error {
	q := parseQuery(r)
	path, recursive := q.path("path"), q.flag("recursive")
	if err := q.done(); err != nil {
		return err
	}
	return answerNone(w, s.svc.RemoveFile(r.Context(), c, r.PathValue("ref"), path, recursive))
}

// listDir sends one JSON object for each entry as it comes, so that a
// directory of millions needs no memory, and last {"truncated": bool} or
// {"error": {...}}. A client that sees neither has not got all.
func (s *Server) listDir(w http.ResponseWriter, r *http.Request, c Caller) error {
	q := parseQuery(r)
	path, limit := q.path("path"), q.number("limit", defaultEntries, 1, maxEntries)
	if err := q.done(); err != nil {
		return err
	}
	out := s.bodyTo(w, "application/x-ndjson", false)
	enc := json.NewEncoder(out)
	truncated, err := s.svc.ListDir(r.Context(), c, r.PathValue("ref"), path, int(limit), func(fi api.FileInfo) error { return enc.Encode(fi) })
	switch {
	case err == nil:
		return enc.Encode(map[string]bool{"truncated": truncated})
	case out.begun:
		return enc.Encode(map[string]*api.Error{"error": s.public(r.Context(), err)})
	default:
		return err
	}
}

func (s *Server) statFile(w http.ResponseWriter, r *http.Request, c Caller) error {
	q := parseQuery(r)
	path := q.path("path")
	if err := q.done(); err != nil {
		return err
	}
	return answerOne(w)(s.svc.StatFile(r.Context(), c, r.PathValue("ref"), path))
}

func (s *Server) mkdir(w http.ResponseWriter, r *http.Request, c Caller) error {
	q := parseQuery(r)
	path, parents := q.path("path"), q.flag("parents")
	if err := q.done(); err != nil {
		return err
	}
	return answerNone(w, s.svc.Mkdir(r.Context(), c, r.PathValue("ref"), path, parents))
}

func (s *Server) renameFile(w http.ResponseWriter, r *http.Request, c Caller) error {
	q := parseQuery(r)
	from, to := q.path("from"), q.path("to")
	if err := q.done(); err != nil {
		return err
	}
	return answerNone(w, s.svc.RenameFile(r.Context(), c, r.PathValue("ref"), from, to))
}
