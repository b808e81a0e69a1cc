// Package link is what creeld and a creel-egress say to each other: orders and
// answers over a Unix socket of sequenced packets, in turn, with descriptors
// beside them.
//
// creeld makes and names the socket, in a directory that only root can enter, and
// the process listens on it. So a creeld that was started again finds the process
// there, and the kernel says whose it is (SO_PEERCRED).
//
// What may be long is a Document, in a memory file that nobody can change any
// more: it is there as a whole, or it is refused.
package link

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/egress"
	"github.com/creel-sandbox/creel/pkg/egress/credential"
	"github.com/creel-sandbox/creel/pkg/egress/outside"
)

// Version is of all of this package. One end does not use another's of another
// version.
const Version = 3

// FD is the descriptor at which the process finds its socket, bound and not
// listening.
const FD = 3

// Orders.
const (
	Hello   = "hello"   // what build it is; with a document, Host
	Add     = "add"     // a sandbox; with a document, Policy, and its four sockets
	Change  = "change"  // its policy; with a document, Policy
	Remove  = "remove"  // it, and all of its connections
	List    = "list"    // the ids of all
	Sockets = "sockets" // back, of one; with the names that it has
	Log     = "log"     // from here on the process sends Records, and takes no orders
	Ask     = "ask"     // from here on the process sends Questions, each of which has its Reply
)

// BuildOf is the digest of a program, which names a build of it.
func BuildOf(program io.Reader) (string, error) {
	h := sha256.New()
	if _, err := io.Copy(h, program); err != nil {
		return "", err
	}
	return fmt.Sprintf("sha256:%x", h.Sum(nil)), nil
}

// Order is what creeld says.
type Order struct {
	Op string `json:"op"`
	ID string `json:"id,omitempty"` // of the sandbox
}

// Answer is what the process says to each.
type Answer struct {
	// Error is why it was not done.
	Error string `json:"error,omitempty"`
	// Version and Build are said to Hello. Build is the program's own digest.
	Version int    `json:"version,omitempty"`
	Build   string `json:"build,omitempty"`
	// IDs are said to List.
	IDs []string `json:"ids,omitempty"`
}

// Party is one of those who have a say in what a sandbox reaches.
type Party = api.EgressParty

// Policy is all that is decided by for one sandbox.
type Policy struct {
	// Generation is greater than that of the policy before. Required.
	Generation uint64  `json:"generation"`
	Parties    []Party `json:"parties"`
	// Range6 is the sandbox's own /64 of synthetic addresses, for its life.
	Range6 netip.Prefix `json:"range6"`
	// Names have the first synthetic addresses, in this order: those that the
	// sandbox was told by a process before this one.
	Names []egress.Name `json:"names,omitempty"`
	// Secrets are what it may use.
	Secrets []credential.Secret `json:"secrets,omitempty"`
	// Once are let one time each.
	Once []Once `json:"once,omitempty"`
	// Limits bound the sandbox.
	Limits Limits `json:"limits"`
}

// Once is a rule that lets one connection or request through that the parties do
// not allow.
type Once struct {
	ID   string `json:"id"`
	Rule string `json:"rule"`
	// Parties are those, by index, that do not allow it and are held to.
	Parties []int `json:"parties"`
}

// Limits are of one sandbox. All are required.
type Limits struct {
	// Connections is how many there may be at one time.
	Connections int `json:"connections"`
	// Names is how many names it may look up in its life.
	Names int `json:"names"`
	// Budget is what it may use in its life. Of 0 there is no end.
	Budget Spent `json:"budget"`
	// Spent is what it used of that before this process.
	Spent Spent `json:"spent"`
}

// Spent is what goes out of a sandbox and comes back in its life.
type Spent struct {
	// Bytes are those to servers and from them.
	Bytes int64 `json:"bytes,omitempty"`
	// Connections are those that were let through.
	Connections int64 `json:"connections,omitempty"`
	// Requests are those that were read and let through.
	Requests int64 `json:"requests,omitempty"`
}

// Host is what a process has to know of its host, since it opens no file.
type Host struct {
	Resolve outside.Config `json:"resolve"`
	// Roots are the certificates that servers are verified by, as PEM.
	Roots string `json:"roots"`
	// Authority is what TLS is opened up with, as of authority.Secret: the
	// caller's own.
	Authority []byte `json:"authority"`
}

// Kinds of Records.
const (
	KindName       = "name"       // looked up
	KindConnection = "connection" // that ended, or was refused
	KindRequest    = "request"    // that was read
	KindSpent      = "spent"      // what a sandbox with a budget has used
	KindOver       = "over"       // a budget that is used up: To names it
	KindOnce       = "once"       // a Once that was used: To is its ID
	KindLost       = "lost"       // records that nobody took in time
)

// Record is one decision, or the end of what it let through. Its strings are
// bounded; what the agent wrote in them is not otherwise changed.
type Record struct {
	// Time is when it was decided, in nanoseconds since 1970.
	Time    int64  `json:"time"`
	ID      string `json:"id"` // of the sandbox; empty for KindLost
	Kind    string `json:"kind"`
	Allowed bool   `json:"allowed"`
	// To is a name, or a host or address with a port.
	To string `json:"to,omitempty"`
	// Scheme, Method and Path are of a request.
	Scheme string `json:"scheme,omitempty"`
	Method string `json:"method,omitempty"`
	Path   string `json:"path,omitempty"`
	// Rules allowed it, one for each party.
	Rules []string `json:"rules,omitempty"`
	// Secrets are those that a request was sent with.
	Secrets []string `json:"secrets,omitempty"`
	// By is the party that refused it, if it was one.
	By string `json:"by,omitempty"`
	// Error is why it was refused, or what broke.
	Error string `json:"error,omitempty"`
	// Dialled is the address outside.
	Dialled string `json:"dialled,omitempty"`
	// Out and In are bytes of a connection, and Took is how long it was, in
	// nanoseconds.
	Out  int64 `json:"out,omitempty"`
	In   int64 `json:"in,omitempty"`
	Took int64 `json:"took,omitempty"`
	// Name is one that now has the next synthetic address, of KindName.
	Name egress.Name `json:"name,omitempty"`
	// Spent is of KindSpent.
	Spent *Spent `json:"spent,omitempty"`
	// Lost is how many, of KindLost.
	Lost uint64 `json:"lost,omitempty"`
}

// Question is what a process asks for one of its sandboxes: who it is, or, with an
// Agent, a connection to a server of that agent's.
type Question struct {
	Seq uint64 `json:"seq"` // of its answer, too
	ID  string `json:"id"`  // of the sandbox
	// Key is a public key, as a SubjectPublicKeyInfo in DER.
	Key []byte `json:"key,omitempty"`
	// Agent is an agent of the same caller's, and Port where its server listens.
	Agent string `json:"agent,omitempty"`
	Port  uint16 `json:"port,omitempty"`
}

// Reply is the answer: an SVID, or, beside it, a connection; or why there is none.
type Reply struct {
	Seq   uint64 `json:"seq"`
	Error string `json:"error,omitempty"`
	// Refused says that there will be none.
	Refused bool `json:"refused,omitempty"`
	// SPIFFEID is what Certificate has, in DER, and Bundle the authorities of its
	// trust domain.
	SPIFFEID    string   `json:"spiffe_id,omitempty"`
	Certificate []byte   `json:"certificate,omitempty"`
	Bundle      [][]byte `json:"bundle,omitempty"`
}

// Bounds.
const (
	maxMessage  = 64 << 10 // bytes
	maxDocument = 8 << 20
	// MaxFiles is how many descriptors come with one message: a document and
	// four sockets.
	MaxFiles = 5
)

// Errors of this package, to be tested with errors.Is.
var (
	// ErrMessage is one that is not as it has to be.
	ErrMessage = errors.New("a message that is not understood")
	// ErrDocument is one that is not whole, or can still be changed.
	ErrDocument = errors.New("a document that cannot be used")
)

// Conn is one end. One may send while another receives, and no more.
type Conn struct{ c *net.UnixConn }

// NewConn is of a connection of sequenced packets.
func NewConn(c *net.UnixConn) *Conn { return &Conn{c} }

// Net is the connection.
func (c *Conn) Net() *net.UnixConn { return c.c }

// Close closes it.
func (c *Conn) Close() error { return c.c.Close() }

// Send sends a message and descriptors, which stay the sender's.
func (c *Conn) Send(v any, files ...*os.File) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(b) > maxMessage || len(files) > MaxFiles {
		return fmt.Errorf("%w: %d bytes and %d descriptors", ErrMessage, len(b), len(files))
	}
	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			// Fd would have a socket block, at the other end as well.
			raw, err := f.SyscallConn()
			if err == nil {
				err = raw.Control(func(fd uintptr) { fds[i] = int(fd) })
			}
			if err != nil {
				return err
			}
		}
		oob = unix.UnixRights(fds...)
	}
	_, _, err = c.c.WriteMsgUnix(b, oob, nil)
	runtime.KeepAlive(files)
	return err
}

// Receive takes the next message, and the descriptors that came with it. The
// error is io.EOF where there is none any more. After an error nothing is left
// open.
func (c *Conn) Receive(v any) (files []*os.File, err error) {
	b, oob := make([]byte, maxMessage+1), make([]byte, unix.CmsgSpace(4*(MaxFiles+1)))
	n, nn, flags, _, err := c.c.ReadMsgUnix(b, oob)
	if err != nil {
		return nil, err
	}
	files, err = received(oob[:nn])
	defer func() {
		if err != nil {
			closeAll(files)
			files = nil
		}
	}()
	switch {
	case err != nil:
	case n == 0 && nn == 0:
		err = io.EOF
	case flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 || len(files) > MaxFiles:
		err = fmt.Errorf("%w: it is too long", ErrMessage)
	default:
		err = decode(b[:n], v)
	}
	return files, err
}

func received(oob []byte) (files []*os.File, err error) {
	all, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMessage, err)
	}
	for _, m := range all {
		fds, err := unix.ParseUnixRights(&m)
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
		if err != nil {
			return files, fmt.Errorf("%w: %w", ErrMessage, err)
		}
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// decode takes exactly one value, of known fields.
func decode(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("%w: %w", ErrMessage, err)
	}
	if d.More() {
		return fmt.Errorf("%w: more than one value", ErrMessage)
	}
	return nil
}

// seals are those of a document: nobody changes it any more (fcntl(2)).
const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE

// Document is a memory file of v. The caller closes it.
func Document(name string, v any) (_ *os.File, err error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	if len(b) > maxDocument {
		return nil, fmt.Errorf("%w: %s has %d bytes", ErrDocument, name, len(b))
	}
	fd, err := unix.MemfdCreate("creel-"+name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("document: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	_, err = f.Write(b)
	if err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("document: %w", err), f.Close())
	}
	return f, nil
}

// ReadDocument reads one into v.
func ReadDocument(f *os.File, v any) error {
	got, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0)
	if err != nil || got&seals != seals {
		return fmt.Errorf("%w: it can be changed", ErrDocument)
	}
	st, err := f.Stat()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrDocument, err)
	}
	if st.Size() > maxDocument {
		return fmt.Errorf("%w: it has %d bytes", ErrDocument, st.Size())
	}
	b := make([]byte, st.Size())
	if _, err := io.ReadFull(io.NewSectionReader(f, 0, st.Size()), b); err != nil {
		return fmt.Errorf("%w: %w", ErrDocument, err)
	}
	if err := decode(b, v); err != nil {
		return fmt.Errorf("%w: %w", ErrDocument, err)
	}
	return nil
}
