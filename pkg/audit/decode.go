package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"
)

// ErrBadRecord is a line that this package has not written.
var ErrBadRecord = errors.New("not an audit record")

// wire is the JSON form, for reading only.
type wire struct {
	Seq     uint64            `json:"seq"`
	Time    string            `json:"time"`
	Prev    string            `json:"prev"`
	Kind    Kind              `json:"kind"`
	Chain   string            `json:"chain"`
	Action  string            `json:"action"`
	Op      string            `json:"op"`
	Who     *wireWho          `json:"who"`
	Agent   string            `json:"agent"`
	Sandbox string            `json:"sandbox"`
	Object  string            `json:"object"`
	Command []string          `json:"command"`
	Asked   map[string]string `json:"asked"`
	Decided map[string]string `json:"decided"`
	Digests map[string]string `json:"digests"`
	Detail  map[string]string `json:"detail"`
	Result  *wireResult       `json:"result"`
	Drop    *wireDrop         `json:"drop"`
	Seal    *wireSeal         `json:"seal"`
	Key     string            `json:"key"`
	Sig     []byte            `json:"sig"`
}

type wireWho struct {
	UID      uint32   `json:"uid"`
	GID      uint32   `json:"gid"`
	Groups   []uint32 `json:"groups"`
	PID      int32    `json:"pid"`
	Exe      string   `json:"exe"`
	LoginUID int64    `json:"login_uid"`
	Via      string   `json:"via"`
}

type wireResult struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Exit    *int   `json:"exit"`
	Reason  string `json:"reason"`
}

type wireDrop struct {
	First uint64 `json:"first"`
	Last  uint64 `json:"last"`
	Hash  string `json:"hash"`
}

type wireSeal struct {
	Bytes   int64  `json:"bytes"`
	Records int64  `json:"records"`
	Heads   int64  `json:"heads"`
	Hash    string `json:"hash"`
	Aside   string `json:"aside"`
}

// Parse reads one line, without its newline. It takes only the one form that
// a record has. The error wraps ErrBadRecord.
func Parse(line []byte) (*Record, error) {
	if len(line) > MaxLine {
		return nil, fmt.Errorf("%w: longer than %d bytes", ErrBadRecord, MaxLine)
	}
	var w wire
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(&w); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadRecord, err)
	}
	r := &Record{Seq: w.Seq, Chain: w.Chain, Key: w.Key, Sig: w.Sig, Entry: Entry{
		Kind: w.Kind, Action: w.Action, Op: w.Op, Agent: w.Agent, Sandbox: w.Sandbox, Object: w.Object,
		Command: w.Command, Asked: w.Asked, Decided: w.Decided, Digests: w.Digests, Detail: w.Detail,
	}}
	r.Time, _ = time.Parse(timeLayout, w.Time) // a time that is none is not the same again below
	r.Prev, _ = parseHash(w.Prev)
	if p := w.Who; p != nil {
		r.Who = (*Who)(p)
	}
	if p := w.Result; p != nil {
		r.Result = (*Result)(p)
	}
	if p := w.Drop; p != nil {
		hash, _ := parseHash(p.Hash)
		r.Drop = &DropInfo{First: p.First, Last: p.Last, Hash: hash}
	}
	if p := w.Seal; p != nil {
		hash, _ := parseHash(p.Hash)
		r.Seal = &SealInfo{Bytes: p.Bytes, Records: p.Records, Heads: p.Heads, Hash: hash, Aside: p.Aside}
	}
	if !bytes.Equal(r.line(), line) {
		return nil, fmt.Errorf("%w: not in canonical form", ErrBadRecord)
	}
	return r, nil
}

// outline is what the chain needs of a line, read without the rest.
type outline struct {
	seq  uint64
	prev Hash
	kind Kind
	time []byte
}

// scan reads a line's outline. Whatever else the line holds is under its hash.
func scan(line []byte) (o outline, ok bool) {
	rest, ok := bytes.CutPrefix(line, []byte(`{"seq":`))
	if !ok {
		return o, false
	}
	n := 0
	for n < len(rest) && rest[n] >= '0' && rest[n] <= '9' {
		n++
	}
	if n == 0 || n > 20 || rest[0] == '0' {
		return o, false
	}
	var err error
	if o.seq, err = strconv.ParseUint(string(rest[:n]), 10, 64); err != nil {
		return o, false
	}
	if rest, ok = bytes.CutPrefix(rest[n:], []byte(`,"time":"`)); !ok || len(rest) < len(timeLayout) {
		return o, false
	}
	o.time, rest = rest[:len(timeLayout)], rest[len(timeLayout):]
	if rest, ok = bytes.CutPrefix(rest, []byte(`","prev":"`)); !ok || len(rest) < 64 {
		return o, false
	}
	if o.prev, ok = parseHash(rest[:64]); !ok {
		return o, false
	}
	if rest, ok = bytes.CutPrefix(rest[64:], []byte(`","kind":"`)); !ok {
		return o, false
	}
	end := bytes.IndexByte(rest, '"')
	if end < 1 || line[len(line)-1] != '}' {
		return o, false
	}
	switch o.kind = Kind(rest[:end]); o.kind {
	case Intent, Outcome, Fact, Begin, Head, Drop, Seal:
		return o, true
	}
	return o, false
}

const sigField = `,"sig":"`

// checkHead says whether a head's line is signed by the key that it names,
// and names it.
func checkHead(line []byte, keys map[string]Public) (key string, known, good bool) {
	i := bytes.LastIndex(line, []byte(sigField))
	r, err := Parse(line)
	if i < 0 || err != nil || r.Kind != Head {
		return "", false, false
	}
	k, ok := keys[r.Key]
	return r.Key, ok, ok && k.Verify(signed(line[:i]), r.Sig)
}

// Signer is the box's key. *boxkey.Key is one.
type Signer interface {
	ID() string
	Sign(msg []byte) []byte
}

// Public is the half of it that verifies. boxkey.Public is one.
type Public interface {
	ID() string
	Verify(msg, sig []byte) bool
}
