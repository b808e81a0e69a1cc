package launcher

import (
	"context"
	"io"
	"log/slog"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/peer"
)

// keptCommand is how many bytes of an exec's command are kept.
const keptCommand = 4 << 10

// newRecord is what is kept of an exec from its start.
func newRecord(s *session, req api.ExecRequest) api.Exec {
	e := api.Exec{ID: s.id, TTY: req.TTY, IO: "framed", Labels: maps.Clone(req.Labels), Started: s.began}
	if s.fds {
		e.IO = "fds"
	}
	e.Command, e.Cut = firstBytes(req.Command, keptCommand)
	return e
}

// firstBytes is the arguments up to most bytes, of which each has one more
// than its text, and whether something was left out. Text is cut between
// characters.
func firstBytes(args []string, most int) (_ []string, cut bool) {
	out := []string{}
	for _, arg := range args {
		if len(arg)+1 <= most {
			out, most = append(out, arg), most-len(arg)-1
			continue
		}
		end := 0
		for i := range arg { // the starts of its characters
			if i >= most {
				break
			}
			end = i
		}
		if end > 0 {
			out = append(out, arg[:end])
		}
		return out, true
	}
	return out, false
}

// counted counts the output that passes the daemon.
type counted struct {
	io.Reader
	n *atomic.Int64
}

func (c counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n.Add(int64(max(n, 0)))
	return n, err
}

// view is the exec as it is now.
func (s *session) view() api.Exec {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.record
	if !s.fds {
		n := s.output.Load()
		e.OutputBytes = &n
	}
	return e
}

// settleLocked puts the result into the record.
func (s *session) settleLocked(r api.ExecResult) {
	e := &s.record
	e.Ended, e.Signal, e.Reason, e.LimitsHit, e.Error = time.Now(), r.Signal, r.Reason, r.LimitsHit, r.Error
	e.ExitCode = &r.ExitCode
}

// keep commits the exec as it is now. From its end until that is on disk the
// sandbox holds on to it, so that a list never shows it running again.
func (s *session) keep() {
	s.keeping.Lock()
	defer s.keeping.Unlock()
	last := s.settled() // before the view, which then has everything
	e := s.view()
	n, err, now := s.key, error(nil), progressOf(e)
	if n == 0 || now != s.wrote {
		n, err = s.sb.l.Store.PutExec(s.sb.id, n, e)
	}
	switch {
	case err == nil:
		s.key, s.wrote = n, now
	case api.CodeOf(err) != api.CodeNotFound: // else its sandbox was removed meanwhile
		s.sb.l.log.Warn("exec not kept", slog.String("sandbox", s.sb.id), slog.String("exec", s.id), slog.Any("error", err))
	}
	if last {
		s.sb.mu.Lock()
		delete(s.sb.unkept, s.id)
		s.sb.mu.Unlock()
	}
}

// progress is all that changes of a record.
type progress struct {
	ended  bool
	output int64
}

func progressOf(e api.Exec) progress {
	p := progress{ended: !e.Ended.IsZero()}
	if e.OutputBytes != nil {
		p.output = *e.OutputBytes
	}
	return p
}

// settled says that nothing of the record changes any more: the command has
// ended, and what it wrote has been counted.
func (s *session) settled() bool {
	select {
	case <-s.done:
	default:
		return false
	}
	if s.fds {
		return true
	}
	select {
	case <-s.closed:
		return true
	default:
		return false
	}
}

// Execs are the execs of a sandbox that run or are kept, by their start.
func (l *Launcher) Execs(_ context.Context, c peer.Cred, ref string, labels map[string]string) ([]api.Exec, error) {
	sb, err := l.find(c, ref)
	if err != nil {
		return nil, err
	}
	// Memory first: what ends between the two reads is then still in it.
	now := map[string]api.Exec{}
	sb.mu.Lock()
	for _, s := range sb.execs {
		if s.ready && !s.internal {
			now[s.id] = s.view()
		}
	}
	for _, s := range sb.unkept {
		now[s.id] = s.view()
	}
	sb.mu.Unlock()
	kept, err := l.Store.Execs(sb.id)
	if err != nil {
		return nil, err
	}
	all := []api.Exec{}
	for _, e := range kept {
		if _, newer := now[e.ID]; !newer {
			all = append(all, e)
		}
	}
	all = slices.AppendSeq(all, maps.Values(now))
	all = slices.DeleteFunc(all, func(e api.Exec) bool { return !hasLabels(e.Labels, labels) })
	for i := range all {
		if all[i].Command == nil {
			all[i].Command = []string{} // written by a creel that did not keep it
		}
	}
	slices.SortStableFunc(all, func(a, b api.Exec) int { return a.Started.Compare(b.Started) })
	return all, nil
}
