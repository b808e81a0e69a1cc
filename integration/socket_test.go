package integration_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/client"
)

// raw speaks to the socket without any of creel's code in between.
type raw struct {
	t    *testing.T
	conn *net.UnixConn
}

func dialRaw(t *testing.T, l *lab.Lab) *raw {
	t.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: l.Socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	return &raw{t: t, conn: c}
}

// send writes all of it, or as much as the daemon takes before it hangs up.
func (r *raw) send(text string) *raw {
	_, _ = io.WriteString(r.conn, text)
	return r
}

// status is that of the answer, 0 when there is none.
func (r *raw) status() int {
	resp, err := http.ReadResponse(bufio.NewReader(r.conn), nil)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20))
	return resp.StatusCode
}

func post(path, contentType, body string) string {
	return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: creel\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s", path, contentType, len(body), body)
}

// serves fails the test unless the daemon does its work for others.
func serves(t *testing.T, l *lab.Lab, id string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if out, res := l.ShContext(ctx, id, api.ExecRequest{Command: []string{"/bin/echo", "ok"}}); out != "ok\n" || res.ExitCode != 0 {
		t.Errorf("exec: %q, %+v", out, res)
	}
	if n := rss(t, l.DaemonPID()); n > maxRSS*raceFactor() {
		t.Errorf("the daemon has %d MiB", n>>20)
	}
	if strings.Contains(l.LogTail(1000), "panicked") {
		t.Errorf("a handler panicked:\n%s", l.LogTail(50))
	}
}

// TestMalformedRequests: whatever comes over the socket gets an answer of its
// class, or the connection's end, and nothing stays behind.
func TestMalformedRequests(t *testing.T) {
	l := lab.New(t, lab.Options{})
	sb := l.Spawn(api.SpawnRequest{})
	const spawn = "/v1/sandboxes"
	const js = "application/json"
	mounts := `{"mounts":[` + strings.Repeat(`{"source":"/x","fd":0,"target":"/mnt/a"},`, 9_999) + `{"source":"/x","fd":0,"target":"/mnt/a"}]}`
	tests := []struct {
		name string
		send string
		want int // 0: the connection ends without an answer
	}{
		{"no HTTP", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello\r\n\r\n", 400},
		{"HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 404},
		{"no host", "GET /v1/version HTTP/1.1\r\n\r\n", 400},
		{"two lengths", "POST /v1/sandboxes HTTP/1.1\r\nHost: c\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400},
		{"length and chunks", "POST /v1/sandboxes HTTP/1.1\r\nHost: c\r\nContent-Type: application/json\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{]\r\n0\r\n\r\n", 400},
		{"bad chunk", "POST /v1/sandboxes HTTP/1.1\r\nHost: c\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400},
		{"negative length", "POST /v1/sandboxes HTTP/1.1\r\nHost: c\r\nContent-Length: -1\r\n\r\n", 400},
		{"NUL in header", "GET /v1/version HTTP/1.1\r\nHost: c\r\nX: a\x00b\r\n\r\n", 400},
		{"NUL in path", "GET /v1/sandboxes/a%00b HTTP/1.1\r\nHost: c\r\n\r\n", 404},
		{"header flood", "GET /v1/version HTTP/1.1\r\nHost: c\r\n" + strings.Repeat("X-A: "+strings.Repeat("b", 1000)+"\r\n", 100) + "\r\n", 431},
		{"long target", "GET /v1/" + strings.Repeat("a", 100_000) + " HTTP/1.1\r\nHost: c\r\n\r\n", 431},
		{"browser", "GET /v1/version HTTP/1.1\r\nHost: c\r\nOrigin: http://evil\r\n\r\n", 403},
		{"traversal", "GET /v1/sandboxes/../version HTTP/1.1\r\nHost: c\r\n\r\n", 404},
		{"encoded traversal", "GET /v1/sandboxes/%2e%2e%2f%2e%2e%2fetc HTTP/1.1\r\nHost: c\r\n\r\n", 404},
		{"double slash", "GET //v1/version HTTP/1.1\r\nHost: c\r\n\r\n", 404},
		{"absolute form", "GET http://creel/v1/version HTTP/1.1\r\nHost: c\r\n\r\n", 200},
		{"wrong method", "PATCH /v1/sandboxes HTTP/1.1\r\nHost: c\r\n\r\n", 405},
		{"ref of dots", "GET /v1/sandboxes/..%2f..%2f HTTP/1.1\r\nHost: c\r\n\r\n", 404},
		{"not JSON", post(spawn, js, "{"), 400},
		{"not announced", post(spawn, "text/plain", "{}"), 400},
		{"form", post(spawn, "application/x-www-form-urlencoded", "a=b"), 400},
		{"not UTF-8", post(spawn, js, "{\"name\":\"\xff\"}"), 400},
		{"unknown field", post(spawn, js, `{"privileged":true}`), 400},
		{"other case", post(spawn, js, `{"Command":["/bin/true"]}`), 400},
		{"field twice", post(spawn, js, `{"name":"a","name":"b"}`), 400},
		{"null", post(spawn, js, `{"command":null}`), 400},
		{"deep", post(spawn, js, strings.Repeat("[", 200_000)+strings.Repeat("]", 200_000)), 400},
		{"deep object", post(spawn, js, strings.Repeat(`{"a":`, 100_000)+"1"+strings.Repeat("}", 100_000)), 400},
		{"huge", post(spawn, js, `{"name":"`+strings.Repeat("a", 2<<20)+`"}`), 413},
		{"10,000 mounts", post(spawn, js, mounts), 400},
		{"fd without descriptor", post(spawn, js, `{"mounts":[{"source":"/x","fd":3,"target":"/mnt/a"}]}`), 400},
		{"negative fd", post(spawn, js, `{"mounts":[{"source":"/x","fd":-1,"target":"/mnt/a"}]}`), 400},
		{"huge numbers", post(spawn, js, `{"limits":{"pids":1e400}}`), 400},
		{"negative limits", post(spawn, js, `{"limits":{"pids":-1,"memory":-5,"cpus":-0.1}}`), 400},
		{"path in name", post(spawn, js, `{"name":"../../x"}`), 400},
		{"path in profile", post(spawn, js, `{"profile":"../../etc/passwd"}`), 400},
		{"path in runtime", post(spawn, js, `{"runtime":"/bin/sh"}`), 400},
		{"path in image", post(spawn, js, `{"image":"../../../etc"}`), 400},
		{"mount over proc", post(spawn, js, `{"mounts":[{"source":"/x","fd":0,"target":"/proc/sys"}]}`), 400},
		{"host network", post(spawn, js, `{"network":"host"}`), 400},
		{"variables of the loader", post(spawn, js, `{"env":{"A=B":"c"}}`), 400},
		{"NUL in command", post(spawn, js, `{"command":["/bin/true\u0000x"]}`), 400},
		{"terminal without upgrade", post("/v1/sandboxes/"+sb.ID+"/exec", js, `{"command":["/bin/true"],"tty":true}`), 426},
		{"one shot that keeps too much", post("/v1/sandboxes/"+sb.ID+"/exec", js, `{"command":["/bin/true"],"max_output":"1G"}`), 400},
		{"expect", "POST /v1/sandboxes HTTP/1.1\r\nHost: c\r\nExpect: 200-ok\r\nContent-Length: 2\r\n\r\n{}", 417},
		{"query twice", "GET /v1/sandboxes?all=true&all=false HTTP/1.1\r\nHost: c\r\n\r\n", 400},
		{"unknown query", "GET /v1/sandboxes?root=1 HTTP/1.1\r\nHost: c\r\n\r\n", 400},
		{"set-ID write", "PUT /v1/sandboxes/" + sb.ID + "/files?path=/tmp/x&mode=4755 HTTP/1.1\r\nHost: c\r\nContent-Length: 0\r\n\r\n", 400},
		{"relative path", "GET /v1/sandboxes/" + sb.ID + "/files?path=etc/passwd HTTP/1.1\r\nHost: c\r\n\r\n", 400},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := dialRaw(t, l).send(tt.send).status(); got != tt.want {
				t.Errorf("status %d, want %d", got, tt.want)
			}
		})
	}
	serves(t, l, sb.ID)
	if all, err := l.List(t.Context(), client.ListOptions{All: true}); err != nil || len(all) != 1 {
		t.Errorf("%d sandboxes, %v; want the one", len(all), err)
	}
}

// TestFloods: descriptors, connections and bodies without end cost a caller
// its own places, and the daemon nothing that stays.
func TestFloods(t *testing.T) {
	l := lab.New(t, lab.Options{Config: "[server]\nmax_connections = 64\nmax_streams = 32\n"})
	sb := l.Spawn(api.SpawnRequest{})
	before := used(t, l.DaemonPID())
	dir, err := os.OpenFile("/", unix.O_DIRECTORY|unix.O_PATH, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	t.Run("descriptors", func(t *testing.T) {
		for _, perMessage := range []int{1, 16, 17, 200, 250} {
			r := dialRaw(t, l)
			fds := make([]int, perMessage)
			for i := range fds {
				fds[i] = int(dir.Fd())
			}
			rights := unix.UnixRights(fds...)
			for sent, n := 0, 0; sent < 1000; sent, n = sent+perMessage, n+1 {
				b := "G"
				if n > 0 {
					b = "E"
				}
				if _, _, err := r.conn.WriteMsgUnix([]byte(b), rights, nil); err != nil {
					break // cut off
				}
			}
			if now := used(t, l.DaemonPID()); now.fds > before.fds+64 {
				t.Errorf("%d in a message: the daemon holds %d descriptors, %d before", perMessage, now.fds, before.fds)
			}
			_ = r.conn.Close()
			l.Eventually("the daemon lets go of them", 10*time.Second, func() error { // or they count with the next
				if now := used(t, l.DaemonPID()); now.fds > before.fds+8 {
					return fmt.Errorf("it holds %d descriptors, %d before", now.fds, before.fds)
				}
				return nil
			})
		}
	})
	t.Run("things that are no directories", func(t *testing.T) {
		p, err := os.Open("/etc/passwd")
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(pair[0])
		defer unix.Close(pair[1])
		for _, fd := range []int{int(p.Fd()), pair[0]} {
			r := dialRaw(t, l)
			req := post("/v1/sandboxes", "application/json", `{"mounts":[{"source":"/x","fd":0,"target":"/mnt/a","readonly":true}]}`)
			if _, _, err := r.conn.WriteMsgUnix([]byte(req), unix.UnixRights(fd), nil); err != nil {
				t.Fatal(err)
			}
			if got := r.status(); got != http.StatusBadRequest {
				t.Errorf("status %d", got)
			}
		}
	})
	t.Run("the root directory", func(t *testing.T) {
		r := dialRaw(t, l)
		req := post("/v1/sandboxes", "application/json", `{"mounts":[{"source":"/x","fd":0,"target":"/mnt/a","readonly":true}]}`)
		if _, _, err := r.conn.WriteMsgUnix([]byte(req), unix.UnixRights(int(dir.Fd())), nil); err != nil {
			t.Fatal(err)
		}
		if got := r.status(); got != http.StatusForbidden {
			t.Errorf("status %d", got)
		}
	})
	t.Run("connections", func(t *testing.T) {
		var open []*raw
		for range 200 {
			open = append(open, dialRaw(t, l))
		}
		if got := open[len(open)-1].status(); got != http.StatusTooManyRequests {
			t.Errorf("one connection too many: status %d, want 429", got)
		}
		for _, r := range open {
			_ = r.conn.Close()
		}
	})
	t.Run("slow bodies", func(t *testing.T) {
		var wg sync.WaitGroup
		defer wg.Wait()
		// A body that does not come, of a request that does not want one,
		// must not hold the connection for ever.
		for _, req := range []string{
			"GET /v1/version HTTP/1.1\r\nHost: c\r\nContent-Length: 100\r\n\r\n",
			"POST /v1/sandboxes HTTP/1.1\r\nHost: c\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{",
			"DELETE /v1/sandboxes/none HTTP/1.1\r\nHost: c\r\nContent-Length: 5\r\n\r\n",
			"GET /v1/version HTTP/1.1\r\nHost",
		} {
			r := dialRaw(t, l).send(req)
			wg.Go(func() {
				if _, err := io.Copy(io.Discard, r.conn); errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("%.20q: the connection is still open after 30 s", req)
				}
				_ = r.conn.Close()
			})
		}
	})
	l.Eventually("nothing is kept", 20*time.Second, func() error {
		if now := used(t, l.DaemonPID()); now.fds > before.fds+8 {
			return fmt.Errorf("before %+v, now %+v", before, now)
		}
		return nil
	})
	serves(t, l, sb.ID)
}

// TestManyGivenUp: clients that go away while their command is being started,
// at whatever moment, leave nothing in PID 1, which holds at most 1,024
// processes and results.
func TestManyGivenUp(t *testing.T) {
	l := lab.New(t, lab.Options{})
	sb := l.Spawn(api.SpawnRequest{})
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 250 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i*37+w*911)%(12*time.Millisecond/time.Microsecond)*time.Microsecond)
				if i%3 == 0 {
					_, _ = l.StatFile(ctx, sb.ID, "/tmp")
				} else {
					_, _ = l.Exec(ctx, sb.ID, api.ExecRequest{Command: []string{"/bin/true"}}, client.Stdio{})
				}
				cancel()
			}
		})
	}
	wg.Wait()
	l.Eventually("the daemon is done with them", time.Minute, func() error { // their connections count until then
		_, err := l.StatFile(t.Context(), sb.ID, "/tmp")
		return err
	})
	serves(t, l, sb.ID)
	l.Eventually("nothing is left in the sandbox", 30*time.Second, func() error {
		if out, _ := l.Sh(sb.ID, "for p in /proc/[0-9]*; do echo $p; done | wc -l"); strings.TrimSpace(out) != "4" && strings.TrimSpace(out) != "3" {
			return fmt.Errorf("%s processes; want PID 1, the shell and its own", out)
		}
		return nil
	})
	for range 30 { // results that were kept would be in the way of these
		serves(t, l, sb.ID)
	}
}

const upgrade = "POST /v1/sandboxes/%s/exec HTTP/1.1\r\nHost: c\r\nConnection: Upgrade\r\nUpgrade: creel-stream\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"

func execRequest(id, body string) string { return fmt.Sprintf(upgrade, id, len(body), body) }

// TestAbortedUpgrades ends the connection after each byte of an exec, and in
// each way; no process, exec or descriptor may stay.
func TestAbortedUpgrades(t *testing.T) {
	l := lab.New(t, lab.Options{})
	sb := l.Spawn(api.SpawnRequest{})
	before, init := used(t, l.DaemonPID()), used(t, sb.PID)
	req := execRequest(sb.ID, `{"command":["/bin/sleep","777"],"stdin":true}`)
	step := 7
	if os.Getenv("CREEL_SOAK") != "" {
		step = 1
	}
	for n := 0; n <= len(req); n += step {
		for _, how := range []func(*net.UnixConn){
			func(c *net.UnixConn) { c.Close() },
			func(c *net.UnixConn) { _ = c.CloseWrite(); _, _ = io.Copy(io.Discard, c); c.Close() },
		} {
			r := dialRaw(t, l).send(req[:n])
			how(r.conn)
		}
	}
	// And in the middle of the stream: all of it sent, nothing read.
	for range 20 {
		r := dialRaw(t, l).send(req)
		time.Sleep(time.Millisecond)
		_ = r.conn.Close()
	}
	l.Eventually("nothing is left", 30*time.Second, func() error {
		v, err := l.Inspect(t.Context(), sb.ID)
		if err != nil || v.Execs != 0 {
			return fmt.Errorf("%+v, %v", v, err) //nolint:errorlint // it may be nil
		}
		// Before the look from inside, whose output PID 1 holds for a moment.
		if now := used(t, sb.PID); now.fds > init.fds {
			return fmt.Errorf("PID 1 had %+v, has %+v", init, now)
		}
		if out, _ := l.Sh(sb.ID, "ps"); strings.Contains(out, "777") {
			return errors.New(out)
		}
		if now := used(t, l.DaemonPID()); now.fds > before.fds+8 {
			return fmt.Errorf("before %+v, now %+v", before, now)
		}
		return nil
	})
	serves(t, l, sb.ID)
}

// TestStreamViolations: a client that does not keep to the frames is told,
// and its command is ended.
func TestStreamViolations(t *testing.T) {
	l := lab.New(t, lab.Options{})
	sb := l.Spawn(api.SpawnRequest{})
	head := func(kind byte, n uint32) string {
		return string([]byte{kind, 0, 0, 0, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
	}
	for _, tt := range []struct {
		name, body, frames string
		wantError          bool // an error frame, or the end; else the command's own exit
	}{
		{"frame too large", `{"command":["/bin/cat"],"stdin":true}`, head(0, 65_537), true},
		{"4 GiB frame", `{"command":["/bin/cat"],"stdin":true}`, head(0, 0xffff_ffff), true},
		{"unknown type", `{"command":["/bin/cat"],"stdin":true}`, head(200, 0), true},
		{"server's type", `{"command":["/bin/cat"],"stdin":true}`, head(5, 2) + "{}", true},
		{"descriptors from a client", `{"command":["/bin/cat"],"stdin":true}`, head(8, 1) + "\x01", true},
		{"reserved bytes", `{"command":["/bin/cat"],"stdin":true}`, "\x00\x01\x00\x00\x00\x00\x00\x00", true},
		{"short resize", `{"command":["/bin/cat"],"tty":true}`, head(3, 1) + "x", true},
		{"long signal", `{"command":["/bin/cat"],"stdin":true}`, head(4, 2) + "\x0f\x0f", true},
		{"signal 0", `{"command":["/bin/cat"],"stdin":true}`, head(4, 1) + "\x00", true},
		{"signal 200", `{"command":["/bin/cat"],"stdin":true}`, head(4, 1) + "\xc8", true},
		{"input without stdin", `{"command":["/bin/sleep","1"]}`, head(0, 1) + "x", true},
		{"input after its end", `{"command":["/bin/cat"],"stdin":true}`, head(0, 1) + "x" + head(0, 0) + head(0, 1) + "y", false},
		{"end twice", `{"command":["/bin/cat"],"stdin":true}`, head(0, 0) + head(0, 0), false},
		{"resize to nothing", `{"command":["/bin/true"],"tty":true}`, head(3, 4) + "\x00\x00\x00\x00", false},
		{"resize without terminal", `{"command":["/bin/true"]}`, head(3, 4) + "\x00\x01\x00\x01", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := dialRaw(t, l).send(execRequest(sb.ID, tt.body)).send(tt.frames)
			all, err := io.ReadAll(r.conn)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal("the stream did not end")
			}
			last := lastFrame(t, all)
			if wrong := last != 6 && last != 255; tt.wantError && wrong || !tt.wantError && last != 5 {
				t.Errorf("last frame of type %d; error wanted: %t", last, tt.wantError)
			}
		})
	}
	serves(t, l, sb.ID)
}

// lastFrame is the type of the last frame after the answer's header, 255 when
// there is none.
func lastFrame(t *testing.T, all []byte) int {
	t.Helper()
	head, frames, ok := bytes.Cut(all, []byte("\r\n\r\n"))
	if !ok || !bytes.HasPrefix(head, []byte("HTTP/1.1 101 ")) {
		t.Fatalf("answer %q", all[:min(len(all), 300)])
	}
	last := 255
	for len(frames) >= 8 {
		n := int(frames[4])<<24 | int(frames[5])<<16 | int(frames[6])<<8 | int(frames[7])
		if len(frames) < 8+n {
			break
		}
		last, frames = int(frames[0]), frames[8+n:]
	}
	return last
}

// stranger is a uid that no test sandbox belongs to.
const stranger = 65534 // nobody, whom doctor knows
