package server

import (
	"net/http"

	"github.com/creel-sandbox/creel/pkg/api"
)

func (s *Server) diskUsage(w http.ResponseWriter, r *http.Request, c Caller) error {
	if err := parseQuery(r).done(); err != nil {
		return err
	}
	return answerOne(w)(s.svc.DiskUsage(r.Context(), c))
}

// maxDiff is how many changes one answer has at most, and by default.
const maxDiff = 10_000

func (s *Server) diff(w http.ResponseWriter, r *http.Request, c Caller) error {
	q := parseQuery(r)
	limit := q.number("limit", maxDiff, 1, maxDiff)
	if err := q.done(); err != nil {
		return err
	}
	return answerOne(w)(s.svc.Diff(r.Context(), c, r.PathValue("ref"), int(limit)))
}

func (s *Server) prune(w http.ResponseWriter, r *http.Request, c Caller) error {
	if err := parseQuery(r).done(); err != nil {
		return err
	}
	var req api.PruneRequest
	if err := readJSON(w, r, &req, true); err != nil {
		return err
	}
	return answerOne(w)(s.svc.Prune(r.Context(), c, req))
}
