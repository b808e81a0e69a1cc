package runtime_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/creel-sandbox/creel/pkg/kerneltest"
	"github.com/creel-sandbox/creel/pkg/runtime"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// env is a private containerd of one test.
type env struct {
	*runtime.Supervised
	cfg runtime.Config
}

// start runs a private containerd that the test's end stops; it fails the
// test if the containerd leaves mounts behind.
func start(tb testing.TB) *env {
	tb.Helper()
	return startIn(tb, false)
}

// startIn is start with some of "r" (root) and "s" (state) on tmpfs.
func startIn(tb testing.TB, noSync bool, tmpfs ...string) *env {
	tb.Helper()
	kerneltest.Require(tb, kerneltest.Root, kerneltest.Bin, kerneltest.IDMap)
	dir, err := os.MkdirTemp(scratch, "t") //nolint:usetesting // sockets want a short path
	if err != nil {
		tb.Fatal(err)
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		tb.Fatal(err)
	}
	e := &env{cfg: runtime.Config{
		Bin:   kerneltest.BinDir(),
		Root:  filepath.Join(dir, "r"),
		State: filepath.Join(dir, "s"),

		NoSync: noSync,
	}}
	tb.Cleanup(func() {
		if left := mountsBelow(tb, dir); len(left) > 0 {
			tb.Errorf("mounts left: %q", left)
		}
		if err := os.RemoveAll(dir); err != nil {
			tb.Error(err)
		}
	})
	for _, d := range tmpfs {
		p := filepath.Join(dir, d)
		if err := errors.Join(os.Mkdir(p, 0o711), unix.Mount("tmpfs", p, "tmpfs", 0, "mode=711")); err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(func() {
			if err := unix.Unmount(p, 0); err != nil {
				tb.Errorf("unmount %s: %v", p, err)
			}
		})
	}
	e.up(tb)
	tb.Cleanup(func() {
		if tb.Failed() {
			b, _ := os.ReadFile(filepath.Join(e.cfg.Root, "containerd.log"))
			tb.Logf("containerd.log:\n%s", b)
		}
		e.down(tb)
	})
	return e
}

func (e *env) up(tb testing.TB) {
	tb.Helper()
	s, err := runtime.Start(tb.Context(), e.cfg)
	if err != nil {
		tb.Fatal(err)
	}
	e.Supervised = s
}

func (e *env) down(tb testing.TB) {
	tb.Helper()
	if err := e.Stop(tb.Context()); err != nil {
		tb.Error(err)
	}
}

func mountsBelow(tb testing.TB, dir string) []string {
	tb.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		tb.Fatal(err)
	}
	var out []string
	for line := range strings.Lines(string(b)) {
		if p := strings.Fields(line)[4]; strings.HasPrefix(p, dir) {
			out = append(out, p)
		}
	}
	return out
}

// needBusybox is a static program with a shell, for images.
var needBusybox = kerneltest.Need{Name: "busybox", Probe: func() error {
	if _, err := os.Stat(busyboxPath()); err != nil {
		return errors.New("no /bin/busybox; install busybox-static")
	}
	return nil
}}

// busyboxPath is /bin/busybox, or CREEL_TEST_BUSYBOX.
func busyboxPath() string {
	if p := os.Getenv("CREEL_TEST_BUSYBOX"); p != "" {
		return p
	}
	return "/bin/busybox"
}

func busybox(tb testing.TB) []byte {
	tb.Helper()
	kerneltest.Require(tb, needBusybox)
	b, err := os.ReadFile(busyboxPath())
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// file is an entry of a layer.
type file struct {
	tar.Header
	body string
}

func dirs(names ...string) []file {
	var out []file
	for _, n := range names {
		out = append(out, file{Header: tar.Header{Name: n + "/", Typeflag: tar.TypeDir, Mode: 0o755}})
	}
	return out
}

// layer makes a tar of the files.
func layer(tb testing.TB, files ...file) []byte {
	tb.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := f.Header
		h.Size = int64(len(f.body))
		if err := w.WriteHeader(&h); err != nil {
			tb.Fatal(err)
		}
		if _, err := io.WriteString(w, f.body); err != nil {
			tb.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

// busyboxLayer is a root file system with a shell.
func busyboxLayer(tb testing.TB) []byte {
	tb.Helper()
	files := dirs("bin", "dev", "proc", "sys", "etc", "tmp", "run", "home", "home/agent")
	files = append(files, file{Header: tar.Header{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755}, body: string(busybox(tb))})
	for _, n := range []string{"sh", "sleep", "cat", "stat", "id", "touch"} {
		files = append(files, file{Header: tar.Header{Name: "bin/" + n, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777}})
	}
	return layer(tb, files...)
}

// archive is an OCI archive of the layers.
func archive(tb testing.TB, ref string, layers ...[]byte) []byte {
	tb.Helper()
	var files []file
	blob := func(b []byte) map[string]any {
		sum := sha256.Sum256(b)
		hexsum := hex.EncodeToString(sum[:])
		files = append(files, file{Header: tar.Header{Name: "blobs/sha256/" + hexsum, Typeflag: tar.TypeReg, Mode: 0o644}, body: string(b)})
		return map[string]any{"digest": "sha256:" + hexsum, "size": len(b)}
	}
	enc := func(v any) []byte {
		b, err := json.Marshal(v)
		if err != nil {
			tb.Fatal(err)
		}
		return b
	}
	var descs, diffs []any
	for _, l := range layers {
		d := blob(l)
		d["mediaType"] = "application/vnd.oci.image.layer.v1.tar"
		descs = append(descs, d)
		diffs = append(diffs, d["digest"])
	}
	cfg := blob(enc(map[string]any{
		"architecture": goarch, "os": "linux",
		"config": map[string]any{"User": "0", "Labels": map[string]string{"containerd.io/restart.loguri": "binary:///bin/sh"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffs},
	}))
	cfg["mediaType"] = "application/vnd.oci.image.config.v1+json"
	m := blob(enc(map[string]any{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": cfg, "layers": descs}))
	m["mediaType"] = "application/vnd.oci.image.manifest.v1+json"
	m["annotations"] = map[string]string{"io.containerd.image.name": ref}
	files = append(files,
		file{Header: tar.Header{Name: "oci-layout", Typeflag: tar.TypeReg, Mode: 0o644}, body: `{"imageLayoutVersion":"1.0.0"}`},
		file{Header: tar.Header{Name: "index.json", Typeflag: tar.TypeReg, Mode: 0o644}, body: string(enc(map[string]any{"schemaVersion": 2, "manifests": []any{m}}))},
	)
	return layer(tb, files...)
}

// spec is a small sandbox: every namespace, no capability, no network.
func spec(id string, args ...string) *specs.Spec {
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: hostUID, Size: runtime.RangeSize}}
	mem := int64(64 << 20)
	return &specs.Spec{
		Version: "1.0.2",
		Root:    &specs.Root{Path: "rootfs", Readonly: true},
		Process: &specs.Process{
			Args: args, Cwd: "/", Env: []string{"PATH=/bin"},
			User:            specs.User{UID: 1000, GID: 1000},
			Capabilities:    &specs.LinuxCapabilities{},
			NoNewPrivileges: true,
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755", "size=64k"}},
			{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "nodev", "mode=1777", "size=1m"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: "/creel-test/" + id,
			UIDMappings: ids, GIDMappings: ids,
			Resources: &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &mem}},
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.UserNamespace},
				{Type: specs.PIDNamespace},
				{Type: specs.MountNamespace},
				{Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace},
				{Type: specs.NetworkNamespace},
				{Type: specs.CgroupNamespace},
			},
		},
	}
}
