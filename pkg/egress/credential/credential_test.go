package credential_test

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/egress"
	"github.com/creel-sandbox/creel/pkg/egress/credential"
)

const (
	value = "s3cret/value+of\"the-test"
	stand = "creel_0123456789abcdef0123456789abcdef"
)

func secret(place api.SecretPlace) credential.Secret {
	return credential.Secret{Name: "key", Rule: "api.example.com GET,POST /v1/**", Place: place, Value: value, Placeholder: stand}
}

func set(t *testing.T, all ...credential.Secret) *credential.Set {
	t.Helper()
	s, err := credential.New(all)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func basic(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

// TestApply: a secret goes where it is bound to and nowhere else, and its
// placeholder nowhere.
func TestApply(t *testing.T) {
	bearer := secret(api.SecretPlace{Kind: api.PlaceBearer})
	header := secret(api.SecretPlace{Kind: api.PlaceHeader, Name: "X-Api-Key"})
	user := secret(api.SecretPlace{Kind: api.PlaceBasic, Name: "git"})
	query := secret(api.SecretPlace{Kind: api.PlaceQuery, Name: "key"})
	for _, tt := range []struct {
		name         string
		s            credential.Secret
		method, url  string
		header, said string // of the agent's
		kind         egress.Kinds
		want         string // of the header, or of the query
		used         bool
		refused      bool
	}{
		{name: "added", s: bearer, header: "Authorization", want: "Bearer " + value, used: true},
		{name: "swapped", s: bearer, header: "Authorization", said: "token " + stand, want: "token " + value, used: true},
		{name: "in place of the agent's own", s: bearer, header: "Authorization", said: "Bearer mine", want: "Bearer " + value, used: true},
		{name: "a header", s: header, header: "x-api-key", want: value, used: true},
		{name: "a header, swapped", s: header, header: "x-api-key", said: stand, want: value, used: true},
		{name: "a user", s: user, header: "Authorization", want: basic("git", value), used: true},
		{name: "a user, swapped", s: user, header: "Authorization", said: basic("me", stand), want: basic("me", value), used: true},
		{name: "a parameter", s: query, url: "/v1/a?b=c", want: "b=c&key=s3cret%2Fvalue%2Bof%22the-test", used: true},
		{name: "a parameter, swapped", s: query, url: "/v1/a?key=" + stand + "&b=c", want: "b=c&key=s3cret%2Fvalue%2Bof%22the-test", used: true},
		{name: "another path", s: bearer, url: "/v2/a", header: "Authorization"},
		{name: "another method", s: bearer, method: "DELETE", header: "Authorization"},
		{name: "another host", s: bearer, url: "https://evil.example.com/v1/a", header: "Authorization"},
		{name: "without TLS", s: bearer, kind: egress.HTTP, header: "Authorization"},
		{name: "the placeholder to another path", s: bearer, url: "/v2/a", header: "Authorization", said: stand, refused: true},
		{name: "to another host", s: bearer, url: "https://evil.example.com/v1/a", header: "Authorization", said: "Bearer " + stand, refused: true},
		{name: "in another header", s: bearer, header: "X-Other", said: stand, refused: true},
		{name: "in capitals", s: bearer, header: "X-Other", said: strings.ToUpper(stand), refused: true},
		{name: "as a user elsewhere", s: header, header: "Authorization", said: basic(stand, "x"), refused: true},
		{name: "in a name", s: bearer, header: stand, said: "x", refused: true},
		{name: "in the path", s: bearer, url: "/v1/" + stand, header: "Authorization", refused: true},
		{name: "in the query", s: bearer, url: "/v1/a?x=" + stand, header: "Authorization", refused: true},
		{name: "in the query, encoded", s: bearer, url: "/v1/a?x=%63" + stand[1:], header: "Authorization", refused: true},
		{name: "without TLS in its place", s: bearer, kind: egress.HTTP, header: "Authorization", said: stand, refused: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			method, url, kind := "GET", "/v1/a", egress.HTTPS
			if tt.method != "" {
				method = tt.method
			}
			if tt.url != "" {
				url = tt.url
			}
			if tt.kind != 0 {
				kind = tt.kind
			}
			host, _, found := strings.Cut(strings.TrimPrefix(url, "https://"), "/")
			if !found || host == "" {
				host = "api.example.com"
			}
			r := httptest.NewRequestWithContext(t.Context(), method, url, nil)
			r.Host = host
			if tt.said != "" {
				r.Header.Set(tt.header, tt.said)
			}
			path, err := egress.ParsePath(r.URL.EscapedPath())
			if err != nil {
				t.Fatal(err)
			}
			used, err := set(t, tt.s).Apply(r, kind, egress.Name(host), 443, path)
			if tt.refused {
				if !errors.Is(err, credential.ErrPlaceholder) || strings.Contains(err.Error(), value) {
					t.Errorf("not refused: %v", err)
				}
				return
			}
			got := r.Header.Get(tt.header)
			if tt.header == "" {
				got = r.URL.RawQuery
			}
			if err != nil || got != tt.want || (len(used) == 1) != tt.used {
				t.Errorf("%q used %v, %v; want %q", got, used, err, tt.want)
			}
		})
	}
}

// TestTwo: of two for one place the one goes that was asked for.
func TestTwo(t *testing.T) {
	one, two := secret(api.SecretPlace{Kind: api.PlaceBearer}), secret(api.SecretPlace{Kind: api.PlaceBasic, Name: "u"})
	two.Name, two.Placeholder, two.Value = "two", "creel_ffffffffffffffff", "another-value"
	s := set(t, one, two)
	for said, want := range map[string]string{"": "key", "Bearer " + stand: "key", basic("u", two.Placeholder): "two"} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/v1/a", nil)
		if said != "" {
			r.Header.Set("Authorization", said)
		}
		used, err := s.Apply(r, egress.HTTPS, "api.example.com", 443, "/v1/a")
		if err != nil || len(used) != 1 || used[0] != want {
			t.Errorf("%q: used %v, %v", said, used, err)
		}
	}
	if !s.At("api.example.com", 443) || s.At("api.example.com", 8443) || s.At("x.api.example.com", 443) || (*credential.Set)(nil).At("api.example.com", 443) {
		t.Error("they are bound to something else")
	}
}

func TestNew(t *testing.T) {
	for name, change := range map[string]func(*credential.Secret){
		"short":       func(s *credential.Secret) { s.Value = "1234567" },
		"two lines":   func(s *credential.Secret) { s.Value = "12345678\nX: y" },
		"no ASCII":    func(s *credential.Secret) { s.Value = "12345678é" },
		"space":       func(s *credential.Secret) { s.Value = "12345678 " },
		"wildcard":    func(s *credential.Secret) { s.Rule = "*.example.com" },
		"http":        func(s *credential.Secret) { s.Rule = "http api.example.com" },
		"tcp":         func(s *credential.Secret) { s.Rule = "tcp api.example.com:443" },
		"an address":  func(s *credential.Secret) { s.Rule = "10.0.0.1:443" },
		"no rule":     func(s *credential.Secret) { s.Rule = "" },
		"place":       func(s *credential.Secret) { s.Place.Kind = "cookie" },
		"host header": func(s *credential.Secret) { s.Place = api.SecretPlace{Kind: api.PlaceHeader, Name: "host"} },
		"line":        func(s *credential.Secret) { s.Place = api.SecretPlace{Kind: api.PlaceHeader, Name: "a\r\nb"} },
		"user":        func(s *credential.Secret) { s.Place = api.SecretPlace{Kind: api.PlaceBasic, Name: "a:b"} },
		"parameter":   func(s *credential.Secret) { s.Place = api.SecretPlace{Kind: api.PlaceQuery, Name: "a&b"} },
		"placeholder": func(s *credential.Secret) { s.Placeholder = "" },
	} {
		s := secret(api.SecretPlace{Kind: api.PlaceBearer})
		change(&s)
		if _, err := credential.New([]credential.Secret{s}); err == nil {
			t.Errorf("%s is taken", name)
		} else if strings.Contains(err.Error(), s.Value) {
			t.Errorf("%s: the error has the value: %v", name, err)
		}
	}
}

// TestMask: a server that gives a secret back gives it to nobody, in whatever
// pieces it comes.
func TestMask(t *testing.T) {
	s := set(t, secret(api.SecretPlace{Kind: api.PlaceBasic, Name: "u"}))
	in64 := base64.StdEncoding.EncodeToString([]byte("u:" + value))
	text := "a " + value + " b " + in64 + " c s3cret%2Fvalue%2Bof%22the-test d s3cret/value+of\\\"the-test e s3cret/valu" + strings.Repeat("s3c", 40_000) + value[:len(value)-1]
	response := func(body io.Reader) *http.Response {
		return &http.Response{
			StatusCode: 200, Header: http.Header{"X-Echo": {value, "x"}}, Trailer: http.Header{"X-End": {value}}, Body: io.NopCloser(body),
			Request: httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/v1/a", nil),
		}
	}
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	_, _ = io.WriteString(z, text)
	_ = z.Close()
	for name, body := range map[string]io.Reader{
		"whole": strings.NewReader(text), "by bytes": iotest.OneByteReader(strings.NewReader(text)), "by halves": iotest.HalfReader(strings.NewReader(text)),
		"end with data": iotest.DataErrReader(strings.NewReader(text)), "gzip": &zipped,
	} {
		resp := response(body)
		if name == "gzip" {
			resp.Header.Set("Content-Encoding", "gzip")
		}
		if err := s.Mask(resp, "api.example.com", 443); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(iotest.OneByteReader(resp.Body))
		if err != nil || len(got) != len(text) {
			t.Fatalf("%s: %d bytes of %d, %v", name, len(got), len(text), err)
		}
		for _, n := range []string{value, in64, "s3cret%2F"} {
			if bytes.Contains(got, []byte(n)) || strings.Contains(resp.Header.Get("X-Echo")+resp.Trailer.Get("X-End"), n) {
				t.Errorf("%s: told %q", name, n)
			}
		}
		if !bytes.HasPrefix(got, []byte("a "+strings.Repeat("*", len(value))+" b *")) || !bytes.HasSuffix(got, []byte(value[:len(value)-1])) {
			t.Errorf("%s: %.80q", name, got)
		}
	}
	resp := response(strings.NewReader(value))
	resp.Header.Set("Content-Encoding", "br")
	if err := s.Mask(resp, "api.example.com", 443); !errors.Is(err, credential.ErrEncoding) {
		t.Errorf("an encoding that cannot be read: %v", err)
	}
	if err := s.Mask(resp, "www.example.com", 443); err != nil {
		t.Errorf("another host's: %v", err)
	}
	broken := response(iotest.TimeoutReader(iotest.OneByteReader(strings.NewReader(text))))
	if err := s.Mask(broken, "api.example.com", 443); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(broken.Body); !errors.Is(err, iotest.ErrTimeout) {
		t.Errorf("a body that breaks: %v", err)
	}
}

// TestStream: what comes is given out at once, but for what could be the beginning
// of a secret.
func TestStream(t *testing.T) {
	s := set(t, secret(api.SecretPlace{Kind: api.PlaceBearer}))
	r, w := io.Pipe()
	resp := &http.Response{StatusCode: 200, Header: http.Header{}, Body: r}
	if err := s.Mask(resp, "api.example.com", 443); err != nil {
		t.Fatal(err)
	}
	go func() {
		_, _ = io.WriteString(w, "data: one s3c")
	}()
	got := make([]byte, 100)
	n, err := resp.Body.Read(got)
	if err != nil || string(got[:n]) != "data: one " {
		t.Errorf("%q, %v", got[:n], err)
	}
	go func() { _, _ = io.WriteString(w, "ond\n"); w.Close() }()
	rest, err := io.ReadAll(resp.Body)
	if err != nil || string(rest) != "s3cond\n" {
		t.Errorf("%q, %v", rest, err)
	}
}
