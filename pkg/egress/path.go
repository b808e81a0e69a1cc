package egress

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// Path is an HTTP request's path, decoded, in the one form that every server
// reads the same way.
type Path string

// maxPath bounds a path, in bytes as it is sent.
const maxPath = 8 << 10

// ParsePath takes the path of a request in origin form (RFC 9112, section
// 3.2.1), without its query. What servers are known to read in different ways
// is refused and never put right: dot segments and empty ones, an encoded
// slash, backslash, percent sign, question mark or number sign, parameters
// after a semicolon, control characters, and bytes that are not UTF-8. So what
// a pattern was compared with is what the server has before it.
func ParsePath(raw string) (Path, error) {
	switch {
	case len(raw) > maxPath:
		return "", fmt.Errorf("longer than %d bytes", maxPath)
	case !strings.HasPrefix(raw, "/"):
		return "", errors.New(`does not begin with "/"`)
	}
	out := make([]byte, 0, len(raw))
	for i := 0; i < len(raw); i++ {
		c, encoded := raw[i], false
		if c == '%' {
			if i+2 >= len(raw) || !isHex(raw[i+1]) || !isHex(raw[i+2]) {
				return "", errors.New(`a "%" without two digits`)
			}
			c, encoded = unHex(raw[i+1])<<4|unHex(raw[i+2]), true
			i += 2
		}
		switch {
		case c < 0x20 || c == 0x7f:
			return "", errors.New("a control character")
		case c == '\\' || c == ';' || encoded && strings.IndexByte("/%?#", c) >= 0:
			return "", fmt.Errorf("a %q that servers read in different ways", c)
		case !encoded && (c >= 0x80 || strings.IndexByte(" \"#<>?[]^`{|}", c) >= 0):
			return "", fmt.Errorf("a %q that is not encoded", c)
		}
		out = append(out, c)
	}
	if !utf8.Valid(out) {
		return "", errors.New("is not UTF-8")
	}
	segments := strings.Split(string(out[1:]), "/")
	for i, s := range segments {
		if s == "." || s == ".." || s == "" && i < len(segments)-1 {
			return "", errors.New("a segment of dots or of nothing")
		}
	}
	return Path(out), nil
}

func isHex(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
}

func unHex(c byte) byte {
	switch {
	case c >= 'a':
		return c - 'a' + 10
	case c >= 'A':
		return c - 'A' + 10
	}
	return c - '0'
}

// pathPattern is the segments of a path. In one, "*" is any bytes but "/"; a
// last one of "**" is any rest, be it empty.
type pathPattern struct {
	segments []string
	rest     bool
}

// maxStars bounds what a match costs: each segment is gone over once for each.
const maxStars = 8

func parsePathPattern(s string) (pathPattern, error) {
	p, err := ParsePath(s)
	if err != nil {
		return pathPattern{}, err
	}
	segments := strings.Split(string(p[1:]), "/")
	last := len(segments) - 1
	rest := segments[last] == "**"
	if rest {
		segments = segments[:last]
	}
	for _, seg := range segments {
		if strings.Contains(seg, "**") {
			return pathPattern{}, errors.New(`"**" is the whole last segment, or none`)
		}
	}
	if strings.Count(s, "*") > maxStars {
		return pathPattern{}, fmt.Errorf(`more than %d "*"`, maxStars)
	}
	return pathPattern{segments, rest}, nil
}

func (p pathPattern) matches(path Path) bool {
	segments := strings.Split(string(path[1:]), "/")
	if len(segments) < len(p.segments) || len(segments) == len(p.segments) && p.rest || len(segments) > len(p.segments) && !p.rest {
		return false
	}
	for i, seg := range p.segments {
		if !glob(seg, segments[i]) {
			return false
		}
	}
	return true
}

// glob says whether s is pattern, in which "*" is any bytes.
func glob(pattern, s string) bool {
	first, more, star := strings.Cut(pattern, "*")
	if !star {
		return pattern == s
	}
	if !strings.HasPrefix(s, first) {
		return false
	}
	s = s[len(first):]
	for {
		part, next, star := strings.Cut(more, "*")
		if !star {
			return strings.HasSuffix(s, part) // what is before it is the star's
		}
		i := strings.Index(s, part) // the first is as good as any
		if i < 0 {
			return false
		}
		s, more = s[i+len(part):], next
	}
}

// covers says whether p matches all that q matches. It may say no where q's
// last segment is "**" and p has more segments.
func (p pathPattern) covers(q pathPattern) bool {
	switch {
	case len(q.segments) < len(p.segments),
		!p.rest && (q.rest || len(q.segments) > len(p.segments)),
		p.rest && !q.rest && len(q.segments) == len(p.segments):
		return false
	}
	for i, seg := range p.segments {
		// A "*" of q's lies within what one of p's stands for, or p does not match:
		// there is nothing else in p that is like it.
		if !glob(seg, q.segments[i]) {
			return false
		}
	}
	return true
}
