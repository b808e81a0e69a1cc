// Package idmap hands out the host ids that sandboxes run as.
//
// Every sandbox owns one range of 65,536 ids, the same for users and groups,
// and no two sandboxes that exist at one time share an id. A [Pool] gives the
// range that was released longest ago, so that a file, a process or a key
// that a dead sandbox left somewhere meets its old id as late as possible.
//
// [CheckHost] refuses ranges that someone on the box already has, and
// [UserNS] makes the user namespace whose maps id-mapped mounts are made with.
package idmap

import (
	"errors"
	"fmt"
	"sync"
)

const (
	// Size is the number of ids in one range: all that a 16-bit system, and
	// hence every image, may use.
	Size = 65536

	// DefaultFirst and DefaultLast bound the ids that creel takes unless it
	// is configured otherwise: 2,046 ranges above the ones that systemd,
	// useradd and directory services hand out and below 2^31, where
	// programs that keep ids in signed integers begin to fail.
	DefaultFirst uint32 = 0x7800_0000
	// DefaultLast is the last of them.
	DefaultLast uint32 = 0x7FFD_FFFF

	// maxID is the largest id of a range.
	maxID uint32 = 1<<31 - 1
)

// ErrExhausted means that every range is in use.
var ErrExhausted = errors.New("all id ranges are in use; remove sandboxes or widen ids.first and ids.last")

// Pool is a set of id ranges. It is safe for concurrent use.
type Pool struct {
	first, end uint64 // end is exclusive and on the grid of ranges

	mu   sync.Mutex
	free []uint32 // least recently released first
	used map[uint32]bool
}

// New makes a pool of the whole ranges in first..last, both included, without
// those of inUse: the first ids of the ranges that live sandboxes have. A range
// in use that is not on this pool's grid, because the configuration changed,
// blocks every range it overlaps until it is released.
func New(first, last uint32, inUse []uint32) (*Pool, error) {
	if err := checkBounds(first, last); err != nil {
		return nil, err
	}
	p := &Pool{
		first: uint64(first),
		end:   uint64(first) + (uint64(last)-uint64(first)+1)/Size*Size,
		used:  make(map[uint32]bool, len(inUse)),
	}
	for _, u := range inUse {
		if p.used[u] {
			return nil, fmt.Errorf("two sandboxes have the id range at %d; remove one of them", u)
		}
		p.used[u] = true
	}
	for r := p.first; r < p.end; r += Size {
		if !p.blockedLocked(uint32(r)) {
			p.free = append(p.free, uint32(r))
		}
	}
	return p, nil
}

func checkBounds(first, last uint32) error {
	switch {
	case first < Size:
		return fmt.Errorf("ids.first = %d: must be at least %d, above the ids of the host's own users", first, Size)
	case last > maxID:
		return fmt.Errorf("ids.last = %d: must be at most %d", last, maxID)
	case last < first || last-first+1 < Size:
		return fmt.Errorf("ids.first = %d, ids.last = %d: must hold at least one range of %d ids", first, last, Size)
	}
	return nil
}

// Take gives the first id of a range that nobody has. The error is
// [ErrExhausted] when there is none.
func (p *Pool) Take() (uint32, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.free) == 0 {
		return 0, ErrExhausted
	}
	r := p.free[0]
	p.free = p.free[1:]
	p.used[r] = true
	return r, nil
}

// Release gives a range back. Releasing one that is not in use does nothing,
// so that a clean-up can be repeated.
func (p *Pool) Release(first uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.used[first] {
		return
	}
	delete(p.used, first)
	// One range when first is on the grid, at most two when it is not.
	for r := p.first; r < p.end; r += Size {
		if overlap(uint32(r), first) && !p.blockedLocked(uint32(r)) {
			p.free = append(p.free, uint32(r))
		}
	}
}

// Free is the number of ranges that can be taken.
func (p *Pool) Free() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.free)
}

// blockedLocked says whether a range in use overlaps r.
func (p *Pool) blockedLocked(r uint32) bool {
	if p.used[r] {
		return true
	}
	for u := range p.used {
		if overlap(r, u) {
			return true
		}
	}
	return false
}

func overlap(a, b uint32) bool {
	return uint64(a) < uint64(b)+Size && uint64(b) < uint64(a)+Size
}
