package clienttest

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/server"
)

// inside is a path of the sandbox as a name beneath Root.
func inside(p string) string {
	if p = strings.TrimPrefix(path.Clean(p), "/"); p != "" {
		return p
	}
	return "."
}

func fileError(p string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return api.Errorf(api.CodeNotFound, "%s: no such file", p)
	}
	return api.Errorf(api.CodeInvalid, "%s: %w", p, err)
}

func (d *Daemon) info(p string, st fs.FileInfo) api.FileInfo {
	fi := api.FileInfo{Name: st.Name(), Size: st.Size(), Mode: uint32(st.Mode().Perm()), ModTime: st.ModTime(), Type: "other", UID: 1000, GID: 1000}
	switch {
	case st.Mode().IsRegular():
		fi.Type = "file"
	case st.IsDir():
		fi.Type = "dir"
	case st.Mode()&fs.ModeSymlink != 0:
		fi.Type = "symlink"
		fi.Target, _ = d.Root.Readlink(inside(p)) // gone meanwhile: no target
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if m, ok := d.Modes[p]; ok {
		fi.Mode = m
	}
	return fi
}

// ReadFile opens a file beneath Root.
func (d *Daemon) ReadFile(_ context.Context, _ server.Caller, ref, p string) (api.FileInfo, io.ReadCloser, error) {
	if _, err := d.get(ref); err != nil {
		return api.FileInfo{}, nil, err
	}
	f, err := d.Root.Open(inside(p))
	if err != nil {
		return api.FileInfo{}, nil, fileError(p, err)
	}
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		_ = f.Close()
		return api.FileInfo{}, nil, api.Errorf(api.CodeInvalid, "%s: is not a regular file", p)
	}
	return d.info(p, st), f, nil
}

// WriteFile writes one.
func (d *Daemon) WriteFile(_ context.Context, _ server.Caller, ref, p string, opts server.WriteOptions, r io.Reader) error {
	if _, err := d.get(ref); err != nil {
		return err
	}
	how := os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	if opts.Exclusive {
		how |= os.O_EXCL
	}
	if opts.Parents {
		if err := d.Root.MkdirAll(path.Dir(inside(p)), 0o755); err != nil {
			return fileError(p, err)
		}
	}
	f, err := d.Root.OpenFile(inside(p), how, fs.FileMode(opts.Mode))
	if err != nil {
		return fileError(p, err)
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}

// ListDir lists a directory, or what Listings says of it.
func (d *Daemon) ListDir(_ context.Context, _ server.Caller, _, p string, limit int, emit func(api.FileInfo) error) (bool, error) {
	d.mu.Lock()
	list, ok := d.Listings[p]
	d.mu.Unlock()
	if !ok {
		dir, err := d.Root.Open(inside(p))
		if err != nil {
			return false, fileError(p, err)
		}
		defer func() { _ = dir.Close() }()
		entries, err := dir.ReadDir(-1)
		if err != nil {
			return false, fileError(p, err)
		}
		for _, e := range entries {
			st, err := e.Info()
			if err != nil {
				return false, fileError(p, err)
			}
			list = append(list, d.info(path.Join(p, e.Name()), st))
		}
	}
	for i, fi := range list {
		if i == limit {
			return true, nil
		}
		if err := emit(fi); err != nil {
			return false, err
		}
	}
	return false, nil
}

// StatFile describes one.
func (d *Daemon) StatFile(_ context.Context, _ server.Caller, ref, p string) (*api.FileInfo, error) {
	if _, err := d.get(ref); err != nil {
		return nil, err
	}
	d.mu.Lock()
	_, listed := d.Listings[p]
	d.mu.Unlock()
	if listed {
		return &api.FileInfo{Name: path.Base(p), Type: "dir", Mode: 0o755}, nil
	}
	st, err := d.Root.Lstat(inside(p))
	if err != nil {
		return nil, fileError(p, err)
	}
	fi := d.info(p, st)
	return &fi, nil
}

// Mkdir makes a directory.
func (d *Daemon) Mkdir(_ context.Context, _ server.Caller, _, p string, parents bool) error {
	err := d.Root.Mkdir(inside(p), 0o755)
	if parents {
		err = d.Root.MkdirAll(inside(p), 0o755)
	}
	if err != nil {
		return fileError(p, err)
	}
	return nil
}

// RemoveFile removes one.
func (d *Daemon) RemoveFile(_ context.Context, _ server.Caller, _, p string, recursive bool) error {
	err := d.Root.Remove(inside(p))
	if recursive {
		err = d.Root.RemoveAll(inside(p))
	}
	if err != nil {
		return fileError(p, err)
	}
	return nil
}

// RenameFile moves one.
func (d *Daemon) RenameFile(_ context.Context, _ server.Caller, _, from, to string) error {
	if err := d.Root.Rename(inside(from), inside(to)); err != nil {
		return fileError(from, err)
	}
	return nil
}
