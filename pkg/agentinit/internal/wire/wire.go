// Package wire is the binary form of the messages between the daemon and
// creel-init.
//
// A message is at most [MaxMessage] bytes: a header of six bytes (version,
// type, request number, little-endian) and a body whose strings and lists
// carry their lengths. Every length is checked against what is left and
// against a bound before anything is allocated, and bytes left over are an
// error, so that a message has exactly one meaning. Both ends are hostile to
// each other as far as this package is concerned.
//
// It imports nothing, because creel-init is in every sandbox's memory.
package wire

// Version is the protocol's. A daemon and a creel-init of another version
// refuse each other: creel-init is a private copy made by the daemon at
// launch, and a daemon that was upgraded can meet an older one.
const Version = 1

// Bounds of one message, in bytes unless said otherwise.
const (
	MaxMessage = 192 << 10 // of a whole message
	MaxArgs    = 128 << 10 // of arguments and environment, with their NULs
	MaxStrings = 8192      // number of arguments and of variables, each
	MaxID      = 32        // of a process id
	MaxPath    = 4095      // of a path (PATH_MAX without the NUL)
	MaxFilter  = 4096 * 8  // of a seccomp filter (BPF_MAXINSNS of 8 bytes)
	MaxRlimits = 16        // number of limits in Setup
	MaxKeep    = 8         // number of descriptors init holds for a process
	MaxJoin    = 4         // number of cgroup files a process enters by
	MaxFDs     = 3 + MaxKeep + MaxJoin
	MaxData    = 32 << 10 // of one Input or Output
	MaxProcs   = 1024     // number of processes that live, and of kept results
	NonceLen   = 16
	headerLen  = 6
)

// Type says what a message is.
type Type uint8

// Requests, from the daemon.
const (
	THello Type = 1 + iota
	TSetup
	TProbe
	TGo
	TStart
	TRelease
	TCancel
	TAck
	TResume
	TInput
	TCredit
	TResize
	TSignal
	TLetGo
)

// Messages from creel-init. TOK and TError answer a request; the others are
// events (request number 0) or the particular answer of one request.
const (
	TOK Type = 0x80 + iota
	TError
	THelloReply
	TProbeReply
	TStarted
	TResumeReply
	TRunning
	TExited
	TOutput
	TInputCredit
)

// Code is why creel-init refused a request.
type Code uint8

// The codes of TError.
const (
	CodeMalformed Code = 1 + iota
	CodeState          // not in this order: before Go, after Go, twice
	CodeUnknown        // no process of that id
	CodeExists         // the id is in use
	CodeFull           // too many processes or kept results
	CodeTooLarge       // arguments and environment over MaxArgs
	CodeOS             // a system call failed: errno
	CodeFDs            // descriptors missing or too many
)

// Stage is what a process was doing when it could not be started.
type Stage uint8

// The stages. StageNone means that it was started.
const (
	StageNone Stage = iota
	StageFork
	StageSession
	StageTTY
	StageOOM
	StageCwd
	StageExec
	StageIsolate // between StageFork and StageSession

	StageLast = StageIsolate
)

// IO says who moves a process's bytes.
type IO uint8

// The forms of IO.
const (
	IOFDs   IO = 0 // descriptors came with Start
	IOBytes IO = 1 // creel-init makes pipes or a terminal: Input and Output messages
)

// Streams of Output and Credit.
const (
	Stdin  = 0
	Stdout = 1
	Stderr = 2
)

// Header begins every message.
type Header struct {
	Type Type
	Req  uint32
}

// W appends a message. Its zero value with a buffer is ready.
type W struct{ B []byte }

// Begin starts a message in buf's memory.
func Begin(buf []byte, t Type, req uint32) W {
	w := W{buf[:0]}
	w.U8(Version)
	w.U8(uint8(t))
	w.U32(req)
	return w
}

// U8 appends one byte.
func (w *W) U8(v uint8) { w.B = append(w.B, v) }

// U16 appends two bytes.
func (w *W) U16(v uint16) { w.B = append(w.B, byte(v), byte(v>>8)) }

// U32 appends four bytes.
func (w *W) U32(v uint32) { w.B = append(w.B, byte(v), byte(v>>8), byte(v>>16), byte(v>>24)) }

// U64 appends eight bytes.
func (w *W) U64(v uint64) {
	w.U32(uint32(v))
	w.U32(uint32(v >> 32))
}

// Bool appends 0 or 1.
func (w *W) Bool(v bool) {
	if v {
		w.U8(1)
	} else {
		w.U8(0)
	}
}

// Bytes appends a length of four bytes and b.
func (w *W) Bytes(b []byte) {
	w.U32(uint32(len(b)))
	w.B = append(w.B, b...)
}

// Str appends a length of four bytes and s.
func (w *W) Str(s string) {
	w.U32(uint32(len(s)))
	w.B = append(w.B, s...)
}

// R reads a message. After the first error every read gives zero; the error
// is asked for once, at the end, with Done.
type R struct {
	b   []byte
	bad bool
}

// Open reads the header. It is false for a message of another version, or
// too short or too long to be one.
func Open(b []byte) (Header, R, bool) {
	if len(b) < headerLen || len(b) > MaxMessage {
		return Header{}, R{bad: true}, false
	}
	r := R{b: b}
	v := r.U8()
	h := Header{Type: Type(r.U8()), Req: r.U32()}
	return h, r, v == Version
}

// Body reads b as a body without header.
func Body(b []byte) R { return R{b: b} }

// Fail marks the message as wrong.
func (r *R) Fail() { r.bad, r.b = true, nil }

// OK is whether no error happened so far.
func (r *R) OK() bool { return !r.bad }

// Len is the number of bytes left.
func (r *R) Len() int { return len(r.b) }

// Done is whether the whole message was read and nothing was wrong.
func (r *R) Done() bool { return !r.bad && len(r.b) == 0 }

func (r *R) take(n int) []byte {
	if r.bad || n < 0 || n > len(r.b) {
		r.Fail()
		return nil
	}
	p := r.b[:n:n]
	r.b = r.b[n:]
	return p
}

// U8 reads one byte.
func (r *R) U8() uint8 {
	p := r.take(1)
	if p == nil {
		return 0
	}
	return p[0]
}

// U16 reads two bytes.
func (r *R) U16() uint16 {
	p := r.take(2)
	if p == nil {
		return 0
	}
	return uint16(p[0]) | uint16(p[1])<<8
}

// U32 reads four bytes.
func (r *R) U32() uint32 {
	p := r.take(4)
	if p == nil {
		return 0
	}
	return uint32(p[0]) | uint32(p[1])<<8 | uint32(p[2])<<16 | uint32(p[3])<<24
}

// U64 reads eight bytes.
func (r *R) U64() uint64 {
	lo := uint64(r.U32())
	return lo | uint64(r.U32())<<32
}

// Bool reads 0 or 1; another value is an error, so that a message has one form.
func (r *R) Bool() bool {
	v := r.U8()
	if v > 1 {
		r.Fail()
	}
	return v == 1
}

// Bytes reads at most limit bytes. The result is part of the message.
func (r *R) Bytes(limit int) []byte {
	n := r.U32()
	if uint64(n) > uint64(limit) {
		r.Fail()
		return nil
	}
	return r.take(int(n))
}

// Str reads a copy of at most limit bytes.
func (r *R) Str(limit int) string { return string(r.Bytes(limit)) }

// CStr reads at most limit bytes that contain no NUL. The result is part of
// the message.
func (r *R) CStr(limit int) []byte {
	b := r.Bytes(limit)
	for _, c := range b { //nolint:modernize // this package imports nothing
		if c == 0 {
			r.Fail()
			return nil
		}
	}
	return b
}

// ID reads a process id: 1 to MaxID of [a-z0-9-].
func (r *R) ID() string {
	s := r.Str(MaxID)
	if !ValidID(s) {
		r.Fail()
		return ""
	}
	return s
}

// ValidID is whether s can be a process id.
func ValidID(s string) bool {
	if s == "" || len(s) > MaxID {
		return false
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// Rest reads everything that is left. The result is part of the message.
func (r *R) Rest() []byte { return r.take(len(r.b)) }
