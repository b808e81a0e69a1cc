package replay

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
)

var errKnown = errors.New("refused")

func fresh(err error) bool { return errors.Is(err, errKnown) }

func request(key, body string) Request {
	return Request{UID: 7, Path: "/v1/x", Key: key, Body: sha256.Sum256([]byte(body))}
}

// says answers so, and counts.
func says(n *int, text string) func(http.ResponseWriter) error {
	return func(w http.ResponseWriter) error {
		*n++
		w.Header().Set("Content-Type", "text/x")
		w.WriteHeader(http.StatusCreated)
		_, err := io.WriteString(w, text)
		return err
	}
}

func serve(t *testing.T, k *Keys, r Request, do func(http.ResponseWriter) error) (string, error) {
	t.Helper()
	w := httptest.NewRecorder()
	err := k.Serve(t.Context(), w, r, fresh, do)
	if err == nil && (w.Code != http.StatusCreated || w.Header().Get("Content-Type") != "text/x") {
		t.Errorf("answer %d, %v", w.Code, w.Header())
	}
	return w.Body.String() + w.Header().Get(Header), err
}

func TestOnce(t *testing.T) {
	k, n := New(DefaultLimits()), 0
	for _, tt := range []struct {
		name string
		r    Request
		want string
		code api.Code // of the error
		n    int
	}{
		{"first", request("a", "x"), "one", "", 1},
		{"again", request("a", "x"), "onetrue", "", 1},
		{"another body", request("a", "y"), "", api.CodeConflict, 1},
		{"another key", request("b", "x"), "one", "", 2},
		{"another path", Request{UID: 7, Path: "/v1/y", Key: "a"}, "one", "", 3},
		{"another user", Request{UID: 8, Path: "/v1/x", Key: "a"}, "one", "", 4},
		{"the first, still", request("a", "x"), "onetrue", "", 4},
	} {
		got, err := serve(t, k, tt.r, says(&n, "one"))
		if got != tt.want || n != tt.n || err != nil && api.CodeOf(err) != tt.code || err == nil && tt.code != "" {
			t.Errorf("%s: %q, %v, done %d times", tt.name, got, err, n)
		}
	}
}

// TestErrors: what was refused can be tried again; what may have been done is
// not done twice.
func TestErrors(t *testing.T) {
	k, n := New(DefaultLimits()), 0
	fails := func(err error) func(http.ResponseWriter) error {
		return func(http.ResponseWriter) error { return err }
	}
	if _, err := serve(t, k, request("a", ""), fails(errKnown)); !errors.Is(err, errKnown) {
		t.Error(err)
	}
	if got, err := serve(t, k, request("a", "other"), says(&n, "one")); got != "one" || err != nil {
		t.Errorf("after what was refused: %q, %v", got, err)
	}
	if _, err := serve(t, k, request("b", ""), fails(io.ErrUnexpectedEOF)); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
	func() {
		defer func() { _ = recover() }()
		_, _ = serve(t, k, request("c", ""), func(http.ResponseWriter) error { panic("x") })
	}()
	for _, key := range []string{"b", "c"} {
		if got, err := serve(t, k, request(key, ""), says(&n, "two")); got != "" || api.CodeOf(err) != api.CodeConflict || n != 1 {
			t.Errorf("%s, of which nobody knows: %q, %v, done %d times", key, got, err, n)
		}
	}
}

// deaf is a client that takes nothing of an answer.
type deaf struct{ *httptest.ResponseRecorder }

func (deaf) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

// TestLostAnswer: what the client did not take is there when it asks again.
func TestLostAnswer(t *testing.T) {
	k, n := New(DefaultLimits()), 0
	err := k.Serve(t.Context(), deaf{httptest.NewRecorder()}, request("a", ""), fresh, says(&n, "one"))
	if !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("the first: %v", err)
	}
	if got, err := serve(t, k, request("a", ""), says(&n, "two")); got != "onetrue" || err != nil || n != 1 {
		t.Errorf("again: %q, %v, done %d times", got, err, n)
	}
}

func TestBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, n := New(Limits{Life: time.Minute, Keys: 3, Bytes: 10}), 0
		if got, err := serve(t, k, request("a", ""), says(&n, "123456")); got != "123456" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		if got, err := serve(t, k, request("b", ""), says(&n, "12345")); got != "12345" || err != nil {
			t.Errorf("one that has no room: %q, %v", got, err)
		}
		if _, err := serve(t, k, request("b", ""), says(&n, "")); api.CodeOf(err) != api.CodeConflict || n != 2 {
			t.Errorf("again: %v, done %d times", err, n)
		}
		if got, err := serve(t, k, request("c", ""), says(&n, "1234")); got != "1234" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		if _, err := serve(t, k, request("d", ""), says(&n, "")); api.CodeOf(err) != api.CodeExhausted || n != 3 {
			t.Errorf("one key too many: %v, done %d times", err, n)
		}
		if k.bytes != 10 {
			t.Errorf("%d bytes are kept, want 10", k.bytes)
		}
		time.Sleep(time.Minute) // of synctest's clock
		if got, err := serve(t, k, request("a", ""), says(&n, "new")); got != "new" || err != nil || n != 4 {
			t.Errorf("when its time is over: %q, %v, done %d times", got, err, n)
		}
		if k.bytes != 3 || k.users[7].bytes != 3 || len(k.users[7].entries) != 1 {
			t.Errorf("%d bytes and %d entries are kept, want 3 and 1", k.bytes, len(k.users[7].entries))
		}
	})
}

// TestTotal: all users together have four times as much as one.
func TestTotal(t *testing.T) {
	k, n := New(Limits{Life: time.Minute, Keys: 3, Bytes: 10}), 0
	for uid := range uint32(5) {
		r := Request{UID: uid, Key: "a"}
		if _, err := serve(t, k, r, says(&n, "1234567890")); err != nil {
			t.Error(err)
		}
		if _, err := serve(t, k, r, says(&n, "")); (err == nil) != (uid < 4) {
			t.Errorf("user %d: %v", uid, err)
		}
	}
}

// TestWait: who comes while it is under way waits, and has the same answer; or
// does it, if nothing was done.
func TestWait(t *testing.T) {
	for _, fail := range []error{nil, errKnown} {
		synctest.Test(t, func(t *testing.T) {
			k, n := New(DefaultLimits()), 0
			begun, goOn := make(chan bool), make(chan bool)
			go func() {
				_ = k.Serve(t.Context(), httptest.NewRecorder(), request("a", ""), fresh, func(w http.ResponseWriter) error {
					close(begun)
					<-goOn
					if fail != nil {
						return fail
					}
					return says(&n, "one")(w)
				})
			}()
			<-begun
			results := make(chan string, 3)
			for range cap(results) {
				go func() {
					got, err := serve(t, k, request("a", ""), says(&n, "one"))
					if err != nil {
						got = err.Error()
					}
					results <- strings.TrimSuffix(got, "true")
				}()
			}
			ctx, cancel := context.WithCancel(t.Context())
			gone := make(chan error)
			go func() { gone <- k.Serve(ctx, httptest.NewRecorder(), request("a", ""), fresh, says(&n, "no")) }()
			synctest.Wait()
			cancel()
			if err := <-gone; !errors.Is(err, context.Canceled) {
				t.Errorf("one that gave up: %v", err)
			}
			close(goOn)
			for range cap(results) {
				if got := <-results; got != "one" {
					t.Errorf("one that waited: %q", got)
				}
			}
			if n != 1 {
				t.Errorf("done %d times", n)
			}
		})
	}
}
