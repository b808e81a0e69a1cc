package image_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/creel-sandbox/creel/pkg/image"

	"github.com/klauspost/compress/zstd"
)

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func dir(name string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755}
}

func reg(name string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644}
}

func link(name, to string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to, Mode: 0o777}
}

func hard(name, to string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: to, Mode: 0o644}
}

// tarOf makes a layer of empty files.
func tarOf(tb testing.TB, hs ...tar.Header) []byte {
	tb.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range hs {
		if err := w.WriteHeader(&h); err != nil {
			tb.Fatal(err)
		}
		if _, err := io.CopyN(w, zeros{}, h.Size); err != nil {
			tb.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// add puts plain layers into a tree, the lowest first.
func add(tb testing.TB, tree *image.Tree, layers ...[]byte) error {
	tb.Helper()
	for _, l := range layers {
		if err := tree.Add(tb.Context(), bytes.NewReader(l), image.Layer{Digest: digest(l), DiffID: digest(l)}); err != nil {
			return err
		}
	}
	return nil
}

func xattr(h tar.Header, name string) tar.Header {
	h.PAXRecords = map[string]string{"SCHILY.xattr." + name: "x"}
	return h
}

func TestTreeAdd(t *testing.T) {
	tests := []struct {
		name   string
		layers [][]tar.Header
		want   string // part of the refusal; none means accepted
	}{
		{name: "ordinary", layers: [][]tar.Header{{dir("./"), dir("./etc/"), reg("./etc/passwd"), link("bin", "usr/bin"), dir("usr/bin"), reg("usr/bin/sh"), hard("usr/bin/bash", "usr/bin/sh"), link("etc/mtab", "/proc/mounts")}}},
		{name: "leading slash", layers: [][]tar.Header{{reg("/etc/passwd")}}},
		{name: "way not made before", layers: [][]tar.Header{{reg("a/b/c/d")}}},
		{name: "directory over link", layers: [][]tar.Header{{link("lib", "usr/lib")}, {dir("lib"), reg("lib/x")}}},
		{name: "fifo", layers: [][]tar.Header{{{Name: "run/initctl", Typeflag: tar.TypeFifo}}}},
		{name: "set-user-ID is inert", layers: [][]tar.Header{{{Name: "su", Typeflag: tar.TypeReg, Mode: 0o4755}}}},
		{name: "file capability is inert", layers: [][]tar.Header{{xattr(reg("ping"), "security.capability")}}},

		{name: "climbing", layers: [][]tar.Header{{reg("a/../../etc/passwd")}}, want: "climbs"},
		{name: "dots", layers: [][]tar.Header{{reg("..")}}, want: "climbs"},
		{name: "character device", layers: [][]tar.Header{{{Name: "dev/null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}}}, want: "device node"},
		{name: "block device", layers: [][]tar.Header{{{Name: "sda", Typeflag: tar.TypeBlock}}}, want: "device node"},
		{name: "overlay whiteout as device", layers: [][]tar.Header{{{Name: "x", Typeflag: tar.TypeChar}}}, want: "device node"},
		{name: "below a link", layers: [][]tar.Header{{link("lib", "/etc"), reg("lib/passwd")}}, want: "not a directory"},
		{name: "below a lower link", layers: [][]tar.Header{{link("lib", "/etc")}, {reg("lib/passwd")}}, want: "not a directory"},
		{name: "below a file", layers: [][]tar.Header{{reg("f"), reg("f/x")}}, want: "not a directory"},
		{name: "below a hard-linked link", layers: [][]tar.Header{{link("a", "/etc"), hard("b", "a"), reg("b/passwd")}}, want: "not a directory"},
		{name: "link above the root", layers: [][]tar.Header{{link("a/b", "../../etc")}}, want: "above the root"},
		{name: "link to nothing", layers: [][]tar.Header{{link("a", "")}}, want: "bad path"},
		{name: "hard link out", layers: [][]tar.Header{{hard("a", "../../etc/shadow")}}, want: "climbs"},
		{name: "hard link to nothing", layers: [][]tar.Header{{hard("a", "etc/shadow")}}, want: "hard link"},
		{name: "hard link to a directory", layers: [][]tar.Header{{dir("d"), hard("a", "d")}}, want: "no file of the image"},
		{name: "hard link by way of a link", layers: [][]tar.Header{{dir("d"), reg("d/f"), link("l", "d"), hard("a", "l/f")}}, want: "no directory"},
		{name: "hard link to a removed file", layers: [][]tar.Header{{reg("f")}, {reg(".wh.f"), hard("a", "f")}}, want: "no file of the image"},
		{name: "whiteout of the parent", layers: [][]tar.Header{{dir("d"), reg("d/.wh...")}}, want: "bad whiteout"},
		{name: "whiteout of itself", layers: [][]tar.Header{{dir("d"), reg("d/.wh..")}}, want: "bad whiteout"},
		{name: "empty whiteout", layers: [][]tar.Header{{reg(".wh.")}}, want: "bad whiteout"},
		{name: "aufs metadata", layers: [][]tar.Header{{reg(".wh..wh.plnk")}}, want: "bad whiteout"},
		{name: "late opaque marker", layers: [][]tar.Header{{dir("d"), reg("d/f"), reg("d/.wh..wh..opq")}}, want: "after entries"},
		{name: "overlay attribute", layers: [][]tar.Header{{xattr(dir("d"), "trusted.overlay.redirect")}}, want: "attribute"},
		{name: "user overlay attribute", layers: [][]tar.Header{{xattr(dir("d"), "user.overlay.opaque")}}, want: "attribute"},
		{name: "unknown type", layers: [][]tar.Header{{{Name: "x", Typeflag: 'V'}}}, want: "unknown type"},
		{name: "root as a file", layers: [][]tar.Header{{reg(".")}}, want: "root is not a directory"},
		{name: "long name", layers: [][]tar.Header{{reg(strings.Repeat("a", 256))}}, want: "at most 255"},
		{name: "long path", layers: [][]tar.Header{{reg(strings.Repeat("a/", 2100) + "f")}}, want: "at most 4096"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var layers [][]byte
			for _, hs := range tt.layers {
				layers = append(layers, tarOf(t, hs...))
			}
			err := add(t, image.NewTree(image.DefaultLimits), layers...)
			if tt.want == "" {
				if err != nil {
					t.Errorf("refused: %v", err)
				}
				return
			}
			if !errors.Is(err, image.ErrRefused) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want a refusal with %q", err, tt.want)
			}
		})
	}
}

func TestTreeCheck(t *testing.T) {
	tests := []struct {
		name   string
		layers [][]tar.Header
		ok     bool
	}{
		{"absent", [][]tar.Header{{reg("bin/sh")}}, true},
		{"real", [][]tar.Header{{dir("dev"), dir("home"), dir("home/agent")}}, true},
		{"link", [][]tar.Header{{link("dev", "tmp")}}, false},
		{"file", [][]tar.Header{{reg("dev")}}, false},
		{"parent is a link", [][]tar.Header{{dir("data"), link("home", "data")}}, false},
		{"link replaced by a directory", [][]tar.Header{{link("dev", "tmp")}, {dir("dev")}}, true},
		{"directory replaced by a link", [][]tar.Header{{dir("dev")}, {link("dev", "tmp")}}, false},
		{"link removed", [][]tar.Header{{link("dev", "tmp")}, {reg(".wh.dev")}}, true},
		{"link hidden by an opaque parent", [][]tar.Header{{dir("home"), link("home/agent", "/tmp")}, {dir("home"), reg("home/.wh..wh..opq")}}, true},
		{"link hidden by an opaque root", [][]tar.Header{{link("dev", "/tmp")}, {reg(".wh..wh..opq")}}, true},
		{"children of a replaced directory are gone", [][]tar.Header{{dir("home"), link("home/agent", "/tmp")}, {reg("home2"), reg(".wh.home")}, {dir("home")}}, true},
		{"merged directory keeps its children", [][]tar.Header{{dir("home"), link("home/agent", "/tmp")}, {dir("home")}}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tree := image.NewTree(image.DefaultLimits)
			for _, hs := range tt.layers {
				if err := add(t, tree, tarOf(t, hs...)); err != nil {
					t.Fatal(err)
				}
			}
			if err := tree.Check("/dev", "/home/agent"); (err == nil) != tt.ok {
				t.Errorf("Check: %v, want ok = %v", err, tt.ok)
			}
		})
	}
}

func gz(tb testing.TB, b []byte) []byte {
	tb.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		tb.Fatal(err)
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return out.Bytes()
}

func TestTreeLimits(t *testing.T) {
	small := image.DefaultLimits
	small.Bytes, small.Files, small.RatioFrom, small.Ratio = 1<<20, 10, 1<<16, 20
	big := reg("big")
	big.Size = 1<<20 + 1
	half := reg("half")
	half.Size = 600 << 10
	many := make([]tar.Header, 11)
	for i := range many {
		many[i] = reg(strings.Repeat("f", i+1))
	}
	plain := tarOf(t, half)
	zw, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name   string
		layers [][]byte
		plain  []byte // what the last layer unpacks to, if it is packed
		want   string
	}{
		{name: "one big file", layers: [][]byte{tarOf(t, big)}, want: "bytes unpacked"},
		{name: "two halves", layers: [][]byte{plain, tarOf(t, half, reg("x"))}, want: "bytes unpacked"},
		{name: "many files", layers: [][]byte{tarOf(t, many...)}, want: "more than 10 files"},
		{name: "gzip bomb", layers: [][]byte{gz(t, plain)}, plain: plain, want: "times its size"},
		{name: "zstd bomb", layers: [][]byte{zw.EncodeAll(plain, nil)}, plain: plain, want: "times its size"},
		{name: "bomb after the end", layers: [][]byte{gz(t, append(tarOf(t), make([]byte, 4<<20)...))}, want: "times its size"},
		{name: "cut short", layers: [][]byte{plain[:4096]}, want: "unexpected EOF"},
		{name: "cut gzip", layers: [][]byte{gz(t, tarOf(t, reg("a")))[:60]}, want: "corrupt"},
		{name: "no tar", layers: [][]byte{bytes.Repeat([]byte{7}, 1024)}, want: "invalid tar header"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tree := image.NewTree(small)
			var err error
			for _, l := range tt.layers {
				diff := l
				if tt.plain != nil {
					diff = tt.plain
				}
				if err = tree.Add(t.Context(), bytes.NewReader(l), image.Layer{Digest: digest(l), DiffID: digest(diff)}); err != nil {
					break
				}
			}
			if !errors.Is(err, image.ErrRefused) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want a refusal with %q", err, tt.want)
			}
		})
	}
}

func TestTreeDiffID(t *testing.T) {
	l := tarOf(t, reg("a"))
	for _, packed := range [][]byte{l, gz(t, l)} {
		tree := image.NewTree(image.DefaultLimits)
		if err := tree.Add(t.Context(), bytes.NewReader(packed), image.Layer{DiffID: digest(l)}); err != nil {
			t.Errorf("right diff id: %v", err)
		}
		err := image.NewTree(image.DefaultLimits).Add(t.Context(), bytes.NewReader(packed), image.Layer{DiffID: digest([]byte("other"))})
		if !errors.Is(err, image.ErrRefused) {
			t.Errorf("wrong diff id: %v", err)
		}
	}
}

func TestTreeCounts(t *testing.T) {
	tree := image.NewTree(image.DefaultLimits)
	f := reg("f")
	f.Size = 1000
	if err := add(t, tree, tarOf(t, f, tar.Header{Name: "su", Typeflag: tar.TypeReg, Mode: 0o4755}, xattr(reg("ping"), "security.capability"))); err != nil {
		t.Fatal(err)
	}
	if tree.Bytes() != 1000 || tree.SetID() != 2 {
		t.Errorf("%d bytes, %d set-ID files; want 1000, 2", tree.Bytes(), tree.SetID())
	}
}

// FuzzTree: what is accepted has, read independently, nothing that an
// unpacker must not see, and stays in its limits.
func FuzzTree(f *testing.F) {
	f.Add(tarOf(f, dir("dev"), reg("etc/passwd"), link("lib", "usr/lib"), hard("b", "etc/passwd")))
	f.Add(tarOf(f, reg("a/.wh..wh..opq"), reg(".wh.x")))
	f.Add(gz(f, tarOf(f, reg("x"))))
	f.Add([]byte("junk"))
	lim := image.DefaultLimits
	lim.Bytes, lim.Files = 1<<20, 100
	f.Fuzz(func(t *testing.T, b []byte) {
		tree := image.NewTree(lim)
		if add(t, tree, b) != nil {
			return
		}
		if tree.Bytes() > lim.Bytes {
			t.Errorf("%d bytes accepted", tree.Bytes())
		}
		links := map[string]bool{}
		r := tar.NewReader(bytes.NewReader(b))
		for n := 0; ; n++ {
			h, err := r.Next()
			if err != nil {
				break // packed input, or its end
			}
			if n >= lim.Files {
				t.Fatal("too many entries accepted")
			}
			name := strings.Trim(strings.TrimPrefix(h.Name, "./"), "/")
			switch h.Typeflag {
			case tar.TypeChar, tar.TypeBlock:
				t.Errorf("device %q accepted", h.Name)
			case tar.TypeSymlink:
				links[name] = true
			default:
				delete(links, name)
			}
			for i, part := range strings.Split(name, "/") {
				if part == ".." {
					t.Errorf("name %q accepted", h.Name)
				}
				if at := strings.Join(strings.Split(name, "/")[:i], "/"); i > 0 && links[at] {
					t.Errorf("%q accepted below the link %q", h.Name, at)
				}
			}
			if strings.HasPrefix(h.Linkname, "../") && h.Typeflag == tar.TypeLink {
				t.Errorf("hard link to %q accepted", h.Linkname)
			}
		}
	})
}

// TestTreeBytesOfAllLayers: what layers unpack to is bounded for all of them
// together, also where it is in no file: an import reads it while others wait.
func TestTreeBytesOfAllLayers(t *testing.T) {
	lim := image.DefaultLimits
	lim.Bytes, lim.Files = 8<<10, 16 // 32 KiB of tar
	tail := append(tarOf(t, dir("a")), make([]byte, 12<<10)...)
	tree := image.NewTree(lim)
	var err error
	added := 0
	for ; err == nil && added < 10; added++ {
		err = tree.Add(t.Context(), bytes.NewReader(tail), image.Layer{Digest: digest(tail), DiffID: digest(tail)})
	}
	if !errors.Is(err, image.ErrRefused) || !strings.Contains(err.Error(), "unpack to is too large") || added != 3 {
		t.Errorf("layer %d: %v; want the third refused", added, err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	late := errors.New("too late")
	cancel(late)
	if err := image.NewTree(lim).Add(ctx, bytes.NewReader(tail), image.Layer{DiffID: digest(tail)}); !errors.Is(err, late) {
		t.Errorf("after the deadline: %v", err)
	}
}
