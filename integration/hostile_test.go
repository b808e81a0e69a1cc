package integration_test

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/client"
)

// maxRSS is what the daemon may need at most while it is attacked.
const maxRSS = 100 << 20

// raceFactor is how much slower and larger a daemon with the race detector
// is; CREEL_TEST_RACE says that CREEL_TEST_CREELD is one.
func raceFactor() int64 {
	if os.Getenv("CREEL_TEST_RACE") != "" {
		return 10
	}
	return 1
}

// attacks are what a hostile agent does to everybody else. Each runs until it
// is killed.
var attacks = []struct {
	name   string
	script string
	exec   bool // as an exec with a client that reads, instead of nobody
	root   bool // with a writable root
}{
	{name: "fork bomb", script: `f() { f | f & }; while :; do f; done`},
	{name: "fork and exec", script: `while :; do /bin/true & done`},
	{name: "memory", script: `while :; do tail -c 2000000000 /dev/zero >/dev/null; done`},
	{name: "page cache and tmpfs", script: `while :; do for d in /tmp /run /var/tmp /home/agent /dev/shm; do dd if=/dev/zero of=$d/f bs=1M; rm -f $d/f; done; done 2>/dev/null`},
	{name: "inodes", script: `i=0; while :; do i=$((i+1)); mkdir /tmp/$i 2>/dev/null || rm -rf /tmp/*; for j in 1 2 3 4 5 6 7 8 9; do : >/tmp/$i/$j; done; done 2>/dev/null`},
	{name: "output of an exec", script: `exec cat /dev/zero`, exec: true},
	{name: "output of many lines", script: `exec yes`, exec: true},
	{name: "zombies", script: `while :; do (sleep 0.01 & exec sleep 0.02) & done`},
	{name: "signals to PID 1", script: `while :; do kill -USR1 1; kill -CHLD 1; kill -WINCH 1; kill -RTMAX 1; done 2>/dev/null`},
	{name: "signals to all", script: `while :; do kill -TERM -1; kill -STOP -1; kill -CONT -1; done 2>/dev/null`},
	{name: "killing PID 1's children", script: `while :; do for p in /proc/[0-9]*; do p=${p#/proc/}; [ $p = 1 ] || [ $p = $$ ] || kill -9 $p; done; done 2>/dev/null`},
	{name: "cpu", script: `for i in 1 2 3 4 5 6 7 8; do (while :; do :; done) & done; wait`},
	{name: "deep directories", script: `while :; do cd /var/tmp; i=0; while [ $i -lt 2000 ]; do mkdir d 2>/dev/null; cd d || break; i=$((i+1)); done; cd /var/tmp; rm -rf d; done 2>/dev/null`},
	{name: "writable root", root: true, script: `while :; do dd if=/dev/zero of=/home/agent/f bs=1M; i=0; while mkdir /home/agent/$i; do i=$((i+1)); done; sync; rm -rf /home/agent/*; done 2>/dev/null`},
	{name: "pipes and sockets", script: `while :; do for i in 1 2 3 4 5 6 7 8 9; do sleep 1 | sleep 1 | sleep 1 | sleep 1 & done; wait; done 2>/dev/null`},
}

// TestNeighbour has a hostile sandbox do its worst, one thing after the
// other, while a neighbour works: its exec stays within 10 times what it
// takes on the quiet host just before, p50 against p50, and the daemon's memory
// within its bound.
func TestNeighbour(t *testing.T) {
	l := lab.New(t, lab.Options{})
	good := l.Spawn(api.SpawnRequest{Name: "neighbour"})
	median(t, l, good.ID, 10) // what is slow only once
	for _, a := range attacks {
		t.Run(a.name, func(t *testing.T) {
			quiet := median(t, l, good.ID, 31)
			req := api.SpawnRequest{Limits: api.Limits{Pids: 64, Memory: 128 << 20}}
			if a.root {
				req.Rootfs, req.Limits.Disk = "ephemeral", 64<<20 // an image: too large for a tmpfs
			}
			bad := l.Spawn(req)
			ctx, cancel := context.WithCancel(t.Context())
			var done sync.WaitGroup
			start := func(out io.Writer) {
				p, err := l.StartExec(ctx, bad.ID, api.ExecRequest{Command: []string{"/bin/sh", "-c", a.script}, IO: "framed"})
				if err != nil {
					t.Errorf("start: %v", err)
					return
				}
				done.Go(func() { _, _ = p.Run(client.Stdio{Out: out, Err: out}) })
			}
			start(io.Discard)
			if a.exec {
				start(io.Discard)
			}
			// Requests to the hostile sandbox itself go on, too.
			done.Go(func() { pester(ctx, l, bad.ID) })
			time.Sleep(200 * time.Millisecond)
			loud := median(t, l, good.ID, 31)
			t.Logf("quiet p50 %s, now %s, %.1f times; daemon %d MiB", quiet, loud, float64(loud)/float64(quiet), rss(t, l.DaemonPID())>>20)
			if loud > 10*max(quiet, tick) {
				t.Errorf("the neighbour's exec takes %s, quiet %s", loud, quiet)
			}
			if n := rss(t, l.DaemonPID()); n > maxRSS*raceFactor() {
				t.Errorf("the daemon has %d MiB", n>>20)
			}
			cancel()
			began := time.Now()
			if err := l.Remove(t.Context(), bad.ID, true); err != nil {
				t.Errorf("remove: %v", err)
			}
			if took := time.Since(began); took > 20*time.Second {
				t.Errorf("removing it took %s", took)
			}
			done.Wait()
		})
	}
}

// tick is the least that a quiet exec counts as: a processor that somebody
// else has is given back after as long (CONFIG_HZ=250), so below it a factor
// says nothing of harm.
const tick = 4 * time.Millisecond

// pester uses a sandbox in every way, whatever comes of it.
func pester(ctx context.Context, l *lab.Lab, id string) {
	for ctx.Err() == nil {
		c, cancel := context.WithTimeout(ctx, time.Second)
		_, _ = l.Exec(c, id, api.ExecRequest{Command: []string{"/bin/true"}}, client.Stdio{})
		_, _ = l.StatFile(c, id, "/tmp")
		_, _ = l.ListDir(c, id, "/proc", 1000, func(api.FileInfo) error { return nil })
		_, _ = l.Stats(c, id)
		cancel()
	}
}

// median is the p50 of /bin/true in a sandbox.
func median(t *testing.T, l *lab.Lab, id string, n int) time.Duration {
	t.Helper()
	took := make([]time.Duration, 0, n)
	for range n {
		began := time.Now()
		res, err := l.Exec(t.Context(), id, api.ExecRequest{Command: []string{"/bin/true"}}, client.Stdio{})
		if err != nil || res.ExitCode != 0 {
			t.Fatalf("exec in the neighbour: %+v, %v\n%s", res, err, l.LogTail(5))
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	return took[n/2]
}

// usage is what a daemon must not have more of after work than before.
type usage struct{ fds, threads, rss int64 }

func used(t *testing.T, pid int) usage {
	t.Helper()
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return usage{fds: int64(len(fds)), threads: statusNumber(t, pid, "Threads"), rss: statusNumber(t, pid, "VmRSS") << 10}
}

// statusNumber is a number of /proc/PID/status.
func statusNumber(tb testing.TB, pid int, key string) int64 {
	tb.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		tb.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if k, v, _ := strings.Cut(line, ":"); k == key {
			n, err := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
			if err != nil {
				tb.Fatal(err)
			}
			return n
		}
	}
	tb.Fatalf("no %s in the status of %d", key, pid)
	return 0
}

// TestThousandsOfExecs: a caller that runs commands all day leaves nothing in
// the daemon, in PID 1 or in the cgroups.
func TestThousandsOfExecs(t *testing.T) {
	l := lab.New(t, lab.Options{})
	sb := l.Spawn(api.SpawnRequest{})
	total := 1000
	if os.Getenv("CREEL_SOAK") != "" {
		total = 10_000
	}
	const workers = 8
	run := func(n int) {
		var wg sync.WaitGroup
		for w := range workers {
			wg.Go(func() {
				for i := range n / workers {
					req := api.ExecRequest{Command: []string{"/bin/true"}}
					switch (i + w) % 4 {
					case 0:
						req.IO = "framed"
					case 1:
						req.Command = []string{"/nonexistent"}
					case 2:
						_, _ = l.StatFile(t.Context(), sb.ID, "/tmp")
					}
					if _, err := l.Exec(t.Context(), sb.ID, req, client.Stdio{}); err != nil {
						t.Errorf("exec: %v", err)
						return
					}
				}
			})
		}
		wg.Wait()
	}
	run(160) // caches, pools and threads
	settle := func() usage {
		time.Sleep(500 * time.Millisecond)
		return used(t, l.DaemonPID())
	}
	before, init := settle(), used(t, sb.PID)
	run(total)
	var after usage
	l.Eventually("the daemon lets go", 20*time.Second, func() error {
		after = settle()
		if after.fds > before.fds+16 || after.threads > before.threads+16 {
			return fmt.Errorf("before %+v, after %+v", before, after)
		}
		return nil
	})
	if grown := after.rss - before.rss; grown > 24<<20*raceFactor() {
		t.Errorf("%d execs cost the daemon %d KiB", total, grown>>10)
	}
	if now := used(t, sb.PID); now.fds > init.fds || now.threads > init.threads+2 || now.rss > init.rss+4<<20 {
		t.Errorf("PID 1 had %+v, has %+v", init, now)
	}
	cgroups := func() (dirs []string) {
		top := "/" + filepath.Base(l.Dir) + "/"
		for _, pattern := range []string{"/sys/fs/cgroup" + top, "/sys/fs/cgroup/*" + top} {
			for _, below := range []string{sb.ID, "*/" + sb.ID} {
				found, err := filepath.Glob(pattern + below + "/agent/exec-*")
				if err != nil {
					t.Fatal(err)
				}
				dirs = append(dirs, found...)
			}
		}
		return dirs
	}
	p, err := l.StartExec(t.Context(), sb.ID, api.ExecRequest{Command: []string{"/bin/sleep", "100"}})
	if err != nil {
		t.Fatal(err)
	}
	if len(cgroups()) == 0 {
		t.Error("the cgroup of an exec that runs is not found: nothing would be seen of those that are left")
	}
	p.Close()
	l.Eventually("no exec's cgroup is left", 20*time.Second, func() error {
		if dirs := cgroups(); len(dirs) > 0 {
			return fmt.Errorf("%d, such as %s", len(dirs), dirs[0])
		}
		return nil
	})
	t.Logf("daemon before %+v, after %+v", before, after)
}

// TestLogFlood: a main command that writes without end is ended for it, and
// what is kept of its output stays within its bound.
func TestLogFlood(t *testing.T) {
	l := lab.New(t, lab.Options{Config: "[logs]\nmax_bytes = \"1MiB\"\n"})
	for _, tt := range []struct {
		name    string
		command []string
		tty     bool
	}{
		{"zeros", []string{"/bin/cat", "/dev/zero"}, false},
		{"lines on stderr", []string{"/bin/sh", "-c", "yes >&2"}, false},
		{"terminal", []string{"/bin/yes"}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sb := l.Spawn(api.SpawnRequest{Command: tt.command, TTY: tt.tty, Limits: api.Limits{OutputRate: 256 << 10}})
			ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
			defer cancel()
			res, err := l.Wait(ctx, sb.ID)
			if err != nil || res.Reason != api.ReasonOutput {
				t.Errorf("wait: %+v, %v; want reason %s", res, err, api.ReasonOutput)
			}
			var kept int64
			_ = filepath.WalkDir(filepath.Join(l.Dir, "state/logs", sb.ID), func(_ string, d os.DirEntry, err error) error {
				if err == nil && d.Type().IsRegular() {
					if fi, err := d.Info(); err == nil {
						kept += fi.Size()
					}
				}
				return nil
			})
			// What is kept can be read, and what is not is told of, apart from it.
			var out, said strings.Builder
			if err := l.Logs(ctx, sb.ID, client.LogOptions{Tail: -1}, &out, &said); err != nil {
				t.Errorf("logs: %v", err)
			}
			if out.Len()+said.Len() < 128<<10 || !strings.HasPrefix(said.String(), "creel: ") || !strings.Contains(said.String(), " bytes of older output are no longer kept\n") {
				t.Errorf("logs gives %d and %d bytes; errors begin %.80q", out.Len(), said.Len(), said.String())
			}
			if kept == 0 || kept > 4<<20 {
				t.Errorf("%d bytes of output are kept; the bound is 1 MiB", kept)
			}
			if n := rss(t, l.DaemonPID()); n > maxRSS*raceFactor() {
				t.Errorf("the daemon has %d MiB", n>>20)
			}
		})
	}
}

// TestSlowClient: what a foreground client copies has no holes, however far
// the command could have run ahead of it.
func TestSlowClient(t *testing.T) {
	l := lab.New(t, lab.Options{Config: "[logs]\nmax_bytes = \"128KiB\"\n"})
	cmd := l.Command(nil, "run", "--rm", "--image", "base", "--", "/bin/sh", "-c", "seq 1 200000; echo end >&2")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	next, lines := 1, bufio.NewScanner(out)
	for ; lines.Scan(); next++ {
		if next == 1 {
			awaitBlocked(l) // the command fills all there is
		}
		if lines.Text() != strconv.Itoa(next) {
			t.Fatalf("line %d is %q", next, lines.Text())
		}
	}
	if err := cmd.Wait(); err != nil || next != 200001 || !strings.Contains(said.String(), "end\n") {
		t.Errorf("%d lines, %v, %q", next-1, err, said.String())
	}
}

// awaitBlocked waits until the only sandbox's seq stands still in write(2).
func awaitBlocked(l *lab.Lab) {
	written := map[string]int{}
	l.Eventually("seq waits", time.Minute, func() error {
		dirs, err := filepath.Glob("/proc/[0-9]*")
		if err != nil {
			return err
		}
		for _, dir := range dirs {
			groups, _ := os.ReadFile(filepath.Join(dir, "cgroup"))
			comm, _ := os.ReadFile(filepath.Join(dir, "comm"))
			if string(comm) != "seq\n" || !strings.Contains(string(groups), "/"+filepath.Base(l.Dir)+"/") {
				continue // another's, or gone
			}
			call, err := os.ReadFile(filepath.Join(dir, "syscall"))
			if err != nil {
				return err
			}
			io, err := os.ReadFile(filepath.Join(dir, "io"))
			if err != nil {
				return err
			}
			if written[string(io)]++; written[string(io)] < 5 || !strings.HasPrefix(string(call), fmt.Sprintf("%d 0x1 ", unix.SYS_WRITE)) {
				return fmt.Errorf("it is in %.20q and has done %q", call, io)
			}
			return nil
		}
		return errors.New("there is none")
	})
}

// TestHostileImages: an image that lies about itself, or would lead the
// unpacking out of its directory, is refused whole.
func TestHostileImages(t *testing.T) {
	l := lab.New(t, lab.Options{})
	if err := os.Chmod(l.Socket, 0o666); err != nil {
		t.Fatal(err)
	}
	stored := func() int {
		n := 0
		for _, dir := range []string{"io.containerd.content.v1.content", "io.containerd.snapshotter.v1.overlayfs/snapshots"} {
			found, err := filepath.Glob(filepath.Join(l.Dir, "state/containerd/containerd", dir, "*"))
			if err != nil {
				t.Fatal(err)
			}
			blobs, _ := filepath.Glob(filepath.Join(l.Dir, "state/containerd/containerd", dir, "blobs/sha256/*"))
			n += len(found) + len(blobs)
		}
		return n
	}
	before := stored()
	add := func(h tar.Header, body string) func(*tar.Writer) {
		return func(w *tar.Writer) { lab.Add(t, w, &h, []byte(body)) }
	}
	all := func(fs ...func(*tar.Writer)) func(*tar.Writer) {
		return func(w *tar.Writer) {
			for _, f := range fs {
				f(w)
			}
		}
	}
	link := func(name, to string) func(*tar.Writer) {
		return add(tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to, Mode: 0o777}, "")
	}
	for _, tt := range []struct {
		name string
		fill func(*tar.Writer)
	}{
		{"dev is a link", link("dev", "/tmp")},
		{"proc is a link", link("proc", "usr")},
		{"etc is a link", link("etc", "../../../../etc")},
		{"device", add(tar.Header{Typeflag: tar.TypeBlock, Name: "sda", Devmajor: 8, Mode: 0o666}, "")},
		{"character device", add(tar.Header{Typeflag: tar.TypeChar, Name: "mem", Devmajor: 1, Devminor: 1, Mode: 0o666}, "")},
		{"traversal", add(tar.Header{Typeflag: tar.TypeReg, Name: "../../../../../../../../tmp/creel-escape", Mode: 0o644}, "x")},
		{"hard link out", add(tar.Header{Typeflag: tar.TypeLink, Name: "passwd", Linkname: "../../../../../../etc/passwd"}, "")},
		{"hard link by a link", all(link("out", "/etc"), add(tar.Header{Typeflag: tar.TypeLink, Name: "shadow", Linkname: "out/shadow"}, ""))},
	} {
		t.Run(tt.name, func(t *testing.T) {
			importAs(t, l, tt.name, bytesOf(t, lab.Archive(t, tt.fill)), api.CodeInvalid)
		})
	}
	t.Run("bytes that are not what the digest says", func(t *testing.T) {
		text := bytesOf(t, lab.Tiny(t))
		at := bytes.Index(text, []byte("agent:x:1000"))
		text[at+6] = 'y'
		importAs(t, l, "changed", text, api.CodeInvalid)
	})
	if _, err := os.Lstat("/tmp/creel-escape"); err == nil {
		t.Error("an archive wrote outside")
	}
	l.Eventually("nothing of them is kept", 30*time.Second, func() error {
		if n := stored(); n != before {
			return fmt.Errorf("%d files and directories, %d before", n, before)
		}
		return nil
	})
	if n := rss(t, l.DaemonPID()); n > maxRSS*raceFactor() {
		t.Errorf("the daemon has %d MiB", n>>20)
	}
	t.Run("many uploads at once", func(t *testing.T) {
		// Each begins and goes no further: the fifth of a user is refused.
		for i := range 5 {
			r := dialRaw(t, l).send(fmt.Sprintf("POST /v1/images?ref=slow%d HTTP/1.1\r\nHost: c\r\nContent-Type: application/x-tar\r\nExpect: 100-continue\r\nContent-Length: 100000\r\n\r\n", i))
			want := http.StatusContinue // it has begun, and waits for the archive
			if i == 4 {
				want = http.StatusTooManyRequests
			}
			if got := r.status(); got != want {
				t.Errorf("upload %d: status %d, want %d", i, got, want)
			}
			r.send("x")
		}
	})
	t.Run("a stranger's image of root's name", func(t *testing.T) {
		evil := bytesOf(t, lab.Archive(t, add(tar.Header{Typeflag: tar.TypeReg, Name: "evil", Mode: 0o644}, "x")))
		was, err := l.Image(t.Context(), "base")
		if err != nil {
			t.Fatal(err)
		}
		asStranger(t, func() {
			importAs(t, l, "base", evil, api.CodeConflict)
			importAs(t, l, "evil", evil, "")
			if status, body := ask(t, l, "PUT", "/v1/images/base", `{"source":"evil"}`); status != http.StatusConflict {
				t.Errorf("tag as base: %d %s", status, body)
			}
		})
		if is, err := l.Image(t.Context(), "base"); err != nil || is.Digest != was.Digest {
			t.Errorf("root's image is %+v, was %+v (%v)", is, was, err)
		}
		asStranger(t, func() {
			if err := removeImage(l, "evil"); err != nil {
				t.Errorf("a caller cannot remove its own image: %v", err)
			}
		})
	})
}

func bytesOf(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// importAs imports as the calling thread's user and wants an error of a class.
func importAs(t *testing.T, l *lab.Lab, ref string, text []byte, want api.Code) {
	t.Helper()
	ref = strings.ReplaceAll(ref, " ", "-")
	c, err := net.Dial("unix", l.Socket)
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(2 * time.Minute))
	go func() {
		fmt.Fprintf(c, "POST /v1/images?ref=%s HTTP/1.1\r\nHost: c\r\nContent-Type: application/x-tar\r\nContent-Length: %d\r\n\r\n", ref, len(text))
		_, _ = c.Write(text)
	}()
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Errorf("import: %v", err)
		return
	}
	defer resp.Body.Close()
	var e api.Error
	if err := json.NewDecoder(resp.Body).Decode(&e); err != nil || e.Code != want {
		t.Errorf("import: status %d, %+v, %v; want code %q", resp.StatusCode, e, err, want)
	}
}

func removeImage(l *lab.Lab, ref string) error {
	c, err := net.Dial("unix", l.Socket)
	if err != nil {
		return err
	}
	defer c.Close()
	fmt.Fprintf(c, "DELETE /v1/images/%s HTTP/1.1\r\nHost: c\r\n\r\n", ref)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusNoContent {
		return errors.New(resp.Status)
	}
	return nil
}
