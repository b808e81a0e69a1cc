package server

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
)

// query reads a request's query parameters, as strictly as a body: what is not
// asked for by name, or comes twice, is a problem.
type query struct {
	values   url.Values
	known    map[string]bool
	problems []api.Problem
}

func parseQuery(r *http.Request) *query {
	q := &query{known: map[string]bool{}}
	var err error
	if q.values, err = url.ParseQuery(r.URL.RawQuery); err != nil {
		q.bad("query", r.URL.RawQuery, "name=value pairs joined by &, percent-encoded")
	}
	return q
}

func (q *query) bad(field, value, want string) {
	q.problems = append(q.problems, api.Problem{Field: field, Value: value, Want: want})
}

// str is a parameter's value, empty when it is not there.
func (q *query) str(name string) string {
	vs := q.list(name)
	if len(vs) > 1 {
		q.bad(name, "", "given once")
	}
	if len(vs) == 0 {
		return ""
	}
	return vs[0]
}

// list is all values of a parameter that may be repeated.
func (q *query) list(name string) []string {
	q.known[name] = true
	for _, v := range q.values[name] {
		if strings.ContainsRune(v, 0) {
			q.bad(name, "", "a value without NUL")
		}
	}
	return q.values[name]
}

func (q *query) flag(name string) bool {
	switch v := q.str(name); v {
	case "", "false", "0":
		return false
	case "true", "1":
		return true
	default:
		q.bad(name, v, "true or false")
		return false
	}
}

// path is a required absolute path in the sandbox.
func (q *query) path(name string) string {
	v := q.str(name)
	if !strings.HasPrefix(v, "/") {
		q.bad(name, v, "an absolute path in the sandbox")
	}
	return v
}

// number is a whole number between lo and hi, or def when it is not there.
func (q *query) number(name string, def, lo, hi int64) int64 {
	v := q.str(name)
	if v == "" {
		return def
	}
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil || n < lo || n > hi {
		q.bad(name, v, fmt.Sprintf("a whole number from %d to %d", lo, hi))
	}
	return n
}

// sequence is an event's number.
func (q *query) sequence(name, v string) uint64 {
	if v == "" {
		return 0
	}
	n, err := strconv.ParseUint(v, 10, 64)
	if err != nil {
		q.bad(name, v, "the number of an event")
	}
	return n
}

// mode is octal permission bits, def when not there.
func (q *query) mode(name string, def uint32) uint32 {
	v := q.str(name)
	if v == "" {
		return def
	}
	n, err := strconv.ParseUint(v, 8, 32)
	if err != nil || n > 0o777 {
		q.bad(name, v, "permission bits in octal, such as 644; set-ID and sticky bits are not possible")
	}
	return uint32(n)
}

// since is a time, or how long ago.
func (q *query) since(name string, now time.Time) time.Time {
	v := q.str(name)
	if v == "" {
		return time.Time{}
	}
	if d, err := time.ParseDuration(v); err == nil && d >= 0 {
		return now.Add(-d)
	}
	t, err := time.Parse(time.RFC3339, v)
	if err != nil {
		q.bad(name, v, `a time such as "2026-01-31T12:00:00Z", or how long ago such as "10m"`)
	}
	return t
}

// labels reads repeated name=value.
func (q *query) labels(name string) map[string]string {
	var labels map[string]string
	for _, v := range q.list(name) {
		k, val, ok := strings.Cut(v, "=")
		if !ok || k == "" {
			q.bad(name, v, "name=value")
			continue
		}
		if labels == nil {
			labels = map[string]string{}
		}
		labels[k] = val
	}
	return labels
}

// page is the part of a list that is asked for.
func (q *query) page() page {
	p := page{limit: int(q.number("limit", 0, 1, maxPage)), after: q.str("after")}
	if len(p.after) > maxCursor {
		q.bad("after", p.after[:16]+"...", "the "+nextHeader+" of a page before")
	}
	return p
}

// done returns every problem, unknown parameters included.
func (q *query) done() error {
	for name := range q.values {
		if !q.known[name] {
			want := "no such parameter; this route has none"
			if len(q.known) > 0 {
				names := make([]string, 0, len(q.known))
				for k := range q.known {
					names = append(names, k)
				}
				slices.Sort(names)
				want = "no such parameter; there are " + strings.Join(names, ", ")
			}
			q.bad(name, "", want)
		}
	}
	if len(q.problems) == 0 {
		return nil
	}
	slices.SortStableFunc(q.problems, func(a, b api.Problem) int { return strings.Compare(a.Field, b.Field) })
	return invalid("the query is not valid", q.problems...)
}
