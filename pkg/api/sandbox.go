package api

import "time"

// SpawnRequest asks for a new sandbox. It is a closed schema: a field that is
// not named here is an error.
type SpawnRequest struct {
	// Name is what people call the sandbox: 1 to 63 of [a-z0-9-], starting
	// with a letter or digit. Unique among the caller's sandboxes. Generated when empty.
	Name string `json:"name,omitempty"`

	// Agent is the name of the agent the sandbox belongs to: same form as
	// Name. "default" when empty.
	Agent string `json:"agent,omitempty"`

	// Parent is the id or the name of a sandbox of the caller's, of which this
	// one is to be a child: it has nothing that its parent does not have, what
	// is left open it has from its parent, and it ends with it.
	Parent string `json:"parent,omitempty"`

	// Socket gives the sandbox a socket of its own, /run/creel/creel.sock inside,
	// through which it can make children of itself and use these and theirs, and
	// nothing else.
	Socket bool `json:"socket,omitempty"`

	// Profile names the isolation profile. "default" when empty.
	Profile string `json:"profile,omitempty"`

	// Image is a reference that was imported before, or its digest.
	// The profile's image when empty.
	Image string `json:"image,omitempty"`

	// Command is the main command and its arguments. When it exits, the
	// sandbox ends. When empty the sandbox stays, waiting for execs.
	Command []string `json:"command,omitempty"`

	// Env is added to the fixed minimum environment of every process.
	Env map[string]string `json:"env,omitempty"`

	// Workdir is where commands start: an absolute path in the sandbox.
	// The first mount's target when empty, else the agent's home.
	Workdir string `json:"workdir,omitempty"`

	// TTY gives the main command a terminal.
	TTY bool `json:"tty,omitempty"`

	// Stdin keeps the main command's standard input open for attach.
	// Otherwise it is /dev/null.
	Stdin bool `json:"stdin,omitempty"`

	// Mounts are host directories and volumes to show in the sandbox.
	Mounts []Mount `json:"mounts,omitempty"`

	// Limits override the profile's, downward or up to the profile's maximum.
	Limits Limits `json:"limits,omitzero"`

	// Rootfs is "readonly" or "ephemeral" (writable, discarded, at most
	// Limits.Disk bytes). The profile's when empty.
	Rootfs string `json:"rootfs,omitempty"`

	// Home is "ephemeral" (discarded with the sandbox) or "persistent": a volume
	// of the agent's, called AGENT.home, that all its sandboxes which ask for it
	// share. The profile's when empty.
	Home string `json:"home,omitempty"`

	// Network is "none", a network namespace with lo only, or "policy": the same,
	// in which connections go to a process outside that makes those which are
	// allowed. The profile's when empty.
	Network string `json:"network,omitempty"`

	// Egress is what may be reached, with Network "policy": rules of the form
	//
	//	[PROTOCOL] HOST[:PORT,...] [METHOD,...] [PATH,...]
	//
	// They only narrow what the profile, the caller's ceiling and a parent allow.
	// All of that when empty.
	Egress []string `json:"egress,omitempty"`

	// Secrets are names of the caller's own or of the box's, with Network
	// "policy": their values go out with requests, and nobody inside sees them. 32
	// at most.
	Secrets []string `json:"secrets,omitempty"`

	// Runtime is "crun" or "runc". The daemon's default when empty.
	Runtime string `json:"runtime,omitempty"`

	// Labels are kept with the sandbox; creel does not interpret them. Those given
	// through a sandbox's own socket begin with InsideLabel.
	Labels map[string]string `json:"labels,omitempty"`

	// Remove removes the sandbox when it has ended.
	Remove bool `json:"remove,omitempty"`

	// Attach says that the caller will attach to the main command. With Remove,
	// the sandbox and its output then stay until it has ended and nobody is
	// attached any more, or nobody was within 10 s. It needs Command.
	Attach bool `json:"attach,omitempty"`

	// Timeout ends the main command after this long (exit 124, reason
	// "timeout"). None when zero.
	Timeout Duration `json:"timeout,omitzero"`

	// Logs is "none" when nothing of any output may be kept; it is kept
	// otherwise.
	Logs string `json:"logs,omitempty"`

	// Trace asks for the time each launch step took.
	Trace bool `json:"trace,omitempty"`
}

// Mount is a host directory or a volume shown in the sandbox, nosuid and nodev.
// The caller's files in a directory are owned by the agent.
type Mount struct {
	// Source is the host path. With FD it is for display. Without, the daemon
	// opens it as the process that connected would, if its configuration has
	// mounts.paths: an absolute path without symbolic links.
	Source string `json:"source,omitempty"`

	// FD is the index of the descriptor, among those sent with the request's
	// bytes by SCM_RIGHTS, that is the directory. Required unless Volume is
	// given or the daemon opens paths.
	FD *int `json:"fd,omitempty"`

	// Volume names a volume of the caller's, instead of a directory. Only
	// sandboxes of the volume's agent may write it.
	Volume string `json:"volume,omitempty"`

	// Target is the absolute path in the sandbox. It may lie in another
	// mount's, but not be the same: then it must be a directory in what is
	// mounted there, without symbolic links on the way. Nothing is made there.
	Target string `json:"target"`

	// ReadOnly refuses writes. Required to be true for a directory that host uid 0 owns.
	ReadOnly bool `json:"readonly,omitempty"`

	// Own says that the directory is this sandbox's alone: no other may have it, or
	// one in it or above it, mounted in any way at the same time. A child may have
	// one that its parent has not. Not for a volume.
	Own bool `json:"own,omitempty"`

	// Protect makes the names that run on the host later read-only in it
	// (profiles/protect.toml), whether they are there or not. Only for a directory
	// that can be written.
	Protect bool `json:"protect,omitempty"`
}

// Limits are what a sandbox may use. A zero field means the profile's value.
type Limits struct {
	// Memory is in bytes; swap is never added.
	Memory Size `json:"memory,omitzero" toml:"memory"`
	// CPUs is in processors: 1.5 is 150 ms of every 100 ms.
	CPUs float64 `json:"cpus,omitzero" toml:"cpus"`
	// Pids is the number of tasks (processes and threads).
	Pids int64 `json:"pids,omitzero" toml:"pids"`
	// Files is the number of open files per process.
	Files int64 `json:"files,omitzero" toml:"files"`
	// Disk is the bytes of the writable root (rootfs "ephemeral").
	Disk Size `json:"disk,omitzero" toml:"disk"`
	// Tmp is the bytes of all tmpfs mounts but /dev/shm together; at most half
	// of Memory.
	Tmp Size `json:"tmp,omitzero" toml:"tmp"`
	// ShmSize is the bytes of /dev/shm, which count as memory: at most half of
	// Memory, and with Tmp at most three quarters.
	ShmSize Size `json:"shm_size,omitzero" toml:"shm_size"`
	// IOWeight is the block I/O weight, 10 to 1000 (100 is neutral).
	IOWeight int64 `json:"io_weight,omitzero" toml:"io_weight"`
	// OutputRate is the bytes per second of output, averaged over 10 s,
	// above which the sandbox ends with reason "output".
	OutputRate Size `json:"output_rate,omitzero" toml:"output_rate"`
	// EgressBytes, EgressConnections and EgressRequests are what may go out and
	// come back in the sandbox's life, with Network "policy": bytes both ways,
	// connections that are let through, requests that are read and let through.
	// One that is used up ends it, reason "egress". 0 is no bound.
	EgressBytes       Size  `json:"egress_bytes,omitzero" toml:"egress_bytes"`
	EgressConnections int64 `json:"egress_connections,omitzero" toml:"egress_connections"`
	EgressRequests    int64 `json:"egress_requests,omitzero" toml:"egress_requests"`
	// TTL ends the sandbox this long after its start, reason "ttl".
	TTL Duration `json:"ttl,omitzero" toml:"ttl"`
	// Idle is how long a sandbox may be without exec, client and work.
	Idle Duration `json:"idle,omitzero" toml:"idle"`
	// OnIdle is "pause" or "stop" (reason "idle").
	OnIdle string `json:"on_idle,omitempty" toml:"on_idle"`
}

// InsideLabel begins the name of every label that was given through a sandbox's
// own socket, and so by what runs in a sandbox: labels without it are the
// caller's word.
const InsideLabel = "inside."

// State is where a sandbox is in its life.
type State string

// The states; pkg/launcher has the table of moves.
const (
	StateCreating State = "creating"
	StateRunning  State = "running"
	StatePaused   State = "paused"
	StateStopping State = "stopping"
	StateStopped  State = "stopped"
	StateRemoving State = "removing"
	// StateUnknown is a sandbox whose clean-up failed; reconcile retries.
	StateUnknown State = "unknown"
)

// Reason says what ended a sandbox or an exec, or paused a sandbox. It comes
// from kernel files and the daemon's clock, never from the sandbox.
type Reason string

// The reasons.
const (
	ReasonExited  Reason = "exited"  // the command ended by itself
	ReasonStopped Reason = "stopped" // a caller asked
	ReasonKilled  Reason = "killed"  // a caller asked for SIGKILL
	ReasonOOM     Reason = "oom"
	ReasonTTL     Reason = "ttl"
	ReasonIdle    Reason = "idle"
	ReasonOutput  Reason = "output"
	ReasonEgress  Reason = "egress"  // a budget of its network is used up
	ReasonTimeout Reason = "timeout" // the command's own --timeout
	ReasonLost    Reason = "lost"    // its client went away
	ReasonDied    Reason = "died"    // PID 1 ended unasked
	ReasonRevoked Reason = "revoked" // its agent was
	ReasonExpired Reason = "expired" // its agent had
	ReasonParent  Reason = "parent"  // the sandbox it was a child of ended
	ReasonDisk    Reason = "disk"    // paused: it went on writing while the disk was nearly full
)

// Sandbox is what the daemon knows of a sandbox.
type Sandbox struct {
	ID          string `json:"id"` // 20 of [a-z2-7]
	Name        string `json:"name"`
	Agent       string `json:"agent"`
	AgentID     string `json:"agent_id,omitempty"` // see Agent
	Parent      string `json:"parent,omitempty"`   // the id of the one it is a child of
	Profile     string `json:"profile"`
	Image       string `json:"image"`
	ImageDigest string `json:"image_digest"`
	// ImageMoved means that Image is another image's name by now, or nobody's.
	// It is in the answers to list and get only.
	ImageMoved bool   `json:"image_moved,omitempty"`
	Runtime    string `json:"runtime"`
	Rootfs     string `json:"rootfs"`
	Home       string `json:"home,omitempty"` // "ephemeral" or "persistent"; empty when an older daemon made it
	// User is UserRoot, or empty for the agent; Capabilities are a root's.
	User         string            `json:"user,omitempty"`
	Capabilities []string          `json:"capabilities,omitempty"`
	Network      string            `json:"network"`
	Egress       []EgressParty     `json:"egress,omitempty"` // what one of them does not allow is refused
	Secrets      []string          `json:"secrets,omitempty"`
	Observe      bool              `json:"observe,omitempty"`  // its profile lets more than it would, to learn what is needed
	Identity     string            `json:"identity,omitempty"` // the SPIFFE ID of its SVIDs; with a network only
	State        State             `json:"state"`
	Reason       Reason            `json:"reason,omitempty"`
	ExitCode     *int              `json:"exit_code,omitempty"` // 128+n for signal n
	Command      []string          `json:"command,omitempty"`
	Workdir      string            `json:"workdir"`
	TTY          bool              `json:"tty,omitempty"`
	Stdin        bool              `json:"stdin,omitempty"`
	Mounts       []Mount           `json:"mounts,omitempty"`
	Shares       []Share           `json:"shares,omitempty"`
	Socket       bool              `json:"socket,omitempty"` // it has one of its own, see SpawnRequest
	Limits       Limits            `json:"limits"`
	LimitsHit    map[string]int64  `json:"limits_hit,omitempty"` // pids, disk, memory, files: how often each refused or ended something
	Labels       map[string]string `json:"labels,omitempty"`
	Logs         string            `json:"logs,omitempty"` // "none": no output is kept
	Caller       Caller            `json:"caller"`
	PID          int               `json:"pid,omitempty"` // PID 1's pid on the host
	HostUID      uint32            `json:"host_uid"`      // first host uid of the 65,536
	Created      time.Time         `json:"created"`
	Started      time.Time         `json:"started,omitzero"`
	Ended        time.Time         `json:"ended,omitzero"`
	Execs        int               `json:"execs"` // running now
	Problem      string            `json:"problem,omitempty"`
}

// Share says that, by the operator's grant, sandboxes of other agents may write
// a mounted directory at the same time.
type Share struct {
	Target string   `json:"target"` // of the mount
	Path   string   `json:"path"`   // of the grant
	With   []string `json:"with"`   // the other agents, such as "uid:1001/tester"
}

// Caller is what the kernel said of the process that connected.
type Caller struct {
	UID uint32 `json:"uid"`
	GID uint32 `json:"gid"`
}

// SpawnResult answers a spawn. The sandbox runs and is proven.
type SpawnResult struct {
	Sandbox  Sandbox  `json:"sandbox"`
	Evidence Evidence `json:"evidence"`
	Trace    []Step   `json:"trace,omitempty"`
}

// Step is one part of a launch and what it took.
type Step struct {
	Name  string  `json:"name"`
	Start float64 `json:"start_ms"` // since the request was read
	Took  float64 `json:"took_ms"`
	// At is the moment on CLOCK_MONOTONIC, in nanoseconds, of a step that
	// another process stamped; 0 for the daemon's own.
	At int64 `json:"at_ns,omitempty"`
}

// Evidence is what was read back from the kernel of one sandbox.
type Evidence struct {
	Sandbox  string    `json:"sandbox"`
	Taken    time.Time `json:"taken"`
	Why      string    `json:"why"` // spawn, reconcile, timer, request
	OK       bool      `json:"ok"`
	Controls []Control `json:"controls"`
	// Weaker lists, in plain words, what this host cannot enforce.
	Weaker []string `json:"weaker,omitempty"`
	// Signed is the same and what it is of, signed with the box's key: its
	// payload is an EvidenceStatement.
	Signed *Envelope `json:"signed,omitempty"`
}

// Control is one promise: what was expected and what the kernel said.
type Control struct {
	Name     string `json:"name"` // e.g. "namespace.user", "seccomp.filter"
	Expected string `json:"expected"`
	Observed string `json:"observed"`
	OK       bool   `json:"ok"`
}

// ExecRequest runs a command in a running sandbox.
type ExecRequest struct {
	Command []string          `json:"command"`
	Env     map[string]string `json:"env,omitempty"`
	Workdir string            `json:"workdir,omitempty"`
	TTY     bool              `json:"tty,omitempty"`
	Cols    uint16            `json:"cols,omitempty"`
	Rows    uint16            `json:"rows,omitempty"`
	Stdin   bool              `json:"stdin,omitempty"`
	Timeout Duration          `json:"timeout,omitzero"`
	// IO is "fds" (the daemon sends pipe ends by SCM_RIGHTS) or "framed". "framed" when empty.
	IO string `json:"io,omitempty"`

	// Input is all of the command's standard input, as text, for a one-shot
	// exec: one without an upgrade, which has no stdin, tty, cols, rows and io.
	Input string `json:"input,omitempty"`

	// InputBase64 is the same for bytes that are not text, instead of Input.
	InputBase64 string `json:"input_base64,omitempty"`

	// MaxOutput is how many bytes of standard output, and as many of standard
	// error, a one-shot exec answers with, 1 to 4M; 256K when absent. What the
	// command writes beyond that is read and dropped.
	MaxOutput Size `json:"max_output,omitzero"`

	// KillTree has a signal HUP, INT or TERM of the client end the command with all
	// that it started: each process gets it, and what is left when the first has
	// ended, or 3 s later, is killed.
	KillTree bool `json:"kill_tree,omitempty"`

	// Labels are kept with the exec's record; creel does not interpret them. Those
	// given through a sandbox's own socket begin with InsideLabel.
	Labels map[string]string `json:"labels,omitempty"`
	// Logs is "none" when nothing of the output may be kept. In a sandbox of
	// that kind it is so without asking.
	Logs string `json:"logs,omitempty"`
}

// ExecResult is how a command ended.
type ExecResult struct {
	ID        string           `json:"id"`
	ExitCode  int              `json:"exit_code"` // 128+n for signal n, 126 and 127 as shells, 124 timed out
	Signal    int              `json:"signal,omitempty"`
	Reason    Reason           `json:"reason"`
	LimitsHit map[string]int64 `json:"limits_hit,omitempty"`
	Error     string           `json:"error,omitempty"` // why it did not start
	Took      Duration         `json:"took"`
}

// ExecOutput answers a one-shot exec: how the command ended and what it wrote.
type ExecOutput struct {
	ExecResult
	// Stdout is the first MaxOutput bytes of standard output as text. Bytes
	// that are not UTF-8 are U+FFFD here.
	Stdout string `json:"stdout"`
	// Stderr is the same of standard error.
	Stderr string `json:"stderr"`
	// StdoutBase64 is the bytes themselves, only there if Stdout is not them.
	StdoutBase64 string `json:"stdout_base64,omitempty"`
	// StderrBase64 is the same of standard error.
	StderrBase64 string `json:"stderr_base64,omitempty"`
	// Truncated says that the command wrote more than is here.
	Truncated bool `json:"truncated"`
	// TimedOut says that the request's timeout ended the command.
	TimedOut bool `json:"timed_out"`
}

// WaitResult is how a sandbox ended.
type WaitResult struct {
	ID        string           `json:"id"`
	State     State            `json:"state"`
	Reason    Reason           `json:"reason"`
	ExitCode  int              `json:"exit_code"`
	LimitsHit map[string]int64 `json:"limits_hit,omitempty"`
}

// StopRequest asks PID 1's main command to end, then kills.
type StopRequest struct {
	// Grace is how long to wait between SIGTERM and SIGKILL. 10s when absent.
	Grace *Duration `json:"grace,omitempty"`
}

// KillRequest sends a signal to the main command (or, for KILL, ends all).
type KillRequest struct {
	// Signal is a name without SIG ("TERM") or a number. "KILL" when empty.
	Signal string `json:"signal,omitempty"`
}

// Stats is what a sandbox uses now.
type Stats struct {
	ID            string    `json:"id"`
	Name          string    `json:"name"`
	Read          time.Time `json:"read"`
	MemoryBytes   int64     `json:"memory_bytes"`
	MemoryLimit   int64     `json:"memory_limit"`
	MemoryPeak    int64     `json:"memory_peak"`
	CPUSeconds    float64   `json:"cpu_seconds"`
	ThrottledSecs float64   `json:"cpu_throttled_seconds"`
	Pids          int64     `json:"pids"`
	PidsLimit     int64     `json:"pids_limit"`
	IOReadBytes   int64     `json:"io_read_bytes"`
	IOWriteBytes  int64     `json:"io_write_bytes"`
	OOMKills      int64     `json:"oom_kills"`
}

// FileInfo describes a file in a sandbox, as the agent sees it.
type FileInfo struct {
	Name    string    `json:"name"`
	Size    int64     `json:"size"`
	Mode    uint32    `json:"mode"` // permission bits
	Type    string    `json:"type"` // file, dir, symlink, other
	UID     uint32    `json:"uid"`
	GID     uint32    `json:"gid"`
	ModTime time.Time `json:"mod_time"`
	Target  string    `json:"target,omitempty"` // of a symlink
}

// Image is an imported image.
type Image struct {
	Ref     string    `json:"ref"`
	Digest  string    `json:"digest"`
	Size    int64     `json:"size"` // unpacked bytes
	Created time.Time `json:"created"`
	// Owner is the uid of the caller that brought it, whose alone it is; 0 is
	// the box, whose images are everybody's.
	Owner uint32 `json:"owner"`
	// Layers, the lowest first, are in an answer about one image only.
	Layers []ImageLayer `json:"layers,omitempty"`
	// Packages are what the image says it has, "name version" each, in an
	// answer about one image only. Nothing has checked it.
	Packages []string `json:"packages,omitempty"`
}

// ImageLayer is one layer of an image.
type ImageLayer struct {
	Digest    string `json:"digest"`
	Size      int64  `json:"size"` // bytes as kept, packed or not
	MediaType string `json:"media_type"`
}

// CommitRequest makes an image of a sandbox's writable root.
type CommitRequest struct {
	// Image is the new image's name. Required.
	Image string `json:"image"`
}

// TagRequest gives an image one more name.
type TagRequest struct {
	Source string `json:"source"` // a reference or digest. Required
}

// Event is one thing that happened.
type Event struct {
	Seq     uint64            `json:"seq"`
	Time    time.Time         `json:"time"`
	Type    string            `json:"type"` // e.g. sandbox.started, exec.ended, evidence.drift
	Sandbox string            `json:"sandbox,omitempty"`
	Name    string            `json:"name,omitempty"`
	Fields  map[string]string `json:"fields,omitempty"`
}

// Version names the daemon and what it drives.
type Version struct {
	Creel      string `json:"creel"`
	API        string `json:"api"` // "v1"
	Go         string `json:"go"`
	Kernel     string `json:"kernel"`
	Containerd string `json:"containerd"`
	Runtime    string `json:"runtime"`         // default runtime's name
	RuntimeVer string `json:"runtime_version"` // and version
	Cgroup     string `json:"cgroup"`          // v1 or v2
	// Policy is how often who may have what was read: 1 since the start, one
	// more with each reload that succeeded.
	Policy int `json:"policy"`
}

// Profile is a resolved isolation profile.
type Profile struct {
	Name        string `json:"name"`
	Description string `json:"description"`
	Source      string `json:"source"` // embedded, or the file's path
	TOML        string `json:"toml"`
}

// Check is one line of doctor.
type Check struct {
	Name   string `json:"name"`
	Status string `json:"status"` // ok, weaker, missing, danger
	Detail string `json:"detail"`
	Cost   string `json:"cost,omitempty"` // what its absence costs
	Fix    string `json:"fix,omitempty"`  // what to do
}

// Doctor is what the daemon sees of its host.
type Doctor struct {
	Checks []Check `json:"checks"`
	// Leftovers are what no record knows. null, which the API never answers, is
	// not looked for: creeld doctor, and creel doctor without a daemon.
	Leftovers []string `json:"leftovers"`
}

// EgressRequest has a sandbox reach more. It is a closed schema.
type EgressRequest struct {
	// Allow are rules of the form of SpawnRequest.Egress. Required.
	Allow []string `json:"allow"`
}

// EgressParty is one of those who have a say in what a sandbox reaches.
type EgressParty struct {
	// By names it where a refusal is told: "the profile default".
	By string `json:"by"`
	// Rules are of the form of SpawnRequest.Egress.
	Rules []string `json:"rules"`
}
