// Package undo collects the steps that take back a half-finished operation.
//
// A caller adds one step after each effect on the kernel or on disk. If the
// operation fails, the steps run last-in first-out; if it succeeds, they are
// dropped.
package undo

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// timeout bounds one whole rollback, so that a stuck shim cannot hold a
// request's goroutine for ever.
const timeout = 10 * time.Second

type step struct {
	name string
	fn   func(context.Context) error
}

// Stack is a list of undo steps. The zero value is ready to use.
// It is not safe for concurrent use.
type Stack struct {
	steps []step
}

// Error is the failure of undo steps: something may be left behind.
type Error struct{ Err error }

func (e *Error) Error() string { return "undo: " + e.Err.Error() }

// Unwrap gives the steps' errors.
func (e *Error) Unwrap() error { return e.Err }

// Add registers fn to run when the operation fails. The name appears in the
// error of a failed rollback, e.g. "delete snapshot".
func (s *Stack) Add(name string, fn func(context.Context) error) {
	s.steps = append(s.steps, step{name, fn})
}

// OnError runs the steps if *errp is not nil and joins their failures to it
// as one *Error. It is meant to be deferred:
//
//	defer u.OnError(ctx, &err)
//
// The steps get a context that outlives ctx: a client that hangs up must not
// leave a network namespace behind.
func (s *Stack) OnError(ctx context.Context, errp *error) {
	if *errp == nil {
		return
	}
	if err := s.Run(ctx); err != nil {
		*errp = errors.Join(*errp, err)
	}
}

// Run runs and forgets the steps, last first; one that fails does not stop
// the rest. The error is nil or an *Error.
func (s *Stack) Run(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	defer cancel()
	var errs []error
	for len(s.steps) > 0 {
		last := s.steps[len(s.steps)-1]
		s.steps = s.steps[:len(s.steps)-1]
		if err := last.fn(ctx); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", last.name, err))
		}
	}
	if len(errs) > 0 {
		return &Error{errors.Join(errs...)}
	}
	return nil
}
