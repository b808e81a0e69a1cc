package imagebuild

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var testEpoch = time.Unix(1_700_000_000, 0)

// file is one entry of a test's tar.
type file struct {
	name string
	kind byte // tar.TypeReg when 0
	mode int64
	body string
	link string
	uid  int
	when time.Time
	pax  map[string]string
}

func makeTar(tb testing.TB, files ...file) []byte {
	tb.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		if f.kind == 0 {
			f.kind = tar.TypeReg
		}
		if f.mode == 0 {
			f.mode = 0o644
		}
		h := &tar.Header{Name: f.name, Typeflag: f.kind, Mode: f.mode, Size: int64(len(f.body)), Linkname: f.link, Uid: f.uid, ModTime: f.when, PAXRecords: f.pax}
		if err := w.WriteHeader(h); err != nil {
			tb.Fatal(err)
		}
		if _, err := w.Write([]byte(f.body)); err != nil {
			tb.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

// readTar returns the entries by name, and the names in order.
func readTar(tb testing.TB, b []byte) (map[string]*tar.Header, map[string]string, []string) {
	tb.Helper()
	headers, bodies := map[string]*tar.Header{}, map[string]string{}
	var names []string
	for r := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return headers, bodies, names
		}
		if err != nil {
			tb.Fatal(err)
		}
		body, err := io.ReadAll(r)
		if err != nil {
			tb.Fatal(err)
		}
		name := strings.TrimSuffix(h.Name, "/")
		headers[name], bodies[name] = h, string(body)
		names = append(names, name)
	}
}

func dir(name string) file { return file{name: name, kind: tar.TypeDir, mode: 0o755} }

func run(tb testing.TB, files ...file) (map[string]*tar.Header, map[string]string, Dropped, []string) {
	tb.Helper()
	var out bytes.Buffer
	packages, dropped, err := rewrite(tb.Context(), bytes.NewReader(makeTar(tb, files...)), &out, testEpoch, nil)
	if err != nil {
		tb.Fatal(err)
	}
	headers, bodies, _ := readTar(tb, out.Bytes())
	return headers, bodies, dropped, packages
}

func TestRewrite(t *testing.T) {
	old := time.Unix(1_600_000_000, 0)
	headers, bodies, dropped, packages := run(t,
		dir("./dev/"), file{name: "./dev/null", kind: tar.TypeChar}, file{name: "./dev/fd", kind: tar.TypeSymlink, link: "/proc/self/fd"},
		dir("./"), file{name: "./bin", kind: tar.TypeSymlink, link: "usr/bin"},
		dir("./etc/"), file{name: "./etc/passwd", body: "root:x:0:0:root:/root:/bin/bash\n"}, file{name: "./etc/group", body: "root:x:0:"},
		file{name: "./etc/shadow", mode: 0o640, body: "root:*:20000:0:99999:7:::\n"}, file{name: "./etc/passwd-", body: "x"},
		file{name: "./etc/resolv.conf", body: "nameserver 10.0.0.1"}, file{name: "./etc/hostname", body: "builder"}, file{name: "./etc/machine-id", body: "abc"},
		dir("./usr/"), dir("./usr/bin/"),
		file{name: "./usr/bin/su", mode: 0o4755, body: "su", when: old}, file{name: "./usr/bin/chage", mode: 0o2755},
		file{name: "./usr/bin/ping", mode: 0o755, pax: map[string]string{"SCHILY.xattr.security.capability": "x"}},
		file{name: "./usr/bin/su2", kind: tar.TypeLink, link: "./usr/bin/su"},
		file{name: "./usr/fifo", kind: tar.TypeFifo},
		dir("./var/"), dir("./var/log/"), file{name: "./var/log/dpkg.log", body: "today"}, dir("./var/cache/"), file{name: "./var/cache/x", body: "y"},
		dir("./var/lib/"), dir("./var/lib/dpkg/"),
		file{name: "./var/lib/dpkg/status", body: "Package: b\nStatus: install ok installed\nVersion: 2\n\nPackage: gone\nStatus: deinstall ok config-files\nVersion: 1\n\nPackage: a\nStatus: install ok installed\nVersion: 1:1\n"},
		file{name: "./var/lib/new", when: testEpoch.Add(time.Hour)},
	)
	if diff := cmp.Diff([]string{"a 1:1", "b 2"}, packages); diff != "" {
		t.Errorf("packages (-want +got):\n%s", diff)
	}
	if want := (Dropped{Devices: 2, SetIDs: 2, Capabilities: 1, Files: 7}); dropped != want {
		t.Errorf("dropped = %+v, want %+v", dropped, want)
	}
	for name, want := range map[string]string{
		"etc/passwd":                   "root:x:0:0:root:/root:/bin/bash\nagent:x:1000:1000:agent:/home/agent:/bin/bash\n",
		"etc/group":                    "root:x:0:\nagent:x:1000:\n",
		"etc/shadow":                   "root:*:19675:0:99999:7:::\nagent:!:19675:0:99999:7:::\n",
		"etc/resolv.conf":              "",
		"etc/hostname":                 "sandbox\n",
		"etc/machine-id":               "",
		"usr/share/creel/packages.txt": "a 1:1\nb 2\n",
		"usr/bin/su":                   "su",
	} {
		if got, ok := bodies[name]; !ok || got != want {
			t.Errorf("/%s = %q (there: %v), want %q", name, got, ok, want)
		}
	}
	for _, name := range []string{"dev/null", "dev/fd", "usr/fifo", "var/log/dpkg.log", "var/cache/x", "etc/passwd-"} {
		if headers[name] != nil {
			t.Errorf("/%s is in the image", name)
		}
	}
	if h := headers["usr/bin/su"]; h.Mode != 0o755 || !h.ModTime.Equal(old) {
		t.Errorf("su has mode %o and time %v", h.Mode, h.ModTime)
	}
	if h := headers["usr/bin/ping"]; len(h.PAXRecords) != 0 {
		t.Errorf("ping keeps %v", h.PAXRecords)
	}
	if h := headers["usr/bin/su2"]; h.Linkname != "usr/bin/su" {
		t.Errorf("su2 links to %q", h.Linkname)
	}
	if h := headers["var/lib/new"]; !h.ModTime.Equal(testEpoch) {
		t.Errorf("a file newer than the epoch has time %v", h.ModTime)
	}
	for _, name := range []string{"dev", "proc", "sys", "run", "tmp", "var/tmp", "home/agent", "workspace", "etc"} {
		if h := headers[name]; h == nil || h.Typeflag != tar.TypeDir {
			t.Errorf("/%s is not a real directory: %v", name, h)
		}
	}
	if h := headers["home/agent"]; h.Uid != AgentID || h.Gid != AgentID {
		t.Errorf("/home/agent belongs to %d:%d", h.Uid, h.Gid)
	}
	if h := headers["tmp"]; h.Mode != 0o1777 {
		t.Errorf("/tmp has mode %o", h.Mode)
	}
}

func TestRewriteRefuses(t *testing.T) {
	tests := map[string][]file{
		"absolute":              {{name: "/etc/passwd"}},
		"up":                    {{name: "a/../../x"}},
		"twice":                 {{name: "a"}, {name: "./a"}},
		"beneath a link":        {{name: "etc", kind: tar.TypeSymlink, link: "/"}, {name: "etc/x"}},
		"beneath a file":        {{name: "a"}, {name: "a/b"}},
		"without its directory": {{name: "a/b"}},
		"link out":              {{name: "a", kind: tar.TypeLink, link: "../x"}},
		"link to nothing":       {{name: "a", kind: tar.TypeLink, link: "b"}},
		"link to a link":        {{name: "b", kind: tar.TypeSymlink, link: "/etc/passwd"}, {name: "a", kind: tar.TypeLink, link: "b"}},
		"owner out of range":    {{name: "a", uid: 70000}},
		"etc is a link":         {{name: "etc", kind: tar.TypeSymlink, link: "usr"}},
		"home is a link":        {{name: "home", kind: tar.TypeSymlink, link: "usr"}},
		"agent is there":        {dir("etc"), {name: "etc/passwd", body: "agent:x:5:5::/:/bin/sh\n"}},
		"id 1000 is taken":      {dir("etc"), {name: "etc/passwd", body: "bob:x:1000:5::/:/bin/sh\n"}},
	}
	for name, files := range tests {
		t.Run(name, func(t *testing.T) {
			if _, _, err := rewrite(t.Context(), bytes.NewReader(makeTar(t, files...)), io.Discard, testEpoch, nil); err == nil {
				t.Error("rewrite succeeded")
			}
		})
	}
}

func TestRewriteEndsWithItsContext(t *testing.T) {
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	if _, _, err := rewrite(ctx, bytes.NewReader(makeTar(t, dir("a"))), io.Discard, testEpoch, nil); !errors.Is(err, why) {
		t.Errorf("error = %v, want %v", err, why)
	}
}

// Whatever comes in: what comes out has no device, no set-ID bit, no name that
// leads elsewhere, no entry beneath anything but a directory of its own, no
// time after the epoch; and is the same each time.
func FuzzRewrite(f *testing.F) {
	f.Add(makeTar(f, dir("./"), dir("./etc/"), file{name: "./etc/passwd", body: "root:x:0:0::/:\n"}, file{name: "./x", mode: 0o6777}))
	f.Add(makeTar(f, file{name: "a", kind: tar.TypeSymlink, link: "/"}, file{name: "a/b"}))
	f.Add(makeTar(f, file{name: "a"}, file{name: "b", kind: tar.TypeLink, link: "a"}, file{name: "c", kind: tar.TypeBlock}))
	f.Add(makeTar(f, file{name: "var", kind: tar.TypeDir}, file{name: "var/lib", kind: tar.TypeDir}, file{name: "var/lib/dpkg", kind: tar.TypeDir}, file{name: "var/lib/dpkg/status", body: "Package: a\n"}))
	f.Fuzz(func(t *testing.T, in []byte) {
		var out, again bytes.Buffer
		if _, _, err := rewrite(t.Context(), bytes.NewReader(in), &out, testEpoch, nil); err != nil {
			return
		}
		if _, _, err := rewrite(t.Context(), bytes.NewReader(in), &again, testEpoch, nil); err != nil || !bytes.Equal(out.Bytes(), again.Bytes()) {
			t.Fatalf("the second rewrite differs: %v", err)
		}
		headers, _, names := readTar(t, out.Bytes())
		for i, name := range names {
			h := headers[name]
			switch {
			case !slices.Contains([]byte{tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink}, h.Typeflag):
				t.Errorf("%q has type %q", name, h.Typeflag)
			case h.Mode&^0o1777 != 0:
				t.Errorf("%q has mode %o", name, h.Mode)
			case h.ModTime.After(testEpoch):
				t.Errorf("%q has time %v", name, h.ModTime)
			case name == "" || path.IsAbs(name) || path.Clean(name) != name || strings.HasPrefix(name, ".."):
				t.Errorf("name %q", name)
			case slices.Contains(names[:i], name):
				t.Errorf("%q is there twice", name)
			}
			if parent := path.Dir(name); parent != "." && (headers[parent] == nil || headers[parent].Typeflag != tar.TypeDir) {
				t.Errorf("%q is beneath something that is no directory", name)
			}
			if h.Typeflag == tar.TypeLink && (headers[h.Linkname] == nil || headers[h.Linkname].Typeflag == tar.TypeSymlink) {
				t.Errorf("%q links to %q", name, h.Linkname)
			}
		}
	})
}
