package serve

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/creel-sandbox/creel/pkg/egress"
	"github.com/creel-sandbox/creel/pkg/egress/link"
	"github.com/creel-sandbox/creel/pkg/egress/nameserver"
	"github.com/creel-sandbox/creel/pkg/egress/proxy"
	"github.com/creel-sandbox/creel/pkg/egress/web"
)

// Bounds of what is told.
const (
	maxKept = 4096 // records that wait for creeld
	maxText = 512  // bytes of one of their strings
	maxRule = 8    // rules of one
)

// records are those that were not told yet. When there are too many the oldest
// go, and how many is told.
type records struct {
	mu   sync.Mutex
	kept []link.Record
	lost uint64
	more chan struct{} // has one while there may be some
}

func newRecords() *records { return &records{more: make(chan struct{}, 1)} }

func (r *records) put(rec link.Record) {
	r.mu.Lock()
	if len(r.kept) >= maxKept {
		r.kept = r.kept[1:]
		r.lost++
	}
	r.kept = append(r.kept, rec)
	r.mu.Unlock()
	select {
	case r.more <- struct{}{}:
	default:
	}
}

// take takes the next one.
func (r *records) take() (link.Record, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.lost > 0 {
		n := r.lost
		r.lost = 0
		return link.Record{Time: time.Now().UnixNano(), Kind: link.KindLost, Lost: n}, true
	}
	if len(r.kept) == 0 {
		r.kept = nil
		return link.Record{}, false
	}
	rec := r.kept[0]
	r.kept = r.kept[1:]
	return rec, true
}

// send tells them to c, until it is closed at the other end.
func (r *records) send(ctx context.Context, c *link.Conn) {
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = c.Net().Read(make([]byte, 1)) // nothing comes but the end
	}()
	defer func() { _ = c.Close(); <-gone }()
	for {
		rec, ok := r.take()
		if ok {
			if c.Send(rec) != nil {
				r.put(rec) // for whoever asks next
				return
			}
			continue
		}
		select {
		case <-r.more:
		case <-gone:
			return
		case <-ctx.Done():
			return
		}
	}
}

func clip(s string) string {
	if len(s) > maxText {
		return s[:maxText] + "…"
	}
	return s
}

// refusal fills in why something was not let through.
func refusal(rec *link.Record, err error) {
	rec.Allowed = err == nil
	if err == nil {
		return
	}
	rec.Error = clip(err.Error())
	if no, ok := errors.AsType[*egress.RefusedError](err); ok {
		rec.By = clip(no.By)
	}
}

func rules(in []string) []string {
	var out []string
	for _, r := range in[:min(len(in), maxRule)] {
		out = append(out, clip(r))
	}
	return out
}

func (r *records) name(id string, d nameserver.Decision) {
	rec := link.Record{Time: d.Time.UnixNano(), ID: id, Kind: link.KindName, To: string(d.Name), Rules: rules(d.Rules)}
	if refusal(&rec, d.Err); d.Err == nil {
		rec.Name = d.Name
	}
	r.put(rec)
}

func (r *records) connection(id string, o proxy.Outcome) {
	rec := link.Record{
		Time: o.Began.UnixNano(), ID: id, Kind: link.KindConnection, To: o.To.String(), Rules: rules(o.Rules),
		Out: o.Moved.Out, In: o.Moved.In, Took: int64(time.Since(o.Began)),
	}
	refusal(&rec, o.Err)
	if o.Dialled.IsValid() {
		rec.Dialled = o.Dialled.String()
		rec.Allowed = true // and what there is of an error broke it
	}
	r.put(rec)
}

func (r *records) request(id string, d web.Decision) {
	rec := link.Record{
		Time: d.Time.UnixNano(), ID: id, Kind: link.KindRequest, To: d.To.String(), Rules: rules(d.Rules),
		Scheme: d.Scheme, Method: clip(d.Method), Path: clip(d.Path), Secrets: d.Secrets,
	}
	refusal(&rec, d.Err)
	r.put(rec)
}
