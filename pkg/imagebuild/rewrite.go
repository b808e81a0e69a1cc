package imagebuild

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"
)

const (
	maxEntries = 1 << 20 // an image has about ten thousand
	maxText    = 64 << 20
	maxBytes   = 16 << 30 // of all files; an image has a quarter of one
)

// rewriter turns mmdebstrap's tar into a layer.
type rewriter struct {
	epoch   time.Time
	out     *tar.Writer
	seen    map[string]byte // type of every entry written
	edits   map[string]func([]byte) ([]byte, error)
	dropped Dropped
	status  []byte // dpkg's database, for the list of packages
	bytes   int64  // of all files so far
}

// rewrite copies the system in r to w as one layer: see the package comment.
// Nothing of r is trusted: a name that is not plain, or an entry beneath
// something that is no directory, is an error.
func rewrite(ctx context.Context, r io.Reader, w io.Writer, epoch time.Time, more []ownFile) (packages []string, _ Dropped, err error) {
	rw := &rewriter{
		epoch: epoch.Truncate(time.Second), out: tar.NewWriter(w),
		seen: map[string]byte{}, edits: accountEdits(epoch),
	}
	tr := tar.NewReader(r)
	for {
		if ctx.Err() != nil {
			return nil, Dropped{}, context.Cause(ctx)
		}
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, Dropped{}, fmt.Errorf("read the system: %w", err)
		}
		if err := rw.entry(h, tr); err != nil {
			return nil, Dropped{}, fmt.Errorf("entry %q: %w", h.Name, err)
		}
	}
	packages = packageList(rw.status)
	if err := rw.addOwn(packages, more); err != nil {
		return nil, Dropped{}, err
	}
	if err := rw.out.Close(); err != nil {
		return nil, Dropped{}, fmt.Errorf("write layer: %w", err)
	}
	return packages, rw.dropped, nil
}

// cleanName is the entry's path without "./" and trailing "/", or "" for the
// root. A name that would lead anywhere else than it says is an error.
func cleanName(name string) (string, error) {
	if strings.HasPrefix(name, "/") || strings.ContainsRune(name, 0) {
		return "", errors.New("the name is absolute or holds a NUL")
	}
	if len(name) > 4095 {
		return "", errors.New("the name is longer than a path can be")
	}
	if slices.Contains(strings.Split(name, "/"), "..") {
		return "", errors.New("the name holds \"..\"")
	}
	if c := path.Clean(name); c != "." {
		return c, nil
	}
	return "", nil
}

// emptied directories are made anew, without what the build left in them: the
// runtime mounts over them, or they hold caches and logs.
var emptied = []string{"dev", "proc", "sys", "run", "tmp", "var/tmp", "var/log", "var/cache", "var/lib/apt", "boot", "media", "mnt", "srv"}

// unwanted are the build's own traces: identities of this host, backups,
// locks.
var unwanted = map[string]bool{
	"etc/machine-id": true, "var/lib/dbus/machine-id": true,
	"etc/hostname": true, "etc/hosts": true, "etc/resolv.conf": true,
	"etc/passwd-": true, "etc/group-": true, "etc/shadow-": true, "etc/gshadow-": true,
	"etc/subuid-": true, "etc/subgid-": true, "etc/.pwd.lock": true,
	"var/lib/dpkg/status-old": true, "var/lib/dpkg/available-old": true, "var/lib/dpkg/diversions-old": true,
	"var/lib/dpkg/statoverride-old": true, "var/lib/dpkg/lock": true, "var/lib/dpkg/lock-frontend": true,
	"var/lib/dpkg/triggers/Lock": true, "var/lib/systemd/random-seed": true,
}

func isUnwanted(name string) bool {
	if unwanted[name] {
		return true
	}
	for _, d := range emptied {
		if name == d || strings.HasPrefix(name, d+"/") {
			return true
		}
	}
	return false
}

func (rw *rewriter) entry(h *tar.Header, body io.Reader) error {
	name, err := cleanName(h.Name)
	if err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink:
	case tar.TypeXGlobalHeader:
		return nil // comments about the archive
	default:
		rw.dropped.Devices++
		return nil
	}
	if isUnwanted(name) {
		if h.Typeflag != tar.TypeDir {
			rw.dropped.Files++
		}
		return nil
	}
	if name == "" {
		return nil // addOwn gives the root its fixed form
	}
	out, err := rw.header(name, h)
	if err != nil {
		return err
	}
	return rw.put(out, body)
}

// header is the entry's header with nothing in it that is not wanted.
func (rw *rewriter) header(name string, h *tar.Header) (*tar.Header, error) {
	const maxID = 65535 // a sandbox has this many ids
	if h.Uid < 0 || h.Uid > maxID || h.Gid < 0 || h.Gid > maxID {
		return nil, fmt.Errorf("owner %d:%d is not between 0 and %d", h.Uid, h.Gid, maxID)
	}
	out := &tar.Header{
		Typeflag: h.Typeflag, Name: name, Mode: h.Mode & 0o1777,
		Uid: h.Uid, Gid: h.Gid, ModTime: rw.clamp(h.ModTime),
	}
	if h.Mode&0o6000 != 0 {
		rw.dropped.SetIDs++
	}
	if hasXattrs(h) {
		rw.dropped.Capabilities++
	}
	switch h.Typeflag {
	case tar.TypeReg:
		// A sparse file is a few bytes that stand for any number.
		if rw.bytes += h.Size; isSparse(h) || rw.bytes > maxBytes {
			return nil, errors.New("the file is sparse or the image too large")
		}
		out.Size = h.Size
	case tar.TypeSymlink:
		if h.Linkname == "" || strings.ContainsRune(h.Linkname, 0) {
			return nil, errors.New("the link has no target")
		}
		out.Linkname = h.Linkname
	case tar.TypeLink:
		target, err := cleanName(h.Linkname)
		if err != nil {
			return nil, fmt.Errorf("link to %q: %w", h.Linkname, err)
		}
		if rw.seen[target] != tar.TypeReg && rw.seen[target] != tar.TypeLink {
			return nil, fmt.Errorf("link to %q, which is no file before it", h.Linkname)
		}
		out.Linkname = target
	}
	return out, nil
}

func isSparse(h *tar.Header) bool {
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return true
		}
	}
	return false
}

func hasXattrs(h *tar.Header) bool {
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "SCHILY.xattr.") {
			return true
		}
	}
	return false
}

func (rw *rewriter) clamp(t time.Time) time.Time {
	if t.Before(time.Unix(0, 0)) {
		return time.Unix(0, 0)
	}
	if t.After(rw.epoch) {
		return rw.epoch
	}
	return t.Truncate(time.Second)
}

// put writes one entry, after a look at what is above it.
func (rw *rewriter) put(h *tar.Header, body io.Reader) error {
	if _, dup := rw.seen[h.Name]; dup {
		return errors.New("the name came before")
	}
	if len(rw.seen) >= maxEntries {
		return fmt.Errorf("more than %d entries", maxEntries)
	}
	if parent := path.Dir(h.Name); parent != "." && rw.seen[parent] != tar.TypeDir {
		return fmt.Errorf("%q, above it, is not a directory of this archive", parent)
	}
	rw.seen[h.Name] = h.Typeflag
	if h.Typeflag == tar.TypeReg {
		var err error
		if body, err = rw.changed(h, body); err != nil {
			return err
		}
	}
	if h.Typeflag == tar.TypeDir {
		h.Name += "/"
	}
	if err := rw.out.WriteHeader(h); err != nil {
		return fmt.Errorf("write layer: %w", err)
	}
	if h.Typeflag == tar.TypeReg {
		if _, err := io.Copy(rw.out, body); err != nil {
			return fmt.Errorf("write layer: %w", err)
		}
	}
	return nil
}

// changed returns the file's body: most are copied, a few are edited or kept.
func (rw *rewriter) changed(h *tar.Header, body io.Reader) (io.Reader, error) {
	edit := rw.edits[h.Name]
	isStatus := h.Name == "var/lib/dpkg/status"
	if edit == nil && !isStatus {
		return body, nil
	}
	b, err := io.ReadAll(io.LimitReader(body, maxText+1))
	if err != nil {
		return nil, fmt.Errorf("read: %w", err)
	}
	if len(b) > maxText {
		return nil, fmt.Errorf("larger than %d bytes", maxText)
	}
	if isStatus {
		rw.status = b
	}
	if edit != nil {
		if b, err = edit(b); err != nil {
			return nil, err
		}
	}
	h.Size = int64(len(b))
	return bytes.NewReader(b), nil
}

// ownDirs are in every image, as real directories: the runtime mounts on them
// and must not find a link there (CVE-2026-41579).
var ownDirs = []struct {
	name     string
	mode     int64
	uid, gid int
}{
	{name: "dev", mode: 0o755},
	{name: "proc", mode: 0o555},
	{name: "sys", mode: 0o555},
	{name: "run", mode: 0o755},
	{name: "tmp", mode: 0o1777},
	{name: "boot", mode: 0o755},
	{name: "media", mode: 0o755},
	{name: "mnt", mode: 0o755},
	{name: "srv", mode: 0o755},
	{name: "etc", mode: 0o755},
	{name: "usr", mode: 0o755},
	{name: "usr/share", mode: 0o755},
	{name: "usr/share/creel", mode: 0o755},
	{name: "var", mode: 0o755},
	{name: "var/tmp", mode: 0o1777},
	{name: "var/log", mode: 0o755},
	{name: "var/cache", mode: 0o755},
	{name: "var/lib", mode: 0o755},
	{name: "var/lib/apt", mode: 0o755},
	{name: "home", mode: 0o755},
	{name: "home/agent", mode: 0o755, uid: AgentID, gid: AgentID},
	{name: "workspace", mode: 0o755, uid: AgentID, gid: AgentID},
}

// addOwn adds what the image has beyond the packages, last, so that their
// order in the archive never changes.
func (rw *rewriter) addOwn(packages []string, more []ownFile) error {
	for _, d := range ownDirs {
		if t, ok := rw.seen[d.name]; ok {
			if t != tar.TypeDir {
				return fmt.Errorf("/%s must be a real directory", d.name)
			}
			continue
		}
		h := &tar.Header{Typeflag: tar.TypeDir, Name: d.name, Mode: d.mode, Uid: d.uid, Gid: d.gid, ModTime: rw.epoch}
		if err := rw.put(h, nil); err != nil {
			return fmt.Errorf("directory /%s: %w", d.name, err)
		}
	}
	for _, f := range append([]ownFile{
		{"etc/hostname", "sandbox\n"},
		{"etc/hosts", "127.0.0.1 localhost sandbox\n::1 localhost sandbox\n"},
		{"etc/resolv.conf", ""},
		{"etc/machine-id", ""},
		{"usr/share/creel/packages.txt", strings.Join(append(packages, ""), "\n")},
	}, more...) {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: 0o644, Size: int64(len(f.text)), ModTime: rw.epoch}
		if err := rw.put(h, strings.NewReader(f.text)); err != nil {
			return fmt.Errorf("file /%s: %w", f.name, err)
		}
	}
	return nil
}
