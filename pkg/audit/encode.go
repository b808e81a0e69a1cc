package audit

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// headDomain begins what a head's signature is of, so that it is good for
// nothing else that the key signs.
const headDomain = "creel audit head v1\n"

// signed is what a head's signature is of: the line up to its signature.
func signed(unsigned []byte) []byte { return append([]byte(headDomain), unsigned...) }

func hashOf(line []byte) Hash { return sha256.Sum256(line) }

// line is the record's canonical form, without a newline: fields in this
// order, those that are empty left out, printable ASCII only. There is one
// form of a record, and decode takes no other.
func (r *Record) line() []byte {
	w := writer{b: make([]byte, 0, 512)}
	w.raw(`{"seq":`, strconv.FormatUint(r.Seq, 10), `,"time":"`, r.Time.UTC().Format(timeLayout), `","prev":"`, r.Prev.String(), `","kind":"`, string(r.Kind), `"`)
	w.str("chain", r.Chain)
	w.str("action", r.Action)
	w.str("op", r.Op)
	w.who(r.Who)
	w.str("agent", r.Agent)
	w.str("sandbox", r.Sandbox)
	w.str("object", r.Object)
	w.list("command", r.Command)
	w.strs("asked", r.Asked)
	w.strs("decided", r.Decided)
	w.strs("digests", r.Digests)
	w.strs("detail", r.Detail)
	w.result(r.Result)
	if d := r.Drop; d != nil {
		w.raw(`,"drop":{"first":`, strconv.FormatUint(d.First, 10), `,"last":`, strconv.FormatUint(d.Last, 10), `,"hash":"`, d.Hash.String(), `"}`)
	}
	if s := r.Seal; s != nil {
		w.raw(`,"seal":{"bytes":`, strconv.FormatInt(s.Bytes, 10), `,"records":`, strconv.FormatInt(s.Records, 10),
			`,"heads":`, strconv.FormatInt(s.Heads, 10), `,"hash":"`, s.Hash.String(), `"`)
		w.str("aside", s.Aside)
		w.raw(`}`)
	}
	w.str("key", r.Key)
	if r.Kind == Head && r.Sig != nil {
		w.raw(`,"sig":"`, base64.StdEncoding.EncodeToString(r.Sig), `"`)
	}
	if r.Kind == Head && r.Sig == nil {
		return w.b // open, for the signature
	}
	w.raw(`}`)
	return w.b
}

// sign makes a head's signature and gives its line.
func (r *Record) sign(k Signer) []byte {
	r.Kind, r.Key, r.Sig = Head, k.ID(), nil
	b := r.line()
	r.Sig = k.Sign(signed(b))
	b = append(b, `,"sig":"`...)
	b = base64.StdEncoding.AppendEncode(b, r.Sig)
	return append(b, `"}`...)
}

type writer struct{ b []byte }

func (w *writer) raw(parts ...string) {
	for _, p := range parts {
		w.b = append(w.b, p...)
	}
}

func (w *writer) str(key, v string) {
	if v != "" {
		w.raw(`,"`, key, `":`)
		w.quote(v)
	}
}

// quote escapes whatever is not printable ASCII, so that no terminal, editor
// or log collector can be made to see another text than there is.
func (w *writer) quote(s string) {
	const hexDigits = "0123456789abcdef"
	unit := func(u uint16) {
		w.b = append(w.b, '\\', 'u', hexDigits[u>>12], hexDigits[u>>8&15], hexDigits[u>>4&15], hexDigits[u&15])
	}
	w.b = append(w.b, '"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			w.b = append(w.b, '\\', byte(r))
		case r >= 0x20 && r < 0x7f:
			w.b = append(w.b, byte(r))
		case r < 0x10000:
			unit(uint16(r))
		default: // RFC 8259 section 7: a surrogate pair
			r -= 0x10000
			unit(uint16(0xd800 + r>>10))
			unit(uint16(0xdc00 + r&0x3ff))
		}
	}
	w.b = append(w.b, '"')
}

func (w *writer) who(p *Who) {
	if p == nil {
		return
	}
	w.raw(`,"who":{"uid":`, strconv.FormatUint(uint64(p.UID), 10), `,"gid":`, strconv.FormatUint(uint64(p.GID), 10))
	if len(p.Groups) > 0 {
		w.raw(`,"groups":[`)
		for i, g := range p.Groups {
			if i > 0 {
				w.raw(`,`)
			}
			w.raw(strconv.FormatUint(uint64(g), 10))
		}
		w.raw(`]`)
	}
	w.raw(`,"pid":`, strconv.FormatInt(int64(p.PID), 10))
	w.str("exe", p.Exe)
	w.raw(`,"login_uid":`, strconv.FormatInt(p.LoginUID, 10))
	w.str("via", p.Via)
	w.raw(`}`)
}

func (w *writer) list(key string, vs []string) {
	if len(vs) == 0 {
		return
	}
	w.raw(`,"`, key, `":[`)
	for i, v := range vs {
		if i > 0 {
			w.raw(`,`)
		}
		w.quote(v)
	}
	w.raw(`]`)
}

func (w *writer) strs(key string, m map[string]string) {
	if len(m) == 0 {
		return
	}
	w.raw(`,"`, key, `":{`)
	for i, k := range slices.Sorted(maps.Keys(m)) {
		if i > 0 {
			w.raw(`,`)
		}
		w.quote(k)
		w.raw(`:`)
		w.quote(m[k])
	}
	w.raw(`}`)
}

func (w *writer) result(r *Result) {
	if r == nil {
		return
	}
	w.raw(`,"result":{"code":`)
	w.quote(r.Code)
	w.str("message", r.Message)
	if r.Exit != nil {
		w.raw(`,"exit":`, strconv.Itoa(*r.Exit))
	}
	w.str("reason", r.Reason)
	w.raw(`}`)
}

// budget is how much text a record may still hold.
type budget int

// cut makes a text valid and short.
func (b *budget) cut(s string, most int) string {
	s = strings.ToValidUTF8(s, "\ufffd")
	most = min(most, int(*b))
	if len(s) > most {
		keep := max(0, most)
		for keep > 0 && !utf8.RuneStart(s[keep]) {
			keep--
		}
		*b -= budget(keep)
		return s[:keep] + fmt.Sprintf("...(+%d bytes)", len(s)-keep)
	}
	*b -= budget(len(s))
	return s
}

// strs keeps the first MaxKeys by name.
func (b *budget) strs(m map[string]string) map[string]string {
	if len(m) == 0 {
		return nil
	}
	out := make(map[string]string, min(len(m), MaxKeys))
	for i, k := range slices.Sorted(maps.Keys(m)) {
		if i == MaxKeys {
			out["..."] = fmt.Sprintf("(+%d more)", len(m)-i)
			break
		}
		out[b.cut(k, MaxName)] = b.cut(m[k], MaxText)
	}
	return out
}

// bounded is the entry as it is recorded; what the caller holds is not changed.
func (e Entry) bounded(now time.Time) Entry {
	b := budget(maxBudget)
	if e.Time.IsZero() {
		e.Time = now
	}
	e.Action, e.Op = b.cut(e.Action, MaxName), b.cut(e.Op, MaxName)
	if e.Who != nil {
		who := *e.Who
		who.Groups = slices.Clone(who.Groups[:min(len(who.Groups), MaxGroups)])
		who.Exe = b.cut(who.Exe, MaxText)
		e.Who = &who
	}
	e.Agent, e.Sandbox, e.Object = b.cut(e.Agent, MaxName), b.cut(e.Sandbox, MaxName), b.cut(e.Object, MaxText)
	if r := e.Result; r != nil {
		out := *r
		out.Code, out.Message, out.Reason = b.cut(r.Code, MaxName), b.cut(r.Message, MaxText), b.cut(r.Reason, MaxName)
		e.Result = &out
	}
	e.Digests, e.Detail = b.strs(e.Digests), b.strs(e.Detail)
	e.Decided, e.Asked = b.strs(e.Decided), b.strs(e.Asked)
	args, left := e.Command, budget(MaxCommand)
	e.Command = nil
	for i, a := range args {
		if i == MaxArgs {
			e.Command = append(e.Command, fmt.Sprintf("...(+%d more)", len(args)-i))
			break
		}
		had := len(e.Command)
		e.Command = append(e.Command, left.cut(a, int(min(left, b))))
		b -= budget(min(len(e.Command[had]), int(b)))
	}
	return e
}

// parseHash takes lower case only: one hash, one form.
func parseHash[T string | []byte](s T) (h Hash, ok bool) {
	if len(s) != 2*len(h) {
		return h, false
	}
	for i := range h {
		hi, lo := nibble(s[2*i]), nibble(s[2*i+1])
		if hi > 15 || lo > 15 {
			return Hash{}, false
		}
		h[i] = hi<<4 | lo
	}
	return h, true
}

// nibble is a hexadecimal digit's value, 255 of anything else.
func nibble(c byte) byte {
	switch {
	case c >= '0' && c <= '9':
		return c - '0'
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10
	}
	return 255
}
