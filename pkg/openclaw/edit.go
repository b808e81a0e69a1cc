package openclaw

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// edit changes a JSON5 text at single places and leaves every other byte, so
// comments, order and quotes stay as they were.
type edit struct {
	text string
	root *node
	nl   string // how lines end
	unit string // one step of indentation
	flat bool   // the whole document is in one line
}

func newEdit(text string) (*edit, error) {
	e := &edit{text: text, nl: "\n"}
	if strings.Contains(text, "\r\n") {
		e.nl = "\r\n"
	}
	if err := e.read(); err != nil {
		return nil, err
	}
	if e.root.kind != object {
		return nil, fmt.Errorf("not an object at the top")
	}
	e.unit = "  "
	if len(e.root.parts) > 0 {
		e.flat = !strings.Contains(text[e.root.start:e.root.end], "\n")
		if in, alone := e.indent(e.root.parts[0].start); alone && in != "" {
			e.unit = in
		}
	}
	return e, nil
}

func (e *edit) read() (err error) {
	e.root, err = parse(e.text)
	return err
}

// set makes the value at path v, a string or a bool, and the objects on the
// way to it where there are none.
func (e *edit) set(v any, path ...string) error {
	at := e.root
	for i, key := range path {
		next := at.find(key)
		last := i == len(path)-1
		switch {
		case next == nil:
			return e.add(at, e.member(at, path[i:], v))
		case last && next.kind != scalar:
			return fmt.Errorf("%s is an object or a list", strings.Join(path, "."))
		case last:
			if next.value == v {
				return nil
			}
			return e.replace(next.start, next.end, literal(v, e.text[next.start]))
		case next.kind != object:
			return fmt.Errorf("%s is not an object", strings.Join(path[:i+1], "."))
		}
		at = next
	}
	return nil
}

// push adds an item to the list at path.
func (e *edit) push(list *node, v string) error {
	quote := byte('"')
	if len(list.parts) > 0 {
		quote = e.text[list.parts[0].start]
	}
	return e.add(list, func(string, bool) string { return literal(v, quote) })
}

func (e *edit) replace(from, to int, with string) error {
	e.text = e.text[:from] + with + e.text[to:]
	return e.read()
}

// member writes path as objects in each other around v. It is told the
// indentation that it has, and whether to use one line.
func (e *edit) member(in *node, path []string, v any) func(indent string, flat bool) string {
	bare := e.bareKeys(in)
	return func(indent string, flat bool) string {
		name := func(key string) string {
			if bare && plainKey(key) {
				return key
			}
			return literal(key, '"')
		}
		var open, closing strings.Builder
		for i, key := range path[:len(path)-1] {
			open.WriteString(name(key) + ": {")
			if flat {
				open.WriteString(" ")
				closing.WriteString(" }")
				continue
			}
			open.WriteString(e.nl + indent + strings.Repeat(e.unit, i+1))
			closing.WriteString(e.nl + indent + strings.Repeat(e.unit, len(path)-2-i) + "}")
		}
		return open.String() + name(path[len(path)-1]) + ": " + literal(v, '"') + closing.String()
	}
}

// bareKeys tells whether keys are written without quotes next to what goes
// into n, or in the document.
func (e *edit) bareKeys(n *node) bool {
	bare := func(p part) bool { return e.text[p.start] != '"' && e.text[p.start] != '\'' }
	return slices.ContainsFunc(n.parts, bare) || slices.ContainsFunc(e.root.parts, bare)
}

func plainKey(key string) bool {
	for i, r := range key {
		if !isIdentifier(r, i == 0) {
			return false
		}
	}
	return key != ""
}

// literal is v in JSON, in the quotes that were there.
func literal(v any, quote byte) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // strings and booleans have no error
	}
	s := string(b)
	if _, isString := v.(string); isString && quote == '\'' && !strings.ContainsAny(s, `'\`) {
		return "'" + s[1:len(s)-1] + "'"
	}
	return s
}

// add puts a new part behind the last one of n.
func (e *edit) add(n *node, write func(indent string, flat bool) string) error {
	if len(n.parts) == 0 {
		return e.addFirst(n, write)
	}
	first, last := n.parts[0], n.parts[len(n.parts)-1]
	if e.flat || !strings.Contains(e.text[n.start:first.start], "\n") {
		return e.replace(last.val.end, last.val.end, ", "+write("", true))
	}
	indent, alone := e.indent(last.start)
	if !alone {
		if indent, alone = e.indent(first.start); !alone {
			indent += e.unit
		}
	}
	tail := ""
	at := last.val.end
	if n.comma > 0 {
		at, tail = n.comma, ","
	}
	to, ends := e.restOfLine(at)
	if !ends { // the closing bracket is in this line
		to = at
	}
	added := e.text[at:to] + e.nl + indent + write(indent, false) + tail
	if n.comma == 0 {
		added = "," + added
	}
	return e.replace(at, to, added)
}

// addFirst puts the only part into n, behind the comments in it.
func (e *edit) addFirst(n *node, write func(indent string, flat bool) string) error {
	inside := e.text[n.start+1 : n.end-1]
	if e.flat {
		return e.replace(n.end-1, n.end-1, " "+write("", true)+" ")
	}
	outer, _ := e.indent(n.start)
	added := e.nl + outer + e.unit + write(outer+e.unit, false) + e.nl + outer
	kept := strings.TrimRight(inside, " \t\r\n")
	return e.replace(n.start+1+len(kept), n.end-1, added)
}

// indent is the white space that the line of the byte at i begins with, and
// whether there is nothing else before it.
func (e *edit) indent(i int) (space string, alone bool) {
	line := e.text[strings.LastIndexByte(e.text[:i], '\n')+1 : i]
	rest := strings.TrimLeft(line, " \t")
	return line[:len(line)-len(rest)], rest == ""
}

// restOfLine skips blanks and comments up to the end of the line, and tells
// whether there is nothing else.
func (e *edit) restOfLine(i int) (end int, ends bool) {
	for i < len(e.text) {
		rest := e.text[i:]
		switch {
		case rest[0] == '\n', strings.HasPrefix(rest, "\r\n"):
			return i, true
		case rest[0] == ' ', rest[0] == '\t':
			i++
		case strings.HasPrefix(rest, "//"):
			n := strings.IndexByte(rest, '\n')
			if n < 0 {
				return len(e.text), false
			}
			return i + len(strings.TrimSuffix(rest[:n], "\r")), true
		case strings.HasPrefix(rest, "/*"):
			n := strings.Index(rest, "*/")
			if n < 0 || strings.Contains(rest[:n], "\n") {
				return i, false
			}
			i += n + len("*/")
		default:
			return i, false
		}
	}
	return i, false
}
