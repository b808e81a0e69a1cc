package e2e_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// credential is nowhere but with the server that wants it, and sealed with creeld.
const credential = "tok-4711-of-the-test"

// testSecret: a tool inside uses a credential that neither it, the model, OpenClaw
// nor any log ever has.
func testSecret(t *testing.T, w *world, g *gateway) {
	t.Helper()
	w.site.HandleFunc("/v1/", func(rw http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(rw, "said %q\n", r.Header.Get("Authorization"))
	})
	user := &syscall.Credential{Uid: gatewayUID, Gid: gatewayUID, Groups: []uint32{socketGID}}
	if out, errOut, code := w.CreelAs(user, credential+"\n", "secret", "set", "--host", w.host(), "--path", "/v1/**", "--env", "API_KEY", "api"); code != 0 {
		t.Fatal(out, errOut)
	}
	masked := strings.Repeat("*", len(credential))
	g.uses(t, "secret", "secret",
		use{"exec", shell(`curl -sS ` + w.site.URL("/v1/a")), `said "Bearer ` + masked + `"`},
		use{"exec", shell(`curl -sS -H "Authorization: Bearer $API_KEY" ` + w.site.URL("/v1/b")), `said "Bearer ` + masked + `"`},
		use{"exec", shell(`echo "$API_KEY"; env; cat /proc/*/environ 2>/dev/null | tr '\0' '\n'`), `^creel_.*`},
		use{"exec", shell(`curl -sS ` + w.site.URL("/elsewhere") + `?k="$API_KEY"`), "creel: the request has the placeholder of a secret that does not go there: api"},
		use{"exec", shell(`curl -sS --max-time 5 https://api.example.com/ 2>&1`), `^curl: .*`},
		use{"write", obj{"path": "notes", "content": "nothing"}, "Successfully wrote 7 bytes to /workspace/notes"},
	)
	sent := 0
	for _, r := range w.site.Requests() {
		if r.Header.Get("Authorization") == "Bearer "+credential {
			sent++
		}
	}
	if sent != 2 {
		t.Errorf("the server had it %d times, not 2", sent)
	}
	// What OpenClaw, the model's side and creel have on disk.
	for _, dir := range []string{g.Dir, w.Lab.Dir} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return nil //nolint:nilerr // files come and go
			}
			if b, err := os.ReadFile(path); err == nil && bytes.Contains(b, []byte(credential)) {
				t.Errorf("it is in %s", path)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
}
