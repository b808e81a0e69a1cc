package integration_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
)

// byHand reads and writes the stream as docs/api.md has it, with none of
// creel's code: what is wrong in both ends of ours would show here.
type byHand struct {
	*raw
	r *bufio.Reader
}

// open sends a request, with whatever is behind its body, and reads the 101.
func openByHand(t *testing.T, l *lab.Lab, request string) *byHand {
	t.Helper()
	b := &byHand{raw: dialRaw(t, l).send(request)}
	b.r = bufio.NewReader(b.conn)
	var head []string
	for {
		line, err := b.r.ReadString('\n')
		if err != nil {
			t.Fatalf("after %q: %v", head, err)
		}
		if line == "\r\n" {
			break
		}
		head = append(head, line)
	}
	want := regexp.MustCompile(`^HTTP/1\.1 101 Switching Protocols\r\nUpgrade: creel-stream\r\nConnection: Upgrade\r\nCreel-Request-Id: [a-z2-7]{16}\r\n$`)
	if got := strings.Join(head, ""); !want.MatchString(got) {
		t.Fatalf("answer %q", got)
	}
	return b
}

// want reads one frame; its payload must match.
func (b *byHand) want(kind byte, payload string) string {
	b.t.Helper()
	var h [8]byte
	if _, err := io.ReadFull(b.r, h[:]); err != nil {
		b.t.Fatalf("header of the frame %q: %v", payload, err)
	}
	n := int(h[4])<<24 | int(h[5])<<16 | int(h[6])<<8 | int(h[7])
	if h[0] != kind || h[1] != 0 || h[2] != 0 || h[3] != 0 || n > 65536 {
		b.t.Fatalf("header %x, want type %d", h, kind)
	}
	p := make([]byte, n)
	if _, err := io.ReadFull(b.r, p); err != nil {
		b.t.Fatal(err)
	}
	if !regexp.MustCompile("^(?s:" + payload + ")$").Match(p) {
		b.t.Fatalf("frame of type %d has %.300q, want %s", kind, p, payload)
	}
	return string(p)
}

// wantEnd reads the end of file.
func (b *byHand) wantEnd() {
	b.t.Helper()
	if rest, err := io.ReadAll(b.r); len(rest) > 0 || err != nil {
		b.t.Errorf("after the last frame: %q, %v", rest, err)
	}
}

const (
	startedJSON = `\{"id":"[a-z2-7]{12}"\}`
	exitJSON    = `\{"id":"[a-z2-7]{12}","exit_code":%d,%s"reason":"%s","took":"[^"]+"\}`
)

func exitWith(code int) string { return fmt.Sprintf(exitJSON, code, "", "exited") }

// TestFramesByHand holds docs/api.md, "Exec and attach as a stream".
func TestFramesByHand(t *testing.T) {
	l := lab.New(t, lab.Options{})
	sb := l.Spawn(api.SpawnRequest{Command: []string{"/bin/sh", "-c", "echo main; cat; exit 3"}, Stdin: true})
	exec := func(script, more string) string {
		body, err := json.Marshal(script)
		if err != nil {
			t.Fatal(err)
		}
		return execRequest(sb.ID, `{"command":["/bin/sh","-c",`+string(body)+`]`+more+`}`)
	}
	const input = `,"stdin":true`
	t.Run("in turns", func(t *testing.T) {
		b := openByHand(t, l, exec("read a; echo got $a; read b; echo $b >&2; cat; exit 7", input))
		b.want(7, startedJSON)
		b.send("\x00\x00\x00\x00\x00\x00\x00\x03hi\n")
		b.want(1, "got hi\n")
		b.send("\x00\x00\x00\x00\x00\x00\x00\x03ho\n")
		b.want(2, "ho\n")
		b.send("\x00\x00\x00\x00\x00\x00\x00\x00")
		b.want(5, exitWith(7))
		b.wantEnd()
	})
	t.Run("behind the request at once", func(t *testing.T) {
		b := openByHand(t, l, exec("cat", input)+"\x00\x00\x00\x00\x00\x00\x00\x02\x00z\x00\x00\x00\x00\x00\x00\x00\x00")
		b.want(7, startedJSON)
		b.want(1, "\\x00z")
		b.want(5, exitWith(0))
		b.wantEnd()
	})
	t.Run("a byte at a time", func(t *testing.T) {
		b := openByHand(t, l, exec("cat", input))
		b.want(7, startedJSON)
		for _, c := range []byte("\x00\x00\x00\x00\x00\x00\x00\x03abc\x00\x00\x00\x00\x00\x00\x00\x00") {
			b.send(string([]byte{c}))
		}
		b.want(1, "abc")
		b.want(5, exitWith(0))
		b.wantEnd()
	})
	t.Run("largest", func(t *testing.T) {
		b := openByHand(t, l, exec("wc -c", input))
		b.want(7, startedJSON)
		b.send("\x00\x00\x00\x00\x00\x01\x00\x00" + strings.Repeat("x", 65536) + "\x00\x00\x00\x00\x00\x00\x00\x00")
		b.want(1, "65536\n")
		b.want(5, exitWith(0))
		b.wantEnd()
	})
	t.Run("one byte too large", func(t *testing.T) {
		b := openByHand(t, l, exec("cat", input))
		b.want(7, startedJSON)
		b.send("\x00\x00\x00\x00\x00\x01\x00\x01")
		b.want(6, `\{"code":"invalid_argument","message":"stream protocol error: payload of 65537 bytes, at most 65536 are allowed","request_id":"[a-z2-7]{16}"\}`)
		b.wantEnd()
	})
	t.Run("terminal", func(t *testing.T) {
		b := openByHand(t, l, exec("read a; stty size; read b", `,"stdin":true,"tty":true,"cols":80,"rows":24`))
		b.want(7, startedJSON)
		b.send("\x03\x00\x00\x00\x00\x00\x00\x04\x00\x84\x00\x2b") // 132 columns, 43 rows
		b.send("\x00\x00\x00\x00\x00\x00\x00\x01\n")
		text := ""
		for !strings.Contains(text, "43 132\r\n") {
			text += b.want(1, ".+")
		}
		b.send("\x00\x00\x00\x00\x00\x00\x00\x00") // Ctrl-D
		b.want(5, exitWith(1))
		b.wantEnd()
	})
	t.Run("signal", func(t *testing.T) {
		b := openByHand(t, l, exec("trap 'echo term; exit 9' TERM; echo up; while :; do sleep 0.05; done", ""))
		b.want(7, startedJSON)
		b.want(1, "up\n")
		b.send("\x04\x00\x00\x00\x00\x00\x00\x01\x0f")
		b.want(1, "term\n")
		b.want(5, exitWith(9))
		b.wantEnd()
	})
	t.Run("signal 9", func(t *testing.T) {
		b := openByHand(t, l, exec("setsid sleep 777 & echo up; sleep 777", ""))
		b.want(7, startedJSON)
		b.want(1, "up\n")
		b.send("\x04\x00\x00\x00\x00\x00\x00\x01\x09")
		b.want(5, fmt.Sprintf(exitJSON, 137, `"signal":9,`, "killed"))
		b.wantEnd()
		l.Eventually("all have ended", patience()*treeBound*10, func() error {
			if out, _ := l.Sh(sb.ID, "ps"); strings.Contains(out, "777") {
				return fmt.Errorf("%s", out)
			}
			return nil
		})
	})
	t.Run("descriptors", func(t *testing.T) { framesWithDescriptors(t, l, exec("cat", `,"stdin":true,"io":"fds"`)) })
	t.Run("attach", func(t *testing.T) {
		b := openByHand(t, l, "POST /v1/sandboxes/"+sb.ID+"/attach?replay=true&stdin=true HTTP/1.1\r\nHost: c\r\nConnection: Upgrade\r\nUpgrade: creel-stream\r\nContent-Length: 0\r\n\r\n")
		b.want(7, `\{"id":"main"\}`)
		b.want(1, "main\n")
		b.send("\x00\x00\x00\x00\x00\x00\x00\x04more\x00\x00\x00\x00\x00\x00\x00\x00")
		b.want(1, "more")
		b.want(5, `\{"id":"main","exit_code":3,"reason":"exited","took":"[^"]+"\}`)
		b.wantEnd()
	})
	t.Run("logs", func(t *testing.T) {
		r := dialRaw(t, l).send("GET /v1/sandboxes/" + sb.ID + "/logs HTTP/1.1\r\nHost: c\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(r.conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b := &byHand{raw: r, r: bufio.NewReader(resp.Body)}
		text := ""
		for text != "main\nmore" {
			text += b.want(1, ".+")
		}
		b.wantEnd()
	})
}

// framesWithDescriptors reads with recvmsg(2), as a client must.
func framesWithDescriptors(t *testing.T, l *lab.Lab, request string) {
	t.Helper()
	c := dialRaw(t, l).send(request).conn
	var bytes, oob []byte
	frames := ""
	for !strings.HasSuffix(frames, `"}`) { // the end of started
		buf, ctl := make([]byte, 4096), make([]byte, unix.CmsgSpace(16*4))
		n, nctl, _, _, err := c.ReadMsgUnix(buf, ctl)
		if err != nil || n == 0 {
			t.Fatalf("after %q: %v", bytes, err)
		}
		bytes, oob = append(bytes, buf[:n]...), append(oob, ctl[:nctl]...)
		_, frames, _ = strings.Cut(string(bytes), "\r\n\r\n")
	}
	if !regexp.MustCompile(`^\x08\x00\x00\x00\x00\x00\x00\x01\x03\x07\x00\x00\x00\x00\x00\x00\x15` + startedJSON + "$").MatchString(frames) {
		t.Errorf("frames %q", frames)
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(msgs) != 1 {
		t.Fatalf("%d control messages, %v", len(msgs), err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 3 {
		t.Fatalf("descriptors %v, %v", fds, err)
	}
	defer unix.Close(fds[1])
	defer unix.Close(fds[2])
	_, werr := unix.Write(fds[0], []byte("through pipes"))
	if cerr := unix.Close(fds[0]); werr != nil || cerr != nil {
		t.Fatal(werr, cerr)
	}
	b := &byHand{raw: &raw{t: t, conn: c}, r: bufio.NewReader(c)}
	b.want(5, exitWith(0))
	got := make([]byte, 64)
	if n, err := unix.Read(fds[1], got); err != nil || string(got[:max(n, 0)]) != "through pipes" {
		t.Errorf("output %q, %v", got[:max(n, 0)], err)
	}
	b.wantEnd()
}
