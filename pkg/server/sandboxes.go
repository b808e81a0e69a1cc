package server

import (
	"fmt"
	"math"
	"net/http"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/fdconn"
	"github.com/creel-sandbox/creel/pkg/replay"
)

// Bounds of a stop request's grace.
const (
	defaultGrace = 10 * time.Second
	maxGrace     = time.Hour
)

func (s *Server) spawn(w http.ResponseWriter, r *http.Request, c Caller) error {
	req, dirs, err := readSpawn(w, r)
	defer closeFiles(dirs)
	if err != nil {
		return err
	}
	key, err := idempotencyKey(r)
	if err != nil {
		return err
	}
	var res *api.SpawnResult
	made := true
	if key == "" {
		res, err = s.svc.Spawn(r.Context(), c, req, dirs)
	} else {
		res, made, err = s.svc.SpawnOnce(r.Context(), c, key, req, dirs)
	}
	if err != nil {
		return err
	}
	if !made {
		w.Header().Set(replay.Header, "true")
	}
	writeJSON(w, http.StatusCreated, res)
	return nil
}

func (s *Server) explain(w http.ResponseWriter, r *http.Request, c Caller) error {
	req, dirs, err := readSpawn(w, r)
	defer closeFiles(dirs)
	if err != nil {
		return err
	}
	return answerOne(w)(s.svc.Explain(r.Context(), c, req, dirs))
}

// idempotencyKey is the request's, empty when it has none.
func idempotencyKey(r *http.Request) (string, error) {
	values := r.Header.Values("Idempotency-Key")
	if len(values) == 0 {
		return "", nil
	}
	key := values[0]
	bad := func(c rune) bool { return c <= ' ' || c > '~' }
	if len(values) > 1 || key == "" || len(key) > 255 || strings.ContainsFunc(key, bad) {
		return "", invalid("the request is not valid", api.Problem{Field: "Idempotency-Key", Want: "one key of 1 to 255 printable ASCII characters without spaces"})
	}
	return key, nil
}

func (s *Server) ensure(w http.ResponseWriter, r *http.Request, c Caller) error {
	req, dirs, err := readSpawn(w, r)
	defer closeFiles(dirs)
	if err != nil {
		return err
	}
	name := r.PathValue("ref")
	if req.Name != "" && req.Name != name {
		return invalid("the request is not valid", api.Problem{Field: "name", Value: req.Name, Want: "the name in the path, or left out"})
	}
	res, made, err := s.svc.Ensure(r.Context(), c, name, req, dirs)
	if err != nil {
		return err
	}
	status := http.StatusOK
	if made {
		status = http.StatusCreated
	}
	writeJSON(w, status, res)
	return nil
}

// readSpawn reads a request for a sandbox and takes its directories, which
// are the caller's to close.
func readSpawn(w http.ResponseWriter, r *http.Request) (req api.SpawnRequest, dirs []*os.File, err error) {
	if err := parseQuery(r).done(); err != nil {
		return req, nil, err
	}
	if err := readJSON(w, r, &req, false); err != nil {
		return req, nil, err
	}
	dirs, err = fdconn.Take(r.Context())
	if err != nil {
		w.Header().Set("Connection", "close")
		return req, nil, err
	}
	if len(dirs) > 0 {
		// Descriptors belong to a connection; on one that goes on, those of
		// the next request could be taken for this one's.
		w.Header().Set("Connection", "close")
	}
	return req, dirs, nil
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

func (s *Server) list(w http.ResponseWriter, r *http.Request, c Caller) error {
	q := parseQuery(r)
	opts := ListOptions{All: q.flag("all"), Labels: q.labels("label"), Agents: q.list("agent"), Images: q.list("image")}
	for _, v := range q.list("state") {
		switch state := api.State(v); state {
		case api.StateCreating, api.StateRunning, api.StatePaused, api.StateStopping, api.StateStopped, api.StateRemoving, api.StateUnknown:
			opts.States = append(opts.States, state)
		default:
			q.bad("state", v, "creating, running, paused, stopping, stopped, removing or unknown")
		}
	}
	p := q.page()
	if err := q.done(); err != nil {
		return err
	}
	all, err := s.svc.List(r.Context(), c, opts)
	return answerList(w)(cut(w, p, all, newestFirst), err)
}

// newestFirst is a key that sorts so.
func newestFirst(sb api.Sandbox) string {
	return fmt.Sprintf("%019d.%s", math.MaxInt64-sb.Created.UnixNano(), sb.ID)
}

func (s *Server) get(w http.ResponseWriter, r *http.Request, c Caller) error {
	if err := parseQuery(r).done(); err != nil {
		return err
	}
	return answerOne(w)(s.svc.Get(r.Context(), c, r.PathValue("ref")))
}

func (s *Server) remove(w http.ResponseWriter, r *http.Request, c Caller) error {
	q := parseQuery(r)
	force := q.flag("force")
	if err := q.done(); err != nil {
		return err
	}
	return answerNone(w, s.svc.Remove(r.Context(), c, r.PathValue("ref"), force))
}

func (s *Server) stopSandbox(w http.ResponseWriter, r *http.Request, c Caller) error {
	var req api.StopRequest
	if err := readVerb(w, r, &req); err != nil {
		return err
	}
	grace := defaultGrace
	if req.Grace != nil {
		grace = req.Grace.D()
	}
	if grace > maxGrace {
		return invalid("the request is not valid", api.Problem{Field: "grace", Value: grace.String(), Want: "at most " + maxGrace.String()})
	}
	return answerOne(w)(s.svc.Stop(r.Context(), c, r.PathValue("ref"), grace))
}

func (s *Server) kill(w http.ResponseWriter, r *http.Request, c Caller) error {
	var req api.KillRequest
	if err := readVerb(w, r, &req); err != nil {
		return err
	}
	sig, err := parseSignal(req.Signal)
	if err != nil {
		return err
	}
	return answerNone(w, s.svc.Kill(r.Context(), c, r.PathValue("ref"), sig))
}

// parseSignal reads "TERM", "SIGTERM", "15", or nothing for KILL.
func parseSignal(name string) (syscall.Signal, error) {
	if name == "" {
		return syscall.SIGKILL, nil
	}
	if n, err := strconv.Atoi(name); err == nil && n >= 1 && n <= 64 {
		return syscall.Signal(n), nil
	}
	full := strings.ToUpper(name)
	if !strings.HasPrefix(full, "SIG") {
		full = "SIG" + full
	}
	if sig := unix.SignalNum(full); sig != 0 {
		return sig, nil
	}
	return 0, invalid("the request is not valid", api.Problem{Field: "signal", Value: name, Want: `a name such as "TERM" or a number from 1 to 64`})
}

func (s *Server) pause(w http.ResponseWriter, r *http.Request, c Caller) error {
	if err := readVerb(w, r, &struct{}{}); err != nil {
		return err
	}
	return answerNone(w, s.svc.Pause(r.Context(), c, r.PathValue("ref")))
}

func (s *Server) resume(w http.ResponseWriter, r *http.Request, c Caller) error {
	if err := readVerb(w, r, &struct{}{}); err != nil {
		return err
	}
	return answerNone(w, s.svc.Resume(r.Context(), c, r.PathValue("ref")))
}

// readVerb reads the optional body of a request that has no query.
func readVerb(w http.ResponseWriter, r *http.Request, v any) error {
	if err := parseQuery(r).done(); err != nil {
		return err
	}
	return readJSON(w, r, v, true)
}

func (s *Server) wait(w http.ResponseWriter, r *http.Request, c Caller) error {
	if err := parseQuery(r).done(); err != nil {
		return err
	}
	ctx, cancel := s.untilStop(r.Context())
	defer cancel()
	res, err := s.svc.Wait(ctx, c, r.PathValue("ref"))
	if err != nil {
		return stopped(ctx, err)
	}
	return answerOne(w)(res, nil)
}

func (s *Server) stats(w http.ResponseWriter, r *http.Request, c Caller) error {
	if err := parseQuery(r).done(); err != nil {
		return err
	}
	return answerOne(w)(s.svc.Stats(r.Context(), c, r.PathValue("ref")))
}

func (s *Server) top(w http.ResponseWriter, r *http.Request, c Caller) error {
	if err := parseQuery(r).done(); err != nil {
		return err
	}
	return answerOne(w)(s.svc.Top(r.Context(), c, r.PathValue("ref")))
}

func (s *Server) execs(w http.ResponseWriter, r *http.Request, c Caller) error {
	q := parseQuery(r)
	labels := q.labels("label")
	if err := q.done(); err != nil {
		return err
	}
	execs, err := s.svc.Execs(r.Context(), c, r.PathValue("ref"), labels)
	return answerList(w)(execs, err)
}

func (s *Server) evidence(w http.ResponseWriter, r *http.Request, c Caller) error {
	q := parseQuery(r)
	fresh := q.flag("fresh")
	if err := q.done(); err != nil {
		return err
	}
	evidence, err := s.svc.Evidence(r.Context(), c, r.PathValue("ref"), fresh)
	return answerList(w)(evidence, err)
}

func (s *Server) allowEgress(w http.ResponseWriter, r *http.Request, c Caller) error {
	if err := parseQuery(r).done(); err != nil {
		return err
	}
	var req api.EgressRequest
	if err := readJSON(w, r, &req, false); err != nil {
		return err
	}
	return answerOne(w)(s.svc.AllowEgress(r.Context(), c, r.PathValue("ref"), req.Allow))
}
