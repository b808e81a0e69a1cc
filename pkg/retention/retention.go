// Package retention decides which ended sandboxes are kept no longer.
//
// An ended sandbox is kept as a whole (record, log and evidence) or not at
// all, and of one user the oldest go first. The bounds on all together are
// fair: what is too much is taken from the user who has the most, so that
// nobody can push out what others keep by ending many sandboxes.
package retention

import (
	"cmp"
	"slices"
	"time"
)

// Caps are what may be kept. Zero is no bound.
type Caps struct {
	Age      time.Duration // since the end
	PerUser  int           // sandboxes of one user
	All      int           // sandboxes of all users
	LogBytes int64         // of all logs together
	Evidence int           // pieces, of all sandboxes together
}

// Ended is a sandbox that has ended and been cleaned up.
type Ended struct {
	ID       string
	UID      uint32 // whose it is
	At       time.Time
	LogBytes int64
	Evidence int
}

// Excess is the ids of those that must go for all caps to hold, oldest first.
func Excess(now time.Time, c Caps, all []Ended) []string {
	p := plan{left: slices.Clone(all)}
	slices.SortFunc(p.left, func(a, b Ended) int { return cmp.Or(a.At.Compare(b.At), cmp.Compare(a.ID, b.ID)) })
	if c.Age > 0 {
		p.drop(func(e Ended) bool { return now.Sub(e.At) > c.Age })
	}
	if c.PerUser > 0 {
		over := map[uint32]int{}
		for _, e := range p.left {
			over[e.UID]++
		}
		p.drop(func(e Ended) bool {
			over[e.UID]--
			return over[e.UID] >= c.PerUser
		})
	}
	p.fit(int64(c.All), func(Ended) int64 { return 1 })
	p.fit(c.LogBytes, func(e Ended) int64 { return e.LogBytes })
	p.fit(int64(c.Evidence), func(e Ended) int64 { return int64(e.Evidence) })
	return p.gone
}

// plan is what is left, oldest first, and what goes.
type plan struct {
	left []Ended
	gone []string
}

func (p *plan) drop(goes func(Ended) bool) {
	p.left = slices.DeleteFunc(p.left, func(e Ended) bool {
		if !goes(e) {
			return false
		}
		p.gone = append(p.gone, e.ID)
		return true
	})
}

// fit makes the sum of an amount at most limit: time and again the oldest of
// the user with the most goes, of those that amount to anything.
func (p *plan) fit(limit int64, amount func(Ended) int64) {
	if limit <= 0 {
		return
	}
	sum, of := int64(0), map[uint32]int64{}
	for _, e := range p.left {
		of[e.UID] += amount(e)
		sum += amount(e)
	}
	goes := map[string]bool{}
	queue := map[uint32][]Ended{}
	for _, e := range p.left {
		if amount(e) > 0 {
			queue[e.UID] = append(queue[e.UID], e)
		}
	}
	for sum > limit {
		var most uint32
		found := false
		for uid, n := range of {
			if !found || n > of[most] || n == of[most] && uid < most {
				most, found = uid, true
			}
		}
		e := queue[most][0]
		queue[most] = queue[most][1:]
		goes[e.ID] = true
		of[most] -= amount(e)
		sum -= amount(e)
	}
	p.drop(func(e Ended) bool { return goes[e.ID] })
}
