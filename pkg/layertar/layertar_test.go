package layertar_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/kerneltest"
	"github.com/creel-sandbox/creel/pkg/layertar"
)

const first = 0x7800_0000

func options(dir string) layertar.Options {
	return layertar.Options{Upper: dir, HostID: first, IDs: 65536, Bytes: 1 << 20, Files: 1000, Names: 64 << 10}
}

// layer is a directory with files of the sandbox's.
type layer struct {
	t   *testing.T
	dir string
}

func newLayer(t *testing.T) *layer {
	t.Helper()
	kerneltest.Require(t, kerneltest.Root)
	l := &layer{t, t.TempDir()}
	l.own(".", 0)
	return l
}

func (l *layer) path(name string) string { return filepath.Join(l.dir, name) }

func (l *layer) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l *layer) own(name string, uid int) {
	l.t.Helper()
	l.must(os.Lchown(l.path(name), first+uid, first+uid))
}

func (l *layer) file(name, text string, uid int, mode uint32) {
	l.t.Helper()
	l.must(os.WriteFile(l.path(name), []byte(text), 0o600))
	l.own(name, uid)
	l.must(unix.Chmod(l.path(name), mode))
	l.must(unix.UtimesNano(l.path(name), []unix.Timespec{{Sec: 7}, {Sec: 7, Nsec: 5}}))
}

func (l *layer) mkdir(name string, uid int, mode uint32) {
	l.t.Helper()
	l.must(os.Mkdir(l.path(name), 0o700))
	l.own(name, uid)
	l.must(unix.Chmod(l.path(name), mode))
}

// list is one line for each entry of a layer's tar.
func list(t *testing.T, b []byte) (out []string) {
	t.Helper()
	r := tar.NewReader(bytes.NewReader(b))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		line := fmt.Sprintf("%c %s %o %d:%d", h.Typeflag, h.Name, h.Mode, h.Uid, h.Gid)
		if h.Linkname != "" {
			line += " -> " + h.Linkname
		}
		if len(text) > 0 {
			line += fmt.Sprintf(" %q at %d", text, h.ModTime.UnixNano())
		}
		if len(h.PAXRecords) > 0 {
			line += fmt.Sprint(" ", h.PAXRecords)
		}
		out = append(out, line)
	}
}

func TestWrite(t *testing.T) {
	l := newLayer(t)
	l.mkdir("usr", 0, 0o755)
	l.file("usr/su", "root", 0, 0o4755)
	l.file("usr/chage", "shadow", 42, 0o2755)
	l.file("usr/agent", "mine", 1000, 0o640)
	l.must(os.Link(l.path("usr/agent"), l.path("usr/again")))
	l.mkdir("usr/mail", 8, 0o3775)
	l.must(os.Symlink("../../etc/passwd", l.path("usr/link")))
	l.own("usr/link", 0)
	l.must(unix.Mkfifo(l.path("usr/pipe"), 0o600))
	l.own("usr/pipe", 0)
	l.must(unix.Mknod(l.path("usr/dev"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	l.own("usr/dev", 0)
	l.must(unix.Mknod(l.path("usr/gone"), unix.S_IFCHR, 0))
	l.mkdir("var", 0, 0o755)
	l.must(unix.Setxattr(l.path("var"), "trusted.overlay.opaque", []byte("y"), 0))
	l.file("var/new", "new", 0, 0o600)
	for name, v := range map[string]string{"user.overlay.opaque": "y", "user.x": "y", "trusted.overlay.origin": "x"} {
		l.must(unix.Setxattr(l.path("var/new"), name, []byte(v), 0))
	}
	var b bytes.Buffer
	dropped, err := layertar.Write(t.Context(), &b, options(l.dir))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		`5 usr/ 755 0:0`,
		`0 usr/again 640 1000:1000 "mine" at 7000000000`,
		`1 usr/agent 640 1000:1000 -> usr/again`, // in the order of names
		`0 usr/chage 755 42:42 "shadow" at 7000000000`,
		`0 usr/.wh.gone 0 0:0`,
		`2 usr/link 777 0:0 -> ../../etc/passwd`,
		`5 usr/mail/ 1775 8:8`,
		`6 usr/pipe 600 0:0`,
		`0 usr/su 755 0:0 "root" at 7000000000`,
		`5 var/ 755 0:0`,
		`0 var/.wh..wh..opq 0 0:0`,
		`0 var/new 600 0:0 "new" at 7000000000`,
	}
	if diff := cmp.Diff(want, list(t, b.Bytes())); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
	if (dropped != layertar.Dropped{SetIDs: 3, Special: 1}) {
		t.Errorf("dropped %+v", dropped)
	}
}

func TestRefused(t *testing.T) {
	for name, tt := range map[string]struct {
		make func(l *layer)
		o    func(o *layertar.Options)
		want error
	}{
		"a removal's name":    {make: func(l *layer) { l.file(".wh.passwd", "", 0, 0o600) }, want: layertar.ErrRefused},
		"an opaque's name":    {make: func(l *layer) { l.mkdir(".wh..wh..opq", 0, 0o700) }, want: layertar.ErrRefused},
		"an id of the host's": {make: func(l *layer) { l.file("f", "", -1, 0o600) }, want: layertar.ErrRefused},
		"root of the host":    {make: func(l *layer) { l.file("f", "", -first, 0o600) }, want: layertar.ErrRefused},
		"an id beyond":        {make: func(l *layer) { l.file("f", "", 65536, 0o600) }, want: layertar.ErrRefused},
		"a renamed directory": {make: func(l *layer) {
			l.mkdir("d", 0, 0o700)
			l.must(unix.Setxattr(l.path("d"), "trusted.overlay.redirect", []byte("/etc"), 0))
		}, want: layertar.ErrRefused},
		"attributes only": {make: func(l *layer) {
			l.file("f", "", 0, 0o600)
			l.must(unix.Setxattr(l.path("f"), "trusted.overlay.metacopy", nil, 0))
		}, want: layertar.ErrRefused},
		"holes": {make: func(l *layer) {
			l.file("f", "", 0, 0o600)
			l.must(os.Truncate(l.path("f"), 1<<40))
		}, want: layertar.ErrTooLarge},
		"bytes of all": {make: func(l *layer) {
			for i := range 3 {
				l.file(fmt.Sprint(i), strings.Repeat("x", 400<<10), 0, 0o600)
			}
		}, want: layertar.ErrTooLarge},
		"files": {make: func(l *layer) {
			for i := range 11 {
				l.file(fmt.Sprint(i), "", 0, 0o600)
			}
		}, o: func(o *layertar.Options) { o.Files = 10 }, want: layertar.ErrTooLarge},
		"names in one directory": {make: func(l *layer) {
			for i := range 300 {
				l.file(fmt.Sprintf("%0250d", i), "", 0, 0o600)
			}
		}, want: layertar.ErrTooLarge},
		"paths of files with two names": {make: func(l *layer) {
			for i := range 300 {
				dir := fmt.Sprintf("%0250d", i%30)
				if i < 30 {
					l.mkdir(dir, 0, 0o700)
				}
				name := fmt.Sprintf("%s/%d", dir, i)
				l.file(name, "", 0, 0o600)
				l.must(os.Link(l.path(name), l.path(name+"b")))
			}
		}, want: layertar.ErrTooLarge},
		"depth": {make: func(l *layer) { l.deep() }, want: layertar.ErrTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLayer(t)
			tt.make(l)
			o := options(l.dir)
			if tt.o != nil {
				tt.o(&o)
			}
			if _, err := layertar.Write(t.Context(), io.Discard, o); !errors.Is(err, tt.want) {
				t.Errorf("error is %v, want %v", err, tt.want)
			}
		})
	}
}

// deep makes more directories, each in the other, than may be.
func (l *layer) deep() {
	l.t.Helper()
	at, err := unix.Open(l.dir, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	l.must(err)
	for range 300 {
		l.must(unix.Mkdirat(at, "d", 0o700))
		l.must(unix.Fchownat(at, "d", first, first, 0))
		next, err := unix.Openat(at, "d", unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		l.must(err)
		unix.Close(at)
		at = next
	}
	unix.Close(at)
}

// TestRace: whatever takes the place of a file or directory while the layer is
// read, nothing from outside it gets into the tar.
func TestRace(t *testing.T) {
	l := newLayer(t)
	outside := t.TempDir()
	const secret = "the host's"
	if err := os.WriteFile(filepath.Join(outside, "f"), []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	l.must(os.Lchown(filepath.Join(outside, "f"), first, first))
	l.must(os.Lchown(outside, first, first))
	l.mkdir("d", 0, 0o700)
	l.file("d/f", "the agent's", 0, 0o600)
	l.must(os.Symlink(outside, l.path("e")))
	l.own("e", 0)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			_ = unix.Renameat2(unix.AT_FDCWD, l.path("d"), unix.AT_FDCWD, l.path("e"), unix.RENAME_EXCHANGE)
		}
	}()
	defer func() { cancel(); <-done }()
	for range 2000 {
		var b bytes.Buffer
		_, err := layertar.Write(t.Context(), &b, options(l.dir))
		if err != nil && !errors.Is(err, layertar.ErrChanged) {
			t.Fatal(err)
		}
		if strings.Contains(b.String(), secret) {
			t.Fatal("a file from outside is in the layer")
		}
	}
}

func TestCancel(t *testing.T) {
	l := newLayer(t)
	l.file("f", "x", 0, 0o600)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := layertar.Write(ctx, io.Discard, options(l.dir)); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
}
