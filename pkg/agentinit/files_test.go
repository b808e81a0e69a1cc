package agentinit_test

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/creel-sandbox/creel/pkg/agentinit"
)

// op runs a file operation and gives its output.
func (s *sandbox) op(t *testing.T, argv []string, stdin string) *strings.Reader {
	t.Helper()
	r := s.exec(t, agentinit.Process{Argv: argv, Env: []string{"HOME=" + home}, Umask: 0o22, Internal: true}, stdin)
	if r.fail != nil {
		t.Fatal(r.fail)
	}
	return strings.NewReader(r.out)
}

func encoded(t *testing.T, data string, whole bool) string {
	t.Helper()
	var b bytes.Buffer
	w := agentinit.NewFileWriter(&b)
	if _, err := io.WriteString(w, data); err != nil {
		t.Fatal(err)
	}
	if whole {
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}

func TestFiles(t *testing.T) {
	s := running(t)
	big := strings.Repeat("0123456789abcdef", 20_000) // several records
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
	}
	is := func(err error, want error) {
		t.Helper()
		if !errors.Is(err, want) {
			t.Errorf("%v, want %v", err, want)
		}
	}
	end := func(argv []string, stdin string) error { return agentinit.DecodeEnd(s.op(t, argv, stdin)) }
	read := func(path string) (string, error) {
		b, err := io.ReadAll(agentinit.DecodeFile(s.op(t, agentinit.ReadFile(path), "")))
		return string(b), err
	}
	list := func(path string, limit int) (names []string, err error) {
		for e, err := range agentinit.DecodeDir(s.op(t, agentinit.ListDir(path, limit), ""), limit) {
			if err != nil {
				return names, err
			}
			names = append(names, e.Name)
		}
		return names, nil
	}

	ok(end(agentinit.MakeDir("a/b/c", 0o750, true), ""))
	ok(end(agentinit.MakeDir("a/b/c", 0o750, true), ""))
	is(end(agentinit.MakeDir("a/b/c", 0o750, false), ""), syscall.EEXIST)
	ok(end(agentinit.WriteFile("a/b/big", 0o640), encoded(t, big, true)))
	got, err := read(home + "/a/b/big")
	ok(err)
	if got != big {
		t.Errorf("read %d bytes, want %d", len(got), len(big))
	}

	t.Log("a sender that goes away changes nothing, and leaves nothing")
	is(end(agentinit.WriteFile("a/b/big", 0o600), encoded(t, "short", false)), syscall.ECANCELED)
	is(end(agentinit.WriteFile("a/b/big", 0o600), "\xff\xff\xff\xff\xff"), syscall.EBADMSG)
	if names, err := list("a/b", 10); err != nil || len(names) != 2 {
		t.Errorf("list: %q, %v", names, err)
	}
	e, err := agentinit.DecodeStat(s.op(t, agentinit.StatFile("a/b/big"), ""))
	ok(err)
	if e.Size != int64(len(big)) || e.Mode != 0o640 || e.UID != agentUID || e.ModTime.IsZero() {
		t.Errorf("stat = %+v", e)
	}
	for _, mode := range []fs.FileMode{fs.ModeSetuid | 0o755, fs.ModeSetgid | 0o755, fs.ModeSticky | 0o755, 0o4755} {
		is(end(agentinit.WriteFile("suid", mode), encoded(t, "x", true)), syscall.EINVAL)
		is(end(agentinit.MakeDir("suid", mode, false), ""), syscall.EINVAL)
	}

	ok(end(agentinit.Rename("a/b/big", "a/big"), ""))
	_, err = read("a/b/big")
	is(err, syscall.ENOENT)
	_, err = read("a")
	is(err, syscall.EISDIR)
	if r := s.sh(t, "cd; mkfifo fifo; ln -s a/big link; ln -s /etc/passwd away; mkdir many; cd many; for i in $(seq 300); do : > $i; done"); r.status.ExitCode() != 0 {
		t.Fatal(r)
	}
	_, err = read("fifo")
	is(err, syscall.EINVAL)
	e, err = agentinit.DecodeStat(s.op(t, agentinit.StatFile("link"), ""))
	ok(err)
	if e.Target != "a/big" || e.Mode.Type() != fs.ModeSymlink {
		t.Errorf("stat = %+v", e)
	}
	if names, err := list("many", 300); err != nil || len(names) != 300 {
		t.Errorf("list: %d names, %v", len(names), err)
	}
	if names, err := list("many", 100); !errors.Is(err, agentinit.ErrTruncated) || len(names) != 100 {
		t.Errorf("list: %d names, %v", len(names), err)
	}
	_, err = list("fifo", 1)
	is(err, syscall.ENOTDIR)
	ok(end(agentinit.WriteFile("link", 0o600), encoded(t, "new", true)))
	if got, err := read("a/big"); got != big {
		t.Errorf("the link was followed: %q, %v", got, err)
	}

	t.Log("with parents, and only where there is nothing")
	ok(end(agentinit.WriteFile("new/way/file", 0o600, agentinit.WriteParents, agentinit.WriteExclusive), encoded(t, "one", true)))
	is(end(agentinit.WriteFile("new/way/file", 0o600, agentinit.WriteParents, agentinit.WriteExclusive), encoded(t, "two", true)), syscall.EEXIST)
	is(end(agentinit.WriteFile("link", 0o600, agentinit.WriteExclusive), encoded(t, "two", true)), syscall.EEXIST)
	is(end(agentinit.WriteFile("other/way/file", 0o600), encoded(t, "one", true)), syscall.ENOENT)
	ok(end(agentinit.WriteFile("script", 0o755), encoded(t, "one", true)))
	ok(end(agentinit.WriteFile("script", 0o644, agentinit.WriteKeepMode), encoded(t, "two", true)))
	ok(end(agentinit.WriteFile("plain", 0o644, agentinit.WriteKeepMode), encoded(t, "one", true)))
	for name, mode := range map[string]fs.FileMode{"script": 0o755, "plain": 0o644} {
		if e, err := agentinit.DecodeStat(s.op(t, agentinit.StatFile(name), "")); err != nil || e.Mode != mode {
			t.Errorf("%s: %+v, %v", name, e, err)
		}
	}
	if got, err := read("new/way/file"); err != nil || got != "one" {
		t.Errorf("it has %q, %v", got, err)
	}
	if names, err := list("new/way", 10); err != nil || len(names) != 1 {
		t.Errorf("beside it: %q, %v", names, err)
	}

	is(end(agentinit.Remove("many", false), ""), syscall.ENOTEMPTY)
	is(end(agentinit.Remove("nothing", true), ""), syscall.ENOENT)
	ok(end(agentinit.Remove("away", true), ""))
	ok(end(agentinit.Remove("many", true), ""))
	if r := s.sh(t, "cd; i=0; while [ $i -lt 700 ]; do mkdir d; : > f; cd ./d || exit 1; i=$((i+1)); done"); r.status.ExitCode() != 0 {
		t.Fatal(r.err)
	}
	ok(end(agentinit.Remove("d", true), ""))
	_, err = agentinit.DecodeStat(s.op(t, agentinit.StatFile("d"), ""))
	is(err, syscall.ENOENT)
	is(end([]string{"format", "/"}, ""), syscall.ENOSYS)
}

// TestFileKilled: an operation that was killed is not taken for a whole one.
func TestFileKilled(t *testing.T) {
	s := running(t)
	ctx := deadline(t)
	in, inW := pipe(t)
	outR, out := pipe(t)
	p := agentinit.Process{ID: "w", Argv: agentinit.WriteFile("x", 0o600), Env: []string{"HOME=" + home}, Internal: true}
	if _, err := s.Start(ctx, p, []*os.File{in, out, out}); err != nil {
		t.Fatal(err)
	}
	_ = out.Close()
	if _, err := s.Release(ctx, "w"); err != nil {
		t.Fatal(err)
	}
	if _, err := inW.WriteString(encoded(t, "half", false)); err != nil {
		t.Fatal(err)
	}
	if err := s.Signal(ctx, "w", 9); err != nil {
		t.Fatal(err)
	}
	if err := agentinit.DecodeEnd(outR); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("DecodeEnd = %v", err)
	}
	if st, err := s.Wait(ctx, "w"); err != nil || st.ExitCode() != 137 {
		t.Errorf("Wait = %v, %v", st.ExitCode(), err)
	}
}

func FuzzDecodeDir(f *testing.F) {
	f.Add([]byte{3, 5, 0, 0, 0, 0, 0, 0, 0, 1}, 3)
	f.Fuzz(func(t *testing.T, b []byte, limit int) {
		limit = max(0, limit%64)
		n := 0
		for e, err := range agentinit.DecodeDir(bytes.NewReader(b), limit) {
			if err != nil {
				break
			}
			if n++; e.Name == "" || strings.ContainsAny(e.Name, "/\x00") || e.Size < 0 {
				t.Errorf("entry %+v", e)
			}
		}
		if n > limit {
			t.Errorf("%d entries, limit %d", n, limit)
		}
		data, err := io.ReadAll(agentinit.DecodeFile(bytes.NewReader(b)))
		if len(data) > len(b) {
			t.Errorf("%d bytes out of %d, %v", len(data), len(b), err)
		}
		_, _ = agentinit.DecodeStat(bytes.NewReader(b))
		_ = agentinit.DecodeEnd(bytes.NewReader(b))
	})
}

func TestFileWriterRoundTrip(t *testing.T) {
	for _, n := range []int{0, 1, 65531, 65532, 200_000} {
		in := encoded(t, strings.Repeat("x", n), true)
		out, err := io.ReadAll(agentinit.DecodeFile(strings.NewReader(in[:len(in)-5] + "\x03\x05\x00\x00\x00\x00\x00\x00\x00\x00")))
		if err != nil || len(out) != n {
			t.Errorf("%d bytes gave %d, %v", n, len(out), err)
		}
	}
}
