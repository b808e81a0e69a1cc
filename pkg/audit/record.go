package audit

import (
	"encoding/hex"
	"time"
)

// Hash is a SHA-256 of a record's line, without its newline.
type Hash [32]byte

// String is the hash in hexadecimal.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// Kind says what a record is.
type Kind string

// The kinds. The first three are of what happens on the box, the others of the
// log itself.
const (
	// Intent is written before an effect.
	Intent Kind = "intent"
	// Outcome is written after it; Op joins the two.
	Outcome Kind = "outcome"
	// Fact is what nobody asked for: an exit, a limit, a start of the daemon.
	Fact Kind = "fact"
	// Begin begins a chain, as record 1.
	Begin Kind = "begin"
	// Head ends each commit and has the signature.
	Head Kind = "head"
	// Drop says that the oldest records are about to be removed.
	Drop Kind = "drop"
	// Seal says that the log's end was damaged or unsigned and was cut off.
	Seal Kind = "seal"
)

// Who is a caller as the kernel knows it at the time.
type Who struct {
	UID    uint32
	GID    uint32
	Groups []uint32
	PID    int32
	// Exe is where /proc/PID/exe led: the caller's word in so far as a caller
	// chooses what it runs. Empty when it could not be read.
	Exe string
	// LoginUID is /proc/PID/loginuid; -1 when it is not set or not known.
	LoginUID int64
	// Via is the sandbox through whose own socket it came, for the caller of
	// which the ids are; empty for creeld's socket.
	Via string
}

// Result is how something ended.
type Result struct {
	// Code is "ok" or the class of the error.
	Code    string
	Message string
	// Exit is a command's exit code, nil where there is none.
	Exit *int
	// Reason is why a command or a sandbox ended.
	Reason string
}

// Entry is what is recorded. Text is bounded (see the Max constants) and may
// hold anything: it is made valid UTF-8 and escaped.
type Entry struct {
	Kind Kind // Intent, Outcome or Fact
	// Time is when it happened; the time of the call when zero.
	Time time.Time
	// Action is what, e.g. "sandbox.spawn".
	Action string
	// Op is the same in an intent and its outcome.
	Op      string
	Who     *Who
	Agent   string
	Sandbox string
	// Object is what it is done to, as it was named.
	Object  string
	Command []string
	// Asked is what the caller gave, Decided what came of it and by what rule,
	// Digests "sha256:..." of spec, image, evidence and command.
	Asked, Decided, Digests map[string]string
	// Detail is what a fact is.
	Detail map[string]string
	Result *Result
}

// DropInfo is what a drop record says.
type DropInfo struct {
	First, Last uint64 // of the records that go
	Hash        Hash   // of the last
}

// SealInfo is what a seal record says of what was cut off.
type SealInfo struct {
	Bytes   int64 // how many
	Records int64 // complete lines among them
	Heads   int64 // of these, heads that the box's key had signed: acknowledged records were lost
	Hash    Hash  // of the bytes
	Aside   string
}

// Record is one line.
type Record struct {
	Seq   uint64
	Prev  Hash
	Chain string // of a begin record: 32 hexadecimal digits, random
	Entry
	Drop *DropInfo
	Seal *SealInfo
	Key  string // of a head: the key's id
	Sig  []byte
}

// Bounds of one record's text, in bytes before escaping. What is longer is cut
// and ends in "...(+N bytes)".
const (
	MaxName    = 128 // action, op, agent, sandbox, code, keys of maps
	MaxText    = 1024
	MaxCommand = 4096 // of all arguments together
	MaxArgs    = 64
	MaxKeys    = 32 // of one map
	MaxGroups  = 64
	// maxBudget is of all text together.
	maxBudget = 8 << 10
	// MaxLine is the longest line; a reader takes nothing longer.
	MaxLine = 128 << 10
)

// timeLayout has nine digits always, so that a time has one form only.
const timeLayout = "2006-01-02T15:04:05.000000000Z"
