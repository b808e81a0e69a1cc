package mcp

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// maxOutput is how many bytes of a stream an answer holds.
const maxOutput = 64 << 10

// window keeps the first and the last of a stream, half of maxOutput each: how
// a command began and how it ended say most. The rest is counted.
type window struct {
	head, tail []byte
	total      int64
}

// Write never fails, so that a command is never held up by its answer.
func (w *window) Write(p []byte) (int, error) {
	const half = maxOutput / 2
	n := len(p)
	w.total += int64(n)
	if room := half - len(w.head); room > 0 {
		take := min(room, len(p))
		w.head = append(w.head, p[:take]...)
		p = p[take:]
	}
	if len(p) > half {
		p = p[len(p)-half:]
	}
	if len(w.tail)+len(p) > 2*half {
		keep := half - len(p)
		w.tail = append(w.tail[:0], w.tail[len(w.tail)-keep:]...)
	}
	w.tail = append(w.tail, p...)
	return n, nil
}

// last is the tail within its half.
func (w *window) last() []byte {
	return w.tail[max(len(w.tail)-maxOutput/2, 0):]
}

func (w *window) omitted() int64 { return w.total - int64(len(w.head)) - int64(len(w.last())) }

// text is what was kept, as UTF-8; bytes that are none are U+FFFD.
func (w *window) text() string {
	s := string(w.head)
	if n := w.omitted(); n > 0 {
		s += fmt.Sprintf("\n[%d bytes left out]\n", n)
	}
	return strings.ToValidUTF8(s+string(w.last()), "\uFFFD")
}

// clip is s in at most n bytes, with a sign where it was cut.
func clip(s string, n int) string {
	const cut = "..."
	if len(s) <= n {
		return s
	}
	return string(wholeRunes([]byte(s[:n-len(cut)]))) + cut
}

// wholeRunes is b without a character that is cut off at its end.
func wholeRunes(b []byte) []byte {
	for i := 1; i <= min(utf8.UTFMax, len(b)); i++ {
		if start := len(b) - i; utf8.RuneStart(b[start]) {
			if !utf8.FullRune(b[start:]) {
				return b[:start]
			}
			break
		}
	}
	return b
}
