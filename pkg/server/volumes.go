package server

import (
	"net/http"

	"github.com/creel-sandbox/creel/pkg/api"
)

func (s *Server) createVolume(w http.ResponseWriter, r *http.Request, c Caller) error {
	if err := parseQuery(r).done(); err != nil {
		return err
	}
	var req api.VolumeRequest
	if err := readJSON(w, r, &req, false); err != nil {
		return err
	}
	v, err := s.svc.CreateVolume(r.Context(), c, req)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusCreated, v)
	return nil
}

func (s *Server) volumes(w http.ResponseWriter, r *http.Request, c Caller) error {
	if err := parseQuery(r).done(); err != nil {
		return err
	}
	return answerList(w)(s.svc.Volumes(r.Context(), c))
}

func (s *Server) volume(w http.ResponseWriter, r *http.Request, c Caller) error {
	if err := parseQuery(r).done(); err != nil {
		return err
	}
	return answerOne(w)(s.svc.Volume(r.Context(), c, r.PathValue("name")))
}

func (s *Server) removeVolume(w http.ResponseWriter, r *http.Request, c Caller) error {
	if err := parseQuery(r).done(); err != nil {
		return err
	}
	return answerNone(w, s.svc.RemoveVolume(r.Context(), c, r.PathValue("name")))
}

func (s *Server) setSecret(w http.ResponseWriter, r *http.Request, c Caller) error {
	if err := parseQuery(r).done(); err != nil {
		return err
	}
	var req api.SecretRequest
	if err := readJSON(w, r, &req, false); err != nil {
		return err
	}
	return answerOne(w)(s.svc.SetSecret(r.Context(), c, r.PathValue("name"), req))
}

func (s *Server) secrets(w http.ResponseWriter, r *http.Request, c Caller) error {
	if err := parseQuery(r).done(); err != nil {
		return err
	}
	return answerList(w)(s.svc.Secrets(r.Context(), c))
}

func (s *Server) removeSecret(w http.ResponseWriter, r *http.Request, c Caller) error {
	if err := parseQuery(r).done(); err != nil {
		return err
	}
	return answerNone(w, s.svc.RemoveSecret(r.Context(), c, r.PathValue("name")))
}
