package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/fdconn"
	"github.com/creel-sandbox/creel/pkg/peer"
)

// statuses is the HTTP status each class of error travels under.
var statuses = map[api.Code]int{
	api.CodeInvalid:         http.StatusBadRequest,
	api.CodeDenied:          http.StatusForbidden,
	api.CodeNotFound:        http.StatusNotFound,
	api.CodeConflict:        http.StatusConflict,
	api.CodeTooLarge:        http.StatusRequestEntityTooLarge,
	api.CodeExhausted:       http.StatusTooManyRequests,
	api.CodeNotProven:       http.StatusUnprocessableEntity,
	api.CodeUnavailable:     http.StatusServiceUnavailable,
	api.CodeInternal:        http.StatusInternalServerError,
	api.CodeUnsupportedHost: http.StatusNotImplemented,
}

// Status is the HTTP status of a class of error; 500 for one it does not know.
func Status(code api.Code) int {
	if s, ok := statuses[code]; ok {
		return s
	}
	return http.StatusInternalServerError
}

// public turns any error into what a caller may see of it. What is not of a
// class becomes CodeInternal: the detail goes to the log under the request id,
// because it may hold paths and facts of the host.
func (s *Server) public(ctx context.Context, err error) *api.Error {
	id := RequestID(ctx)
	var e *api.Error
	switch {
	case errors.As(err, &e) && e.Code != api.CodeInternal:
		out := *e
		out.RequestID = id
		return &out
	case errors.Is(err, fdconn.ErrTooMany), errors.Is(err, fdconn.ErrNotDirectory):
		return &api.Error{Code: api.CodeInvalid, Message: "descriptors sent with the request: " + err.Error(), RequestID: id}
	case errors.Is(err, peer.ErrNone):
		return &api.Error{Code: api.CodeDenied, Message: err.Error(), RequestID: id}
	case ctx.Err() != nil && errors.Is(err, ctx.Err()):
		// Nobody is there to read it, unless the daemon is stopping.
		return &api.Error{Code: api.CodeUnavailable, Message: "the request was cancelled", RequestID: id}
	}
	s.log.LogAttrs(ctx, slog.LevelError, "request failed", slog.String("request_id", id), slog.Any("error", err))
	return &api.Error{
		Code: api.CodeInternal, Message: "creeld could not do it", RequestID: id,
		Hint: "the daemon's log has the reason under this request id",
	}
}

// fail answers with an error.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	e := s.public(r.Context(), err)
	if e.Code == api.CodeExhausted {
		w.Header().Set("Retry-After", fmt.Sprint(max(1, int64(math.Ceil(e.Retry.Seconds())))))
	}
	writeJSON(w, Status(e.Code), e)
}

// writeTime is how long a client may take to read a JSON answer.
const writeTime = 30 * time.Second

// writeJSON sends one JSON value and a newline.
func writeJSON(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil { // a value of package api always encodes, but for a NaN
		status, b = http.StatusInternalServerError, []byte(`{"code":"internal","message":"the answer cannot be encoded"}`)
	}
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTime))
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n')) // a client that is gone needs no answer
}
