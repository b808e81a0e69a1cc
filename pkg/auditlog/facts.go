package auditlog

import (
	"context"
	"errors"
	"log/slog"
	"strconv"
	"strings"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/audit"
	"github.com/creel-sandbox/creel/pkg/events"
)

// eventOp begins the op of a fact that is an event.
const eventOp = "event-"

// recorded are the events that are facts of their own: what nobody asked for,
// and how things that were asked for ended.
var recorded = map[string]bool{
	"sandbox.stopped": true, "sandbox.failed": true, "sandbox.adopted": true, "sandbox.oom": true,
	"sandbox.paused": true, "sandbox.resumed": true, "exec.ended": true, "evidence.drift": true, "evidence.restored": true,
	"sandbox.removed":    true, // by retention as well, with its evidence and its output
	"volume.created":     true, // by a launch as well, which wants a home
	"egress.allowed":     true, // each destination of a sandbox once
	"egress.denied":      true,
	"secret.used":        true, // by a sandbox for each destination once
	"approval.requested": true, // what a sandbox was refused and somebody may let, once
	"approval.used":      true, // what was let once
	"approval.expired":   true, // what nobody answered
	"identity.issued":    true, // to a sandbox, the first time
	events.TypeDropped:   true,
}

// Fact records what nobody asked for.
func (r *Recorder) Fact(action string, detail map[string]string) {
	r.log.Later(audit.Entry{Kind: audit.Fact, Action: action, Detail: detail})
}

// How many findings of one report are recorded: of one caller's agents so few
// that it cannot fill the report and hide another's, and together fewer than
// may wait for a log that is down.
const (
	maxFindings      = 1000
	maxFindingsOfOne = 100
)

// Report records what a report of agents found, and a last record with how
// much that was. A caller reads what is of its own agents.
func (r *Recorder) Report(agents int, found []api.Finding) {
	kept, of := 0, map[uint32]int{}
	for _, f := range found {
		if kept == maxFindings || of[f.UID] == maxFindingsOfOne {
			continue
		}
		kept++
		of[f.UID]++
		r.log.Later(audit.Entry{
			Kind: audit.Fact, Action: "agent.finding", Agent: f.Agent, Object: f.ID,
			Detail: map[string]string{callerField: strconv.FormatUint(uint64(f.UID), 10), "kind": f.Kind, "what": f.What, "fix": f.Fix},
		})
	}
	r.Fact("agent.report", map[string]string{
		"agents": strconv.Itoa(agents), "findings": strconv.Itoa(len(found)), "left_out": strconv.Itoa(len(found) - kept),
	})
}

// look is how many of the last records are searched for the last event.
const look = 20_000

// LastEvent is the number of the last event on the log, so that Follow goes on
// from there after a crash; last where none is found.
func (r *Recorder) LastEvent(ctx context.Context, last uint64) (uint64, error) {
	from := uint64(0)
	if head, err := audit.Parse(r.log.HeadLine()); err == nil && head.Seq > look {
		from = head.Seq - look
	}
	found := last
	err := r.log.Read(ctx, audit.Range{After: from}, func(line []byte) error {
		const mark = `"op":"` + eventOp
		_, rest, ok := strings.Cut(string(line), mark)
		if !ok {
			return nil
		}
		digits, _, _ := strings.Cut(rest, `"`)
		if n, err := strconv.ParseUint(digits, 10, 64); err == nil && n <= last {
			found = n
		}
		return nil
	})
	return found, err
}

// Follow records events after a number until ctx ends or the bus does.
func (r *Recorder) Follow(ctx context.Context, bus *events.Bus, after uint64) {
	err := bus.Follow(ctx, after, func(e api.Event) error {
		if recorded[e.Type] {
			r.log.Later(fact(e))
		}
		return nil
	})
	if err != nil && !errors.Is(err, events.ErrClosed) && ctx.Err() == nil {
		r.slog.ErrorContext(ctx, "events are not recorded any more", slog.Any("error", err))
	}
}

func fact(e api.Event) audit.Entry {
	a := audit.Entry{Kind: audit.Fact, Time: e.Time, Action: e.Type, Op: eventOp + strconv.FormatUint(e.Seq, 10), Sandbox: e.Sandbox, Object: e.Name}
	for k, v := range e.Fields {
		switch k {
		case "exit_code":
			if n, err := strconv.Atoi(v); err == nil {
				a.Result = result(a.Result)
				a.Result.Exit = &n
			}
		case "reason":
			a.Result = result(a.Result)
			a.Result.Reason = v
		case "agent":
			a.Agent = v
		case "error": // of the host, and for root
		default:
			a.Detail = with(a.Detail, k, v)
		}
	}
	return a
}

func result(r *audit.Result) *audit.Result {
	if r == nil {
		r = &audit.Result{Code: "ok"}
	}
	return r
}
