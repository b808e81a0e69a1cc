// Package auditlog puts what callers do on the audit log: it is the one place
// that every action of the API passes.
//
// Recorder.Wrap is a server.Service around another. An action that begins new
// work is refused when it cannot be recorded first; one that ends something
// (stop, kill, remove) is recorded before if that is possible, and done in any
// case. A spawn's intent is the launcher's to commit, right before its first
// effect and with what was decided: give it Recorder.Spawning.
//
// Values of environment variables, standard input and the content of files are
// never recorded.
package auditlog

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/audit"
	"github.com/creel-sandbox/creel/pkg/peer"
	"github.com/creel-sandbox/creel/pkg/server"
)

// Log is the audit log. *audit.Log is one.
type Log interface {
	Commit(ctx context.Context, e audit.Entry) error
	Keep(ctx context.Context, e audit.Entry) error
	Later(e audit.Entry)
	Ready(ctx context.Context) error
	Read(ctx context.Context, r audit.Range, fn func(line []byte) error) error
	HeadLine() []byte
}

var _ Log = (*audit.Log)(nil)

// How commands are recorded.
const (
	// Full is their arguments, bounded.
	Full = "full"
	// Digest is the SHA-256 of their arguments, each ended by a NUL.
	Digest = "digest"
)

// Recorder records. It is safe for concurrent use.
type Recorder struct {
	log      Log
	slog     *slog.Logger
	commands string
	ceiling  func(peer.Cred) string
	hide     func(uid uint32, text string) string

	mu      sync.Mutex
	readers map[uint32]int
}

// New makes a recorder. commands is Full or Digest; ceiling names that of a
// caller, for what is recorded of a decision.
func New(log Log, commands string, ceiling func(peer.Cred) string, logger *slog.Logger) *Recorder {
	return &Recorder{log: log, slog: logger, commands: commands, ceiling: ceiling, readers: map[uint32]int{}}
}

// Hide has hide take the secrets that a caller set out of the commands that are
// recorded of it. It is to be called before there are any.
func (r *Recorder) Hide(hide func(uid uint32, text string) string) { r.hide = hide }

// keepTime bounds how long an action that goes on anyway waits for its record.
const keepTime = 2 * time.Second

// refused is what a caller gets when new work cannot be recorded.
func refused(err error) error {
	var down *audit.DownError
	switch {
	case errors.As(err, &down) && down.Full:
		return api.Errorf(api.CodeUnavailable, "the audit log's disk is full, and what cannot be recorded is not done").
			WithHint("the operator makes room there; stop, kill and remove work meanwhile, and creel goes on by itself")
	case errors.As(err, &down), errors.Is(err, audit.ErrClosed):
		return api.Errorf(api.CodeUnavailable, "the audit log cannot be written, and what cannot be recorded is not done").
			WithHint("creeld's log says why; stop, kill and remove work meanwhile, and creel goes on by itself")
	}
	return err
}

// action is one request on its way.
type action struct {
	r *Recorder
	audit.Entry
	begun bool // an intent is recorded, or was tried to be
}

type actionKey struct{}

// begin starts the record of a request.
func (r *Recorder) begin(ctx context.Context, c peer.Cred, name, sandbox, object string) *action {
	return &action{r: r, Entry: audit.Entry{
		Action: name, Op: server.RequestID(ctx), Who: who(c), Sandbox: sandbox, Object: object,
	}}
}

// commit records the intent, durably, or refuses.
func (a *action) commit(ctx context.Context) error {
	e := a.Entry
	e.Kind = audit.Intent
	if err := a.r.log.Commit(ctx, e); err != nil {
		return server.Undone(refused(err))
	}
	a.begun = true
	return nil
}

// queue records the intent within audit.Delay, or refuses.
func (a *action) queue(ctx context.Context) error {
	if err := a.r.log.Ready(ctx); err != nil {
		return server.Undone(refused(err))
	}
	e := a.Entry
	e.Kind = audit.Intent
	a.r.log.Later(e)
	a.begun = true
	return nil
}

// keep records the intent of what is done in any case.
func (a *action) keep(ctx context.Context) {
	e := a.Entry
	e.Kind = audit.Intent
	wait, cancel := context.WithTimeout(context.WithoutCancel(ctx), keepTime)
	defer cancel()
	if err := a.r.log.Keep(wait, e); err != nil {
		a.r.slog.ErrorContext(ctx, "done without a record; it is written when the audit log is back", slog.String("action", e.Action), slog.Any("error", err))
	}
	a.begun = true
}

// end records the outcome. What was not begun was refused: then what was asked
// is said here.
func (a *action) end(err error) {
	e := a.Entry
	e.Kind, e.Time = audit.Outcome, time.Now()
	if a.begun {
		e.Asked, e.Command = nil, nil
	} else {
		shorten(&e)
	}
	if e.Result == nil {
		e.Result = &audit.Result{}
	}
	if e.Result.Code = "ok"; err != nil {
		code := api.CodeOf(err)
		e.Result.Code = string(code)
		if code != api.CodeInternal { // that one's text is of the host; creeld's log has it under Op
			e.Result.Message = err.Error()
		}
	}
	a.r.log.Later(e)
}

// maxRefused is how much of each thing that was asked is recorded of a request
// that is refused: who sends nothing else must not push others' records out.
const maxRefused = 100

func shorten(e *audit.Entry) {
	short := make(map[string]string, len(e.Asked))
	for k, v := range e.Asked {
		short[k] = v[:min(len(v), maxRefused)]
	}
	e.Asked = short
	if len(e.Command) > 1 {
		e.Command = e.Command[:1]
	}
}

// done is end where there is nothing more to say.
func (a *action) done(err error) error { a.end(err); return err }
