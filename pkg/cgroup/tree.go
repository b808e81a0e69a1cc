package cgroup

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// tree is a mounted hierarchy held by a descriptor of its mount point. Every
// access goes by openat(2) from there, so that a mount made over the path
// later cannot redirect a write.
type tree struct {
	f    *os.File
	conn syscall.RawConn
}

func openTree(path string) (*tree, error) {
	f, err := os.OpenFile(path, unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	conn, err := f.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &tree{f, conn}, nil
}

func (t *tree) close() error { return t.f.Close() }

// do runs fn with the descriptor, which cannot be closed meanwhile. fn is
// tried again when a signal interrupts it.
func (t *tree) do(op, name string, fn func(fd int) error) error {
	var err error
	ctlErr := t.conn.Control(func(fd uintptr) {
		for {
			if err = fn(int(fd)); !errors.Is(err, unix.EINTR) {
				return
			}
		}
	})
	if err == nil {
		err = ctlErr
	}
	if err != nil {
		return &fs.PathError{Op: op, Path: t.f.Name() + "/" + name, Err: err}
	}
	return nil
}

func (t *tree) open(name string, flags int) (int, error) {
	fd := -1
	err := t.do("open", name, func(dir int) (err error) {
		fd, err = unix.Openat(dir, name, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		return err
	})
	return fd, err
}

// write gives a control file its value in one write(2), as kernfs wants it.
func (t *tree) write(name, value string) error {
	fd, err := t.open(name, unix.O_WRONLY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return t.do("write "+value+" to", name, func(int) error {
		n, err := unix.Write(fd, []byte(value))
		if err == nil && n != len(value) {
			return io.ErrShortWrite
		}
		return err
	})
}

// read is a control file's content without the last newline.
func (t *tree) read(name string) (string, error) {
	fd, err := t.open(name, unix.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	var out []byte
	buf := make([]byte, 8192)
	for {
		var n int
		err := t.do("read", name, func(int) (err error) { n, err = unix.Read(fd, buf); return err })
		if err != nil {
			return "", err
		}
		if n == 0 {
			return strings.TrimSuffix(string(out), "\n"), nil
		}
		out = append(out, buf[:n]...)
	}
}

func (t *tree) exists(name string) bool {
	return t.do("stat", name, func(dir int) error {
		return unix.Faccessat(dir, name, unix.F_OK, 0)
	}) == nil
}

func (t *tree) mkdir(name string) error {
	return t.do("mkdir", name, func(dir int) error { return unix.Mkdirat(dir, name, 0o755) })
}

// ensure is mkdir that is content with an existing directory.
func (t *tree) ensure(name string) error {
	if err := t.mkdir(name); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// children are the names of the cgroups directly below name; none when name
// does not exist.
func (t *tree) children(name string) ([]string, error) {
	fd, err := t.open(name, unix.O_RDONLY|unix.O_DIRECTORY)
	if gone(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	entries, err := f.ReadDir(-1)
	if err != nil && !gone(err) {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		if e.IsDir() {
			out = append(out, e.Name())
		}
	}
	return out, nil
}

// below lists name and every cgroup under it, deepest first.
func (t *tree) below(name string) ([]string, error) {
	kids, err := t.children(name)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, k := range kids {
		sub, err := t.below(name + "/" + k)
		if err != nil {
			return nil, err
		}
		out = append(out, sub...)
	}
	return append(out, name), nil
}

// removeTimeout bounds how long a busy cgroup is waited for. A task leaves its
// cgroup a moment after it was reaped, so EBUSY right after a kill is normal.
const removeTimeout = 2 * time.Second

func (t *tree) rmdir(name string) error {
	deadline := time.Now().Add(removeTimeout)
	for wait := 200 * time.Microsecond; ; wait = min(2*wait, 50*time.Millisecond) {
		err := t.do("rmdir", name, func(dir int) error { return unix.Unlinkat(dir, name, unix.AT_REMOVEDIR) })
		switch {
		case err == nil || gone(err):
			return nil
		case !errors.Is(err, unix.EBUSY) || time.Now().After(deadline):
			return err
		}
		time.Sleep(wait)
	}
}

// removeAll removes name and the cgroups below it. Processes are not touched.
func (t *tree) removeAll(name string) error {
	dirs, err := t.below(name)
	if err != nil {
		return err
	}
	for _, d := range dirs {
		if err := t.rmdir(d); err != nil {
			return fmt.Errorf("remove cgroup: %w", err)
		}
	}
	return nil
}

// gone tells that the cgroup was removed: ENODEV comes from a file that was
// opened before.
func gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV)
}
