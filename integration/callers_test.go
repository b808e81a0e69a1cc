package integration_test

import (
	"archive/tar"
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/client"
	"github.com/creel-sandbox/creel/pkg/sametime"
	"github.com/creel-sandbox/creel/pkg/server"
)

// TestOtherCallers: what belongs to one caller does not exist for another,
// whatever the route.
func TestOtherCallers(t *testing.T) {
	l := lab.New(t, lab.Options{})
	if err := os.Chmod(l.Socket, 0o666); err != nil {
		t.Fatal(err)
	}
	image := anothers(t, l)
	sb := l.Spawn(api.SpawnRequest{Name: "roots", Command: []string{"/bin/sh", "-c", "echo secret; sleep 1000"}})
	routes := []struct{ method, path, body string }{
		{"GET", "", ""},
		{"DELETE", "?force=true", ""},
		{"POST", "/stop", "{}"},
		{"POST", "/kill", "{}"},
		{"POST", "/pause", "{}"},
		{"POST", "/resume", "{}"},
		{"GET", "/wait", ""},
		{"GET", "/logs", ""},
		{"GET", "/stats", ""},
		{"GET", "/top", ""},
		{"GET", "/execs", ""},
		{"GET", "/diff", ""},
		{"GET", "/evidence", ""},
		{"GET", "/evidence?fresh=true", ""},
		{"POST", "/exec", `{"command":["/bin/true"]}`},
		{"POST", "/exec?", `{"command":["/bin/true"]}`}, // one shot: ask upgrades only what ends in exec
		{"POST", "/commit", `{"image":"mine:1"}`},
		{"POST", "/prepare", `{"command":["/bin/true"]}`},
		{"POST", "/attach", ""},
		{"POST", "/forward?port=80", ""},
		{"POST", "/egress", `{"allow":["tcp evil.example:22"]}`},
		{"GET", "/files?path=/etc/passwd", ""},
		{"PUT", "/files?path=/tmp/x", "x"},
		{"DELETE", "/files?path=/tmp/x", ""},
		{"GET", "/files/list?path=/", ""},
		{"GET", "/files/stat?path=/", ""},
		{"POST", "/files/mkdir?path=/tmp/d", ""},
		{"POST", "/files/rename?from=/tmp/a&to=/tmp/b", ""},
	}
	asked := map[string]bool{"PUT /v1/sandboxes/{ref}": true} // a name of one's own: "same name", below
	for _, rt := range routes {
		path, _, _ := strings.Cut(rt.path, "?")
		asked[rt.method+" /v1/sandboxes/{ref}"+path] = true
	}
	for _, rt := range server.Routes() {
		if name := rt.Method + " " + rt.Pattern; strings.Contains(name, "/v1/sandboxes/{ref}") && !asked[name] {
			t.Errorf("%s is not asked as another caller", name)
		}
	}
	asStranger(t, func() {
		for _, rt := range routes {
			var answers []string
			for _, ref := range []string{sb.ID, sb.Name, sb.ID[:6], "aaaaaaaaaaaaaaaaaaaa"} {
				status, body := ask(t, l, rt.method, "/v1/sandboxes/"+ref+rt.path, rt.body)
				answers = append(answers, strings.ReplaceAll(fmt.Sprint(status, " ", body), ref, "REF"))
			}
			for _, a := range answers {
				if a != answers[len(answers)-1] || !strings.HasPrefix(a, "404 ") {
					t.Errorf("%s %s: %q for another's sandbox, %q for none", rt.method, rt.path, a, answers[len(answers)-1])
				}
			}
		}
		if _, body := ask(t, l, "GET", "/v1/sandboxes?all=true", ""); strings.Contains(body, sb.ID) {
			t.Errorf("the list shows another's: %s", body)
		}
		for _, rt := range []struct{ method, kind, path, body string }{
			{"GET", "images", "", ""},
			{"DELETE", "images", "", ""},
			{"GET", "archives", "", ""},
			{"GET", "volumes", "", ""},
			{"DELETE", "volumes", "", ""},
		} {
			theirs := map[string]string{"images": image.Digest, "archives": image.Digest, "volumes": "theirs"}[rt.kind]
			none := map[string]string{"images": "sha256:" + strings.Repeat("0", 64), "archives": "sha256:" + strings.Repeat("0", 64), "volumes": "nobodys"}[rt.kind]
			status, body := ask(t, l, rt.method, "/v1/"+rt.kind+"/"+theirs+rt.path, rt.body)
			status2, body2 := ask(t, l, rt.method, "/v1/"+rt.kind+"/"+none+rt.path, rt.body)
			if status != http.StatusNotFound || status != status2 || strings.ReplaceAll(body, theirs, "REF") != strings.ReplaceAll(body2, none, "REF") {
				t.Errorf("%s %s%s: %d %q for another's, %d %q for none", rt.method, rt.kind, rt.path, status, body, status2, body2)
			}
		}
		if status, body := ask(t, l, "DELETE", "/v1/images/base", ""); status != http.StatusForbidden {
			t.Errorf("remove an image: %d %s", status, body)
		}
		if status, body := ask(t, l, "GET", "/v1/doctor?user=root", ""); status != http.StatusForbidden {
			t.Errorf("doctor about root: %d %s", status, body)
		}
		// The answer about a path is the caller's own view of it: it cannot
		// tell what is there from what is not.
		there, none := filepath.Join(l.Dir, "state/logs", sb.ID), filepath.Join(l.Dir, "state/logs", strings.Repeat("a", 20))
		_, one := ask(t, l, "GET", "/v1/doctor?dir="+there, "")
		_, other := ask(t, l, "GET", "/v1/doctor?dir="+none, "")
		one, other = strings.ReplaceAll(one, there, "DIR"), strings.ReplaceAll(other, none, "DIR")
		if i := strings.Index(one, "workspace"); i < 0 || one[i:] != other[max(strings.Index(other, "workspace"), 0):] {
			t.Errorf("doctor tells a hidden directory (%s) from none (%s)", one, other)
		}
		if strings.Contains(one, sb.ID) {
			t.Errorf("doctor names another's sandbox: %s", one)
		}
	})
	t.Run("events", func(t *testing.T) {
		var body string
		asStranger(t, func() {
			r := dialRaw(t, l).send("GET /v1/events HTTP/1.1\r\nHost: c\r\n\r\n")
			_ = r.conn.SetDeadline(time.Now().Add(time.Second))
			b, _ := io.ReadAll(r.conn)
			body = string(b)
		})
		if strings.Contains(body, sb.ID) || !strings.Contains(body, "200 OK") {
			t.Errorf("events of another: %s", body)
		}
	})
	t.Run("same name", func(t *testing.T) {
		// A name taken by one caller is free for another, and each has its own.
		out, errOut, code := l.CreelAs(&syscall.Credential{Uid: stranger, Gid: stranger}, "", "run", "-d", "--name", "roots")
		if code != 0 {
			t.Fatalf("%d %q %q", code, out, errOut)
		}
		if v, err := l.Inspect(t.Context(), "roots"); err != nil || v.ID != sb.ID {
			t.Errorf("root's own by that name: %+v, %v", v, err)
		}
	})
	if v, err := l.Inspect(t.Context(), sb.ID); err != nil || v.State != api.StateRunning {
		t.Errorf("after another caller's attempts: %+v, %v", v, err)
	}
}

// TestOtherCallersTakeTheSame: nor does how long an answer takes tell what is
// another caller's, as far as it shows through the socket. The tests of the
// packages that look things up (launcher, volume, runtime) see less than that.
func TestOtherCallersTakeTheSame(t *testing.T) {
	l := lab.New(t, lab.Options{})
	if err := os.Chmod(l.Socket, 0o666); err != nil {
		t.Fatal(err)
	}
	image := anothers(t, l)
	sb := l.Spawn(api.SpawnRequest{Name: "roots", Agent: "roots"})
	var c *net.UnixConn
	asStranger(t, func() {
		var err error
		if c, err = net.DialUnix("unix", nil, &net.UnixAddr{Name: l.Socket, Net: "unix"}); err != nil {
			t.Error(err)
		}
	})
	if c == nil {
		return
	}
	defer c.Close()
	in := bufio.NewReader(c)
	get := func(path string, want int) func() {
		return func() {
			fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: c\r\n\r\n", path)
			resp, err := http.ReadResponse(in, nil)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			if resp.StatusCode != want {
				t.Fatalf("%s: %d", path, resp.StatusCode)
			}
		}
	}
	trip := sametime.Median(500, get("/v1/version", http.StatusOK))
	t.Logf("the way there and back takes %v", trip)
	for _, q := range []struct{ pattern, theirs, none string }{
		{"/v1/sandboxes/%s", sb.ID, strings.Repeat("a", len(sb.ID))},
		{"/v1/sandboxes/%s", "roots", "nones"},
		{"/v1/sandboxes/%s/evidence", sb.ID, strings.Repeat("a", len(sb.ID))},
		{"/v1/agents/%s", "roots", "nones"},
		{"/v1/volumes/%s", "theirs", "nobody"},
		{"/v1/images/%s", "theirs", "nobody"},
		{"/v1/images/%s", image.Digest, "sha256:" + strings.Repeat("0", 64)},
	} {
		theirs, none := fmt.Sprintf(q.pattern, q.theirs), fmt.Sprintf(q.pattern, q.none)
		sametime.Check(t, 300, trip/2,
			sametime.Question{Name: theirs, Ask: get(theirs, http.StatusNotFound)},
			sametime.Question{Name: none, Ask: get(none, http.StatusNotFound)})
	}
}

// anothers is an image that only a third user has, and makes a volume that is
// that user's, too.
func anothers(t *testing.T, l *lab.Lab) *api.Image {
	t.Helper()
	third := &syscall.Credential{Uid: stranger + 1, Gid: stranger + 1}
	archive, err := os.ReadFile(lab.TinyWith(t, nil, func(w *tar.Writer) {
		lab.Add(t, w, &tar.Header{Typeflag: tar.TypeReg, Name: "another", Mode: 0o644}, []byte("another"))
	}))
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"image", "import", "--ref", "theirs", "-"}, {"volume", "create", "--size", "16M", "theirs"}} {
		if _, errOut, code := l.CreelAs(third, string(archive), args...); code != 0 {
			t.Fatalf("creel %q: %s", args, errOut)
		}
	}
	out, errOut, code := l.CreelAs(third, "", "image", "inspect", "--json", "theirs")
	var img api.Image
	if err := json.Unmarshal([]byte(out), &img); code != 0 || err != nil {
		t.Fatalf("inspect: %d %s %v", code, errOut, err)
	}
	return &img
}

// asStranger runs fn on a thread with another's uid, so that its connections are
// that user's.
func asStranger(t *testing.T, fn func()) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		for _, call := range []struct{ nr, n uintptr }{{unix.SYS_SETGROUPS, 0}, {unix.SYS_SETRESGID, stranger}, {unix.SYS_SETRESUID, stranger}} {
			if _, _, e := syscall.RawSyscall(call.nr, call.n, call.n, call.n); e != 0 {
				done <- e
				return
			}
		}
		fn()
		done <- nil
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// ask makes one request of the calling thread's user.
func ask(t *testing.T, l *lab.Lab, method, path, body string) (int, string) {
	t.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: l.Socket, Net: "unix"})
	if err != nil {
		t.Errorf("dial: %v", err)
		return 0, ""
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	head := fmt.Sprintf("%s %s HTTP/1.1\r\nHost: c\r\n", method, path)
	if strings.HasSuffix(path, "/exec") || strings.HasSuffix(path, "/attach") || strings.Contains(path, "/forward?") {
		head += "Connection: Upgrade\r\nUpgrade: creel-stream\r\n"
	}
	fmt.Fprintf(c, "%sContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", head, len(body), body)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Errorf("%s %s: %v", method, path, err)
		return 0, ""
	}
	defer resp.Body.Close()
	var v map[string]any
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if json.Unmarshal(text, &v) == nil {
		delete(v, "request_id")
		text, _ = json.Marshal(v)
	}
	return resp.StatusCode, string(text)
}

// TestRaces are requests that cross each other.
func TestRaces(t *testing.T) {
	l := lab.New(t, lab.Options{})
	t.Run("spawns of one name", func(t *testing.T) {
		var mu sync.Mutex
		var won []string
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				res, err := l.Client.Spawn(t.Context(), api.SpawnRequest{Name: "one"})
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil:
					won = append(won, res.Sandbox.ID)
				case api.CodeOf(err) != api.CodeConflict:
					t.Errorf("the others: %v", err)
				}
			})
		}
		wg.Wait()
		if len(won) != 1 {
			t.Fatalf("%d won: %v", len(won), won)
		}
		if err := l.Remove(t.Context(), won[0], true); err != nil {
			t.Error(err)
		}
		// The name is free at once, and names the new one from then on.
		res, err := l.Client.Spawn(t.Context(), api.SpawnRequest{Name: "one"})
		if err != nil {
			t.Fatal(err)
		}
		for range 50 {
			if v, err := l.Inspect(t.Context(), "one"); err != nil || v.ID != res.Sandbox.ID {
				t.Fatalf("the name gives %+v, %v", v, err)
			}
		}
	})
	t.Run("ends of a sandbox that is being made", func(t *testing.T) {
		ranges := map[uint32]bool{}
		for i := range 6 {
			name := fmt.Sprintf("race-%d", i)
			stop := make(chan struct{})
			var wg sync.WaitGroup
			for _, end := range []func() error{
				func() error { return l.Client.Kill(t.Context(), name, "KILL") },
				func() error { return l.Remove(t.Context(), name, true) },
				func() error { g := time.Duration(0); _, err := l.Client.Stop(t.Context(), name, &g); return err },
				func() error { _, err := l.Stats(t.Context(), name); return err },
				func() error { _, err := l.Evidence(t.Context(), name, true); return err },
				func() error { _, err := l.List(t.Context(), client.ListOptions{All: true}); return err },
				func() error { _, err := l.StatFile(t.Context(), name, "/tmp"); return err },
			} {
				wg.Go(func() {
					for last := false; !last; {
						select {
						case <-stop:
							last = true // and one more, of a sandbox that is there
						default:
						}
						if err := end(); err != nil && api.CodeOf(err) == api.CodeInternal {
							t.Errorf("%v", err)
							return
						}
					}
				})
			}
			res, err := l.Client.Spawn(t.Context(), api.SpawnRequest{Name: name})
			if err == nil {
				ranges[res.Sandbox.HostUID] = true
			}
			close(stop)
			wg.Wait()
			if err := l.Remove(t.Context(), name, true); err != nil && api.CodeOf(err) != api.CodeNotFound {
				t.Errorf("remove: %v", err)
			}
		}
		// An id range given back twice would be two sandboxes' at one time.
		seen := map[uint32]string{}
		for range 8 {
			sb := l.Spawn(api.SpawnRequest{})
			if other := seen[sb.HostUID]; other != "" {
				t.Errorf("%s and %s share the range from %d", sb.ID, other, sb.HostUID)
			}
			seen[sb.HostUID] = sb.ID
		}
	})
	t.Run("execs while it ends", func(t *testing.T) {
		for _, end := range []func(id string) error{
			func(id string) error { return l.Remove(t.Context(), id, true) },
			func(id string) error { return l.Client.Kill(t.Context(), id, "KILL") },
			func(id string) error { _, err := l.Client.Stop(t.Context(), id, nil); return err },
		} {
			sb := l.Spawn(api.SpawnRequest{Command: []string{"/bin/sleep", "1000"}})
			var wg, begun sync.WaitGroup
			for range 6 {
				begun.Add(1)
				first := sync.OnceFunc(begun.Done)
				wg.Go(func() {
					defer first()
					for ; ; first() {
						res, err := l.Exec(t.Context(), sb.ID, api.ExecRequest{Command: []string{"/bin/sleep", "0.05"}}, client.Stdio{})
						if err != nil && api.CodeOf(err) == api.CodeInternal {
							t.Errorf("exec while it ends: %v", err)
						}
						if err != nil || res.Reason != api.ReasonExited {
							return
						}
					}
				})
			}
			begun.Wait() // each is at its second
			if err := end(sb.ID); err != nil {
				t.Errorf("end: %v", err)
			}
			wg.Wait()
		}
	})
}

// TestManyAttached: a hundred clients see the main command's output, and
// those that do not read hold up nobody.
func TestManyAttached(t *testing.T) {
	l := lab.New(t, lab.Options{})
	sb := l.Spawn(api.SpawnRequest{Command: []string{"/bin/sh", "-c", "i=0; while [ $i -lt 200 ]; do echo line $i; i=$((i+1)); usleep 5000; done; echo the end"}})
	var wg sync.WaitGroup
	var mu sync.Mutex
	good := 0
	for n := range 100 {
		p, err := l.Attach(t.Context(), sb.ID, client.AttachOptions{Replay: true})
		if err != nil {
			t.Errorf("attach %d: %v", n, err)
			continue
		}
		if n%10 == 0 {
			defer p.Close() // never reads
			continue
		}
		wg.Go(func() {
			var out bytes.Buffer
			res, err := p.Run(client.Stdio{Out: &out, Err: io.Discard})
			mu.Lock()
			defer mu.Unlock()
			if err == nil && res.ExitCode == 0 && strings.HasSuffix(out.String(), "line 199\nthe end\n") && strings.HasPrefix(out.String(), "line 0\n") {
				good++
			} else {
				t.Errorf("attached: %+v, %v, %d bytes", res, err, out.Len())
			}
		})
	}
	wg.Wait()
	if good != 90 {
		t.Errorf("%d of 90 clients saw all", good)
	}
}

// TestLogsAreTheDaemons: a user of the host gets nothing of what the daemon
// keeps.
func TestLogsAreTheDaemons(t *testing.T) {
	l := lab.New(t, lab.Options{})
	sb := l.Spawn(api.SpawnRequest{Command: []string{"/bin/sh", "-c", "echo secret; sleep 1000"}})
	asStranger(t, func() {
		for _, p := range []string{"state/state.db", "state/logs", "state/logs/" + sb.ID, "run/containerd/containerd.sock", "run/sandboxes", "run/sandboxes/" + sb.ID, "run/sandboxes/" + sb.ID + "/init", "state/containerd", "state/rootfs", "run/mnt", "run/containerd/s"} {
			path := filepath.Join(l.Dir, p)
			if f, err := os.Open(path); err == nil {
				_ = f.Close()
				t.Errorf("a stranger opens %s", p)
			}
			if c, err := net.Dial("unix", path); err == nil {
				_ = c.Close()
				t.Errorf("a stranger connects to %s", p)
			}
		}
	})
}

// TestKept: a caller cannot fill the daemon's memory and disk with sandboxes
// that have ended; it is told to remove some.
func TestKept(t *testing.T) {
	l := lab.New(t, lab.Options{Config: "[limits.max]\nkept_per_user = 2\n"})
	run := func() error {
		res, err := l.Client.Spawn(t.Context(), api.SpawnRequest{Command: []string{"/bin/true"}})
		if err != nil {
			return err
		}
		_, err = l.Wait(t.Context(), res.Sandbox.ID)
		return err
	}
	for range 2 {
		if err := run(); err != nil {
			t.Fatal(err)
		}
	}
	if err := run(); api.CodeOf(err) != api.CodeExhausted || !strings.Contains(err.Error(), "kept_per_user") {
		t.Errorf("one more: %v", err)
	}
	all, err := l.List(t.Context(), client.ListOptions{All: true})
	if err != nil || len(all) != 2 {
		t.Fatalf("%d sandboxes, %v", len(all), err)
	}
	if err := l.Remove(t.Context(), all[0].ID, false); err != nil {
		t.Fatal(err)
	}
	if err := run(); err != nil {
		t.Errorf("after one was removed: %v", err)
	}
}

// TestTotals refuses, under concurrent spawns, the sandbox that is one too
// many for each of the bounds of all together, by name, and frees the room of
// one that ends.
func TestTotals(t *testing.T) {
	for _, tt := range []struct {
		key, bound string
		req        api.SpawnRequest
	}{
		{"sandboxes", "2", api.SpawnRequest{}},
		{"sandboxes_per_user", "2", api.SpawnRequest{}},
		{"memory", `"256M"`, api.SpawnRequest{Limits: api.Limits{Memory: 128 << 20}}},
		{"cpus", "1.0", api.SpawnRequest{Limits: api.Limits{CPUs: 0.5}}},
		{"pids", "128", api.SpawnRequest{Limits: api.Limits{Pids: 64}}},
		{"disk", `"32M"`, api.SpawnRequest{Rootfs: "ephemeral", Limits: api.Limits{Disk: 16 << 20}}},
	} {
		t.Run(tt.key, func(t *testing.T) {
			l := lab.New(t, lab.Options{Config: fmt.Sprintf("[limits.max]\n%s = %s\n", tt.key, tt.bound)})
			var mu sync.Mutex
			var won []string
			var wg sync.WaitGroup
			for range 5 {
				wg.Go(func() {
					res, err := l.Client.Spawn(t.Context(), tt.req)
					mu.Lock()
					defer mu.Unlock()
					switch {
					case err == nil:
						won = append(won, res.Sandbox.ID)
					case api.CodeOf(err) != api.CodeExhausted || !strings.Contains(err.Error(), "limits.max."+tt.key+" is"):
						t.Errorf("the others: %v", err)
					}
				})
			}
			wg.Wait()
			if len(won) != 2 {
				t.Fatalf("%d of 5 were let in, want 2", len(won))
			}
			if err := l.Remove(t.Context(), won[0], true); err != nil {
				t.Fatal(err)
			}
			l.Spawn(tt.req)
		})
	}
}
