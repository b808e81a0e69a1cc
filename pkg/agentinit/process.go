package agentinit

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/agentinit/internal/wire"
)

// Bounds of a request; a Start beyond them is ErrTooLarge.
const (
	MaxArgs    = wire.MaxArgs    // bytes of arguments and environment together
	MaxStrings = wire.MaxStrings // arguments, and variables
	MaxKeepFDs = wire.MaxKeep    // descriptors that init holds for one process
	MaxProcs   = wire.MaxProcs   // processes and kept results of one sandbox
)

// Errors that a caller can test for.
var (
	// ErrGone means that creel-init has ended or the channel was closed.
	ErrGone = errors.New("creel-init is gone")
	// ErrHostile means that creel-init broke the protocol so badly that it
	// is not listened to any more.
	ErrHostile = errors.New("creel-init broke the protocol")
	// ErrTooLarge means that arguments and environment are too long.
	ErrTooLarge = errors.New("arguments and environment are too long")
	// ErrUnknown means that there is no process of that id.
	ErrUnknown = errors.New("no such process")
	// ErrExists means that the id is in use.
	ErrExists = errors.New("process id is in use")
	// ErrOrder means that a request came at the wrong moment, such as Start
	// before Go or Setup after it.
	ErrOrder = errors.New("request out of order")
	// ErrFull means that the sandbox has as many processes as it can.
	ErrFull = errors.New("too many processes in the sandbox")
)

// Process says what to start.
type Process struct {
	// ID is the process's name on the channel: 1 to 32 of [a-z0-9-], unique
	// until Ack. "main" is the one that gets forwarded signals. Required.
	ID string

	// Argv is the command. A name without a slash is looked for in Env's
	// PATH. Required.
	Argv []string

	// Env is the whole environment, KEY=VALUE.
	Env []string

	// Cwd is where it starts. Env's HOME when empty.
	Cwd string

	// Umask is as in umask(2).
	Umask uint32

	// TTY makes its standard input the controlling terminal.
	TTY        bool
	Cols, Rows uint16

	// Bytes has creel-init make the pipes or the terminal and move the bytes
	// by Input and Output; else descriptors come with Start.
	Bytes bool

	// KeepFDs is how many of Start's descriptors, after its own, init only holds.
	KeepFDs int

	// JoinFDs is how many of Start's descriptors, the last ones, are "tasks"
	// files of cgroups (version 1) that the process enters by itself before
	// it does anything else. Whether it has, the caller reads from the
	// kernel: what the process says of it would be worth nothing.
	JoinFDs int

	// Internal makes it a file operation of creel-init's own: see FileOp.
	Internal bool
}

// Stage is what a process was doing when it could not be started.
type Stage string

// The stages.
const (
	StageFork    Stage = "fork" // creel-init had no process, descriptor or memory to give
	StageSession Stage = "session"
	StageTTY     Stage = "tty"
	StageOOM     Stage = "oom"
	StageCwd     Stage = "cwd"     // the directory
	StageExec    Stage = "exec"    // the command
	StageIsolate Stage = "isolate" // the Landlock domain
	StageKilled  Stage = "killed"
)

var stages = map[wire.Stage]Stage{
	wire.StageFork: StageFork, wire.StageSession: StageSession, wire.StageTTY: StageTTY,
	wire.StageOOM: StageOOM, wire.StageCwd: StageCwd, wire.StageExec: StageExec,
	wire.StageIsolate: StageIsolate,
}

// ExecError says why a command was not started.
type ExecError struct {
	Stage Stage
	Errno syscall.Errno // 0 when it was killed before
}

func (e *ExecError) Error() string {
	if e.Stage == StageKilled {
		return "killed before it was executed"
	}
	return fmt.Sprintf("%s: %v", e.Stage, e.Errno)
}

// Unwrap gives the errno, for errors.Is.
func (e *ExecError) Unwrap() error {
	if e.Errno == 0 {
		return nil
	}
	return e.Errno
}

// ExitCode is what a shell would exit with: 127 not found, 126 found but not
// executable, 125 when it was not the command's fault.
func (e *ExecError) ExitCode() int {
	if e.Stage != StageExec {
		return 125
	}
	switch e.Errno {
	case unix.ENOENT, unix.ENOTDIR:
		return 127
	}
	return 126
}

// WaitStatus is how a process ended, as creel-init tells it.
type WaitStatus struct {
	unix.WaitStatus
}

// ExitCode is the command's own, or 128 + the signal that ended it.
func (s WaitStatus) ExitCode() int {
	if s.Signaled() {
		return 128 + int(s.Signal())
	}
	return s.ExitStatus()
}

// Live is a process that has not ended, as Resume lists it.
type Live struct {
	ID       string
	NSPid    int
	Released bool
	Stamp    int64 // CLOCK_MONOTONIC nanoseconds just before execve; 0 when not yet
	KeepFDs  []int // their numbers in creel-init, for pidfd_getfd(2)
}

// Finished is a process that has ended and was not acknowledged.
type Finished struct {
	ID      string
	NSPid   int
	Stamp   int64
	Status  WaitStatus
	Err     *ExecError // not nil: it was never executed
	KeepFDs []int
}
