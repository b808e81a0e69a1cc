package workload_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/creel-sandbox/creel/pkg/egress/workload"
	"github.com/creel-sandbox/creel/pkg/svid"
)

const id = "spiffe://box.example.com/caller/erin/agent/coder/abc"

// box is a daemon that signs.
type box struct {
	a *svid.Authority
	// back has certificates be so much older, and err is what it says instead.
	back atomic.Int64
	err  atomic.Pointer[error]
	asks atomic.Int64
}

func newBox(t *testing.T) *box {
	t.Helper()
	b := &box{}
	var err error
	b.a, err = svid.Open(t.TempDir(), "box.example.com", "", func() time.Time { return time.Now().Add(-time.Duration(b.back.Load())) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.a.Close() })
	return b
}

func (b *box) says(err error) { b.err.Store(&err) }

func (b *box) sign(_ context.Context, key []byte) (*workload.Signed, error) {
	b.asks.Add(1)
	if err := b.err.Load(); err != nil && *err != nil {
		return nil, *err
	}
	s, err := b.a.Sign(id, key)
	if err != nil {
		return nil, err
	}
	return &workload.Signed{ID: s.ID, Certificate: s.Certificate, Bundle: s.Bundle}, nil
}

// serve is the address of a server's.
func serve(t *testing.T, sign workload.Sign) string {
	t.Helper()
	s := workload.New(sign)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = l.Close(), s.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _ = s.ServeWorkload(t.Context(), c.(*net.TCPConn)) }()
		}
	}()
	return l.Addr().String()
}

func client(t *testing.T, at string) *workloadapi.Client {
	t.Helper()
	c, err := workloadapi.New(t.Context(), workloadapi.WithAddr("tcp://"+at))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// TestFetch: SPIFFE's own client has an SVID that its bundle verifies, and the
// same one until it is half over.
func TestFetch(t *testing.T) {
	b := newBox(t)
	c := client(t, serve(t, b.sign))
	for range 3 {
		got, err := c.FetchX509SVID(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		set, err := c.FetchX509Bundles(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if who, _, err := x509svid.Verify(got.Certificates, set); err != nil || who.String() != id {
			t.Errorf("verified as %s: %v", who, err)
		}
	}
	if n := b.asks.Load(); n != 1 {
		t.Errorf("signed %d times", n)
	}
	if _, err := c.FetchJWTBundles(t.Context()); status.Code(err) != codes.Unimplemented {
		t.Errorf("JWTs: %v", err)
	}
}

type watcher struct{ got chan any }

func (w watcher) OnX509ContextUpdate(c *workloadapi.X509Context) { w.got <- c }
func (w watcher) OnX509ContextWatchError(err error)              { w.got <- err }

// TestRotates: whoever watches has the next one before the first has ended, and
// is told when there is none any more.
func TestRotates(t *testing.T) {
	b := newBox(t)
	b.back.Store(int64(svid.Lifetime - 3*time.Second)) // of each there are 3 s left
	c := client(t, serve(t, b.sign))
	w := watcher{make(chan any, 100)}
	go func() { _ = c.WatchX509Context(t.Context(), w) }()
	var last string
	for range 2 {
		now, ok := (<-w.got).(*workloadapi.X509Context)
		if !ok {
			t.Fatal(now)
		}
		cert := now.DefaultSVID().Certificates[0]
		if serial := cert.SerialNumber.String(); serial == last {
			t.Error("it is the same one")
		} else {
			last = serial
		}
		if time.Now().After(cert.NotAfter) {
			t.Error("it had ended")
		}
	}
	b.says(workload.ErrRefused)
	for {
		got := <-w.got
		if err, ok := got.(error); ok {
			if status.Code(err) != codes.PermissionDenied {
				t.Errorf("then: %v", err)
			}
			return
		}
	}
}

func get(t *testing.T, url string, header ...string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header["Workload.spiffe.io"] = header
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// TestPlain: the same by plain HTTP, as what curl takes.
func TestPlain(t *testing.T) {
	b := newBox(t)
	at := "http://" + serve(t, b.sign)
	_, pair := get(t, at+"/v1/svid.pem", "true")
	if _, err := tls.X509KeyPair([]byte(pair), []byte(pair)); err != nil {
		t.Error(err)
	}
	_, text := get(t, at+"/v1/bundle.pem", "true")
	bundle, err := x509bundle.Parse(spiffeid.RequireTrustDomainFromString("box.example.com"), []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		ID      string `json:"spiffe_id"`
		Expires time.Time
		SVID    string
		Key     string
		Bundle  string
	}
	_, text = get(t, at+"/v1/svid", "true")
	if err := json.Unmarshal([]byte(text), &doc); err != nil {
		t.Fatal(err)
	}
	got, err := x509svid.Parse([]byte(doc.SVID), []byte(doc.Key))
	if err != nil {
		t.Fatal(err)
	}
	if who, _, err := x509svid.Verify(got.Certificates, bundle); err != nil || who.String() != id || doc.ID != id || !doc.Expires.Equal(got.Certificates[0].NotAfter) {
		t.Errorf("%s, %+v: %v", who, doc, err)
	}
	if !strings.HasPrefix(pair, doc.SVID) || n(pair, "PRIVATE KEY") != 2 {
		t.Error("not the same")
	}
}

func n(s, sub string) int { return strings.Count(s, sub) }

// TestHeader: who cannot send a header of its own has nothing.
func TestHeader(t *testing.T) {
	b := newBox(t)
	at := "http://" + serve(t, b.sign)
	for _, header := range [][]string{nil, {"false"}, {"true", "true"}, {"True"}, {""}} {
		for _, path := range []string{"/v1/svid", "/v1/svid.pem", "/v1/bundle.pem"} {
			if code, body := get(t, at+path, header...); code != http.StatusBadRequest || !strings.Contains(body, "workload.spiffe.io: true") || n(body, "BEGIN") > 0 {
				t.Errorf("%s with %q: %d %s", path, header, code, body)
			}
		}
	}
	if code, _ := get(t, at+"/v1/another", "true"); code != http.StatusNotFound {
		t.Errorf("another path: %d", code)
	}
	if b.asks.Load() > 0 {
		t.Error("something was signed")
	}
}

// TestDaemonAway: what there is holds while nobody signs, and ends at once when
// the answer is no.
func TestDaemonAway(t *testing.T) {
	b := newBox(t)
	at := "http://" + serve(t, b.sign)
	b.says(errors.New("creeld does not answer"))
	if code, body := get(t, at+"/v1/svid", "true"); code != http.StatusServiceUnavailable || body != "creel: creeld does not answer\n" {
		t.Errorf("%d %s", code, body)
	}
	b.says(nil)
	b.back.Store(int64(svid.Lifetime * 3 / 4)) // it would be renewed after 75 s
	if code, body := get(t, at+"/v1/svid", "true"); code != http.StatusOK {
		t.Errorf("%d %s", code, body)
	}
	b.says(errors.New("creeld does not answer"))
	if code, body := get(t, at+"/v1/svid", "true"); code != http.StatusOK {
		t.Errorf("%d %s", code, body)
	}
	other := "http://" + serve(t, func(context.Context, []byte) (*workload.Signed, error) {
		return nil, fmt.Errorf("%w: it has ended", workload.ErrRefused)
	})
	if code, body := get(t, other+"/v1/svid", "true"); code != http.StatusForbidden || !strings.Contains(body, "it has ended") {
		t.Errorf("%d %s", code, body)
	}
}

// TestNotForThisKey: a certificate for another key is not given.
func TestNotForThisKey(t *testing.T) {
	b := newBox(t)
	var first *workload.Signed
	sign := func(ctx context.Context, key []byte) (*workload.Signed, error) {
		if first != nil {
			return first, nil
		}
		return b.sign(ctx, key)
	}
	at := "http://" + serve(t, sign)
	if code, _ := get(t, at+"/v1/svid", "true"); code != http.StatusOK {
		t.Error(code)
	}
	var err error
	if first, err = b.sign(t.Context(), publicKey(t)); err != nil {
		t.Fatal(err)
	}
	if code, body := get(t, "http://"+serve(t, sign)+"/v1/svid", "true"); code != http.StatusServiceUnavailable {
		t.Errorf("%d %s", code, body)
	}
}

func publicKey(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return der
}
