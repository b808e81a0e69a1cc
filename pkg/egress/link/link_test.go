package link_test

import (
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/egress/link"
)

// pair is two ends.
func pair(tb testing.TB) (a, b *link.Conn) {
	tb.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		tb.Fatal(err)
	}
	var out [2]*link.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "end")
		c, err := net.FileConn(f)
		if err := errors.Join(err, f.Close()); err != nil {
			tb.Fatal(err)
		}
		out[i] = link.NewConn(c.(*net.UnixConn))
		tb.Cleanup(func() { c.Close() })
	}
	return out[0], out[1]
}

// open is how many descriptors the process has.
func open(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

func TestMessages(t *testing.T) {
	a, b := pair(t)
	doc, err := link.Document("policy", link.Policy{Generation: 7, Parties: []link.Party{{By: "x", Rules: []string{"a.example"}}}})
	if err != nil {
		t.Fatal(err)
	}
	defer doc.Close()
	if err := a.Send(link.Order{Op: link.Add, ID: "one"}, doc); err != nil {
		t.Fatal(err)
	}
	var o link.Order
	files, err := b.Receive(&o)
	if err != nil || len(files) != 1 || o != (link.Order{Op: link.Add, ID: "one"}) {
		t.Fatalf("%+v, %d files, %v", o, len(files), err)
	}
	defer files[0].Close()
	for range 2 { // it can be read again
		var p link.Policy
		if err := link.ReadDocument(files[0], &p); err != nil || p.Generation != 7 || p.Parties[0].Rules[0] != "a.example" {
			t.Errorf("%+v, %v", p, err)
		}
	}
	if _, err := files[0].WriteAt([]byte("x"), 0); err == nil {
		t.Error("a document can be changed")
	}
	a.Close()
	if _, err := b.Receive(&o); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
}

// TestRefused: of what is not a message nothing is taken, and nothing is left.
func TestRefused(t *testing.T) {
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for name, send := range map[string]func(c *net.UnixConn) error{
		"no JSON":          func(c *net.UnixConn) error { _, err := c.Write([]byte("{")); return err },
		"an unknown field": func(c *net.UnixConn) error { _, err := c.Write([]byte(`{"op":"add","more":1}`)); return err },
		"two values":       func(c *net.UnixConn) error { _, err := c.Write([]byte(`{"op":"add"}{}`)); return err },
		"a number":         func(c *net.UnixConn) error { _, err := c.Write([]byte(`7`)); return err },
		"too long": func(c *net.UnixConn) error {
			_, err := c.Write([]byte(`{"op":"` + strings.Repeat("a", 70_000) + `"}`))
			return err
		},
		"descriptors": func(c *net.UnixConn) error {
			_, _, err := c.WriteMsgUnix([]byte(`{`), unix.UnixRights(int(null.Fd())), nil)
			return err
		},
		"more descriptors": func(c *net.UnixConn) error { return sendMany(c, int(null.Fd()), 6) },
		"many descriptors": func(c *net.UnixConn) error { return sendMany(c, int(null.Fd()), 200) },
		"descriptors alone": func(c *net.UnixConn) error {
			_, _, err := c.WriteMsgUnix(nil, unix.UnixRights(int(null.Fd())), nil)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := pair(t)
			before := open(t)
			if err := send(a.Net()); err != nil {
				t.Fatal(err)
			}
			var o link.Order
			if files, err := b.Receive(&o); err == nil || files != nil {
				t.Errorf("it is taken: %+v", o)
			}
			if now := open(t); now != before {
				t.Errorf("%d descriptors, and before %d", now, before)
			}
		})
	}
}

func sendMany(c *net.UnixConn, fd, n int) error {
	fds := make([]int, n)
	for i := range fds {
		fds[i] = fd
	}
	_, _, err := c.WriteMsgUnix([]byte(`{"op":"add"}`), unix.UnixRights(fds...), nil)
	return err
}

// TestDocumentRefused: one that can still be changed, or is not whole, is none.
func TestDocumentRefused(t *testing.T) {
	memory := func(text string, seals int) *os.File {
		t.Helper()
		fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), "test")
		t.Cleanup(func() { f.Close() })
		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
			t.Fatal(err)
		}
		return f
	}
	const all = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	file, err := os.CreateTemp(t.TempDir(), "file")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.WriteString("{}"); err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	for name, f := range map[string]*os.File{
		"a file": file, "a pipe": r, "no seal": memory("{}", unix.F_SEAL_SEAL), "it can grow": memory("{}", all&^unix.F_SEAL_GROW), "it can be written": memory("{}", all&^unix.F_SEAL_WRITE),
		"half of it": memory(`{"generation":1,"parties":[{"by":"x"`, all), "nothing": memory("", all), "two": memory("{}{}", all), "another": memory(`{"gen":1}`, all),
		"too long": memory(strings.Repeat(" ", 9<<20)+"{}", all),
	} {
		var p link.Policy
		if err := link.ReadDocument(f, &p); !errors.Is(err, link.ErrDocument) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := link.ReadDocument(memory("{}", all), &link.Policy{}); err != nil {
		t.Error(err)
	}
}

// FuzzRecord: whatever a process says, creeld takes a record of bounded strings
// or nothing.
func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"time":1,"id":"a","kind":"name","allowed":true,"name":"a.example"}`))
	f.Add([]byte(`{"kind":"lost","lost":7}`))
	f.Add([]byte(`{"rules":["` + strings.Repeat("a", 1000) + `"]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) == 0 || len(b) > 100_000 {
			return // no packet at all
		}
		a, c := pair(t)
		if _, err := a.Net().Write(b); err != nil {
			t.Skip(err)
		}
		var r link.Record
		files, err := c.Receive(&r)
		if len(files) != 0 {
			t.Error("descriptors out of nothing")
		}
		if err != nil && !errors.Is(err, link.ErrMessage) {
			t.Errorf("%v", err)
		}
	})
}
