package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/creel-sandbox/creel/pkg/api"
)

// printable makes text of unknown origin safe to show: what is not printable
// (control characters, escape sequences, direction overrides, bytes that are
// no UTF-8) is written as a Go escape.
func printable(s string) string {
	clean := true
	for _, r := range s {
		if r == utf8.RuneError || r == '\\' || !unicode.IsPrint(r) {
			clean = false
			break
		}
	}
	if clean {
		return s
	}
	b := make([]byte, 0, len(s)+16)
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			b = fmt.Appendf(b, `\x%02x`, s[i])
		case r == '\\':
			b = append(b, `\\`...)
		case unicode.IsPrint(r):
			b = append(b, s[i:i+n]...)
		default:
			q := strconv.QuoteRune(r)
			b = append(b, q[1:len(q)-1]...)
		}
		i += n
	}
	return string(b)
}

// printableLines is printable for text of several lines.
func printableLines(s string) string {
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		cells := strings.Split(l, "\t")
		for j := range cells {
			cells[j] = strings.ReplaceAll(printable(cells[j]), `\\`, `\`)
		}
		lines[i] = strings.Join(cells, "\t")
	}
	return strings.Join(lines, "\n")
}

// safeJSON writes what encoding/json leaves of unprintable characters (DEL,
// C1 controls, direction overrides) as \u escapes, which mean the same.
func safeJSON(b []byte) []byte {
	if i := bytes.IndexFunc(b, unsafeInJSON); i < 0 {
		return b
	}
	out := make([]byte, 0, len(b)+16)
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		switch {
		case !unsafeInJSON(r):
			out = append(out, b[:n]...)
		case r > 0xffff:
			r -= 0x10000
			out = fmt.Appendf(out, `\u%04x\u%04x`, 0xd800+(r>>10), 0xdc00+(r&0x3ff))
		default:
			out = fmt.Appendf(out, `\u%04x`, r)
		}
		b = b[n:]
	}
	return out
}

func unsafeInJSON(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }

// writeJSON writes v as one indented document.
func (a *app) writeJSON(v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encode result: %w", err)
	}
	_, err = fmt.Fprintf(a.Out, "%s\n", safeJSON(b))
	return err
}

// writeJSONLine writes v on one line, for results that go on.
func (a *app) writeJSONLine(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode result: %w", err)
	}
	_, err = fmt.Fprintf(a.Out, "%s\n", safeJSON(b))
	return err
}

// color is an SGR number; 0 is none.
type color int

const (
	plain  color = 0
	bold   color = 1
	faint  color = 2
	red    color = 31
	green  color = 32
	yellow color = 33
)

// cell is one field of a table.
type cell struct {
	text  string
	color color
}

// table prints rows in aligned columns. Every text is made printable here, so
// no verb can forget it.
type table struct {
	rows [][]cell
}

func (t *table) header(names ...string) {
	row := make([]cell, len(names))
	for i, n := range names {
		row[i] = cell{n, bold}
	}
	t.rows = append(t.rows, row)
}

func (t *table) row(cells ...any) {
	row := make([]cell, len(cells))
	for i, c := range cells {
		switch c := c.(type) {
		case cell:
			row[i] = cell{printable(c.text), c.color}
		case string:
			row[i] = cell{printable(c), plain}
		default:
			row[i] = cell{printable(fmt.Sprint(c)), plain}
		}
	}
	t.rows = append(t.rows, row)
}

// write prints the table; color only where colors says so.
func (t *table) write(w io.Writer, colors bool) error {
	var widths []int
	for _, row := range t.rows {
		for i, c := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(c.text))
		}
	}
	var b bytes.Buffer
	for _, row := range t.rows {
		for i, c := range row {
			text := c.text
			if colors && c.color != plain {
				text = fmt.Sprintf("\x1b[%dm%s\x1b[0m", c.color, text)
			}
			b.WriteString(text)
			if i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c.text)+2))
			}
		}
		b.WriteByte('\n')
	}
	_, err := w.Write(b.Bytes())
	return err
}

// colors says whether a stream may get colors: a terminal, unless NO_COLOR is
// set (no-color.org) or the terminal has none.
func colors(stream any) bool {
	return isTerminal(stream) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

func (a *app) writeTable(t *table) error { return t.write(a.Out, colors(a.Out)) }

// ago is a time as people say it.
func ago(t, now time.Time) string {
	if t.IsZero() {
		return "-"
	}
	switch d := now.Sub(t); {
	case d < 2*time.Second:
		return "now"
	case d < 2*time.Minute:
		return fmt.Sprintf("%d seconds ago", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%d minutes ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d hours ago", int(d.Hours()))
	default:
		return fmt.Sprintf("%d days ago", int(d.Hours()/24))
	}
}

// size is a number of bytes for people: three digits and a binary suffix.
func size(n int64) string {
	f := float64(n)
	for _, suffix := range []string{"", "K", "M", "G"} {
		if f < 1000 {
			if suffix == "" || f >= 100 {
				return fmt.Sprintf("%.0f%s", f, suffix)
			}
			return fmt.Sprintf("%.3g%s", f, suffix)
		}
		f /= 1024
	}
	return fmt.Sprintf("%.3gT", f)
}

// hits is "pids 3, disk 1" of the limits that refused something.
func hits(m map[string]int64) string {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		parts = append(parts, fmt.Sprintf("%s %d", k, m[k]))
	}
	return strings.Join(parts, ", ")
}

// ended says how something ended, for people.
func ended(r api.Reason, code *int) string {
	switch {
	case code != nil && (r == api.ReasonExited || r == ""):
		return fmt.Sprintf("exited (%d)", *code)
	case code != nil:
		return fmt.Sprintf("%s (%d)", r, *code)
	}
	return string(r)
}
