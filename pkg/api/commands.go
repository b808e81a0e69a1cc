package api

import "time"

// Exec is a command that was run in a sandbox by exec, or that runs.
type Exec struct {
	ID string `json:"id"`

	// Command is what was asked for, its first 4 KiB; Cut says that there was more.
	Command []string `json:"command"`
	Cut     bool     `json:"cut,omitempty"`

	TTY     bool              `json:"tty,omitempty"`
	IO      string            `json:"io"` // "fds" or "framed"
	Labels  map[string]string `json:"labels,omitempty"`
	Started time.Time         `json:"started"`
	// Ended is not there while the command runs; nor are the fields from
	// ExitCode to Error.
	Ended time.Time `json:"ended,omitzero"`

	// ExitCode is as ExecResult has it; not there for a command whose end
	// nobody saw, because the daemon was not running (reason "lost").
	ExitCode  *int             `json:"exit_code,omitempty"`
	Signal    int              `json:"signal,omitempty"`
	Reason    Reason           `json:"reason,omitempty"`
	LimitsHit map[string]int64 `json:"limits_hit,omitempty"`
	Error     string           `json:"error,omitempty"` // why it did not start

	// OutputBytes is what of the command's output has passed the daemon. Not
	// there with IO "fds": those bytes do not pass it.
	OutputBytes *int64 `json:"output_bytes,omitempty"`
}
