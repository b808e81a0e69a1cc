package server

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/stream"
)

func (s *Server) images(w http.ResponseWriter, r *http.Request, c Caller) error {
	q := parseQuery(r)
	p := q.page()
	if err := q.done(); err != nil {
		return err
	}
	all, err := s.svc.Images(r.Context(), c)
	return answerList(w)(cut(w, p, all, func(i api.Image) string { return i.Ref + "@" + i.Digest }), err)
}

func (s *Server) image(w http.ResponseWriter, r *http.Request, c Caller) error {
	if err := parseQuery(r).done(); err != nil {
		return err
	}
	return answerOne(w)(s.svc.Image(r.Context(), c, r.PathValue("ref")))
}

func (s *Server) importImage(w http.ResponseWriter, r *http.Request, c Caller) error {
	q := parseQuery(r)
	ref := q.str("ref")
	if err := q.done(); err != nil {
		return err
	}
	body := s.bodyOf(w, r)
	defer body.done()
	img, err := s.svc.ImportImage(r.Context(), c, ref, body)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusCreated, img)
	return nil
}

func (s *Server) removeImage(w http.ResponseWriter, r *http.Request, c Caller) error {
	if err := parseQuery(r).done(); err != nil {
		return err
	}
	return answerNone(w, s.svc.RemoveImage(r.Context(), c, r.PathValue("ref")))
}

func (s *Server) tagImage(w http.ResponseWriter, r *http.Request, c Caller) error {
	if err := parseQuery(r).done(); err != nil {
		return err
	}
	var req api.TagRequest
	if err := readJSON(w, r, &req, false); err != nil {
		return err
	}
	return answerOne(w)(s.svc.TagImage(r.Context(), c, req.Source, r.PathValue("ref")))
}

func (s *Server) commit(w http.ResponseWriter, r *http.Request, c Caller) error {
	if err := parseQuery(r).done(); err != nil {
		return err
	}
	var req api.CommitRequest
	if err := readJSON(w, r, &req, false); err != nil {
		return err
	}
	img, err := s.svc.Commit(r.Context(), c, r.PathValue("ref"), req.Image)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusCreated, img)
	return nil
}

func (s *Server) saveImage(w http.ResponseWriter, r *http.Request, c Caller) error {
	if err := parseQuery(r).done(); err != nil {
		return err
	}
	ctx, cancel := s.untilStop(r.Context())
	defer cancel()
	return stopped(ctx, s.svc.SaveImage(ctx, c, r.PathValue("ref"), s.bodyTo(w, "application/x-tar", false)))
}

func (s *Server) profiles(w http.ResponseWriter, r *http.Request, c Caller) error {
	if err := parseQuery(r).done(); err != nil {
		return err
	}
	return answerList(w)(s.svc.Profiles(r.Context(), c))
}

func (s *Server) profile(w http.ResponseWriter, r *http.Request, c Caller) error {
	if err := parseQuery(r).done(); err != nil {
		return err
	}
	return answerOne(w)(s.svc.Profile(r.Context(), c, r.PathValue("name")))
}

func (s *Server) checkProfile(w http.ResponseWriter, r *http.Request, c Caller) error {
	if err := parseQuery(r).done(); err != nil {
		return err
	}
	body, err := readBody(w, r, maxJSON)
	if err != nil {
		return err
	}
	return answerNone(w, s.svc.CheckProfile(r.Context(), c, body))
}

// auditLog sends lines of JSON, each as it is in the log.
func (s *Server) auditLog(w http.ResponseWriter, r *http.Request, c Caller) error {
	q := parseQuery(r)
	now := time.Now()
	opts := AuditOptions{
		Since: q.since("since", now), Until: q.since("until", now), Kind: q.str("kind"), Action: q.str("action"),
		Agent: q.str("agent"), Sandbox: q.str("sandbox"), Follow: q.flag("follow"), All: q.flag("all"),
	}
	if uid := q.number("caller", -1, 0, 1<<32-1); uid >= 0 {
		u := uint32(uid)
		opts.Caller = &u
	}
	if err := q.done(); err != nil {
		return err
	}
	ctx, cancel := s.untilStop(r.Context())
	defer cancel()
	out := s.bodyTo(w, "application/jsonl", opts.Follow)
	if opts.Follow {
		if err := out.begin(); err != nil {
			return err
		}
	}
	err := s.svc.AuditLog(ctx, c, opts, func(line []byte) error {
		_, err := out.Write(append(slices.Clip(line), '\n'))
		return err
	})
	switch {
	case err == nil && !out.begun:
		return out.begin()
	case opts.Follow && ctx.Err() != nil:
		return nil //nolint:nilerr // the client has gone or the daemon stops: an ordinary end
	}
	return stopped(ctx, err)
}

func (s *Server) auditHead(w http.ResponseWriter, r *http.Request, c Caller) error {
	if err := parseQuery(r).done(); err != nil {
		return err
	}
	return answerOne(w)(s.svc.AuditHead(r.Context(), c))
}

func (s *Server) publicKey(w http.ResponseWriter, r *http.Request, c Caller) error {
	if err := parseQuery(r).done(); err != nil {
		return err
	}
	return answerOne(w)(s.svc.PublicKey(r.Context(), c))
}

func (s *Server) trustBundle(w http.ResponseWriter, r *http.Request, c Caller) error {
	if err := parseQuery(r).done(); err != nil {
		return err
	}
	return answerOne(w)(s.svc.TrustBundle(r.Context(), c))
}

func (s *Server) doctor(w http.ResponseWriter, r *http.Request, c Caller) error {
	q := parseQuery(r)
	user, dir := q.str("user"), q.str("dir")
	if dir != "" {
		q.path("dir")
	}
	if err := q.done(); err != nil {
		return err
	}
	return answerOne(w)(s.svc.Doctor(r.Context(), c, user, dir))
}

func (s *Server) version(w http.ResponseWriter, r *http.Request, _ Caller) error {
	if err := parseQuery(r).done(); err != nil {
		return err
	}
	return answerOne(w)(s.svc.Version(r.Context()), nil)
}

func (s *Server) openapi(w http.ResponseWriter, r *http.Request, _ Caller) error {
	if err := parseQuery(r).done(); err != nil {
		return err
	}
	_, err := s.bodyTo(w, "application/yaml", false).Write([]byte(api.OpenAPI()))
	return err
}

// events sends server-sent events, see
// https://html.spec.whatwg.org/multipage/server-sent-events.html. An event's
// id is its sequence number, so a client that connects again with
// Last-Event-ID gets what it missed. The stream ends when the daemon stops.
func (s *Server) events(w http.ResponseWriter, r *http.Request, c Caller) error {
	q := parseQuery(r)
	after := q.sequence("after", q.str("after"))
	if last := r.Header.Get("Last-Event-ID"); last != "" {
		after = q.sequence("Last-Event-ID", last)
	}
	if err := q.done(); err != nil {
		return err
	}
	out := s.bodyTo(w, "text/event-stream", true)
	w.Header().Set("Cache-Control", "no-store")
	if err := out.begin(); err != nil {
		return err
	}
	ctx, cancel := s.untilStop(r.Context())
	defer cancel()
	err := s.svc.Events(ctx, c, after, func(ev api.Event) error {
		b, err := json.Marshal(ev)
		if err != nil {
			return fmt.Errorf("encode event %d: %w", ev.Seq, err)
		}
		_, err = fmt.Fprintf(out, "id: %d\nevent: %s\ndata: %s\n\n", ev.Seq, ev.Type, b)
		return err
	})
	if ctx.Err() != nil {
		return nil //nolint:nilerr // the client has gone or the daemon stops: an ordinary end
	}
	return err
}

// logs sends a body of stream frames. An Error frame ends one that is not
// complete.
func (s *Server) logs(w http.ResponseWriter, r *http.Request, c Caller) error {
	q := parseQuery(r)
	opts := LogOptions{Follow: q.flag("follow"), Tail: int(q.number("tail", -1, 0, 1<<31-1)), Since: q.since("since", time.Now()), Exec: q.str("exec")}
	if err := q.done(); err != nil {
		return err
	}
	ctx, cancel := s.untilStop(r.Context())
	defer cancel()
	out := s.bodyTo(w, stream.ContentType, opts.Follow)
	frames := stream.NewWriter(out)
	whose := MainExec
	err := s.svc.Logs(ctx, c, r.PathValue("ref"), opts, func(o Output) error {
		if opts.Exec == AllExecs && o.Exec != whose {
			if err := frames.Write(stream.Source, []byte(o.Exec)); err != nil {
				return err
			}
			whose = o.Exec
		}
		t := stream.Stderr // also what is said of output that is not kept
		if o.Stdout {
			t = stream.Stdout
		}
		_, err := frames.Stream(t).Write(o.Data)
		return err
	})
	switch {
	case err == nil && out.begun:
		return nil
	case err == nil:
		return out.begin()
	case !out.begun:
		return stopped(ctx, err)
	default:
		return s.errorFrame(ctx, frames, stopped(ctx, err))
	}
}

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

func (s *Server) agents(w http.ResponseWriter, r *http.Request, c Caller) error {
	if err := parseQuery(r).done(); err != nil {
		return err
	}
	return answerList(w)(s.svc.Agents(r.Context(), c))
}

func (s *Server) agent(w http.ResponseWriter, r *http.Request, c Caller) error {
	if err := parseQuery(r).done(); err != nil {
		return err
	}
	return answerOne(w)(s.svc.Agent(r.Context(), c, r.PathValue("ref")))
}

func (s *Server) approvals(w http.ResponseWriter, r *http.Request, c Caller) error {
	q := parseQuery(r)
	ref, all := q.str("sandbox"), q.flag("all")
	if err := q.done(); err != nil {
		return err
	}
	list, err := s.svc.Approvals(r.Context(), c, ref, all)
	return answerList(w)(list, err)
}

func (s *Server) decideApproval(w http.ResponseWriter, r *http.Request, c Caller) error {
	if err := parseQuery(r).done(); err != nil {
		return err
	}
	var d api.ApprovalDecision
	if err := readJSON(w, r, &d, false); err != nil {
		return err
	}
	if err := d.Valid(); err != nil {
		return err
	}
	return answerOne(w)(s.svc.DecideApproval(r.Context(), c, r.PathValue("id"), d))
}

func (s *Server) forgetEgress(w http.ResponseWriter, r *http.Request, c Caller) error {
	if err := parseQuery(r).done(); err != nil {
		return err
	}
	var req api.ForgetRequest
	if err := readJSON(w, r, &req, false); err != nil {
		return err
	}
	return answerOne(w)(s.svc.ForgetEgress(r.Context(), c, r.PathValue("ref"), req.Rules))
}

func (s *Server) revokeAgent(w http.ResponseWriter, r *http.Request, c Caller) error {
	if err := parseQuery(r).done(); err != nil {
		return err
	}
	return answerOne(w)(s.svc.RevokeAgent(r.Context(), c, r.PathValue("ref")))
}

func (s *Server) restoreAgent(w http.ResponseWriter, r *http.Request, c Caller) error {
	if err := parseQuery(r).done(); err != nil {
		return err
	}
	return answerOne(w)(s.svc.RestoreAgent(r.Context(), c, r.PathValue("ref")))
}

func (s *Server) expireAgent(w http.ResponseWriter, r *http.Request, c Caller) error {
	var req api.ExpireRequest
	if err := parseQuery(r).done(); err != nil {
		return err
	}
	if err := readJSON(w, r, &req, false); err != nil {
		return err
	}
	if req.Never == !req.At.IsZero() {
		return api.Errorf(api.CodeInvalid, "the request is not valid: want at, a time, or never: one of the two")
	}
	return answerOne(w)(s.svc.ExpireAgent(r.Context(), c, r.PathValue("ref"), req.At))
}
