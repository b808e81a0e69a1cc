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
