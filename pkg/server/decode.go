package server

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/creel-sandbox/creel/pkg/api"
)

// maxJSON is the most bytes a JSON body may have.
const maxJSON = 1 << 20

// bodyTime is how long a client may take to send a JSON body.
const bodyTime = 10 * time.Second

// readJSON decodes the request's body into v, a pointer to a struct. Where
// optional, no body leaves v as it is. The error is an *api.Error.
func readJSON(w http.ResponseWriter, r *http.Request, v any, optional bool) error {
	body, err := readBody(w, r, maxJSON)
	if err != nil {
		return err
	}
	if len(body) == 0 && optional {
		return nil
	}
	ct := r.Header.Get("Content-Type")
	if mt, _, err := mime.ParseMediaType(ct); err != nil || mt != "application/json" {
		return invalid("the body is not announced as JSON", api.Problem{Field: "Content-Type", Value: ct, Want: "application/json"})
	}
	return Decode(body, v)
}

// readBody reads the whole body within bodyTime.
func readBody(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	rc := http.NewResponseController(w)
	// Without deadlines (a test's recorder) the server's own limits remain.
	_ = rc.SetReadDeadline(time.Now().Add(bodyTime))
	body, err := io.ReadAll(io.LimitReader(r.Body, limit+1))
	// net/http watches the connection while the handler runs; a deadline that
	// passes then would count as a lost client.
	_ = rc.SetReadDeadline(time.Time{})
	if err != nil {
		return nil, api.Errorf(api.CodeInvalid, "read the request's body: %w", err)
	}
	if int64(len(body)) > limit {
		return nil, tooLarge(w, limit)
	}
	return body, nil
}

func tooLarge(w http.ResponseWriter, limit int64) error {
	w.Header().Set("Connection", "close") // the rest is not read
	return api.Errorf(api.CodeTooLarge, "the body is larger than %v", api.Size(limit))
}

func invalid(message string, problems ...api.Problem) *api.Error {
	return &api.Error{Code: api.CodeInvalid, Message: message, Problems: problems}
}

// Decode reads one JSON object into v, a pointer to a struct of package api,
// with nothing left to interpretation: names must be exactly those of the
// struct (encoding/json alone ignores case), each at most once, and no value
// may be null. Every mistake is reported at once, in an *api.Error of class
// api.CodeInvalid; v is then unchanged.
func Decode(body []byte, v any) error {
	if !utf8.Valid(body) {
		return invalid("the body is not UTF-8")
	}
	var raw json.RawMessage
	if err := json.Unmarshal(body, &raw); err != nil {
		return invalid("the body is not JSON: " + syntax(body, err))
	}
	var d decoder
	d.value("", raw, reflect.TypeOf(v).Elem())
	if len(d.problems) > 0 {
		return invalid("the request is not valid", d.problems...)
	}
	fresh := reflect.New(reflect.TypeOf(v).Elem())
	if err := json.Unmarshal(body, fresh.Interface()); err != nil {
		return invalid("the request is not valid: " + err.Error()) // d knows every kind of mistake; fail closed
	}
	reflect.ValueOf(v).Elem().Set(fresh.Elem())
	return nil
}

// syntax says where the JSON breaks.
func syntax(body []byte, err error) string {
	var se *json.SyntaxError
	if !errors.As(err, &se) {
		return err.Error()
	}
	before := body[:min(max(se.Offset-1, 0), int64(len(body)))]
	line := 1 + bytes.Count(before, []byte("\n"))
	col := len(before) - bytes.LastIndexByte(before, '\n')
	return fmt.Sprintf("line %d, column %d: %s", line, col, se.Error())
}

// maxProblems is where reporting stops: nobody reads more, and the answer to a
// body of nonsense stays small.
const maxProblems = 64

type decoder struct{ problems []api.Problem }

func (d *decoder) bad(field string, raw []byte, want string) {
	if len(d.problems) >= maxProblems {
		return
	}
	value := string(raw)
	if len(value) > 80 {
		value = strings.ToValidUTF8(value[:80], "") + "..."
	}
	if field == "" {
		field = "body"
	}
	d.problems = append(d.problems, api.Problem{Field: field, Value: value, Want: want})
}

var (
	jsonUnmarshaler = reflect.TypeFor[json.Unmarshaler]()
	textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()
)

// value checks that raw, known to be valid JSON, fits type t.
func (d *decoder) value(field string, raw json.RawMessage, t reflect.Type) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	pt := reflect.PointerTo(t)
	switch {
	case string(raw) == "null":
		d.bad(field, raw, "a value; leave the field out instead")
	case pt.Implements(jsonUnmarshaler), pt.Implements(textUnmarshaler):
		d.custom(field, raw, t)
	case t.Kind() == reflect.Struct:
		d.object(field, raw, t)
	case t.Kind() == reflect.Map:
		d.mapping(field, raw, t)
	case t.Kind() == reflect.Slice:
		d.array(field, raw, t)
	default:
		d.scalar(field, raw, t)
	}
}

func (d *decoder) custom(field string, raw json.RawMessage, t reflect.Type) {
	err := json.Unmarshal(raw, reflect.New(t).Interface())
	var te *json.UnmarshalTypeError
	switch {
	case errors.As(err, &te):
		d.bad(field, raw, "a string")
	case err != nil:
		d.bad(field, raw, err.Error())
	}
}

func (d *decoder) object(field string, raw json.RawMessage, t reflect.Type) {
	members, ok := d.members(field, raw)
	if !ok {
		return
	}
	fields, missing := jsonFields(t)
	for _, m := range members {
		delete(missing, m.name)
		path := join(field, m.name)
		ft, known := fields[m.name]
		if !known {
			d.bad(path, nil, unknown(m.name, fields))
			continue
		}
		d.value(path, m.raw, ft)
	}
	for _, name := range slices.Sorted(maps.Keys(missing)) {
		d.bad(join(field, name), nil, "given; it is required")
	}
}

func (d *decoder) mapping(field string, raw json.RawMessage, t reflect.Type) {
	members, _ := d.members(field, raw)
	for _, m := range members {
		if strings.ContainsRune(m.name, 0) {
			d.bad(field, nil, "names without NUL")
		}
		d.value(join(field, m.name), m.raw, t.Elem())
	}
}

func (d *decoder) array(field string, raw json.RawMessage, t reflect.Type) {
	var elems []json.RawMessage
	if json.Unmarshal(raw, &elems) != nil {
		d.bad(field, raw, "an array")
		return
	}
	for i, e := range elems {
		d.value(fmt.Sprintf("%s[%d]", field, i), e, t.Elem())
	}
}

func (d *decoder) scalar(field string, raw json.RawMessage, t reflect.Type) {
	p := reflect.New(t)
	if json.Unmarshal(raw, p.Interface()) != nil {
		d.bad(field, raw, wantScalar(t))
		return
	}
	if t.Kind() == reflect.String && strings.ContainsRune(p.Elem().String(), 0) {
		d.bad(field, raw, "a string without NUL")
	}
}

func wantScalar(t reflect.Type) string {
	switch t.Kind() {
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	case reflect.Float64:
		return "a number"
	case reflect.Uint16:
		return "a whole number from 0 to 65535"
	case reflect.Int, reflect.Int64:
		return "a whole number"
	default:
		return "a " + t.Kind().String()
	}
}

type member struct {
	name string
	raw  json.RawMessage
}

// members are an object's, in order. A name that comes twice is a problem:
// which one counts differs between JSON readers.
func (d *decoder) members(field string, raw json.RawMessage) ([]member, bool) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	if tok, err := dec.Token(); err != nil || tok != json.Delim('{') {
		d.bad(field, raw, "an object")
		return nil, false
	}
	var ms []member
	seen := map[string]bool{}
	for dec.More() {
		tok, err := dec.Token()
		name, isString := tok.(string)
		var v json.RawMessage
		if err != nil || !isString || dec.Decode(&v) != nil {
			d.bad(field, raw, "an object")
			return nil, false
		}
		if seen[name] {
			d.bad(join(field, name), nil, "given once; it is here twice")
		}
		seen[name] = true
		ms = append(ms, member{name, v})
	}
	return ms, true
}

func join(field, name string) string {
	if field == "" {
		return name
	}
	return field + "." + name
}

// jsonFields are the names of a struct's fields with their types, and those
// that must be given: the ones that are never left out of an encoding.
func jsonFields(t reflect.Type) (fields map[string]reflect.Type, required map[string]bool) {
	fields, required = map[string]reflect.Type{}, map[string]bool{}
	for f := range t.Fields() {
		name, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" || name == "-" {
			continue
		}
		fields[name] = f.Type
		if opts == "" {
			required[name] = true
		}
	}
	return fields, required
}

func unknown(name string, fields map[string]reflect.Type) string {
	var names []string
	for n := range fields {
		if strings.EqualFold(n, name) {
			return fmt.Sprintf("no such field; it is written %q", n)
		}
		names = append(names, n)
	}
	if len(names) == 0 {
		return "no such field; this request has none"
	}
	slices.Sort(names)
	return "no such field; there are " + strings.Join(names, ", ")
}
