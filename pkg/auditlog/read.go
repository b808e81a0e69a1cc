package auditlog

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/audit"
	"github.com/creel-sandbox/creel/pkg/peer"
	"github.com/creel-sandbox/creel/pkg/server"
)

// maxReaders is how many reads of the log one uid may have at once: each may
// go through all of it.
const maxReaders = 4

// kinds are those that can be asked for.
var kinds = []audit.Kind{audit.Intent, audit.Outcome, audit.Fact, audit.Begin, audit.Drop, audit.Seal}

// AuditLog implements server.Service.
func (s *service) AuditLog(ctx context.Context, c peer.Cred, o server.AuditOptions, emit func(line []byte) error) error {
	if o.Kind != "" && !slices.Contains(kinds, audit.Kind(o.Kind)) {
		e := api.Errorf(api.CodeInvalid, "there is no kind %q", o.Kind)
		e.Problems = []api.Problem{{Field: "kind", Value: o.Kind, Want: fmt.Sprint(kinds)}}
		return e
	}
	if o.All && c.UID != 0 {
		return api.Errorf(api.CodeDenied, "the whole audit log is root's: it has what other callers did")
	}
	if c.UID != 0 {
		if !s.r.reader(c.UID, 1) {
			return api.Errorf(api.CodeExhausted, "too many reads of the audit log by this user: %d", maxReaders)
		}
		defer s.r.reader(c.UID, -1)
		if o.Caller != nil && *o.Caller != c.UID {
			return nil // nobody else's is there
		}
		o.Caller = &c.UID
	}
	return s.r.log.Read(ctx, audit.Range{Since: o.Since, Until: o.Until, Follow: o.Follow}, func(line []byte) error {
		if o.All {
			return emit(line)
		}
		if o.Caller != nil && !mentions(line, *o.Caller) {
			return nil
		}
		rec, err := audit.Parse(line)
		if err != nil {
			return fmt.Errorf("the audit log is damaged; creel audit verify says where: %w", err)
		}
		if !wanted(rec, o) {
			return nil
		}
		if c.UID != 0 {
			line = ownView(line)
		}
		return emit(line)
	})
}

func (r *Recorder) reader(uid uint32, n int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n > 0 && r.readers[uid] >= maxReaders {
		return false
	}
	if r.readers[uid] += n; r.readers[uid] == 0 {
		delete(r.readers, uid)
	}
	return true
}

// callerField is the field of an event that says whose it is.
const callerField = "caller_uid"

// mentions says cheaply whether a line may be of a caller.
func mentions(line []byte, uid uint32) bool {
	return bytes.Contains(line, fmt.Appendf(nil, `"uid":%d,`, uid)) || bytes.Contains(line, fmt.Appendf(nil, `"caller_uid":"%d"`, uid))
}

func wanted(r *audit.Record, o server.AuditOptions) bool {
	switch {
	case r.Kind == audit.Head,
		o.Kind != "" && string(r.Kind) != o.Kind,
		o.Action != "" && r.Action != o.Action,
		o.Agent != "" && r.Agent != o.Agent,
		o.Sandbox != "" && r.Sandbox != o.Sandbox:
		return false
	case o.Caller == nil:
		return true
	case r.Who != nil:
		return r.Who.UID == *o.Caller
	}
	return r.Kind == audit.Fact && r.Detail[callerField] == fmt.Sprint(*o.Caller)
}

// ownView is a line without its number and the hash of the one before, which
// say how much others do.
func ownView(line []byte) []byte {
	t, k := bytes.Index(line, []byte(`"time":`)), bytes.Index(line, []byte(`"kind":`))
	p := bytes.Index(line, []byte(`"prev":`))
	if t < 0 || p < t || k < p {
		return []byte("{}") // no line of the log's
	}
	return slices.Concat([]byte("{"), line[t:p], line[k:])
}

// AuditHead implements server.Service.
func (s *service) AuditHead(_ context.Context, c peer.Cred) (*api.AuditHead, error) {
	if c.UID != 0 {
		return nil, api.Errorf(api.CodeDenied, "the audit log's head is root's: it says how much all callers do")
	}
	line := s.r.log.HeadLine()
	rec, err := audit.Parse(line)
	if err != nil {
		return nil, api.Errorf(api.CodeUnavailable, "the audit log has no head yet").WithHint("creeld's log says why it cannot be written")
	}
	return &api.AuditHead{Seq: rec.Seq, Line: string(line)}, nil
}
