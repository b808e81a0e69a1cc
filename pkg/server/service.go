package server

import (
	"context"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/peer"
)

// Caller is the process that connected, as the kernel recorded it.
type Caller = peer.Cred

// Service does what the routes ask for.
type Service interface {
	Actions
	Audit
}

// Audit shows what was recorded of all others. pkg/auditlog implements it.
type Audit interface {
	// AuditLog gives lines of the audit log to emit, oldest first: for root all,
	// for others those of what they did, without number and hash. line is
	// valid during the call only.
	AuditLog(ctx context.Context, c Caller, opts AuditOptions, emit func(line []byte) error) error
	// AuditHead is the last signed head, for root only.
	AuditHead(ctx context.Context, c Caller) (*api.AuditHead, error)
}

// Actions are what is asked of the box itself. pkg/launcher implements most.
//
// It decides who may see and do what: a sandbox that is not the caller's is
// answered api.CodeNotFound, as if it did not exist. Errors that are not (or
// do not wrap) an *api.Error reach the caller as api.CodeInternal with a
// request id; their text goes to the log only.
//
// A ref is a sandbox's id, its name, or a unique prefix of its id.
//
// ctx ends when the client hangs up or the daemon stops. Methods are called
// concurrently.
type Actions interface {
	// Spawn launches a sandbox and returns when it is proven and running.
	// dirs are the directories that came with the request, in the order of
	// api.Mount.FD, each known to be a directory and close-on-exec. They are
	// the server's: Spawn dups what it keeps beyond its return.
	Spawn(ctx context.Context, c Caller, req api.SpawnRequest, dirs []*os.File) (*api.SpawnResult, error)
	// SpawnOnce is Spawn, unless the caller has given the key before, a while
	// ago at most. If that was with the same request, its answer is given
	// again, and made is false; else the error is api.CodeConflict. It waits
	// for a request with the key that is under way.
	SpawnOnce(ctx context.Context, c Caller, key string, req api.SpawnRequest, dirs []*os.File) (res *api.SpawnResult, made bool, err error)
	// Ensure is Spawn, unless the caller has a sandbox of that name (never an
	// id). If that was made of the same it is the answer, and made is false;
	// else the error is api.CodeConflict with each difference as a problem.
	Ensure(ctx context.Context, c Caller, name string, req api.SpawnRequest, dirs []*os.File) (res *api.SpawnResult, made bool, err error)
	// Explain is what Spawn would be answered now, and has no effect.
	Explain(ctx context.Context, c Caller, req api.SpawnRequest, dirs []*os.File) (*api.Decision, error)
	List(ctx context.Context, c Caller, opts ListOptions) ([]api.Sandbox, error)
	Get(ctx context.Context, c Caller, ref string) (*api.Sandbox, error)
	// Stop asks the main command to end, kills after grace, and waits.
	Stop(ctx context.Context, c Caller, ref string, grace time.Duration) (*api.WaitResult, error)
	// Kill sends sig to the main command; SIGKILL ends the whole sandbox.
	Kill(ctx context.Context, c Caller, ref string, sig syscall.Signal) error
	Pause(ctx context.Context, c Caller, ref string) error
	Resume(ctx context.Context, c Caller, ref string) error
	// Remove forgets an ended sandbox; with force it ends a running one first.
	Remove(ctx context.Context, c Caller, ref string, force bool) error
	// Wait returns when the sandbox has ended.
	Wait(ctx context.Context, c Caller, ref string) (*api.WaitResult, error)

	// Exec starts a command. The session outlives ctx; Session.Close ends it.
	Exec(ctx context.Context, c Caller, ref string, req api.ExecRequest) (Session, error)
	// AllowEgress has a running sandbox reach more than its request named, within
	// what all others allow it.
	AllowEgress(ctx context.Context, c Caller, ref string, rules []string) (*api.Sandbox, error)
	// Approvals are what waits for somebody to let it, of the caller's sandboxes or
	// of one; with all, what was decided as well.
	Approvals(ctx context.Context, c Caller, ref string, all bool) ([]api.Approval, error)
	// DecideApproval answers one.
	DecideApproval(ctx context.Context, c Caller, id string, d api.ApprovalDecision) (*api.Approval, error)
	// ForgetEgress takes back rules that were let for an agent, or all without any.
	ForgetEgress(ctx context.Context, c Caller, ref string, rules []string) (*api.Agent, error)
	// Forward connects to a server on a sandbox's own loopback.
	Forward(ctx context.Context, c Caller, ref string, port uint16) (Tunnel, error)
	// Attach joins the main command. Session.Close ends only the attach.
	Attach(ctx context.Context, c Caller, ref string, opts AttachOptions) (Session, error)
	// Logs gives the kept output to emit, oldest first: stream is 1 (stdout)
	// or 2 (stderr), p is at most 64 KiB and valid during the call. With
	// Follow it ends when the sandbox does, else at the end of what is kept.
	// It stops at, and returns, emit's error.
	Logs(ctx context.Context, c Caller, ref string, opts LogOptions, emit func(Output) error) error

	// The file operations happen in the sandbox with the agent's rights.
	// path is absolute. The server closes what ReadFile returns.
	ReadFile(ctx context.Context, c Caller, ref, path string) (api.FileInfo, io.ReadCloser, error)
	// WriteFile makes or replaces a file with the bytes of r.
	WriteFile(ctx context.Context, c Caller, ref, path string, opts WriteOptions, r io.Reader) error
	// ListDir gives at most limit entries to emit, in the directory's own
	// order, and says whether there were more.
	ListDir(ctx context.Context, c Caller, ref, path string, limit int, emit func(api.FileInfo) error) (truncated bool, err error)
	// StatFile does not follow a symbolic link at the end of path.
	StatFile(ctx context.Context, c Caller, ref, path string) (*api.FileInfo, error)
	Mkdir(ctx context.Context, c Caller, ref, path string, parents bool) error
	RemoveFile(ctx context.Context, c Caller, ref, path string, recursive bool) error
	RenameFile(ctx context.Context, c Caller, ref, from, to string) error

	// Diff is at most limit changes to the root of a sandbox that has not ended.
	Diff(ctx context.Context, c Caller, ref string, limit int) (*api.Diff, error)
	Stats(ctx context.Context, c Caller, ref string) (*api.Stats, error)
	// Top is the processes of a running or paused sandbox.
	Top(ctx context.Context, c Caller, ref string) (*api.Top, error)
	// Execs are the execs that run or are kept, also of an ended sandbox, by
	// their start. labels must all be there with these values.
	Execs(ctx context.Context, c Caller, ref string, labels map[string]string) ([]api.Exec, error)
	// Events gives the events after sequence number after that are still kept
	// to emit, then each new one, until ctx ends or emit fails.
	Events(ctx context.Context, c Caller, after uint64, emit func(api.Event) error) error

	Images(ctx context.Context, c Caller) ([]api.Image, error)
	Image(ctx context.Context, c Caller, ref string) (*api.Image, error)
	// ImportImage reads an OCI or Docker archive. ref names it; when empty the
	// archive's own name is used.
	ImportImage(ctx context.Context, c Caller, ref string, r io.Reader) (*api.Image, error)
	RemoveImage(ctx context.Context, c Caller, ref string) error
	// Commit makes an image of a sandbox's writable root and gives it a name,
	// which is the caller's.
	Commit(ctx context.Context, c Caller, ref, image string) (*api.Image, error)
	// TagImage gives the image source one more name, which is the caller's.
	TagImage(ctx context.Context, c Caller, source, ref string) (*api.Image, error)
	// SaveImage writes an OCI archive. An error before the first byte is the
	// answer.
	SaveImage(ctx context.Context, c Caller, ref string, w io.Writer) error

	CreateVolume(ctx context.Context, c Caller, req api.VolumeRequest) (*api.Volume, error)
	Volumes(ctx context.Context, c Caller) ([]api.Volume, error)
	Volume(ctx context.Context, c Caller, name string) (*api.Volume, error)
	// RemoveVolume refuses, with api.CodeConflict, one that a sandbox uses.
	RemoveVolume(ctx context.Context, c Caller, name string) error

	// SetSecret gives a secret a value, new or in place of what it had. Its value
	// is in no answer.
	SetSecret(ctx context.Context, c Caller, name string, req api.SecretRequest) (*api.Secret, error)
	Secrets(ctx context.Context, c Caller) ([]api.Secret, error)
	RemoveSecret(ctx context.Context, c Caller, name string) error

	Agents(ctx context.Context, c Caller) ([]api.Agent, error)
	// Agent finds one by name or id.
	Agent(ctx context.Context, c Caller, ref string) (*api.Agent, error)
	// RevokeAgent ends an agent's sandboxes, and no more are made for it.
	RevokeAgent(ctx context.Context, c Caller, ref string) (*api.Agent, error)
	// RestoreAgent takes that back. What an operator revoked, only an operator
	// restores; else the error is api.CodeDenied.
	RestoreAgent(ctx context.Context, c Caller, ref string) (*api.Agent, error)
	// ExpireAgent sets until when an agent may run; zero is for ever. Only an
	// operator gives it more time; else the error is api.CodeDenied.
	ExpireAgent(ctx context.Context, c Caller, ref string, at time.Time) (*api.Agent, error)

	Profiles(ctx context.Context, c Caller) ([]api.Profile, error)
	Profile(ctx context.Context, c Caller, name string) (*api.Profile, error)
	// CheckProfile answers api.CodeInvalid with every problem of the profile.
	CheckProfile(ctx context.Context, c Caller, toml []byte) error

	// DiskUsage is what is kept on disk of the caller's.
	DiskUsage(ctx context.Context, c Caller) (*api.DiskUsage, error)
	// Prune removes what is kept of the caller's and not in use. What could
	// not be removed is in the result, with its problem.
	Prune(ctx context.Context, c Caller, req api.PruneRequest) (*api.PruneResult, error)

	// Evidence is what was proven of a sandbox, newest first. With fresh it is
	// read back from the kernel now, and that is the first.
	Evidence(ctx context.Context, c Caller, ref string, fresh bool) ([]api.Evidence, error)
	// PublicKey is what evidence and the audit log are verified with.
	PublicKey(ctx context.Context, c Caller) (*api.PublicKey, error)
	// TrustBundle is what sandboxes' SVIDs are verified with.
	TrustBundle(ctx context.Context, c Caller) (*api.TrustBundle, error)
	// Doctor checks the host. user (a name or uid) and dir, where not empty,
	// ask about that user and that directory.
	Doctor(ctx context.Context, c Caller, user, dir string) (*api.Doctor, error)
	Version(ctx context.Context) api.Version
}

// ListOptions select sandboxes. The zero value lists those that have not ended.
type ListOptions struct {
	// All includes those that have ended.
	All bool
	// Labels must all be there with these values.
	Labels map[string]string
	// States, where there are any, are those wanted; they imply All.
	States []api.State
	// Agents, where there are any, are those wanted.
	Agents []string
	// Images, where there are any, are those wanted: references as they were
	// asked for, or digests.
	Images []string
}

// AuditOptions select lines of the audit log. The zero value selects all but
// those of the log itself.
type AuditOptions struct {
	// Since and Until bound the time, where they are not zero.
	Since, Until time.Time
	// Each of these, where it is not empty, is the one wanted.
	Kind, Action, Agent, Sandbox string
	// Caller, where it is not nil, is the uid wanted.
	Caller *uint32
	// Follow goes on with what comes.
	Follow bool
	// All gives every line, those of the log itself too, as they are in the
	// files: a log that can be verified. For root, and without the others.
	All bool
}

// Tunnel is a connection to a server in a sandbox.
type Tunnel interface {
	net.Conn
	CloseWrite() error
}

// WriteOptions say how a file is written.
type WriteOptions struct {
	// Mode has permission bits only (0 to 0777), never set-ID bits.
	Mode uint32
	// KeepMode has a file that is replaced keep its permission bits: Mode is that of
	// a new one.
	KeepMode bool
	// Parents makes the directories above it.
	Parents bool
	// Exclusive makes it an error, api.CodeConflict, that the file exists.
	Exclusive bool
}

// AttachOptions say what of the main command is wanted.
type AttachOptions struct {
	// Replay sends the kept output before what comes.
	Replay bool
	// Stdin sends the client's input to the command. An error when it was
	// spawned without stdin.
	Stdin bool
	// Cols and Rows are the client's terminal; 0 leaves the size alone.
	Cols, Rows uint16
}

// LogOptions say what output is wanted.
type LogOptions struct {
	// Follow goes on with what comes.
	Follow bool
	// Tail is how many of the last lines; negative is all.
	Tail int
	// Since leaves out what is older. The zero time leaves out nothing.
	Since time.Time
	// Exec is whose: MainExec, also when empty, AllExecs, or an exec's id.
	Exec string
}

// The values of LogOptions.Exec that are not ids.
const (
	MainExec = "main"
	AllExecs = "all"
)

// Output is a piece of kept output.
type Output struct {
	Exec   string // an exec's id or MainExec; empty for a word of creel's own
	Stdout bool   // else it is of standard error
	At     time.Time
	Data   []byte // not to be kept
}

// Session is a running command with a client.
//
// In descriptor mode Files is not empty and Stdin, Stdout and Stderr are nil.
// With a terminal Stderr is nil.
type Session interface {
	// ID is the exec's id, "main" for an attach.
	ID() string
	// Files are the pipe ends or the terminal for the client, in the order of
	// stream.FDs. The server sends them once and then closes them.
	Files() []*os.File
	// Stdin is nil when there is none. A write blocks while the command does
	// not read; Close, and Session.Close, end such a write.
	Stdin() io.WriteCloser
	// Stdout and Stderr end with io.EOF; Session.Close ends a blocked read.
	Stdout() io.Reader
	Stderr() io.Reader
	Resize(cols, rows uint16) error
	Signal(sig syscall.Signal) error
	// Wait returns how the command ended. It may be called once only.
	Wait(ctx context.Context) (api.ExecResult, error)
	// Close releases the session. While the command runs it means that the
	// client is lost: an exec's whole process tree is killed, an attach only
	// ends. It does not wait long, and may be called again, also while other
	// methods are running.
	Close() error
}
