// Package credential adds to requests what their agent never has: a secret, for
// the host, methods and paths that it is bound to, where TLS was verified.
//
// The agent has a placeholder. Where it stands in the secret's place it is
// swapped; where nothing stands the secret is added; anywhere else, and for any
// other host, a request with one is refused. Out of responses of a host that has
// a secret its literal is masked.
package credential

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"golang.org/x/net/http/httpguts"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/egress"
)

// Bounds of a secret's value, in bytes. Of a shorter one much would be masked
// that is none.
const (
	MinValue = 8
	MaxValue = 8 << 10
)

// Secret is one that a sandbox may use.
type Secret struct {
	Name string `json:"name"`
	// Rule is what it is bound to: one of egress.ParseText, https, for one host.
	Rule string `json:"rule"`
	// Place is where it goes in a request.
	Place api.SecretPlace `json:"place"`
	// Value is what nobody inside is to see.
	Value string `json:"value"`
	// Placeholder is what stands for it inside.
	Placeholder string `json:"placeholder"`
}

// ErrPlaceholder is a request that would have told a placeholder to somebody, or
// has it where its secret does not go.
var ErrPlaceholder = errors.New("the request has the placeholder of a secret that does not go there")

// Set is what one sandbox has. It does not change. A nil Set has none.
type Set struct{ secrets []bound }

type bound struct {
	Secret
	policy  egress.Snapshot
	needles []string // what is masked
}

// New makes a set, or says what is wrong with one of them.
func New(in []Secret) (*Set, error) {
	s := &Set{}
	for _, one := range in {
		if err := CheckValue(one.Value); err != nil {
			return nil, fmt.Errorf("secret %s: %w", one.Name, err)
		}
		if err := CheckPlace(one.Place); err != nil {
			return nil, fmt.Errorf("secret %s: %w", one.Name, err)
		}
		pol, err := ParseRule(one.Rule)
		if err != nil {
			return nil, fmt.Errorf("secret %s: %w", one.Name, err)
		}
		if len(one.Placeholder) < MinValue {
			return nil, fmt.Errorf("secret %s: no placeholder", one.Name)
		}
		s.secrets = append(s.secrets, bound{one, egress.NewSnapshot(pol), needles(one)})
	}
	return s, nil
}

// CheckValue is nil for what can be a secret.
func CheckValue(v string) error {
	if len(v) < MinValue || len(v) > MaxValue {
		return fmt.Errorf("a value of %d bytes; %d to %d can be kept from an agent", len(v), MinValue, MaxValue)
	}
	if !httpguts.ValidHeaderFieldValue(v) || strings.TrimSpace(v) != v || strings.IndexFunc(v, func(r rune) bool { return r < ' ' || r > '~' }) >= 0 {
		return errors.New("a value that is more than one line of printable ASCII")
	}
	return nil
}

// CheckPlace is nil for a place that a request has.
func CheckPlace(p api.SecretPlace) error {
	switch p.Kind {
	case api.PlaceBearer:
		if p.Name != "" {
			return errors.New("a bearer token with a name")
		}
	case api.PlaceHeader:
		if !httpguts.ValidHeaderFieldName(p.Name) || len(p.Name) > 64 || slices.Contains(notOurs, http.CanonicalHeaderKey(p.Name)) {
			return fmt.Errorf("the header %.100q, which is not for credentials", p.Name)
		}
	case api.PlaceBasic:
		if p.Name == "" || len(p.Name) > 128 || strings.ContainsFunc(p.Name, func(r rune) bool { return r <= ' ' || r > '~' || r == ':' }) {
			return fmt.Errorf("the user %.100q", p.Name)
		}
	case api.PlaceQuery:
		if p.Name == "" || len(p.Name) > 64 || url.QueryEscape(p.Name) != p.Name {
			return fmt.Errorf("the query parameter %.100q", p.Name)
		}
	default:
		return fmt.Errorf("the place %.100q", p.Kind)
	}
	return nil
}

// notOurs are headers that say what a request is, and not whose.
var notOurs = []string{
	"Host", "Connection", "Content-Length", "Content-Type", "Content-Encoding", "Transfer-Encoding", "Te", "Trailer", "Upgrade", "Expect", "Range",
	"Accept-Encoding", "Keep-Alive", "Proxy-Connection", "Sec-Websocket-Key", "Sec-Websocket-Version", "Sec-Websocket-Protocol", "Sec-Websocket-Extensions",
}

// ParseRule reads what a secret is bound to.
func ParseRule(text string) (*egress.Policy, error) {
	r, err := egress.ParseText(text)
	if err != nil {
		return nil, fmt.Errorf("rule %.200q: %w", text, err)
	}
	if r.Protocol != "" && r.Protocol != "https" || r.CIDR != "" || strings.Contains(r.Host, "*") {
		return nil, fmt.Errorf("rule %.200q: a secret is for one host by its name, and https", text)
	}
	pol, problems := egress.Parse("the secret", "rule", []egress.Rule{r})
	if len(problems) > 0 {
		return nil, fmt.Errorf("rule %.200q: %s: want %s", text, problems[0].Field, problems[0].Want)
	}
	return pol, nil
}

// Policy is all that decides for one sandbox at one time: what is reached, and what
// is sent with it.
type Policy struct {
	egress.Snapshot
	Secrets *Set
}

// Connect is that of the Snapshot. What a secret goes to is only read, so that it
// is not connected to where TLS may not be opened up.
func (p Policy) Connect(host egress.Name, port uint16) (egress.Grant, error) {
	g, err := p.Snapshot.Connect(host, port)
	if err != nil || !p.Secrets.At(host, port) {
		return g, err
	}
	if g.Kinds &= egress.HTTP | egress.HTTPS; g.Kinds&egress.HTTPS == 0 {
		return egress.Grant{}, &egress.RefusedError{By: "a secret for that host, which no https rule reaches", What: fmt.Sprintf("a connection to %s:%d", host, port)}
	}
	return g, nil
}

// At says whether a secret goes to a host, so that its TLS is opened up.
func (s *Set) At(host egress.Name, port uint16) bool {
	return s != nil && slices.ContainsFunc(s.secrets, func(b bound) bool { return b.at(host, port) })
}

func (b *bound) at(host egress.Name, port uint16) bool {
	_, err := b.policy.Connect(host, port)
	return err == nil
}

// Apply changes a request that was allowed to one with the secrets that go there,
// and says which those are. The error is ErrPlaceholder, and the request is not
// to be sent then.
func (s *Set) Apply(r *http.Request, kind egress.Kinds, host egress.Name, port uint16, path egress.Path) (used []string, err error) {
	if s == nil || len(s.secrets) == 0 {
		return nil, nil
	}
	var here []*bound
	for i := range s.secrets {
		b := &s.secrets[i]
		if _, err := b.policy.Request(kind, host, port, r.Method, path); err == nil && kind == egress.HTTPS {
			here = append(here, b)
		}
	}
	// Those whose placeholder is in its place come first: two may have one place.
	slices.SortStableFunc(here, func(a, b *bound) int { return b.asked(r) - a.asked(r) })
	taken := map[api.SecretPlace]bool{}
	var values []func()
	for _, b := range here {
		if at := b.spot(); !taken[at] {
			taken[at] = true
			values = append(values, b.take(r))
			used = append(used, b.Name)
		}
	}
	if name := s.found(r); name != "" {
		return nil, fmt.Errorf("%w: %s", ErrPlaceholder, name)
	}
	for _, put := range values {
		put()
	}
	if s.At(host, port) {
		r.Header.Del("Accept-Encoding") // what cannot be read cannot be masked
	}
	return used, nil
}

// spot is the place as no other secret may have it too.
func (b *bound) spot() api.SecretPlace {
	switch b.Place.Kind {
	case api.PlaceQuery:
		return b.Place
	case api.PlaceHeader:
		return api.SecretPlace{Kind: api.PlaceHeader, Name: http.CanonicalHeaderKey(b.Place.Name)}
	}
	return api.SecretPlace{Kind: api.PlaceHeader, Name: "Authorization"}
}

// asked is 1 if the placeholder is in its place.
func (b *bound) asked(r *http.Request) int {
	c := r.Clone(r.Context())
	c.URL = &url.URL{RawQuery: r.URL.RawQuery}
	b.take(c)
	one := &Set{secrets: []bound{*b}}
	if one.found(r) != "" && one.found(c) == "" {
		return 1
	}
	return 0
}

// take empties the place, and gives what fills it with the secret.
func (b *bound) take(r *http.Request) (put func()) {
	swap := func(was, without string) string {
		if strings.Contains(was, b.Placeholder) {
			return strings.ReplaceAll(was, b.Placeholder, b.Value)
		}
		return without
	}
	at := b.spot()
	was := r.Header.Get(at.Name)
	switch b.Place.Kind {
	case api.PlaceQuery:
		var rest []string
		value := b.Value
		for part := range strings.SplitSeq(r.URL.RawQuery, "&") {
			key, v, _ := strings.Cut(part, "=")
			if k, err := url.QueryUnescape(key); err == nil && k == b.Place.Name {
				if v, err = url.QueryUnescape(v); err == nil {
					value = swap(v, b.Value)
				}
				continue
			}
			if part != "" {
				rest = append(rest, part)
			}
		}
		r.URL.RawQuery = strings.Join(rest, "&")
		return func() {
			r.URL.RawQuery = strings.Join(append(rest, url.QueryEscape(b.Place.Name)+"="+url.QueryEscape(value)), "&")
		}
	case api.PlaceBasic:
		r.Header.Del(at.Name)
		pair := b.Place.Name + ":" + b.Value
		if name, password, ok := basic(was); ok {
			pair = swap(name+":"+password, pair)
		}
		return func() { r.Header.Set(at.Name, "Basic "+base64.StdEncoding.EncodeToString([]byte(pair))) }
	case api.PlaceBearer:
		r.Header.Del(at.Name)
		return func() { r.Header.Set(at.Name, swap(was, "Bearer "+b.Value)) }
	}
	r.Header.Del(at.Name)
	return func() { r.Header.Set(at.Name, swap(was, b.Value)) }
}

// basic takes apart what a header of RFC 7617 says.
func basic(header string) (name, password string, ok bool) {
	r := http.Request{Header: http.Header{"Authorization": {header}}}
	return r.BasicAuth()
}

// found is the name of a secret whose placeholder is anywhere in a request but its
// body.
func (s *Set) found(r *http.Request) string {
	texts := []string{r.Host, r.URL.Path, r.URL.RawPath, r.URL.RawQuery, r.RequestURI}
	if q, err := url.QueryUnescape(r.URL.RawQuery); err == nil {
		texts = append(texts, q)
	}
	// RequestURI is as it came, with the query that may be the place.
	path, _, _ := strings.Cut(r.RequestURI, "?")
	texts[4] = path
	for name, values := range r.Header {
		texts = append(texts, name)
		for _, v := range values {
			texts = append(texts, v)
			if name, password, ok := basic(v); ok {
				texts = append(texts, name, password)
			}
		}
	}
	for _, b := range s.secrets {
		for _, t := range texts {
			if strings.Contains(strings.ToLower(t), strings.ToLower(b.Placeholder)) {
				return b.Name
			}
		}
	}
	return ""
}

// needles are the forms in which a server that gives a secret back has it: as it
// is, as it was in its place, and in a URL or JSON.
func needles(s Secret) []string {
	all := []string{s.Value, url.QueryEscape(s.Value), url.PathEscape(s.Value), strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s.Value)}
	if s.Place.Kind == api.PlaceBasic {
		all = append(all, base64.StdEncoding.EncodeToString([]byte(s.Place.Name+":"+s.Value)))
	}
	slices.Sort(all)
	all = slices.Compact(all)
	slices.SortFunc(all, func(a, b string) int { return len(b) - len(a) })
	return all
}
