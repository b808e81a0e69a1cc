package lab

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	goruntime "runtime"
	"testing"

	"github.com/creel-sandbox/creel/pkg/kerneltest"
)

// Tiny is the archive of an image with busybox and nothing else, made afresh:
// it imports in a fraction of a second.
func Tiny(tb testing.TB) string {
	tb.Helper()
	return TinyWith(tb, nil, func(*tar.Writer) {})
}

// TinyWith is Tiny with more in it, and with an image configuration
// (image-spec, config.md, "config").
func TinyWith(tb testing.TB, config map[string]any, more func(*tar.Writer)) string {
	tb.Helper()
	kerneltest.Require(tb, kerneltest.Busybox)
	box, err := os.ReadFile(kerneltest.BusyboxPath())
	if err != nil {
		tb.Fatal(err)
	}
	return archive(tb, config, func(w *tar.Writer) {
		defer more(w)
		for _, d := range []string{"bin/", "dev/", "proc/", "sys/", "etc/", "usr/", "run/", "tmp/", "var/", "var/tmp/", "home/", "home/agent/", "root/", "workspace/", "mnt/"} {
			h := &tar.Header{Typeflag: tar.TypeDir, Name: d, Mode: 0o755}
			if d == "home/agent/" {
				h.Uid, h.Gid = 1000, 1000
			}
			Add(tb, w, h, nil)
		}
		Add(tb, w, &tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755}, box)
		for _, name := range []string{"sh", "cat", "echo", "ls", "sleep", "true", "false", "id", "dd", "mkdir", "rm", "mv", "touch", "chmod", "stat", "kill", "ps", "env", "seq", "yes", "head", "tail", "wc", "grep", "find", "df", "mount", "setsid", "nohup", "tty", "stty", "date", "ln", "cp", "pwd", "printf", "test", "sync", "usleep", "awk", "sort", "hostname", "nproc", "ulimit", "readlink", "mknod", "unshare", "nc", "ping", "ip", "tr", "cut", "od", "md5sum", "sha256sum", "timeout", "which", "whoami", "xargs"} {
			Add(tb, w, &tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + name, Linkname: "busybox"}, nil)
		}
		Add(tb, w, &tar.Header{Typeflag: tar.TypeReg, Name: "etc/passwd", Mode: 0o644}, []byte("root:x:0:0:root:/root:/bin/sh\nagent:x:1000:1000:agent:/home/agent:/bin/sh\n"))
		Add(tb, w, &tar.Header{Typeflag: tar.TypeReg, Name: "etc/group", Mode: 0o644}, []byte("root:x:0:\nagent:x:1000:\n"))
	})
}

// Add writes one entry of a layer.
func Add(tb testing.TB, w *tar.Writer, h *tar.Header, body []byte) {
	tb.Helper()
	h.Size = int64(len(body))
	if err := w.WriteHeader(h); err != nil {
		tb.Fatal(err)
	}
	if _, err := w.Write(body); err != nil {
		tb.Fatal(err)
	}
}

// Archive makes an OCI archive of one layer.
func Archive(tb testing.TB, fill func(*tar.Writer)) string {
	tb.Helper()
	return archive(tb, nil, fill)
}

func archive(tb testing.TB, imageConfig map[string]any, fill func(*tar.Writer)) string {
	tb.Helper()
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	fill(w)
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	blobs := map[string][]byte{}
	put := func(b []byte) (digest string) {
		sum := sha256.Sum256(b)
		blobs[hex.EncodeToString(sum[:])] = b
		return "sha256:" + hex.EncodeToString(sum[:])
	}
	text := func(v any) []byte {
		b, err := json.Marshal(v)
		if err != nil {
			tb.Fatal(err)
		}
		return b
	}
	type obj = map[string]any
	diff := put(layer.Bytes())
	config := text(obj{"architecture": goruntime.GOARCH, "os": "linux", "config": imageConfig, "rootfs": obj{"type": "layers", "diff_ids": []string{diff}}})
	manifest := text(obj{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": obj{"mediaType": "application/vnd.oci.image.config.v1+json", "digest": put(config), "size": len(config)},
		"layers": []obj{{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": diff, "size": layer.Len()}},
	})
	index := text(obj{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
		"manifests": []obj{{"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": put(manifest), "size": len(manifest), "annotations": obj{"org.opencontainers.image.ref.name": "tiny"}}},
	})
	path := filepath.Join(tb.TempDir(), "image.oci.tar")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		tb.Fatal(err)
	}
	out := tar.NewWriter(f)
	Add(tb, out, &tar.Header{Typeflag: tar.TypeReg, Name: "oci-layout", Mode: 0o644}, []byte(`{"imageLayoutVersion":"1.0.0"}`))
	Add(tb, out, &tar.Header{Typeflag: tar.TypeReg, Name: "index.json", Mode: 0o644}, index)
	for name, b := range blobs {
		Add(tb, out, &tar.Header{Typeflag: tar.TypeReg, Name: "blobs/sha256/" + name, Mode: 0o644}, b)
	}
	if err := out.Close(); err != nil {
		tb.Fatal(err)
	}
	if err := f.Close(); err != nil {
		tb.Fatal(err)
	}
	return path
}
