package openclaw

import (
	"errors"
	"fmt"
	"math"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxDepth is how deep a document may be.
const maxDepth = 200

type kind int

const (
	object kind = iota
	array
	scalar
)

// node is a value of a JSON5 document and where in the text it is, so that
// the text can be changed there and nowhere else.
type node struct {
	kind       kind
	start, end int
	value      any // of a scalar: string, float64, bool or nil
	parts      []part
	// comma is where a comma after the last part ends; 0 if there is none.
	comma int
}

// part is a member of an object or an item of an array, which has no key.
type part struct {
	key   string
	start int // of the key, or of the item
	val   *node
}

// find is the member that counts: the last of its name.
func (n *node) find(key string) *node {
	for _, p := range slices.Backward(n.parts) {
		if n.kind == object && p.key == key {
			return p.val
		}
	}
	return nil
}

// decode gives what encoding/json would.
func (n *node) decode() any {
	switch n.kind {
	case object:
		m := make(map[string]any, len(n.parts))
		for _, p := range n.parts {
			m[p.key] = p.val.decode()
		}
		return m
	case array:
		list := make([]any, len(n.parts))
		for i, p := range n.parts {
			list[i] = p.val.decode()
		}
		return list
	case scalar:
	}
	return n.value
}

// parse reads a whole JSON5 document (json5.org, version 1.0.0).
func parse(text string) (*node, error) {
	if !utf8.ValidString(text) {
		return nil, errors.New("not UTF-8")
	}
	p := &parser{s: text}
	n, err := p.document()
	if err != nil {
		at := text[:min(p.i, len(text))]
		line := strings.Count(at, "\n") + 1
		col := utf8.RuneCountInString(at[strings.LastIndexByte(at, '\n')+1:]) + 1
		return nil, fmt.Errorf("line %d, column %d: %w", line, col, err)
	}
	return n, nil
}

type parser struct {
	s     string
	i     int // what was read; on an error, where it is
	depth int
}

func (p *parser) document() (*node, error) {
	if err := p.space(); err != nil {
		return nil, err
	}
	n, err := p.value()
	if err != nil {
		return nil, err
	}
	if err := p.space(); err != nil {
		return nil, err
	}
	if p.i < len(p.s) {
		return nil, p.unexpected()
	}
	return n, nil
}

func (p *parser) peek() rune {
	if p.i >= len(p.s) {
		return -1
	}
	r, _ := utf8.DecodeRuneInString(p.s[p.i:])
	return r
}

func (p *parser) unexpected() error {
	if r := p.peek(); r >= 0 {
		return fmt.Errorf("unexpected %q", r)
	}
	return errors.New("unexpected end")
}

// space skips white space and comments.
func (p *parser) space() error {
	for {
		switch r := p.peek(); {
		case r == '/':
			rest := p.s[p.i:]
			switch {
			case strings.HasPrefix(rest, "//"):
				if i := strings.IndexAny(rest, "\n\r\u2028\u2029"); i >= 0 {
					p.i += i
				} else {
					p.i = len(p.s)
				}
			case strings.HasPrefix(rest, "/*"):
				i := strings.Index(rest[2:], "*/")
				if i < 0 {
					return errors.New("a comment without an end")
				}
				p.i += 2 + i + 2
			default:
				return p.unexpected()
			}
		case r >= 0 && isSpace(r):
			p.i += utf8.RuneLen(r)
		default:
			return nil
		}
	}
}

func isSpace(r rune) bool {
	return strings.ContainsRune("\t\v\f\n\r\u2028\u2029\ufeff", r) || unicode.Is(unicode.Zs, r)
}

func (p *parser) value() (*node, error) {
	n := &node{kind: scalar, start: p.i}
	var err error
	switch r := p.peek(); {
	case r == '{', r == '[':
		err = p.container(n, byte(r))
	case r == '"', r == '\'':
		n.value, err = p.quoted(byte(r))
	case r == '+', r == '-', r == '.', r >= '0' && r <= '9', r == 'I', r == 'N':
		n.value, err = p.number()
	case p.literal("true"):
		n.value = true
	case p.literal("false"):
		n.value = false
	case p.literal("null"):
	default:
		err = p.unexpected()
	}
	n.end = p.i
	return n, err
}

func (p *parser) literal(word string) bool {
	if !strings.HasPrefix(p.s[p.i:], word) {
		return false
	}
	p.i += len(word)
	return true
}

// container reads an object or an array from its opening to its closing.
func (p *parser) container(n *node, open byte) error {
	if p.depth++; p.depth > maxDepth {
		return fmt.Errorf("deeper than %d levels", maxDepth)
	}
	defer func() { p.depth-- }()
	n.kind = object
	closing := byte('}')
	if open == '[' {
		n.kind, closing = array, ']'
	}
	p.i++
	for {
		if err := p.space(); err != nil {
			return err
		}
		if p.i < len(p.s) && p.s[p.i] == closing {
			p.i++
			return nil
		}
		if len(n.parts) > 0 && n.comma == 0 {
			return p.unexpected()
		}
		pt := part{start: p.i}
		err := p.part(n.kind, &pt)
		if err != nil {
			return err
		}
		n.parts = append(n.parts, pt)
		if err := p.space(); err != nil {
			return err
		}
		n.comma = 0
		if p.literal(",") {
			n.comma = p.i
		}
	}
}

func (p *parser) part(k kind, pt *part) (err error) {
	if k == object {
		if pt.key, err = p.key(); err != nil {
			return err
		}
		if err := p.space(); err != nil {
			return err
		}
		if !p.literal(":") {
			return p.unexpected()
		}
		if err := p.space(); err != nil {
			return err
		}
	}
	pt.val, err = p.value()
	return err
}

func (p *parser) key() (string, error) {
	if r := p.peek(); r == '"' || r == '\'' {
		return p.quoted(byte(r))
	}
	var b strings.Builder
	for {
		r, size := p.peek(), 0
		if r >= 0 {
			size = utf8.RuneLen(r)
		}
		if r == '\\' {
			if !strings.HasPrefix(p.s[p.i:], `\u`) {
				return "", p.unexpected()
			}
			u, err := p.hex(p.i+2, 4)
			if err != nil {
				return "", err
			}
			r, size = u, 6
			if !isIdentifier(r, b.Len() == 0) {
				return "", p.unexpected()
			}
		}
		if r < 0 || !isIdentifier(r, b.Len() == 0) {
			if b.Len() == 0 {
				return "", p.unexpected()
			}
			return b.String(), nil
		}
		b.WriteRune(r)
		p.i += size
	}
}

func isIdentifier(r rune, first bool) bool {
	if r == '$' || r == '_' || unicode.IsLetter(r) || unicode.Is(unicode.Nl, r) {
		return true
	}
	return !first && (r == '\u200c' || r == '\u200d' || unicode.In(r, unicode.Mn, unicode.Mc, unicode.Nd, unicode.Pc))
}

// hex reads n digits at i.
func (p *parser) hex(i, n int) (rune, error) {
	if i+n > len(p.s) {
		return 0, errors.New("an escape that is cut off")
	}
	v, err := strconv.ParseUint(p.s[i:i+n], 16, 32)
	if err != nil {
		return 0, fmt.Errorf("%q is not %d hexadecimal digits", p.s[i:i+n], n)
	}
	return rune(v), nil
}

func (p *parser) quoted(quote byte) (string, error) {
	var b strings.Builder
	for p.i++; ; {
		switch r := p.peek(); {
		case r < 0, r == '\n', r == '\r':
			return "", errors.New("a string without an end")
		case r == rune(quote):
			p.i++
			return b.String(), nil
		case r == '\\':
			if err := p.escape(&b); err != nil {
				return "", err
			}
		default:
			b.WriteRune(r)
			p.i += utf8.RuneLen(r)
		}
	}
}

var escapes = map[rune]rune{'b': '\b', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t', 'v': '\v'}

// escape reads one of a string, from its backslash on.
func (p *parser) escape(b *strings.Builder) error {
	p.i++
	r := p.peek()
	if r < 0 {
		return p.unexpected()
	}
	digits := map[rune]int{'x': 2, 'u': 4}[r]
	switch c, known := escapes[r]; {
	case known:
		b.WriteRune(c)
	case digits > 0:
		u, err := p.hex(p.i+1, digits)
		if err != nil {
			return err
		}
		p.i += digits
		b.WriteRune(p.surrogate(u)) // half a pair becomes U+FFFD
	case r == '\r' && strings.HasPrefix(p.s[p.i:], "\r\n"):
		p.i++
	case r == '\n', r == '\r', r == '\u2028', r == '\u2029': // the string goes on in the next line
	case r == '0':
		if next := p.s[p.i+1:]; next != "" && next[0] >= '0' && next[0] <= '9' {
			return errors.New("an octal escape")
		}
		b.WriteByte(0)
	case r >= '1' && r <= '9':
		return errors.New("an octal escape")
	default:
		b.WriteRune(r)
	}
	p.i += utf8.RuneLen(r)
	return nil
}

// surrogate joins the second half to the first one of a pair. The reader is at
// the letter u, and its digits were counted already.
func (p *parser) surrogate(u rune) rune {
	after := p.i + 1
	if u < 0xd800 || u > 0xdbff || !strings.HasPrefix(p.s[after:], `\u`) {
		return u
	}
	low, err := p.hex(after+2, 4)
	if err != nil || low < 0xdc00 || low > 0xdfff {
		return u
	}
	p.i += 6
	return (u-0xd800)<<10 + (low - 0xdc00) + 0x10000
}

func (p *parser) number() (float64, error) {
	sign := 1.0
	if r := p.peek(); r == '+' || r == '-' {
		if p.i++; r == '-' {
			sign = -1
		}
	}
	switch {
	case p.literal("Infinity"):
		return math.Inf(int(sign)), nil
	case p.literal("NaN"):
		return math.NaN(), nil
	case p.literal("0x"), p.literal("0X"):
		digits := p.digits("0123456789abcdefABCDEF")
		v, ok := new(big.Int).SetString(digits, 16)
		if !ok {
			return 0, p.unexpected()
		}
		f, _ := new(big.Float).SetInt(v).Float64()
		return sign * f, nil
	}
	from := p.i
	const decimal = "0123456789"
	whole := p.literal("0") || p.digits(decimal) != ""
	fraction := p.literal(".") && p.digits(decimal) != ""
	if !whole && !fraction {
		return 0, p.unexpected()
	}
	if p.literal("e") || p.literal("E") {
		if !p.literal("+") {
			p.literal("-")
		}
		if p.digits(decimal) == "" {
			return 0, p.unexpected()
		}
	}
	f, err := strconv.ParseFloat(p.s[from:p.i], 64)
	if err != nil && !errors.Is(err, strconv.ErrRange) { // too large is infinite, as in JavaScript
		return 0, err
	}
	return sign * f, nil
}

func (p *parser) digits(set string) string {
	rest := p.s[p.i:]
	n := len(rest) - len(strings.TrimLeft(rest, set))
	p.i += n
	return rest[:n]
}
