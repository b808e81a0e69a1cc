// Package reserve keeps a part of a file system free: it says when too little
// is, and who goes on writing then.
//
// A writer is seen by the growth of what it has on disk. So nobody is taken
// for one who only reads, or writes in place; and what a writer has written to
// memory, and the kernel not yet to the disk, is seen only when it gets there.
package reserve

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Grown is how many bytes more somebody must have on disk to be taken for a
// writer: file systems write their own notes now and then.
const Grown = 64 << 10

// Space is how much a file system has, in bytes.
type Space struct {
	Total int64
	Free  int64 // for a program without privilege
}

// Reserve watches one file system. Check and Look are for
// one goroutine.
type Reserve struct {
	bytes   int64
	measure func() (Space, error)

	short bool
	sizes map[string]int64 // the least of each since it got short
}

// New watches the file system of dir. bytes is what should stay free; with 0
// there is always room.
func New(dir string, bytes int64) *Reserve {
	return With(bytes, func() (Space, error) {
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil {
			return Space{}, fmt.Errorf("free space of %s: %w", dir, err)
		}
		return Space{Total: int64(st.Blocks) * st.Frsize, Free: int64(st.Bavail) * st.Frsize}, nil
	})
}

// With is New with another way to measure.
func With(bytes int64, measure func() (Space, error)) *Reserve {
	return &Reserve{bytes: bytes, measure: measure}
}

// Bytes is what should stay free.
func (r *Reserve) Bytes() int64 { return r.bytes }

// Space measures. It may be called by any goroutine.
func (r *Reserve) Space() (Space, error) { return r.measure() }

// State is what Check found.
type State int

// The states. Between Short and Room, on the way back, things stay as they
// are: else whoever is let go on would be stopped in the next moment.
const (
	Short  State = iota // less is free than the reserve
	Scarce              // it was short, and is not a quarter above the reserve yet
	Room
)

// Check measures, and says whether that changed what is to be done.
func (r *Reserve) Check() (s State, changed bool, err error) {
	was := r.short
	space, err := r.measure()
	if err != nil {
		return Scarce, false, err
	}
	switch {
	case space.Free < r.bytes:
		s, r.short = Short, true
	case r.short && space.Free < r.bytes+r.bytes/4:
		s = Scarce
	default:
		s, r.short = Room, false
	}
	if s != Short {
		r.sizes = nil
	}
	return s, was != r.short, nil
}

// Look takes what each has on disk now, while it is short, and says who has
// grown since the first look, or since it was last told of. Whoever is not
// among them is forgotten.
func (r *Reserve) Look(now map[string]int64) (writers []string) {
	next := make(map[string]int64, len(now))
	for id, n := range now {
		least, seen := r.sizes[id]
		switch {
		case !seen || n < least:
			least = n
		case n-least >= Grown:
			writers = append(writers, id)
			least = n
		}
		next[id] = least
	}
	r.sizes = next
	return writers
}
