// Package api holds the wire types of creel's HTTP API, version 1, its error
// codes and its OpenAPI document. It imports nothing of ours, so that clients
// can take it alone.
package api

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Code is the class of an error, stable across versions.
type Code string

// The codes, with the HTTP status each travels under.
const (
	CodeInvalid         Code = "invalid_argument"     // 400: the request is wrong; problems lists each field
	CodeDenied          Code = "permission_denied"    // 403
	CodeNotFound        Code = "not_found"            // 404
	CodeConflict        Code = "conflict"             // 409: exists, or in a state that does not allow it
	CodeTooLarge        Code = "too_large"            // 413
	CodeExhausted       Code = "resource_exhausted"   // 429: a total or the box is full
	CodeNotProven       Code = "isolation_not_proven" // 422: a control was not in force; the sandbox was undone
	CodeUnavailable     Code = "unavailable"          // 503: containerd is down, or the daemon is stopping
	CodeInternal        Code = "internal"             // 500: request_id is in the daemon's log
	CodeUnsupportedHost Code = "unsupported_host"     // 501: this host cannot do it; hint says what can
)

// Problem is one mistake in a request, or one difference from what is there.
type Problem struct {
	Field string `json:"field"`
	Value string `json:"value,omitempty"`
	// Have is what is there, of a difference; Want is then what was asked for.
	Have string `json:"have,omitempty"`
	Want string `json:"want"` // what would be right
	// Rule is the rule of the caller's ceiling that refuses, where one does.
	Rule string `json:"rule,omitempty"`
}

// Error is the body of every answer that is not 2xx.
type Error struct {
	Code      Code      `json:"code"`
	Message   string    `json:"message"`
	Hint      string    `json:"hint,omitempty"`
	RequestID string    `json:"request_id,omitempty"`
	Problems  []Problem `json:"problems,omitempty"`
	// Evidence is set with isolation_not_proven.
	Evidence *Evidence `json:"evidence,omitempty"`
	// ExitCode is set when the command of a spawn could not be executed: what
	// a shell would exit with, 126 or 127.
	ExitCode int `json:"exit_code,omitempty"`
	// Retry is when the same may be allowed, 0 when that is not known. It
	// travels as Retry-After.
	Retry time.Duration `json:"-"`
	cause error
}

// Errorf makes an error of a class. Like fmt.Errorf, %w keeps the cause for
// errors.Is; the cause is not sent to the caller beyond its text.
func Errorf(code Code, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: code, Message: err.Error(), cause: errors.Unwrap(err)}
}

// WithHint returns e with what the caller can do next.
func (e *Error) WithHint(hint string) *Error { e.Hint = hint; return e }

// Error is the message, the problems and the hint, on one line.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Message)
	for i, p := range e.Problems {
		sep := "; "
		if i == 0 {
			sep = ": "
		}
		b.WriteString(sep + p.String())
	}
	if e.Hint != "" {
		b.WriteString("; " + e.Hint)
	}
	return b.String()
}

// Unwrap is the cause given to Errorf.
func (e *Error) Unwrap() error { return e.cause }

// String is "field = value: want", or for a difference "field: have, not want".
func (p Problem) String() string {
	if p.Have != "" {
		return p.Field + ": " + p.Have + ", not " + p.Want
	}
	if p.Value == "" {
		return p.Field + ": " + p.Want
	}
	return fmt.Sprintf("%s = %q: %s", p.Field, p.Value, p.Want)
}

// CodeOf is the class of err, CodeInternal when it has none.
func CodeOf(err error) Code {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return CodeInternal
}
