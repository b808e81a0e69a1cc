// Package replay keeps the answers to requests that may come again.
//
// A client that has lost an answer sends its request again under the same key
// (header Idempotency-Key, draft-ietf-httpapi-idempotency-key-header). The
// request is done once; whoever repeats it gets the first answer, and never a
// second run. What is kept is in memory, bounded for each user and for all; an
// answer that has no room is forgotten, but not that its request was done.
package replay

import (
	"context"
	"crypto/sha256"
	"maps"
	"net/http"
	"sync"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
)

// Header says that an answer was given before.
const Header = "Creel-Replayed"

// writeTime is how long a client may take to read an answer that comes again.
const writeTime = 30 * time.Second

// Limits bound what is kept.
type Limits struct {
	Life  time.Duration // from the answer on, for which a key stands for its request
	Keys  int           // of one user at one time
	Bytes int           // of the answers of one user; all users may have four times as many
}

// DefaultLimits are those of the daemon.
func DefaultLimits() Limits {
	return Limits{Life: 10 * time.Minute, Keys: 1024, Bytes: 8 << 20}
}

// Request is what a key stands for.
type Request struct {
	UID  uint32
	Path string            // keys of different paths have nothing to do with each other
	Key  string            // without spaces
	Body [sha256.Size]byte // of query and body
}

// Keys are the keys in use. Make one with New.
type Keys struct {
	limits Limits
	now    func() time.Time

	mu    sync.Mutex
	users map[uint32]*user
	bytes int
}

// name is a path and a key, in a form whose size is known.
type name [sha256.Size]byte

func (r Request) name() name { return sha256.Sum256([]byte(r.Key + " " + r.Path)) } // a key has no space

type user struct {
	entries map[name]*entry
	bytes   int
}

// entry is one request. Its fields are guarded by Keys.mu, but for done.
type entry struct {
	body  [sha256.Size]byte
	done  chan struct{} // closed when it has ended
	until time.Time     // zero while it is under way
	// What was answered; nothing if that is not known or has no room.
	status      int
	contentType string
	text        []byte
}

// New makes an empty set.
func New(l Limits) *Keys {
	return &Keys{limits: l, now: time.Now, users: map[uint32]*user{}}
}

// Serve answers a request once: with do, or as do answered before. While do is
// under way, others with the key wait. An error of do's is not kept: the key
// is free again if fresh says that nothing was done, else a repeat is refused.
//
// The errors are do's, and of class api.CodeConflict (another request has the
// key, or what was answered is not known) and api.CodeExhausted (too many).
func (k *Keys) Serve(ctx context.Context, w http.ResponseWriter, r Request, fresh func(error) bool, do func(http.ResponseWriter) error) error {
	e, mine, err := k.take(ctx, r)
	if err != nil {
		return err
	}
	if !mine {
		return k.again(w, r, e)
	}
	rec := &recorder{ResponseWriter: w, keys: k, user: r.UID, entry: e, status: http.StatusOK}
	ended := false
	defer func() {
		if !ended { // do has panicked: nobody knows what it did
			rec.lose()
			k.end(e, 0, "")
		}
	}()
	err = do(rec)
	ended = true
	switch {
	case err == nil && rec.lost:
		k.end(e, 0, "")
	case err == nil:
		k.end(e, rec.status, w.Header().Get("Content-Type"))
	default:
		rec.lose()
		if fresh(err) {
			k.drop(r, e)
		} else {
			k.end(e, 0, "")
		}
		return err
	}
	return rec.failed
}

// take finds the key's request when that has ended, or makes it the caller's.
func (k *Keys) take(ctx context.Context, r Request) (e *entry, mine bool, err error) {
	for {
		k.mu.Lock()
		k.forget()
		u := k.users[r.UID]
		if u == nil {
			u = &user{entries: map[name]*entry{}}
			k.users[r.UID] = u
		}
		e = u.entries[r.name()]
		if e == nil {
			defer k.mu.Unlock()
			if len(u.entries) >= k.limits.Keys {
				return nil, false, api.Errorf(api.CodeExhausted, "%d keys of this user are in use, the most there may be", k.limits.Keys).
					WithHint("a key is in use for " + k.limits.Life.String())
			}
			e = &entry{body: r.Body, done: make(chan struct{})}
			u.entries[r.name()] = e
			return e, true, nil
		}
		same, ended := e.body == r.Body, !e.until.IsZero()
		k.mu.Unlock()
		if !same {
			e := api.Errorf(api.CodeConflict, "the key was given to another request").WithHint("use a new key for each request, and the same only to repeat it")
			e.Problems = []api.Problem{{Field: "Idempotency-Key", Value: r.Key, Want: "a key that is not in use, or the request that it was used for"}}
			return nil, false, e
		}
		if ended {
			return e, false, nil
		}
		select {
		case <-e.done: // and is there, or nothing was done
		case <-ctx.Done():
			return nil, false, context.Cause(ctx)
		}
	}
}

// again gives an answer once more.
func (k *Keys) again(w http.ResponseWriter, r Request, e *entry) error {
	// An entry that has ended is not written any more.
	if e.status == 0 {
		err := api.Errorf(api.CodeConflict, "this request was done before, and its answer is not known any more").
			WithHint("look at what it did; use a new key to have it done again")
		err.Problems = []api.Problem{{Field: "Idempotency-Key", Value: r.Key, Want: "a new key"}}
		return err
	}
	w.Header().Set(Header, "true")
	if e.contentType != "" {
		w.Header().Set("Content-Type", e.contentType)
	}
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTime))
	w.WriteHeader(e.status)
	if len(e.text) == 0 { // 204 may have none
		return nil
	}
	_, err := w.Write(e.text)
	return err
}

// end keeps what was answered; status 0 is that nobody knows.
func (k *Keys) end(e *entry, status int, contentType string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	e.status, e.contentType, e.until = status, contentType, k.now().Add(k.limits.Life)
	close(e.done)
}

// drop sets a key free: its request did nothing.
func (k *Keys) drop(r Request, e *entry) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.users[r.UID].entries, r.name())
	close(e.done)
}

// forget removes what is over. The caller holds k.mu.
func (k *Keys) forget() {
	now := k.now()
	for uid, u := range k.users {
		maps.DeleteFunc(u.entries, func(_ name, e *entry) bool {
			over := !e.until.IsZero() && !now.Before(e.until)
			if over {
				k.give(u, len(e.text))
			}
			return over
		})
		if len(u.entries) == 0 {
			delete(k.users, uid)
		}
	}
}

func (k *Keys) give(u *user, n int) { u.bytes, k.bytes = u.bytes-n, k.bytes-n }

// recorder passes an answer on, and keeps it as long as there is room. What
// the client does not take is kept all the same: it is what is asked for again.
type recorder struct {
	http.ResponseWriter
	keys   *Keys
	user   uint32
	entry  *entry
	status int
	lost   bool  // there was no room
	failed error // of the client's connection
}

func (r *recorder) WriteHeader(status int) {
	r.status = status
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(p []byte) (int, error) {
	r.keep(p)
	if r.failed == nil {
		_, r.failed = r.ResponseWriter.Write(p)
	}
	return len(p), nil
}

// Unwrap is for http.ResponseController.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

func (r *recorder) keep(p []byte) {
	k := r.keys
	k.mu.Lock()
	u := k.users[r.user] // there while the entry is under way
	room := !r.lost && u.bytes+len(p) <= k.limits.Bytes && k.bytes+len(p) <= 4*k.limits.Bytes
	if room {
		k.give(u, -len(p))
		r.entry.text = append(r.entry.text, p...)
	}
	k.mu.Unlock()
	if !room {
		r.lose()
	}
}

// lose gives up what was kept so far.
func (r *recorder) lose() {
	k := r.keys
	k.mu.Lock()
	defer k.mu.Unlock()
	k.give(k.users[r.user], len(r.entry.text))
	r.entry.text, r.lost = nil, true
}
