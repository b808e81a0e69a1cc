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

	// Logs is "none" when its output is not kept; "fds" with a terminal is
	// always so, since its bytes do not pass the daemon.
	Logs string `json:"logs,omitempty"`

	// OutputBytes is what of the command's output has passed the daemon. Not
	// there with IO "fds" and Logs "none": those bytes do not pass it.
	OutputBytes *int64 `json:"output_bytes,omitempty"`
}

// PreparedExec is a command that waits to be run, once.
type PreparedExec struct {
	// ID is 128 bits that cannot be guessed, as letters and digits. Who has it and
	// is the same user can run the command.
	ID string `json:"id"`
	// Expires is when it is forgotten, unless it has run. It does not outlive the
	// daemon.
	Expires time.Time `json:"expires"`
}

// Top is the processes of a sandbox.
type Top struct {
	ID   string    `json:"id"`
	Name string    `json:"name"`
	Read time.Time `json:"read"`
	// Processes are at most 1,000, PID 1 first, then by exec and pid;
	// Truncated says that there are more.
	Processes []Process `json:"processes"`
	Truncated bool      `json:"truncated,omitempty"`
}

// Process is one process of a sandbox. Comm and Args are what it calls itself,
// whatever that may be; everything else is the kernel's word.
type Process struct {
	PID int `json:"pid"` // in the sandbox
	// PPID is the parent's pid in the sandbox; 0 when that is not in the list.
	PPID int `json:"ppid"`
	// Exec is the exec that started it, or whose descendant did: "main" for
	// the main command. Empty for PID 1 and children it has just forked.
	Exec string `json:"exec,omitempty"`
	// State is the kernel's letter: R, S, D, T, Z and so on (proc(5)).
	State       string    `json:"state"`
	Started     time.Time `json:"started"` // to about 10 ms
	CPUSeconds  float64   `json:"cpu_seconds"`
	MemoryBytes int64     `json:"memory_bytes"` // resident
	Threads     int64     `json:"threads"`
	Comm        string    `json:"comm"` // at most 15 bytes
	// Args are the first 512 bytes of its arguments, empty when it has none
	// or their memory could not be read at once.
	Args []string `json:"args,omitempty"`
	Cut  bool     `json:"cut,omitempty"`
}
