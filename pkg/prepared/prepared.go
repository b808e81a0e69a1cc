// Package prepared keeps commands that are to be run later, once each.
//
// A client that has another program start a command, such as a gateway whose
// broker runs an argument vector for it, gives the command and its environment
// to the daemon first. The argument vector has only an id then: what it says is
// told to nobody who reads /proc/PID/cmdline or a process's environment.
// An id is of one user's, is good for one run, and expires.
package prepared

import (
	"crypto/rand"
	"maps"
	"sync"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
)

// Limits bound what is kept.
type Limits struct {
	Life  time.Duration // from the preparation on
	Count int           // of one user at one time
	Bytes int           // of the requests of one user; all users may have four times as many
}

// DefaultLimits are those of the daemon.
func DefaultLimits() Limits {
	return Limits{Life: 2 * time.Minute, Count: 256, Bytes: 8 << 20}
}

// Exec is a command and where it is to run.
type Exec struct {
	Sandbox string // its id
	Request api.ExecRequest
}

// Execs are the commands that wait. Make one with New.
type Execs struct {
	limits Limits
	now    func() time.Time

	mu    sync.Mutex
	byID  map[string]entry
	count map[uint32]int
	bytes map[uint32]int
	all   int // bytes
}

type entry struct {
	Exec
	uid   uint32
	until time.Time
	bytes int
}

// New makes an empty set.
func New(l Limits) *Execs {
	return &Execs{limits: l, now: time.Now, byID: map[string]entry{}, count: map[uint32]int{}, bytes: map[uint32]int{}}
}

// Put keeps e for a user; size is the bytes of its request. The id is 128 bits
// that cannot be guessed. The error is of class resource_exhausted.
func (x *Execs) Put(uid uint32, e Exec, size int) (api.PreparedExec, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.expire()
	if x.count[uid] >= x.limits.Count || x.bytes[uid]+size > x.limits.Bytes || x.all+size > 4*x.limits.Bytes {
		return api.PreparedExec{}, api.Errorf(api.CodeExhausted, "too many commands are prepared that nobody has run").
			WithHint("run or release them; each expires after " + x.limits.Life.String())
	}
	id := rand.Text()
	until := x.now().Add(x.limits.Life)
	x.byID[id] = entry{Exec: e, uid: uid, until: until, bytes: size}
	x.count[uid]++
	x.bytes[uid] += size
	x.all += size
	return api.PreparedExec{ID: id, Expires: until}, nil
}

// Take gives the command that a user has prepared, and forgets it. The error is
// of class not_found: it never was, was run or released, has expired, or is
// another user's.
func (x *Execs) Take(uid uint32, id string) (Exec, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.expire()
	e, ok := x.byID[id]
	if !ok || e.uid != uid {
		return Exec{}, api.Errorf(api.CodeNotFound, "no command is prepared under this id").
			WithHint("it is good for one run, for " + x.limits.Life.String() + ", and as long as creeld runs; prepare it again")
	}
	x.drop(id, e)
	return e.Exec, nil
}

// expire forgets what is over. There are at most Count of each user's.
func (x *Execs) expire() {
	now := x.now()
	maps.DeleteFunc(x.byID, func(_ string, e entry) bool {
		if now.Before(e.until) {
			return false
		}
		x.uncount(e)
		return true
	})
}

func (x *Execs) drop(id string, e entry) {
	delete(x.byID, id)
	x.uncount(e)
}

func (x *Execs) uncount(e entry) {
	x.all -= e.bytes
	if x.bytes[e.uid] -= e.bytes; x.bytes[e.uid] == 0 {
		delete(x.bytes, e.uid)
	}
	if x.count[e.uid]--; x.count[e.uid] == 0 {
		delete(x.count, e.uid)
	}
}
