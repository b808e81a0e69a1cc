package fdconn_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/pkg/fdconn"

	"golang.org/x/sys/unix"
)

// pair is a connected client socket and the daemon's end of it.
func pair(t *testing.T) (client, server *net.UnixConn) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	client, err = net.DialUnix("unix", nil, l.Addr().(*net.UnixAddr))
	if err != nil {
		t.Fatal(err)
	}
	server, err = l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

// open opens path with flags, closed at the test's end.
func open(t *testing.T, path string, flags int) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func same(t *testing.T, a, b *os.File) bool {
	t.Helper()
	ia, err := a.Stat()
	if err != nil {
		t.Fatal(err)
	}
	ib, err := b.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return os.SameFile(ia, ib)
}

// fdCount is how many descriptors this process has open.
func fdCount(t *testing.T) int {
	t.Helper()
	es, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(es)
}

// eventually waits for cond, which depends on another goroutine or the kernel.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if cond() {
			return
		}
	}
	t.Fatalf("%s: not so after 5s", what)
}

func TestDirectoriesArriveWithTheirBytes(t *testing.T) {
	uc, us := pair(t)
	client, server := fdconn.Client(uc), fdconn.Server(us)
	a := open(t, t.TempDir(), unix.O_RDONLY|unix.O_DIRECTORY)
	b := open(t, t.TempDir(), unix.O_PATH|unix.O_DIRECTORY)
	if err := client.Attach(a, b); err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"hello", " world"} {
		if _, err := client.Write([]byte(part)); err != nil {
			t.Fatal(err)
		}
	}
	got := make([]byte, 11)
	if _, err := io.ReadFull(server, got); err != nil || string(got) != "hello world" {
		t.Fatalf("read %q, %v", got, err)
	}
	files, err := server.Take()
	if err != nil || len(files) != 2 {
		t.Fatalf("Take = %v, %v, want two files", files, err)
	}
	for i, want := range []*os.File{a, b} {
		if !same(t, files[i], want) {
			t.Errorf("descriptor %d is another file", i)
		}
		flags, err := unix.FcntlInt(files[i].Fd(), unix.F_GETFD, 0)
		if err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("descriptor %d: flags %x, %v, want close-on-exec", i, flags, err)
		}
		files[i].Close()
	}
	if files, err := server.Take(); len(files) != 0 || err != nil {
		t.Errorf("second Take = %v, %v, want nothing", files, err)
	}
}

func TestOnlyDirectoriesAreTaken(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "f")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	null := open(t, "/dev/null", os.O_RDWR)
	cases := map[string]*os.File{
		"regular file":                  open(t, file, os.O_RDWR),
		"path of a regular file":        open(t, file, unix.O_PATH),
		"pipe":                          r,
		"device":                        null,
		"directory without O_DIRECTORY": open(t, dir, os.O_RDONLY),
	}
	if fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600); err == nil {
		f := os.NewFile(uintptr(fd), "tmpfile")
		t.Cleanup(func() { f.Close() })
		cases["O_TMPFILE"] = f
	}
	good := open(t, dir, unix.O_RDONLY|unix.O_DIRECTORY)
	for name, bad := range cases {
		t.Run(name, func(t *testing.T) {
			uc, us := pair(t)
			client, server := fdconn.Client(uc), fdconn.Server(us)
			if err := client.Attach(good, bad); err != nil {
				t.Fatal(err)
			}
			before := fdCount(t)
			if _, err := client.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if _, err := server.Read(make([]byte, 8)); err != nil {
				t.Fatal(err)
			}
			files, err := server.Take()
			if !errors.Is(err, fdconn.ErrNotDirectory) || len(files) != 0 {
				t.Errorf("Take = %v, %v, want ErrNotDirectory and no file", files, err)
			}
			eventually(t, "refused descriptors closed", func() bool { return fdCount(t) <= before })
		})
	}
}

// TestTooMany sends one descriptor more than the control buffer holds: the
// kernel must install no more than fit, and those are closed.
func TestTooMany(t *testing.T) {
	dir := open(t, t.TempDir(), unix.O_RDONLY|unix.O_DIRECTORY)
	send := func(t *testing.T, uc *net.UnixConn, n int) {
		t.Helper()
		fds := make([]int, n)
		for i := range fds {
			fds[i] = int(dir.Fd())
		}
		if _, _, err := uc.WriteMsgUnix([]byte("x"), unix.UnixRights(fds...), nil); err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct {
		name  string
		sends []int
		want  error
		take  int
	}{
		{"sixteen at once", []int{16}, nil, 16},
		{"seventeen at once", []int{17}, fdconn.ErrTooMany, 0},
		{"the kernel's maximum", []int{253}, fdconn.ErrTooMany, 0},
		{"seventeen in two", []int{9, 8}, fdconn.ErrTooMany, 0},
		{"one by one", bytesToInts(bytes.Repeat([]byte{1}, 16)), nil, 16},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			uc, us := pair(t)
			server := fdconn.Server(us)
			before := fdCount(t)
			for _, n := range tt.sends {
				send(t, uc, n)
				if _, err := server.Read(make([]byte, 8)); err != nil {
					t.Fatal(err)
				}
			}
			files, err := server.Take()
			if !errors.Is(err, tt.want) || len(files) != tt.take {
				t.Errorf("Take = %d files, %v, want %d, %v", len(files), err, tt.take, tt.want)
			}
			for _, f := range files {
				f.Close()
			}
			eventually(t, "descriptors closed", func() bool { return fdCount(t) <= before })
			if tt.want == nil {
				return
			}
			// The first excess is told; going on ends the connection.
			send(t, uc, 1)
			if _, err := server.Read(make([]byte, 8)); !errors.Is(err, fdconn.ErrFlood) {
				t.Errorf("Read after a refusal = %v, want ErrFlood", err)
			}
			if _, err := uc.Write([]byte("x")); err == nil {
				t.Error("the connection is still open after a flood")
			}
			eventually(t, "descriptors closed", func() bool { return fdCount(t) <= before })
		})
	}
}

func bytesToInts(b []byte) []int {
	n := make([]int, len(b))
	for i := range b {
		n[i] = int(b[i])
	}
	return n
}

func TestCloseClosesWhatNobodyTook(t *testing.T) {
	uc, us := pair(t)
	server := fdconn.Server(us)
	dir := open(t, t.TempDir(), unix.O_RDONLY|unix.O_DIRECTORY)
	client := fdconn.Client(uc)
	before := fdCount(t)
	if err := client.Attach(dir, dir, dir); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := server.Read(make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	if n := fdCount(t); n != before+3 {
		t.Fatalf("%d descriptors came, want 3", n-before)
	}
	hook := make(chan struct{})
	server.OnClose(func() { close(hook) })
	server.Close()
	<-hook
	eventually(t, "descriptors closed", func() bool { return fdCount(t) <= before })
	late := false
	server.OnClose(func() { late = true })
	if !late {
		t.Error("OnClose after Close did not run at once")
	}
}

func TestClientTakesAnyKind(t *testing.T) {
	uc, us := pair(t)
	client, server := fdconn.Client(uc), fdconn.Server(us)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := server.Attach(w); err != nil {
		t.Fatal(err)
	}
	if _, err := server.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if _, err := client.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	files, err := client.Take()
	if err != nil || len(files) != 1 {
		t.Fatalf("Take = %v, %v, want one file", files, err)
	}
	if _, err := files[0].WriteString("through the pipe"); err != nil {
		t.Fatal(err)
	}
	files[0].Close()
	if got, err := io.ReadAll(r); string(got) != "through the pipe" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
}

func TestEOF(t *testing.T) {
	uc, us := pair(t)
	server := fdconn.Server(us)
	uc.Close()
	if n, err := server.Read(make([]byte, 4)); n != 0 || err != io.EOF { //nolint:errorlint // io.Reader's contract is the bare value
		t.Errorf("Read = %d, %v, want 0, io.EOF itself", n, err)
	}
	if n, err := server.Read(nil); n != 0 || err != nil {
		t.Errorf("empty Read = %d, %v, want 0, nil", n, err)
	}
}

// TestReset: closing with bytes unread resets the peer, and the error must not
// come with a negative count.
func TestReset(t *testing.T) {
	uc, us := pair(t)
	server := fdconn.Server(us)
	if _, err := server.Write([]byte("never read")); err != nil {
		t.Fatal(err)
	}
	uc.Close()
	if n, err := server.Read(make([]byte, 4)); n != 0 || !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("Read = %d, %v, want 0, ECONNRESET", n, err)
	}
}

// FuzzParse holds that no control message makes parse panic, and that it never
// returns more descriptors than its bytes can name.
func FuzzParse(f *testing.F) {
	f.Add(unix.UnixRights(3, 4, 5))
	f.Add([]byte{})
	f.Add(bytes.Repeat([]byte{0xff}, 40))
	f.Fuzz(func(t *testing.T, oob []byte) {
		fds, err := fdconn.Parse(oob)
		if len(fds)*4 > len(oob) {
			t.Errorf("%d descriptors from %d bytes", len(fds), len(oob))
		}
		if err == nil && len(oob) >= unix.SizeofCmsghdr && len(fds) == 0 {
			// Only an SCM_RIGHTS message without descriptors is empty.
			if oob[12] != unix.SCM_RIGHTS {
				t.Errorf("message %x was neither refused nor used", oob)
			}
		}
	})
}
